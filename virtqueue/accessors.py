# SPDX-License-Identifier: Apache-2.0
"""Loads and stores of the 16-bit words that driver and device share, with the ordering that virtio asks for.

Python and numpy promise nothing about ordering or tearing, so these go through C functions of the core extension. Only
indices, flags and event indices: descriptors and ring entries are plain data, published by the index behind them.
The object is injectable; tests that run without the extension bring their own.
"""

from __future__ import annotations

from typing import Any, Protocol

from vhost_scsi.virtqueue.layout import BufferLike


class SharedWord(Protocol):
    """One aligned little-endian 16-bit word in shared memory."""

    def load(self) -> int:
        """Load with acquire: what the other side wrote before it stored this word is seen after."""

    def store(self, value: int) -> None:
        """Store with release: what we wrote before is seen by whoever loads this value."""


class Accessors(Protocol):
    """Makes SharedWords, and gives the full barrier between publishing an index and looking at an event index."""

    def word(self, buffer: BufferLike, offset: int) -> SharedWord: ...

    def full_barrier(self) -> None: ...


class _CoreWord:
    """A SharedWord over the C accessors; keeps the memory it points into alive."""

    __slots__ = ("_lib", "_owner", "_pointer")

    def __init__(self, lib: Any, owner: Any, pointer: Any) -> None:
        self._lib = lib
        self._owner = owner
        self._pointer = pointer

    def load(self) -> int:
        return int(self._lib.vs_load_acquire_u16(self._pointer))

    def store(self, value: int) -> None:
        self._lib.vs_store_release_u16(self._pointer, value & 0xFFFF)


class CoreAccessors:
    """Accessors over the core extension's vs_load_acquire_u16, vs_store_release_u16 and vs_mb."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi = ffi
        self._lib = lib

    def word(self, buffer: BufferLike, offset: int) -> SharedWord:
        owner = self._ffi.from_buffer(buffer)
        if not 0 <= offset <= len(owner) - 2:
            raise ValueError(f"no 16-bit word at offset {offset} of {len(owner)} bytes")
        pointer = self._ffi.cast("char *", owner) + offset
        if int(self._ffi.cast("uintptr_t", pointer)) % 2:
            raise ValueError("a shared word must be aligned to 2 bytes")
        return _CoreWord(self._lib, owner, pointer)

    def full_barrier(self) -> None:
        self._lib.vs_mb()


def core_accessors() -> CoreAccessors:
    """The accessors of the built extension; ImportError if it is not there."""
    import vhost_scsi._core as core

    return CoreAccessors(core.ffi, core.lib)
