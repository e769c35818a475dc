# SPDX-License-Identifier: Apache-2.0
"""The driver side of a split virtqueue: add chains, publish them, collect what the device used.

A product of its own (tests, benches and fuzzing drive the device with it), not a guest driver: it trusts its own memory
and checks what the device writes. It notifies nobody; `publish` says whether a notification is due. `SplitDriver.raw`
gives the ring away for rings that no driver should make.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vhost_scsi.virtqueue.accessors import Accessors
from vhost_scsi.virtqueue.layout import (
    AVAIL_ALIGN,
    DESC_ALIGN,
    DESC_DTYPE,
    FLAGS_OFFSET,
    IDX_OFFSET,
    INDEX_MASK,
    USED_ALIGN,
    AvailFlag,
    DescFlag,
    RingAddresses,
    SplitLayout,
    Structured,
    UsedFlag,
    need_event,
)
from vhost_scsi.virtqueue.memory import GuestBuffer, GuestMemory
from vhost_scsi.virtqueue.ring_driver import DeviceError, Outstanding, Placed, QueueFullError, RingDriver


class SplitDriver(RingDriver):
    """A `RingDriver` over a split queue."""

    clauses = ("2.7.13.1", "2.7.5.3.1", "2.7.5.3.1")
    noun = "chain"

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        *,
        event_idx: bool = True,
        indirect: bool = True,
        in_order: bool = False,
        accessors: Accessors | None = None,
        addresses: RingAddresses | None = None,
    ) -> None:
        self.layout = SplitLayout(size)
        super().__init__(
            memory,
            size,
            event_idx=event_idx,
            indirect=indirect,
            in_order=in_order,
            accessors=accessors,
            addresses=addresses,
        )
        avail = memory.translate(self.addresses.avail, self.layout.avail_bytes)
        used = memory.translate(self.addresses.used, self.layout.used_bytes)
        self.desc: Structured = self.layout.desc_view(memory.translate(self.addresses.desc, self.layout.desc_bytes))
        self.avail: Structured = self.layout.avail_view(avail)
        self.used: Structured = self.layout.used_view(used)
        self._avail_ring = self.avail["ring"]
        self._used_ring = self.used["ring"]
        word = self._accessors.word
        self._avail_flags = word(avail, FLAGS_OFFSET)
        self._avail_idx = word(avail, IDX_OFFSET)
        self._used_event = word(avail, self.layout.used_event_offset)
        self._used_flags = word(used, FLAGS_OFFSET)
        self._used_idx = word(used, IDX_OFFSET)
        self._avail_event = word(used, self.layout.avail_event_offset)
        self._free: deque[int] = deque()
        self._reset()

    @classmethod
    def parts(cls, size: int) -> tuple[tuple[int, int], ...]:
        layout = SplitLayout(size)
        return (layout.desc_bytes, DESC_ALIGN), (layout.avail_bytes, AVAIL_ALIGN), (layout.used_bytes, USED_ALIGN)

    def _reset(self) -> None:
        """Indices and flags to zero (2.7.10.1: the driver initializes the used ring's flags to 0)."""
        self._clear()
        self.next_avail = 0
        self.published = 0
        self.last_used = 0
        self._free = deque(range(self.size))
        for word in (self._avail_flags, self._avail_idx, self._used_event):
            word.store(0)
        for word in (self._used_flags, self._used_idx, self._avail_event):
            word.store(0)

    @property
    def raw(self) -> RawRing:
        """The ring without rules."""
        # Not kept: the two would be a cycle, and CPython's collector crashes over views of memory that cffi still uses.
        return RawRing(self)

    @property
    def used_idx(self) -> int:
        """Where the device's used ring ends, collected or not."""
        return self._used_idx.load()

    @property
    def free_descriptors(self) -> int:
        return len(self._free)

    @property
    def first_base(self) -> int:
        return 0

    @property
    def base(self) -> int:
        return self.published

    @property
    def notification_place(self) -> int:
        return self.published

    def _place(self, elements: Sequence[Placed], chain: Outstanding) -> int:
        # 2.7.9.1: with in-order use from descriptor 0 on, and around. They come back in this order, too.
        taken = [self._free.popleft() for _ in elements]
        for position, (address, length, flags) in enumerate(elements):
            last = position == len(taken) - 1
            following = 0 if last else taken[position + 1]
            self.desc[taken[position]] = (address, length, flags if last else flags | DescFlag.NEXT, following)
        chain.descriptors = taken
        self._make_available(taken[0])
        return taken[0]

    def _write_table(self, elements: Sequence[Placed]) -> GuestBuffer:
        table = self._new_table(len(elements))
        view = np.frombuffer(table.view, dtype=DESC_DTYPE)
        for index, (address, length, flags) in enumerate(elements):
            more = index + 1 < len(elements)
            view[index] = (address, length, flags | DescFlag.NEXT if more else flags, index + 1 if more else 0)
        return table

    def _make_available(self, head: int) -> None:
        self._avail_ring[self.next_avail % self.size] = head
        self.next_avail = (self.next_avail + 1) & INDEX_MASK

    def publish(self) -> bool:
        """Show everything added since the last call to the device; whether it wants a notification."""
        old, new = self.published, self.next_avail
        if old == new:
            return False
        # 2.7.13.3.1: descriptors and ring entries first, then idx: the store has release order
        self._avail_idx.store(new)
        self.published = new
        # 2.7.13.4.1: idx before the look at flags or avail_event, or a notification is missed
        self._accessors.full_barrier()
        if self.event_idx:
            return need_event(self._avail_event.load(), new, old)
        return not self._used_flags.load() & UsedFlag.NO_NOTIFY

    def _fresh(self) -> int:
        """Used elements that we have not seen; more than are outstanding cannot be."""
        fresh = (self._used_idx.load() - self.last_used) & INDEX_MASK
        if fresh > len(self._outstanding):
            raise DeviceError(f"used idx is {fresh} ahead with {len(self._outstanding)} buffers outstanding")
        return fresh

    def _has_used(self) -> bool:
        return self._used_idx.load() != self.last_used

    def _has_more(self) -> bool:
        return self._has_used()

    def _used_element(self) -> tuple[int, int]:
        self._fresh()
        # one copy of the element; the device could change it under us
        element = self._used_ring[self.last_used % self.size].copy()
        head, written = int(element["id"]), int(element["len"])
        if head not in self._outstanding:
            raise DeviceError(f"used ring names head {head}, which is not outstanding")
        return head, written

    def _release(self, id_: int, chain: Outstanding) -> None:
        assert isinstance(chain.descriptors, list)
        if self.in_order:
            self._free.extend(chain.descriptors)
        else:
            self._free.extendleft(reversed(chain.descriptors))

    def _advance(self, chain: Outstanding) -> None:
        self.last_used = (self.last_used + 1) & INDEX_MASK

    def _name(self, id_: int) -> str:
        return f"head {id_}"

    def enable_notifications(self, after: int = 1) -> bool:
        if not 1 <= after <= self.size:
            raise ValueError(f"cannot ask for a notification after {after} buffers")
        self.notifications = True
        if self.event_idx:
            self._used_event.store(self.last_used + after - 1)
        else:
            self._avail_flags.store(0)
        # 2.7.14: enable, barrier, look again
        self._accessors.full_barrier()
        return self.pending

    def disable_notifications(self) -> None:
        self.notifications = False
        if self.event_idx:
            # 2.7.7.1: with event index the flags stay 0; an event just behind us is 65535 buffers away
            self._used_event.store(self.last_used - 1)
        else:
            self._avail_flags.store(AvailFlag.NO_INTERRUPT)


class RawRing:
    """The ring without rules: any bytes anywhere, for tests of what a hostile driver can do."""

    def __init__(self, driver: SplitDriver) -> None:
        self._driver = driver

    def reserve(self, count: int) -> list[int]:
        """Take free descriptors for own use. They come back with the chain they are posted with, or by detach."""
        if count > self._driver.free_descriptors:
            raise QueueFullError(f"{count} descriptors wanted, {self._driver.free_descriptors} are free")
        return [self._driver._free.popleft() for _ in range(count)]

    def descriptor(self, index: int, address: int, length: int, flags: int = 0, next_: int = 0) -> None:
        """Write one descriptor of the ring's own table, any values."""
        self._driver.desc[index] = (address, length, flags, next_)

    def table(self, descriptors: Iterable[tuple[int, int, int, int]]) -> GuestBuffer:
        """Write an indirect table of any (address, length, flags, next) into memory; the caller frees it."""
        data = np.array(list(descriptors), dtype=DESC_DTYPE).tobytes()
        buffer = self._driver.memory.allocate(len(data), DESC_ALIGN)
        buffer.view[:] = data
        return buffer

    def post(self, head: int, descriptors: Sequence[int] = (), *, token: Any = None, writable: int = 0) -> None:
        """Put any 16-bit `head` into the available ring; published with the next `publish`.

        `collect` expects it back with at most `writable` bytes written, and then frees `descriptors`.
        """
        self._driver._note(head, Outstanding(token, list(descriptors), None, writable))
        self._driver._make_available(head)

    def set_avail_idx(self, value: int) -> None:
        """Store any available idx, with release; the driver's own count of it does not move."""
        self._driver._avail_idx.store(value)

    def set_avail_flags(self, value: int) -> None:
        self._driver._avail_flags.store(value)

    def set_used_event(self, value: int) -> None:
        self._driver._used_event.store(value)
