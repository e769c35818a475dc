# SPDX-License-Identifier: Apache-2.0
"""GET_INFLIGHT_FD and SET_INFLIGHT_FD: what the session asks of its device, what comes back, what is refused; and the
memory itself, as a device makes and takes it. What becomes of it when a process dies: test_crash.py.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.live import Host, Live, write10
from tests.vhost_user.conftest import Backend
from vhost_scsi._core import lib
from vhost_scsi.scsi.task import Status
from vhost_scsi.vhost_user.frontend import Frontend, RequestRefused
from vhost_scsi.vhost_user.inflight import create
from vhost_scsi.vhost_user.messages import INFLIGHT, Inflight, Request
from vhost_scsi.vhost_user.rules import Rule


def answer(frontend: Frontend, inflight: Inflight, fd: int) -> int:
    """Of SET_INFLIGHT_FD: 0, or the rule that is broken. No test may keep the exception: it has the guest's memory."""
    try:
        frontend.set_inflight(inflight, fd)
    except RequestRefused as error:
        return error.code
    return 0


def test_the_answer_is_as_long_as_the_question(negotiated: Frontend) -> None:
    """QEMU's structure is padded, the specification's is not; each gets its own back, with one descriptor."""
    for padding in (b"", bytes(4)):
        negotiated.send(Request.GET_INFLIGHT_FD, struct.pack("=QQHH", 0, 0, 6, 128) + padding)
        frame = negotiated.receive()
        with frame.fds:
            assert len(frame.payload) == 20 + len(padding)
            assert INFLIGHT.parse(frame.payload) == Inflight(4096, 0, 6, 128)
            assert len(frame.fds) == 1


@pytest.mark.parametrize(("queues", "size"), [(0, 128), (7, 128), (6, 0), (6, 32769)])
def test_queues_that_there_are_not_are_refused(backend: Backend, negotiated: Frontend, queues: int, size: int) -> None:
    with pytest.raises(RequestRefused):
        negotiated.get_inflight(queues, size)
    with open("/dev/null", "rb") as file:
        assert answer(negotiated, Inflight(4096, 0, queues, size), file.fileno()) == Rule.INFLIGHT_SHAPE
    assert "get_inflight" not in backend.device.names()
    assert "set_inflight" not in backend.device.names()


def test_the_memory_cannot_be_made_shorter_and_says_whose_it_is() -> None:
    fd, size = create(4, 128)
    try:
        assert size == os.fstat(fd).st_size == lib.vs_inflight_size(4, 128)
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        magic, number = struct.unpack("=QQ", os.pread(fd, 16, lib.vs_inflight_own_offset(4, 128)))
        assert (magic, bool(number)) == (lib.vs_inflight_magic(), True)
    finally:
        os.close(fd)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    running = Live(tmp_path, "auto", 1)
    yield running
    running.close()


def test_a_region_that_is_too_small_or_no_file_is_refused(live: Live) -> None:
    end = live.end((0, 0, live.unit()))
    with Frontend(end.path) as frontend:
        frontend.negotiate()
        short, pipe = os.memfd_create("short"), os.pipe()
        try:
            for fd in (short, pipe[0]):
                assert answer(frontend, Inflight(1 << 20, 0, 4, 128), fd) == Rule.INFLIGHT_SHAPE
        finally:
            for fd in (short, *pipe):
                os.close(fd)


def start_again(host: Host, bases: Sequence[int]) -> None:
    """The rings go on with the notifiers that the driver has."""
    initiator = host.initiator
    for vring, queue, base in zip(initiator.vrings, initiator.queues, bases, strict=True):
        address = initiator.user_addresses(vring.index)
        initiator.frontend.setup_vring(vring.index, queue.layout.size, address, base=base, again=vring)


def test_it_is_not_exchanged_under_a_ring_that_runs(live: Live) -> None:
    end = live.end((0, 0, live.unit()))
    with end.connect(inflight=True) as host:
        host.ready()
        kept = host.initiator._inflight
        assert kept is not None
        assert answer(host.initiator.frontend, *kept) == Rule.RING_STARTED
        bases = host.initiator.stop()
        host.initiator.frontend.set_inflight(*kept)
        start_again(host, bases)
        assert host.command(write10(0, 1), bytes(512)).status == Status.GOOD


def test_memory_of_another_life_is_forgotten(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    """It says that requests are in flight of which the ring knows nothing."""
    end = live.end((0, 0, live.unit()))
    with end.connect(inflight=True) as host:
        host.ready()
        kept = host.initiator._inflight
        assert kept is not None
        host.initiator.stop()
        # QueueRegionSplit of the first request queue: version 1, 128 descriptors, a used index from elsewhere.
        at = 2 * ((16 + 16 * 128 + 63) // 64 * 64)
        os.pwrite(kept[1], struct.pack("=QHHHH", 0, 1, 128, 5, 12345), at)
        host.initiator.frontend.set_inflight(*kept)
        start_again(host, [queue.used_idx for queue in host.initiator.queues])
        assert host.command(write10(0, 1), bytes(512)).status == Status.GOOD
    assert "does not fit the ring" in caplog.text
