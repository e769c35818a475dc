# SPDX-License-Identifier: Apache-2.0
"""What comes up from full-feature phase: text, logout, task management, SNACK, commands with additional headers, and
what means nothing; and what happened to connections.

Every answer goes down through `FullFeature.send`, which numbers it. SCSI itself is behind `ScsiSide`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from vhost_scsi.iscsi import discovery, pdu, refused_words
from vhost_scsi.iscsi.codes import (
    RESERVED_TAG,
    RFC_7144_FUNCTIONS,
    LogoutReason,
    LogoutResponseCode,
    Opcode,
    RejectReason,
    TaskFunction,
    TaskResponse,
)
from vhost_scsi.iscsi.full_feature import (
    ConnectionEvent,
    ConnectionHandle,
    EventKind,
    FullFeature,
    RefusedBelow,
    RemoveReason,
)
from vhost_scsi.iscsi.node import Node
from vhost_scsi.iscsi.pdu import (
    AsyncMessage,
    Bhs,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    PduError,
    Reject,
    ScsiCommand,
    TaskManagementRequest,
    TaskManagementResponse,
    TextRequest,
)
from vhost_scsi.iscsi.session_keeper import SessionKeeper
from vhost_scsi.iscsi.sessions import Connection, Session
from vhost_scsi.iscsi.text_exchange import TextExchange, TextRejected

LOG: Final = logging.getLogger("vhost_scsi.control")
MAX_TASKS: Final = 32  # requests of one connection that are being worked on here; task management takes time

_ENDS: Final = {
    EventKind.CLOSED_BY_PEER: RemoveReason.GONE,
    EventKind.SOCKET_ERROR: RemoveReason.GONE,
    EventKind.HEADER_DIGEST_ERROR: RemoveReason.PROTOCOL,
    EventKind.PROTOCOL_ERROR: RemoveReason.PROTOCOL,
    EventKind.TIMEOUT: RemoveReason.TIMEOUT,
}
_DISCOVERY_MAY: Final = frozenset((Opcode.TEXT_REQUEST, Opcode.LOGOUT_REQUEST, Opcode.NOP_OUT))


class ScsiSide(Protocol):
    """What stands behind the sessions' LUNs."""

    async def task_management(self, connection: Connection, request: TaskManagementRequest, order: int) -> TaskResponse:
        """Returns when the function is complete. Functions and levels have been checked; reassignment does not come.
        `order` is as in `Upcalls.on_pdu`."""
        ...

    def command(self, connection: Connection, command: ScsiCommand, cdb: bytes, data: bytes) -> None:
        """A command whose header had additional segments; it is answered by whoever runs it."""
        ...


class Refused(Exception):
    """The PDU is answered with a Reject; the text is for people."""

    def __init__(self, reason: RejectReason, why: str) -> None:
        super().__init__(why)
        self.reason = reason


class RareHandler:
    """The `Upcalls` of one node."""

    def __init__(self, node: Node, keeper: SessionKeeper, full_feature: FullFeature, scsi: ScsiSide) -> None:
        self._node = node
        self._keeper = keeper
        self._full_feature = full_feature
        self._scsi = scsi
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[Connection, int] = {}
        self._early: dict[ConnectionHandle, list[Callable[[], None]]] = {}
        self._handlers: Final[dict[Opcode, Callable[[Connection, Any, bytes, bytes], None]]] = {
            Opcode.TEXT_REQUEST: self._text,
            Opcode.LOGOUT_REQUEST: self._logout,
            Opcode.SCSI_COMMAND: self._command,
            Opcode.NOP_OUT: self._nop_out,
            Opcode.SNACK_REQUEST: self._snack,
            Opcode.LOGIN_REQUEST: self._login,
        }
        keeper.on_registered = self._registered
        full_feature.attach(self)

    # ---- upcalls ---------------------------------------------------------------------------------------------------

    def on_pdu(self, handle: ConnectionHandle, bhs: bytes, ahs: bytes, data: bytes, order: int) -> None:
        connection = self._keeper.connection_of(handle)
        if connection is None:
            self._keep_for_later(handle, lambda: self.on_pdu(handle, bhs, ahs, data, order))
            return
        try:
            self._dispatch(connection, bhs, ahs, data, order)
        except Refused as refused:
            self.reject(connection, bhs, refused.reason, str(refused))

    def on_event(self, handle: ConnectionHandle, event: ConnectionEvent) -> None:
        connection = self._keeper.connection_of(handle)
        if connection is None:
            self._keep_for_later(handle, lambda: self.on_event(handle, event))
            return
        if event.kind is EventKind.DATA_DIGEST_ERROR:
            # 7.8: the PDU is rejected, the connection lives.
            self.reject(connection, event.bhs, RejectReason.DATA_DIGEST_ERROR, "its data digest is wrong")
            return
        if event.kind is not EventKind.CLOSED_BY_PEER:
            self._tell(connection, event.kind.name.lower(), "to go on", f"{event.kind.value} {event.detail}".rstrip())
        self._go(connection, self._keeper.end_connection(connection, _ENDS[event.kind]))

    def on_refused(self, handle: ConnectionHandle, refused: RefusedBelow) -> None:
        connection = self._keeper.connection_of(handle)
        if connection is None:
            self._keep_for_later(handle, lambda: self.on_refused(handle, refused))
            return
        session = connection.session
        told = refused_words.tell(refused)
        self._node.refused.add(
            connection.peer, session.initiator, session.target_name, told.kind, told.asked, told.why, lun=told.lun
        )
        if refused.missed:
            self._node.refused.add(
                connection.peer,
                session.initiator,
                session.target_name,
                refused_words.COMMAND,
                "commands faster than they could be told apart",
                "each for its own reason",
                times=refused.missed,
            )

    async def close(self) -> None:
        """Waits for what is being worked on."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _keep_for_later(self, handle: ConnectionHandle, call: Callable[[], None]) -> None:
        # The data plane may be faster than the task that hands a connection over. Without one the handle is of a
        # connection that has ended, and what it still says counts no more.
        if self._keeper.establishing:
            self._early.setdefault(handle, []).append(call)
        else:
            self._early.clear()

    def _registered(self, connection: Connection) -> None:
        for call in self._early.pop(connection.handle, []):
            call()

    def _dispatch(self, connection: Connection, bhs: bytes, ahs: bytes, data: bytes, order: int) -> None:
        try:
            header = pdu.parse(bhs)
        except PduError as error:
            raise Refused(RejectReason.COMMAND_NOT_SUPPORTED, str(error)) from None
        handler = self._handlers.get(header.OPCODE)
        manages = isinstance(header, TaskManagementRequest)
        if handler is None and not manages:
            raise Refused(RejectReason.COMMAND_NOT_SUPPORTED, f"{header.OPCODE.name} is nothing that we are sent here")
        if connection.session.target is None and header.OPCODE not in _DISCOVERY_MAY:
            raise Refused(RejectReason.PROTOCOL_ERROR, f"{header.OPCODE.name} has no place in a discovery session")
        if ahs and header.OPCODE is not Opcode.SCSI_COMMAND:
            raise Refused(RejectReason.INVALID_PDU_FIELD, "additional header segments belong to SCSI commands only")
        if isinstance(header, TaskManagementRequest):
            self._task_management(connection, header, order)
        elif handler is not None:
            handler(connection, header, ahs, data)

    # ---- requests --------------------------------------------------------------------------------------------------

    def _text(self, connection: Connection, request: TextRequest, ahs: bytes, data: bytes) -> None:
        if connection.exchange is None:
            connection.exchange = TextExchange(
                connection.negotiation,
                lambda wanted: discovery.send_targets(self._node, connection, wanted),
                lambda: connection.max_send,
            )
        try:
            reply = connection.exchange.receive(request, data)
        except TextRejected as rejected:
            raise Refused(rejected.reason, str(rejected)) from None
        for pair in reply.rejected:
            self._tell(connection, "key", f"key {pair.key}={pair.value}", "the value is not admissible")
        declared = int(connection.negotiation.values["MaxRecvDataSegmentLength"])
        if declared != connection.max_send and declared >= len(reply.data):
            # Before the answer: who has it counts on it.
            self._set_max_send(connection, declared)
        self._send(connection, reply.header, reply.data)
        if declared != connection.max_send:
            self._set_max_send(connection, declared)

    def _set_max_send(self, connection: Connection, length: int) -> None:
        connection.max_send = length
        self._full_feature.set_max_send(connection.handle, length)

    def _nop_out(self, connection: Connection, request: NopOut, ahs: bytes, data: bytes) -> None:
        if request.initiator_task_tag == RESERVED_TAG:
            return  # 11.18: an answer, or no more than a sign of life
        data = data[: connection.max_send]
        header = NopIn(lun=request.lun, initiator_task_tag=request.initiator_task_tag, data_segment_length=len(data))
        self._send(connection, header, data)

    def _snack(self, connection: Connection, request: Bhs, ahs: bytes, data: bytes) -> None:
        # 7.1.5: at recovery level 0 there is nothing to ask for again.
        raise Refused(RejectReason.SNACK_REJECT, "recovery level 0 knows no SNACK")

    def _login(self, connection: Connection, request: Bhs, ahs: bytes, data: bytes) -> None:
        raise Refused(RejectReason.PROTOCOL_ERROR, "the login phase is over")

    def _command(self, connection: Connection, command: ScsiCommand, ahs: bytes, data: bytes) -> None:
        try:
            cdb = pdu.full_cdb(command, pdu.parse_ahs(ahs))
        except PduError as error:
            raise Refused(RejectReason.INVALID_PDU_FIELD, str(error)) from None
        self._scsi.command(connection, command, cdb, data)

    def _task_management(self, connection: Connection, request: TaskManagementRequest, order: int) -> None:
        level = int(connection.session.negotiation.values["iSCSIProtocolLevel"])
        try:
            function = TaskFunction(request.function)
        except ValueError:
            function = None
        if function is None or (function in RFC_7144_FUNCTIONS and level < 2):
            self._tell(connection, "task management", f"task management function {request.function}", "not supported")
            self._task_response(connection, request, TaskResponse.NOT_SUPPORTED)
        elif function is TaskFunction.TASK_REASSIGN:
            # 11.5.1: recovery level 2 only
            self._task_response(connection, request, TaskResponse.REASSIGN_NOT_SUPPORTED)
        else:
            self._check_room(connection, request)
            self._go(connection, self._run_function(connection, request, function, order))

    async def _run_function(
        self, connection: Connection, request: TaskManagementRequest, function: TaskFunction, order: int
    ) -> None:
        try:
            response = await self._scsi.task_management(connection, request, order)
        except Exception:
            LOG.exception("iscsi: task management failed")
            response = TaskResponse.REJECTED
        cold = function is TaskFunction.TARGET_COLD_RESET and response is TaskResponse.COMPLETE
        # Those that were there: who has the answer may log in anew, and stays.
        sessions = self._node.sessions.of_target(connection.session.target_name)
        self._task_response(connection, request, response, final=cold)
        if cold:
            # 11.5.1: all connections to the target are ended. The one with the answer goes as soon as that is out.
            await self._keeper.end_connection(connection, RemoveReason.ADMINISTRATIVE)
            await self._end_sessions(sessions)

    def _task_response(
        self, connection: Connection, request: TaskManagementRequest, response: TaskResponse, *, final: bool = False
    ) -> None:
        header = TaskManagementResponse(response=response, initiator_task_tag=request.initiator_task_tag)
        self._send(connection, header, final=final)

    # ---- logout ----------------------------------------------------------------------------------------------------

    def _logout(self, connection: Connection, request: LogoutRequest, ahs: bytes, data: bytes) -> None:
        try:
            reason = LogoutReason(request.reason)
        except ValueError:
            raise Refused(RejectReason.INVALID_PDU_FIELD, f"logout reason {request.reason} means nothing") from None
        session = connection.session
        if reason is LogoutReason.REMOVE_FOR_RECOVERY:
            self._logout_response(connection, request, LogoutResponseCode.RECOVERY_NOT_SUPPORTED)
        elif reason is LogoutReason.CLOSE_CONNECTION and request.cid not in session.connections:
            self._logout_response(connection, request, LogoutResponseCode.CID_NOT_FOUND)
        else:
            self._check_room(connection, request)
            self._go(connection, self._run_logout(connection, request, reason))

    async def _run_logout(self, connection: Connection, request: LogoutRequest, reason: LogoutReason) -> None:
        session = connection.session
        if reason is LogoutReason.CLOSE_SESSION:
            leaving = [each for each in session.connections.values() if each is not connection]
        else:
            other = session.connections.get(request.cid)
            leaving = [other] if other is not None and other is not connection else []
        for each in leaving:
            await self._keeper.end_connection(each, RemoveReason.LOGOUT)
        own = reason is LogoutReason.CLOSE_SESSION or request.cid == connection.cid
        self._logout_response(connection, request, LogoutResponseCode.CLOSED, final=own)
        if own:
            await self._keeper.end_connection(connection, RemoveReason.LOGOUT)

    def _logout_response(
        self, connection: Connection, request: LogoutRequest, response: LogoutResponseCode, *, final: bool = False
    ) -> None:
        # Time2Wait and Time2Retain stay zero: what was logged out left nothing to come back for.
        header = LogoutResponse(response=response, initiator_task_tag=request.initiator_task_tag)
        self._send(connection, header, final=final)

    # ---- what we say by ourselves ----------------------------------------------------------------------------------

    def reject(self, connection: Connection, bhs: bytes, reason: RejectReason, why: str) -> None:
        """11.17: the header that was rejected goes back as data."""
        words = refused_words.reason(reason)
        self._tell(connection, refused_words.PDU, refused_words.pdu_name(bhs), f"{why} (reject: {words})")
        self._send(connection, Reject(reason=reason, data_segment_length=len(bhs)), bhs)

    def notify(self, session: Session, message: AsyncMessage, data: bytes = b"") -> None:
        """An asynchronous message, on one connection of the session (11.9: which one is ours to choose)."""
        connection = next(iter(session.connections.values()), None)
        if connection is not None:
            self._send(connection, message, data)

    async def _end_sessions(self, sessions: list[Session]) -> None:
        await asyncio.gather(*(self._keeper.end_session(session) for session in sessions))

    def _send(self, connection: Connection, header: Bhs, data: bytes = b"", *, final: bool = False) -> None:
        self._full_feature.send(connection.handle, header.to_bytes(), data, final=final)

    def _tell(self, connection: Connection, kind: str, asked: str, why: str) -> None:
        session = connection.session
        self._node.refused.add(connection.peer, session.initiator, session.target_name, kind, asked, why)

    def _check_room(self, connection: Connection, request: Bhs) -> None:
        # The window bounds numbered commands; immediate ones are bounded here.
        if self._running.get(connection, 0) >= MAX_TASKS:
            reason = RejectReason.IMMEDIATE_COMMAND_REJECT if request.immediate else RejectReason.OUT_OF_RESOURCES
            raise Refused(reason, f"{MAX_TASKS} requests of this connection are being worked on already")

    def _go(self, connection: Connection, work: Coroutine[Any, Any, None]) -> None:
        """In a task: an upcall does not wait."""
        self._running[connection] = self._running.get(connection, 0) + 1
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._running[connection] -= 1
            if not self._running[connection]:
                del self._running[connection]
            if not task.cancelled() and task.exception() is not None:
                LOG.error("iscsi: a request failed", exc_info=task.exception())

        task.add_done_callback(done)
