# SPDX-License-Identifier: Apache-2.0
"""The read-only walker: where driver and device of a split ring stand, and every chain between them.

It is handed ring addresses and a memory to read from, its own and never the data plane's mappings, and takes a snapshot
of a ring that both sides may be changing. It writes nothing, believes nothing, never raises for anything that stands in
guest memory, and does bounded work: `max_descriptors` descriptors and one copy of the ring.

What cannot be known: a split ring does not say how far the device has read the available ring, nor how far the driver
has read the used ring. Who knows hands it in (`Positions`); else posted and in-flight heads are OUTSTANDING together.
Which heads these are is then concluded from what both rings still show of the past. That is a guess where buffers come
back out of order: one whose entry in the available ring was overwritten since is found through `Positions.in_flight`
only, and `RingSnapshot.hidden` counts what was not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from vhost_scsi.virtqueue.chains import Budget, Chain, ChainWalk, HeadState, Violation, flag_names, members
from vhost_scsi.virtqueue.layout import (
    AVAIL_ALIGN,
    DESC_ALIGN,
    IDX_OFFSET,
    INDEX_MASK,
    USED_ALIGN,
    AvailFlag,
    RingAddresses,
    SplitLayout,
    UsedFlag,
    is_queue_size,
)
from vhost_scsi.virtqueue.memory import AddressError, ReadableMemory
from vhost_scsi.virtqueue.ring_rules import RingRule

# enough for every chain of the largest queue, and still a fraction of a second
DEFAULT_MAX_DESCRIPTORS: Final = 65536
# how often the snapshot is taken anew when the ring moves meanwhile
ATTEMPTS: Final = 4


@dataclass(frozen=True, slots=True)
class Positions:
    """What driver or device know of themselves and the ring does not say; None where nobody told.

    To be taken while the side that knows stands still, or a head that moves on meanwhile is seen in two places.
    """

    last_avail_idx: int | None = None
    in_flight: Collection[int] | None = None
    last_used_seen: int | None = None


@dataclass(frozen=True, slots=True)
class RingSnapshot:
    """A queue at one moment. Ring fields are None when the part they stand in could not be read."""

    addresses: RingAddresses
    avail_flags: int | None = None
    avail_idx: int | None = None
    used_event: int | None = None
    used_flags: int | None = None
    used_idx: int | None = None
    avail_event: int | None = None
    outstanding: int = 0
    hidden: int = 0
    heads: Mapping[int, HeadState] = field(default_factory=dict)
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
        return [self.heads.get(index) for index in range(self.addresses.size)]

    def members(self) -> set[int]:
        return members(self.chains, self.addresses.size)

    def facts(self) -> dict[str, Any]:
        return {
            "avail_idx": self.avail_idx,
            "used_idx": self.used_idx,
            "avail_flags": flag_names(AvailFlag, self.avail_flags),
            "used_flags": flag_names(UsedFlag, self.used_flags),
            "used_event": self.used_event,
            "avail_event": self.avail_event,
            "outstanding": self.outstanding,
            "hidden": self.hidden,
        }


@dataclass(frozen=True, slots=True)
class _Rings:
    """One copy of both rings."""

    avail: Any
    used: Any
    moved: bool


def walk(
    memory: ReadableMemory,
    addresses: RingAddresses,
    *,
    event_idx: bool,
    indirect: bool,
    positions: Positions | None = None,
    max_descriptors: int = DEFAULT_MAX_DESCRIPTORS,
    barrier: Callable[[], None] = lambda: None,
) -> RingSnapshot:
    """A snapshot of the ring at `addresses`; `event_idx` and `indirect` as negotiated.

    `barrier` stands between the reads of the indices and of what they publish; with memory that is read by system calls
    none is needed.
    """
    violations = _check_ring(memory, addresses)
    if violations:
        return RingSnapshot(addresses, violations=tuple(violations))
    try:
        rings = _copy_rings(memory, addresses, barrier)
        table = memory.read(addresses.desc, SplitLayout(addresses.size).desc_bytes)
    except AddressError as error:
        # the check passed and the read did not: the file behind the region was truncated
        return RingSnapshot(addresses, violations=(Violation(RingRule.RING_UNMAPPED, value=error.address),))
    heads = _Heads(rings, addresses.size, event_idx, positions or Positions())
    budget = Budget(max_descriptors)
    chains = []
    for head, state in heads.states.items():
        if budget.left <= 0:
            break
        chains.append(ChainWalk(memory, table, addresses.size, indirect, budget).walk(head, state))
    avail, used = rings.avail, rings.used
    return RingSnapshot(
        addresses=addresses,
        avail_flags=int(avail["flags"]),
        avail_idx=int(avail["idx"]),
        used_event=int(avail["used_event"]),
        used_flags=int(used["flags"]),
        used_idx=int(used["idx"]),
        avail_event=int(used["avail_event"]),
        outstanding=heads.outstanding,
        hidden=heads.hidden,
        heads=heads.states,
        chains=tuple(chains),
        violations=tuple(heads.violations),
        moved=rings.moved,
        truncated=len(chains) < len(heads.states) or any(chain.truncated for chain in chains),
    )


def _check_ring(memory: ReadableMemory, addresses: RingAddresses) -> list[Violation]:
    """Size, alignment and mapping of the three parts."""
    if not is_queue_size(addresses.size):
        return [Violation(RingRule.QUEUE_SIZE_INVALID, value=addresses.size)]
    layout = SplitLayout(addresses.size)
    violations = []
    for address, length, align in (
        (addresses.desc, layout.desc_bytes, DESC_ALIGN),
        (addresses.avail, layout.avail_bytes, AVAIL_ALIGN),
        (addresses.used, layout.used_bytes, USED_ALIGN),
    ):
        if address % align:
            violations.append(Violation(RingRule.RING_MISALIGNED, value=address))
        try:
            memory.check(address, length)
        except AddressError:
            violations.append(Violation(RingRule.RING_UNMAPPED, value=address))
    return violations


def _copy_rings(memory: ReadableMemory, addresses: RingAddresses, barrier: Callable[[], None]) -> _Rings:
    """Both rings, copied between two equal looks at the indices where the ring holds still for long enough."""
    layout = SplitLayout(addresses.size)

    def indices() -> tuple[bytes, bytes]:
        return memory.read(addresses.used + IDX_OFFSET, 2), memory.read(addresses.avail + IDX_OFFSET, 2)

    for _ in range(ATTEMPTS):
        before = indices()
        barrier()
        used = memory.read(addresses.used, layout.used_bytes)
        avail = memory.read(addresses.avail, layout.avail_bytes)
        barrier()
        moved = indices() != before
        if not moved:
            break
    return _Rings(layout.avail_view(avail), layout.used_view(used), moved)


class _Heads:
    """Classifies heads from one copy of the rings."""

    def __init__(self, rings: _Rings, size: int, event_idx: bool, positions: Positions) -> None:
        self.size = size
        self.states: dict[int, HeadState] = {}
        self.violations: list[Violation] = []
        self.hidden = 0
        self._avail = rings.avail["ring"]
        self._used = rings.used["ring"]["id"]
        self._avail_idx = int(rings.avail["idx"])
        self._used_idx = int(rings.used["idx"])
        self._check_flags(int(rings.avail["flags"]), int(rings.used["flags"]), event_idx)
        self.outstanding = (self._avail_idx - self._used_idx) & INDEX_MASK
        if self.outstanding > size:
            # nothing that follows could be believed: which of the entries are meant is not to be known
            self.violations.append(Violation(RingRule.AVAIL_IDX_JUMPED, value=self.outstanding))
            return
        self._unseen(int(rings.avail["used_event"]) if event_idx else None, positions)
        self._classify(positions)

    def _check_flags(self, avail_flags: int, used_flags: int, event_idx: bool) -> None:
        """2.7.7.1 and 2.7.10.2: 0 or 1, and 0 with event index."""
        if avail_flags & ~(0 if event_idx else int(AvailFlag.NO_INTERRUPT)):
            self.violations.append(Violation(RingRule.AVAIL_FLAGS_INVALID, value=avail_flags))
        if used_flags & ~(0 if event_idx else int(UsedFlag.NO_NOTIFY)):
            self.violations.append(Violation(RingRule.USED_FLAGS_INVALID, value=used_flags))

    def _avail_at(self, position: int) -> int:
        return int(self._avail[position % self.size])

    def _unseen(self, used_event: int | None, positions: Positions) -> None:
        """Heads that were used and not collected. Without being told, used_event is taken for the driver's position:
        that is where a driver that wants to be notified puts it (2.7.14)."""
        seen = positions.last_used_seen if positions.last_used_seen is not None else used_event
        if seen is None:
            return
        count = (self._used_idx - seen) & INDEX_MASK
        if count > self.size:
            return
        for position in range(self._used_idx - count, self._used_idx):
            head = int(self._used[position % self.size])
            if head >= self.size:
                self.violations.append(Violation(RingRule.USED_ID_OUT_OF_RANGE, position & INDEX_MASK, head))
            else:
                self.states[head] = HeadState.USED_UNSEEN

    def _classify(self, positions: Positions) -> None:
        """POSTED, IN_FLIGHT or OUTSTANDING for every head found, by age."""
        posted = self._posted_count(positions)
        cut = self._avail_idx - (posted or 0)
        seen_in_flight: list[int] = []
        if positions.in_flight is not None:
            seen_in_flight = [head for head in positions.in_flight if 0 <= head < self.size]
        elif posted != self.outstanding:
            seen_in_flight = self._taken(cut, self.outstanding - (posted or 0))
        state = HeadState.IN_FLIGHT if posted is not None or positions.in_flight is not None else HeadState.OUTSTANDING
        for head in seen_in_flight:
            self._set(head, state)
        for position in range(cut, self._avail_idx):
            self._set(self._avail_at(position), HeadState.POSTED, position & INDEX_MASK)
        found = sum(state is not HeadState.USED_UNSEEN for state in self.states.values())
        flawed = sum(v.rule in (RingRule.HEAD_OUT_OF_RANGE, RingRule.HEAD_AVAILABLE_TWICE) for v in self.violations)
        self.hidden = max(0, self.outstanding - found - flawed)

    def _posted_count(self, positions: Positions) -> int | None:
        """How many entries the device has not taken; None if its position is unknown or makes no sense.

        The device takes entries in order, so the number of those in flight tells it as well.
        """
        if positions.last_avail_idx is not None:
            count = (self._avail_idx - positions.last_avail_idx) & INDEX_MASK
        elif positions.in_flight is not None:
            count = (self.outstanding - len(positions.in_flight)) & INDEX_MASK
        else:
            return None
        return count if count <= self.outstanding else None

    def _set(self, head: int, state: HeadState, position: int | None = None) -> None:
        if head >= self.size:
            self.violations.append(Violation(RingRule.HEAD_OUT_OF_RANGE, position, head))
        elif self.states.get(head, HeadState.USED_UNSEEN) is not HeadState.USED_UNSEEN:
            self.violations.append(Violation(RingRule.HEAD_AVAILABLE_TWICE, position, head))
        else:
            # a head that is offered again was collected before
            self.states.pop(head, None)
            self.states[head] = state

    def _taken(self, end: int, count: int) -> list[int]:
        """The `count` heads offered before avail position `end` and not used yet, as far as the ring still shows them.

        What was offered in the last `size` entries, less what was used since the same position: exact when all that
        stood before it has been used by then, which hidden heads disturb.
        """
        start = self._avail_idx - self.size
        if self.outstanding <= self._avail_idx < self.size:
            # most likely a young ring, whose other entries were never written; right after a wrap it costs some history
            start = 0
        used = Counter(int(self._used[position % self.size]) for position in range(start, self._used_idx))
        found: list[int] = []
        for position in range(start, end):
            head = self._avail_at(position)
            if used[head] > 0:
                used[head] -= 1
            else:
                found.append(head)
        return found[-count:] if count else []
