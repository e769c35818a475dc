# SPDX-License-Identifier: Apache-2.0
"""How options of stores are written: sizes, durations, switches, words. Each reader raises ValueError with a phrase
that says what it wants, to follow "option=value: ".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

SIZE_SUFFIXES: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
DURATION_SUFFIXES: Final = {"us": 1, "ms": 1000, "s": 1_000_000}
SWITCHES: Final = {"on": True, "off": False, "yes": True, "no": False, "true": True, "false": False}


def size(text: str) -> int:
    """Bytes: `4096`, `64K`, `1G`, `3T`; powers of 1024."""
    match = re.fullmatch(r"(\d{1,19})([KMGTP]?)(?:iB|B)?", text, re.IGNORECASE | re.ASCII)
    if match is None:
        raise ValueError("a size is a whole number with K, M, G or T behind it")
    n = int(match[1]) * SIZE_SUFFIXES[match[2].upper()]
    if n >= 2**63:
        raise ValueError("larger than any store can be")
    return n


def duration(text: str) -> int:
    """Microseconds: `250us`, `10ms`, `2s`; `0`."""
    match = re.fullmatch(r"(\d{1,12})(us|ms|s)", text, re.ASCII)
    if match is None and text != "0":
        raise ValueError("a duration is a whole number with us, ms or s behind it")
    return int(match[1]) * DURATION_SUFFIXES[match[2]] if match else 0


def switch(text: str) -> bool:
    if text.lower() not in SWITCHES:
        raise ValueError("on or off")
    return SWITCHES[text.lower()]


def count(text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise ValueError("a whole number")
    return int(text)


def blocks(text: str) -> tuple[int, int | None]:
    """First and last logical block: `8`, `8-15`; `8-`: to the end."""
    match = re.fullmatch(r"(\d{1,18})(-(\d{1,18})?)?", text, re.ASCII)
    if match is None:
        raise ValueError("a block address, or two with a - between them")
    first = int(match[1])
    last = first if match[2] is None else None if match[3] is None else int(match[3])
    if last is not None and last < first:
        raise ValueError("the range ends before it starts")
    return first, last


def word(*words: str) -> Callable[[str], str]:
    """One of these words."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(listed(words))
        return text

    return read


def words(*allowed: str) -> Callable[[str], frozenset[str]]:
    """Some of these words, with + between them."""

    def read(text: str) -> frozenset[str]:
        chosen = frozenset(text.split("+"))
        if not chosen <= frozenset(allowed):
            raise ValueError(f"{listed(allowed)}, several with + between them")
        return chosen

    return read


def listed(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
