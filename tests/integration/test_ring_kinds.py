# SPDX-License-Identifier: Apache-2.0
"""One suite for every kind of ring: {split, packed} x {direct, chained, indirect} x {event index on, off} x {in any
order, in order} x {1, 4 queues}. The back end must not be able to tell them apart by what it does.

Of the 48 kinds the fast part takes as many as it needs for every pair of choices to be there; `slow` takes them all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.disk_model import Model
from tests.live import PATIENCE, TEST_UNIT_READY, End, Host, Live, good, inquiry, read10, write10
from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.virtqueue.ring_driver import QueueFullError
from vhost_scsi.virtqueue.scsi_driver import CommandResult
from vhost_scsi.virtqueue.virtio_scsi import ControlResponse, Response, TaskManagement


@dataclass(frozen=True, slots=True)
class Kind:
    """What a driver chose."""

    packed: bool
    shape: str
    event_idx: bool
    in_order: bool
    queues: int

    def __str__(self) -> str:
        words = ["packed" if self.packed else "split", self.shape, "event" if self.event_idx else "flags"]
        return "-".join([*words, "in_order" if self.in_order else "any_order", str(self.queues)])

    @property
    def features(self) -> int:
        chosen = {
            Feature.VERSION_1: True,
            Feature.RING_PACKED: self.packed,
            Feature.INDIRECT_DESC: self.shape == "indirect",
            Feature.EVENT_IDX: self.event_idx,
            Feature.IN_ORDER: self.in_order,
        }
        return int(sum(feature for feature, wanted in chosen.items() if wanted))

    @property
    def size(self) -> int:
        """Small, so that rings wrap soon; 2.8.10.1: a packed one need not be a power of two."""
        return 29 if self.packed else 32


KINDS = [
    Kind(*each)
    for each in itertools.product(
        (False, True), ("direct", "chained", "indirect"), (False, True), (False, True), (1, 4)
    )
]


def pairs(kind: Kind) -> set[tuple[Any, ...]]:
    choices = [(name, getattr(kind, name)) for name in Kind.__slots__]
    return set(itertools.combinations(choices, 2))


def few() -> list[Kind]:
    """Greedily, kinds that have every pair of choices among them."""
    missing = set().union(*map(pairs, KINDS))
    chosen: list[Kind] = []
    while missing:
        best = max(KINDS, key=lambda kind: len(pairs(kind) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


FEW = few()


@dataclass(slots=True)
class Bench:
    """A back end with a fast and a slow unit, and an initiator with rings of one kind."""

    kind: Kind
    live: Live
    end: End
    host: Host

    def shape(self) -> dict[str, Any]:
        """Options of a command whose buffers have the kind's shape."""
        if self.kind.shape == "direct":
            return {"out_cuts": (), "in_cuts": ()}
        return {"out_cuts": (7, 30, 51), "in_cuts": (20, 108), "indirect": self.kind.shape == "indirect"}

    def queues(self) -> range:
        return range(self.kind.queues)


@pytest.fixture(
    params=[pytest.param(kind, marks=() if kind in FEW else pytest.mark.slow, id=str(kind)) for kind in KINDS]
)
def bench(request: pytest.FixtureRequest, make_live: Callable[[str, int], Live]) -> Iterator[Bench]:
    kind: Kind = request.param
    live = make_live("auto", 2)
    fast, slow = live.unit("memory:4M", "fast"), live.unit("delay(read=20s):memory:1M", "slow")
    end = live.end((0, 0, fast), (0, 1, slow), request_queues=kind.queues, in_order=kind.in_order)
    made = Bench(kind, live, end, end.connect(features=kind.features, queue_size=kind.size))
    made.host.ready()
    yield made
    made.host.close()
    del made.host  # pytest keeps `made` for longer, and views of guest memory keep a descriptor


def test_the_fast_part_has_every_pair_of_choices() -> None:
    assert set().union(*map(pairs, FEW)) == set().union(*map(pairs, KINDS))
    assert len(FEW) < len(KINDS) / 4


def test_a_kind_of_ring(bench: Bench) -> None:
    """One after the other: each leaves the rings where the next one finds them."""
    the_device_knows_what_was_chosen(bench)
    random_commands_leave_disk_and_model_alike(bench)
    full_rings_come_back_whole(bench)
    rings_stop_and_go_on(bench)
    a_request_that_waits_is_aborted(bench)
    the_device_is_reset_and_begins_anew(bench)


def the_device_knows_what_was_chosen(bench: Bench) -> None:
    for index in bench.queues():
        status = bench.end.queue(2 + index)
        assert status.layout == ("packed" if bench.kind.packed else "split")
        assert status.size == bench.kind.size
        chosen = {name for name in ("RING_PACKED", "INDIRECT_DESC", "EVENT_IDX", "IN_ORDER") if name in status.features}
        assert Feature.VERSION_1 | sum(Feature[name] for name in chosen) == bench.kind.features


def random_commands_leave_disk_and_model_alike(bench: Bench) -> None:
    """Some hundred descriptors of each ring: it wraps many times."""
    indirect = bench.kind.shape == "indirect"
    Model(bench.host, 512, bench.kind.queues, direct=bench.kind.shape == "direct", indirect=indirect).run(40)
    for index in bench.queues():
        bench.host.ready(queue=index)


def fill(bench: Bench, queue: int) -> list[int]:
    """As many reads as the ring takes, not shown to the device yet; their tags."""
    tags: list[int] = []
    while True:
        try:
            block = len(tags) % 64
            tags.append(bench.host.send(read10(block, 1), in_len=512, queue=queue, publish=False, **bench.shape()))
        except QueueFullError:
            return tags


def full_rings_come_back_whole(bench: Bench) -> None:
    """All that the rings take, several times, sent in one go: each comes back once; in order where that was chosen."""
    driver = bench.host.driver
    for turn in range(4):
        sent = [fill(bench, queue) for queue in bench.queues()]
        driver.publish()
        came: list[CommandResult] = []
        while driver.pending:
            waiting = next(port for port in driver.requests if port.queue.outstanding)
            assert waiting.wait(time.monotonic() + PATIENCE), f"turn {turn}: {driver.pending} never came back"
            came += driver.collect()
        for result in came:
            good(result)
        for tags in sent:
            back = [result.tag for result in came if result.tag in tags]
            assert (back if bench.kind.in_order else sorted(back)) == tags
        assert [port.queue.free_descriptors for port in driver.requests] == [bench.kind.size] * bench.kind.queues


def rings_stop_and_go_on(bench: Bench) -> None:
    """GET_VRING_BASE with requests under way, SET_VRING_BASE with what it said: nothing is lost or done twice."""
    host, initiator = bench.host, bench.host.initiator
    host.ok(write10(0, 40), b"\x01" * 40 * 512)
    for turn in range(3):
        tags = [
            host.send(write10(10 * n, 1), bytes([turn + 2]) * 512, queue=n % bench.kind.queues, **bench.shape())
            for n in range(4)
        ]
        bases = initiator.stop()
        assert not any(bench.end.queue(index).started for index in range(2 + bench.kind.queues))
        for base in bases if bench.kind.packed else ():
            assert base & 0xFFFF == base >> 16, f"{base:#x}: what was taken has been used"
        initiator.vrings.clear()
        initiator.start(bases)
        for index, port in enumerate(host.driver.requests):
            fresh = initiator._port(index + 2)
            port.notify, port.call_fd = fresh.notify, fresh.call_fd
            port.notify()
        control = initiator._port(0)
        assert host.driver.control is not None
        host.driver.control.notify, host.driver.control.call_fd = control.notify, control.call_fd
        for result in host.drain(tags):
            good(result)
        assert host.ok(read10(0, 40), in_len=40 * 512)[:512] == bytes([turn + 2]) * 512


def a_request_that_waits_is_aborted(bench: Bench) -> None:
    """It ends once. With in-order use what came after it, on the same queue, waits for it, and not for the medium."""
    host, live = bench.host, bench.live
    host.ready((0, 1))
    slow = host.send(read10(0, 1), in_len=512, at=(0, 1), **bench.shape())
    live.wait_for(lambda: live.in_flight() == 1, "the read that waits")
    after = [host.send(read10(n, 1), in_len=512, **bench.shape()) for n in range(3)]
    # Done is done, seen or not: the queue has them no more.
    live.wait_for(lambda: bench.end.queue(2).requests >= 4 and bench.end.queue(2).in_flight == 1, "the others' end")
    if bench.kind.in_order:
        assert not host.driver.collect()
    else:
        for result in host.drain(after):
            good(result)
    assert host.manage(TaskManagement.ABORT_TASK, slow, (0, 1)) == ControlResponse.FUNCTION_COMPLETE
    assert host.wait(slow).response == Response.ABORTED
    if bench.kind.in_order:
        for result in host.drain(after):
            good(result)


def the_device_is_reset_and_begins_anew(bench: Bench) -> None:
    host, initiator = bench.host, bench.host.initiator
    initiator.frontend.reset_device()
    host.driver.reset()
    initiator.vrings.clear()
    initiator.start()
    ports = [initiator._port(index) for index in range(len(initiator.queues))]
    host.driver.control, host.driver.event, host.driver.requests = ports[0], ports[1], ports[2:]
    for index in bench.queues():
        host.command(TEST_UNIT_READY, queue=index)
        assert len(host.ok(inquiry(36), in_len=36, queue=index, **bench.shape())) == 36
