# SPDX-License-Identifier: Apache-2.0
"""The target: all logical units and ports of one process, and the place where each task that reached Python is given to
the logical unit it is for.
"""

from __future__ import annotations

from typing import Final

from vhost_scsi._core import lib
from vhost_scsi.dataplane import Core, PyTask
from vhost_scsi.errors import ConfigError
from vhost_scsi.scsi.nexus import Cancel, Nexus, TargetPort
from vhost_scsi.scsi.null_unit import absent_unit, report_luns_unit
from vhost_scsi.scsi.saved_state import SavedState
from vhost_scsi.scsi.task import Aborted, Complete, Execute, Outcome, ServiceResponse, Status, Task, TaskAttribute, Tell
from vhost_scsi.slices import sliced
from vhost_scsi.stores import Store
from vhost_scsi.target import tmf
from vhost_scsi.target.medium import LuSpec
from vhost_scsi.target.port import MappedLun, Port
from vhost_scsi.target.port_ids import PortIds, PortIdsInMemory
from vhost_scsi.target.tmf import TaskManagementFunction
from vhost_scsi.target.unit import Unit

_INQUIRY: Final = b"\x12"


class Target:
    """All calls come from the loop's thread. One target for one core. `port_ids` gives its ports their numbers."""

    def __init__(self, core: Core, port_ids: PortIds | None = None) -> None:
        self.core: Final = core
        self.port_ids: Final[PortIds] = port_ids or PortIdsInMemory()
        self.target_ports: Final[dict[int, TargetPort]] = {}
        """by relative identifier: every port that shows logical units, whether or not an initiator is there"""
        self.units: Final[dict[str, Unit]] = {}
        self.ports: Final[dict[str, Port]] = {}
        self._ports_by_cookie: Final[dict[int, Port]] = {}
        self._mapped: Final[dict[int, MappedLun]] = {}
        self._run_in_c: Final[dict[int, Task]] = {}
        """those that C runs and will tell of, by that cookie: they may come back"""
        core.on_task(self._decide)

    # ---- building --------------------------------------------------------------------------------------------------

    async def add_lu(self, spec: LuSpec, store: Store | None, saved: SavedState | None = None) -> Unit:
        """Takes the store over; a removable unit needs none. `saved`: where the unit keeps what outlives the process;
        nowhere unless given. Raises ConfigError (the store is then still the caller's)."""
        if spec.name in self.units:
            raise ConfigError(f"logical unit {spec.name} is there already")
        unit = Unit(self.core, spec, store, saved)
        unit.logical_unit.target_ports = self.target_ports.values
        self.units[spec.name] = unit
        return unit

    def hide_lu(self, name: str) -> Unit:
        """Nobody finds the unit any more, to map it; where it is mapped it stays. The caller closes it when
        `nexuses_of` has nothing more."""
        return self.units.pop(name)

    def add_port(self, name: str, nexus: Nexus | None = None, *, initiator: int | None = None, group: int = 1) -> Port:
        """`nexus`: the I_T nexus of the port's target 0, where the transport knows more of it than a name. `initiator`:
        the 64-bit address by which reservations know who is behind the port; made up of its name unless given. `group`:
        its target port group."""
        if name in self.ports:
            raise ConfigError(f"port {name} is there already")
        port = Port(self, name, nexus, initiator, group)
        self.ports[name] = port
        self._ports_by_cookie[port.cookie] = port
        return port

    async def remove_port(self, port: Port) -> None:
        """Unmaps all; the transport takes no more tasks from it."""
        await port.unmap_all()
        del self.ports[port.name]
        del self._ports_by_cookie[port.cookie]

    async def close(self) -> None:
        """Unmaps and destroys everything; transports have stopped."""
        for port in self.ports.values():
            await port.unmap_all()
        async for unit in sliced(list(self.units.values())):
            await unit.close()
        self.units.clear()
        self.ports.clear()
        self._ports_by_cookie.clear()

    def nexus_added(self, mapped: MappedLun) -> None:
        self._mapped[mapped.cookie] = mapped

    def nexus_removed(self, mapped: MappedLun) -> None:
        del self._mapped[mapped.cookie]

    # ---- tasks -----------------------------------------------------------------------------------------------------

    def _decide(self, task: PyTask) -> None:
        if not task.nexus:
            self._answer_without_unit(task)
            return
        mapped = self._mapped[task.nexus]
        if mapped.hidden and task.cdb[:1] == _INQUIRY:
            # Who asks whether it is there is told that it is not; who knows it has a moment to write back.
            outcome = absent_unit(task.cdb, mapped.itl.nexus)
            self.core.answers.complete(task, outcome.status, outcome.sense, outcome.data_in)
            self.core.flush_soon()
            return
        scsi_task = self._run_in_c.get(task.notify) or Task(
            mapped.itl,
            task.tag,
            TaskAttribute(task.attribute),
            task.cdb,
            task.data_out,
            task.in_length,
            task.out_length,
            task.order,
            task.once,
        )
        lu = mapped.unit.logical_unit

        def done(outcome: Outcome) -> None:
            cookie = 0
            if isinstance(outcome, Execute) and outcome.notify:

                def finished(status: int) -> None:
                    del self._run_in_c[cookie]
                    lu.finished(scsi_task)

                cookie = self.core.on_done(finished)
                self._run_in_c[cookie] = scsi_task
            self._answer(task, mapped, outcome, cookie)

        if task.fault:
            lu.came_back(scsi_task, done, Status(task.status))
        elif task.overlapped:
            lu.overlapped(scsi_task, done)
        else:
            lu.submit(scsi_task, done)

    def _answer(self, task: PyTask, mapped: MappedLun, outcome: Outcome, cookie: int) -> None:
        answers = self.core.answers
        if isinstance(outcome, Complete):
            answers.complete(task, outcome.status, outcome.sense, outcome.data_in)
        elif isinstance(outcome, Execute):
            answers.execute(task, cookie)
        elif isinstance(outcome, Tell):
            answers.tell(task)
        elif isinstance(outcome, Aborted):
            answers.aborted(task, mapped.abort_response)
        self.core.flush_soon()

    def _answer_without_unit(self, task: PyTask) -> None:
        port = self._ports_by_cookie.get(task.port)
        if port is None:
            self.core.answers.respond(task, lib.VS_RESP_TARGET_FAILURE)
            return
        nexus = port.nexus(task.target)
        unit = report_luns_unit if task.lun_kind == lib.VS_LUN_REPORT_LUNS else absent_unit
        outcome = unit(task.cdb, nexus)
        self.core.answers.complete(task, outcome.status, outcome.sense, outcome.data_in)

    # ---- task management -------------------------------------------------------------------------------------------

    def nexuses_of(self, unit: Unit) -> list[MappedLun]:
        """Every I_T_L nexus of the unit, whatever its port."""
        return [mapped for mapped in self._mapped.values() if mapped.unit is unit]

    def canceller(self, mapped: MappedLun, *, others_told: bool = False) -> Cancel:
        return tmf.canceller(self.core, mapped.unit, [mapped], others_told=others_told)

    async def task_management(
        self,
        port: Port,
        function: TaskManagementFunction,
        target_id: int,
        lun: int,
        tag: int = 0,
        before: int | None = None,
    ) -> ServiceResponse:
        """Returns when the function is complete: every task it ended has been answered. `before`: the function's own
        place among what the nexus sends, where the transport knows one (Task.order)."""
        return await tmf.run(self.core, port, function, target_id, lun, tag, before)

    async def abort_task(self, port: Port, target_id: int, lun: int, tag: int, before: int | None = None) -> bool:
        """ABORT TASK as task_management() has it, for who must know whether a task was aborted."""
        return await tmf.abort_task(self.core, port, target_id, lun, tag, before)
