# SPDX-License-Identifier: Apache-2.0
"""One look at rings of both layouts: who has which descriptor, what only one layout has, and a ring that moves."""

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhost_scsi.virtqueue.chains import HeadState
from vhost_scsi.virtqueue.layout import RingAddresses
from vhost_scsi.virtqueue.memory import FileMemory, GuestMemory
from vhost_scsi.virtqueue.packed_driver import PackedDriver
from vhost_scsi.virtqueue.rings import DeviceStands, Ring, look
from vhost_scsi.virtqueue.split_driver import SplitDriver

PACKED_START = 0x8000


def make(memory, accessors, packed, size=8):
    kind = PackedDriver if packed else SplitDriver
    return kind(memory, size, accessors=accessors())


def seen(driver, packed, stands, memory=None):
    ring = Ring(driver.addresses, packed, driver.event_idx, driver.indirect)
    return look(memory or FileMemory.over(driver.memory), ring, stands)


@pytest.mark.parametrize("packed", [False, True])
def test_posted_and_taken_descriptors_are_told_apart(memory, plain_accessors, packed):
    q = make(memory, plain_accessors, packed)
    first = q.add([(0x1000, 1)], [(0x2000, 1)], indirect=False)
    q.add([(0x1000, 1)], [(0x2000, 1)], indirect=False)
    q.publish()
    start = PACKED_START if packed else 0
    fresh = seen(q, packed, DeviceStands(start, start))
    assert fresh.cells()[:5] == [HeadState.POSTED, None, HeadState.POSTED, None, None]
    assert fresh.members() == {1, 3}
    # The device takes the first: one entry of a split ring, two descriptors of a packed one.
    taken = seen(q, packed, DeviceStands(start + (2 if packed else 1), start, [first]))
    assert taken.cells()[0] is HeadState.IN_FLIGHT
    assert taken.cells()[2] is HeadState.POSTED
    # Which of the descriptors that are held stands for what, a packed ring does not say.
    assert taken.cells()[1] is (HeadState.IN_FLIGHT if packed else None)
    assert not fresh.moved
    assert list(taken.all_violations()) == []
    json.dumps(taken.facts())


def test_what_a_packed_driver_has_not_collected(memory, plain_accessors):
    q = make(memory, plain_accessors, True, 5)
    q.add([(0x1000, 1)])
    q.publish()
    q.enable_notifications()
    used = seen(q, True, DeviceStands(PACKED_START + 1, PACKED_START + 1))
    assert used.cells() == [HeadState.USED_UNSEEN, None, None, None, None]
    assert used.facts()["driver_event"] == {"mode": "DESC", "index": 0, "wrap": True}
    q.disable_notifications()
    assert seen(q, True, DeviceStands(PACKED_START + 1, PACKED_START + 1)).cells() == [None] * 5
    memory.write(q.addresses.avail, struct.pack("<HH", 0, 3))
    assert seen(q, True, DeviceStands(PACKED_START, PACKED_START)).facts()["driver_event"]["mode"] == "0x3"


def test_a_packed_ring_that_moves_is_read_anew_and_then_said_to_move(memory, plain_accessors):
    q = make(memory, plain_accessors, True)

    class Moving:
        """Another descriptor with each of the first `moves` looks."""

        def __init__(self, moves):
            self.moves, self.reads = moves, 0

        def check(self, address, length):
            memory.check(address, length)

        def read(self, address, length):
            if address == q.addresses.desc:
                self.reads += 1
                q.desc["len"][0] = min(self.reads, self.moves)
            return memory.read(address, length)

    stands = DeviceStands(PACKED_START, PACKED_START)
    short = Moving(2)
    assert not seen(q, True, stands, short).moved
    assert short.reads == 3
    assert seen(q, True, stands, Moving(1000)).moved


@settings(max_examples=60, deadline=None)
@given(
    st.binary(min_size=128, max_size=600),
    st.integers(1, 32),
    st.booleans(),
    st.integers(0, 65535),
    st.integers(0, 65535),
)
def test_any_bytes_are_told_in_full(raw, size, packed, avail, used):
    """Nothing raises, and each descriptor has its cell, whatever stands there and whatever the device says."""
    memory = GuestMemory.create(1 << 13)
    base = memory.allocate(4096, 16).address
    memory.write(base, raw)
    if not packed:
        size = 1 << size.bit_length() - 1
    addresses = RingAddresses(size, base, base + 512, base + 1024)
    snapshot = look(FileMemory.over(memory), Ring(addresses, packed, True, True), DeviceStands(avail, used, [used]))
    assert len(snapshot.cells()) == size
    assert all(0 <= index < size for index in snapshot.members())
    json.dumps(snapshot.facts())
    memory.close()
