# SPDX-License-Identifier: Apache-2.0
"""The walker of packed rings: what it lists, what it names, and that nothing in memory makes it raise or run on."""

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhost_scsi.virtqueue.chains import HeadState
from vhost_scsi.virtqueue.layout import RingAddresses
from vhost_scsi.virtqueue.memory import FileMemory, GuestMemory
from vhost_scsi.virtqueue.packed_driver import PackedDriver
from vhost_scsi.virtqueue.packed_layout import PackedFlag, Place
from vhost_scsi.virtqueue.packed_walker import PackedPositions, walk_packed
from vhost_scsi.virtqueue.ring_rules import RingRule


@pytest.fixture
def q(memory, plain_accessors):
    return PackedDriver(memory, 5, accessors=plain_accessors())


def look(q, positions=PackedPositions(Place(), Place()), **options):  # noqa: B008 (a frozen value)
    return walk_packed(FileMemory.over(q.memory), q.addresses, indirect=True, positions=positions, **options)


def rules(snapshot):
    return [violation.rule for violation in snapshot.all_violations()]


def buffers(q):
    return [q.memory.allocate(64) for _ in range(3)]


def test_posted_lists_are_shown_in_order(q):
    a, b, c = buffers(q)
    direct = q.add([a], [b, c], indirect=False)
    table = q.add([a, b], [c], indirect=True)
    assert look(q).chains == ()
    q.publish()
    s = look(q)
    assert [(chain.head, chain.state) for chain in s.chains] == [(direct, HeadState.POSTED), (table, HeadState.POSTED)]
    assert [(len(chain.buffers), chain.readable_bytes, chain.writable_bytes) for chain in s.chains] == [
        (3, 64, 128),
        (3, 128, 64),
    ]
    assert (rules(s), s.held, s.guessed, s.truncated) == ([], 0, False, False)
    later = look(q, PackedPositions(Place(3), Place(), [direct]))
    assert ([chain.head for chain in later.chains], later.held, later.in_flight) == ([table], 3, (direct,))


def test_the_devices_wish_tells_its_place(q):
    q.add(buffers(q)[:1])
    q.publish()
    assert look(q, None).next_avail is None
    q.memory.write(q.addresses.used, struct.pack("<HH", 0x8000, 2))
    s = look(q, None)
    assert (s.next_avail, s.guessed, len(s.chains), s.held) == (Place(), True, 1, None)
    assert (s.device_event.mode, s.driver_event.mode) == (2, 0)


def spoil_flags(q):
    q.desc["flags"][1] ^= PackedFlag.USED


def spoil_id(q):
    q.desc["id"][2] = 5


def spoil_address(q):
    q.desc["addr"][0] = 1 << 60


def spoil_wrap(q):
    q.desc["addr"][0] = (1 << 64) - 8


def spoil_order(q):
    q.desc["flags"][0] |= PackedFlag.WRITE


def spoil_mixed(q):
    q.desc["flags"][2] |= PackedFlag.INDIRECT


def spoil_mode(q):
    q.memory.write(q.addresses.avail, struct.pack("<HH", 0, 3))


def spoil_place(q):
    q.memory.write(q.addresses.used, struct.pack("<HH", 5, 2))


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (spoil_flags, RingRule.LIST_FLAGS_DISAGREE),
        (spoil_id, RingRule.BUFFER_ID_OUT_OF_RANGE),
        (spoil_address, RingRule.ADDRESS_UNMAPPED),
        (spoil_wrap, RingRule.ADDRESS_OVERFLOW),
        (spoil_order, RingRule.READABLE_AFTER_WRITABLE),
        (spoil_mixed, RingRule.INDIRECT_WITH_NEXT),
        (spoil_mode, RingRule.EVENT_INVALID),
        (spoil_place, RingRule.EVENT_INVALID),
    ],
)
def test_what_is_broken_is_named(q, spoil, rule):
    a, b, c = buffers(q)
    q.add([a, b], [c], indirect=False)
    q.publish()
    assert rules(look(q)) == []
    spoil(q)
    assert rule in rules(look(q))


def test_tables_that_are_broken_are_named(q):
    a, b, c = buffers(q)
    q.add([a, b], [c], indirect=True)
    q.publish()
    at = int(q.desc["addr"][0])
    q.memory.write(at + 16 + 14, struct.pack("<H", 4))
    assert rules(look(q)) == [RingRule.INDIRECT_IN_INDIRECT]
    q.desc["len"][0] = 24
    assert rules(look(q)) == [RingRule.INDIRECT_LENGTH_INVALID]
    no_indirect = walk_packed(
        FileMemory.over(q.memory), q.addresses, indirect=False, positions=PackedPositions(Place())
    )
    assert RingRule.INDIRECT_NOT_NEGOTIATED in rules(no_indirect)


def test_a_list_as_long_as_the_ring_does_not_go_on(q):
    a, _, _ = buffers(q)
    q.add([a] * 5, indirect=False)
    q.publish()
    q.desc["flags"][4] |= PackedFlag.NEXT
    assert RingRule.CHAIN_TOO_LONG in rules(look(q))
    assert RingRule.CHAIN_TOO_LONG in rules(look(q, PackedPositions(Place(), Place(3, False))))


def test_an_id_that_the_device_has_is_offered_again(q):
    id_ = q.add(buffers(q)[:1])
    q.publish()
    assert rules(look(q, PackedPositions(Place(), Place(), [id_]))) == [RingRule.BUFFER_ID_TWICE]


def test_rings_that_cannot_be(q):
    memory = FileMemory.over(q.memory)
    for change, rule in (
        ({"size": 0}, RingRule.PACKED_SIZE_INVALID),
        ({"size": 32769}, RingRule.PACKED_SIZE_INVALID),
        ({"desc": q.addresses.desc + 8}, RingRule.RING_MISALIGNED),
        ({"avail": q.addresses.avail + 2}, RingRule.RING_MISALIGNED),
        ({"used": 1 << 60}, RingRule.RING_UNMAPPED),
    ):
        assert rule in rules(walk_packed(memory, replace(q.addresses, **change), indirect=True))
    assert look(q, PackedPositions(Place(7))).next_avail is None


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=128, max_size=512), st.integers(1, 32), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_any_bytes_are_walked_to_an_end(raw, size, avail, used):
    memory = GuestMemory.create(1 << 13)
    base = memory.allocate(4096, 16).address
    memory.write(base, raw)
    addresses = RingAddresses(size, base, base + 2048, base + 2052)
    positions = PackedPositions(Place.of_word(avail % size | avail & 0x8000), Place.of_word(used))
    s = walk_packed(FileMemory.over(memory), addresses, indirect=True, positions=positions, max_descriptors=40)
    assert sum(len(chain.descriptors) for chain in s.chains) <= 40
    memory.close()
