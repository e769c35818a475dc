# SPDX-License-Identifier: Apache-2.0
"""An iSCSI node over the real data plane, on loopback, with the units of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.iscsi.client import TARGET
from tests.iscsi.scsi_host import ScsiHost
from tests.live import Live
from vhost_scsi.iscsi.data_plane import DataPlane
from vhost_scsi.iscsi.node import Node
from vhost_scsi.iscsi.portals import Portal
from vhost_scsi.iscsi.server import IscsiServer
from vhost_scsi.iscsi.sessions import Session
from vhost_scsi.iscsi.targets import IscsiTarget, Limits


@dataclass
class Served:
    live: Live
    node: Node
    plane: DataPlane
    server: IscsiServer

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.node.portals[0].port

    def connect(self, **fields: Any) -> ScsiHost:
        """Logged in, and ready where the session is new."""
        host = ScsiHost(self.address, **fields)
        if not fields.get("tsih"):
            host.ready()
        return host

    def sessions(self) -> list[Session]:
        return self.live.run(lambda: list(self.node.sessions))

    def wait_for_sessions(self, count: int) -> None:
        self.live.wait_for(lambda: len(self.sessions()) == count, f"{count} sessions")


@contextmanager
def served(
    directory: Path, *stores: str, workers: int = 1, limits: Limits | None = None, engine: str = "auto"
) -> Iterator[Served]:
    """LUN 0 is the first store, LUN 1 the second, ..."""
    live = Live(directory, engine, workers)
    for number, store in enumerate(stores):
        live.unit(store, f"disk{number}")
    node = Node(limits)
    node.add_target(IscsiTarget(TARGET, luns={number: f"disk{number}" for number in range(len(stores))}))
    plane = DataPlane(live.core, live.target, tuple(range(workers)))
    server = live.run(lambda: IscsiServer(node, plane, plane, [Portal("127.0.0.1", 0)]))
    live.call(server.start())
    try:
        yield Served(live, node, plane, server)
    finally:
        live.call(server.close(), 60)
        live.close()
