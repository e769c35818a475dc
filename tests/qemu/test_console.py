# SPDX-License-Identifier: Apache-2.0
"""The console stream: bounded, without escapes, consumed by what is matched."""

from __future__ import annotations

import itertools
import re
import threading

from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.qemu.console import Console


def test_what_was_matched_is_consumed() -> None:
    console = Console()
    console.feed(b"one login: two login: ")
    first = console.expect("login: ", 0)
    second = console.expect("login: ", 0)
    assert first is not None
    assert second is not None
    assert (first[0], second[0]) == ("one ", "two ")
    assert console.expect("login: ", 0) is None


def test_a_text_is_no_pattern() -> None:
    console = Console()
    console.feed(b"a.b (c)")
    assert console.expect("a.b (c)", 0) is not None


def test_a_wait_ends_when_the_text_comes() -> None:
    console = Console()
    threading.Timer(0.05, lambda: console.feed(b"here 42")).start()
    found = console.expect(re.compile(r"here (\d+)"), 30)
    assert found is not None
    assert found[1][1] == "42"


def test_a_wait_ends_when_the_line_is_gone() -> None:
    console = Console()
    threading.Timer(0.05, console.close).start()
    assert console.expect("never", 30) is None
    assert console.closed


@given(st.lists(st.integers(0, 40), max_size=8))
def test_escapes_vanish_however_the_bytes_arrive(cuts: list[int]) -> None:
    data = b"\x1b[1;32mok\x1b[0m \x1b]0;title\x07gr\xc3\xbcn\x1b(B\r\n"
    console = Console()
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    clean = "".join(console.feed(data[start:end]) for start, end in itertools.pairwise(edges))
    assert clean == "ok grün\n"
    assert console.tail() == "ok grün\n"


@given(st.lists(st.binary(max_size=64), max_size=30))
def test_no_bytes_make_it_fail_or_grow_past_its_limit(chunks: list[bytes]) -> None:
    console = Console(limit=256)
    for chunk in chunks:
        console.feed(chunk)
    assert len(console.tail()) <= 256


def test_what_nobody_read_in_time_is_counted_as_lost() -> None:
    console = Console(limit=10)
    console.feed(b"0123456789abcde")
    assert console.lost == 5
    assert console.tail() == "56789abcde"
