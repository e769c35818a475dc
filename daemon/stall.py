# SPDX-License-Identifier: Apache-2.0
"""Notices requests that do not get on, and writes down all that is known of their queue while it still is.

It is armed by the first request that a queue takes, looks now and then while there is something in the queue, and rests
when there is nothing any more: a daemon without work is never woken. A queue that has run dry is looked at twice more,
because a kick is lost when the device goes to sleep, if ever. What it cannot see is a driver that posts much later and
never kicks; `queue check` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi._core import lib
from vhost_scsi.errors import VhostScsiError
from vhost_scsi.scsi.decode import decode
from vhost_scsi.vhost_user.ring_reader import read_ring
from vhost_scsi.virtqueue.standing import standing

if TYPE_CHECKING:
    from vhost_scsi.daemon.inspection import Inspection
    from vhost_scsi.daemon.service import Serving
    from vhost_scsi.dataplane import Core, TaskSnapshot

_LOG: Final = logging.getLogger("vhost_scsi.data")
LOOKS: Final = 4
"""looks in the time after which a request counts as stalled"""
EVENT_QUEUE: Final = 1
PATTERN: Final = "stall-*.json"


@dataclass(slots=True)
class Watched:
    """A queue that has something to do. `told`: this stall is written down; `quiet`: looks that found nothing in it."""

    serving: Serving
    index: int
    progress: tuple[int, int, int]
    since: float
    told: bool = False
    quiet: int = 0


class StallWatchdog:
    """`limit_s`: how old a request may be. At most `max_dumps` files are kept in `directory`; the oldest go."""

    def __init__(
        self,
        core: Core,
        inspection: Inspection,
        ports: Iterable[Serving],
        *,
        limit_s: float,
        directory: Path,
        max_dumps: int,
    ) -> None:
        self._core = core
        self._inspection = inspection
        self._ports = list(ports)
        self._limit = limit_s
        self.directory: Final = directory
        self._max_dumps = max_dumps
        self._watched: dict[tuple[str, int], Watched] = {}
        self._task: asyncio.Task[None] | None = None
        self.dumps = 0
        """written so far"""

    @property
    def armed(self) -> bool:
        return self._task is not None

    def start(self) -> None:
        for serving in self._ports:
            self._core.listen(lib.VS_UP_BUSY, serving.port.cookie, partial(self._busy, serving))
            for index in range(serving.device.num_queues):
                lib.vs_queue_tell_busy(serving.device.handle, index)

    async def close(self) -> None:
        """Before the devices go. What they still have to say is no news to anybody."""
        for serving in self._ports:
            self._core.listen(lib.VS_UP_BUSY, serving.port.cookie, lambda _: None)
        self._watched.clear()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _busy(self, serving: Serving, up: Any) -> None:
        index = int(up.aux)
        watched = Watched(serving, index, self._progress(serving, index), time.monotonic())
        self._watched.setdefault((serving.name, index), watched)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    @staticmethod
    def _progress(serving: Serving, index: int) -> tuple[int, int, int]:
        status = serving.device.queue(index)
        return status.requests, status.last_avail, status.used_idx

    async def _run(self) -> None:
        while self._watched:
            await asyncio.sleep(self._limit / LOOKS)
            try:
                await self._look()
            except (OSError, VhostScsiError) as error:
                _LOG.warning("stall watchdog: %s", error)
        self._task = None

    async def _look(self) -> None:
        late: list[TaskSnapshot] = []
        if any(each.serving.device.queue(each.index).in_flight for each in self._watched.values()):
            late = await self._core.look_tasks(int(self._limit * 1e9))
        for key, watched in list(self._watched.items()):
            ours = [task for task in late if (task.port, task.queue) == (watched.serving.port.cookie, watched.index)]
            if await self._rests(watched, ours):
                self._watched.pop(key, None)

    async def _rests(self, watched: Watched, late: list[TaskSnapshot]) -> bool:
        """Writes a dump if it has to; True: there is nothing in the queue."""
        serving, index = watched.serving, watched.index
        status = serving.device.queue(index)
        if not status.started:
            lib.vs_queue_tell_busy(serving.device.handle, index)
            return True
        now = time.monotonic()
        progress = self._progress(serving, index)
        if progress != watched.progress:
            watched.progress, watched.since, watched.quiet = progress, now, 0
            watched.told = watched.told and bool(late)
        still = now - watched.since
        lying = await self._posted(serving, index) if not status.in_flight or still >= self._limit else 0
        if not watched.told:
            why = self._late_words(late) or (self._lying_words(lying, still) if still >= self._limit else None)
            if why is not None:
                watched.told = True
                await self._dump(serving, index, why)
        if status.in_flight or lying:
            return False
        # Asked for before the look that finds nothing: what comes from here on is told, or found in the next one.
        lib.vs_queue_tell_busy(serving.device.handle, index)
        watched.quiet += 1
        return watched.quiet > 2 or (watched.quiet > 1 and still >= self._limit)

    @staticmethod
    async def _posted(serving: Serving, index: int) -> int:
        if index == EVENT_QUEUE:
            return 0
        ring = await read_ring(serving.device, index)
        if ring is None:
            return 0
        stands = standing(ring.snapshot, last_avail=serving.device.queue(index).last_avail, event_idx=ring.event_idx)
        return (stands.posted or 0) if stands is not None else 0

    def _late_words(self, late: list[TaskSnapshot]) -> str | None:
        if not late:
            return None
        oldest = max(late, key=lambda task: task.age_ns)
        return (
            f"{decode(oldest.cdb)[:120]} at {oldest.target}:{oldest.lun} is {oldest.age_ns / 1e9:.1f} s old, "
            f"in {oldest.layer} for {oldest.layer_ns / 1e9:.1f} s"
        )

    @staticmethod
    def _lying_words(lying: int, still: float) -> str | None:
        return f"{lying} posted and not taken for {still:.1f} s" if lying else None

    # ---- the file --------------------------------------------------------------------------------------------------

    async def _dump(self, serving: Serving, index: int, why: str) -> None:
        found = await self._inspection.dumped(serving, index, f"stalled: {why}")
        path = await asyncio.to_thread(self._write, serving.name, index, found)
        self.dumps += 1
        _LOG.warning("port %s, queue %d: stalled: %s; dump in %s", serving.name, index, why, path)

    def _write(self, port: str, index: int, found: dict[str, Any]) -> Path:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        there = sorted(self.directory.glob(PATTERN), key=lambda path: path.stat().st_mtime_ns)
        for path in there[: max(0, len(there) - self._max_dumps + 1)]:
            path.unlink(missing_ok=True)
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%f")
        path = self.directory / f"stall-{stamp}-{port}-{index}.json"
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps({"schema_version": 1, **found}, indent=1) + "\n")
        os.replace(draft, path)
        return path
