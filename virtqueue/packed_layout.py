# SPDX-License-Identifier: Apache-2.0
"""The packed virtqueue in memory: sizes, alignments, offsets, its parts as numpy views, and the arithmetic of places.

Layout only, beside `layout` for the split one. Which loads and stores need a barrier is said in packed_driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Self

import numpy as np

from vhost_scsi.virtqueue.layout import DESC_ALIGN, DESC_BYTES, MAX_QUEUE_SIZE, BufferLike, RingAddresses, Structured

# virtio 1.3, 2.8.10.1
EVENT_ALIGN: Final = 4
EVENT_BYTES: Final = 4
# the event suppression structure is two 16-bit words (2.8.14)
EVENT_PLACE_OFFSET: Final = 0
EVENT_FLAGS_OFFSET: Final = 2
# of the flags in a descriptor (2.8.13)
DESC_FLAGS_OFFSET: Final = 14

WRAP_BIT: Final = 0x8000

PACKED_DESC_DTYPE: Final = np.dtype([("addr", "<u8"), ("len", "<u4"), ("id", "<u2"), ("flags", "<u2")])
EVENT_DTYPE: Final = np.dtype([("place", "<u2"), ("flags", "<u2")])


class PackedFlag(IntFlag):
    """Descriptor flags (virtio 1.3, 2.8.1, 2.8.3, 2.8.6, 2.8.7)."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4
    AVAIL = 1 << 7
    USED = 1 << 15


class EventMode(IntEnum):
    """Flags of the event suppression structure (2.8.10)."""

    ENABLE = 0
    DISABLE = 1
    DESC = 2


EVENT_MODE_MASK: Final = 3


@dataclass(frozen=True, slots=True)
class Place:
    """A descriptor of the ring and the wrap counter of the lap that a side is in there (2.8.1)."""

    index: int = 0
    wrap: bool = True

    @classmethod
    def of_word(cls, word: int) -> Self:
        """From bits 0 to 14 and 15, as in event suppression structures and in vhost-user's VRING_BASE."""
        return cls(word & (WRAP_BIT - 1), bool(word & WRAP_BIT))

    @property
    def word(self) -> int:
        return self.index | (WRAP_BIT if self.wrap else 0)

    def forward(self, count: int, size: int) -> Place:
        """`count` descriptors further on, at most a lap."""
        index = self.index + count
        return Place(index, self.wrap) if index < size else Place(index - size, not self.wrap)

    def distance(self, to: Place, size: int) -> int:
        """Descriptors from here on to `to`, less than two laps."""
        return (to.index - self.index + (size if self.wrap != to.wrap else 0)) % (2 * size)

    @property
    def avail_flags(self) -> PackedFlag:
        """What a descriptor has that was made available here."""
        return PackedFlag.AVAIL if self.wrap else PackedFlag.USED

    @property
    def used_flags(self) -> PackedFlag:
        return PackedFlag.AVAIL | PackedFlag.USED if self.wrap else PackedFlag(0)

    def is_avail(self, flags: int) -> bool:
        return flags & (PackedFlag.AVAIL | PackedFlag.USED) == self.avail_flags

    def is_used(self, flags: int) -> bool:
        return flags & (PackedFlag.AVAIL | PackedFlag.USED) == self.used_flags


def packed_need_event(event: Place, new: Place, old: Place, size: int) -> bool:
    """Whether moving from `old` to `new` passed `event` (2.8.10, RING_EVENT_FLAGS_DESC)."""
    return old.distance(event, size) < old.distance(new, size)


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Bytes and offsets of a packed queue of `size` descriptors; ValueError for a size the standard forbids.

    In RingAddresses, `avail` is the driver event suppression structure and `used` the device's.
    """

    size: int

    def __post_init__(self) -> None:
        # 2.8.10.1: it need not be a power of two
        if not 1 <= self.size <= MAX_QUEUE_SIZE:
            raise ValueError(f"queue size {self.size} is not one from 1 to {MAX_QUEUE_SIZE}")

    @property
    def desc_bytes(self) -> int:
        return DESC_BYTES * self.size

    @property
    def total_bytes(self) -> int:
        return self.desc_bytes + 2 * EVENT_BYTES

    def place(self, base: int) -> RingAddresses:
        """Addresses of the parts when they are laid out behind one another from `base`, a multiple of 16."""
        if base % DESC_ALIGN:
            raise ValueError(f"descriptor ring at {base:#x} is not aligned to {DESC_ALIGN} bytes")
        driver = base + self.desc_bytes
        return RingAddresses(size=self.size, desc=base, avail=driver, used=driver + EVENT_BYTES)

    def desc_view(self, buffer: BufferLike) -> Structured:
        """The descriptor ring: shape (size,), fields addr, len, id, flags. Writable if `buffer` is."""
        return np.frombuffer(buffer, dtype=PACKED_DESC_DTYPE, count=self.size)

    def event_view(self, buffer: BufferLike) -> Structured:
        """An event suppression structure: shape (), fields place and flags."""
        return np.frombuffer(buffer, dtype=EVENT_DTYPE, count=1).reshape(())
