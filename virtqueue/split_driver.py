# SPDX-License-Identifier: Apache-2.0
"""The driver side of a split virtqueue: add chains, publish them, collect what the device used.

A product of its own (tests, benches and fuzzing drive the device with it), not a guest driver: it trusts its own memory
and checks what the device writes. It notifies nobody; `publish` says whether a notification is due. `SplitDriver.raw`
gives the ring away for rings that no driver should make.

    VhostScsiError
      QueueFullError        no descriptors left; collect first
      DeviceError      the device wrote something into the used ring that 2.7.8 forbids
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vhost_scsi.errors import VhostScsiError
from vhost_scsi.virtqueue.accessors import Accessors, core_accessors
from vhost_scsi.virtqueue.layout import (
    AVAIL_ALIGN,
    DESC_ALIGN,
    DESC_BYTES,
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

Element = GuestBuffer | tuple[int, int]


class QueueFullError(VhostScsiError):
    """The chain needs more free descriptors than there are."""


class DeviceError(VhostScsiError):
    """The device broke a rule of the used ring."""


class Used(NamedTuple):
    """One buffer that came back: its token, and how many bytes the device says it wrote."""

    token: Any
    written: int


@dataclass(slots=True)
class _Outstanding:
    """A chain the device has, or will have once published."""

    token: Any
    descriptors: list[int]
    table: GuestBuffer | None
    writable_bytes: int


def place_elements(out: Sequence[Element], in_: Sequence[Element]) -> list[tuple[int, int, int]]:
    """(address, length, flags) of each element, readable before writable (2.7.4.2)."""
    placed = []
    for elements, flag in ((out, 0), (in_, int(DescFlag.WRITE))):
        for element in elements:
            address, length = (element.address, element.length) if isinstance(element, GuestBuffer) else element
            placed.append((address, length, flag))
    return placed


class SplitDriver:
    """Driver side of one split queue of `size` entries in `memory`.

    The ring is allocated in `memory` unless `addresses` says where it stands. `event_idx` and `indirect` are what was
    negotiated. Not safe for use from two threads.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        *,
        event_idx: bool = True,
        indirect: bool = True,
        accessors: Accessors | None = None,
        addresses: RingAddresses | None = None,
    ) -> None:
        self.memory = memory
        self.layout = SplitLayout(size)
        self.event_idx = event_idx
        self.indirect = indirect
        self._ring_buffers: list[GuestBuffer] = []
        self.addresses = addresses or self._allocate_ring()
        if self.addresses.size != size:
            raise ValueError(f"ring addresses are of a queue of {self.addresses.size}, not of {size}")
        avail = memory.translate(self.addresses.avail, self.layout.avail_bytes)
        used = memory.translate(self.addresses.used, self.layout.used_bytes)
        self.desc: Structured = self.layout.desc_view(memory.translate(self.addresses.desc, self.layout.desc_bytes))
        self.avail: Structured = self.layout.avail_view(avail)
        self.used: Structured = self.layout.used_view(used)
        self._avail_ring = self.avail["ring"]
        self._used_ring = self.used["ring"]
        self._accessors = accessors if accessors is not None else core_accessors()
        word = self._accessors.word
        self._avail_flags = word(avail, FLAGS_OFFSET)
        self._avail_idx = word(avail, IDX_OFFSET)
        self._used_event = word(avail, self.layout.used_event_offset)
        self._used_flags = word(used, FLAGS_OFFSET)
        self._used_idx = word(used, IDX_OFFSET)
        self._avail_event = word(used, self.layout.avail_event_offset)
        self._outstanding: dict[int, _Outstanding] = {}
        self._free: list[int] = []
        self._reset()

    def _allocate_ring(self) -> RingAddresses:
        """The three parts as separate pieces: nothing may depend on their standing together (2.7)."""
        desc = self.memory.allocate(self.layout.desc_bytes, DESC_ALIGN)
        avail = self.memory.allocate(self.layout.avail_bytes, AVAIL_ALIGN)
        used = self.memory.allocate(self.layout.used_bytes, USED_ALIGN)
        self._ring_buffers = [desc, avail, used]
        return RingAddresses(self.layout.size, desc.address, avail.address, used.address)

    def _reset(self) -> None:
        """Indices and flags to zero (2.7.10.1: the driver initializes the used ring's flags to 0)."""
        self.next_avail = 0
        self.published = 0
        self.last_used = 0
        self.notifications = True
        self._outstanding.clear()
        self._free = list(range(self.layout.size - 1, -1, -1))
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
    def size(self) -> int:
        return self.layout.size

    @property
    def free_descriptors(self) -> int:
        return len(self._free)

    @property
    def outstanding(self) -> int:
        """Chains added and not yet collected."""
        return len(self._outstanding)

    def add(
        self,
        out: Sequence[Element] = (),
        in_: Sequence[Element] = (),
        *,
        token: Any = None,
        indirect: bool | None = None,
        direct_prefix: int = 0,
    ) -> int:
        """Put one chain into the table and the available ring, unseen by the device until `publish`; returns its head.

        `out` are device-readable elements, `in_` device-writable ones. `indirect` puts the elements into an indirect
        table (default: where negotiated and there is more than one); the first `direct_prefix` of them stay in the
        ring's own table then, which 2.7.5.3.2 allows. Raises QueueFullError when there are too few free descriptors.
        """
        elements = place_elements(out, in_)
        if not elements:
            raise ValueError("a chain has at least one element (2.7.13.1)")
        if len(elements) > self.size:
            raise ValueError(f"{len(elements)} elements in a queue of {self.size} (2.7.5.3.1)")
        if indirect is None:
            indirect = self.indirect and len(elements) > 1
        if indirect and not self.indirect:
            raise ValueError("INDIRECT_DESC was not negotiated (2.7.5.3.1)")
        if not 0 <= direct_prefix < len(elements):
            raise ValueError(f"direct prefix {direct_prefix} of {len(elements)} elements")
        needed = direct_prefix + 1 if indirect else len(elements)
        if needed > len(self._free):
            raise QueueFullError(f"chain needs {needed} descriptors, {len(self._free)} are free")
        table = self._write_table(elements[direct_prefix:]) if indirect else None
        if table is not None:
            elements[direct_prefix:] = [(table.address, table.length, int(DescFlag.INDIRECT))]
        taken = [self._free.pop() for _ in range(needed)]
        for position, (address, length, flags) in enumerate(elements):
            last = position == needed - 1
            following = 0 if last else taken[position + 1]
            self.desc[taken[position]] = (address, length, flags if last else flags | DescFlag.NEXT, following)
        writable = sum(e.length if isinstance(e, GuestBuffer) else e[1] for e in in_)
        self._offer(taken[0], _Outstanding(token, taken, table, writable))
        return taken[0]

    def _write_table(self, elements: list[tuple[int, int, int]]) -> GuestBuffer:
        table = self.memory.allocate(DESC_BYTES * len(elements), DESC_ALIGN)
        view = np.frombuffer(table.view, dtype=DESC_DTYPE)
        for index, (address, length, flags) in enumerate(elements):
            more = index + 1 < len(elements)
            view[index] = (address, length, flags | DescFlag.NEXT if more else flags, index + 1 if more else 0)
        return table

    def _offer(self, head: int, chain: _Outstanding) -> None:
        self._outstanding[head] = chain
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

    def collect(self, limit: int | None = None) -> Iterator[Used]:
        """Buffers the device has used, in its order; at most `limit`. Raises DeviceError for what 2.7.8 forbids.

        Descriptors of a buffer are free again when it is yielded. With notifications enabled, the one for the next
        buffer is asked for before the iterator ends, and the ring looked at once more after that (2.7.14).
        """
        left = self.size if limit is None else limit
        while left > 0:
            fresh = (self._used_idx.load() - self.last_used) & INDEX_MASK
            if fresh > len(self._outstanding):
                raise DeviceError(f"used idx is {fresh} ahead with {len(self._outstanding)} buffers outstanding")
            if fresh == 0:
                if not self.notifications or not self.enable_notifications():
                    return
                continue
            for _ in range(min(fresh, left)):
                left -= 1
                yield self._take_used()

    def _take_used(self) -> Used:
        # one copy of the element; the device could change it under us
        element = self._used_ring[self.last_used % self.size].copy()
        head, written = int(element["id"]), int(element["len"])
        chain = self._outstanding.get(head)
        if chain is None:
            raise DeviceError(f"used ring names head {head}, which is not outstanding")
        if written > chain.writable_bytes:
            raise DeviceError(f"head {head}: {written} bytes written to {chain.writable_bytes} writable ones")
        self.last_used = (self.last_used + 1) & INDEX_MASK
        del self._outstanding[head]
        self._release(chain)
        return Used(chain.token, written)

    def _release(self, chain: _Outstanding) -> None:
        self._free.extend(reversed(chain.descriptors))
        if chain.table is not None:
            self.memory.free(chain.table)

    @property
    def pending(self) -> bool:
        """Whether the used ring holds something to collect."""
        return self._used_idx.load() != self.last_used

    def enable_notifications(self, after: int = 1) -> bool:
        """Ask to be notified when `after` more buffers are used; True if there is something to collect already.

        `after` above 1 needs event index; without it every used buffer notifies.
        """
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
        """Advise the device that we are looking anyway."""
        self.notifications = False
        if self.event_idx:
            # 2.7.7.1: with event index the flags stay 0; an event just behind us is 65535 buffers away
            self._used_event.store(self.last_used - 1)
        else:
            self._avail_flags.store(AvailFlag.NO_INTERRUPT)

    def detach(self) -> list[Any]:
        """After the device was reset or the ring stopped: take every chain back, clear the ring; the tokens, by age."""
        tokens = [chain.token for chain in self._outstanding.values()]
        for chain in self._outstanding.values():
            self._release(chain)
        self._reset()
        return tokens

    def close(self) -> None:
        """Detach, and give the ring's memory back if it was allocated here."""
        self.detach()
        for buffer in self._ring_buffers:
            self.memory.free(buffer)
        self._ring_buffers = []


class RawRing:
    """The ring without rules: any bytes anywhere, for tests of what a hostile driver can do."""

    def __init__(self, driver: SplitDriver) -> None:
        self._driver = driver

    def reserve(self, count: int) -> list[int]:
        """Take free descriptors for own use. They come back with the chain they are posted with, or by detach."""
        if count > self._driver.free_descriptors:
            raise QueueFullError(f"{count} descriptors wanted, {self._driver.free_descriptors} are free")
        return [self._driver._free.pop() for _ in range(count)]

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
        self._driver._offer(head, _Outstanding(token, list(descriptors), None, writable))

    def set_avail_idx(self, value: int) -> None:
        """Store any available idx, with release; the driver's own count of it does not move."""
        self._driver._avail_idx.store(value)

    def set_avail_flags(self, value: int) -> None:
        self._driver._avail_flags.store(value)

    def set_used_event(self, value: int) -> None:
        self._driver._used_event.store(value)
