# SPDX-License-Identifier: Apache-2.0
"""The driver side, one behaviour each; against a model see test_split_model."""

import pytest

from vhost_scsi.virtqueue.layout import RingAddresses, SplitLayout
from vhost_scsi.virtqueue.ring_driver import DeviceError, QueueFullError
from vhost_scsi.virtqueue.split_driver import SplitDriver


@pytest.fixture
def device_for(reference_device):
    return reference_device


def test_a_direct_chain_reaches_the_device_as_it_was_added(make_driver, memory, device_for):
    q = make_driver(indirect=False)
    device = device_for(q)
    out = [memory.allocate(3), memory.allocate(5)]
    back = memory.allocate(8)
    head = q.add(out, [back, (0x1234, 7)])
    q.publish()
    assert device.take() == (head, [(b.address, b.length) for b in out], [(back.address, 8), (0x1234, 7)])


def test_nothing_is_available_before_publish(make_driver, device_for):
    q = make_driver()
    q.add([(0x1000, 1)])
    assert device_for(q).take() is None


def test_an_indirect_chain_takes_one_descriptor(make_driver, device_for):
    q = make_driver(4)
    q.add([(0x1000, 1), (0x1001, 2)], [(0x1002, 3)])
    q.publish()
    assert q.free_descriptors == 3
    assert device_for(q).take()[1:] == ([(0x1000, 1), (0x1001, 2)], [(0x1002, 3)])


def test_a_direct_prefix_stands_before_the_table(make_driver, device_for):
    q = make_driver(4)
    q.add([(0x1000, 1), (0x1001, 2)], [(0x1002, 3)], direct_prefix=1)
    q.publish()
    assert q.free_descriptors == 2
    assert device_for(q).take()[1:] == ([(0x1000, 1), (0x1001, 2)], [(0x1002, 3)])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "at least one"),
        ({"out": [(0, 1)] * 9}, "9 elements"),
        ({"out": [(0, 1)], "direct_prefix": 1}, "prefix"),
    ],
)
def test_chains_that_break_a_rule_are_refused(make_driver, arguments, why):
    q = make_driver()
    with pytest.raises(ValueError, match=why):
        q.add(**arguments)
    assert q.free_descriptors == 8


def test_indirect_is_refused_where_it_was_not_negotiated(make_driver):
    with pytest.raises(ValueError, match="INDIRECT_DESC"):
        make_driver(indirect=False).add([(0, 1)], indirect=True)


def test_a_full_queue_says_so_and_goes_on_after_collect(make_driver, device_for):
    q = make_driver(2)
    device = device_for(q)
    heads = [q.add([(0x1000, 1)], token=n) for n in range(2)]
    with pytest.raises(QueueFullError):
        q.add([(0x1000, 1)])
    q.publish()
    device.use(heads[1])
    assert [used.token for used in q.collect()] == [1]
    q.add([(0x1000, 1)])


def test_collect_gives_tokens_and_lengths_in_the_devices_order(make_driver, device_for):
    q = make_driver()
    device = device_for(q)
    for token in "abc":
        q.add((), [(0x1000, 16)], token=token)
    q.publish()
    heads = [device.take()[0] for _ in range(3)]
    for head, written in zip(reversed(heads), (1, 2, 16), strict=True):
        device.use(head, written)
    assert list(q.collect()) == [("c", 1), ("b", 2), ("a", 16)]
    assert q.outstanding == 0


def test_collect_stops_at_its_limit(make_driver, device_for):
    q = make_driver()
    device = device_for(q)
    for _ in range(3):
        device.use(q.add([(0x1000, 1)]))
    q.publish()
    assert len(list(q.collect(2))) == 2
    assert q.pending
    assert len(list(q.collect())) == 1


def test_indirect_tables_go_back_to_the_allocator(make_driver, memory, device_for):
    q = make_driver()
    free = memory.free_bytes
    head = q.add([(0x1000, 1), (0x1000, 1)])
    assert memory.free_bytes == free - 32
    q.publish()
    device_for(q).use(head)
    list(q.collect())
    assert memory.free_bytes == free


@pytest.mark.parametrize("event_idx", [True, False])
def test_a_device_that_sleeps_is_kicked_and_one_that_looks_is_not(make_driver, device_for, event_idx):
    q = make_driver(event_idx=event_idx)
    device = device_for(q)
    device.want_kick()
    q.add([(0x1000, 1)])
    assert q.publish()
    device.take()
    device.no_kick()
    q.add([(0x1000, 1)])
    assert not q.publish()


def test_publishing_nothing_kicks_nobody(make_driver):
    assert not make_driver().publish()


def test_a_batch_that_passes_the_event_kicks_once(make_driver, device_for):
    q = make_driver()
    device_for(q).want_kick()
    for _ in range(5):
        q.add([(0x1000, 1)])
    assert q.publish()
    assert not q.publish()


def test_the_look_at_the_event_comes_behind_a_barrier(make_driver):
    q = make_driver()
    before = q._accessors.barriers
    q.add([(0x1000, 1)])
    q.publish()
    assert q._accessors.barriers == before + 1


@pytest.mark.parametrize("event_idx", [True, False])
def test_no_interrupts_while_they_are_disabled(make_driver, device_for, event_idx):
    q = make_driver(event_idx=event_idx)
    device = device_for(q)
    q.disable_notifications()
    for _ in range(20):
        q.add([(0x1000, 1)])
        q.publish()
        assert not device.use(device.take()[0])
        list(q.collect())
    assert q.avail["flags"] == (0 if event_idx else 1)


@pytest.mark.parametrize("event_idx", [True, False])
def test_an_interrupt_for_every_buffer_after_a_collect(make_driver, device_for, event_idx):
    q = make_driver(event_idx=event_idx)
    device = device_for(q)
    for _ in range(20):
        q.add([(0x1000, 1)])
        q.publish()
        assert device.use(device.take()[0])
        list(q.collect())


def test_enabling_notices_what_came_before(make_driver, device_for):
    q = make_driver()
    q.disable_notifications()
    head = q.add([(0x1000, 1)])
    q.publish()
    device_for(q).use(head)
    assert q.enable_notifications()


def test_what_is_used_while_notifications_are_enabled_is_collected_too(make_driver, device_for, monkeypatch):
    q = make_driver()
    device = device_for(q)
    heads = [q.add([(0x1000, 1)], token=n) for n in range(2)]
    q.publish()
    device.use(heads[0])
    # the device uses the second one after the last look and before it could see our used_event
    monkeypatch.setattr(q._accessors, "full_barrier", lambda: heads[1:] and device.use(heads.pop()))
    assert [used.token for used in q.collect()] == [0, 1]


def test_one_interrupt_after_several_buffers(make_driver, device_for):
    q = make_driver()
    device = device_for(q)
    heads = [q.add([(0x1000, 1)]) for _ in range(4)]
    q.publish()
    q.enable_notifications(after=3)
    assert [device.use(head) for head in heads] == [False, False, True, False]


@pytest.mark.parametrize("after", [0, 9])
def test_an_interrupt_cannot_be_asked_for_outside_the_queue(make_driver, after):
    with pytest.raises(ValueError, match="cannot ask"):
        make_driver().enable_notifications(after)


def test_a_used_head_that_is_not_outstanding_is_the_devices_fault(make_driver, device_for):
    q = make_driver()
    q.add([(0x1000, 1)])
    q.publish()
    device_for(q).use(5)
    with pytest.raises(DeviceError, match="head 5"):
        list(q.collect())


def test_a_used_idx_that_jumps_is_the_devices_fault(make_driver, device_for):
    q = make_driver()
    head = q.add([(0x1000, 1)])
    q.publish()
    device_for(q).use(head)
    device_for(q)._put_u16(q.addresses.used + 2, 2)
    with pytest.raises(DeviceError, match="2 ahead with 1"):
        list(q.collect())


def test_more_bytes_than_there_is_room_are_the_devices_fault(make_driver, device_for):
    q = make_driver()
    head = q.add([(0x1000, 9)], [(0x1000, 4)])
    q.publish()
    device_for(q).use(head, 5)
    with pytest.raises(DeviceError, match="5 bytes"):
        list(q.collect())


def test_detach_gives_the_tokens_by_age_and_a_clean_ring(make_driver, memory, device_for):
    q = make_driver()
    free = memory.free_bytes
    for token in "ab":
        q.add([(0x1000, 1), (0x1000, 1)], token=token)
    q.publish()
    assert q.detach() == ["a", "b"]
    assert memory.free_bytes == free
    assert (q.avail["idx"], q.used["idx"], q.free_descriptors, q.outstanding) == (0, 0, 8, 0)
    head = q.add([(0x1000, 1)], token="c")
    q.publish()
    device = device_for(q)
    assert device.take()[0] == head


def test_close_gives_the_rings_memory_back(make_driver, memory):
    free = memory.free_bytes
    q = make_driver()
    q.add([(0x1000, 1), (0x1000, 1)])
    q.close()
    assert memory.free_bytes == free


def test_a_ring_can_stand_where_the_caller_wants_it(memory, plain_accessors, device_for):
    at = SplitLayout(4).place(0x8000)
    q = SplitDriver(memory, 4, accessors=plain_accessors(), addresses=at)
    head = q.add([(0x1000, 1)])
    q.publish()
    assert device_for(q).take()[0] == head
    with pytest.raises(ValueError, match="queue of 8"):
        SplitDriver(memory, 4, accessors=plain_accessors(), addresses=RingAddresses(8, 0x8000, 0x9000, 0xA000))


def test_raw_descriptors_and_posts_reach_the_ring_unchecked(make_driver, device_for):
    q = make_driver()
    first, second = q.raw.reserve(2)
    q.raw.descriptor(first, 0xDEAD, 7, 1, second)
    q.raw.descriptor(second, 0xBEEF, 9, 2)
    q.raw.post(first, [first, second], token="raw", writable=9)
    q.publish()
    device = device_for(q)
    assert device.take() == (first, [(0xDEAD, 7)], [(0xBEEF, 9)])
    device.use(first, 9)
    assert list(q.collect()) == [("raw", 9)]
    assert q.free_descriptors == 8


def test_raw_words_are_stored_as_given(make_driver):
    q = make_driver()
    q.raw.set_avail_idx(77)
    q.raw.set_avail_flags(0xFFFF)
    q.raw.set_used_event(88)
    assert (q.avail["idx"], q.avail["flags"], q.avail["used_event"]) == (77, 0xFFFF, 88)


def test_raw_cannot_reserve_what_is_taken(make_driver):
    q = make_driver()
    with pytest.raises(QueueFullError):
        q.raw.reserve(9)
