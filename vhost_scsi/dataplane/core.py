# SPDX-License-Identifier: Apache-2.0
"""The C core on one asyncio loop: takes its messages in batches, hands tasks round-robin to whoever decides them, gives
answers back in batches, and lets coroutines wait for epochs, drained pins and carried-out messages.

Nothing here blocks. What a message means to a device or a store is theirs: they register for it by cookie.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane.gate import Gate
from vhost_scsi.dataplane.tasks import Answers, PyTask, task_from
from vhost_scsi.errors import ConfigError, VhostScsiError

if TYPE_CHECKING:
    from vhost_scsi._core import CData

LOG: Final = logging.getLogger("vhost_scsi.data")
BATCH: Final = 64
"""messages taken in one call, and tasks decided before the loop may do something else"""
SLOW_DRAIN: Final = 5.0
"""seconds after which a wait for memory, rings or requests is named in the log"""
SNAPSHOT_MAX: Final = 4096
SEGMENTS_MAX: Final = 1024
# Megabytes that are mostly never touched.
_new_unset: Final = ffi.new_allocator(should_clear_after_alloc=False)

Engine = Literal["auto", "io_uring", "epoll"]
Poll = Literal["adaptive", "always", "never"]
ENGINES: Final[dict[str, int]] = {
    "auto": lib.VS_ENGINE_AUTO,
    "io_uring": lib.VS_ENGINE_URING,
    "epoll": lib.VS_ENGINE_EPOLL,
}
POLL_MODES: Final[dict[str, int]] = {
    "adaptive": lib.VS_POLL_ADAPTIVE,
    "always": lib.VS_POLL_ALWAYS,
    "never": lib.VS_POLL_NEVER,
}
LAYERS: Final = ("ring", "gate", "core", "python", "store", "completion")


class EngineUnavailable(ConfigError):
    """The I/O engine that was asked for cannot be had here."""


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """`spin_us`: how long a worker looks for more work before it sleeps; `io_threads`: of the epoll engine."""

    workers: int = 1
    engine: Engine = "auto"
    poll: Poll = "adaptive"
    spin_us: int = 50
    io_threads: int = 4


@dataclass(frozen=True, slots=True)
class Reply:
    """How a message was carried out: `err` is 0 or negative, `aux` depends on the message."""

    err: int
    aux: int
    worker: int


@dataclass(frozen=True, slots=True)
class WorkerStats:
    loops: int
    sleeps: int
    wakes: int
    kicks: int
    interrupts: int
    interrupts_suppressed: int
    requests: int
    batches: int
    spins: int
    thread_id: int
    sleeping: int


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """A task in flight at the moment its worker was asked."""

    port: int
    nexus: int
    worker: int
    queue: int
    head: int
    target: int
    lun: int
    tag: int
    age_ns: int
    layer: str
    layer_ns: int
    cdb: bytes
    in_length: int
    out_length: int
    in_segments: int
    out_segments: int
    attribute: int
    aborted: bool
    gate: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a task's data. `address` is the initiator's own, None where it has none (iSCSI) or it is gone."""

    address: int | None
    length: int
    writable: bool


class Core:
    """The data plane. Create, `await start()`, and in the end `await close()`."""

    def __init__(self, options: CoreOptions = CoreOptions()) -> None:
        self.options: Final = options
        self.log: Final = LOG
        config = ffi.new("struct vs_config *")
        config.nworkers = options.workers
        config.engine = ENGINES[options.engine]
        config.poll_mode = POLL_MODES[options.poll]
        config.spin_us = options.spin_us
        config.io_threads = options.io_threads
        out = ffi.new("vs_core **")
        err = lib.vs_core_create(config, out)
        if err:
            if options.engine == "io_uring" and self.engine_why_not:
                raise EngineUnavailable(f"engine io_uring: {self.engine_why_not}; use --engine epoll")
            raise VhostScsiError(f"cannot start the data plane: error {-err}")
        self.handle: Final[CData] = out[0]
        self._fd: Final = lib.vs_core_upcall_fd(self.handle)
        self._ups: Final = ffi.new("struct vs_upcall[]", BATCH)
        self._infos: Final = ffi.new("struct vs_task_info[]", BATCH)
        self._cookies: Final = itertools.count(1)
        self.answers: Final = Answers(self.handle)
        self._decide: Callable[[PyTask], None] | None = None
        self._backlog: Final[OrderedDict[int, deque[PyTask]]] = OrderedDict()
        self._decided: Final[dict[int, int]] = {}
        """tasks given to `decide` so far, by port"""
        self._waiting: Final[dict[int, tuple[asyncio.Future[list[Reply]], list[Reply], int]]] = {}
        self._listeners: Final[dict[tuple[int, int], Callable[[Any], None]]] = {}
        self._done: Final[dict[int, Callable[[int], None]]] = {}
        self._epochs: Final[list[tuple[int, asyncio.Future[None]]]] = []
        self._pins: Final[dict[int, asyncio.Event]] = {}
        self._pin_cookies: Final[dict[object, tuple[int, int]]] = {}
        self._opening: Final[dict[Gate, None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work_due = False
        self._deciding = False

    # ---- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the workers. Messages arrive on the running loop from here on."""
        self._loop = asyncio.get_running_loop()
        err = lib.vs_core_start(self.handle)
        if err:
            lib.vs_core_destroy(self.handle)
            raise VhostScsiError(f"cannot start the data plane's workers: error {-err}")
        self._loop.add_reader(self._fd, self._readable)

    async def close(self) -> None:
        """Joins the workers. Devices, logical units and stores must be gone."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._drain()
            self._work()
        lib.vs_core_destroy(self.handle)

    @property
    def engine_name(self) -> str:
        return ffi.string(lib.vs_core_engine_name(self.handle)).decode()

    @property
    def engine_why_not(self) -> str | None:
        """Why io_uring cannot be had here; None when it can."""
        why = lib.vs_engine_why_not(lib.VS_ENGINE_URING)
        return ffi.string(why).decode() if why != ffi.NULL else None

    def worker_stats(self, worker: int) -> WorkerStats:
        out: Any = ffi.new("struct vs_worker_stats *")
        lib.vs_worker_stats(self.handle, worker, out)
        return WorkerStats(*(getattr(out, name) for name in WorkerStats.__dataclass_fields__))

    # ---- who takes what --------------------------------------------------------------------------------------------

    def on_task(self, decide: Callable[[PyTask], None]) -> None:
        """`decide` gets each task once, and answers through `answers`, at once or later."""
        self._decide = decide

    def cookie(self) -> int:
        return next(self._cookies)

    def listen(self, kind: int, cookie: int, listener: Callable[[Any], None]) -> None:
        """`listener` gets each `struct vs_upcall` of that kind and cookie; it may not keep it."""
        self._listeners[kind, cookie] = listener

    def unlisten(self, kind: int, cookie: int) -> None:
        self._listeners.pop((kind, cookie), None)

    def on_done(self, finished: Callable[[int], None]) -> int:
        """A cookie for `answers.execute(task, notify=cookie)`; `finished` gets the SCSI status, once."""
        cookie = self.cookie()
        self._done[cookie] = finished
        return cookie

    # ---- messages --------------------------------------------------------------------------------------------------

    async def replies(self, send: Callable[[int], int | None], count: int) -> list[Reply]:
        """Sends with a fresh cookie; returns when `count` replies have come. Raises OSError if it cannot be sent."""
        cookie = self.cookie()
        future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        self._waiting[cookie] = (future, [], count)
        self.answers.flush()
        err = send(cookie)
        if err:
            del self._waiting[cookie]
            raise OSError(-err, f"the data plane refused a message: error {-err}")
        try:
            return await future
        finally:
            if future.cancelled():
                # The reply still comes; nobody waits for it any more.
                self._waiting[cookie] = (asyncio.get_running_loop().create_future(), [], count)

    async def message(self, send: Callable[[int], int | None]) -> Reply:
        return (await self.replies(send, 1))[0]

    async def each_worker(self, send: Callable[[int], int | None]) -> list[Reply]:
        """For messages that every worker answers."""
        return await self.replies(send, self.options.workers)

    async def delivered(self) -> None:
        """Returns when every answer that was given before this call is where the initiator sees it."""
        none = ffi.new("struct vs_task_info[]", 1)

        def ask(worker: int) -> Callable[[int], int]:
            return lambda cookie: lib.vs_worker_snapshot(self.handle, worker, none, 0, cookie)

        # A worker answers a message at the end of its turn, after completions were made visible.
        await asyncio.gather(*(self.message(ask(worker)) for worker in range(self.options.workers)))

    async def tasks(self) -> list[TaskSnapshot]:
        """The tasks in flight, asked of one worker after the other."""
        buffer = ffi.new("struct vs_task_info[]", SNAPSHOT_MAX)
        found: list[TaskSnapshot] = []
        for worker in range(self.options.workers):

            def ask(cookie: int, worker: int = worker) -> int:
                return lib.vs_worker_snapshot(self.handle, worker, buffer, SNAPSHOT_MAX, cookie)

            reply = await self.message(ask)
            found += [_snapshot(buffer[i]) for i in range(reply.aux)]
        return found

    async def look_tasks(self, min_age_ns: int = 0) -> list[TaskSnapshot]:
        """As `tasks`, those of at least this age, and without a trace: a worker that sleeps looks at no ring for it."""
        found: list[TaskSnapshot] = []
        for worker in range(self.options.workers):
            buffer = _new_unset("struct vs_task_info[]", SNAPSHOT_MAX)

            def ask(cookie: int, worker: int = worker, buffer: Any = buffer) -> int:
                return lib.vs_worker_look_tasks(self.handle, worker, buffer, SNAPSHOT_MAX, min_age_ns, cookie)

            reply = await self._looked(ask)
            found += [_snapshot(buffer[i]) for i in range(reply.aux)]
        return found

    async def look_segments(self, task: TaskSnapshot) -> tuple[list[Segment], int] | None:
        """The data segments of a task in flight, the first ones if there are many, and how many there are; None when
        it has ended."""
        buffer = _new_unset("struct vs_segment[]", SEGMENTS_MAX)

        def ask(cookie: int) -> int:
            return lib.vs_worker_look_segments(
                *(self.handle, task.worker, task.port, task.queue, task.head, buffer, SEGMENTS_MAX, cookie)
            )

        reply = await self._looked(ask)
        if reply.err:
            return None
        told = buffer[0 : min(reply.aux, SEGMENTS_MAX)]
        return [Segment(s.address if s.known else None, s.length, bool(s.writable)) for s in told], reply.aux

    async def _looked(self, ask: Callable[[int], int]) -> Reply:
        """The buffer that `ask` knows stays until the worker has written it, whoever stops waiting."""
        return await asyncio.shield(asyncio.ensure_future(self.message(ask)))

    async def caught_up(self) -> None:
        """Returns when every task that has been received was given to `decide`."""
        due = {port: self._decided.get(port, 0) + len(tasks) for port, tasks in self._backlog.items()}
        # As long as there is a backlog, `_work` is due in each turn of the loop.
        while any(self._decided.get(port, 0) < count for port, count in due.items()):
            await asyncio.sleep(0)

    # ---- epochs and pins -------------------------------------------------------------------------------------------

    async def epoch_reached(self, epoch: int) -> None:
        """Returns when every worker has seen the epoch."""
        if lib.vs_epoch_reached(self.handle) >= epoch:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._epochs.append((epoch, future))
        # A worker may have passed between the look and the append; its message is still to come, or was this one.
        self._epochs_moved()
        await future

    def _epochs_moved(self) -> None:
        reached = lib.vs_epoch_reached(self.handle)
        for entry in [entry for entry in self._epochs if entry[0] <= reached]:
            self._epochs.remove(entry)
            if not entry[1].done():
                entry[1].set_result(None)

    def pins_cookie(self, owner: object) -> int:
        """A cookie under which drains of the owner's pins are told; the same for waits that overlap."""
        cookie, users = self._pin_cookies.get(owner, (0, 0))
        if not users:
            cookie = self.cookie()
            self._pins[cookie] = asyncio.Event()
        self._pin_cookies[owner] = (cookie, users + 1)
        return cookie

    def pins_forget(self, owner: object) -> bool:
        """The other half of pins_cookie; True: nobody waits any more."""
        cookie, users = self._pin_cookies[owner]
        if users > 1:
            self._pin_cookies[owner] = (cookie, users - 1)
            return False
        del self._pin_cookies[owner]
        del self._pins[cookie]
        return True

    async def drained(self, pins: CData, owner: object) -> None:
        """Returns when nothing pins any more. The caller watches the pins and has waited for an epoch since."""
        event = self._pins[self._pin_cookies[owner][0]]
        while lib.vs_pins_busy(pins):
            event.clear()
            if not lib.vs_pins_busy(pins):
                return
            try:
                await asyncio.wait_for(event.wait(), SLOW_DRAIN)
            except TimeoutError:
                LOG.warning("still waiting for requests in flight to end (%s)", type(owner).__name__)

    async def quiesce(self, pins: CData, owner: object) -> None:
        """Waits until nothing pins; nothing new may pin any more when this is called."""
        lib.vs_pins_watch(pins, self.pins_cookie(owner), 1)
        try:
            await self.epoch_reached(lib.vs_epoch_bump(self.handle))
            await self.drained(pins, owner)
        finally:
            if self.pins_forget(owner):
                lib.vs_pins_watch(pins, 0, 0)

    # ---- gates -----------------------------------------------------------------------------------------------------

    def gate(self, lu: CData, nexus: CData | None = None) -> Gate:
        return Gate(self, lu, nexus, ffi.NULL)

    def open_later(self, gate: Gate) -> None:
        """Opens as soon as all that was received has been handed back: now, if nothing waits."""
        self._opening[gate] = None
        if not self._backlog:
            self._open_gates()

    def _open_gates(self) -> None:
        if self._backlog or not self._opening:
            return
        self.answers.flush()
        for gate in list(self._opening):
            if gate.try_open():
                del self._opening[gate]

    # ---- the loop's side -------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        self._drain()
        self._work()

    def _drain(self) -> None:
        for _ in range(BATCH):
            n = lib.vs_core_drain(self.handle, self._ups, self._infos, BATCH)
            for i in range(n):
                up = self._ups[i]
                if up.kind == lib.VS_UP_TASK:
                    task = task_from(self._infos[i])
                    self._backlog.setdefault(task.port, deque()).append(task)
                else:
                    self._dispatch(up)
            if n < BATCH:
                return
        # More is there: come again after everybody else had a turn.
        if self._loop is not None:
            self._loop.call_soon(self._readable)

    def _dispatch(self, up: Any) -> None:
        kind, cookie = up.kind, up.cookie
        if kind == lib.VS_UP_DONE:
            self._replied(cookie, Reply(up.err, up.aux, up.worker))
        elif kind == lib.VS_UP_EPOCH:
            self._epochs_moved()
        elif kind == lib.VS_UP_DRAINED:
            event = self._pins.get(cookie)
            if event is not None:
                event.set()
        elif kind == lib.VS_UP_TASK_DONE:
            self._done.pop(cookie)(up.aux)
        else:
            listener = self._listeners.get((kind, cookie))
            if listener is None:
                LOG.error("message of kind %d for nobody (cookie %d)", kind, cookie)
            else:
                listener(up)

    def _replied(self, cookie: int, reply: Reply) -> None:
        future, replies, count = self._waiting[cookie]
        replies.append(reply)
        if len(replies) == count:
            del self._waiting[cookie]
            if not future.done():
                future.set_result(replies)

    def _work(self) -> None:
        """Decides tasks, a port's turn at a time, then hands the answers back and opens what can be opened."""
        for _ in range(BATCH):
            if not self._backlog:
                break
            port, tasks = next(iter(self._backlog.items()))
            task = tasks.popleft()
            self._backlog.move_to_end(port)
            if not tasks:
                del self._backlog[port]
            self._decided[port] = self._decided.get(port, 0) + 1
            self._decide_one(task)
        self.answers.flush()
        self._open_gates()
        if (self._backlog or self._opening) and self._loop is not None and not self._work_due:
            self._work_due = True
            self._loop.call_soon(self._work_again)

    def _work_again(self) -> None:
        self._work_due = False
        self._drain()
        self._work()

    def _decide_one(self, task: PyTask) -> None:
        self._deciding = True
        try:
            if self._decide is None:
                self.answers.respond(task, lib.VS_RESP_TARGET_FAILURE)
            else:
                self._decide(task)
        except Exception:
            LOG.exception("a task failed in Python (CDB %s)", task.cdb.hex())
            self.answers.respond(task, lib.VS_RESP_TARGET_FAILURE)
        finally:
            self._deciding = False

    def flush_soon(self) -> None:
        """Answers given outside of `decide` go out when the current callback is over."""
        if self._loop is not None and not self._work_due and not self._deciding:
            self._work_due = True
            self._loop.call_soon(self._work_again)


def _snapshot(info: Any) -> TaskSnapshot:
    return TaskSnapshot(
        port=info.port_cookie,
        nexus=info.nexus_cookie,
        worker=info.worker,
        queue=info.queue,
        head=info.head,
        target=info.target,
        lun=info.lun,
        tag=info.tag,
        age_ns=info.age_ns,
        layer=LAYERS[info.layer],
        layer_ns=info.layer_ns,
        cdb=bytes(ffi.buffer(info.cdb, info.cdb_length)),
        in_length=info.in_length,
        out_length=info.out_length,
        in_segments=info.in_segments,
        out_segments=info.out_segments,
        attribute=info.attribute,
        aborted=bool(info.aborted),
        gate=info.gate,
    )
