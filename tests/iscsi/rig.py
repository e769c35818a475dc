# SPDX-License-Identifier: Apache-2.0
"""A live server over the data plane of the tests, on a loop in a thread of its own; and logins without I/O."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tests.iscsi.client import TARGET, Client
from tests.iscsi.data_plane import FakeDataPlane, FakeScsi
from tests.waiting import PATIENCE, wait_for
from vhost_scsi.iscsi.login import Login
from vhost_scsi.iscsi.node import DiscoveryPolicy, Door, Node
from vhost_scsi.iscsi.portals import Portal
from vhost_scsi.iscsi.refusals import Refusal, RefusedLog
from vhost_scsi.iscsi.server import IscsiServer
from vhost_scsi.iscsi.targets import IscsiTarget, Limits

T = TypeVar("T")


class LoopThread:
    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    def run(self, function: Callable[[], T]) -> T:
        async def calls() -> T:
            return function()

        return self.call(calls())

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


class Live:
    """A node that is served on loopback."""

    def __init__(self, node: Node, *portals: Portal) -> None:
        self.node = node
        self.plane = FakeDataPlane()
        self.scsi = FakeScsi()
        self.thread = LoopThread()
        self.server = self.thread.run(
            lambda: IscsiServer(node, self.plane, self.scsi, portals or (Portal("127.0.0.1", 0),))
        )
        self.thread.call(self.server.start())

    @property
    def address(self) -> tuple[str, int]:
        portal = self.node.portals[0]
        return portal.host, portal.port

    def connect(self, portal: int = 0) -> Client:
        where = self.node.portals[portal]
        return Client((where.host, where.port), PATIENCE)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(lambda: self.thread.run(condition), what, every=0.005)

    def refusals(self) -> list[Refusal]:
        return self.thread.run(self.node.refused.all)

    def close(self) -> None:
        self.thread.call(self.server.close())
        self.thread.stop()


def make_node(*targets: IscsiTarget, limits: Limits | None = None, discovery: DiscoveryPolicy | None = None) -> Node:
    node = Node(limits, discovery, RefusedLog())
    for target in targets or (IscsiTarget(TARGET, luns={0: "disk"}),):
        node.add_target(target)
    return node


def login_to(node: Node, *, tag: int = 1, address: str = "127.0.0.1") -> Login:
    return Login(Door(node, ipaddress.ip_address(address), tag), node.challenges)
