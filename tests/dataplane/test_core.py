# SPDX-License-Identifier: Apache-2.0
"""The typed core on its loop: options, messages, fences and opens, with real logical units and rings below."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live import TEST_UNIT_READY, Live, good, inquiry, read10, write10
from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core, CoreOptions
from vhost_scsi.errors import VhostScsiError
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.virtqueue.virtio_scsi import Response


@pytest.mark.parametrize("options", [CoreOptions(workers=0), CoreOptions(workers=65)], ids=["none", "too many"])
def test_options_that_make_no_sense_are_refused_in_one_line(options: CoreOptions) -> None:
    with pytest.raises(VhostScsiError) as caught:
        Core(options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ["auto", "epoll"])
@pytest.mark.parametrize("poll", ["adaptive", "always", "never"])
def test_a_core_starts_and_ends_in_every_mode(engine: str, poll: str) -> None:
    async def life() -> None:
        core = Core(CoreOptions(workers=2, engine=engine, poll=poll))  # type: ignore[arg-type]
        await core.start()
        assert core.worker_stats(0).thread_id != core.worker_stats(1).thread_id
        assert await core.tasks() == []
        await core.epoch_reached(lib.vs_epoch_bump(core.handle))
        await core.close()

    asyncio.run(life())


def test_an_epoch_is_reached_by_workers_that_sleep(live: Live) -> None:
    time.sleep(0.05)

    async def epochs() -> None:
        for _ in range(200):
            await asyncio.wait_for(live.core.epoch_reached(lib.vs_epoch_bump(live.core.handle)), 5)

    live.call(epochs())


def test_messages_of_many_coroutines_find_their_own(live: Live) -> None:
    async def many() -> list[int]:
        snapshots = await asyncio.gather(*(live.core.tasks() for _ in range(100)))
        return [len(each) for each in snapshots]

    assert live.call(many()) == [0] * 100


def test_a_message_that_is_refused_raises_and_leaves_nothing(live: Live) -> None:
    buffer = ffi.new("struct vs_task_info[]", 1)

    async def ask() -> None:
        await live.core.message(lambda cookie: lib.vs_worker_snapshot(live.core.handle, 99, buffer, 1, cookie))

    with pytest.raises(OSError, match="refused a message"):
        live.call(ask())
    assert live.run(lambda: dict(live.core._waiting)) == {}


def test_a_coroutine_that_gave_up_does_not_disturb_the_reply(live: Live) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(live.core.tasks())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await live.core.tasks() == []

    live.call(cancelled())
    live.wait_for(lambda: not live.run(lambda: dict(live.core._waiting)), "the late reply")


def test_a_fence_waits_for_what_is_in_flight_and_holds_what_comes(live: Live) -> None:
    unit = live.unit("delay(read=700ms):memory:1M")
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        early = host.send(read10(0, 1), in_len=512)
        live.wait_for(lambda: live.in_flight() == 1, "the read")
        began = time.monotonic()

        async def fence() -> None:
            async with unit.logical_unit.held():
                assert unit.gate.read() & GateBit.HOLD
                assert not lib.vs_pins_busy(lib.vs_lu_pins(unit.handle))
                await asyncio.sleep(0.15)

        future = asyncio.run_coroutine_threadsafe(fence(), live.thread.loop)
        live.wait_for(lambda: live.run(unit.gate.read) & GateBit.HOLD != 0, "the hold")
        late = host.send(read10(1, 1), in_len=512)
        good(host.wait(early))
        good(host.wait(late))
        future.result(5)
        # early's rest, the hold, and then late's own time
        assert time.monotonic() - began > 0.3
        live.wait_for(lambda: live.run(unit.gate.read) == 0, "an open gate")


def test_a_gate_opens_only_after_what_saw_it_has_been_handed_back(live: Live) -> None:
    """Writes that the gate sent to Python run before writes that came after it opened."""
    unit = live.unit()
    with live.end((0, 0, unit), request_queues=1).connect() as host:
        host.ready()
        for turn in range(60):
            live.run(lambda: unit.gate.close(GateBit.TRACE))
            tags = [host.send(write10(0, 1), bytes([n]) * 512) for n in range(20)]
            live.run(lambda: unit.gate.open(GateBit.TRACE))
            tags += [host.send(write10(0, 1), bytes([n]) * 512) for n in range(20, 40)]
            for tag in tags:
                good(host.wait(tag))
            assert host.ok(read10(0, 1), in_len=512) == bytes([39]) * 512, f"turn {turn}"


def test_open_after_close_does_not_undo_a_later_close(live: Live) -> None:
    unit = live.unit()

    def both() -> None:
        unit.gate.close(GateBit.TRACE)
        unit.gate.open(GateBit.TRACE)
        unit.gate.close(GateBit.TRACE)

    live.run(both)
    assert live.run(unit.gate.read) == GateBit.TRACE
    live.run(lambda: unit.gate.open(GateBit.TRACE))
    live.wait_for(lambda: live.run(unit.gate.read) == 0, "an open gate")


def test_fences_of_two_coroutines_on_one_gate(live: Live) -> None:
    unit = live.unit("delay(read=700ms):memory:1M")
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        tag = host.send(read10(0, 1), in_len=512)
        live.wait_for(lambda: live.in_flight() == 1, "the read")

        async def two() -> None:
            await asyncio.gather(unit.gate.fence(GateBit.TRACE), unit.gate.fence(GateBit.FAULT))
            assert not lib.vs_pins_busy(lib.vs_lu_pins(unit.handle))

        live.call(two())
        live.run(lambda: unit.gate.open(GateBit.TRACE | GateBit.FAULT))
        good(host.wait(tag))
        host.ok(read10(0, 1), in_len=512)


def test_a_fence_waits_until_every_worker_has_seen_it(live: Live) -> None:
    """Nothing is in flight. A worker that has not seen the closed gate may be about to start something."""
    unit = live.unit()

    async def fences() -> None:
        for _ in range(50):
            before = lib.vs_epoch_bump(live.core.handle)
            await unit.gate.fence(GateBit.TRACE)
            assert lib.vs_epoch_reached(live.core.handle) > before
            unit.gate.open(GateBit.TRACE)
            await asyncio.sleep(0.001)  # the workers fall asleep

    live.call(fences())


def test_a_slow_drain_is_named_in_the_log(
    live: Live, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhost_scsi.dataplane.core.SLOW_DRAIN", 0.05)
    caplog.set_level(logging.WARNING, "vhost_scsi.data")
    unit = live.unit("delay(read=700ms):memory:1M")
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        tag = host.send(read10(0, 1), in_len=512)
        live.wait_for(lambda: live.in_flight() == 1, "the read")
        live.call(unit.gate.fence(GateBit.TRACE))
        live.run(lambda: unit.gate.open(GateBit.TRACE))
        good(host.wait(tag))
    assert "still waiting for requests in flight to end" in caplog.text


def test_a_snapshot_names_a_task_and_where_it_is(live: Live) -> None:
    unit = live.unit("delay(read=700ms):memory:1M")
    end = live.end((0, 0, unit))
    with end.connect() as host:
        host.ready()
        tag = host.send(read10(3, 2), in_len=1024, queue=1)
        live.wait_for(lambda: live.in_flight() == 1, "the read")
        (task,) = live.call(live.core.tasks())
        assert (task.port, task.queue, task.tag, task.target, task.lun) == (end.port.cookie, 3, tag, 0, 0)
        assert (task.in_length, task.out_length, task.layer, task.aborted) == (1024, 0, "store", False)
        assert task.cdb[:10] == read10(3, 2)
        assert 0 <= task.layer_ns <= task.age_ns < 60e9
        good(host.wait(tag))


def test_a_decision_that_raises_ends_that_task_only(make_live: Callable[[str, int], Live]) -> None:
    live = make_live("auto", 1)
    with live.end((0, 0, live.unit())).connect() as host:
        host.ready()
        decide = live.core._decide
        live.run(lambda: live.core.on_task(lambda task: 1 // 0))  # type: ignore[arg-type, return-value]
        assert host.command(inquiry(36), in_len=36).response == Response.TARGET_FAILURE
        assert decide is not None
        live.run(lambda: live.core.on_task(decide))
        host.ok(inquiry(36), in_len=36)
    (line,) = live.errors.lines
    assert "a task failed in Python" in line
    live.errors.lines.clear()


def test_a_core_without_a_target_answers_too(tmp_path: Path, make_live: Callable[[str, int], Live]) -> None:
    live = make_live("epoll", 1)
    with live.end((0, 0, live.unit())).connect() as host:
        decide = live.core._decide
        live.core._decide = None
        assert host.command(TEST_UNIT_READY).response == Response.TARGET_FAILURE
        live.core._decide = decide
        host.ready()


def test_caught_up_waits_for_the_backlog_of_every_port(live: Live) -> None:
    unit = live.unit()
    end = live.end((0, 0, unit))
    with end.connect(queue_size=512) as host:
        host.ready()
        tags = [host.send(inquiry(36), in_len=36, publish=False, queue=n % 4) for n in range(400)]
        host.driver.publish()

        async def look() -> int:
            await live.core.caught_up()
            return sum(len(tasks) for tasks in live.core._backlog.values())

        assert live.call(look()) <= 400
        for result in host.drain(tags):
            good(result)
        assert live.run(lambda: dict(live.core._backlog)) == {}
