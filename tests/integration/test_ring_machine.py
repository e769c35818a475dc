# SPDX-License-Identifier: Apache-2.0
"""Driver, rings and device in any order of steps against a model of what is under way and what the disk holds.

The steps are what a driver may do at any time: add, show, look, sleep, stop and go on, reset. Blocks of commands that
are under way are left alone, so that the model knows what each command must find.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.live import Host, Live, good, read10, write10
from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.virtqueue.ring_driver import QueueFullError

BLOCKS, QUEUES = 48, 2
SIZES = {False: [4, 8, 32], True: [4, 5, 8, 29]}  # a table has four entries, and no more than the ring has
COUNT = itertools.count()


def make_machine(make_live: Callable[[str, int], Live], packed: bool) -> type[RuleBasedStateMachine]:
    live = make_live("auto", 2)

    class Machine(RuleBasedStateMachine):
        @initialize(
            size=st.sampled_from(SIZES[packed]),
            event_idx=st.booleans(),
            indirect=st.booleans(),
            in_order=st.booleans(),
            polled=st.booleans(),
        )
        def start(self, size: int, event_idx: bool, indirect: bool, in_order: bool, polled: bool) -> None:
            unit = live.unit("memory:1M", f"disk-{next(COUNT)}")
            self.end = live.end((0, 0, unit), name=f"port-{next(COUNT)}", request_queues=QUEUES, in_order=True)
            chosen = {Feature.RING_PACKED: packed, Feature.EVENT_IDX: event_idx, Feature.IN_ORDER: in_order}
            chosen |= {Feature.INDIRECT_DESC: indirect, Feature.VERSION_1: True}
            features = sum(int(feature) for feature, wanted in chosen.items() if wanted)
            self.host: Host = self.end.connect(features=features, queue_size=size, polled=polled)
            self.in_order = in_order
            self.indirect = indirect
            self.host.ready()
            self.disk = [bytes(512)] * BLOCKS
            self.under_way: dict[int, tuple[int, int, bytes | None]] = {}  # tag: queue, block, what a read must find
            self.fill = 0

        def send(self, queue: int, block: int, cdb: bytes, data: bytes, expected: bytes | None, shown: bool) -> None:
            if any(block == busy for _, busy, _ in self.under_way.values()):
                return
            # Without tables a chain is to fit into the smallest ring.
            out, in_ = ((51,), (60,)) if self.indirect else ((), ())
            try:
                tag = self.host.send(
                    cdb, data, 0 if data else 512, queue=queue, publish=shown, out_cuts=out, in_cuts=in_
                )
            except QueueFullError:
                return
            if data:
                self.disk[block] = data
            self.under_way[tag] = (queue, block, expected)

        @rule(queue=st.integers(0, QUEUES - 1), block=st.integers(0, BLOCKS - 1), shown=st.booleans())
        def write(self, queue: int, block: int, shown: bool) -> None:
            self.fill = self.fill % 255 + 1
            self.send(queue, block, write10(block, 1), bytes([self.fill]) * 512, None, shown)

        @rule(queue=st.integers(0, QUEUES - 1), block=st.integers(0, BLOCKS - 1), shown=st.booleans())
        def read(self, queue: int, block: int, shown: bool) -> None:
            self.send(queue, block, read10(block, 1), b"", self.disk[block], shown)

        @rule()
        def show(self) -> None:
            self.host.driver.publish()

        def ended(self, result: Any) -> None:
            _, _, expected = self.under_way.pop(result.tag)
            data = good(result)
            assert expected is None or data == expected

        @rule()
        def look(self) -> None:
            for result in self.host.driver.collect():
                self.ended(result)

        @precondition(lambda self: self.under_way)
        @rule(data=st.data())
        def sleep(self, data: Any) -> None:
            """Until one of them has come back, whichever; what was not shown is shown first."""
            self.host.driver.publish()
            tag = data.draw(st.sampled_from(sorted(self.under_way)))
            self.ended(self.host.wait(tag))

        @rule(queue=st.integers(0, QUEUES - 1), on=st.booleans())
        def notifications(self, queue: int, on: bool) -> None:
            driver = self.host.driver.requests[queue].queue
            if on:
                driver.enable_notifications()
            else:
                driver.disable_notifications()

        @rule()
        def stop_and_go_on(self) -> None:
            initiator = self.host.initiator
            bases = initiator.stop()
            if packed:
                assert all(base & 0xFFFF == base >> 16 for base in bases)
            self.restart(bases)
            for port in self.host.driver.requests:
                port.notify()

        def restart(self, bases: list[int] | None) -> None:
            initiator, driver = self.host.initiator, self.host.driver
            initiator.vrings.clear()
            initiator.start(bases)
            for port, index in ((driver.control, 0), (driver.event, 1), *zip(driver.requests, itertools.count(2))):
                fresh = initiator._port(index)
                assert port is not None
                port.notify, port.call_fd = fresh.notify, fresh.call_fd

        @rule()
        def reset(self) -> None:
            """Writes that were under way may have come to the disk or not: their blocks are written anew."""
            initiator = self.host.initiator
            initiator.frontend.reset_device()
            lost = set(self.host.driver.reset())
            assert lost <= set(self.under_way)
            self.host.driver.collect()
            blocks = {block for _, block, _ in self.under_way.values()}
            self.under_way.clear()
            self.restart(None)
            self.host.ready()
            for block in blocks:
                self.host.ok(write10(block, 1), self.disk[block])

        def teardown(self) -> None:
            if not hasattr(self, "host"):
                return
            self.host.driver.publish()
            for tag in sorted(self.under_way):
                self.ended(self.host.wait(tag))
            for block in range(BLOCKS):
                assert self.host.ok(read10(block, 1), in_len=512) == self.disk[block]
            for port in self.host.driver.requests:
                assert port.queue.free_descriptors == port.queue.size
            self.host.close()
            live.wait_until_free(self.end)
            del self.host, self.end

    return Machine


def check(make_live: Callable[[str, int], Live], packed: bool, examples: int, **options: Any) -> None:
    chosen = settings(max_examples=examples, stateful_step_count=30, deadline=None, **options)
    run_state_machine_as_test(make_machine(make_live, packed), settings=chosen)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_driver_and_device_agree_in_any_order(make_live: Callable[[str, int], Live], packed: bool) -> None:
    check(make_live, packed, 3, derandomize=True)  # the same ones each time


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_driver_and_device_agree_for_long(make_live: Callable[[str, int], Live], packed: bool) -> None:
    check(make_live, packed, 80)
