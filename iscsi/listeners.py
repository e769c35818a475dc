# SPDX-License-Identifier: Apache-2.0
"""The sockets that portals listen on, and how one set of portals takes the place of another while initiators come.

A change is made in two steps, so that one that cannot be made changes nothing: `open` listens where nobody listened
yet, `use` accepts there and leaves the portals that are not wanted any more. Connections do not end with their portal.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi.portals import Portal

BACKLOG: Final = 512


@dataclass(slots=True, eq=False)
class Listener:
    """`portal` has the port that the socket has, and is looked at for each connection anew."""

    wanted: Portal
    sock: socket.socket
    portal: Portal
    task: asyncio.Task[None] | None = None

    @property
    def place(self) -> tuple[str, int]:
        return self.wanted.host, self.wanted.port


Plan = list[tuple[Portal, Listener]]
"""which portal is to be at which socket"""


class Listeners:
    """`accept` runs for each listener until it is cancelled."""

    def __init__(self, accept: Callable[[Listener], Awaitable[None]]) -> None:
        self._accept = accept
        self._listeners: list[Listener] = []

    @property
    def portals(self) -> list[Portal]:
        return [listener.portal for listener in self._listeners]

    def open(self, portals: Sequence[Portal]) -> Plan:
        """Sockets for all of these, or none: raises ConfigError with one line that says why not. A portal whose host
        and port are those of one that listens has its socket."""
        free = list(self._listeners)
        plan: Plan = []
        try:
            for portal in portals:
                known = next((each for each in free if each.place == (portal.host, portal.port)), None)
                if known is None:
                    sock = _listen(portal)
                    known = Listener(portal, sock, replace(portal, port=sock.getsockname()[1]))
                else:
                    free.remove(known)
                plan.append((portal, known))
        except ConfigError:
            self.give_up(plan)
            raise
        return plan

    def give_up(self, plan: Plan) -> None:
        """Closes what was opened for a plan that is not carried out."""
        for _, listener in plan:
            if listener not in self._listeners:
                listener.sock.close()

    async def use(self, plan: Plan) -> None:
        """From now on these are the portals."""
        gone = [listener for listener in self._listeners if all(listener is not each for _, each in plan)]
        self._listeners = [listener for _, listener in plan]
        for portal, listener in plan:
            listener.wanted = portal
            listener.portal = replace(portal, port=listener.portal.port)
            if listener.task is None:
                listener.task = asyncio.get_running_loop().create_task(self._run(listener))
        await _end(gone)

    async def close(self) -> None:
        listeners, self._listeners = self._listeners, []
        await _end(listeners)

    async def _run(self, listener: Listener) -> None:
        await self._accept(listener)


async def _end(listeners: Sequence[Listener]) -> None:
    tasks = [listener.task for listener in listeners if listener.task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for listener in listeners:
        listener.sock.close()


def _listen(portal: Portal) -> socket.socket:
    try:
        # A link-local address needs its zone as a number; nothing is asked of any name server.
        flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE
        family, kind, protocol, _, where = socket.getaddrinfo(
            portal.host, portal.port, type=socket.SOCK_STREAM, flags=flags
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"portal {portal}: {error.strerror or error}") from error
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if isinstance(portal.address, ipaddress.IPv6Address):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"portal {portal}: cannot listen: {error.strerror or error}{_advice(error, portal)}"
        ) from error
    return sock


def _advice(error: OSError, portal: Portal) -> str:
    if isinstance(error, PermissionError) and 0 < portal.port < 1024:
        return "; a port below 1024 needs CAP_NET_BIND_SERVICE, 3260 and all above 1023 need nothing"
    return ""
