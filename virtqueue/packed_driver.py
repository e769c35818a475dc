# SPDX-License-Identifier: Apache-2.0
"""The driver side of a packed virtqueue, in the shape of SplitDriver: add chains, publish them, collect what was used.

It trusts its own memory and checks what the device writes. It notifies nobody; `publish` says whether a notification is
due. Chains added since the last `publish` are in the ring already, but for the flags of the first of them: the device
looks at one place only, and sees none of those behind it (virtio 1.3, 2.8.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vhost_scsi.virtqueue.accessors import Accessors, SharedWord, core_accessors
from vhost_scsi.virtqueue.layout import DESC_ALIGN, DESC_BYTES, RingAddresses, Structured
from vhost_scsi.virtqueue.memory import GuestBuffer, GuestMemory
from vhost_scsi.virtqueue.packed_layout import (
    DESC_FLAGS_OFFSET,
    EVENT_ALIGN,
    EVENT_BYTES,
    EVENT_FLAGS_OFFSET,
    EVENT_MODE_MASK,
    EVENT_PLACE_OFFSET,
    PACKED_DESC_DTYPE,
    EventMode,
    PackedFlag,
    PackedLayout,
    Place,
    packed_need_event,
)
from vhost_scsi.virtqueue.split_driver import DeviceError, Element, QueueFullError, Used, place_elements


@dataclass(slots=True)
class _Outstanding:
    """A chain the device has, or will have once published."""

    token: Any
    span: int
    table: GuestBuffer | None
    writable_bytes: int


class PackedDriver:
    """Driver side of one packed queue of `size` descriptors in `memory`.

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
        self.layout = PackedLayout(size)
        self.event_idx = event_idx
        self.indirect = indirect
        self._ring_buffers: list[GuestBuffer] = []
        self.addresses = addresses or self._allocate_ring()
        if self.addresses.size != size:
            raise ValueError(f"ring addresses are of a queue of {self.addresses.size}, not of {size}")
        self._ring = memory.translate(self.addresses.desc, self.layout.desc_bytes)
        self.desc: Structured = self.layout.desc_view(self._ring)
        self._accessors = accessors if accessors is not None else core_accessors()
        driver = memory.translate(self.addresses.avail, EVENT_BYTES)
        device = memory.translate(self.addresses.used, EVENT_BYTES)
        word = self._accessors.word
        self._driver_place, self._driver_mode = word(driver, EVENT_PLACE_OFFSET), word(driver, EVENT_FLAGS_OFFSET)
        self._device_place, self._device_mode = word(device, EVENT_PLACE_OFFSET), word(device, EVENT_FLAGS_OFFSET)
        self._flags: dict[int, SharedWord] = {}
        self._outstanding: dict[int, _Outstanding] = {}
        self._ids: list[int] = []
        self._reset()

    def _allocate_ring(self) -> RingAddresses:
        """The three parts as separate pieces: nothing may depend on their standing together (2.8)."""
        desc = self.memory.allocate(self.layout.desc_bytes, DESC_ALIGN)
        driver = self.memory.allocate(EVENT_BYTES, EVENT_ALIGN)
        device = self.memory.allocate(EVENT_BYTES, EVENT_ALIGN)
        self._ring_buffers = [desc, driver, device]
        return RingAddresses(self.layout.size, desc.address, driver.address, device.address)

    def _reset(self) -> None:
        """2.8.1 and 2.8.13: counters begin with 1, the ring with zeroes."""
        self.next_avail = self.published = self.last_used = Place()
        self.notifications = True
        self.free_descriptors = self.size
        self._first_flags = 0
        self._outstanding.clear()
        self._ids = list(range(self.size - 1, -1, -1))
        self.desc[:] = np.zeros((), dtype=PACKED_DESC_DTYPE)
        for word in (self._driver_place, self._driver_mode, self._device_place, self._device_mode):
            word.store(0)

    @property
    def size(self) -> int:
        return self.layout.size

    @property
    def outstanding(self) -> int:
        """Chains added and not yet collected."""
        return len(self._outstanding)

    @property
    def base(self) -> int:
        """vhost-user's VRING_BASE of a device that has used all that was published: both places, the driver's below."""
        return self.published.word | self.last_used.word << 16

    def _flags_word(self, index: int) -> SharedWord:
        word = self._flags.get(index)
        if word is None:
            word = self._flags[index] = self._accessors.word(self._ring, DESC_BYTES * index + DESC_FLAGS_OFFSET)
        return word

    def add(
        self,
        out: Sequence[Element] = (),
        in_: Sequence[Element] = (),
        *,
        token: Any = None,
        indirect: bool | None = None,
    ) -> int:
        """Put one chain into the ring, unseen by the device until `publish`; returns its buffer id.

        `out` are device-readable elements, `in_` device-writable ones. `indirect` puts the elements into an indirect
        table (default: where negotiated and there is more than one). Raises QueueFullError when there are too few free
        descriptors.
        """
        elements = place_elements(out, in_)
        if not elements:
            raise ValueError("a buffer has at least one element (2.8)")
        if len(elements) > self.size:
            raise ValueError(f"{len(elements)} elements in a queue of {self.size} (2.8.17)")
        if indirect is None:
            indirect = self.indirect and len(elements) > 1
        if indirect and not self.indirect:
            raise ValueError("INDIRECT_DESC was not negotiated (2.8.19)")
        needed = 1 if indirect else len(elements)
        if needed > self.free_descriptors:
            raise QueueFullError(f"chain needs {needed} descriptors, {self.free_descriptors} are free")
        table = self._write_table(elements) if indirect else None
        if table is not None:
            elements = [(table.address, table.length, int(PackedFlag.INDIRECT))]
        id_ = self._ids.pop()
        for position, (address, length, flags) in enumerate(elements):
            self._put(address, length, id_, flags if position == needed - 1 else flags | PackedFlag.NEXT)
        writable = sum(e.length if isinstance(e, GuestBuffer) else e[1] for e in in_)
        self._outstanding[id_] = _Outstanding(token, needed, table, writable)
        return id_

    def _write_table(self, elements: list[tuple[int, int, int]]) -> GuestBuffer:
        """2.8.19: no flag but WRITE, and all of the table is used."""
        table = self.memory.allocate(DESC_BYTES * len(elements), DESC_ALIGN)
        view = np.frombuffer(table.view, dtype=PACKED_DESC_DTYPE)
        for index, (address, length, flags) in enumerate(elements):
            view[index] = (address, length, 0, flags)
        return table

    def _put(self, address: int, length: int, id_: int, flags: int) -> None:
        at = self.next_avail
        flags |= at.avail_flags
        if at == self.published:
            self._first_flags = flags
            flags = int(self.desc["flags"][at.index])
        self.desc[at.index] = (address, length, id_, flags)
        self.next_avail = at.forward(1, self.size)
        self.free_descriptors -= 1

    def publish(self) -> bool:
        """Show everything added since the last call to the device; whether it wants a notification."""
        old, new = self.published, self.next_avail
        if old == new:
            return False
        # 2.8.21.1.1: all the rest before the flags that the device waits for: the store has release order
        self._flags_word(old.index).store(self._first_flags)
        self.published = new
        # 2.8.21.3.1: flags before the look at event suppression, or a notification is missed
        self._accessors.full_barrier()
        mode = self._device_mode.load() & EVENT_MODE_MASK
        event = Place.of_word(self._device_place.load())
        if mode != EventMode.DESC or not self.event_idx or event.index >= self.size:
            return mode != EventMode.DISABLE
        return packed_need_event(event, new, old, self.size)

    def collect(self, limit: int | None = None) -> Iterator[Used]:
        """Buffers the device has used, in its order; at most `limit`. Raises DeviceError for what 2.8 forbids.

        Descriptors of a buffer are free again when it is yielded. With notifications enabled, the one for the next
        buffer is asked for before the iterator ends, and the ring looked at once more after that (2.8.22).
        """
        left = self.size if limit is None else limit
        while left > 0:
            if self.pending:
                left -= 1
                yield self._take_used()
            elif not self.notifications or not self.enable_notifications():
                return

    def _take_used(self) -> Used:
        # one copy; the device could change it under us
        element = self.desc[self.last_used.index].copy()
        id_, written = int(element["id"]), int(element["len"])
        chain = self._outstanding.get(id_)
        if chain is None:
            raise DeviceError(f"used descriptor {self.last_used.index} names buffer {id_}, which is not outstanding")
        if not int(element["flags"]) & PackedFlag.WRITE:
            written = 0  # 2.8.4: the length is reserved then
        if written > chain.writable_bytes:
            raise DeviceError(f"buffer {id_}: {written} bytes written to {chain.writable_bytes} writable ones")
        self.last_used = self.last_used.forward(chain.span, self.size)
        del self._outstanding[id_]
        self._ids.append(id_)
        self.free_descriptors += chain.span
        if chain.table is not None:
            self.memory.free(chain.table)
        return Used(chain.token, written)

    @property
    def pending(self) -> bool:
        """Whether the ring holds something to collect. Acquire: what the device wrote before is seen after."""
        return self.last_used.is_used(self._flags_word(self.last_used.index).load())

    def enable_notifications(self, after: int = 1) -> bool:
        """Ask to be notified when `after` more descriptors are used; True if there is something to collect already.

        `after` above 1 needs event index; without it every used buffer notifies.
        """
        if not 1 <= after <= self.size:
            raise ValueError(f"cannot ask for a notification after {after} descriptors")
        self.notifications = True
        if self.event_idx:
            # the place first: a device that sees the mode sees the place (2.8.10)
            self._driver_place.store(self.last_used.forward(after - 1, self.size).word)
        self._driver_mode.store(EventMode.DESC if self.event_idx else EventMode.ENABLE)
        # 2.8.22: enable, barrier, look again
        self._accessors.full_barrier()
        return self.pending

    def disable_notifications(self) -> None:
        """Advise the device that we are looking anyway."""
        self.notifications = False
        self._driver_mode.store(EventMode.DISABLE)

    def detach(self) -> list[Any]:
        """After the device was reset or the ring stopped: take every chain back, clear the ring; the tokens, by age."""
        tokens = [chain.token for chain in self._outstanding.values()]
        for chain in self._outstanding.values():
            if chain.table is not None:
                self.memory.free(chain.table)
        self._reset()
        return tokens

    def close(self) -> None:
        """Detach, and give the ring's memory back if it was allocated here."""
        self.detach()
        for buffer in self._ring_buffers:
            self.memory.free(buffer)
        self._ring_buffers = []
