# SPDX-License-Identifier: Apache-2.0
"""Driver, reference device and walker together, in any order of steps, against a model of who has which buffer.

The model knows the truth. What is checked at every step: the device sees exactly what was added, tokens come back once
and with the right length, nobody who sleeps is left asleep, and the walker's picture is the model's.
"""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vhost_scsi.virtqueue.memory import FileMemory, GuestMemory
from vhost_scsi.virtqueue.ring_driver import QueueFullError
from vhost_scsi.virtqueue.split_driver import SplitDriver
from vhost_scsi.virtqueue.walker import HeadState, Positions, walk

ELEMENTS = st.lists(st.integers(1, 300), max_size=4)


def make_machine(accessors, device_class):
    class Machine(RuleBasedStateMachine):
        @initialize(
            size=st.sampled_from([1, 2, 4, 8]),
            event_idx=st.booleans(),
            indirect=st.booleans(),
            start=st.sampled_from([0, 3, 65530]),
        )
        def start(self, size, event_idx, indirect, start):
            self.memory = GuestMemory.create(1 << 18)
            self.driver = SplitDriver(self.memory, size, event_idx=event_idx, indirect=indirect, accessors=accessors())
            self.device = device_class(self.driver)
            self.free_bytes = self.memory.free_bytes
            self.added = []  # (head, token, out, in_) not published
            self.posted = []  # published, not taken
            self.taken = {}  # head -> (token, in_)
            self.used = []  # (head, token, written, in_) not collected
            self.token = 0
            self.device_sleeps = self.driver_sleeps = False
            begin_at(self.driver, self.device, start)

        @rule(out=ELEMENTS, in_=ELEMENTS, indirect=st.sampled_from([None, False, True]), prefix=st.integers(0, 2))
        def add(self, out, in_, indirect, prefix):
            count = len(out) + len(in_)
            if count == 0 or count > self.driver.size or (indirect and not self.driver.indirect):
                return
            prefix = min(prefix, count - 1)
            sources = [self.memory.allocate(length) for length in out]
            targets = [self.memory.allocate(length) for length in in_]
            for number, source in enumerate(sources):
                source.view[:] = bytes([(self.token + number) % 251]) * source.length
            try:
                head = self.driver.add(sources, targets, token=self.token, indirect=indirect, direct_prefix=prefix)
            except QueueFullError:
                assert self.driver.free_descriptors < count
                for buffer in sources + targets:
                    self.memory.free(buffer)
                return
            self.added.append((head, self.token, sources, targets))
            self.token += 1

        @rule()
        def publish(self):
            kick = self.driver.publish()
            if self.added and self.device_sleeps:
                # it had seen all there was, so the very next entry must wake it
                assert kick
                self.device_sleeps = False
            self.posted += self.added
            self.added = []

        @rule()
        def device_takes(self):
            self.device_sleeps = False
            found = self.device.take()
            if not self.posted:
                assert found is None
                return
            head, token, sources, targets = self.posted.pop(0)
            assert found == (
                head,
                [(b.address, b.length) for b in sources],
                [(b.address, b.length) for b in targets],
            )
            assert self.device.read(found[1]) == b"".join(
                bytes([(token + n) % 251]) * b.length for n, b in enumerate(sources)
            )
            for source in sources:
                self.memory.free(source)
            self.taken[head] = (token, targets)

        @precondition(lambda self: self.taken)
        @rule(data=st.data(), fill=st.integers(0, 400))
        def device_uses(self, data, fill):
            head = data.draw(st.sampled_from(sorted(self.taken)))
            token, targets = self.taken.pop(head)
            written = self.device.write([(b.address, b.length) for b in targets], bytes([token % 251]) * fill)
            interrupt = self.device.use(head, written)
            if self.driver_sleeps:
                assert interrupt
                self.driver_sleeps = False
            self.used.append((head, token, written, targets))

        @rule(limit=st.sampled_from([None, None, 1]))
        def collect(self, limit):
            self.driver_sleeps = False
            expected = self.used if limit is None else self.used[:limit]
            assert list(self.driver.collect(limit)) == [(token, written) for _, token, written, _ in expected]
            for _, token, written, targets in expected:
                content = b"".join(bytes(b.view) for b in targets)
                assert content[:written] == bytes([token % 251]) * written
                assert not any(content[written:])
                for buffer in targets:
                    self.memory.free(buffer)
            self.used = self.used[len(expected) :]
            self.driver_sleeps = not self.used and self.driver.notifications and limit is None

        @rule(on=st.booleans())
        def driver_notifications(self, on):
            self.driver_sleeps = False
            if on:
                assert self.driver.enable_notifications() == bool(self.used)
                self.driver_sleeps = not self.used
            else:
                self.driver.disable_notifications()

        @rule(sleep=st.booleans())
        def device_kicks(self, sleep):
            if sleep:
                self.device.want_kick()
                self.device_sleeps = not self.device.available
            else:
                self.device.no_kick()
                self.device_sleeps = False

        @precondition(lambda self: self.token > 5)
        @rule()
        def reset(self):
            held = self.added + self.posted
            tokens = [token for _, token, _, _ in held]
            tokens += [token for token, _ in self.taken.values()] + [token for _, token, _, _ in self.used]
            assert sorted(self.driver.detach()) == sorted(tokens)
            for _, _, sources, targets in held:
                for buffer in sources + targets:
                    self.memory.free(buffer)
            for targets in [entry[-1] for entry in [*self.taken.values(), *self.used]]:
                for buffer in targets:
                    self.memory.free(buffer)
            assert self.memory.free_bytes == self.free_bytes
            self.added, self.posted, self.taken, self.used = [], [], {}, []
            self.device_sleeps = self.driver_sleeps = False
            self.device = device_class(self.driver)

        def walk(self, positions=None):
            return walk(
                FileMemory.over(self.memory),
                self.driver.addresses,
                event_idx=self.driver.event_idx,
                indirect=self.driver.indirect,
                positions=positions,
            )

        @invariant()
        def walker_that_is_told_sees_everything(self):
            snapshot = self.walk(Positions(self.device.last_avail, list(self.taken), self.driver.last_used))
            expected = dict.fromkeys([head for head, _, _, _ in self.used], HeadState.USED_UNSEEN)
            expected |= dict.fromkeys([head for head, _, _, _ in self.posted], HeadState.POSTED)
            expected |= dict.fromkeys(self.taken, HeadState.IN_FLIGHT)
            assert snapshot.heads == expected
            assert list(snapshot.all_violations()) == []
            assert (snapshot.hidden, snapshot.outstanding) == (0, len(self.posted) + len(self.taken))
            assert (snapshot.avail_idx, snapshot.used_idx) == (self.driver.published, self.device.used_idx)
            by_head = {chain.head: chain for chain in snapshot.chains}
            assert set(by_head) == set(expected)
            for head, _, sources, targets in self.posted:
                chain = by_head[head]
                assert [(d.address, d.length) for d in chain.buffers] == [
                    (b.address, b.length) for b in sources + targets
                ]
                assert chain.readable_bytes == sum(b.length for b in sources)
                assert chain.writable_bytes == sum(b.length for b in targets)

        @invariant()
        def walker_that_is_told_the_device_position_sees_what_is_posted(self):
            snapshot = self.walk(Positions(last_avail_idx=self.device.last_avail))
            posted = [head for head, state in snapshot.heads.items() if state is HeadState.POSTED]
            assert posted == [head for head, _, _, _ in self.posted]

        @invariant()
        def walker_that_is_told_nothing_counts_right(self):
            snapshot = self.walk()
            outstanding = [head for head, state in snapshot.heads.items() if state is HeadState.OUTSTANDING]
            assert len(outstanding) + snapshot.hidden == len(self.posted) + len(self.taken)

        def teardown(self):
            if hasattr(self, "memory"):
                self.memory.close()

    return Machine


def begin_at(driver, device, index):
    """As if `index` buffers had passed already."""
    driver.next_avail = driver.published = driver.last_used = index
    device.last_avail = device.used_idx = index
    driver.raw.set_avail_idx(index)
    driver.raw.set_used_event(index)
    device._put_u16(driver.addresses.used + 2, index)


def test_driver_device_and_walker_agree_in_any_order(plain_accessors, reference_device):
    machine = make_machine(plain_accessors, reference_device)
    machine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
    machine.TestCase("runTest").runTest()


@pytest.mark.parametrize("event_idx", [True, False])
def test_indices_wrap_at_65536(make_driver, reference_device, event_idx):
    q = make_driver(4, event_idx=event_idx)
    device = reference_device(q)
    begin_at(q, device, 65533)
    device.want_kick()
    for number in range(8):
        q.add([(0x1000, 1)], token=number)
        assert q.publish()
        assert device.use(device.take()[0])
        device.want_kick()
        assert [used.token for used in q.collect()] == [number]
    assert (q.avail["idx"], q.used["idx"]) == (5, 5)
