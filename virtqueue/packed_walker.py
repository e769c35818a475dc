# SPDX-License-Identifier: Apache-2.0
"""The read-only walker of packed rings: what is posted and not taken, what is in flight, and the rules that are broken.

Like `walker` it is handed addresses and a memory of its own, writes nothing, believes nothing, never raises for what
stands in guest memory, and does bounded work.

A packed ring tells less than a split one: no index stands in it, lists that were taken are overwritten by used
descriptors, and the length of a list that was used is known to the driver alone. So the device's place is to be handed
in (`PackedPositions`); else it is where the device last asked to be kicked, if it did, and `guessed` says so; else
nothing can be listed. Of what is in flight only the ids are known, from whoever tells them.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vhost_scsi.virtqueue.chains import (
    INDIRECT,
    NEXT,
    Budget,
    Chain,
    ChainWalk,
    Descriptor,
    HeadState,
    Violation,
    members,
)
from vhost_scsi.virtqueue.layout import DESC_ALIGN, DESC_BYTES, MAX_QUEUE_SIZE, RingAddresses
from vhost_scsi.virtqueue.memory import AddressError, ReadableMemory
from vhost_scsi.virtqueue.packed_layout import EVENT_ALIGN, EVENT_BYTES, EVENT_MODE_MASK, EventMode, PackedLayout, Place
from vhost_scsi.virtqueue.ring_rules import RingRule
from vhost_scsi.virtqueue.walker import ATTEMPTS, DEFAULT_MAX_DESCRIPTORS

# Descriptor's fields by the names that they have in chains: the buffer id stands where `next` is kept.
_ENTRY: Final = struct.Struct("<QIHH")
_DTYPE: Final = np.dtype([("addr", "<u8"), ("len", "<u4"), ("next", "<u2"), ("flags", "<u2")])


@dataclass(frozen=True, slots=True)
class PackedPositions:
    """What the device knows of itself; None where nobody told. To be taken while it stands still."""

    next_avail: Place | None = None
    next_used: Place | None = None
    in_flight: Collection[int] = ()


@dataclass(frozen=True, slots=True)
class EventSuppression:
    """One side's wish (2.8.14)."""

    mode: int
    place: Place

    def facts(self) -> dict[str, int | str | bool]:
        mode = EventMode(self.mode).name if self.mode <= EventMode.DESC else hex(self.mode)
        return {"mode": mode, "index": self.place.index, "wrap": self.place.wrap}


@dataclass(frozen=True, slots=True)
class PackedSnapshot:
    """A packed queue at one moment. A chain's `head` is its buffer id. Events are None where they cannot be read."""

    addresses: RingAddresses
    driver_event: EventSuppression | None = None
    device_event: EventSuppression | None = None
    next_avail: Place | None = None
    next_used: Place | None = None
    guessed: bool = False
    held: int | None = None
    in_flight: tuple[int, ...] = ()
    chains: tuple[Chain, ...] = ()
    violations: tuple[Violation, ...] = ()
    moved: bool = False
    truncated: bool = False

    def all_violations(self) -> Iterator[Violation]:
        """Of the ring, then of each chain."""
        yield from self.violations
        for chain in self.chains:
            yield from chain.violations

    def cells(self) -> list[HeadState | None]:
        """Which of the descriptors that the device holds are of which chain, nobody knows: all are IN_FLIGHT."""
        size = self.addresses.size
        found: list[HeadState | None] = [None] * size

        def mark(start: Place, count: int, state: HeadState) -> None:
            for step in range(count):
                found[(start.index + step) % size] = state

        if self.next_used is not None:
            # A driver that wants to be notified says where it will look next (2.8.10).
            event = self.driver_event
            if event is not None and event.mode == EventMode.DESC and event.place.index < size:
                unseen = event.place.distance(self.next_used, size)
                mark(event.place, unseen if unseen + (self.held or 0) <= size else 0, HeadState.USED_UNSEEN)
            mark(self.next_used, min(self.held or 0, size), HeadState.IN_FLIGHT)
        for chain in self.chains:
            if chain.descriptors:
                found[chain.descriptors[0].index] = chain.state
        return found

    def members(self) -> set[int]:
        return members(self.chains, self.addresses.size)

    def facts(self) -> dict[str, Any]:
        def place(at: Place | None) -> dict[str, int | bool] | None:
            return None if at is None else {"index": at.index, "wrap": at.wrap}

        return {
            "next_avail": place(self.next_avail),
            "next_used": place(self.next_used),
            "driver_event": self.driver_event.facts() if self.driver_event else None,
            "device_event": self.device_event.facts() if self.device_event else None,
            "held": self.held,
            "in_flight_ids": list(self.in_flight),
            "guessed": self.guessed,
        }


class PackedChainWalk(ChainWalk):
    """Walks one list of a packed ring: what stands side by side, or all of one table."""

    def __init__(self, memory: ReadableMemory, table: bytes, size: int, indirect: bool, budget: Budget) -> None:
        super().__init__(memory, table, size, indirect, budget)
        self.end = Place()

    @staticmethod
    def _fields(raw: bytes, index: int) -> tuple[int, int, int, int]:
        """2.8.13: the buffer id stands before the flags; it is kept where `next` is."""
        address, length, following, flags = _ENTRY.unpack_from(raw, index * DESC_BYTES)
        return address, length, flags, following

    def walk_from(self, place: Place, room: int) -> Chain:
        """The list that begins at `place` and may hold `room` descriptors; `end` is the place behind it."""
        self.end = place
        last: Descriptor | None = None
        while True:
            descriptor = self._take(self.end.index, False, self._fields(self._table, self.end.index))
            if descriptor is None:
                break
            if not self.end.is_avail(descriptor.flags):
                self._breaks(RingRule.LIST_FLAGS_DISAGREE, descriptor, descriptor.flags)
                break
            self.end = self.end.forward(1, self._size)
            room -= 1
            if descriptor.flags & INDIRECT:
                if last is not None:
                    self._breaks(RingRule.INDIRECT_WITH_NEXT, descriptor)
                last = descriptor
                self._table_descriptor(descriptor)
                break
            last = descriptor
            self._buffer(descriptor)
            if not descriptor.flags & NEXT:
                break
            if room <= 0:
                self._breaks(RingRule.CHAIN_TOO_LONG, descriptor)
                break
        if last is not None and last.next >= self._size:
            self._breaks(RingRule.BUFFER_ID_OUT_OF_RANGE, last, last.next)
        self._check_overlap()
        id_ = last.next if last is not None else 0
        return Chain(id_, HeadState.POSTED, tuple(self._descriptors), tuple(self._violations), self._truncated)

    def _walk_table(self, table: Descriptor) -> None:
        """2.8.7: every entry counts, and of its flags only WRITE does; 2.8.19 forbids the others."""
        whole = self._short_table(table)
        for index in range(table.length // DESC_BYTES):
            try:
                fields = self._entry(table, whole, index)
            except AddressError:
                self._breaks(RingRule.INDIRECT_TABLE_UNMAPPED, table, table.address)
                return
            descriptor = self._take(index, True, fields)
            if descriptor is None:
                return
            if descriptor.flags & INDIRECT:
                self._breaks(RingRule.INDIRECT_IN_INDIRECT, descriptor)
                return
            self._buffer(descriptor)


def walk_packed(
    memory: ReadableMemory,
    addresses: RingAddresses,
    *,
    indirect: bool,
    positions: PackedPositions | None = None,
    max_descriptors: int = DEFAULT_MAX_DESCRIPTORS,
) -> PackedSnapshot:
    """A snapshot of the packed ring at `addresses`; `indirect` as negotiated."""
    violations = _check_ring(memory, addresses)
    if violations:
        return PackedSnapshot(addresses, violations=tuple(violations))
    positions = positions or PackedPositions()
    try:
        (table, *events), moved = _copy(memory, addresses)
        driver, device = (_event(raw) for raw in events)
    except AddressError as error:
        # the check passed and the read did not: the file behind the region was truncated
        return PackedSnapshot(addresses, violations=(Violation(RingRule.RING_UNMAPPED, value=error.address),))
    for event in (driver, device):
        if event.mode > EventMode.DESC or (event.mode == EventMode.DESC and event.place.index >= addresses.size):
            violations.append(Violation(RingRule.EVENT_INVALID, event.place.index, event.mode))
    at, guessed = positions.next_avail, False
    if at is None and device.mode == EventMode.DESC:
        at, guessed = device.place, True
    if at is not None and at.index >= addresses.size:
        at = None
    held = None
    if at is not None and positions.next_used is not None and positions.next_used.index < addresses.size:
        held = positions.next_used.distance(at, addresses.size)
    budget = Budget(max_descriptors)
    chains = _posted(memory, table, addresses.size, indirect, budget, at, held or 0) if at is not None else []
    seen = set(positions.in_flight)
    for chain in chains:
        if chain.head in seen:
            violations.append(Violation(RingRule.BUFFER_ID_TWICE, chain.descriptors[-1].index, chain.head))
        seen.add(chain.head)
    return PackedSnapshot(
        addresses=addresses,
        driver_event=driver,
        device_event=device,
        next_avail=at,
        next_used=positions.next_used if held is not None else None,
        guessed=guessed,
        held=held,
        in_flight=tuple(positions.in_flight),
        chains=tuple(chains),
        violations=tuple(violations),
        moved=moved,
        truncated=any(chain.truncated for chain in chains),
    )


def _copy(memory: ReadableMemory, addresses: RingAddresses) -> tuple[tuple[bytes, bytes, bytes], bool]:
    """Descriptors and both event structures, read twice until both times they were the same; whether they never were.

    There is no index to look at before and after: what shows that the ring moved is the ring.
    """

    def read() -> tuple[bytes, bytes, bytes]:
        table = memory.read(addresses.desc, PackedLayout(addresses.size).desc_bytes)
        return table, memory.read(addresses.avail, EVENT_BYTES), memory.read(addresses.used, EVENT_BYTES)

    found = read()
    for _ in range(ATTEMPTS):
        before, found = found, read()
        if found == before:
            return found, False
    return found, True


def _posted(
    memory: ReadableMemory, table: bytes, size: int, indirect: bool, budget: Budget, at: Place, held: int
) -> list[Chain]:
    """The lists from the device's place on, no further than the ring is long."""
    flags = np.frombuffer(table, dtype=_DTYPE)["flags"]
    chains: list[Chain] = []
    room = size - held
    while room > 0 and at.is_avail(int(flags[at.index])) and budget.left > 0:
        walk = PackedChainWalk(memory, table, size, indirect, budget)
        chains.append(walk.walk_from(at, room))
        passed = at.distance(walk.end, size)
        if not passed or any(v.rule is RingRule.LIST_FLAGS_DISAGREE for v in chains[-1].violations):
            break
        room -= passed
        at = walk.end
    return chains


def _event(raw: bytes) -> EventSuppression:
    place, flags = (int.from_bytes(raw[i : i + 2], "little") for i in (0, 2))
    return EventSuppression(flags & EVENT_MODE_MASK, Place.of_word(place))


def _check_ring(memory: ReadableMemory, addresses: RingAddresses) -> list[Violation]:
    """Size, alignment and mapping of the three parts (2.8.10.1)."""
    if not 1 <= addresses.size <= MAX_QUEUE_SIZE:
        return [Violation(RingRule.PACKED_SIZE_INVALID, value=addresses.size)]
    violations = []
    for address, length, align in (
        (addresses.desc, PackedLayout(addresses.size).desc_bytes, DESC_ALIGN),
        (addresses.avail, EVENT_BYTES, EVENT_ALIGN),
        (addresses.used, EVENT_BYTES, EVENT_ALIGN),
    ):
        if address % align:
            violations.append(Violation(RingRule.RING_MISALIGNED, value=address))
        try:
            memory.check(address, length)
        except AddressError:
            violations.append(Violation(RingRule.RING_UNMAPPED, value=address))
    return violations
