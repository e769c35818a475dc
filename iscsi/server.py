# SPDX-License-Identifier: Apache-2.0
"""Listens on portals, drives logins, and gives connections that logged in to the data plane.

A login has a time limit as a whole, so that one that trickles in byte by byte ends like one that is silent. How many
are in progress at once, and who waits or goes, is `login_places.py`: accepting never waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import math
import socket
import time
from collections.abc import Sequence
from typing import Final

from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi.async_messages import session_drop
from vhost_scsi.iscsi.full_feature import FullFeature
from vhost_scsi.iscsi.listeners import Listener, Listeners, Plan
from vhost_scsi.iscsi.login import Login, LoginRefused, Reply, State
from vhost_scsi.iscsi.login_places import Attempt, LoginPlaces
from vhost_scsi.iscsi.node import Door, Node
from vhost_scsi.iscsi.pdu import BHS_SIZE
from vhost_scsi.iscsi.portals import Portal, bracketed, plain_address
from vhost_scsi.iscsi.rare import RareHandler, ScsiSide
from vhost_scsi.iscsi.session_keeper import FINAL_RESPONSE_TIMEOUT, SessionKeeper

LOG: Final = logging.getLogger("vhost_scsi.control")
_ACCEPT_PAUSE: Final = 0.5  # seconds to wait when no connection can be accepted, for want of a descriptor most likely
_ACCEPT_SAID: Final = 60.0  # seconds in which the same reason is told once
_PART_TIME: Final = 1.0  # seconds in which a refused initiator may read why
_PART_BYTES: Final = 1 << 20  # what is read of it meanwhile: what stays unread would reset the connection


class IscsiServer:
    """`start`, then `close`. One for a node; the data plane and the SCSI side are given."""

    def __init__(self, node: Node, full_feature: FullFeature, scsi: ScsiSide, portals: Sequence[Portal]) -> None:
        if not portals:
            raise ConfigError("iscsi: no portal to listen on")
        self._node = node
        self._wanted = tuple(portals)
        self.listeners: Final = Listeners(self._accept_all)
        self.keeper: Final = SessionKeeper(node, full_feature)
        self.rare: Final = RareHandler(node, self.keeper, full_feature, scsi)
        self._places = LoginPlaces(lambda: node.limits.logins_in_progress)

    # ---- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listens on every portal or on none; raises ConfigError with one line that says why not."""
        await self.use_portals(self.listeners.open(self._wanted))

    async def use_portals(self, plan: Plan) -> None:
        """What `listeners.open` made takes the place of the portals that there were."""
        await self.listeners.use(plan)
        self._node.portals = self.listeners.portals
        if any(portal.is_wildcard and not portal.announced for portal in self._node.portals):
            await self._node.book.start()

    async def close(self) -> None:
        """Stops listening, ends logins and sessions; returns when the data plane has nothing of ours any more."""
        self._node.closing = True
        await self.listeners.close()
        for attempt in self._places.all:
            attempt.cancel()
        while tasks := [attempt.task for attempt in self._places.all if attempt.task is not None]:
            await asyncio.wait(tasks)
        await self.keeper.end_all()
        await self.rare.close()
        await self._node.book.close()
        self._node.portals = []

    async def remove_target(self, name: str) -> None:
        """Nobody logs in to it any more, its sessions are told and ended; returns when nothing of them runs."""
        target = self._node.remove_target(name)
        sessions = self._node.sessions.of_target(target.name)
        for session in sessions:
            self.rare.notify(session, session_drop(0, 0))
        await asyncio.gather(*(self.keeper.end_session(session) for session in sessions))

    @property
    def logins_in_progress(self) -> int:
        """Those that wait for a place, or are silent, with them."""
        return len(self._places)

    # ---- accepting -------------------------------------------------------------------------------------------------

    async def _accept_all(self, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        said: dict[int | None, float] = {}
        while True:
            try:
                sock, address = await loop.sock_accept(listener.sock)
            except OSError as error:
                # Whatever it is: a portal that stops without a word is worse than an attempt in vain.
                now = time.monotonic()
                if now - said.get(error.errno, -math.inf) >= _ACCEPT_SAID:
                    said[error.errno] = now
                    LOG.error("iscsi: cannot accept a connection at %s: %s", listener.portal, error.strerror or error)
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._places.make_room()
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            attempt = self._places.begin(address[0])
            attempt.task = asyncio.create_task(self._serve(attempt, sock, address, listener.portal))
            # Not in the task itself: one that is cancelled before its first step never gets to its end.
            attempt.task.add_done_callback(functools.partial(self._done, attempt, sock))
            # A backlog is accepted without a wait. Who has sent something is read before anyone has to go as silent.
            await asyncio.sleep(0)

    def _done(self, attempt: Attempt, sock: socket.socket, task: asyncio.Task[None]) -> None:
        self._places.end(attempt)
        sock.close()  # nothing, if it was handed over

    # ---- one login -------------------------------------------------------------------------------------------------

    async def _serve(self, attempt: Attempt, sock: socket.socket, address: tuple[str, int], portal: Portal) -> None:
        peer = f"{bracketed(address[0])}:{address[1]}"
        sock.setblocking(False)
        login = Login(Door(self._node, plain_address(address[0]), portal.tag), self._node.challenges)
        limit = self._node.limits.login_timeout
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            local = sock.getsockname()
            async with asyncio.timeout(limit) as deadline:
                refused = await self._talk(login, sock, attempt, deadline)
            if refused is None:
                attempt.committing = True
                refused = await self._commit(login, sock, peer, (local[0], local[1]))
            if refused is not None:
                self._tell(login, peer, str(refused), refused.status.text)
                await _part(sock)
        except TimeoutError:
            self._tell(login, peer, f"it did not end within {limit:g} seconds", "time is up")
        except asyncio.CancelledError:
            if not attempt.evicted:
                raise
            self._tell(login, peer, attempt.evicted, "evicted")
        except OSError as error:
            self._gone(login, peer, error)
        except Exception:
            LOG.exception("iscsi: a login failed by an error of ours")
        finally:
            login.close()
        for pair in login.rejected:
            asks = login.asks
            assert asks is not None
            asked = f"key {pair.key}={pair.value}"
            why = "the value is not admissible"
            self._node.refused.add(peer, asks.initiator, asks.target or "", "key", asked, why)

    async def _talk(
        self, login: Login, sock: socket.socket, attempt: Attempt, deadline: asyncio.Timeout
    ) -> LoginRefused | None:
        """Requests and responses until a session is to be made (None), or the login is refused."""
        loop = asyncio.get_running_loop()
        while True:
            bhs = await _read(sock, BHS_SIZE)
            to_read = login.to_read(bhs)
            data = None if to_read is None else await _read(sock, to_read)
            if attempt.since is None:
                await self._wait(attempt, deadline)
            reply = login.receive(bhs, data)
            if reply.response:
                await loop.sock_sendall(sock, reply.response)
            if reply.state is State.COMMIT:
                return None
            if reply.state is State.REFUSED:
                return reply.refused

    async def _wait(self, attempt: Attempt, deadline: asyncio.Timeout) -> None:
        """For a place. That time is not the initiator's, and does not count."""
        loop = asyncio.get_running_loop()
        ends = deadline.when()
        assert ends is not None
        left = ends - loop.time()
        deadline.reschedule(None)
        await self._places.take(attempt)
        deadline.reschedule(loop.time() + left)

    async def _commit(
        self, login: Login, sock: socket.socket, peer: str, local: tuple[str, int]
    ) -> LoginRefused | None:
        try:
            await self.keeper.establish(login, sock, peer, local)
        except LoginRefused as refused:
            reply: Reply = login.refuse(refused.status, str(refused))
            async with asyncio.timeout(FINAL_RESPONSE_TIMEOUT):
                await asyncio.get_running_loop().sock_sendall(sock, reply.response)
            return refused
        return None

    def _gone(self, login: Login, peer: str, error: OSError) -> None:
        """RFC 7143, 12.1.3: an initiator that does not believe our answer to its challenge closes the connection."""
        name = login.unanswered_proof
        if name is None:
            LOG.debug("iscsi: %s went away during login: %s", peer, error)
            return
        why = f"by the initiator: it went when the target had proved itself as {name!r}, and may know another secret"
        self._tell(login, peer, why, "not believed")

    def _tell(self, login: Login, peer: str, why: str, status: str) -> None:
        asks = login.asks
        initiator = "" if asks is None else asks.initiator
        target = "" if asks is None else asks.target or "discovery"
        self._node.refused.add(peer, initiator, target, f"login: {status}", "login", why)


async def _read(sock: socket.socket, length: int) -> bytes:
    """Exactly so many bytes: what comes behind a login is the data plane's. Raises ConnectionResetError at the end."""
    loop = asyncio.get_running_loop()
    received = bytearray()
    while len(received) < length:
        piece = await loop.sock_recv(sock, length - len(received))
        if not piece:
            raise ConnectionResetError("the stream ended")
        received += piece
    return bytes(received)


async def _part(sock: socket.socket) -> None:
    """Lets the initiator read what was sent, then lets go: a socket that is closed with bytes unread is reset, and the
    refusal with it may be lost."""
    loop = asyncio.get_running_loop()
    sock.shutdown(socket.SHUT_WR)
    left = _PART_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PART_TIME):
            while left > 0:
                piece = await loop.sock_recv(sock, min(left, 65536))
                if not piece:
                    return
                left -= len(piece)
