# SPDX-License-Identifier: Apache-2.0
"""A data plane in Python, for tests: frames PDUs on a loop, numbers what is sent, and sends everything up. It keeps
what it was told, and fails or waits where a test says so. It knows no digests and runs no commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field

from vhost_scsi.iscsi.codes import TaskResponse
from vhost_scsi.iscsi.full_feature import (
    ConnectionEvent,
    ConnectionHandle,
    ConnectionParams,
    EventKind,
    RemoveReason,
    SessionHandle,
    SessionParams,
    Upcalls,
)
from vhost_scsi.iscsi.pdu import ScsiCommand, TaskManagementRequest
from vhost_scsi.iscsi.sessions import Connection


@dataclass(eq=False)
class FakeSession:
    params: SessionParams
    exp_cmd_sn: int
    open: bool = True
    connections: list[FakeConnection] = field(default_factory=list)

    @property
    def window(self) -> tuple[int, int]:
        return self.exp_cmd_sn, self.exp_cmd_sn + self.params.queue_depth - 1


@dataclass(eq=False)
class FakeConnection:
    session: FakeSession
    params: ConnectionParams
    sock: socket.socket
    stat_sn: int
    max_send: int
    to_send: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    removed: RemoveReason | None = None
    ended: bool = False


class FakeDataPlane:
    """The FullFeature of the tests."""

    def __init__(self) -> None:
        self.upcalls: Upcalls | None = None
        self.sessions: list[FakeSession] = []
        self.connections: list[FakeConnection] = []
        self.fail_open: Exception | None = None
        self.fail_add: Exception | None = None
        self.hold_close: asyncio.Event | None = None
        self.early_event: ConnectionEvent | None = None
        """raised before `add_connection` returns, as a fast data plane may"""

    @property
    def open_sessions(self) -> list[FakeSession]:
        return [session for session in self.sessions if session.open]

    def attach(self, upcalls: Upcalls) -> None:
        assert self.upcalls is None
        self.upcalls = upcalls

    async def open_session(self, params: SessionParams) -> FakeSession:
        await asyncio.sleep(0)
        if self.fail_open is not None:
            raise self.fail_open
        session = FakeSession(params, params.cmd_sn)
        self.sessions.append(session)
        return session

    async def add_connection(
        self, session: SessionHandle, sock_fd: int, params: ConnectionParams, leftover: bytes
    ) -> FakeConnection:
        assert isinstance(session, FakeSession)
        sock = socket.socket(fileno=sock_fd)
        if self.fail_add is not None:
            sock.close()
            raise self.fail_add
        assert leftover == b""
        connection = FakeConnection(session, params, sock, params.stat_sn, params.max_send)
        session.connections.append(connection)
        self.connections.append(connection)
        loop = asyncio.get_running_loop()
        connection.tasks = [loop.create_task(self._receive(connection)), loop.create_task(self._write(connection))]
        if self.early_event is not None:
            assert self.upcalls is not None
            self.upcalls.on_event(connection, self.early_event)
        await asyncio.sleep(0)
        return connection

    async def remove_connection(self, connection: ConnectionHandle, reason: RemoveReason) -> None:
        assert isinstance(connection, FakeConnection)
        assert connection.removed is None, "removed twice"
        connection.removed = reason
        await self._end(connection)

    async def close_session(self, session: SessionHandle) -> None:
        assert isinstance(session, FakeSession)
        assert session.open, "closed twice"
        if self.hold_close is not None:
            await self.hold_close.wait()
        for connection in session.connections:
            await self._end(connection)
        session.open = False

    def send(
        self,
        connection: ConnectionHandle,
        bhs: bytes,
        data: bytes = b"",
        *,
        final: bool = False,
        advance_stat_sn: bool = True,
    ) -> None:
        assert isinstance(connection, FakeConnection)
        assert len(bhs) == 48
        assert int.from_bytes(bhs[5:8], "big") == len(data) <= connection.max_send
        exp, maximum = connection.session.window
        raw = bytearray(bhs)
        raw[24:28] = connection.stat_sn.to_bytes(4, "big")
        raw[28:32] = exp.to_bytes(4, "big")
        raw[32:36] = maximum.to_bytes(4, "big")
        if advance_stat_sn:
            connection.stat_sn += 1
        connection.to_send.put_nowait(bytes(raw) + data + bytes(-len(data) % 4))
        if final:
            connection.to_send.put_nowait(None)

    def set_max_send(self, connection: ConnectionHandle, length: int) -> None:
        assert isinstance(connection, FakeConnection)
        connection.max_send = length

    async def _receive(self, connection: FakeConnection) -> None:
        assert self.upcalls is not None
        try:
            while True:
                bhs = await _read(connection.sock, 48)
                ahs = await _read(connection.sock, bhs[4] * 4)
                length = int.from_bytes(bhs[5:8], "big")
                data = (await _read(connection.sock, length + -length % 4))[:length]
                if not bhs[0] & 0x40:
                    connection.session.exp_cmd_sn += 1
                self.upcalls.on_pdu(connection, bhs, ahs, data, int.from_bytes(bhs[24:28], "big"))
        except OSError:
            self.upcalls.on_event(connection, ConnectionEvent(EventKind.CLOSED_BY_PEER))

    async def _write(self, connection: FakeConnection) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while (raw := await connection.to_send.get()) is not None:
                await loop.sock_sendall(connection.sock, raw)
            connection.sock.shutdown(socket.SHUT_WR)

    async def _end(self, connection: FakeConnection) -> None:
        if connection.ended:
            return
        connection.ended = True
        connection.to_send.put_nowait(None)
        receiver, writer = connection.tasks
        receiver.cancel()
        await asyncio.wait(connection.tasks, timeout=5)
        writer.cancel()
        connection.sock.close()


class FakeScsi:
    """The ScsiSide of the tests."""

    def __init__(self) -> None:
        self.functions: list[tuple[int, int]] = []
        self.commands: list[bytes] = []
        self.answer = TaskResponse.COMPLETE
        self.fail: Exception | None = None
        self.hold: asyncio.Event | None = None

    async def task_management(self, connection: Connection, request: TaskManagementRequest, order: int) -> TaskResponse:
        self.functions.append((connection.session.tsih, request.function))
        if self.hold is not None:
            await self.hold.wait()
        if self.fail is not None:
            raise self.fail
        return self.answer

    def command(self, connection: Connection, command: ScsiCommand, cdb: bytes, data: bytes) -> None:
        self.commands.append(cdb)


async def _read(sock: socket.socket, length: int) -> bytes:
    loop = asyncio.get_running_loop()
    got = b""
    while len(got) < length:
        piece = await loop.sock_recv(sock, length - len(got))
        if not piece:
            raise ConnectionResetError
        got += piece
    return got
