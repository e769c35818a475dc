# SPDX-License-Identifier: Apache-2.0
"""What is concluded from a ring: who owns what, what the next notification would be, and where a broken rule stands;
and that no ring, whatever is in it, stops whoever looks at it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.virtqueue.ring_view_fuzz import BYTES, HEAD, one_input
from vhost_scsi.virtqueue.layout import RingAddresses
from vhost_scsi.virtqueue.packed_layout import EventMode, Place
from vhost_scsi.virtqueue.packed_walker import EventSuppression, PackedSnapshot
from vhost_scsi.virtqueue.standing import Standing, as_values, owners, standing
from vhost_scsi.virtqueue.walker import RingSnapshot

CORPUS = Path(__file__).resolve().parents[1] / "corpus" / "ring_view"
RING = RingAddresses(16, 0x1000, 0x2000, 0x3000)


def split(**fields: int) -> RingSnapshot:
    return RingSnapshot(RING, **{"avail_flags": 0, "used_flags": 0, "used_event": 0, "avail_event": 0, **fields})


def of(snapshot: RingSnapshot | PackedSnapshot, last_avail: int = 0, *, event_idx: bool = True) -> Standing:
    found = standing(snapshot, last_avail=last_avail, event_idx=event_idx)
    assert found is not None
    return found


def test_counts_between_the_indices_of_a_split_ring_wrap() -> None:
    found = of(split(avail_idx=3, used_idx=65534, used_event=65532), 1)
    assert (found.posted, found.in_flight, found.unseen) == (2, 3, 2)
    found = of(split(avail_idx=3, used_idx=65534, used_event=40000), 1)
    assert found.unseen is None, "no driver can be that far behind"


@pytest.mark.parametrize(
    ("avail_event", "posted", "wanted", "due"), [(7, 0, True, False), (5, 2, False, True), (4, 2, False, False)]
)
def test_the_next_kick_of_a_split_ring_with_event_index(avail_event: int, posted: int, wanted: bool, due: bool) -> None:
    kick = of(split(avail_idx=7, used_idx=0, avail_event=avail_event), 7 - posted).kick
    assert (kick.wanted, kick.due) == (wanted, due)


@pytest.mark.parametrize(("used_event", "wanted", "due"), [(7, True, False), (5, False, True), (9, False, False)])
def test_the_next_interrupt_of_a_split_ring_with_event_index(used_event: int, wanted: bool, due: bool) -> None:
    interrupt = of(split(avail_idx=7, used_idx=7, used_event=used_event), 7).interrupt
    assert (interrupt.wanted, interrupt.due) == (wanted, due)


@pytest.mark.parametrize("flag", [0, 1])
def test_flags_decide_without_event_index(flag: int) -> None:
    found = of(split(avail_idx=7, used_idx=6, avail_flags=flag, used_flags=flag), 6, event_idx=False)
    assert (found.kick.wanted, found.interrupt.wanted) == (not flag, not flag)
    assert found.kick.due == (not flag)
    assert found.unseen is None


def packed(driver: EventSuppression, device: EventSuppression) -> PackedSnapshot:
    return PackedSnapshot(
        RING, driver, device, next_avail=Place(2, False), next_used=Place(14, True), held=4, in_flight=(1, 2)
    )


def test_a_packed_ring_is_owned_between_its_places() -> None:
    waits = EventSuppression(EventMode.DESC, Place(13, True))
    found = packed(waits, EventSuppression(EventMode.DESC, Place(2, False)))
    assert owners(found) == "ff...........uff"
    stands = of(found)
    assert (stands.in_flight, stands.unseen, stands.posted) == (4, 1, 0)
    assert (stands.kick.wanted, stands.interrupt.due) == (True, True)


@pytest.mark.parametrize(("mode", "wanted"), [(EventMode.ENABLE, True), (EventMode.DISABLE, False), (3, None)])
def test_event_flags_of_a_packed_ring_decide(mode: int, wanted: bool | None) -> None:
    event = EventSuppression(mode, Place(0, True))
    stands = of(packed(event, event))
    assert (stands.kick.wanted, stands.interrupt.wanted) == (wanted, wanted)


def test_a_ring_that_cannot_be_read_stands_nowhere() -> None:
    assert standing(RingSnapshot(RING), last_avail=0, event_idx=True) is None
    assert standing(PackedSnapshot(RING), last_avail=0, event_idx=True) is None
    assert as_values(None) is None


def test_no_ring_stops_who_looks_at_it() -> None:
    inputs = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    assert inputs
    chance = random.Random(1)
    for number in range(600):
        # Random bytes alone break the first rule and end there: most of it is zero, or small numbers.
        seed = chance.choice(inputs)
        mutated = bytearray(seed.ljust(HEAD + BYTES, b"\0"))
        for _ in range(chance.randrange(1, 40)):
            mutated[chance.randrange(len(mutated) if number % 2 else 0x320)] = chance.choice(
                (0, 1, 2, 4, 7, 15, 128, 255)
            )
        mutated[0] = chance.randrange(256)
        inputs.append(bytes(mutated))
    for data in inputs:
        one_input(data)
