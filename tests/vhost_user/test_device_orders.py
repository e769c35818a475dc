# SPDX-License-Identifier: Apache-2.0
"""The real device behind a connection: every order of messages that the specification allows, and what a ring loses by
it (nothing). Rings, memory and store are real; only the front end and the driver are ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live import TEST_UNIT_READY, End, Host, Live, good, inquiry, open_fds, read10, resident_kib, write10
from vhost_scsi.errors import ConfigError
from vhost_scsi.vhost_user import ring_reader
from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.vhost_user.frontend import Frontend, RequestRefused
from vhost_scsi.vhost_user.initiator import USER_BASE
from vhost_scsi.vhost_user.messages import (
    VRING_ADDR,
    VRING_STATE,
    IndexedVringAddr,
    MemoryRegion,
    Request,
    VringAddr,
    VringState,
)
from vhost_scsi.virtqueue.memory import FileMemory, GuestMemory, Region
from vhost_scsi.virtqueue.scsi_driver import QueuePort, ScsiDriver, _Pending, eventfd_notifier
from vhost_scsi.virtqueue.split_driver import SplitDriver
from vhost_scsi.virtqueue.virtio_scsi import LunAddress, RequestHeader, Response, response_header_bytes

MODERN = int(Feature.VERSION_1)
KINDS = {
    "all": None,
    "no event index": MODERN | Feature.INDIRECT_DESC,
    "no indirect": MODERN | Feature.EVENT_IDX,
    "neither": MODERN,
    "legacy": int(Feature.EVENT_IDX | Feature.INDIRECT_DESC),
    "bare legacy": 0,
}


@pytest.fixture
def end(live: Live) -> End:
    return live.end((0, 0, live.unit()))


def uses(host: Host, number: int = 8) -> None:
    """The host can do I/O, on every queue."""
    for n in range(number):
        queue = n % len(host.driver.requests)
        data = os.urandom(4096)
        good(host.command(write10(8 * n, 8), data, queue=queue))
        assert good(host.command(read10(8 * n, 8), in_len=4096, queue=queue)) == data


class Steps:
    """One connection whose messages a test sends itself; rings of one queue of each kind."""

    def __init__(self, end: End, *, polled: bool = False, regions: int = 1) -> None:
        self.frontend = Frontend(end.path, 30)
        self.memory = GuestMemory([Region.create(8 << 20, 0x1000 + n * (8 << 20)) for n in range(regions)])
        self.features = self.frontend.negotiate()
        self.queues = [SplitDriver(self.memory, 128) for _ in range(3)]
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        self.kicks = [None if polled else os.eventfd(0, flags) for _ in range(3)]
        self.calls = [None if polled else os.eventfd(0, flags) for _ in range(3)]
        ports = [self._port(n) for n in range(3)]
        self.host = Host.__new__(Host)
        self.host.driver = ScsiDriver(self.memory, ports[2:], control=ports[0], event=ports[1])

    def _port(self, index: int) -> QueuePort:
        kick = self.kicks[index]
        notify = eventfd_notifier(kick) if kick is not None else lambda: None
        return QueuePort(self.queues[index], notify, self.calls[index])

    def region(self, number: int) -> MemoryRegion:
        r = self.memory.regions[number]
        return MemoryRegion(r.guest_addr, r.size, USER_BASE + r.guest_addr, 0, r.fd)

    def table(self) -> None:
        self.frontend.set_mem_table([self.region(n) for n in range(len(self.memory.regions))])

    def num(self) -> None:
        for n in range(3):
            self.frontend.tell(Request.SET_VRING_NUM, VRING_STATE.build(VringState(n, 128)))

    def base(self) -> None:
        for n in range(3):
            self.frontend.tell(Request.SET_VRING_BASE, VRING_STATE.build(VringState(n, 0)))

    def addr(self) -> None:
        for n, queue in enumerate(self.queues):
            self.frontend.tell(Request.SET_VRING_ADDR, VRING_ADDR.build(IndexedVringAddr(n, user_addresses(queue))))

    def kick(self) -> None:
        for n, fd in enumerate(self.kicks):
            self.frontend.set_notifier(Request.SET_VRING_KICK, n, fd)

    def call(self) -> None:
        for n, fd in enumerate(self.calls):
            self.frontend.set_notifier(Request.SET_VRING_CALL, n, fd)

    def enable(self) -> None:
        for n in range(3):
            self.frontend.set_vring_enable(n, True)

    def disable(self) -> None:
        for n in range(3):
            self.frontend.set_vring_enable(n, False)

    def close(self) -> None:
        self.frontend.close()
        self.memory.close()
        for fd in [*self.kicks, *self.calls]:
            if fd is not None:
                os.close(fd)
        vars(self).clear()  # views of the memory keep a descriptor


def user_addresses(queue: SplitDriver) -> VringAddr:
    ring = queue.addresses
    return VringAddr(0, USER_BASE + ring.desc, USER_BASE + ring.used, USER_BASE + ring.avail)


@pytest.fixture
def steps(end: End) -> Iterator[Steps]:
    made = Steps(end)
    yield made
    made.close()


ORDERS = [
    "table num base addr kick call enable",
    "enable num base addr kick call table",
    "num base addr call kick enable table",
    "kick call enable table num base addr table",
    "call kick table num base addr enable",
    "call kick table enable num addr",
    "enable disable table num addr kick enable",
    "table table num base addr table kick table enable table",
    "addr table num kick enable",
    "table num addr kick enable kick kick call call",
    "enable kick num table addr",
    "table num base addr kick enable disable enable",
    # A ring is stopped until it is kicked: what it is may be said, and said again, after everything else.
    "table num addr kick call enable base",
    "table num base addr kick call enable addr num base",
    "kick enable table addr num base num addr base kick",
]


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_set_up_ends_in_a_ring_that_works(steps: Steps, order: str) -> None:
    for step in order.split():
        getattr(steps, step)()
    if "call" not in order:
        for port in steps.host.driver.requests:
            port.call_fd = None
    steps.host.ready()
    uses(steps.host)


@pytest.mark.parametrize("seed", range(12))
def test_shuffled_set_up(end: End, seed: int) -> None:
    rnd = random.Random(seed)
    order = ["table", "num", "addr", "kick", "call", "enable", *rnd.choices(["table", "call", "enable"], k=3)]
    rnd.shuffle(order)
    steps = Steps(end)
    try:
        for step in order:
            getattr(steps, step)()
        steps.host.ready()
        uses(steps.host)
    finally:
        steps.close()


def test_a_disabled_ring_takes_nothing_until_it_is_enabled(steps: Steps) -> None:
    for step in ["table", "num", "base", "addr", "kick", "call"]:
        getattr(steps, step)()
    tag = steps.host.send(inquiry(36), in_len=36)
    time.sleep(0.1)
    assert not steps.host.driver.collect()
    steps.enable()
    assert len(good(steps.host.wait(tag))) == 36
    steps.disable()
    tag = steps.host.send(inquiry(36), in_len=36)
    time.sleep(0.1)
    assert not steps.host.driver.collect()
    steps.enable()
    good(steps.host.wait(tag))


def test_the_same_table_again_under_load(live: Live, end: End) -> None:
    with end.connect() as host:
        host.ready()
        for n in range(40):
            tags = [host.send(write10(m, 1), bytes([n + 1]) * 512, queue=m % 4) for m in range(32)]
            host.initiator.frontend.set_mem_table(host.initiator.regions())
            for tag in tags:
                good(host.wait(tag))
        assert host.ok(read10(0, 32), in_len=32 * 512) == bytes([40]) * 512 * 32


def test_polled_rings_have_no_descriptors_at_all(end: End) -> None:
    with end.connect(polled=True) as host:
        host.ready()
        uses(host)
        time.sleep(0.3)  # the worker sleeps
        uses(host)


def test_a_call_descriptor_that_nobody_reads_stops_nothing(end: End) -> None:
    with end.connect() as host:
        host.ready()
        for port in host.driver.requests:
            port.call_fd = None
        for n in range(300):
            host.ok(read10(n, 1), in_len=512, queue=n % 4)


def test_a_full_call_descriptor_stops_nothing(end: End) -> None:
    with end.connect() as host:
        host.ready()
        for vring in host.initiator.vrings:
            assert vring.call_fd is not None
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(vring.call_fd)
            os.eventfd_write(vring.call_fd, 0xFFFFFFFFFFFFFFFE)
        for port in host.driver.requests:
            port.call_fd = None
        uses(host)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_ring(end: End, kind: str) -> None:
    features = KINDS[kind]
    with end.connect(features=features) as host:
        host.ready()
        uses(host, 16)
        tags = [host.send(read10(n, 4), in_len=2048, queue=n % 4, in_cuts=(108, 500, 1500)) for n in range(60)]
        for tag in tags:
            good(host.wait(tag))
        names = end.queue(2).features
        assert ("EVENT_IDX" in names) == bool(host.initiator.features & Feature.EVENT_IDX)


def restart(host: Host, features: int | None, size: int = 128) -> None:
    """Stops every ring, and starts anew with other features on the same connection."""
    initiator = host.initiator
    initiator.stop()
    initiator.features = initiator.frontend.get_features() if features is None else features
    initiator.frontend.set_features(initiator.features | Feature.VHOST_USER_PROTOCOL_FEATURES)
    host.driver.reset()
    initiator.vrings.clear()
    initiator.queues[:] = [initiator._new_queue(size) for _ in initiator.queues]
    initiator.start()
    ports = [initiator._port(index) for index in range(len(initiator.queues))]
    host.driver.control, host.driver.event, host.driver.requests = ports[0], ports[1], ports[2:]


def test_start_stop_start_with_other_features_in_one_connection(end: End) -> None:
    with end.connect() as host:
        host.ready()
        for turn, kind in enumerate([*KINDS, *KINDS]):
            restart(host, KINDS[kind], size=32 << turn % 3)
            uses(host)


def test_reset_device_keeps_call_descriptors_and_forgets_the_rest(live: Live, end: End) -> None:
    with end.connect() as host:
        host.ready()
        uses(host)
        host.initiator.frontend.reset_device()
        assert not any(queue.started or queue.enabled for queue in live.run(end.device.queue_status))
        host.driver.reset()
        frontend = host.initiator.frontend
        for index, queue in enumerate(host.initiator.queues):
            vring = host.initiator.vrings[index]
            frontend.tell(Request.SET_VRING_NUM, VRING_STATE.build(VringState(index, 128)))
            frontend.tell(Request.SET_VRING_ADDR, VRING_ADDR.build(IndexedVringAddr(index, user_addresses(queue))))
            frontend.set_notifier(Request.SET_VRING_KICK, index, vring.kick_fd)
            frontend.set_vring_enable(index, True)
        host.ready()
        uses(host)


# ---- GET_VRING_BASE ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory:16M", "delay(read=3ms,write=3ms):memory:16M"], ids=["memory", "delay"])
def test_stop_and_restart_under_load_lose_nothing(live: Live, store: str) -> None:
    end = live.end((0, 0, live.unit(store)))
    with end.connect(queue_size=64) as host:
        host.ready()
        sent: set[int] = set()
        seen: set[int] = set()
        for turn in range(12):
            for n in range(40):
                sent.add(host.send(write10(n, 1), bytes([turn + 1]) * 512, queue=n % 4))
            bases = host.initiator.stop()
            # What the device has taken by now it has answered; the rest waits in the ring.
            for index, queue in enumerate(host.initiator.queues):
                used = queue._used_idx.load()
                assert bases[index] == used, f"queue {index}: base {bases[index]}, used {used}"
            host.initiator.vrings.clear()
            host.initiator.start(bases)
            for index, port in enumerate(host.driver.requests):
                fresh = host.initiator._port(index + 2)
                port.notify, port.call_fd = fresh.notify, fresh.call_fd
                port.notify()
            while host.driver._pending:
                seen |= {host.wait(next(iter(host.driver._pending))).tag}
                seen |= {result.tag for result in host.driver.collect()}
            assert seen == sent
        assert host.ok(read10(0, 40), in_len=40 * 512) == bytes([12]) * 512 * 40


def test_the_base_of_a_ring_that_never_ran_is_what_was_set(end: End) -> None:
    with Frontend(end.path, 30) as frontend:
        frontend.negotiate()
        frontend.tell(Request.SET_VRING_BASE, VRING_STATE.build(VringState(2, 77)))
        assert frontend.stop_vring(2) == 77
        assert frontend.stop_vring(2) == 77


def test_a_base_that_comes_last_finds_nothing_taken_before_it(live: Live, end: End, steps: Steps) -> None:
    """The ring is in the middle of its life: from any other base old requests would be taken anew."""
    for step in ["table", "num", "base", "addr", "kick", "call", "enable"]:
        getattr(steps, step)()
    steps.host.ready()
    uses(steps.host, 20)
    bases = [steps.frontend.stop_vring(n) for n in range(3)]
    assert bases[2] >= 40
    steps.frontend.reset_device()
    taken = end.queue(2).requests
    for step in ["num", "addr", "kick", "call", "enable"]:
        getattr(steps, step)()
    time.sleep(0.05)  # for a device that does not wait
    assert end.queue(2).requests == taken
    for n, base in enumerate(bases):
        steps.frontend.tell(Request.SET_VRING_BASE, VRING_STATE.build(VringState(n, base)))
    good(steps.host.command(inquiry(36), in_len=36))
    assert (end.queue(2).requests, end.queue(2).error) == (taken + 1, None)
    steps.host.ready()
    uses(steps.host)


def test_a_ring_that_waits_for_its_kick_takes_what_stood_there_before(steps: Steps) -> None:
    for step in ["table", "num", "addr", "call"]:
        getattr(steps, step)()
    tag = steps.host.send(inquiry(36), in_len=36)  # the kick is in the eventfd before the device has it
    for step in ["kick", "enable"]:
        getattr(steps, step)()
    assert len(good(steps.host.wait(tag))) == 36
    steps.host.ready()
    uses(steps.host)


def test_a_ring_that_waits_for_its_kick_runs_when_it_is_polled_instead(steps: Steps) -> None:
    for step in ["table", "num", "addr", "call", "kick", "enable"]:
        getattr(steps, step)()
    for n in range(3):
        steps.frontend.set_notifier(Request.SET_VRING_KICK, n, None)
    for port in steps.host.driver.requests:
        port.notify = lambda: None
    assert len(good(steps.host.command(inquiry(36), in_len=36))) == 36


CHANGES = {
    "num": lambda frontend, queue: frontend.tell(Request.SET_VRING_NUM, VRING_STATE.build(VringState(2, 64))),
    "base": lambda frontend, queue: frontend.tell(Request.SET_VRING_BASE, VRING_STATE.build(VringState(2, 0))),
    "addr": lambda frontend, queue: frontend.tell(
        Request.SET_VRING_ADDR, VRING_ADDR.build(IndexedVringAddr(2, user_addresses(queue)))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_ring_that_was_kicked_cannot_be_changed(end: End, change: str) -> None:
    with end.connect() as host:
        host.ready()
        uses(host)
        with pytest.raises(RequestRefused):
            CHANGES[change](host.initiator.frontend, host.initiator.queues[2])
        uses(host)


# ---- memory --------------------------------------------------------------------------------------------------------


def test_memory_comes_and_goes_under_load(live: Live) -> None:
    end = live.end((0, 0, live.unit("delay(read=700ms):memory:16M")))
    steps = Steps(end, regions=2)
    try:
        frontend = steps.frontend
        frontend.add_mem_region(steps.region(0))
        for step in ["num", "base", "addr", "kick", "call", "enable"]:
            getattr(steps, step)()
        host = steps.host
        host.ready()
        second = steps.memory.regions[1]
        for n in range(5):
            frontend.add_mem_region(steps.region(1))
            buffer = second.view[: 512 * 8]
            buffer[:] = bytes(len(buffer))
            tags = [host.send(read10(m, 1), in_len=512) for m in range(16)]
            tag = into_region(host, read10(n, 8), second.guest_addr, 4096)
            live.wait_for(lambda: live.in_flight() >= 17, "the reads")
            frontend.remove_mem_region(steps.region(1))
            # REM_MEM_REG answers only after what used the region has ended.
            done = {result.tag for result in host.driver.collect()}
            assert tag in done
            for left in [each for each in tags if each not in done]:
                good(host.wait(left))
    finally:
        steps.close()


def into_region(host: Host, cdb: bytes, address: int, length: int) -> int:
    """A read whose data buffer stands at a guest address of our choice."""
    driver = host.driver
    tag = driver._new_tag()
    header = RequestHeader(LunAddress(0, 0).encode(), tag, cdb, 0).build(driver.cdb_size)
    out = driver._allocate([len(header)])
    driver._scatter(out, header)
    response = driver._allocate([response_header_bytes(driver.sense_size)])
    pending = _Pending(tag, 0, out, response, 0)
    driver.requests[0].queue.add(out, [*response, (address, length)], token=pending)
    driver._pending[tag] = pending
    driver.requests[0].publish()
    return tag


def test_a_buffer_in_memory_that_went_breaks_that_queue(live: Live) -> None:
    end = live.end((0, 0, live.unit()))
    steps = Steps(end, regions=2)
    try:
        steps.table()
        for step in ["num", "base", "addr", "kick", "call", "enable"]:
            getattr(steps, step)()
        steps.host.ready()
        steps.frontend.remove_mem_region(steps.region(1))
        into_region(steps.host, read10(0, 1), steps.memory.regions[1].guest_addr, 512)
        live.wait_for(lambda: end.queue(2).broken, "the broken queue")
        assert end.queue(2).error == "UNMAPPED"
    finally:
        steps.close()


def test_a_ring_whose_memory_goes_rests_until_it_comes_back(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vhost_scsi.data")
    end = live.end((0, 0, live.unit()))
    steps = Steps(end)
    try:
        for step in ["table", "num", "base", "addr", "kick", "call", "enable"]:
            getattr(steps, step)()
        steps.host.ready()
        uses(steps.host, 4)
        steps.frontend.remove_mem_region(steps.region(0))
        assert not end.queue(2).started
        live.wait_for(lambda: "rests" in caplog.text, "the line in the log")
        assert "the driver broke" not in caplog.text, "no driver had a part in it"
        steps.frontend.add_mem_region(steps.region(0))
        live.wait_for(lambda: end.queue(2).started, "the ring's return")
        uses(steps.host, 4)
    finally:
        steps.close()


def test_a_ring_is_walked_beside_the_loop_with_descriptors_of_its_own(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = live.end((0, 0, live.unit()))
    with end.connect() as host:
        host.ready()
        before = open_fds()
        walks: list[tuple[int, set[int]]] = []
        real = ring_reader.look

        def noted(memory: FileMemory, *given: Any, **named: Any) -> Any:
            walks.append((threading.get_ident(), {region.fd for region in memory._map.regions}))
            if len(walks) == 2:
                raise ZeroDivisionError("a bug")
            return real(memory, *given, **named)

        monkeypatch.setattr(ring_reader, "look", noted)
        snapshot = live.call(end.device.walk(2))
        assert snapshot is not None
        assert not snapshot.violations
        with pytest.raises(ZeroDivisionError):
            live.call(end.device.walk(2))
        assert live.run(threading.get_ident) not in {thread for thread, _ in walks}
        assert not {fd for _, fds in walks for fd in fds} & before.keys()
        assert open_fds() == before

        def no_more(fd: int) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch:
            patch.setattr(ring_reader.os, "dup", no_more)
            with pytest.raises(ConfigError, match="Too many open files"):
                live.call(end.device.walk(2))
    live.wait_for(lambda: not end.queue(2).started, "the end of the ring")
    assert live.call(end.device.walk(2)) is None


def test_509_regions(live: Live) -> None:
    end = live.end((0, 0, live.unit()))
    memory = GuestMemory([Region.create(1 << 20, 0x100000 * (n + 1)) for n in range(509)])
    with Frontend(end.path, 30) as frontend:
        frontend.negotiate()
        regions = [MemoryRegion(r.guest_addr, r.size, USER_BASE + r.guest_addr, 0, r.fd) for r in memory.regions]
        for region in regions:
            frontend.add_mem_region(region)
        with pytest.raises(RequestRefused):
            frontend.add_mem_region(regions[0])
        for region in regions[::2]:
            frontend.remove_mem_region(region)
    memory.close()


# ---- connections ---------------------------------------------------------------------------------------------------


def test_a_front_end_that_goes_with_requests_in_flight(live: Live) -> None:
    end = live.end((0, 0, live.unit("delay(read=20s):memory:1M")))
    for _ in range(3):
        host = end.connect()
        host.ready()
        for n in range(20):
            host.send(read10(n, 1), in_len=512, queue=n % 4)
        live.wait_for(lambda: live.in_flight() == 20, "the reads")
        began = time.monotonic()
        host.close()
        live.wait_until_free(end)
        assert time.monotonic() - began < 15, "nobody waits for the reads"
        assert live.in_flight() == 0


def test_the_next_front_end_waits_and_is_served(live: Live, end: End) -> None:
    with end.connect() as host:
        host.ready()
        uses(host)
        second = Frontend(end.path, 30)
    second.negotiate()
    second.close()
    with end.connect() as host:
        host.ready()
        uses(host)


def connections(live: Live, end: End, number: int) -> None:
    """Each with memory, rings and, for one in ten, a command; some go without a word in the middle of things."""
    for n in range(number):
        if n % 10 == 0:
            with end.connect(memory_size=1 << 20, queue_size=16) as host:
                host.command(TEST_UNIT_READY)
                if n % 20 == 0:
                    host.send(inquiry(36), in_len=36)
        else:
            with Frontend(end.path, 30) as frontend:
                if n % 3:
                    frontend.negotiate()
                if n % 5 == 1:
                    frontend.set_backend_channel().close()


@pytest.mark.parametrize("number", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_connections_leave_nothing_behind(live: Live, end: End, number: int) -> None:
    connections(live, end, 60)
    live.wait_until_free(end)
    gc.collect()
    fds, kib, tasks = len(open_fds()), resident_kib(), len(live.run(asyncio.all_tasks))
    connections(live, end, number)
    live.wait_until_free(end)
    with end.connect() as host:
        host.ready()
    live.wait_until_free(end)
    del host
    gc.collect()
    live.wait_for(lambda: len(open_fds()) <= fds + 2, "the descriptors of the last connections to be closed")
    assert len(live.run(asyncio.all_tasks)) <= tasks + 1
    assert resident_kib() - kib < 4096 + number


@pytest.mark.parametrize("turns", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_requests_leave_nothing_behind(live: Live, end: End, turns: int) -> None:
    """52 requests a turn, two of them answered by Python. Millions of what C answers: tests/bench/test_ring.py."""
    with end.connect() as host:
        host.ready()

        def turn(number: int) -> None:
            for _ in range(number):
                tags = [host.send(read10(m, 1), in_len=512, publish=False) for m in range(50)]
                tags += [host.send(inquiry(36), in_len=36, publish=False), host.send(bytes([0xFF] * 6), publish=False)]
                host.driver.publish()
                for result in host.drain(tags):
                    assert result.response == Response.OK

        turn(40)
        kib, fds = resident_kib(), len(open_fds())
        turn(turns)
        assert resident_kib() - kib < 4096
        assert len(open_fds()) == fds
