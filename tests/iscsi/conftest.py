# SPDX-License-Identifier: Apache-2.0
"""Fixtures: servers that are live on loopback. What they are made of is in `rig.py`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.iscsi.rig import Live, make_node
from vhost_scsi.iscsi.node import Node
from vhost_scsi.iscsi.portals import Portal


@pytest.fixture
def serve() -> Iterator[Callable[..., Live]]:
    """Starts servers, and checks that they leave no descriptor behind."""
    before = len(os.listdir("/proc/self/fd"))
    started: list[Live] = []

    def start(node: Node | None = None, *portals: Portal) -> Live:
        live = Live(node or make_node(), *portals)
        started.append(live)
        return live

    yield start
    for live in started:
        live.close()
        assert live.plane.open_sessions == []
        assert len(live.node.challenges) == 0
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors leaked"


@pytest.fixture
def live(serve: Callable[..., Live]) -> Live:
    return serve()
