# SPDX-License-Identifier: Apache-2.0
"""The packed layout and its driver side, against a reference device that is written from the standard alone."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhost_scsi.virtqueue.memory import GuestMemory
from vhost_scsi.virtqueue.packed_driver import PackedDriver
from vhost_scsi.virtqueue.packed_layout import PackedLayout, Place, packed_need_event
from vhost_scsi.virtqueue.ring_driver import DeviceError, QueueFullError

AVAIL, USED = 1 << 7, 1 << 15


class PackedReferenceDevice:
    """The device side of a packed ring (virtio 1.3, 2.8), by the book, with struct and without the package's layout."""

    def __init__(self, driver):
        self.memory, self.at, self.size, self.event_idx = (
            driver.memory,
            driver.addresses,
            driver.size,
            driver.event_idx,
        )
        self.avail = self.used = 0  # descriptors ever passed
        self.spans = {}

    def _wrap(self, passed):
        return not passed // self.size % 2

    def _desc(self, passed):
        return struct.unpack("<QIHH", self.memory.read(self.at.desc + 16 * (passed % self.size), 16))

    @property
    def available(self):
        flags, wrap = self._desc(self.avail)[3], self._wrap(self.avail)
        return bool(flags & AVAIL) == wrap and bool(flags & USED) != wrap

    def take(self):
        """(id, readable, writable) of the next list, or None."""
        if not self.available:
            return None
        start, pieces = self.avail, ([], [])
        while True:
            address, length, id_, flags = self._desc(self.avail)
            assert bool(flags & AVAIL) == self._wrap(self.avail) != bool(flags & USED)
            self.avail += 1
            if flags & 4:
                table = self.memory.read(address, length)
                for entry in struct.iter_unpack("<QIHH", table):
                    assert entry[3] & ~2 == 0  # 2.8.19
                    pieces[bool(entry[3] & 2)].append(entry[:2])
            else:
                pieces[bool(flags & 2)].append((address, length))
            if not flags & 1:
                break
        self.spans[id_] = self.avail - start
        return id_, *pieces

    def use(self, id_, written=0, flag=True):
        """Give a list back; whether the driver is to be notified."""
        wrap, old = self._wrap(self.used), self.used
        flags = (AVAIL | USED if wrap else 0) | (2 if written and flag else 0)
        self.memory.write(self.at.desc + 16 * (old % self.size) + 8, struct.pack("<IHH", written, id_, flags))
        self.used += self.spans.pop(id_)
        place, mode = struct.unpack("<HH", self.memory.read(self.at.avail, 4))
        if mode != 2:
            return mode == 0
        return any(
            passed % self.size == place & 0x7FFF and self._wrap(passed) == bool(place >> 15)
            for passed in range(old, self.used)
        )

    def want_kick(self):
        place = self.avail % self.size | self._wrap(self.avail) << 15
        self.memory.write(self.at.used, struct.pack("<HH", place, 2) if self.event_idx else bytes(4))

    def no_kick(self):
        self.memory.write(self.at.used, struct.pack("<HH", 0, 1))


@pytest.fixture
def make_packed(memory, plain_accessors):
    def make(size=8, **options):
        q = PackedDriver(memory, size, accessors=plain_accessors(), **options)
        return q, PackedReferenceDevice(q)

    return make


def test_sizes_need_not_be_powers_of_two():
    layout = PackedLayout(100)
    assert (layout.desc_bytes, layout.total_bytes) == (1600, 1608)
    assert layout.place(0x1000).used == 0x1000 + 1604
    for size in (0, 32769, -1):
        with pytest.raises(ValueError, match="queue size"):
            PackedLayout(size)
    with pytest.raises(ValueError, match="aligned"):
        layout.place(8)


@given(st.integers(1, 9), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_places_count_like_plain_numbers(size, start, count, ahead):
    def place(passed):
        return Place(passed % size, not passed // size % 2)

    count, ahead = count % (size + 1), ahead % (2 * size)
    assert place(start).forward(count, size) == place(start + count)
    assert place(start).distance(place(start + ahead), size) == ahead
    assert packed_need_event(place(start + ahead), place(start + count), place(start), size) == (ahead < count)
    assert Place.of_word(place(start).word) == place(start)


@pytest.mark.parametrize("event_idx", [True, False])
@pytest.mark.parametrize("indirect", [True, False])
@pytest.mark.parametrize("size", [1, 3, 8])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_driver_and_device_agree_in_any_order(plain_accessors, event_idx, indirect, size, data):
    memory = GuestMemory.create(1 << 18)
    q = PackedDriver(memory, size, event_idx=event_idx, indirect=indirect, accessors=plain_accessors())
    device = PackedReferenceDevice(q)
    free = memory.free_bytes
    added, posted, taken, used = [], [], {}, []
    token, device_sleeps, driver_sleeps = 0, False, False
    for step in data.draw(st.lists(st.sampled_from("aaappttuucckq"), min_size=10, max_size=60)):
        if step == "a":
            out, in_ = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
            if not 0 < out + in_ <= size:
                continue
            readable = [(0x1000 * i + token, 1 + i) for i in range(out)]
            writable = [(0x8000 * (i + 1) + token, 7) for i in range(in_)]
            try:
                id_ = q.add(readable, writable, token=token)
            except QueueFullError:
                assert q.free_descriptors < out + in_
                continue
            added.append((id_, readable, writable, token))
            token += 1
        elif step == "p":
            kick = q.publish()
            if added and device_sleeps:
                assert kick
                device_sleeps = False
            posted, added = posted + added, []
        elif step == "t":
            found = device.take()
            assert (found is None) == (not posted)
            if found:
                id_, readable, writable, its = posted.pop(0)
                assert found == (id_, readable, writable)
                taken[id_] = (its, 7 * len(writable))
        elif step == "u" and taken:
            id_ = data.draw(st.sampled_from(sorted(taken)))
            its, room = taken.pop(id_)
            if device.use(id_, room):
                driver_sleeps = False
            assert not driver_sleeps
            used.append((its, room))
        elif step == "c":
            assert list(q.collect()) == used
            used, driver_sleeps = [], q.notifications
        elif step == "k":
            device.want_kick()
            device_sleeps = not device.available
        elif step == "q":
            q.disable_notifications()
            driver_sleeps = False
    assert q.outstanding == len(added) + len(posted) + len(taken) + len(used)
    q.detach()
    assert memory.free_bytes == free
    memory.close()


def test_nothing_is_seen_before_it_is_published(make_packed):
    q, device = make_packed(4, indirect=False)
    first = q.add([(0x1000, 1), (0x2000, 2)], [(0x3000, 3)], token="a")
    assert q.free_descriptors == 1
    with pytest.raises(QueueFullError):
        q.add([(0x1000, 1), (0x1000, 1)])
    assert device.take() is None
    assert q.publish()
    assert not q.publish()
    assert device.take() == (first, [(0x1000, 1), (0x2000, 2)], [(0x3000, 3)])
    assert device.use(first, 2)
    assert list(q.collect()) == [("a", 2)]
    assert (q.free_descriptors, q.base) == (4, 0x80038003)


def test_kicks_are_suppressed(make_packed):
    q, device = make_packed(4)
    device.no_kick()
    q.add([(0x1000, 1)])
    assert not q.publish()
    device.want_kick()  # for the one that is there already
    q.add([(0x1000, 1)])
    assert not q.publish()
    device.memory.write(q.addresses.used, struct.pack("<HH", 0x8000 | 4, 2))  # no such descriptor: once too often
    q.add([(0x1000, 1)])
    assert q.publish()


def test_an_interrupt_after_several_descriptors(make_packed):
    q, device = make_packed(4)
    for _ in range(3):
        q.add([(0x1000, 1)])
    q.publish()
    assert not q.enable_notifications(after=3)
    assert [device.use(device.take()[0]) for _ in range(3)] == [False, False, True]
    with pytest.raises(ValueError, match="5"):
        q.enable_notifications(after=5)


def test_a_length_without_the_write_flag_is_not_one(make_packed):
    q, device = make_packed()
    q.add([], [(0x1000, 8)])
    q.publish()
    device.use(device.take()[0], 8, flag=False)
    assert [used.written for used in q.collect()] == [0]


def test_what_a_device_may_not_do(make_packed):
    q, device = make_packed()
    q.add([], [(0x1000, 8)])
    q.publish()
    device.spans[5] = 1
    device.use(5)
    with pytest.raises(DeviceError, match="buffer 5, which is not outstanding"):
        list(q.collect())
    q.detach()
    device = PackedReferenceDevice(q)
    q.add([], [(0x1000, 8)])
    q.publish()
    device.use(device.take()[0], 9)
    with pytest.raises(DeviceError, match="9 bytes written to 8"):
        list(q.collect())


def test_chains_that_cannot_be(make_packed):
    q, _ = make_packed(2, indirect=False)
    for out, options, clause in (
        ([], {}, "2.8"),
        ([(0, 1)] * 3, {}, "2.8.17"),
        ([(0, 1)], {"indirect": True}, "2.8.19"),
    ):
        with pytest.raises(ValueError, match=clause):
            q.add(out, **options)
    with pytest.raises(ValueError, match="of 2, not of 4"):
        PackedDriver(q.memory, 4, addresses=q.addresses)
    q.add([(0, 1)], token="x")
    free = q.memory.free_bytes
    assert q.detach() == ["x"]
    q.close()
    assert q.memory.free_bytes > free
