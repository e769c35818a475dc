# SPDX-License-Identifier: Apache-2.0
"""As many request queues as are promised, 128, and as vhost-user has numbers for, 254: each carries requests."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from tests.live import Live, read10, write10
from vhost_scsi.vhost_user.features import Feature

MODERN = int(Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC)
# A ring costs three descriptors of the initiator, three of the device and three of the data plane, in one process here.
DESCRIPTORS = 8192


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Room for them, as the daemon makes itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        assert hard >= DESCRIPTORS, f"at most {hard} descriptors are allowed here"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize(
    ("queues", "features"),
    [
        pytest.param(128, MODERN | Feature.RING_PACKED, id="128-packed"),
        pytest.param(128, MODERN, id="128-split", marks=pytest.mark.slow),
        pytest.param(254, MODERN | Feature.RING_PACKED, id="254-packed", marks=pytest.mark.slow),
    ],
)
def test_every_queue_carries_requests(make_live, queues: int, features: int) -> None:  # type: ignore[no-untyped-def]
    live: Live = make_live("auto", 2)
    end = live.end((0, 0, live.unit("memory:4M")), request_queues=queues)
    with end.connect(features=int(features), queue_size=16) as host:
        host.ready()
        for queue in range(queues):
            host.ok(write10(queue, 1), bytes([queue]) * 512, queue=queue)
        # All at once, each from another queue than the one that wrote it.
        tags = [host.send(read10(n, 1), in_len=512, queue=(n + 1) % queues) for n in range(queues)]
        for number, result in enumerate(host.drain(tags)):
            assert result.data == bytes([number]) * 512
        statuses = live.run(end.device.queue_status)[2:]
        assert len(statuses) == queues
        assert all(status.started and not status.broken and status.requests >= 2 for status in statuses)
        assert {status.worker for status in statuses} == {0, 1}
        bases = host.initiator.stop()
        assert len(bases) == queues + 2
