# SPDX-License-Identifier: Apache-2.0
"""The logical unit: decides every task that reaches Python, keeps the unit's state, tells its nexuses what changed.

It decides and never transfers: media commands end in Execute and run in C. Handlers live in their own files and are
found through `dispatch`; the order of tasks is `task_set`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

from vhost_scsi.scsi import (
    alua,
    buffers,
    capacity,
    extended_copy,
    formatting,
    information,
    inquiry,
    lba_status,
    log,
    long_blocks,
    mode,
    multimedia,
    multimedia_features,
    power,
    removable,
    report_luns,
    report_opcodes,
    report_tmfs,
    request_sense,
    reserve,
    self_test,
    sense,
    sense_data,
)
from vhost_scsi.scsi.commands import (
    COMMANDS,
    VARIABLE_LENGTH,
    Command,
    DeviceType,
    Feature,
    MediaOp,
    first_unused_bit,
    parse,
)
from vhost_scsi.scsi.contingency import Contingencies, QueueError
from vhost_scsi.scsi.dispatch import HANDLERS, Alongside, Exclusive, InTurn, Request
from vhost_scsi.scsi.gate import GateBit, GatePort
from vhost_scsi.scsi.marked_blocks import MarkedBlocks
from vhost_scsi.scsi.medium import Counts, Medium, Support
from vhost_scsi.scsi.mode_pages import CACHING, CONTROL, SAVED_BLOB
from vhost_scsi.scsi.mode_parameters import GivenPage, ModeParameters, Page
from vhost_scsi.scsi.nexus import ITL, Cancel, Nexus, TargetPort
from vhost_scsi.scsi.readiness import Power, Readiness
from vhost_scsi.scsi.reserve import ReservationKeeper
from vhost_scsi.scsi.saved_state import NotKept, SavedState, SavedStateDamaged, SavedStateError
from vhost_scsi.scsi.sense import CheckCondition, EndsWith, Sense, SenseCode
from vhost_scsi.scsi.task import Aborted, Complete, Execute, Outcome, Status, Task, TaskAttribute, Tell
from vhost_scsi.scsi.task_set import Done, Entry, TaskSet
from vhost_scsi.scsi.thresholds import Thresholds

# Each registers its handlers.
HANDLER_MODULES: Final = (
    alua,
    buffers,
    capacity,
    extended_copy,
    formatting,
    information,
    inquiry,
    lba_status,
    log,
    long_blocks,
    mode,
    multimedia,
    multimedia_features,
    power,
    removable,
    report_luns,
    report_opcodes,
    report_tmfs,
    request_sense,
    reserve,
    self_test,
)

LOG: Final = logging.getLogger("vhost_scsi.control")
ESTABLISHING: Final = 0b11
"""UA_INTLCK_CTRL"""
PREVIOUS_STATUS: Final = {
    Status.BUSY: sense.PREVIOUS_BUSY_STATUS,
    Status.TASK_SET_FULL: sense.PREVIOUS_TASK_SET_FULL_STATUS,
    Status.RESERVATION_CONFLICT: sense.PREVIOUS_RESERVATION_CONFLICT_STATUS,
}
LOG_INTERVAL: Final = 1.0
"""seconds between two lines about failing handlers"""


@dataclass(frozen=True, slots=True)
class LuDefinition:
    """What a logical unit is, wherever it is mapped. `write_cache`: the default of WCE. `strict`:
    a CDB with a reserved bit is refused. `wsnz`: a WRITE SAME of zero blocks is refused, else it goes to the end.
    `cdb32`: READ(32) and its like are served. `overwrite_rate`: bytes a second that FORMAT UNIT and SANITIZE write at
    most; 0: as fast as the store takes them. `removable`: its medium can be taken out; `filled`: it has one at first.
    `serial` and `naa` are made of the UUID where they are empty, and without `eui64` it has none; `mode_pages` have no
    `problem`, `vpd_pages` are codes and what stands behind the header.
    """

    name: str
    uuid: UUID
    vendor: str = "VHOST"
    product: str = "SCSI DISK"
    revision: str = "0001"
    write_cache: bool = True
    strict: bool = True
    wsnz: bool = True
    cdb32: bool = False
    overwrite_rate: int = 0
    retries: int = 0
    device_type: DeviceType = DeviceType.DISK
    removable: bool = False
    filled: bool = True
    serial: str = ""
    naa: bytes = b""
    eui64: bytes = b""
    mode_pages: tuple[GivenPage, ...] = ()
    vpd_pages: tuple[tuple[int, bytes], ...] = ()


class LogicalUnit:
    """One logical unit. All calls come from the event loop's thread."""

    def __init__(
        self, definition: LuDefinition, medium: Medium, gate: GatePort, saved: SavedState | None = None
    ) -> None:
        self.definition: Final = definition
        self.medium: Final = medium
        self.gate: Final = gate
        self.saved: Final[SavedState] = saved or NotKept()
        self.mode: Final = ModeParameters(
            device_type=definition.device_type,
            given=definition.mode_pages,
            write_cache=definition.write_cache,
            retries=definition.retries,
            saved=self._saved_pages(),
        )
        self.itls: Final[list[ITL]] = []
        self.target_ports: Callable[[], Iterable[TargetPort]] = self._ports_in_use
        """every target port of the device that shows logical units"""
        self.reservations: Final = ReservationKeeper(self)
        self.port_groups: Final = alua.PortGroups(self)
        self.readiness: Final = Readiness(gate, self._accesses)
        self.drive: Final = removable.Drive(self, filled=definition.filled) if definition.removable else None
        self.thresholds: Final = Thresholds(self)
        self.marked: Final = MarkedBlocks(self)
        self.clock: Final = information.Clock()
        self.self_tests: Final = self_test.SelfTests()
        self.buffer: Final = bytearray()
        """what WRITE BUFFER left; as long as it may be once it was written"""
        self.log_base = Counts()
        """what the counters of log pages began at"""
        self.log_began = time.monotonic()
        self.internal_failures = 0
        self._moving = 0
        self._still: Final = asyncio.Event()
        self._still.set()
        """no handler moves data at this moment"""
        self._tasks: Final = TaskSet(self)
        self.contingencies: Final = Contingencies(self, self._tasks)
        self._background: Final[set[asyncio.Task[None]]] = set()
        self._alone: Final = asyncio.Lock()
        """whoever changes the unit while everything is held: one handler, or one caller of `held`"""
        self._last_log = -LOG_INTERVAL
        self._show_mode()
        if definition.device_type is not DeviceType.DISK:
            gate.close(GateBit.DISK_ONLY)

    # ---- state -----------------------------------------------------------------------------------------------------

    @property
    def stopped(self) -> bool:
        """A START STOP UNIT stopped it; commands that need the medium are refused."""
        return self.readiness.stopped

    def _accesses(self) -> int:
        counts = self.medium.counts()
        return counts.reads + counts.writes + counts.verifies + counts.flushes + counts.unmaps

    @property
    def write_cache(self) -> bool:
        return bool(self.mode.field(CACHING, "wce"))

    @property
    def descriptor_sense(self) -> bool:
        return bool(self.mode.field(CONTROL, "d_sense"))

    @property
    def separate_task_sets(self) -> bool:
        """SPC-5 7.5.10, TST=001b."""
        return bool(self.mode.field(CONTROL, "tst"))

    @property
    def tells_of_aborts(self) -> bool:
        """SPC-5 7.5.10, TAS=1: a task that another nexus aborts ends with TASK ABORTED."""
        return bool(self.mode.field(CONTROL, "tas"))

    @property
    def software_write_protected(self) -> bool:
        return bool(self.mode.field(CONTROL, "swp"))

    @property
    def write_protected(self) -> bool:
        return self.medium.read_only or self.software_write_protected

    def tasks(self) -> list[Task]:
        """The tasks that wait or run under Python's eyes, in arrival order."""
        return self._tasks.tasks()

    def offers(self, row: Command) -> bool:
        """Whether the unit has the command at all."""
        return self.definition.device_type in row.device_types and self.has(row.requires)

    def as_offered(self, row: Command) -> Command:
        """The row with the fields that this unit looks at."""
        return row.only(self.has)

    def mode_pages(self) -> Iterator[Page]:
        """Those that the unit has by now, in ascending order."""
        return (page for page in self.mode.pages if self.has(page.requires))

    def has(self, feature: Feature) -> bool:
        match feature:
            case Feature.UNMAP:
                return self.medium.capabilities.unmap is not Support.NONE
            case Feature.CDB_32:
                return self.definition.cdb32
            case Feature.ATOMIC:
                return bool(self.medium.atomic_blocks)
            case Feature.REMOVABLE:
                return self.definition.removable
            case Feature.USAGE:
                return self.medium.capabilities.unmap is not Support.NONE and self.medium.usage() is not None
            case _:
                return True

    def _only_protected(self, row: Command) -> bool:
        """A store that is opened read-only has no unmap; what refuses the command is the protection."""
        offered = self.definition.device_type in row.device_types
        return offered and self.medium.read_only and bool(row.gate_mask & GateBit.WRITE_PROTECTED)

    def commands(self) -> Iterator[Command]:
        return (row for row in COMMANDS if self.offers(row))

    def _show_write_protection(self) -> None:
        if self.write_protected:
            self.gate.close(GateBit.WRITE_PROTECTED)
        else:
            self.gate.open(GateBit.WRITE_PROTECTED)

    def reset_counters(self) -> None:
        """Of the log pages; what `stats` tells of the unit goes on."""
        self.log_base = self.medium.counts()
        self.log_began = time.monotonic()
        self.internal_failures = 0

    async def set_mode(self, pages: dict[int, bytes]) -> None:
        """Makes the pages current. Nothing is in flight. Raises CheckCondition, with nothing changed, when turning
        the write cache off needs a flush that fails."""
        wce = CACHING.field(pages.get(CACHING.key, self.mode.current(CACHING)), "wce")
        if self.write_cache and not wce:
            await self.medium.flush()
        self.mode.replace(pages)
        self._show_mode()

    def _show_mode(self) -> None:
        """To the data plane."""
        self.medium.set_write_cache(self.write_cache)
        self.medium.set_descriptor_sense(self.descriptor_sense)
        self.medium.set_queue_error(self.contingencies.queue_error is not QueueError.NOBODYS)
        self.medium.set_tell_full(self._tells_statuses)
        self._show_write_protection()
        self.thresholds.changed()

    def _saved_pages(self) -> bytes:
        try:
            return self.saved.get(SAVED_BLOB) or b""
        except SavedStateDamaged:
            LOG.error("%s: the saved mode pages are damaged; the defaults are used", self.definition.name)
            return b""

    async def save_mode(self) -> None:
        """The current pages are what a power on brings back. Raises CheckCondition when they cannot be kept."""
        try:
            await self.saved.put(SAVED_BLOB, self.mode.to_save())
        except SavedStateError as error:
            self.complain("the mode pages cannot be saved: %s", error)
            raise CheckCondition(sense.INTERNAL_TARGET_FAILURE) from None
        self.mode.now_saved()

    def _is_as_new(self) -> bool:
        return self.readiness.as_new and self.mode.as_saved

    async def _restore(self, cause: str) -> None:
        """Started, and with the saved mode pages. Nothing is in flight."""
        self.readiness.set_power(Power.ACTIVE)
        try:
            await self.set_mode(self.mode.all_saved())
        except CheckCondition:
            LOG.error("%s: %s changes no mode page: the flush failed", self.definition.name, cause)

    # ---- nexuses and unit attentions -------------------------------------------------------------------------------

    def attach(self, nexus: Nexus, gate: GatePort) -> ITL:
        """A new I_T_L nexus, to which the unit is new too (SAM-5 5.14.1)."""
        itl = ITL(self, nexus, gate)
        self.itls.append(itl)
        nexus.itls.append(itl)
        itl.establish(nexus.greeting)
        self.reservations.show(itl)
        self.port_groups.show(itl)
        if self.drive is not None:
            self.drive.recall(itl)
        self.thresholds.changed()
        return itl

    async def detach(self, itl: ITL, cancel: Cancel | None = None) -> None:
        """Ends the I_T_L nexus for good, its tasks first."""
        async with self._ended(itl, lambda task: task.itl is itl, cancel):
            self.detach_quiet(itl)

    def detach_quiet(self, itl: ITL) -> None:
        """As `detach`, for a nexus that has no tasks and cannot get any."""
        self.itls.remove(itl)
        itl.nexus.itls.remove(itl)
        self.contingencies.clear(itl)

    def _ports_in_use(self) -> list[TargetPort]:
        return list({itl.nexus.target_port.relative_id: itl.nexus.target_port for itl in self.itls}.values())

    def establish(self, code: SenseCode, *, besides: ITL | None = None) -> None:
        """Establishes a unit attention condition on every nexus but one."""
        for itl in self.itls:
            if itl is not besides:
                itl.establish(code)

    def mode_changed(self, by: ITL | None) -> None:
        """SPC-5 6.11: told to every nexus but the one that changed the parameters."""
        self.establish(sense.MODE_PARAMETERS_CHANGED, besides=by)

    def capacity_changed(self) -> None:
        self.establish(sense.CAPACITY_DATA_HAS_CHANGED)

    def read_only_changed(self) -> None:
        """The medium's read_only has changed, under a hold of the caller's."""
        self._show_write_protection()

    # ---- tasks -----------------------------------------------------------------------------------------------------

    def submit(self, task: Task, done: Done) -> None:
        """Decides the task now or when its turn comes; `done` is called once, perhaps before this returns."""
        task.itl.in_use = True
        status = self.contingencies.turns_away(task)
        if status is None:
            self._tasks.arrive(task, done, passes_aca=self.contingencies.passes(task))
        else:
            done(self._ended_with(task, status))
            self._tasks.turned_away(task)

    def came_back(self, task: Task, done: Done, status: Status = Status.CHECK_CONDITION) -> None:
        """C has ended the task with that status, and holds it until `done` says what becomes of it. It may be one
        that was answered Execute here, or one that C took by itself."""
        task.itl.in_use = True
        self.marked.ended(task)
        if status is not Status.CHECK_CONDITION:
            self._note_status(task.itl, status)
            done(Tell())
            return
        entry = self._tasks.come_back(task, done)
        if self._conclude(entry, Tell()):
            self._tasks.end(entry)

    def finished(self, task: Task) -> None:
        """C ended a task that was answered Execute(notify=True)."""
        self.marked.ended(task)
        self._tasks.finished(task)

    def overlapped(self, task: Task, done: Done) -> None:
        """SAM-5 5.11: the task has the tag of another one of its nexus. All that the nexus has here end, then it."""
        task.itl.in_use = True
        entry = self._tasks.come_back(task, done)
        entry.passes_aca = True
        self._tasks.wait(entry)
        self.spawn(self._end_overlapped(entry))

    async def _end_overlapped(self, entry: Entry) -> None:
        task, itl = entry.task, entry.task.itl
        cancel = None if itl.cancel is None else partial(itl.cancel, False)
        async with self._ended(itl, lambda each: each is not task and each.itl is itl, cancel):
            if self._conclude(entry, self._check_condition(Sense(sense.OVERLAPPED_COMMANDS_ATTEMPTED))):
                self._tasks.end(entry)

    def start(self, entry: Entry) -> None:
        """The task set's call: the task's turn has come."""
        task = entry.task
        outcome: Outcome | Exclusive | InTurn | Alongside
        try:
            outcome = self._decide(task) if entry.outcome is None else entry.outcome
        except CheckCondition as condition:
            outcome = self._check_condition(condition.sense)
        except EndsWith as end:
            outcome = self._ended_with(task, end.status)
        except Exception:
            outcome = self._failed(task)
        if isinstance(outcome, Complete | Tell | Aborted):
            self._conclude(entry, outcome)
        elif isinstance(outcome, Execute):
            if outcome.notify:
                self._tasks.run(entry, in_c=True)
            entry.done(outcome)
        elif isinstance(outcome, InTurn):
            self._tasks.run(entry)
            self.spawn(self._run_in_turn(entry, outcome))
        elif isinstance(outcome, Alongside):
            self._tasks.run(entry)
            self._run_alongside(entry, outcome)
        else:
            self._tasks.run(entry)
            self._tasks.hold(GateBit.HOLD)
            self.gate.close(GateBit.HOLD)
            self.spawn(self._run_exclusive(entry, outcome))

    def _conclude(self, entry: Entry, outcome: Outcome) -> bool:
        """The task has run. False: it ends later, because of an ACA condition or of what its end does to others."""
        if entry.ended:
            return True
        if entry.aborted:
            entry.done(entry.end_as)
            return True
        if self._tasks.is_blocked(entry):
            self._tasks.park(entry, outcome)
            return False
        failed = isinstance(outcome, Tell) or (
            isinstance(outcome, Complete) and outcome.status is Status.CHECK_CONDITION
        )
        if failed and self.contingencies.concerns(entry.task):
            self._tasks.wait(entry)
            self.contingencies.fault(entry, outcome)
            return False
        entry.done(outcome)
        return True

    def _decide(self, task: Task) -> Complete | Execute | Exclusive | InTurn | Alongside:
        if self.reservations.has_applied(task):
            return Complete(Status.GOOD)
        row = self._admit(task)
        if row.media is not MediaOp.NONE:
            if touched := self.marked.touched(row, task):
                return self.marked.let_write(task, touched)
            # Later SIMPLE tasks must wait for the end of an ORDERED or HEAD OF QUEUE one.
            return Execute(notify=task.attribute is not TaskAttribute.SIMPLE)
        request = Request(self, task.itl, row, task)
        answer = HANDLERS[row.handler](request)
        if isinstance(answer, bytes):
            return Complete(Status.GOOD, data_in=request.truncate(answer))
        return answer

    def _admit(self, task: Task) -> Command:
        """The task's row, or CheckCondition for the first reason why it may not run."""
        if task.attribute is TaskAttribute.ACA and not self.contingencies.faulted(task.itl):
            # SAM-5 8.6.5: of no use where no ACA condition is in effect.
            raise CheckCondition(sense.INVALID_MESSAGE_ERROR)
        row = parse(task.cdb)
        if row is not None:
            row = self.as_offered(row) if self.offers(row) or self._only_protected(row) else None
        if row is None or row.gate_mask & GateBit.UNIT_ATTENTION:
            # SPC-5 7.5.10: interlocked, a condition stays until REQUEST SENSE takes it.
            code = task.itl.peek() if self.mode.field(CONTROL, "ua_intlck_ctrl") else task.itl.take()
            if code is not None:
                raise CheckCondition(code)
        if row is None:
            opcode = task.cdb[0] if task.cdb else 0
            if any(each.opcode == opcode and self.offers(each) for each in COMMANDS if each.service_action is not None):
                # SPC-5 4.2.1: a value that is not supported in a field other than OPERATION CODE
                raise sense.invalid_cdb_field(8, 7) if opcode == VARIABLE_LENGTH else sense.invalid_cdb_field(1, 4)
            raise CheckCondition(sense.INVALID_COMMAND_OPERATION_CODE)
        self.readiness.check_operation(row)
        if len(task.cdb) < row.cdb_length:
            raise sense.invalid_cdb_field(len(task.cdb))
        if self.definition.strict:
            stray = first_unused_bit(row, task.cdb)
            if stray is not None:
                raise sense.invalid_cdb_field(*stray)
        if row.opcode == VARIABLE_LENGTH and task.cdb[7] != row.cdb_length - 8:
            raise sense.invalid_cdb_field(7, 7)
        self._check_state(row, task)
        return row

    def _check_state(self, row: Command, task: Task) -> None:
        self.port_groups.check(row, task.itl)
        self.reservations.check(row, task)
        if self.drive is not None and row.gate_mask & GateBit.NO_MEDIUM and (code := self.drive.why_absent()):
            raise CheckCondition(code)
        self.readiness.check(row)
        if row.gate_mask & GateBit.WRITE_PROTECTED:
            if self.medium.read_only:
                raise CheckCondition(sense.WRITE_PROTECTED)
            if self.software_write_protected:
                raise CheckCondition(sense.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED)
        if row.gate_mask & GateBit.STORE_FAILED and self.medium.flush_failed and self._promises(row, task):
            raise CheckCondition(sense.WRITE_ERROR)

    def check_access(self, itl: ITL, row: Command) -> None:
        """For a command that acts on this unit from another one (EXTENDED COPY): raises CheckCondition when the nexus
        might not do the same here by the command `row`."""
        self.readiness.check_operation(row)
        self._check_state(row, Task(itl, 0, TaskAttribute.SIMPLE, row.usage[:1] + bytes(row.cdb_length - 1)))

    def _promises(self, row: Command, task: Task) -> bool:
        """Whether GOOD would say that data are durable."""
        fua = row.field("fua")
        asked = fua is not None and bool(row.value(fua, task.cdb))
        return row.media is MediaOp.SYNCHRONIZE_CACHE or asked or not self.write_cache

    def _check_condition(self, error: Sense) -> Complete:
        # A unit that has blocks beyond 32 bits tells of them in descriptors: the fixed format could not.
        narrow = sense_data.NARROW
        wide = (error.information or 0) > narrow and self.medium.num_blocks > narrow
        return Complete(Status.CHECK_CONDITION, sense_data.build(error, descriptor=self.descriptor_sense or wide))

    def log_error(self, what: str, *arguments: object) -> None:
        """For what goes on by itself: the initiator has its status already."""
        LOG.error("%s: " + what, self.definition.name, *arguments)

    def _failed(self, task: Task) -> Complete:
        """A handler's own fault: told to the initiator, and logged."""
        self.internal_failures += 1
        self.complain("CDB %s failed in its handler", task.cdb.hex(), trace=True)
        return self._check_condition(Sense(sense.INTERNAL_TARGET_FAILURE))

    def complain(self, message: str, *words: object, trace: bool = False) -> None:
        """Logs an error that an initiator can cause, at most once a second."""
        now = time.monotonic()
        if now - self._last_log >= LOG_INTERVAL:
            self._last_log = now
            LOG.error(f"%s: {message}", self.definition.name, *words, exc_info=trace)

    # ---- waiting for the data plane --------------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        running = asyncio.get_running_loop().create_task(work)
        self._background.add(running)
        running.add_done_callback(self._background.discard)
        return running

    def leave(self) -> None:
        """This process ends, and its initiators do not: what they lose by that is not lost to them."""
        if self.drive is not None:
            self.drive.leave()

    async def close(self) -> None:
        """Nothing is mapped any more: ends what goes on by itself."""
        for running in list(self._background):
            running.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _run_alongside(self, entry: Entry, answer: Alongside) -> None:
        """Runs a handler that takes long, beside other commands."""
        running = self.spawn(self._run_beside(entry, answer.work))
        if not answer.goes_on:
            entry.begun = True
            entry.cancel = running.cancel

    async def _run_beside(self, entry: Entry, work: Exclusive) -> None:
        outcome: Outcome = Aborted()
        try:
            outcome = await self._outcome(entry, work)
        except asyncio.CancelledError:
            outcome = entry.end_as  # aborted: the task set waits for this end, and nobody above does
        finally:
            work.close()
            if self._conclude(entry, outcome):
                self._tasks.end(entry)

    @asynccontextmanager
    async def moving(self) -> AsyncIterator[None]:
        """A handler moves data itself, a piece at a time: while it does nobody gets the unit for himself."""
        while self._tasks.is_held(GateBit.HOLD):
            await self._alone.acquire()
            self._alone.release()
            await asyncio.sleep(0)
        self._moving += 1
        self._still.clear()
        try:
            yield
        finally:
            self._moving -= 1
            if not self._moving:
                self._still.set()

    async def _quiet(self) -> None:
        """Everything is held: returns when nothing is in flight in C and no handler moves data."""
        await self.gate.fence(GateBit.HOLD)
        await self._still.wait()

    async def _run_exclusive(self, entry: Entry, work: Exclusive) -> None:
        """Runs a handler that waits, alone; the HOLD is in force already."""
        outcome: Outcome = Aborted()
        try:
            async with self._alone:
                await self._quiet()
                outcome = await self._run(entry, work)
        finally:
            work.close()
            over = True
            try:
                if isinstance(outcome, Execute) and not entry.ended and not self._tasks.is_blocked(entry):
                    over = False
                    self._tasks.run(entry, in_c=True)
                    entry.done(outcome)
                else:
                    over = self._conclude(entry, outcome)
            finally:
                self._tasks.release(GateBit.HOLD)
                if over:
                    self.marked.ended(entry.task)
                    self._tasks.end(entry)
                else:
                    self._tasks.pump()
                self._open_if_free(GateBit.HOLD, None)

    async def _run_in_turn(self, entry: Entry, answer: InTurn) -> None:
        """Runs a handler that waits, when its lock is free. One that is aborted before that has not begun."""
        try:
            async with answer.turn:
                outcome = await self._run(entry, answer.work)
        finally:
            answer.work.close()
            over = True
            try:
                over = self._conclude(entry, outcome)
            finally:
                if over:
                    self._tasks.end(entry)

    async def _run(self, entry: Entry, work: Exclusive) -> Outcome:
        """What became of a handler that waits, unless the task was aborted meanwhile."""
        if entry.aborted:
            return entry.end_as
        entry.begun = True
        return await self._outcome(entry, work)

    async def _outcome(self, entry: Entry, work: Exclusive) -> Outcome:
        outcome: Outcome
        try:
            made = await work
            outcome = made if isinstance(made, Execute) else Complete(Status.GOOD, data_in=made)
        except CheckCondition as condition:
            outcome = self._check_condition(condition.sense)
        except EndsWith as end:
            outcome = self._ended_with(entry.task, end.status)
        except Exception:
            outcome = self._failed(entry.task)
        return entry.end_as if entry.aborted else outcome

    def _ended_with(self, task: Task, status: Status) -> Complete:
        self._note_status(task.itl, status)
        return Complete(status)

    @property
    def _tells_statuses(self) -> bool:
        return self.mode.field(CONTROL, "ua_intlck_ctrl") == ESTABLISHING

    def _note_status(self, itl: ITL, status: Status) -> None:
        """SPC-5 7.5.10: UA_INTLCK_CTRL=11b makes a unit attention condition of some statuses."""
        if status in PREVIOUS_STATUS and self._tells_statuses:
            itl.establish(PREVIOUS_STATUS[status])

    def fence_ordered(self, entry: Entry) -> None:
        """The task set's call: an ORDERED task waits for what C has in flight."""
        self.spawn(self._fence_ordered(entry))

    async def _fence_ordered(self, entry: Entry) -> None:
        await self.gate.fence(GateBit.ORDERED)
        self._tasks.fenced(entry)

    def settled(self) -> None:
        """The task set's call: no ORDERED or HEAD OF QUEUE task is left."""
        self.gate.open(GateBit.ORDERED)

    def _open_if_free(self, bit: GateBit, itl: ITL | None) -> None:
        if not self._tasks.is_held(bit, itl):
            (itl.gate if itl else self.gate).open(bit)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Everything waits, nothing is in flight and no handler is at work: for a resize, a removal, a new store.
        Nexuses may be detached inside; `held` and `logical_unit_reset` may not be called inside, they would wait for
        each other."""
        self._tasks.hold(GateBit.HOLD)
        self.gate.close(GateBit.HOLD)
        try:
            async with self._alone:
                await self._quiet()
                yield
        finally:
            self._tasks.release(GateBit.HOLD)
            self._tasks.pump()
            self._open_if_free(GateBit.HOLD, None)

    # ---- task management (SAM-5 7) ---------------------------------------------------------------------------------
    # `cancel` asks C to abort what it holds of the same tasks and returns when it has. Each function returns when all
    # matching tasks have ended, with those that Python knew of. `before`: only what the nexus sent earlier.

    @asynccontextmanager
    async def _ended(
        self,
        scope: ITL | None,
        match: Callable[[Task], bool],
        cancel: Cancel | None,
        *,
        others: bool = False,
        by: ITL | None = None,
    ) -> AsyncIterator[tuple[list[Task], set[ITL]]]:
        """Ends the matching tasks; until the block is left no task (of that nexus) starts. Gives those that Python knew
        of, and the nexuses of all. `others`: the nexus has tasks that do not match, and that nobody waits for. `by`:
        the nexus that wants it, where another one's tasks end as TAS says."""

        def end_as(task: Task) -> Outcome:
            told = by is not None and task.itl is not by and self.tells_of_aborts
            return Complete(Status.TASK_ABORTED) if told else Aborted()

        gate = self.gate if scope is None else scope.gate
        self._tasks.hold(GateBit.TMF, scope)
        gate.close(GateBit.TMF)
        try:
            tasks = self._tasks.abort(match, end_as)
            # What C runs may have ended by itself before C was asked: whether it lost them is C's to say.
            lost = {task.itl for task in tasks if not self._tasks.runs_in_c(task)}
            lost |= set() if cancel is None else set(await cancel() or ())
            # C has taken what the rings still held, and what of it was Python's has arrived meanwhile.
            late = [task for task in self._tasks.abort(match, end_as) if task not in tasks]
            lost |= {task.itl for task in late}
            tasks += late
            if cancel is None or not others:
                await gate.fence(GateBit.TMF)
            await self._tasks.ended(tasks)
            yield tasks, lost
        finally:
            self._tasks.release(GateBit.TMF, scope)
            self._tasks.pump()
            self._open_if_free(GateBit.TMF, scope)

    async def abort_task(self, itl: ITL, tag: int, cancel: Cancel | None = None, before: int | None = None) -> bool:
        """Whether a task was aborted; one that ended by itself at the last moment was not."""

        def match(task: Task) -> bool:
            return task.itl is itl and task.tag == tag and _earlier(task, itl, before)

        async with self._ended(itl, match, cancel, others=True) as (_, lost):
            return bool(lost)

    async def abort_task_set(self, itl: ITL, cancel: Cancel | None = None, before: int | None = None) -> list[Task]:
        def match(task: Task) -> bool:
            return task.itl is itl and _earlier(task, itl, before)

        async with self._ended(itl, match, cancel) as (tasks, _):
            return tasks

    async def abort_for(self, itl: ITL, by: Task) -> list[Task]:
        """SPC-5 5.14.11.5: every command of the nexus ends but the one that asks for it."""

        def match(task: Task) -> bool:
            return task.itl is itl and task is not by

        cancel = None if itl.cancel is None else partial(itl.cancel, itl is not by.itl)
        async with self._ended(itl, match, cancel, by=by.itl) as (tasks, _):
            return tasks

    @asynccontextmanager
    async def ended_by_fault(self, scope: ITL | None, match: Callable[[Task], bool], by: ITL) -> AsyncIterator[None]:
        """SPC-5 7.5.10, QERR: as a CLEAR TASK SET by the nexus of which a command has ended with CHECK CONDITION."""

        async def cancel() -> list[ITL]:
            lost: list[ITL] = []
            for itl in list(self.itls) if scope is None else [scope]:
                if itl.cancel is not None:
                    lost += await itl.cancel(itl is not by) or ()
            return lost

        async with self._ended(scope, match, cancel, by=by) as (_, lost):
            self._tell_cleared(by, lost)
            yield

    def _tell_cleared(self, by: ITL, lost: set[ITL]) -> None:
        for itl in self.itls:
            if itl is not by and itl in lost and not self.tells_of_aborts:
                itl.establish(sense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)

    async def clear_task_set(self, by: ITL, cancel: Cancel | None = None, before: int | None = None) -> list[Task]:
        """SAM-5 7.4: with TAS=0 the other nexuses learn by unit attention that tasks of theirs were cleared. With
        TST=001b it is the nexus's own task set."""
        if self.separate_task_sets:
            return await self.abort_task_set(by, cancel, before)
        async with self._ended(None, lambda task: _earlier(task, by, before), cancel, by=by) as (tasks, lost):
            self._tell_cleared(by, lost)
            return tasks

    async def clear_aca(self, itl: ITL, cancel: Cancel | None = None) -> None:
        """SAM-5 7.3: ends the ACA condition of the nexus, if there is one, and its command with the ACA attribute."""

        def match(task: Task) -> bool:
            return task.itl is itl and task.attribute is TaskAttribute.ACA

        if self.contingencies.faulted(itl):
            async with self._ended(itl, match, cancel, others=True):
                pass
            await self.contingencies.cleared(itl)

    def query_task(self, itl: ITL, tag: int, before: int | None = None) -> bool:
        return any(task.itl is itl and task.tag == tag and _earlier(task, itl, before) for task in self._tasks.tasks())

    def query_task_set(self, itl: ITL) -> bool:
        return any(task.itl is itl for task in self._tasks.tasks())

    async def logical_unit_reset(
        self, by: ITL | None = None, cancel: Cancel | None = None, before: int | None = None
    ) -> list[Task]:
        """SAM-5 6.3.3: tasks end, mode parameters return to their defaults, a stopped unit starts, every nexus learns
        of it, `by` too."""
        async with self._ended(None, lambda task: _earlier(task, by, before), cancel, by=by) as (tasks, _):
            if self.drive is not None:
                await self.drive.unlock(self.itls)
            self.contingencies.clear_all()
            async with self._alone:
                await self._restore(f"reset by {by.nexus.initiator.name if by else 'the target'}")
            await self.reservations.forget_legacy()
            self.establish(sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED)
            return tasks

    async def nexus_lost(self, itl: ITL, cancel: Cancel | None = None) -> list[Task]:
        """SAM-5 6.3.4: the nexus's tasks end; should it come back it learns of it. Other nexuses notice nothing."""
        async with self._ended(itl, lambda task: task.itl is itl, cancel) as (tasks, _):
            itl.lost()
            await self.reservations.forget_legacy(itl.nexus.id)
            return tasks

    @contextmanager
    def nexuses_held(self, itls: Sequence[ITL]) -> Iterator[None]:
        """No task of these nexuses starts until the block is left; what runs goes on."""
        for itl in itls:
            self._tasks.hold(GateBit.TMF, itl)
            itl.gate.close(GateBit.TMF)
        try:
            yield
        finally:
            for itl in itls:
                self._tasks.release(GateBit.TMF, itl)
            self._tasks.pump()
            for itl in itls:
                self._open_if_free(GateBit.TMF, itl)

    def nexuses_with_tasks(self) -> set[ITL]:
        """Those of which tasks wait or run under Python's eyes."""
        return {task.itl for task in self._tasks.tasks()}

    async def initiators_gone(self, itls: Iterable[ITL]) -> None:
        """Nobody is behind these nexuses any more; `nexus_lost` has ended their tasks. When no other nexus is in use
        the unit forgets what was made of it: whoever comes next has never heard of a stop or a mode page."""
        for itl in itls:
            itl.in_use = False
        if self._used() or self._is_as_new():
            return
        async with self.held():
            if not self._used():
                await self._restore("the loss of the last initiator")

    def _used(self) -> bool:
        return any(itl.in_use for itl in self.itls)


def _earlier(task: Task, by: ITL | None, before: int | None) -> bool:
    """Of the nexus that asks, what it sent before it asked; of others, everything that is there."""
    return before is None or task.itl is not by or task.order < before
