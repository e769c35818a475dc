# SPDX-License-Identifier: Apache-2.0
"""Task management on the tasks of both planes (SAM-5 7): which logical unit's function is called, and how C is asked to
end or to look for what it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, assert_never

from vhost_scsi._core import ffi, lib
from vhost_scsi.scsi.task import ServiceResponse, Status

if TYPE_CHECKING:
    from vhost_scsi.dataplane import Core
    from vhost_scsi.scsi.nexus import ITL, Cancel
    from vhost_scsi.target.port import MappedLun, Port
    from vhost_scsi.target.unit import Unit


class TaskManagementFunction(Enum):
    """SAM-5 7.1."""

    ABORT_TASK = auto()
    ABORT_TASK_SET = auto()
    CLEAR_ACA = auto()
    CLEAR_TASK_SET = auto()
    I_T_NEXUS_RESET = auto()
    LOGICAL_UNIT_RESET = auto()
    QUERY_TASK = auto()
    QUERY_TASK_SET = auto()


async def post(
    core: Core,
    unit: Unit,
    action: int,
    *,
    nexus: MappedLun,
    tag: int | None = None,
    before: int | None = None,
    status: int = 0,
) -> int:
    """Asks every worker; returns how many tasks matched, when those that were aborted have ended: without a status, or
    with that one."""
    tmf = ffi.new("struct vs_tmf *")
    tmf.lu = unit.handle
    tmf.nexus = nexus.handle
    tmf.match = lib.VS_TMF_LU | lib.VS_TMF_NEXUS
    tmf.action = action
    tmf.response = nexus.abort_response
    tmf.status = status
    if tag is not None:
        tmf.tag = tag
        tmf.match |= lib.VS_TMF_TAG
    if before is not None:
        tmf.before = before
        tmf.match |= lib.VS_TMF_BEFORE
    return await _ask(core, tmf)


async def ask_port(core: Core, port: Port, action: int) -> None:
    """VS_TMF_ABORT ends what C holds of all nexuses of the port, as a reset does. After VS_TMF_QUERY, too, whatever the
    initiator had sent is in C's or Python's hands."""
    tmf = ffi.new("struct vs_tmf *")
    tmf.port_cookie = port.cookie
    tmf.match = lib.VS_TMF_PORT
    tmf.action = action
    tmf.response = lib.VS_RESP_RESET
    await _ask(core, tmf)


async def _ask(core: Core, tmf: Any) -> int:
    def send(cookie: int) -> None:
        tmf.cookie = cookie
        lib.vs_tmf_post(core.handle, tmf)

    matched = sum(reply.aux for reply in await core.each_worker(send))
    # The workers have popped all that their rings held. What of it is Python's must be in the task sets before anybody
    # looks for it there.
    await core.caught_up()
    return matched


def canceller(
    core: Core,
    unit: Unit,
    nexuses: Sequence[MappedLun],
    tag: int | None = None,
    by: MappedLun | None = None,
    before: int | None = None,
    others_told: bool = False,
) -> Cancel:
    """What the SCSI core calls to end the tasks that C holds for these nexuses of the unit; of the one that asks (`by`)
    those that it sent before. `others_told`: those of another nexus end with a status where the unit's TAS says so."""

    async def end(nexus: MappedLun) -> int:
        limit = before if nexus is by else None
        told = others_told and nexus is not by and unit.logical_unit.tells_of_aborts
        status = Status.TASK_ABORTED if told else 0
        return await post(core, unit, lib.VS_TMF_ABORT, nexus=nexus, tag=tag, before=limit, status=status)

    async def cancel() -> list[ITL]:
        # One after the other: which of them lost tasks decides who is told.
        return [each.itl for each in nexuses if await end(each)]

    return cancel


async def abort_task(core: Core, port: Port, target_id: int, lun: int, tag: int, before: int | None = None) -> bool:
    """ABORT TASK, for a transport that tells its initiator whether there was such a task (RFC 7143 11.6.1); SAM-5 7.2
    does not. True: it was aborted, and no status of it is sent. False: there is none, or it has ended by itself."""
    mapped = port.at(target_id, lun)
    if mapped is None:
        return False
    found = await _abort_task(core, mapped, tag, before)
    await core.delivered()
    return found


async def _abort_task(core: Core, mapped: MappedLun, tag: int, before: int | None) -> bool:
    cancel = canceller(core, mapped.unit, [mapped], tag, mapped, before)
    return await mapped.unit.logical_unit.abort_task(mapped.itl, tag, cancel, before)


async def run(
    core: Core,
    port: Port,
    function: TaskManagementFunction,
    target_id: int,
    lun: int,
    tag: int,
    before: int | None = None,
) -> ServiceResponse:
    """Carries the function out; returns when every task that it ends has been answered and touches nothing any more.
    `before`: where the function stands among what its nexus sends; later tasks of that nexus are none of its business.
    """
    mapped = port.at(target_id, lun)
    if function is TaskManagementFunction.I_T_NEXUS_RESET:
        return await _nexus_reset(port, target_id)
    if mapped is None:
        return ServiceResponse.INCORRECT_LOGICAL_UNIT_NUMBER
    unit, itl, lu, target = mapped.unit, mapped.itl, mapped.unit.logical_unit, port.target
    match function:
        case TaskManagementFunction.ABORT_TASK:
            await _abort_task(core, mapped, tag, before)
        case TaskManagementFunction.ABORT_TASK_SET:
            await lu.abort_task_set(itl, canceller(core, unit, [mapped], None, mapped, before), before)
        case TaskManagementFunction.CLEAR_TASK_SET:
            everybody = [mapped] if lu.separate_task_sets else target.nexuses_of(unit)
            await lu.clear_task_set(itl, canceller(core, unit, everybody, None, mapped, before, True), before)
        case TaskManagementFunction.LOGICAL_UNIT_RESET:
            with unit.resetting():
                everybody = target.nexuses_of(unit)
                await lu.logical_unit_reset(itl, canceller(core, unit, everybody, None, mapped, before, True), before)
        case TaskManagementFunction.QUERY_TASK:
            found = await post(core, unit, lib.VS_TMF_QUERY, nexus=mapped, tag=tag, before=before)
            return _found(found > 0 or lu.query_task(itl, tag, before))
        case TaskManagementFunction.QUERY_TASK_SET:
            found = await post(core, unit, lib.VS_TMF_QUERY, nexus=mapped)
            return _found(found > 0 or lu.query_task_set(itl))
        case TaskManagementFunction.CLEAR_ACA:
            aca = lu.contingencies.aca_task(itl)
            await lu.clear_aca(itl, None if aca is None else canceller(core, unit, [mapped], aca.tag, mapped, before))
        case _:
            assert_never(function)
    # What Python ended may be another worker's to show than the one that will show our answer.
    await core.delivered()
    return ServiceResponse.FUNCTION_COMPLETE


def _found(found: bool) -> ServiceResponse:
    return ServiceResponse.FUNCTION_SUCCEEDED if found else ServiceResponse.FUNCTION_COMPLETE


async def _nexus_reset(port: Port, target_id: int) -> ServiceResponse:
    mapped = [each for each in port.luns if each.target_id == target_id]
    if not mapped:
        return ServiceResponse.INCORRECT_LOGICAL_UNIT_NUMBER
    for each in mapped:
        with each.unit.resetting():
            await each.unit.logical_unit.nexus_lost(each.itl, canceller(port.core, each.unit, [each]))
    await port.core.delivered()
    return ServiceResponse.FUNCTION_COMPLETE
