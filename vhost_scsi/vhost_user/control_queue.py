# SPDX-License-Identifier: Apache-2.0
"""The control queue's requests (virtio 1.3, 5.6.6.2): task management functions and asynchronous notifications.

Parses what C copied out of the ring, lets the target carry it out, and answers. Hostile bytes end as a response code.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core
from vhost_scsi.scsi.task import ServiceResponse
from vhost_scsi.target import Port, TaskManagementFunction
from vhost_scsi.virtqueue.virtio_scsi import (
    AnRequest,
    AnResponse,
    ControlResponse,
    ControlType,
    LunAddress,
    TaskManagement,
    TmfRequest,
    WireError,
    decode_lun,
)

if TYPE_CHECKING:
    from vhost_scsi._core import CData

LOG: Final = logging.getLogger("vhost_scsi.control")

FUNCTIONS: Final = {subtype: TaskManagementFunction[subtype.name] for subtype in TaskManagement}
RESPONSES: Final = {
    ServiceResponse.FUNCTION_COMPLETE: ControlResponse.FUNCTION_COMPLETE,
    ServiceResponse.FUNCTION_SUCCEEDED: ControlResponse.FUNCTION_SUCCEEDED,
    ServiceResponse.FUNCTION_REJECTED: ControlResponse.FUNCTION_REJECTED,
    ServiceResponse.INCORRECT_LOGICAL_UNIT_NUMBER: ControlResponse.INCORRECT_LUN,
    ServiceResponse.SERVICE_DELIVERY_OR_TARGET_FAILURE: ControlResponse.TARGET_FAILURE,
}


class ControlQueue:
    """Requests of one device; several may be under way."""

    def __init__(self, core: Core, port: Port) -> None:
        self._core = core
        self._port = port
        self._running: set[asyncio.Task[None]] = set()

    def arrived(self, ctrl: CData) -> None:
        info: Any = ffi.new("struct vs_ctrl_info *")
        lib.vs_ctrl_info(ctrl, info)
        request = bytes(ffi.buffer(info.out, info.out_length)) if info.out_length else b""
        task = asyncio.get_running_loop().create_task(self._serve(ctrl, request))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def idle(self) -> None:
        while self._running:
            await asyncio.wait(self._running)

    async def _serve(self, ctrl: CData, request: bytes) -> None:
        try:
            reply = await self._answer(request)
        except Exception:
            LOG.exception("port %s: a control request failed", self._port.name)
            reply = bytes([ControlResponse.TARGET_FAILURE])
        lib.vs_ctrl_reply(self._core.handle, ctrl, reply, len(reply))

    async def _answer(self, request: bytes) -> bytes:
        kind = int.from_bytes(request[:4], "little") if len(request) >= 4 else None
        try:
            if kind == ControlType.TMF:
                return bytes([await self._task_management(TmfRequest.parse(request))])
            if kind in (ControlType.AN_QUERY, ControlType.AN_SUBSCRIBE):
                return self._notification(AnRequest.parse(request))
        except WireError:
            pass
        return bytes([ControlResponse.FAILURE])

    def _address(self, lun: bytes) -> LunAddress | None:
        """The place, if this device has such a target."""
        try:
            address = decode_lun(lun)
        except WireError:
            return None
        if not isinstance(address, LunAddress) or all(m.target_id != address.target for m in self._port.luns):
            return None
        return address

    async def _task_management(self, request: TmfRequest) -> ControlResponse:
        address = self._address(request.lun)
        if address is None:
            return ControlResponse.BAD_TARGET
        try:
            function = FUNCTIONS[TaskManagement(request.subtype)]
        except ValueError:
            return ControlResponse.FUNCTION_REJECTED
        response = await self._port.target.task_management(
            self._port, function, address.target, address.lun, request.tag
        )
        return RESPONSES[response]

    def _notification(self, request: AnRequest) -> bytes:
        """No asynchronous event is ever sent for a subscription, and event_actual says so."""
        address = self._address(request.lun)
        if address is None:
            return AnResponse(0, ControlResponse.BAD_TARGET).build()
        if self._port.at(address.target, address.lun) is None:
            return AnResponse(0, ControlResponse.INCORRECT_LUN).build()
        return AnResponse(0, ControlResponse.FUNCTION_COMPLETE).build()
