# SPDX-License-Identifier: Apache-2.0
"""The walker on hostile and on quiet rings: each rule by its name, no exception for any bytes, bounded work."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhost_scsi.virtqueue.layout import RingAddresses, SplitLayout
from vhost_scsi.virtqueue.memory import AddressError, FileMemory, GuestMemory, Region
from vhost_scsi.virtqueue.ring_rules import RingRule
from vhost_scsi.virtqueue.walker import HeadState, Positions, walk

NEXT, WRITE, INDIRECT = 1, 2, 4
TOP = (1 << 64) - 1


@pytest.fixture
def ring(make_driver):
    """ring(*descriptors): a driver of 8 entries whose table starts with these, head 0 published."""

    def make(*descriptors, **options):
        q = make_driver(8, **options)
        for index, descriptor in enumerate(descriptors):
            q.raw.descriptor(index, *descriptor)
        q.raw.post(0)
        q.publish()
        return q

    return make


def look(q, memory=None, positions=None, **options):
    options = {"event_idx": q.event_idx, "indirect": q.indirect, **options}
    return walk(memory or q.memory, q.addresses, positions=positions, **options)


def breaks(q, *rules):
    """The ring's only chain breaks exactly these rules."""
    (chain,) = look(q).chains
    assert [violation.rule for violation in chain.violations] == list(rules)
    return chain


def test_a_quiet_ring_is_empty(make_driver):
    snapshot = look(make_driver())
    assert (snapshot.heads, snapshot.chains, list(snapshot.all_violations())) == ({}, (), [])
    assert not snapshot.moved
    assert not snapshot.truncated


def test_ring_fields_are_shown_as_they_stand(make_driver):
    q = make_driver(event_idx=False)
    q.avail["flags"], q.avail["idx"], q.avail["used_event"] = 1, 3, 4
    q.used["flags"], q.used["idx"], q.used["avail_event"] = 1, 2, 5
    s = look(q)
    assert (s.avail_flags, s.avail_idx, s.used_event) == (1, 3, 4)
    assert (s.used_flags, s.used_idx, s.avail_event) == (1, 2, 5)


def test_a_chain_is_shown_with_its_descriptors_and_content(make_driver, memory):
    q = make_driver()
    header, answer = memory.allocate(8), memory.allocate(16)
    header.view[:] = b"request!"
    head = q.add([header], [answer])
    q.publish()
    (chain,) = look(q).chains
    assert (chain.head, chain.state, chain.valid) == (head, HeadState.OUTSTANDING, True)
    assert [(d.indirect, d.index) for d in chain.descriptors] == [(False, head), (True, 0), (True, 1)]
    assert [(d.address, d.length, d.writable) for d in chain.buffers] == [
        (header.address, 8, False),
        (answer.address, 16, True),
    ]
    assert chain.read(memory, 4) == b"requ"
    assert chain.read(memory, 400) == b"request!"


def test_reading_a_chain_ends_where_memory_does(ring, memory):
    q = ring((0x1000, 4, NEXT, 1), (TOP, 4, 0, 0))
    assert look(q).chains[0].read(memory, 8) == memory.read(0x1000, 4)


def test_states_without_being_told(make_driver, reference_device):
    q = make_driver(4)
    device = reference_device(q)
    heads = [q.add([(0x1000, 1)]) for _ in range(3)]
    q.publish()
    device.take()
    device.take()
    device.use(heads[1])
    # used_event is 0: the driver has seen nothing yet
    assert look(q).heads == {
        heads[1]: HeadState.USED_UNSEEN,
        heads[0]: HeadState.OUTSTANDING,
        heads[2]: HeadState.OUTSTANDING,
    }


def test_states_from_what_the_device_holds(make_driver, reference_device):
    q = make_driver(4)
    device = reference_device(q)
    heads = [q.add([(0x1000, 1)]) for _ in range(3)]
    q.publish()
    device.take()
    expected = {heads[0]: HeadState.IN_FLIGHT, heads[1]: HeadState.POSTED, heads[2]: HeadState.POSTED}
    assert look(q, positions=Positions(in_flight=[heads[0]])).heads == expected
    assert look(q, positions=Positions(last_avail_idx=1)).heads == expected


def test_a_buffer_that_was_overtaken_is_counted_as_hidden_unless_told(make_driver, reference_device):
    q = make_driver(2)
    device = reference_device(q)
    old = q.add([(0x1000, 1)])
    q.publish()
    device.take()
    for _ in range(3):
        q.add([(0x1000, 1)])
        q.publish()
        device.use(device.take()[0])
        list(q.collect())
    assert look(q).hidden + len(look(q).heads) == 1
    told = look(q, positions=Positions(device.last_avail, [old], q.last_used))
    assert (told.heads, told.hidden) == ({old: HeadState.IN_FLIGHT}, 0)


@pytest.mark.parametrize("position", [-5, 3, 40000])
def test_a_device_position_that_makes_no_sense_is_not_believed(make_driver, position):
    q = make_driver(4)
    q.add([(0x1000, 1)])
    q.publish()
    assert list(look(q, positions=Positions(last_avail_idx=position)).heads.values()) == [HeadState.OUTSTANDING]


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_queue_size_invalid(memory, size):
    snapshot = walk(memory, RingAddresses(size, 0x1000, 0x2000, 0x3000), event_idx=True, indirect=True)
    assert [v.rule for v in snapshot.violations] == [RingRule.QUEUE_SIZE_INVALID]


@pytest.mark.parametrize("part", [{"desc": 0x1008}, {"avail": 0x2001}, {"used": 0x3002}])
def test_ring_misaligned(memory, part):
    at = RingAddresses(**{"size": 8, "desc": 0x1000, "avail": 0x2000, "used": 0x3000, **part})
    snapshot = walk(memory, at, event_idx=True, indirect=True)
    assert [v.rule for v in snapshot.violations] == [RingRule.RING_MISALIGNED]


@pytest.mark.parametrize("address", [0, 0x100FF0, (1 << 64) - 16])
@pytest.mark.parametrize("part", ["desc", "avail", "used"])
def test_ring_unmapped(memory, part, address):
    at = RingAddresses(**{"size": 8, "desc": 0x1000, "avail": 0x2000, "used": 0x3000, part: address})
    snapshot = walk(memory, at, event_idx=True, indirect=True)
    assert [v.rule for v in snapshot.violations] == [RingRule.RING_UNMAPPED]
    assert snapshot.avail_idx is None


def test_ring_in_a_file_that_was_truncated(make_driver, memory):
    q = make_driver()
    os.ftruncate(memory.regions[0].fd, 0)
    assert [v.rule for v in look(q, FileMemory.over(memory)).violations] == [RingRule.RING_UNMAPPED]


@pytest.mark.parametrize(("event_idx", "bad"), [(True, 1), (False, 2)])
def test_flags_invalid(make_driver, event_idx, bad):
    q = make_driver(event_idx=event_idx)
    q.avail["flags"] = q.used["flags"] = bad
    assert [v.rule for v in look(q).violations] == [RingRule.AVAIL_FLAGS_INVALID, RingRule.USED_FLAGS_INVALID]


def test_avail_idx_jumped(make_driver):
    q = make_driver(8)
    q.raw.set_avail_idx(9)
    snapshot = look(q)
    assert [(v.rule, v.value) for v in snapshot.violations] == [(RingRule.AVAIL_IDX_JUMPED, 9)]
    assert snapshot.chains == ()


def test_head_out_of_range(make_driver):
    q = make_driver(8)
    q.raw.post(8)
    q.publish()
    snapshot = look(q, positions=Positions(last_avail_idx=0))
    assert [(v.rule, v.index, v.value) for v in snapshot.violations] == [(RingRule.HEAD_OUT_OF_RANGE, 0, 8)]
    assert snapshot.chains == ()


def test_head_available_twice(make_driver):
    q = make_driver(8)
    q.raw.post(0)
    q.raw.post(0)
    q.publish()
    snapshot = look(q, positions=Positions(last_avail_idx=0))
    assert [(v.rule, v.index, v.value) for v in snapshot.violations] == [(RingRule.HEAD_AVAILABLE_TWICE, 1, 0)]
    assert len(snapshot.chains) == 1


def test_used_id_out_of_range(make_driver, reference_device):
    q = make_driver(8)
    q.add([(0x1000, 1)])
    q.publish()
    reference_device(q).use(8)
    assert [v.rule for v in look(q).violations] == [RingRule.USED_ID_OUT_OF_RANGE]


def test_next_out_of_range(ring):
    assert breaks(ring((0x1000, 4, NEXT, 8)), RingRule.NEXT_OUT_OF_RANGE).violations[0].value == 8


@pytest.mark.parametrize("back", [0, 1])
def test_chain_loop(ring, back):
    chain = breaks(ring((0x1000, 4, NEXT, 1), (0x1010, 4, NEXT, back)), RingRule.CHAIN_LOOP)
    assert len(chain.descriptors) == 2


def test_a_loop_in_an_indirect_table(make_driver):
    q = make_driver(8)
    table = q.raw.table([(0x1000, 4, NEXT, 1), (0x1010, 4, NEXT, 0)])
    q.raw.descriptor(0, table.address, table.length, INDIRECT)
    q.raw.post(0)
    q.publish()
    (violation,) = breaks(q, RingRule.CHAIN_LOOP).violations
    assert violation.indirect


def table_ring(make_driver, descriptors, flags=INDIRECT, length=None, **options):
    q = make_driver(8, **options)
    table = q.raw.table(descriptors)
    q.raw.descriptor(0, table.address, table.length if length is None else length, flags, 1)
    q.raw.post(0)
    q.publish()
    return q


def chained(count):
    return [(0x1000 + 16 * n, 4, NEXT if n < count - 1 else 0, n + 1) for n in range(count)]


def test_a_table_of_the_queues_length_is_long_enough(make_driver):
    assert len(breaks(table_ring(make_driver, chained(8))).buffers) == 8


def test_chain_too_long(make_driver):
    assert len(breaks(table_ring(make_driver, chained(9)), RingRule.CHAIN_TOO_LONG).buffers) == 8


def test_chain_over_4_gib():
    memory = GuestMemory.create(1 << 16)
    huge = GuestMemory([*memory.regions, Region(1 << 32, 1 << 32, memoryview(b""))])
    at = SplitLayout(8).place(0x1000)
    table = SplitLayout(8).desc_view(huge.translate(at.desc, 128))
    avail = SplitLayout(8).avail_view(huge.translate(at.avail, 22))
    table[0], table[1], table[2] = (1 << 32, 0xFFFFFFFF, NEXT, 1), (0x1000, 1, NEXT, 2), (0x1001, 1, 0, 0)
    avail["idx"] = 1
    (chain,) = walk(huge, at, event_idx=True, indirect=True).chains
    assert [(v.rule, v.index) for v in chain.violations] == [(RingRule.CHAIN_OVER_4_GIB, 2)]
    memory.close()


def test_readable_after_writable(ring):
    chain = breaks(ring((0x1000, 4, NEXT | WRITE, 1), (0x1010, 4, 0, 0)), RingRule.READABLE_AFTER_WRITABLE)
    assert not chain.valid


def test_zero_length_is_a_remark(ring):
    chain = breaks(ring((0x1000, 0, NEXT, 1), (0, 0, WRITE, 0)), RingRule.ZERO_LENGTH, RingRule.ZERO_LENGTH)
    assert chain.valid


@pytest.mark.parametrize(("address", "length"), [(0, 1), (0xFFF, 2), (0x100FFF, 2), (TOP, 1)])
def test_address_unmapped(ring, address, length):
    breaks(ring((address, length, 0, 0)), RingRule.ADDRESS_UNMAPPED)


def test_address_overflow(ring):
    breaks(ring((TOP, 2, 0, 0)), RingRule.ADDRESS_OVERFLOW)


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        ((0x1000, 16, 0), (0x1008, 16, WRITE), True),
        ((0x1008, 16, 0), (0x1000, 16, WRITE), True),
        ((0x1000, 16, WRITE), (0x100F, 1, WRITE), True),
        ((0x1000, 16, 0), (0x1008, 16, 0), False),
        ((0x1000, 16, 0), (0x1010, 16, WRITE), False),
    ],
)
def test_buffers_overlap_counts_where_one_is_written(ring, first, second, overlap):
    q = ring((*first[:2], first[2] | NEXT, 1), (*second, 0))
    assert breaks(q, *[RingRule.BUFFERS_OVERLAP] * overlap).valid


def test_indirect_not_negotiated(make_driver):
    breaks(table_ring(make_driver, chained(2), indirect=False), RingRule.INDIRECT_NOT_NEGOTIATED)


def test_indirect_with_next(make_driver):
    breaks(table_ring(make_driver, chained(2), INDIRECT | NEXT), RingRule.INDIRECT_WITH_NEXT)


def test_the_write_flag_of_an_indirect_descriptor_means_nothing(make_driver):
    chain = breaks(table_ring(make_driver, chained(2), INDIRECT | WRITE))
    assert (chain.readable_bytes, chain.writable_bytes) == (8, 0)


def test_indirect_in_indirect(make_driver):
    breaks(table_ring(make_driver, [(0x1000, 16, INDIRECT, 0)]), RingRule.INDIRECT_IN_INDIRECT)


@pytest.mark.parametrize("length", [0, 8, 17, 0xFFFFFFFF])
def test_indirect_length_invalid(make_driver, length):
    breaks(table_ring(make_driver, chained(2), length=length), RingRule.INDIRECT_LENGTH_INVALID)


def test_indirect_table_unmapped_or_wrapping(ring):
    breaks(ring((0x100FF8, 16, INDIRECT, 0)), RingRule.INDIRECT_TABLE_UNMAPPED)
    breaks(ring((TOP - 7, 16, INDIRECT, 0)), RingRule.INDIRECT_TABLE_OVERFLOW)


def test_next_beyond_an_indirect_table(make_driver):
    breaks(table_ring(make_driver, [(0x1000, 4, NEXT, 1)]), RingRule.NEXT_OUT_OF_RANGE)


def test_a_table_whose_file_was_truncated_meanwhile(make_driver, memory):
    q = table_ring(make_driver, chained(2))

    class Shrinking(FileMemory):
        def read(self, address, length):
            if length in (16, 32):  # an entry, and the whole table
                raise AddressError(address, length)
            return super().read(address, length)

    (chain,) = look(q, Shrinking.over(memory)).chains
    assert [v.rule for v in chain.violations] == [RingRule.INDIRECT_TABLE_UNMAPPED]


def test_every_rule_has_words_a_clause_and_a_test():
    texts = {"2.7": Path(__file__).read_text(), "2.8": Path(__file__).with_name("test_packed_walker.py").read_text()}
    for rule in RingRule:
        assert rule.text
        assert str(rule) == f"{rule.text} (virtio 1.3, {rule.clause})"
        assert f"RingRule.{rule.name}" in texts[rule.clause[:3]]


def test_a_ring_that_moves_is_said_to_move(make_driver, memory):
    q = make_driver(8)

    class Moving:
        def check(self, address, length):
            memory.check(address, length)

        def read(self, address, length):
            q.used["idx"] += 1
            q.avail["idx"] += 1
            return memory.read(address, length)

    assert look(q, Moving()).moved


def test_work_is_bounded_when_every_head_walks_the_whole_table(memory, make_driver):
    q = make_driver(4096)
    for index in range(4096):
        q.raw.descriptor(index, 0x1000, 4, NEXT, (index + 1) % 4096)
        q.raw.post(index)
    q.publish()
    before = time.monotonic()
    snapshot = look(q, max_descriptors=10000)
    assert time.monotonic() - before < 5
    assert snapshot.truncated
    assert sum(len(chain.descriptors) for chain in snapshot.chains) == 10000


def test_the_largest_queue_is_walked_whole(make_driver):
    q = make_driver(32768)
    for _ in range(32768):
        q.add([(0x1000, 1)])
    q.publish()
    snapshot = look(q)
    assert len(snapshot.chains) == 32768
    assert not snapshot.truncated


def test_walking_writes_nothing(make_driver, memory):
    q = make_driver()
    q.add([(0x1000, 1), (0x1000, 1)])
    q.publish()
    readonly = GuestMemory(
        [Region(r.guest_addr, r.size, r.view.toreadonly()) for r in memory.regions],
    )
    before = memory.read(0x1000, 1 << 20)
    assert len(look(q, readonly).chains) == 1
    assert memory.read(0x1000, 1 << 20) == before


WORDS = st.one_of(st.integers(0, 8), st.integers(0, 0xFFFF))
DESCRIPTORS = st.tuples(
    st.one_of(st.integers(0x1000, 0x1400), st.sampled_from([0, TOP, 0x1FF8])),
    st.one_of(st.integers(0, 64), st.sampled_from([0xFFFFFFFF, 0xFFFFFFF0])),
    st.integers(0, 7),
    st.one_of(st.integers(0, 9), st.integers(0, 0xFFFF)),
)


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(),
    size=st.sampled_from([1, 2, 8]),
    event_idx=st.booleans(),
    indirect=st.booleans(),
    positions=st.builds(
        Positions, st.none() | WORDS, st.none() | st.lists(st.integers(-1, 70000), max_size=9), st.none() | WORDS
    ),
)
def test_no_bytes_make_it_raise(data, size, event_idx, indirect, positions):
    memory = GuestMemory([Region.of(0x1000, bytearray(0x1000))])
    layout = SplitLayout(size)
    at = layout.place(0x1000)
    table = layout.desc_view(memory.translate(at.desc, layout.desc_bytes))
    avail = layout.avail_view(memory.translate(at.avail, layout.avail_bytes))
    used = layout.used_view(memory.translate(at.used, layout.used_bytes))
    # where descriptors point into, tables included
    memory.write(0x1200, data.draw(st.binary(max_size=512)))
    for index in range(size):
        table[index] = data.draw(DESCRIPTORS)
        avail["ring"][index] = data.draw(WORDS)
        used["ring"][index] = (data.draw(WORDS), 0)
    for field in ("flags", "idx", "used_event"):
        avail[field] = data.draw(WORDS)
    for field in ("flags", "idx", "avail_event"):
        used[field] = data.draw(WORDS)
    snapshot = walk(memory, at, event_idx=event_idx, indirect=indirect, positions=positions, max_descriptors=64)
    assert sum(len(chain.descriptors) for chain in snapshot.chains) <= 64
    assert all(0 <= chain.head < size for chain in snapshot.chains)
    for chain in snapshot.chains:
        chain.read(memory, 64)
