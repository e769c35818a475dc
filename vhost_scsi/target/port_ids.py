# SPDX-License-Identifier: Apache-2.0
"""Relative target port identifiers (SPC-5 7.7.6.7): which target port has which number.

A number belongs to a port's key for good: initiators remember paths by it, and so do reservations. Where that is kept
is somebody else's affair.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from vhost_scsi.errors import ConfigError

LAST: Final = 0xFFFF
UNKNOWN: Final = 0
"""of a port that shows no logical unit; SPC-5 reserves it"""


class PortIds(Protocol):
    def ids_of(self, keys: Iterable[str]) -> list[int]:
        """A number for each key, made at first use. Raises ConfigError when there are no more."""
        ...


def allot(known: dict[str, int], keys: Iterable[str]) -> bool:
    """Adds the keys that are not known, with the lowest numbers that nobody has; whether there were any."""
    fresh = [key for key in dict.fromkeys(keys) if key not in known]
    taken = set(known.values())
    number = 0
    for key in fresh:
        number = next((each for each in range(number + 1, LAST + 1) if each not in taken), 0)
        if not number:
            raise ConfigError(f"target port {key}: all {LAST} relative target port identifiers are taken")
        known[key] = number
        taken.add(number)
    return bool(fresh)


class PortIdsInMemory:
    """Kept as long as the process lives."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def ids_of(self, keys: Iterable[str]) -> list[int]:
        keys = list(keys)
        allot(self._known, keys)
        return [self._known[key] for key in keys]
