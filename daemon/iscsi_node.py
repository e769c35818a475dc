# SPDX-License-Identifier: Apache-2.0
"""The iSCSI node of a daemon: made from the configuration, served, changed while it runs, drained.

What may be asked about it stands in `iscsi_methods.py`; the protocol is `vhost_scsi.iscsi`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final

from vhost_scsi.daemon.config import DaemonConfig
from vhost_scsi.daemon.iscsi_config import (
    IscsiConfig,
    make_discovery,
    make_limits,
    make_ping,
    make_portal,
    make_target,
)
from vhost_scsi.dataplane import Core
from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import names
from vhost_scsi.iscsi.async_messages import logout_requested
from vhost_scsi.iscsi.data_plane import CoreConnection, DataPlane, port_name
from vhost_scsi.iscsi.full_feature import RemoveReason
from vhost_scsi.iscsi.keepalive import KeepAlive
from vhost_scsi.iscsi.node import Node
from vhost_scsi.iscsi.portals import bracketed
from vhost_scsi.iscsi.server import IscsiServer
from vhost_scsi.iscsi.sessions import Connection, Session
from vhost_scsi.iscsi.targets import IscsiTarget
from vhost_scsi.target import Target

LOGOUT_TIME: Final = 3  # whole seconds that an initiator has to log out when it is asked to (RFC 7143, 11.9)
POLL: Final = 0.02  # seconds between looks at who has gone; only while waiting for that
_LOG: Final = logging.getLogger("vhost_scsi.control")


class IscsiNode:
    """`start`, then `drain` and `close`. `config` has an `iscsi` part."""

    def __init__(self, core: Core, target: Target, config: DaemonConfig, iscsi: IscsiConfig) -> None:
        self._target = target
        self.node: Final = Node(make_limits(iscsi.limits), make_discovery(iscsi))
        self.plane: Final = DataPlane(core, target, tuple(range(config.workers)))
        self.plane.on_cold_reset = self._cold_reset
        self._ending: set[asyncio.Task[None]] = set()
        luns = config.iscsi_luns()
        policies = [self.node.discovery.auth]
        for wanted in iscsi.target:
            made = make_target(wanted, luns[names.normalised(wanted.name)], iscsi)
            self.node.add_target(made)
            policies += [made.auth, *(entry.auth for entry in made.acl if entry.auth is not None)]
        for line in dict.fromkeys(line for policy in policies for line in policy.warnings):
            _LOG.warning("iscsi: %s", line)
        portals = [make_portal(portal) for portal in iscsi.portal]
        self._tags: Final = frozenset(portal.tag for portal in portals)
        self.plane.declare(name for made in self.node.targets.values() for name in self._ports(made))
        self.server: Final = IscsiServer(self.node, self.plane, self.plane, portals)
        self._keepalive = KeepAlive(self.node, self.server.keeper, self.plane, make_ping(iscsi.ping), heard)

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
        found = []
        for target in self.node.targets.values():
            portal = next((each for each in self.node.portals if each.tag in target.portal_groups), None)
            if portal is None:
                continue
            loopback = "127.0.0.1" if portal.address.version == 4 else "::1"
            host = loopback if portal.is_wildcard else portal.host
            found += [f"iscsi://{bracketed(host)}:{portal.port}/{target.name}/{lun}" for lun in sorted(target.luns)]
        return found

    def _ports(self, target: IscsiTarget) -> list[str]:
        return [port_name(target.name, tag) for tag in sorted(target.portal_groups & self._tags)]

    async def add_target(self, name: str, luns: Mapping[int, str], alias: str = "") -> IscsiTarget:
        """Anybody may log in to it, over every portal. Raises ConfigError."""
        for lun, unit in luns.items():
            if unit not in self._target.units:
                raise ConfigError(f"LUN {lun}: there is no logical unit {unit!r}")
        groups = frozenset(portal.tag for portal in self.node.portals)
        target = IscsiTarget(name, alias, dict(luns), groups)
        # In a thread: their numbers are written down.
        await asyncio.to_thread(self._target.port_ids.ids_of, self._ports(target))
        self.node.add_target(target)
        self.plane.declare(self._ports(target))
        _LOG.info("iscsi: target %s was added", target.name)
        return target

    async def remove_target(self, name: str, *, force: bool) -> int:
        """Returns how many sessions it ended. Raises ConfigError where there are some, without `force`."""
        sessions = self.node.sessions.of_target(names.normalised(name))
        if sessions and not force:
            raise ConfigError(f"target {name} has {len(sessions)} sessions; --force ends them")
        ports = (
            self._ports(self.node.targets[target]) if (target := names.normalised(name)) in self.node.targets else []
        )
        await self.server.remove_target(name)
        self.plane.withdraw(ports)
        _LOG.info("iscsi: target %s was removed, with %d sessions", name, len(sessions))
        return len(sessions)

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
