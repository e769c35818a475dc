# SPDX-License-Identifier: Apache-2.0
"""The text format of login and text PDUs (RFC 7143, 6.1): `key=value` pairs, numbers, binary values, and text that goes
on over several PDUs.

Everything is bounded, because a peer that has not logged in yet sends it. What a key means stands in `keys.py`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from enum import Enum, unique
from typing import Final, NamedTuple

MAX_KEY: Final = 63  # bytes, 6.1
MAX_VALUE: Final = 255  # bytes, 6.1, unless the key says otherwise
MAX_PAIRS: Final = 128  # all keys of the RFC together are fewer than 50
MAX_TEXT: Final = 16384  # bytes of one text over all its PDUs; 6.2 asks for 8192 at least
MAX_BINARY: Final = 1024  # bytes, 12.1.3: the longest CHAP challenge
LONGEST_BINARY_VALUE: Final = 2 + 2 * MAX_BINARY  # in hexadecimal
RESERVED_VALUES: Final = frozenset(("NotUnderstood", "Irrelevant", "Reject"))  # 6.2: answers only

# 6.1 wants a capital letter first; iSCSIProtocolLevel, of the same RFC, has none, and X#... has a number sign.
_KEY: Final = re.compile(rb"[A-Za-z][A-Za-z0-9.\-+@_#]*", re.ASCII)
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,19}", re.ASCII)
_HEX_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]{1,16}", re.ASCII)
_HEX: Final = re.compile(r"0[xX][0-9a-fA-F]+", re.ASCII)
_BASE64: Final = re.compile(r"0[bB][A-Za-z0-9+/]+={0,2}", re.ASCII)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Pair(NamedTuple):
    key: str
    value: str


@unique
class TextRule(Enum):
    """What text can do wrong."""

    NO_TERMINATOR = "the last pair does not end with a zero byte"
    NO_EQUALS_SIGN = "a pair has no equals sign"
    KEY_LENGTH = "a key has no name or a name of more than 63 bytes"
    KEY_CHARACTERS = "a key's name has a character that names do not have"
    VALUE_LENGTH = "a value is longer than its key allows"
    VALUE_CHARACTERS = "a value is not UTF-8, or has control characters"
    TOO_MANY_PAIRS = f"more than {MAX_PAIRS} pairs in one text"
    TOO_LONG = f"a text of more than {MAX_TEXT} bytes"


class TextError(Exception):
    """The peer's text broke `rule`; the message is for the log and repeats nothing that the peer sent."""

    def __init__(self, rule: TextRule) -> None:
        super().__init__(rule.value)
        self.rule = rule


def _no_exception(key: str) -> int:
    return MAX_VALUE


def parse(data: bytes, longest: Callable[[str], int] = _no_exception) -> list[Pair]:
    """The pairs in their order. `longest` gives the bytes that the value of a key may have. Raises TextError.

    Zero bytes beyond the one that ends a pair are passed over: they can say nothing.
    """
    if len(data) > MAX_TEXT:
        raise TextError(TextRule.TOO_LONG)
    if data and data[-1] != 0:
        raise TextError(TextRule.NO_TERMINATOR)
    items = [item for item in data.split(b"\0") if item]
    if len(items) > MAX_PAIRS:
        raise TextError(TextRule.TOO_MANY_PAIRS)
    return [_pair(item, longest) for item in items]


def _pair(item: bytes, longest: Callable[[str], int]) -> Pair:
    key, equals, value = item.partition(b"=")
    if not equals:
        raise TextError(TextRule.NO_EQUALS_SIGN)
    if not 0 < len(key) <= MAX_KEY:
        raise TextError(TextRule.KEY_LENGTH)
    if not _KEY.fullmatch(key):
        raise TextError(TextRule.KEY_CHARACTERS)
    name = key.decode("ascii")
    if len(value) > longest(name):
        raise TextError(TextRule.VALUE_LENGTH)
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise TextError(TextRule.VALUE_CHARACTERS) from None
    if _CONTROL.search(text):
        raise TextError(TextRule.VALUE_CHARACTERS)
    return Pair(name, text)


def build(pairs: Sequence[tuple[str, str]]) -> bytes:
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in pairs)


class Assembler:
    """Text that comes in pieces, each but the last with the C bit set (6.2). A piece may end anywhere."""

    def __init__(self, limit: int = MAX_TEXT) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._length = 0
        self._count = 0

    def add(self, data: bytes, more_to_come: bool) -> bytes | None:
        """The whole text with its last piece, None before. Raises TextError where it grows too long."""
        self._length += len(data)
        self._count += 1
        # A piece without bytes is legal, and an endless row of them is not longer than the limit.
        if self._length > self._limit or self._count > MAX_PAIRS:
            self.clear()
            raise TextError(TextRule.TOO_LONG)
        self._pieces.append(data)
        if more_to_come:
            return None
        whole = b"".join(self._pieces)
        self.clear()
        return whole

    @property
    def waiting(self) -> bool:
        return bool(self._count)

    def clear(self) -> None:
        self._pieces.clear()
        self._length = self._count = 0


def pieces(data: bytes, size: int) -> list[bytes]:
    """The text cut for a peer that takes data segments of `size` bytes; one empty piece for no text."""
    return [data[start : start + size] for start in range(0, len(data), size)] or [b""]


def number(value: str) -> int:
    """A decimal or hexadecimal constant of at most 64 bits (6.1). Raises ValueError."""
    if _DECIMAL.fullmatch(value):
        parsed = int(value)
    elif _HEX_NUMBER.fullmatch(value):
        parsed = int(value, 16)
    else:
        raise ValueError("not a number")
    if parsed >> 64:
        raise ValueError("a number of more than 64 bits")
    return parsed


def binary(value: str) -> bytes:
    """A hexadecimal or base64 constant of at most 1024 bytes. Raises ValueError."""
    if len(value) > LONGEST_BINARY_VALUE:
        raise ValueError("a binary value of more than 1024 bytes")
    if _HEX.fullmatch(value):
        digits = value[2:]
        return bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits)
    if _BASE64.fullmatch(value):
        try:
            raw = base64.b64decode(value[2:], validate=True)
        except binascii.Error:
            raise ValueError("not base64") from None
        if len(raw) > MAX_BINARY:
            raise ValueError("a binary value of more than 1024 bytes")
        return raw
    raise ValueError("not a binary value")


def hexadecimal(data: bytes) -> str:
    return "0x" + data.hex()
