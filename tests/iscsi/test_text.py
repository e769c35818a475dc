# SPDX-License-Identifier: Apache-2.0
"""Text: what is a pair and what is not, numbers, binary values, and text in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.iscsi import keys, text
from vhost_scsi.iscsi.text import Assembler, Pair, TextError, TextRule

CORPUS = Path(__file__).parents[1] / "corpus" / "iscsi_text"


def broken(data: bytes) -> TextRule:
    with pytest.raises(TextError) as caught:
        text.parse(data, keys.longest)
    return caught.value.rule


def test_pairs_are_read_in_their_order() -> None:
    assert text.parse(b"A=1\0B=\0X-com.example=a=b\0") == [("A", "1"), ("B", ""), ("X-com.example", "a=b")]


def test_nothing_is_no_pairs() -> None:
    assert text.parse(b"") == []


def test_zero_bytes_too_many_say_nothing() -> None:
    assert text.parse(b"A=1\0\0\0B=2\0\0") == [("A", "1"), ("B", "2")]


def test_a_name_may_be_utf_8() -> None:
    assert text.parse("InitiatorAlias=Käse\0".encode()) == [("InitiatorAlias", "Käse")]


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"A=1", TextRule.NO_TERMINATOR),
        (b"A=1\0B=2", TextRule.NO_TERMINATOR),
        (b"A\0", TextRule.NO_EQUALS_SIGN),
        (b"=1\0", TextRule.KEY_LENGTH),
        (b"A" * 64 + b"=1\0", TextRule.KEY_LENGTH),
        (b"A B=1\0", TextRule.KEY_CHARACTERS),
        (b"9A=1\0", TextRule.KEY_CHARACTERS),
        (b"\xc3\x84=1\0", TextRule.KEY_CHARACTERS),
        (b"A\n=1\0", TextRule.KEY_CHARACTERS),
        (b"A=" + b"1" * 256 + b"\0", TextRule.VALUE_LENGTH),
        (b"CHAP_C=0x" + b"1" * 2049 + b"\0", TextRule.VALUE_LENGTH),
        (b"A=\xff\0", TextRule.VALUE_CHARACTERS),
        (b"A=a\nb\0", TextRule.VALUE_CHARACTERS),
        (b"A=\x1b[2J\0", TextRule.VALUE_CHARACTERS),
        (b"A=\xc2\x9b2J\0", TextRule.VALUE_CHARACTERS),
        (b"A=1\0" * 129, TextRule.TOO_MANY_PAIRS),
        (b"\0" * 16385, TextRule.TOO_LONG),
    ],
)
def test_each_rule_is_enforced(data: bytes, rule: TextRule) -> None:
    assert broken(data) is rule


def test_the_longest_that_is_allowed_is_allowed() -> None:
    assert text.parse(b"A" * 63 + b"=" + b"1" * 255 + b"\0", keys.longest)
    assert text.parse(b"CHAP_C=0x" + b"1" * 2048 + b"\0", keys.longest)
    assert len(text.parse(b"A=1\0" * 128)) == 128


def test_an_error_repeats_nothing_that_was_sent() -> None:
    with pytest.raises(TextError) as caught:
        text.parse(b"secret\0")
    assert "secret" not in str(caught.value)


@given(st.binary(max_size=2000))
def test_noise_is_read_or_refused(data: bytes) -> None:
    replay(data)


def replay(data: bytes) -> None:
    try:
        pairs = text.parse(data, keys.longest)
    except TextError:
        return
    assert text.parse(text.build(pairs), keys.longest) == pairs


@pytest.mark.parametrize("seed", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_the_corpus(seed: Path) -> None:
    replay(seed.read_bytes())


_KEYS = st.from_regex(r"[A-Za-z][A-Za-z0-9.\-+@_#]{0,62}", fullmatch=True).filter(str.isascii)
_VALUES = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=60)


@given(st.lists(st.tuples(_KEYS, _VALUES), max_size=20), st.integers(1, 300))
def test_what_is_built_is_read_again_however_it_is_cut(pairs: list[tuple[str, str]], size: int) -> None:
    pieces = text.pieces(text.build(pairs), size)
    assembler = Assembler(limit=100_000)
    whole = None
    if len(pieces) > text.MAX_PAIRS:
        return
    for number, piece in enumerate(pieces, 1):
        assert whole is None
        whole = assembler.add(piece, number < len(pieces))
    assert whole is not None
    assert text.parse(whole) == [Pair(*pair) for pair in pairs]
    assert not assembler.waiting


def test_text_in_pieces_is_bounded_in_bytes() -> None:
    assembler = Assembler()
    assert assembler.add(bytes(8192), True) is None
    assert assembler.add(bytes(8192), True) is None
    with pytest.raises(TextError):
        assembler.add(b"x", True)


def test_text_in_pieces_is_bounded_in_pieces() -> None:
    assembler = Assembler()
    for _ in range(128):
        assert assembler.add(b"", True) is None
    with pytest.raises(TextError):
        assembler.add(b"", True)


@pytest.mark.parametrize(
    ("value", "result"),
    [("0", 0), ("512", 512), ("0x200", 512), ("0X1fF", 511), ("18446744073709551615", 2**64 - 1), ("0x00", 0)],
)
def test_numbers(value: str, result: int) -> None:
    assert text.number(value) == result


@pytest.mark.parametrize(
    "value", ["", "-1", "+1", "01", "1.0", "1 ", " 1", "0x", "0xg", "1e3", "١", "1_0", "18446744073709551616", "0b1",
              "0x" + "1" * 17, "9" * 5000, "?", "1~2"],
)  # fmt: skip
def test_what_is_no_number(value: str) -> None:
    with pytest.raises(ValueError, match="number"):
        text.number(value)


@pytest.mark.parametrize(
    ("value", "result"),
    [
        ("0x0102", b"\1\2"),
        ("0X102", b"\1\2"),
        ("0bAQI=", b"\1\2"),
        ("0BAQID", b"\1\2\3"),
        ("0x" + "00" * 1024, bytes(1024)),
    ],
)
def test_binary_values(value: str, result: bytes) -> None:
    assert text.binary(value) == result


@pytest.mark.parametrize(
    "value", ["", "0x", "0b", "12", "0xzz", "0bA", "0b====", "0b A=", "0x" + "00" * 1025, "0b" + "A" * 2000, "0x1 2"]
)
def test_what_is_no_binary_value(value: str) -> None:
    with pytest.raises(ValueError, match=r"binary|base64"):
        text.binary(value)
