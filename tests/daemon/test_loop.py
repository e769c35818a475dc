# SPDX-License-Identifier: Apache-2.0
"""The loop notices that it kept everybody waiting, and costs nothing while nobody does."""

from __future__ import annotations

import asyncio
import logging
import resource
import time

import pytest

from vhost_scsi.daemon import loop
from vhost_scsi.daemon.loop import StallWatch


def stalls_of(*blocks: float) -> StallWatch:
    kept: list[StallWatch] = []

    async def main(watch: StallWatch) -> None:
        kept.append(watch)
        watch.on = True
        for seconds in blocks:
            await asyncio.sleep(0)
            time.sleep(seconds)
        await asyncio.sleep(0.001)

    loop.run(main)
    return kept[0]


def test_a_stall_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("vhost_scsi").propagate = True
    watch = stalls_of(0.12)
    assert watch.stalls == 1
    assert 0.1 < watch.longest < 5
    assert "the control loop stalled for" in caplog.text


def test_many_stalls_are_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("vhost_scsi").propagate = True
    watch = stalls_of(0.08, 0.08, 0.08)
    assert watch.stalls == 3
    assert len(caplog.records) == 1


def test_short_work_is_no_stall() -> None:
    watch = StallWatch(stall=5.0)
    watch.on = True
    for _ in range(3):
        watch.select(0)
    assert watch.stalls == 0
    watch.close()


def test_nobody_waits_for_a_loop_that_serves_nobody_yet() -> None:
    watch = StallWatch()
    watch.select(0)
    time.sleep(0.1)
    watch.select(0)
    assert watch.stalls == 0
    watch.close()


def test_waiting_is_no_stall() -> None:
    watch = StallWatch()
    watch.on = True
    watch.select(0)
    watch.select(0.2)
    assert watch.longest < 0.15
    watch.close()


def test_an_idle_loop_sleeps() -> None:
    async def main(watch: StallWatch) -> tuple[int, int]:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        await asyncio.sleep(1)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before, watch.stalls

    switches, _ = loop.run(main)
    assert switches <= 5


def test_the_result_and_the_exception_come_through() -> None:
    async def main(watch: StallWatch) -> int:
        return 7

    async def fails(watch: StallWatch) -> None:
        raise KeyError("x")

    assert loop.run(main) == 7
    with pytest.raises(KeyError):
        loop.run(fails)
