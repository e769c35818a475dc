# SPDX-License-Identifier: Apache-2.0
"""What a CHECK CONDITION means to other commands: QERR of the Control mode page, and auto contingent allegiance (SAM-5
5.9, SPC-5 7.5.10).

Nobody is told of such a CHECK CONDITION before the others have been stopped: aborted as QERR says, or, where NACA made
an ACA condition of it, ended in the data plane and held here. The sense itself, and the order of tasks, are elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.mode_pages import CONTROL
from vhost_scsi.scsi.reservation_rows import PERSISTENT_RESERVE_OUT, PREEMPT_AND_ABORT
from vhost_scsi.scsi.sense import EndsWith
from vhost_scsi.scsi.task import Outcome, Status, Task, TaskAttribute
from vhost_scsi.scsi.task_set import Done, Entry, TaskSet, is_naca

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit
    from vhost_scsi.scsi.nexus import ITL
    from vhost_scsi.scsi.reservations import NexusId


class QueueError(IntEnum):
    """SPC-5 7.5.10, QERR: whose commands a CHECK CONDITION ends, within the task set."""

    NOBODYS = 0b00
    EVERYBODYS = 0b01
    OWN = 0b11


@dataclass(slots=True, eq=False)
class Condition:
    """An ACA condition; `scope` is the nexus whose task set it stops, None for the one that all share."""

    scope: ITL | None


class Contingencies:
    """Of one logical unit. All calls come from the event loop's thread."""

    def __init__(self, unit: LogicalUnit, tasks: TaskSet) -> None:
        self._unit = unit
        self._tasks = tasks
        self._faulted: dict[ITL, Condition] = {}
        self._turn: Final = asyncio.Lock()
        """held while others are stopped for a fault: one at a time"""

    @property
    def queue_error(self) -> QueueError:
        return QueueError(self._unit.mode.field(CONTROL, "qerr"))

    def faulted(self, itl: ITL) -> bool:
        """Whether an ACA condition is in effect for the nexus."""
        return itl in self._faulted

    # ---- who may come in -------------------------------------------------------------------------------------------

    def turns_away(self, task: Task) -> Status | None:
        """SAM-5 5.9.3: the status of a new command that an ACA condition keeps out of the task set."""
        if task.itl in self._faulted:
            admitted = task.attribute is TaskAttribute.ACA and self.aca_task(task.itl) is None
            return None if admitted else Status.ACA_ACTIVE
        if not self._faulted or self._unit.separate_task_sets or _is_preempt_and_abort(task):
            return None
        return Status.ACA_ACTIVE if is_naca(task.cdb) else Status.BUSY

    def passes(self, task: Task) -> bool:
        """Of an admitted command: it runs while the condition is in effect that is in effect now."""
        return bool(self._faulted) and (task.attribute is TaskAttribute.ACA or _is_preempt_and_abort(task))

    def aca_task(self, itl: ITL) -> Task | None:
        """The command with the ACA attribute that the nexus has here."""
        mine = (task for task in self._tasks.tasks() if task.itl is itl)
        return next((task for task in mine if task.attribute is TaskAttribute.ACA), None)

    def check_preempt(self, preempted: Iterable[NexusId], by: Task) -> None:
        """SPC-5 5.14.11.2: PREEMPT AND ABORT does nothing while the ACA condition of a nexus is in effect that it does
        not preempt, and that shares its task set."""
        others = [itl for itl in self._faulted if itl is not by.itl and itl.nexus.id not in set(preempted)]
        if others and not self._unit.separate_task_sets:
            raise EndsWith(Status.ACA_ACTIVE if is_naca(by.cdb) else Status.BUSY)

    # ---- a fault ---------------------------------------------------------------------------------------------------

    def concerns(self, task: Task) -> bool:
        """Whether a CHECK CONDITION of this task is the business of others."""
        return self.queue_error is not QueueError.NOBODYS or is_naca(task.cdb) or task.attribute is TaskAttribute.ACA

    def fault(self, entry: Entry, outcome: Outcome) -> None:
        """The task is to end with CHECK CONDITION; it ends so when the others have been stopped."""
        condition = self._establish(entry.task.itl) if is_naca(entry.task.cdb) else None
        if condition is not None:
            entry.done = self._unless_aborted(entry, outcome, condition)
        self._unit.spawn(self._settle(entry, outcome, condition))

    def _unless_aborted(self, entry: Entry, outcome: Outcome, condition: Condition) -> Done:
        done = entry.done

        def ended(how: Outcome) -> None:
            done(how)
            if how is not outcome:
                # Aborted before anybody was told: there was no CHECK CONDITION.
                self.clear(entry.task.itl, condition)

        return ended

    def _establish(self, itl: ITL) -> Condition:
        scope = itl if self._unit.separate_task_sets else None
        before = self._faulted.get(itl)
        self._faulted[itl] = condition = Condition(scope)
        self._tasks.hold(GateBit.ACA, scope)
        (self._unit.gate if scope is None else itl.gate).close(GateBit.ACA)
        if before is not None:
            # SAM-5 5.9.4: the ACA command's own fault ends the condition that was, and begins another.
            self._tasks.release(GateBit.ACA, before.scope)
        return condition

    async def _settle(self, entry: Entry, outcome: Outcome, condition: Condition | None) -> None:
        itl = entry.task.itl
        async with self._turn, self._stopped(entry, condition):
            if not entry.ended:
                entry.done(outcome)
                self._tasks.end(entry)
        if condition is None and entry.task.attribute is TaskAttribute.ACA:
            # SAM-5 5.9.5: a CHECK CONDITION of the ACA command ends the condition.
            self.clear(itl)
        self._open()

    @asynccontextmanager
    async def _stopped(self, entry: Entry, condition: Condition | None) -> AsyncIterator[None]:
        unit, itl, task = self._unit, entry.task.itl, entry.task
        queue_error = self.queue_error
        if condition is not None and not entry.ended:
            # What was under way has ended, and nobody will say that it ended after the CHECK CONDITION.
            await (unit.gate if condition.scope is None else itl.gate).fence(GateBit.ACA)
        if queue_error is QueueError.NOBODYS or entry.ended:
            yield
            return
        own = queue_error is QueueError.OWN or unit.separate_task_sets
        scope = itl if own else None
        async with unit.ended_by_fault(scope, lambda each: each is not task and (not own or each.itl is itl), itl):
            yield

    # ---- the end of a condition ------------------------------------------------------------------------------------

    def clear(self, itl: ITL, condition: Condition | None = None) -> None:
        """Ends the ACA condition of the nexus (that very one, if given): what it held goes on."""
        found = self._faulted.get(itl)
        if found is None or condition not in (None, found):
            return
        del self._faulted[itl]
        self._tasks.release(GateBit.ACA, found.scope)
        self._tasks.pump()
        if found.scope is not None and not self._tasks.is_held(GateBit.ACA, found.scope):
            found.scope.gate.open(GateBit.ACA)
        self._open()

    def clear_all(self) -> None:
        for itl in list(self._faulted):
            self.clear(itl)

    def clear_preempted(self, preempted: Collection[NexusId]) -> None:
        for itl in [each for each in self._faulted if each.nexus.id in preempted]:
            self.clear(itl)

    async def cleared(self, itl: ITL) -> None:
        """As `clear`, for an initiator that asks for it: not while its CHECK CONDITION is on its way."""
        async with self._turn:
            self.clear(itl)

    def _open(self) -> None:
        # The data plane closes the unit's gate at every fault, whatever comes of it.
        if not self._tasks.is_held(GateBit.ACA):
            self._unit.gate.open(GateBit.ACA)


def _is_preempt_and_abort(task: Task) -> bool:
    return len(task.cdb) > 1 and task.cdb[0] == PERSISTENT_RESERVE_OUT and task.cdb[1] & 0x1F == PREEMPT_AND_ABORT
