# SPDX-License-Identifier: Apache-2.0
"""How sessions begin and end: what a login that succeeded makes, reinstatement, and what is left to do when the last
connection has gone.

Everything that happens to one I_T nexus happens one after the other; different ones do not wait for each other.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from vhost_scsi.iscsi.codes import LoginStatus
from vhost_scsi.iscsi.full_feature import (
    ConnectionHandle,
    ConnectionParams,
    FullFeature,
    RemoveReason,
    SessionKeys,
    SessionParams,
)
from vhost_scsi.iscsi.login import Login, LoginRefused
from vhost_scsi.iscsi.node import Node
from vhost_scsi.iscsi.sessions import Connection, NexusKey, Session
from vhost_scsi.log_limit import LimitedLog

LOG: Final = logging.getLogger("vhost_scsi.control")
FINAL_RESPONSE_TIMEOUT: Final = 5.0  # seconds; it is a few hundred bytes, and the initiator waits for it
LOG_INTERVAL: Final = 10.0  # seconds, in which of logins and of ends
LOG_BURST: Final = 32  # lines of each kind are written


class SessionKeeper:
    """One for a node. `on_registered` is told of each connection as soon as it is found by its handle."""

    def __init__(self, node: Node, full_feature: FullFeature) -> None:
        self._node = node
        self._full_feature = full_feature
        self._locks: dict[NexusKey, tuple[asyncio.Lock, list[None]]] = {}
        self._coming = 0
        # Who may log in decides how often.
        self._log = LimitedLog(LOG, LOG_INTERVAL, burst=LOG_BURST)
        self.on_registered: Callable[[Connection], None] = lambda connection: None

    def _say(self, kind: str, text: str) -> None:
        self._log.say(logging.INFO, kind, f"iscsi: {text}")

    @property
    def establishing(self) -> bool:
        """Whether a connection is being handed over, so that its handle may not be known yet."""
        return self._coming > 0

    # ---- beginning -------------------------------------------------------------------------------------------------

    async def establish(self, login: Login, sock: socket.socket, peer: str, local: tuple[str, int]) -> Connection:
        """Makes the session or joins it, sends the final response, hands the socket over (it is detached then).

        Raises LoginRefused, before the final response only, or OSError where the initiator has gone. Must not be
        cancelled: it ends by itself.
        """
        asks, admitted = login.asks, login.admitted
        assert asks is not None
        assert admitted is not None
        target = "" if admitted.target is None else admitted.target.name
        key = (admitted.initiator, asks.isid, target, admitted.portal_group_tag)
        async with self._alone(key):
            if asks.tsih:
                session = await self._join(login, key)
            else:
                session = await self._begin(login, key, peer)
            self._coming += 1
            try:
                return await self._hand_over(login, session, sock, peer, local)
            finally:
                self._coming -= 1
                if not session.connections:
                    await self._close(session)

    async def _begin(self, login: Login, key: NexusKey, peer: str) -> Session:
        assert login.asks is not None
        assert login.admitted is not None
        assert login.negotiation is not None
        sessions, limits = self._node.sessions, self._node.limits
        old = sessions.with_key(key)
        if old is not None:
            _check_same_user(login, old)
            # 6.3.5: session reinstatement: the same initiator port comes anew, and the old session ends first.
            self._say("reinstated", f"session {old.tsih} of {old.initiator} is reinstated")
            await self._close(old)
        self._check_room_for_connection()
        if len(sessions) >= limits.sessions:
            raise LoginRefused(LoginStatus.OUT_OF_RESOURCES, f"there are {limits.sessions} sessions, the limit")
        tsih = sessions.reserve_tsih()
        values = login.negotiation.values
        params = SessionParams(
            tsih=tsih,
            isid=login.asks.isid,
            initiator_name=login.admitted.initiator,
            initiator_alias=str(values.get("InitiatorAlias", "")),
            target=None if login.admitted.target is None else login.admitted.target.name,
            portal_group_tag=login.admitted.portal_group_tag,
            luns=login.admitted.luns,
            cmd_sn=login.request.cmd_sn,
            queue_depth=login.admitted.queue_depth,
            keys=SessionKeys.of(values),
        )
        try:
            handle = await self._full_feature.open_session(params)
        except Exception:
            sessions.release_tsih(tsih)
            LOG.exception("iscsi: a session could not be opened")
            raise LoginRefused(LoginStatus.TARGET_ERROR, "the session could not be opened") from None
        address = peer.rpartition(":")[0].strip("[]")
        session = Session(
            tsih, key, login.asks.initiator, address, login.admitted.target, login.negotiation, handle, login.user
        )
        sessions.add(session)
        return session

    async def _join(self, login: Login, key: NexusKey) -> Session:
        assert login.asks is not None
        session = self._node.sessions.with_tsih(login.asks.tsih)
        # The session that admitted it may have ended since.
        if session is None or session.key != key:
            raise LoginRefused(LoginStatus.SESSION_DOES_NOT_EXIST, f"session {login.asks.tsih} has ended")
        _check_same_user(login, session)
        self._node.check_room(session, login.asks.cid)
        old = session.connections.get(login.asks.cid)
        if old is not None:
            # 6.3.4: connection reinstatement: an implicit logout of the old one.
            await self._drop(old, RemoveReason.REINSTATED)
        else:
            self._check_room_for_connection()
        return session

    def _check_room_for_connection(self) -> None:
        limit = self._node.limits.connections
        if self._node.sessions.connections + self._coming >= limit:
            raise LoginRefused(LoginStatus.OUT_OF_RESOURCES, f"there are {limit} connections, the limit")

    async def _hand_over(
        self, login: Login, session: Session, sock: socket.socket, peer: str, local: tuple[str, int]
    ) -> Connection:
        assert login.negotiation is not None
        assert login.asks is not None
        response = login.finish(session.tsih)
        try:
            async with asyncio.timeout(FINAL_RESPONSE_TIMEOUT):
                await asyncio.get_running_loop().sock_sendall(sock, response)
        except TimeoutError:
            raise ConnectionAbortedError("the initiator does not take its final login response") from None
        values = login.negotiation.values
        max_send = int(values["MaxRecvDataSegmentLength"])
        params = ConnectionParams(
            cid=login.asks.cid,
            header_digest=values["HeaderDigest"] == "CRC32C",
            data_digest=values["DataDigest"] == "CRC32C",
            max_send=max_send,
            max_recv=login.negotiation.offer.max_recv_data_segment_length,
            stat_sn=login.next_stat_sn,
            peer=peer,
            local=f"{local[0]}:{local[1]}",
        )
        handle = await self._full_feature.add_connection(session.handle, sock.detach(), params, b"")
        login.negotiation.restart()
        connection = Connection(session, login.asks.cid, peer, local, login.negotiation, handle, max_send)
        self._node.sessions.add_connection(connection)
        self._say(
            "login", f"{session.initiator} logged in from {peer}: session {session.tsih}, connection {params.cid}"
        )
        self.on_registered(connection)
        return connection

    # ---- ending ----------------------------------------------------------------------------------------------------

    def connection_of(self, handle: ConnectionHandle) -> Connection | None:
        return self._node.sessions.with_handle(handle)

    async def end_connection(self, connection: Connection, reason: RemoveReason) -> None:
        """Also the session's end, if it was the last. Does nothing for one that has ended already."""
        if self.connection_of(connection.handle) is not connection:
            return
        await self._drop(connection, reason)
        async with self._alone(connection.session.key):
            # A login may have brought another one meanwhile.
            if not connection.session.connections:
                await self._close(connection.session)

    async def end_session(self, session: Session) -> None:
        async with self._alone(session.key):
            await self._close(session)

    async def end_all(self) -> None:
        await asyncio.gather(*(self.end_session(session) for session in self._node.sessions))

    async def _drop(self, connection: Connection, reason: RemoveReason) -> None:
        self._node.sessions.remove_connection(connection)
        session = connection.session
        self._say("connection", f"connection {connection.cid} of session {session.tsih} ended: {reason.value}")
        await self._full_feature.remove_connection(connection.handle, reason)

    async def _close(self, session: Session) -> None:
        if self._node.sessions.with_tsih(session.tsih) is not session:
            return
        for connection in list(session.connections.values()):
            self._node.sessions.remove_connection(connection)
        try:
            await self._full_feature.close_session(session.handle)
        finally:
            self._node.sessions.remove(session)
            self._say("session", f"session {session.tsih} of {session.initiator} ended")

    @asynccontextmanager
    async def _alone(self, key: NexusKey) -> AsyncIterator[None]:
        lock, users = self._locks.setdefault(key, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[key]


def _check_same_user(login: Login, session: Session) -> None:
    """Names and handles can be guessed: whoever proved to be somebody else, or nobody, takes no part in a session that
    had to be proven, and does not end it."""
    if session.user is not None and login.user != session.user:
        raise LoginRefused(
            LoginStatus.AUTHENTICATION_FAILURE, f"session {session.tsih} is of the CHAP name {session.user!r}"
        )
