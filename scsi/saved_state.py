# SPDX-License-Identifier: Apache-2.0
"""What a logical unit keeps beyond its own life: named blobs, each replaced as a whole. Where they lie, and how they
survive a crash, is not known here; whoever builds the unit gives it something that does.

    Exception
    ├── SavedStateError     a blob could not be made durable: what would have promised it must not be promised
    └── SavedStateDamaged   a blob is there and cannot be trusted
"""

from __future__ import annotations

from typing import Protocol


class SavedStateError(Exception):
    """`put` failed; the old blob counts."""


class SavedStateDamaged(Exception):
    """`get` of a blob whose checksum or shape is wrong."""


class SavedState(Protocol):
    """Of one logical unit. Names are lower-case words joined by hyphens. `durable`: what is put survives the power."""

    @property
    def durable(self) -> bool: ...

    def get(self, name: str) -> bytes | None:
        """The blob that counts; None where there is none. Raises SavedStateDamaged."""
        ...

    async def put(self, name: str, data: bytes | None) -> None:
        """Durable on return; None removes. Raises SavedStateError, with the old blob still there."""
        ...


class NotKept:
    """Remembers as long as the process lives: for units that nobody gave a place."""

    durable = False

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}

    def get(self, name: str) -> bytes | None:
        return self._blobs.get(name)

    async def put(self, name: str, data: bytes | None) -> None:
        if data is None:
            self._blobs.pop(name, None)
        else:
            self._blobs[name] = data
