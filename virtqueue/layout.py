# SPDX-License-Identifier: Apache-2.0
"""The split virtqueue in memory: sizes, alignments, offsets, and its three parts as numpy structured views.

Layout only. Which loads and stores need a barrier, and what the numbers mean, is said in accessors, split_driver and
walker. Everything is little-endian (virtio 1.3, 2.7.3: the legacy interface with guest-endian rings is not served).
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

import numpy as np
import numpy.typing as npt

# virtio 1.3, 2.7: the queue size is a power of two, at most 32768
MAX_QUEUE_SIZE: Final = 32768
# ring indices are free-running 16-bit counters (2.7.13.3)
INDEX_MASK: Final = 0xFFFF

DESC_ALIGN: Final = 16
AVAIL_ALIGN: Final = 2
USED_ALIGN: Final = 4

DESC_BYTES: Final = 16
USED_ELEM_BYTES: Final = 8

# flags and idx stand at the same place in both rings (2.7.6, 2.7.8)
FLAGS_OFFSET: Final = 0
IDX_OFFSET: Final = 2
RING_OFFSET: Final = 4

DESC_DTYPE: Final = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])
USED_ELEM_DTYPE: Final = np.dtype([("id", "<u4"), ("len", "<u4")])

Structured = npt.NDArray[np.void]
BufferLike = bytes | bytearray | memoryview | mmap.mmap


class DescFlag(IntFlag):
    """Descriptor flags (virtio 1.3, 2.7.5)."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


class AvailFlag(IntFlag):
    """Flags of the available ring (2.7.6)."""

    NO_INTERRUPT = 1


class UsedFlag(IntFlag):
    """Flags of the used ring (2.7.8)."""

    NO_NOTIFY = 1


def is_queue_size(size: int) -> bool:
    """Whether `size` is a legal queue size: a power of two from 1 to 32768 (virtio 1.3, 2.7)."""
    return 1 <= size <= MAX_QUEUE_SIZE and size & (size - 1) == 0


def need_event(event: int, new: int, old: int) -> bool:
    """Whether moving an index from `old` to `new` passed `event` (2.7.7.2 and 2.7.10.1), all modulo 2**16.

    The side that waits named the index at which it wants to be notified; that index was passed if it is one of
    old .. new-1.
    """
    return (new - event - 1) & INDEX_MASK < (new - old) & INDEX_MASK


@dataclass(frozen=True, slots=True)
class RingAddresses:
    """Where the three parts of one queue stand, as guest-physical addresses, and how many entries it has."""

    size: int
    desc: int
    avail: int
    used: int


@dataclass(frozen=True, slots=True)
class SplitLayout:
    """Bytes and offsets of a split queue of `size` entries; raises ValueError for a size the standard forbids."""

    size: int

    def __post_init__(self) -> None:
        if not is_queue_size(self.size):
            raise ValueError(f"queue size {self.size} is not a power of two from 1 to {MAX_QUEUE_SIZE}")

    @property
    def desc_bytes(self) -> int:
        return DESC_BYTES * self.size

    @property
    def avail_bytes(self) -> int:
        """Bytes of the available ring. used_event is counted in whether or not EVENT_IDX is negotiated (2.7)."""
        return 6 + 2 * self.size

    @property
    def used_bytes(self) -> int:
        return 6 + USED_ELEM_BYTES * self.size

    @property
    def used_event_offset(self) -> int:
        """Offset of used_event in the available ring."""
        return RING_OFFSET + 2 * self.size

    @property
    def avail_event_offset(self) -> int:
        """Offset of avail_event in the used ring."""
        return RING_OFFSET + USED_ELEM_BYTES * self.size

    @property
    def total_bytes(self) -> int:
        """Bytes of all three parts behind one another, padding for alignment included."""
        return self.place(0).used + self.used_bytes

    def place(self, base: int) -> RingAddresses:
        """Addresses of the parts when they are laid out behind one another from `base`, a multiple of 16."""
        if base % DESC_ALIGN:
            raise ValueError(f"descriptor table at {base:#x} is not aligned to {DESC_ALIGN} bytes")
        avail = base + self.desc_bytes
        used = (avail + self.avail_bytes + USED_ALIGN - 1) // USED_ALIGN * USED_ALIGN
        return RingAddresses(size=self.size, desc=base, avail=avail, used=used)

    def desc_view(self, buffer: BufferLike) -> Structured:
        """The descriptor table: shape (size,), fields addr, len, flags, next. Writable if `buffer` is."""
        return np.frombuffer(buffer, dtype=DESC_DTYPE, count=self.size)

    def avail_view(self, buffer: BufferLike) -> Structured:
        """The available ring: shape (), fields flags, idx, ring (size,), used_event."""
        dtype = np.dtype([("flags", "<u2"), ("idx", "<u2"), ("ring", "<u2", (self.size,)), ("used_event", "<u2")])
        return np.frombuffer(buffer, dtype=dtype, count=1).reshape(())

    def used_view(self, buffer: BufferLike) -> Structured:
        """The used ring: shape (), fields flags, idx, ring (size,) of id and len, avail_event."""
        dtype = np.dtype(
            [("flags", "<u2"), ("idx", "<u2"), ("ring", USED_ELEM_DTYPE, (self.size,)), ("avail_event", "<u2")]
        )
        return np.frombuffer(buffer, dtype=dtype, count=1).reshape(())
