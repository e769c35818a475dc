# SPDX-License-Identifier: Apache-2.0
"""The iSCSI node of a daemon: made from the configuration, served, changed while it runs, drained.

What may be asked about it stands in `iscsi_methods.py`; the protocol is `vhost_scsi.iscsi`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vhost_scsi.daemon.iscsi_config import Made
from vhost_scsi.dataplane import Core
from vhost_scsi.iscsi.async_messages import logout_requested, scsi_event
from vhost_scsi.iscsi.data_plane import CoreConnection, CoreSession, DataPlane, port_name
from vhost_scsi.iscsi.full_feature import RemoveReason
from vhost_scsi.iscsi.keepalive import KeepAlive
from vhost_scsi.iscsi.listeners import Plan
from vhost_scsi.iscsi.node import Node
from vhost_scsi.iscsi.portals import bracketed, plain_address
from vhost_scsi.iscsi.server import IscsiServer
from vhost_scsi.iscsi.sessions import Connection, Session
from vhost_scsi.iscsi.targets import IscsiTarget
from vhost_scsi.scsi import sense_data
from vhost_scsi.scsi.lun import encode
from vhost_scsi.scsi.sense import Sense, SenseCode
from vhost_scsi.target import Target, Unit

LOGOUT_TIME: Final = 3  # whole seconds that an initiator has to log out when it is asked to (RFC 7143, 11.9)
POLL: Final = 0.02  # seconds between looks at who has gone; only while waiting for that
_LOG: Final = logging.getLogger("vhost_scsi.control")


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be served from now on, and the sockets for it."""

    made: Made
    plan: Plan


class IscsiNode:
    """`start`, then `drain` and `close`."""

    def __init__(self, core: Core, target: Target, workers: int, made: Made) -> None:
        self.node: Final = Node(made.limits, made.discovery)
        self.plane: Final = DataPlane(core, target, tuple(range(workers)))
        self.plane.on_cold_reset = self._cold_reset
        self.plane.on_attention = self._tell
        self._ending: set[asyncio.Task[None]] = set()
        for wanted in made.targets.values():
            self.node.add_target(wanted)
        self._target: Final = target
        self._ports = _ports(made)
        for portal in made.portals:
            self.plane.port_groups.setdefault(portal.tag, portal.port_group)
        self.plane.declare(self._ports)
        _warn(made)
        self.server: Final = IscsiServer(self.node, self.plane, self.plane, made.portals)
        self._keepalive = KeepAlive(self.node, self.server.keeper, self.plane, made.ping, heard)

    # ---- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self.server.start()
        self._keepalive.start()

    async def drain(self) -> None:
        """No login comes in any more; those who are here are asked to leave, and have a few seconds for that."""
        self.node.closing = True
        await self._ask_to_leave(list(self.node.sessions))

    async def close(self) -> None:
        await self._keepalive.close()
        await self.server.close()
        while self._ending:
            await asyncio.wait(self._ending)

    # ---- what is served --------------------------------------------------------------------------------------------

    @property
    def portals(self) -> list[str]:
        """HOST:PORT,TAG of those that listen."""
        return [str(portal) for portal in self.node.portals]

    def urls(self) -> list[str]:
        """One for each LUN at the first portal that leads to it; of a wildcard portal with the address of loopback."""
        return [url for target in self.node.targets.values() for url in self.urls_of(target)]

    def urls_of(self, target: IscsiTarget) -> list[str]:
        portal = next((each for each in self.node.portals if each.tag in target.portal_groups), None)
        if portal is None:
            return []
        loopback = "127.0.0.1" if portal.address.version == 4 else "::1"
        host = loopback if portal.is_wildcard else portal.host
        return [f"iscsi://{bracketed(host)}:{portal.port}/{target.name}/{lun}" for lun in sorted(target.luns)]

    async def prepare(self, made: Made) -> Change:
        """Does what may fail of a change of everything that is served; raises ConfigError, and nothing has changed."""
        # In a thread: the numbers of the target ports are written down.
        await asyncio.to_thread(self._target.port_ids.ids_of, _ports(made))
        return Change(made, self.server.listeners.open(made.portals))

    def give_up(self, change: Change) -> None:
        """Takes back what `prepare` did."""
        self.server.listeners.give_up(change.plan)

    async def carry_out(self, change: Change, patience: float = 0) -> None:
        """From now on logins find the new definitions, and sessions the new LUNs; `patience`: seconds that initiators
        have to let go of those that go. Returns when the sessions of removed targets have ended: they
        are asked to log out first, and what they are waiting for is answered meanwhile."""
        made, node = change.made, self.node
        _warn(made)
        before, self._ports = self._ports, _ports(made)
        self.plane.declare(self._ports)
        node.limits, node.discovery = made.limits, made.discovery
        gone = [name for name in node.targets if name not in made.targets]
        for name in gone:
            node.remove_target(name)
        for name, target in made.targets.items():
            if name not in node.targets:
                node.add_target(target)
                _LOG.info("iscsi: target %s was added", name)
            elif node.targets[name] != target:
                node.replace_target(target)
                _LOG.info("iscsi: target %s was changed: its LUNs at once, the rest for logins from now on", name)
        await asyncio.gather(*(self._show_luns(session, patience) for session in node.sessions))
        await self.server.use_portals(change.plan)
        await self._keepalive.change(made.ping)
        for name, ended in zip(gone, await asyncio.gather(*map(self._part_with, gone)), strict=True):
            _LOG.info("iscsi: target %s was removed, with %d sessions", name, ended)
        self.plane.withdraw(name for name in before if name not in self._ports)

    async def _show_luns(self, session: Session, patience: float) -> None:
        """The LUNs that its initiator has by now. One whom the access list does not let in any more keeps its own."""
        target = self.node.targets.get(session.target_name)
        entry = None if target is None else target.entry_for(session.key[0], plain_address(session.address))
        if target is not None and entry is not None:
            await self.plane.show_luns(session.handle, target.luns_for(entry), patience)

    def _tell(self, handle: CoreSession, lun: int, code: SenseCode) -> None:
        """RFC 7143, 11.9.4: what a unit attention says, to an initiator that has nothing to ask just now."""
        session = next((each for each in self.node.sessions if each.handle is handle), None)
        if session is not None:
            data = sense_data.build(Sense(code), descriptor=False)
            self.server.rare.notify(session, *scsi_event(int.from_bytes(encode(lun)), data))

    async def _part_with(self, target: str) -> int:
        """Ends the sessions of a target that was removed; how many there were."""
        sessions = self.node.sessions.of_target(target)
        await self._ask_to_leave(sessions)
        # Also those whose login was half way when the target went.
        await self._end(self.node.sessions.of_target(target))
        return len(sessions)

    async def let_go(self, unit: Unit) -> None:
        """Ends the sessions that still see a unit which is to be taken away; no login finds it any more."""
        while any(session for session in self.plane.sessions if session.sees(unit)):
            seen = [each for each in self.node.sessions if _core_session(each).sees(unit)]
            await self._end(seen)
            await asyncio.sleep(0 if seen else POLL)  # one that is just being made comes into the list soon

    # ---- who is here -----------------------------------------------------------------------------------------------

    async def remove_session(self, session: Session) -> bool:
        """Asks the initiator to log out and ends the session if it does not; whether it did."""
        return await self._ask_to_leave([session])

    async def reset_session(self, session: Session) -> None:
        """Ends it without a word, as if the network had failed: its I_T nexus is lost, the initiator recovers."""
        await self.server.keeper.end_session(session)

    async def remove_connection(self, connection: Connection) -> None:
        await self.server.keeper.end_connection(connection, RemoveReason.ADMINISTRATIVE)

    async def _ask_to_leave(self, sessions: Sequence[Session]) -> bool:
        for session in sessions:
            self.server.rare.notify(session, logout_requested(LOGOUT_TIME))
        # Drained, or their target removed: the commands that they have sent are answered meanwhile.
        deadline = time.monotonic() + LOGOUT_TIME
        while any(self._is_here(session) for session in sessions):
            if time.monotonic() > deadline:
                left = [session for session in sessions if self._is_here(session)]
                _LOG.info("iscsi: %d sessions were asked to log out and did not", len(left))
                await self._end(left)
                return False
            await asyncio.sleep(POLL)
        return True

    def _is_here(self, session: Session) -> bool:
        return self.node.sessions.with_tsih(session.tsih) is session

    async def _end(self, sessions: Sequence[Session]) -> None:
        await asyncio.gather(*(self.server.keeper.end_session(session) for session in sessions))

    def _cold_reset(self, target: str) -> None:
        """RFC 7143, 11.5.1: all sessions of the target end; also those of other initiators."""
        sessions = self.node.sessions.of_target(target)
        _LOG.warning("iscsi: cold reset of target %s: its %d sessions end", target, len(sessions))
        task = asyncio.get_running_loop().create_task(self._end(sessions))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


def heard(connection: Connection) -> float | None:
    """When something came in last, as the data plane knows; the same clock as time.monotonic."""
    assert isinstance(connection.handle, CoreConnection)
    info = connection.handle.info()
    return None if info is None or not info.last_heard_ns else info.last_heard_ns / 1e9


def _core_session(session: Session) -> CoreSession:
    assert isinstance(session.handle, CoreSession)
    return session.handle


def _ports(made: Made) -> list[str]:
    """The names of all target ports: of each target, one for each portal group that leads to it."""
    tags = {portal.tag for portal in made.portals}
    return [
        port_name(target.name, tag) for target in made.targets.values() for tag in sorted(target.portal_groups & tags)
    ]


def _warn(made: Made) -> None:
    for line in made.warnings:
        _LOG.warning("iscsi: %s", line)
