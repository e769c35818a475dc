# SPDX-License-Identifier: Apache-2.0
"""The driver side of a packed virtqueue, in the shape of SplitDriver: add chains, publish them, collect what was used.

It trusts its own memory and checks what the device writes. It notifies nobody; `publish` says whether a notification is
due. Chains added since the last `publish` are in the ring already, but for the flags of the first of them: the device
looks at one place only, and sees none of those behind it (virtio 1.3, 2.8.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vhost_scsi.virtqueue.accessors import Accessors, SharedWord
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
from vhost_scsi.virtqueue.ring_driver import DeviceError, Outstanding, Placed, RingDriver


class PackedDriver(RingDriver):
    """A `RingDriver` over a packed queue of `size` descriptors; what names a chain is its buffer id."""

    clauses = ("2.8", "2.8.17", "2.8.19")
    noun = "buffer"
    mixes = False

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
        self.layout = PackedLayout(size)
        super().__init__(
            memory,
            size,
            event_idx=event_idx,
            indirect=indirect,
            in_order=in_order,
            accessors=accessors,
            addresses=addresses,
        )
        self._ring = memory.translate(self.addresses.desc, self.layout.desc_bytes)
        self.desc: Structured = self.layout.desc_view(self._ring)
        driver = memory.translate(self.addresses.avail, EVENT_BYTES)
        device = memory.translate(self.addresses.used, EVENT_BYTES)
        word = self._accessors.word
        self._driver_place, self._driver_mode = word(driver, EVENT_PLACE_OFFSET), word(driver, EVENT_FLAGS_OFFSET)
        self._device_place, self._device_mode = word(device, EVENT_PLACE_OFFSET), word(device, EVENT_FLAGS_OFFSET)
        self._flags: dict[int, SharedWord] = {}
        self._ids: list[int] = []
        self._reset()

    @classmethod
    def parts(cls, size: int) -> tuple[tuple[int, int], ...]:
        event = (EVENT_BYTES, EVENT_ALIGN)
        return (PackedLayout(size).desc_bytes, DESC_ALIGN), event, event

    def _reset(self) -> None:
        """2.8.1 and 2.8.13: counters begin with 1, the ring with zeroes."""
        self._clear()
        self.next_avail = self.published = self.last_used = Place()
        self._free_descriptors = self.size
        self._first_flags = 0
        self._ids = list(range(self.size - 1, -1, -1))
        self.desc[:] = np.zeros((), dtype=PACKED_DESC_DTYPE)
        for word in (self._driver_place, self._driver_mode, self._device_place, self._device_mode):
            word.store(0)

    @property
    def free_descriptors(self) -> int:
        return self._free_descriptors

    @property
    def first_base(self) -> int:
        return Place().word * 0x10001

    @property
    def base(self) -> int:
        """Both places, the driver's below."""
        return self.published.word | self.last_used.word << 16

    @property
    def notification_place(self) -> int:
        return self.published.word

    def _flags_word(self, index: int) -> SharedWord:
        word = self._flags.get(index)
        if word is None:
            word = self._flags[index] = self._accessors.word(self._ring, DESC_BYTES * index + DESC_FLAGS_OFFSET)
        return word

    def _place(self, elements: Sequence[Placed], chain: Outstanding) -> int:
        id_ = self._ids.pop()
        for position, (address, length, flags) in enumerate(elements):
            self._put(address, length, id_, flags if position == len(elements) - 1 else flags | PackedFlag.NEXT)
        return id_

    def _write_table(self, elements: Sequence[Placed]) -> GuestBuffer:
        """2.8.19: no flag but WRITE, and all of the table is used."""
        table = self._new_table(len(elements))
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
        self._free_descriptors -= 1

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

    def _has_used(self) -> bool:
        return self.last_used.is_used(self._flags_word(self.last_used.index).load())

    def _used_element(self) -> tuple[int, int]:
        # one copy; the device could change it under us
        element = self.desc[self.last_used.index].copy()
        id_, written = int(element["id"]), int(element["len"])
        if id_ not in self._outstanding:
            raise DeviceError(f"used descriptor {self.last_used.index} names buffer {id_}, which is not outstanding")
        # 2.8.4: the length is reserved without WRITE
        return id_, written if int(element["flags"]) & PackedFlag.WRITE else 0

    def _release(self, id_: int, chain: Outstanding) -> None:
        self._ids.append(id_)
        assert isinstance(chain.descriptors, int)
        self._free_descriptors += chain.descriptors

    def _advance(self, chain: Outstanding) -> None:
        assert isinstance(chain.descriptors, int)
        self.last_used = self.last_used.forward(chain.descriptors, self.size)

    def enable_notifications(self, after: int = 1) -> bool:
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
        self.notifications = False
        self._driver_mode.store(EventMode.DISABLE)
