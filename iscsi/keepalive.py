# SPDX-License-Identifier: Apache-2.0
"""Silent initiators are asked whether they are there, and those that do not answer are given up (RFC 7143, 11.19).

One task for all connections of a node: it sleeps until one of them may have to be asked. When that is, `ping.py` says;
when an initiator was heard last, the data plane knows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from vhost_scsi.iscsi.codes import RESERVED_TAG
from vhost_scsi.iscsi.full_feature import FullFeature, RemoveReason
from vhost_scsi.iscsi.node import Node
from vhost_scsi.iscsi.pdu import NopIn
from vhost_scsi.iscsi.ping import PingAction, Pinger, PingPolicy
from vhost_scsi.iscsi.session_keeper import SessionKeeper
from vhost_scsi.iscsi.sessions import Connection

LOG: Final = logging.getLogger("vhost_scsi.control")
SHORTEST: Final = 0.05  # seconds between two looks
_TAG: Final = 0x50494E47  # of our pings; one at a time on a connection, so they need no other

Heard = Callable[[Connection], float | None]


class KeepAlive:
    """`start`, then `close`. `heard`: when something came in last on a connection (time.monotonic), if it is known."""

    def __init__(
        self, node: Node, keeper: SessionKeeper, full_feature: FullFeature, policy: PingPolicy, heard: Heard
    ) -> None:
        self._node = node
        self._keeper = keeper
        self._full_feature = full_feature
        self._policy = policy
        self._heard = heard
        self._pingers: dict[Connection, tuple[Pinger, float]] = {}
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        if self._policy.idle:
            self._task = asyncio.create_task(self._run())

    async def change(self, policy: PingPolicy) -> None:
        """Another policy from now on; for connections that are there already, too."""
        await self._stop()
        self._policy = policy
        self._pingers.clear()
        self.start()

    async def close(self) -> None:
        await self._stop()
        while self._ending:
            await asyncio.wait(self._ending)

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def _run(self) -> None:
        while True:
            try:
                wait = self.look(time.monotonic())
            except Exception:
                LOG.exception("iscsi: looking after silent initiators failed")
                wait = self._policy.idle
            await asyncio.sleep(max(wait, SHORTEST))

    def look(self, now: float) -> float:
        """Asks and gives up what is due; returns in how many seconds something may be due again."""
        connections = [each for session in self._node.sessions for each in session.connections.values()]
        # Those that have ended are forgotten.
        self._pingers = {each: self._pingers.get(each, (Pinger(self._policy, now), now)) for each in connections}
        # A connection that comes in the next moment is not silent before then.
        due = now + self._policy.idle
        for connection in connections:
            due = min(due, self._look_at(connection, now))
        return due - now

    def _look_at(self, connection: Connection, now: float) -> float:
        pinger, known = self._pingers[connection]
        heard = self._heard(connection)
        if heard is not None and heard > known:
            pinger.heard(heard)
            self._pingers[connection] = (pinger, heard)
        match pinger.look(now):
            case PingAction.PING:
                # 11.19.2: with the tag reserved StatSN is shown and not advanced.
                header = NopIn(initiator_task_tag=RESERVED_TAG, target_transfer_tag=_TAG)
                self._full_feature.send(connection.handle, header.to_bytes(), advance_stat_sn=False)
            case PingAction.GIVE_UP:
                del self._pingers[connection]
                self._give_up(connection)
                return now + self._policy.idle
        due = pinger.next_look
        assert due is not None
        return due

    def _give_up(self, connection: Connection) -> None:
        session = connection.session
        why = f"no answer to a ping within {self._policy.timeout:g} seconds"
        self._node.refused.add(
            connection.peer, session.initiator, session.target_name, "timeout", "a session while silent", why
        )
        work = self._keeper.end_connection(connection, RemoveReason.TIMEOUT)
        task = asyncio.get_running_loop().create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
