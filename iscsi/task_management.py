# SPDX-License-Identifier: Apache-2.0
"""Task management of one session over the SCSI target (RFC 7143 11.5, 11.6): which tasks a function is about by their
CmdSN, waiting for those that are still on their way, and what it is answered with.

What may be asked at all, and at which level, `rare.py` has checked; how tasks end is `vhost_scsi.target`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from vhost_scsi._core import lib
from vhost_scsi.iscsi.codes import TaskFunction, TaskResponse
from vhost_scsi.scsi.task import ServiceResponse
from vhost_scsi.target import Target, TaskManagementFunction

if TYPE_CHECKING:
    from vhost_scsi.dataplane import Core
    from vhost_scsi.iscsi.data_plane import CoreSession
    from vhost_scsi.iscsi.pdu import TaskManagementRequest

EARLIER_TIMEOUT: Final = 2.0
"""seconds that a function waits for commands with lower CmdSNs, which other connections are to bring"""
_LOOK: Final = 0.005  # seconds between looks at the window, while waiting
_HALF: Final = 1 << 31

_FUNCTIONS: Final = {
    TaskFunction.ABORT_TASK_SET: TaskManagementFunction.ABORT_TASK_SET,
    TaskFunction.CLEAR_ACA: TaskManagementFunction.CLEAR_ACA,
    TaskFunction.CLEAR_TASK_SET: TaskManagementFunction.CLEAR_TASK_SET,
    TaskFunction.LOGICAL_UNIT_RESET: TaskManagementFunction.LOGICAL_UNIT_RESET,
    TaskFunction.QUERY_TASK: TaskManagementFunction.QUERY_TASK,
    TaskFunction.QUERY_TASK_SET: TaskManagementFunction.QUERY_TASK_SET,
}
_RESPONSES: Final = {
    ServiceResponse.FUNCTION_COMPLETE: TaskResponse.COMPLETE,
    ServiceResponse.FUNCTION_SUCCEEDED: TaskResponse.SUCCEEDED,
    ServiceResponse.FUNCTION_REJECTED: TaskResponse.REJECTED,
    ServiceResponse.INCORRECT_LOGICAL_UNIT_NUMBER: TaskResponse.LUN_DOES_NOT_EXIST,
    ServiceResponse.SERVICE_DELIVERY_OR_TARGET_FAILURE: TaskResponse.REJECTED,
}
_WAITS_FOR_EARLIER: Final = frozenset(
    (TaskFunction.ABORT_TASK_SET, TaskFunction.CLEAR_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET)
)
_OF_THE_TARGET: Final = frozenset((TaskFunction.TARGET_WARM_RESET, TaskFunction.TARGET_COLD_RESET))


def lun_number(field: int) -> int | None:
    """The LUN of an 8-byte field (SAM-5 4.7): peripheral with bus 0, or flat; None for any other form."""
    first = field >> 48
    if field & ((1 << 48) - 1) or (first >> 8 and first >> 14 != 1):
        return None
    return first & 0x3FFF


def is_lower(one: int, other: int) -> bool:
    """Serial number arithmetic (RFC 1982), as RFC 7143 4.2.2 has it."""
    return 0 < (other - one) & 0xFFFFFFFF < _HALF


class TaskManagement:
    """One for a data plane."""

    def __init__(self, core: Core, target: Target) -> None:
        self._core = core
        self._target = target

    async def run(self, session: CoreSession, request: TaskManagementRequest, order: int) -> TaskResponse:
        """Returns when all that the function ends has ended. `order`: of its PDU, as the data plane numbers them."""
        function = TaskFunction(request.function)
        if function in _OF_THE_TARGET:
            return await self._reset_target(session, request, order)
        if function is TaskFunction.I_T_NEXUS_RESET:
            return await self._ask(session, TaskManagementFunction.I_T_NEXUS_RESET, 0, 0, order)
        lun = lun_number(request.lun)
        if function is not TaskFunction.ABORT_TASK and function not in _FUNCTIONS:
            return TaskResponse.NOT_SUPPORTED
        if lun is None or session.port.at(0, lun) is None:
            return TaskResponse.LUN_DOES_NOT_EXIST
        if function is TaskFunction.ABORT_TASK:
            return await self._abort_task(session, request, lun, order)
        if function in _WAITS_FOR_EARLIER and not await self._earlier_came(session, request.cmd_sn):
            # Nothing has been aborted: an initiator that is told so goes on to a reset of the target or the session.
            return TaskResponse.REJECTED
        return await self._ask(session, _FUNCTIONS[function], lun, request.referenced_task_tag, order)

    async def _ask(
        self, session: CoreSession, function: TaskManagementFunction, lun: int, tag: int, order: int
    ) -> TaskResponse:
        return _RESPONSES[await self._target.task_management(session.port, function, 0, lun, tag, order)]

    # ---- ABORT TASK ------------------------------------------------------------------------------------------------

    async def _abort_task(
        self, session: CoreSession, request: TaskManagementRequest, lun: int, order: int
    ) -> TaskResponse:
        if await self._abort_known(session, request, lun, order):
            return TaskResponse.COMPLETE
        # 11.6.1: a command that has not come is considered as received, so that it is dropped when it comes.
        exp_cmd_sn, max_cmd_sn = session.window
        ref = request.ref_cmd_sn
        in_window = not is_lower(ref, exp_cmd_sn) and not is_lower(max_cmd_sn, ref)
        if not in_window or not is_lower(ref, request.cmd_sn):
            return TaskResponse.TASK_DOES_NOT_EXIST
        if not await self._plug(session, ref, ref + 1):
            await self._abort_known(session, request, lun, order)  # it came meanwhile
        return TaskResponse.COMPLETE

    async def _abort_known(self, session: CoreSession, request: TaskManagementRequest, lun: int, order: int) -> bool:
        return await self._target.abort_task(session.port, 0, lun, request.referenced_task_tag, order)

    # ---- sets of tasks ---------------------------------------------------------------------------------------------

    async def _earlier_came(self, session: CoreSession, cmd_sn: int) -> bool:
        """4.2.3.3: the function is about every command with a lower CmdSN, also about those that other connections
        have not brought yet."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + EARLIER_TIMEOUT
        while is_lower(session.window[0], cmd_sn):
            if loop.time() > deadline or not session.connections:
                return False
            await asyncio.sleep(_LOOK)
        return True

    async def _reset_target(self, session: CoreSession, request: TaskManagementRequest, order: int) -> TaskResponse:
        # 4.2.3.3: what has not come may be considered as received: nobody waits for it.
        await self._plug(session, session.window[0], request.cmd_sn)
        for mapped in session.port.luns:
            await self._ask(session, TaskManagementFunction.LOGICAL_UNIT_RESET, mapped.lun, 0, order)
        return TaskResponse.COMPLETE

    async def _plug(self, session: CoreSession, first: int, end: int) -> int:
        """How many of these numbers had not come."""
        if not is_lower(first, end & 0xFFFFFFFF):
            return 0
        handle = session.handle
        reply = await self._core.message(lambda cookie: lib.vs_isession_plug(handle, first, end & 0xFFFFFFFF, cookie))
        return reply.aux
