# SPDX-License-Identifier: Apache-2.0
"""The tasks of a logical unit that Python knows of, and which of them may start (SAM-5 8).

One task set for all nexuses (TST=000b) or one for each (TST=001b), unrestricted reordering of SIMPLE tasks (QUEUE
ALGORITHM MODIFIER=1). Tasks that C runs on its own are not here: a fence stands for them. What a task does is the
logical unit's affair.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Protocol

from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.nexus import ITL
from vhost_scsi.scsi.task import Aborted, Outcome, Task, TaskAttribute

NACA: Final = 0x04
VARIABLE_LENGTH: Final = 0x7F
GROUP_LENGTH: Final = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
"""SPC-5 4.2.5.1: the CDB length by the operation code's group"""

Done = Callable[[Outcome], None]


class State(Enum):
    HELD = auto()
    """waits: a hold, an older ORDERED or HEAD OF QUEUE task, or (ORDERED) any older task"""
    FENCING = auto()
    """an ORDERED task whose turn has come waits for what C has in flight"""
    RUNNING = auto()
    """a handler waits for the data plane, or C runs it and will report"""


@dataclass(slots=True, eq=False)
class Entry:
    task: Task
    done: Done
    state: State = State.HELD
    fenced: bool = False
    aborted: bool = False
    in_c: bool = False
    begun: bool = False
    """the handler is at work and can only be waited for"""
    ended: bool = False
    cancel: Callable[[], object] | None = None
    """ends a handler that is at work soon"""
    end_as: Outcome = field(default_factory=Aborted)
    """what becomes of it if it is aborted"""
    passes_aca: bool = False
    """an ACA condition does not stop it"""
    outcome: Outcome | None = None
    """it has run, and an ACA condition keeps it from ending"""


def closes_ordered(task: Task) -> bool:
    """C closes the ORDERED gate when such a task arrives."""
    return task.attribute is not TaskAttribute.SIMPLE


def is_naca(cdb: bytes) -> bool:
    """SAM-5 5.2: a CHECK CONDITION of this command establishes an ACA condition."""
    return bool(_control(cdb) & NACA)


def _control(cdb: bytes) -> int:
    """SAM-5 5.2: the CONTROL byte is the last one, or byte 1 of a variable-length CDB."""
    if not cdb:
        return 0
    at = 1 if cdb[0] == VARIABLE_LENGTH else GROUP_LENGTH.get(cdb[0] >> 5, 0) - 1
    return cdb[at] if 0 <= at < len(cdb) else 0


class Owner(Protocol):
    """What the task set asks of its logical unit."""

    def start(self, entry: Entry) -> None:
        """Decides the task. The entry stays in the set only if `run` was called meanwhile."""

    def fence_ordered(self, entry: Entry) -> None:
        """Closes the ORDERED gate, waits for what is in flight, then calls `fenced(entry)`."""

    @property
    def separate_task_sets(self) -> bool:
        """TST=001b: the tasks of one nexus are no matter to another one's."""
        ...

    def settled(self) -> None:
        """No ORDERED or HEAD OF QUEUE task is left."""


@dataclass(slots=True, eq=False)
class TaskSet:
    owner: Owner
    _entries: dict[Task, Entry] = field(default_factory=dict)
    _holds: Counter[tuple[GateBit, ITL | None]] = field(default_factory=Counter)
    _pumping: bool = False
    _again: bool = False
    _settle_due: bool = False
    _changed: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def tasks(self) -> list[Task]:
        """In arrival order."""
        return list(self._entries)

    # ---- holds -----------------------------------------------------------------------------------------------------

    def hold(self, bit: GateBit, itl: ITL | None = None) -> None:
        """Nothing starts (of that nexus) until the matching release; holds nest."""
        self._holds[bit, itl] += 1

    def release(self, bit: GateBit, itl: ITL | None = None) -> None:
        self._holds[bit, itl] -= 1
        if not self._holds[bit, itl]:
            del self._holds[bit, itl]

    def is_held(self, bit: GateBit, itl: ITL | None = None) -> bool:
        return (bit, itl) in self._holds

    def _blocked(self, entry: Entry) -> bool:
        return any(
            itl in (None, entry.task.itl) and not (bit is GateBit.ACA and entry.passes_aca) for bit, itl in self._holds
        )

    def is_blocked(self, entry: Entry) -> bool:
        """SAM-5 8.4: an ACA condition keeps the task from ending."""
        stopped = self.is_held(GateBit.ACA) or self.is_held(GateBit.ACA, entry.task.itl)
        return stopped and not entry.passes_aca

    # ---- life of a task --------------------------------------------------------------------------------------------

    def arrive(self, task: Task, done: Done, *, passes_aca: bool = False) -> None:
        """Takes the task in; it starts now or later."""
        if task in self._entries:
            raise ValueError("a task arrives once")
        self._entries[task] = Entry(task, done, passes_aca=passes_aca)
        self.pump()

    def turned_away(self, task: Task) -> None:
        """The task has ended without having been here."""
        self._settle_due = self._settle_due or closes_ordered(task)
        self.pump()

    def come_back(self, task: Task, done: Done) -> Entry:
        """C ran the task and cannot end it: it is Python's, whether or not it was before."""
        entry = self._entries.get(task)
        if entry is None:
            entry = self._entries[task] = Entry(task, done)
        self.run(entry)
        entry.done = done
        return entry

    def park(self, entry: Entry, outcome: Outcome) -> None:
        """The task has run; `start` is called once more when it may end."""
        self._at_rest(entry)
        entry.state = State.HELD
        entry.outcome = outcome

    def wait(self, entry: Entry) -> None:
        """The task has run, and others are seen to before it ends."""
        self._at_rest(entry)
        entry.state = State.RUNNING

    def _at_rest(self, entry: Entry) -> None:
        # Nobody is at work on it: to abort it is to end it.
        entry.in_c = entry.begun = False
        entry.cancel = None

    def run(self, entry: Entry, *, in_c: bool = False) -> None:
        """The task has started and will end later."""
        entry.state = State.RUNNING
        entry.in_c = in_c

    def end(self, entry: Entry) -> None:
        """The task has ended; what waited for it may start."""
        self._remove(entry)
        self.pump()

    def finished(self, task: Task) -> None:
        """C reports that a task with Execute(notify=True) ended."""
        entry = self._entries.get(task)
        if entry is not None and entry.in_c:
            self.end(entry)

    def fenced(self, entry: Entry) -> None:
        if self._entries.get(entry.task) is entry:
            entry.fenced = True
            entry.state = State.HELD
            self.pump()

    def _remove(self, entry: Entry) -> None:
        entry.ended = True
        if self._entries.pop(entry.task, None) is not None:
            self._settle_due = self._settle_due or closes_ordered(entry.task)
            if self._changed is not None:
                self._changed.set()

    def pump(self) -> None:
        """Starts all that may start, in arrival order. Safe to call from within itself."""
        self._again = True
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._again:
                self._again = False
                self._pass()
        finally:
            self._pumping = False
        # Only now: the tasks that waited behind an ORDERED one have been handed back before the gate opens.
        if self._settle_due and all(task.attribute is TaskAttribute.SIMPLE for task in self._entries):
            self._settle_due = False
            self.owner.settled()

    def _pass(self) -> None:
        for entry in list(self._entries.values()):
            # SAM-5 8.6.4, 8.6.5: these start before all others; what has run only ends.
            if entry.task.attribute in (TaskAttribute.HEAD_OF_QUEUE, TaskAttribute.ACA) or entry.outcome is not None:
                self._try(entry)
        older: Counter[ITL | None] = Counter()
        barriers: set[ITL | None] = set()
        for entry in list(self._entries.values()):
            attribute = entry.task.attribute
            mine = entry.task.itl if self.owner.separate_task_sets else None
            if attribute is TaskAttribute.ORDERED:
                # SAM-5 8.6.3: an ORDERED task waits for every older one.
                if not older[mine]:
                    self._try(entry)
            elif mine not in barriers:
                # SAM-5 8.6.2: a SIMPLE task waits for older ORDERED and HEAD OF QUEUE tasks only.
                self._try(entry)
            if entry.task in self._entries:
                older[mine] += 1
                if attribute in (TaskAttribute.ORDERED, TaskAttribute.HEAD_OF_QUEUE):
                    barriers.add(mine)

    def _try(self, entry: Entry) -> None:
        if entry.state is not State.HELD or entry.task not in self._entries or self._blocked(entry):
            return
        if entry.task.attribute is TaskAttribute.ORDERED and not entry.fenced and entry.outcome is None:
            entry.state = State.FENCING
            self.owner.fence_ordered(entry)
            return
        self.owner.start(entry)
        if entry.state is State.HELD:
            self._remove(entry)
            self._again = True

    # ---- task management -------------------------------------------------------------------------------------------

    def abort(self, match: Callable[[Task], bool], end_as: Callable[[Task], Outcome] | None = None) -> list[Task]:
        """Ends every matching task as far as it is Python's, with that outcome. Those whose handler is at work are
        marked, and end so when it returns; those that C runs are C's to abort. Returns all that matched, in arrival
        order."""
        found = [entry for entry in self._entries.values() if match(entry.task)]
        for entry in found:
            entry.aborted = True
            if end_as is not None:
                entry.end_as = end_as(entry.task)
            if entry.in_c or entry.begun:
                if entry.cancel is not None:
                    entry.cancel()
                continue
            self._remove(entry)
            entry.done(entry.end_as)
        if found:
            self.pump()
        return [entry.task for entry in found]

    def runs_in_c(self, task: Task) -> bool:
        entry = self._entries.get(task)
        return entry is not None and entry.in_c

    async def ended(self, tasks: list[Task]) -> None:
        """Returns when none of the tasks is in the set any more."""
        while any(task in self._entries for task in tasks):
            self._changed = self._changed or asyncio.Event()
            self._changed.clear()
            await self._changed.wait()
