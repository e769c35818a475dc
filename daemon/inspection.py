# SPDX-License-Identifier: Apache-2.0
"""The management methods that look into queues and requests: `queue.*` and `request.*`.

Nothing here stops or wakes anybody: what the data plane knows is read beside it, the rings from the guest's memory by
descriptors of our own, and workers are asked in a way that lets them sleep on. What is found is put into words and
numbers in `queues.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi.daemon import queue_check
from vhost_scsi.daemon.config import nearest
from vhost_scsi.daemon.dump import make_dump
from vhost_scsi.daemon.queues import (
    NO_UNITS,
    Units,
    device_tasks,
    header_row,
    queue_row,
    ring_view,
    segment_rows,
    task_row,
)
from vhost_scsi.daemon.rpc import REFUSED, Method, Param, RpcError
from vhost_scsi.slices import sliced
from vhost_scsi.vhost_user.ring_reader import RingLook, read_ring
from vhost_scsi.virtqueue.chains import HeadState

if TYPE_CHECKING:
    from vhost_scsi.daemon.service import Service, Serving
    from vhost_scsi.dataplane import TaskSnapshot
    from vhost_scsi.vhost_user.device import QueueStatus

SHOW_ATTEMPTS: Final = 3
"""looks at a ring that moves, before it is shown as it moved"""
LIST_SECONDS: Final = 2.0
"""that a list of requests may spend on rings; hostile ones can be long"""
HURRIED: Final = 8
"""requests taken while a ring was read: it will not hold still the next time either"""
MAX_ROWS: Final = 4096
MAX_SETTLE_MS: Final = 10_000
_PORT: Final = Param("port", "string", "name of the port; may be left out where there is one")
_INDEX: Final = Param("index", "integer", "0 control, 1 event, from 2 on requests", required=True)


def rows(service: Service) -> tuple[Method, ...]:
    """The rows of the method table."""
    calls = Inspection(service)
    return (
        Method("queue.list", "every virtqueue of every port", calls.queue_list),
        Method(
            "queue.show", "one virtqueue: indices, flags, ring, and the requests in it", calls.queue_show,
            (_INDEX, _PORT, Param("tables", "boolean", "with every descriptor of every chain")),
        ),
        Method("queue.dump", "all that is known of one virtqueue, for a file", calls.queue_dump, (_INDEX, _PORT)),
        Method("queue.check", "what is wrong with a virtqueue, or with all of them", calls.queue_check, (
            Param("index", "integer", "the queue; all queues of all ports without it"), _PORT,
            Param("settle_ms", "integer", "how long a notification must have been missing"),
        )),
        Method("request.list", "requests on all ports, from the ring to the completion", calls.request_list),
        Method("request.show", "one request with its data segments", calls.request_show, (
            _INDEX, _PORT, Param("head", "integer", "as request.list tells it", required=True),
        )),
        Method("task.list", "requests in flight on all ports", calls.task_list),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class QueueLook:
    """A queue at one moment. `settled`: the heads that were the device's all the time while the ring was read, None if
    nothing moved."""

    status: QueueStatus
    tasks: Sequence[TaskSnapshot]
    ring: RingLook | None
    settled: set[int] | None


class Inspection:
    def __init__(self, service: Service) -> None:
        self._service = service

    # ---- queues ----------------------------------------------------------------------------------------------------

    async def queue_list(self) -> dict[str, Any]:
        found = []
        async for serving, index in sliced(self._all_queues()):
            found.append(queue_row(serving.name, serving.device, index))
        return {"queues": found, "taken_at": time.time()}

    def _all_queues(self) -> list[tuple[Serving, int]]:
        return [
            (serving, index)
            for serving in self._service.ports.values()
            for index in range(serving.device.num_queues)
        ]  # fmt: skip

    async def queue_show(self, index: int, port: str | None = None, tables: bool = False) -> dict[str, Any]:
        return await self.shown(self.serving(port), index, tables=tables)

    async def shown(self, serving: Serving, index: int, *, tables: bool) -> dict[str, Any]:
        """All of one queue, as values."""
        look = await self.look(serving, index)
        row = queue_row(serving.name, serving.device, index)
        worker = self._worker(look.status.worker)
        units = unit_names(serving)

        def told() -> dict[str, Any]:
            return {
                "queue": row,
                "worker": worker,
                "ring": ring_view(look.ring, look.status, look.settled, tables=tables)
                if look.ring is not None
                else None,
                "tasks": [task_row(task, units, serving.name) for task in look.tasks],
                "lying": _lying(serving, index, look.ring, set())[:MAX_ROWS] if look.ring is not None else [],
            }

        # Values only, and thousands of them: in a thread, where they keep nobody waiting.
        return await asyncio.to_thread(told)

    async def look(self, serving: Serving, index: int) -> QueueLook:
        """Ring and requests of one moment, as far as the queue holds still for that."""
        self._require(serving, index)
        for _ in range(SHOW_ATTEMPTS):
            tasks = await self._queue_tasks(serving, index)
            status = serving.device.queue(index)
            ring = await read_ring(serving.device, index, [task.head for task in tasks])
            if ring is None:
                return QueueLook(status, tasks, None, None)
            # What was answered while the ring was read belongs to the driver again, who may have put anything there.
            later = {(task.head, task.tag) for task in await self._queue_tasks(serving, index)}
            now = serving.device.queue(index)
            still = (now.used_idx, now.used_wrap, now.requests) == (status.used_idx, status.used_wrap, status.requests)
            settled = None if still else {task.head for task in tasks if (task.head, task.tag) in later}
            if (still and not ring.snapshot.moved) or (now.requests - status.requests) > HURRIED:
                break
        return QueueLook(status, tasks, ring, settled)

    def _worker(self, index: int) -> dict[str, Any]:
        stats = self._service.core.worker_stats(index)
        return {"index": index, "sleeping": bool(stats.sleeping), "turns": stats.loops, "sleeps": stats.sleeps}

    async def _queue_tasks(self, serving: Serving, index: int) -> list[TaskSnapshot]:
        if not serving.device.queue(index).in_flight:
            return []
        return [task for task in await device_tasks(self._service.core, serving.port) if task.queue == index]

    async def queue_check(
        self, index: int | None = None, port: str | None = None, settle_ms: int = queue_check.SETTLE_MS
    ) -> dict[str, Any]:
        if not 0 <= settle_ms <= MAX_SETTLE_MS:
            raise RpcError(REFUSED, f"settle_ms goes from 0 to {MAX_SETTLE_MS}")
        if index is None:
            chosen = [each for each in self._all_queues() if port is None or each[0] is self.serving(port)]
        else:
            chosen = [(self.serving(port), index)]
            self._require(*chosen[0])
        found = await queue_check.check(self._service.core, self.look, chosen, settle_ms)
        return {"settle_ms": settle_ms, "queues": found}

    async def queue_dump(self, index: int, port: str | None = None) -> dict[str, Any]:
        return await self.dumped(self.serving(port), index, "asked for")

    async def dumped(self, serving: Serving, index: int, why: str) -> dict[str, Any]:
        self._require(serving, index)
        found = await queue_check.check(self._service.core, self.look, [(serving, index)], queue_check.SETTLE_MS)
        return make_dump(await self.shown(serving, index, tables=True), found[0], why, self._service.config.name)

    # ---- requests --------------------------------------------------------------------------------------------------

    async def task_list(self) -> dict[str, Any]:
        found = []
        for serving in self._service.ports.values():
            units = unit_names(serving)
            async for task in sliced(await device_tasks(self._service.core, serving.port)):
                found.append(task_row(task, units, serving.name))
        return {"tasks": found}

    async def request_list(self) -> dict[str, Any]:
        """Those that the data plane has, oldest first; then those that lie in the rings."""
        found = (await self.task_list())["tasks"]
        until = time.monotonic() + LIST_SECONDS
        complete = True
        for serving, index in self._all_queues():
            if not serving.device.queue(index).started:
                continue
            if time.monotonic() > until or len(found) > MAX_ROWS:
                complete = False
                break
            ring = await read_ring(serving.device, index)
            if ring is not None:
                found += _lying(serving, index, ring, {row["head"] for row in found if row["queue"] == index})
        return {"requests": found[:MAX_ROWS], "complete": complete and len(found) <= MAX_ROWS}

    async def request_show(self, index: int, head: int, port: str | None = None) -> dict[str, Any]:
        serving = self.serving(port)
        look = await self.look(serving, index)
        units = unit_names(serving)
        for task in look.tasks:
            if task.head == head:
                segments = await self._service.core.look_segments(task)
                row = task_row(task, units, serving.name)
                return {"request": {**row, "data": segment_rows(segments)}}
        for row in _lying(serving, index, look.ring, set()) if look.ring is not None else ():
            if row["head"] == head:
                return {"request": row}
        raise RpcError(REFUSED, f"port {serving.name}, queue {index}: no request with head {head} is in it now")

    # ---- who is meant ----------------------------------------------------------------------------------------------

    def _require(self, serving: Serving, index: int) -> None:
        if not 0 <= index < serving.device.num_queues:
            last = serving.device.num_queues - 1
            raise RpcError(REFUSED, f"port {serving.name} has queues 0 to {last}, not {index}")

    def serving(self, name: str | None) -> Serving:
        ports = self._service.ports
        if name is None:
            if not ports:
                raise RpcError(REFUSED, "this daemon has no vhost-user port")
            if len(ports) != 1:
                raise RpcError(REFUSED, f"there are several ports, name one of {', '.join(ports)}")
            return next(iter(ports.values()))
        if name not in ports:
            raise RpcError(REFUSED, f"there is no port {name[:64]!r}{nearest(name[:64], ports)}")
        return ports[name]


def unit_names(serving: Serving) -> Units:
    """Name and block size of the unit at each place."""
    return {(mapped.target_id, mapped.lun): (mapped.unit.name, mapped.unit.block_size) for mapped in serving.port.luns}


def _lying(serving: Serving, index: int, ring: RingLook, known: set[int]) -> list[dict[str, Any]]:
    """Requests that are posted and not taken, or used and not collected: told from the guest's memory alone."""
    units = unit_names(serving) if index >= 2 else NO_UNITS
    found = []
    for chain in ring.snapshot.chains:
        if chain.state in (HeadState.POSTED, HeadState.USED_UNSEEN) and chain.head in ring.headers:
            # An event buffer that is posted is no request.
            if index == 1 or (chain.state is HeadState.POSTED and chain.head in known):
                continue
            found.append(header_row(serving.name, index, chain, ring.headers[chain.head], units))
    return found
