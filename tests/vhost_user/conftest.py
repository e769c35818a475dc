# SPDX-License-Identifier: Apache-2.0
"""A device that records what it is told, and a live server over it in a thread of its own, for synchronous tests."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.waiting import PATIENCE, wait_for
from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.vhost_user.frontend import Frontend, SharedMemory
from vhost_scsi.vhost_user.messages import Inflight, MemoryRegion, VringAddr
from vhost_scsi.vhost_user.server import Server

T = TypeVar("T")
OFFERED_FEATURES = int(
    Feature.VERSION_1
    | Feature.EVENT_IDX
    | Feature.INDIRECT_DESC
    | Feature.SCSI_HOTPLUG
    | Feature.ANY_LAYOUT
    | Feature.RING_PACKED
)


class RecordingDevice:
    """Does what Device asks about descriptors, remembers every call, and fails or waits where a test says so."""

    def __init__(self) -> None:
        self.features = OFFERED_FEATURES
        self.num_queues = 6
        self.max_mem_slots = 509
        self.calls: list[tuple[Any, ...]] = []
        self.fail: dict[str, Exception] = {}
        self.wait: dict[str, asyncio.Event] = {}
        self.bases = dict.fromkeys(range(6), 0)
        self.enabled: set[int] = set()
        self.regions: list[MemoryRegion] = []
        self.fds: dict[tuple[str, int], int] = {}
        self.channel: socket.socket | None = None
        self.connections_ended = 0
        self._status = 0

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def last(self, name: str) -> tuple[Any, ...]:
        return next(call for call in reversed(self.calls) if call[0] == name)

    def _record(self, name: str, *args: Any) -> None:
        self.calls.append((name, *args))
        if name in self.fail:
            raise self.fail[name]

    async def _wait(self, name: str) -> None:
        if name in self.wait:
            await self.wait[name].wait()

    @property
    def status(self) -> int:
        return self._status

    @status.setter
    def status(self, value: int) -> None:
        self._record("status", value)
        self._status = value

    def set_features(self, features: int) -> None:
        self._record("set_features", features)

    def _replace_regions(self, regions: list[MemoryRegion]) -> None:
        for region in self.regions:
            if region not in regions:
                os.close(region.fd)
        self.regions = regions

    async def set_mem_table(self, regions: Sequence[MemoryRegion]) -> None:
        self._record("set_mem_table", list(regions))
        await self._wait("set_mem_table")
        self._replace_regions(list(regions))

    async def add_mem_region(self, region: MemoryRegion) -> None:
        self._record("add_mem_region", region)
        self.regions = [*self.regions, region]

    async def remove_mem_region(self, region: MemoryRegion) -> None:
        self._record("remove_mem_region", region)
        self._replace_regions([each for each in self.regions if each != region])

    async def set_vring_num(self, index: int, num: int) -> None:
        self._record("set_vring_num", index, num)

    async def set_vring_addr(self, index: int, addr: VringAddr) -> None:
        self._record("set_vring_addr", index, addr)

    async def set_vring_base(self, index: int, base: int) -> None:
        self._record("set_vring_base", index, base)
        self.bases[index] = base

    def _keep(self, name: str, index: int, fd: int | None) -> None:
        self._record(name, index, fd)
        old = self.fds.pop((name, index), None)
        if old is not None:
            os.close(old)
        if fd is not None:
            self.fds[name, index] = fd

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        self._keep("set_vring_kick", index, fd)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        self._keep("set_vring_call", index, fd)

    def set_vring_err(self, index: int, fd: int | None) -> None:
        self._keep("set_vring_err", index, fd)

    async def set_vring_enable(self, index: int, enabled: bool) -> None:
        self._record("set_vring_enable", index, enabled)
        (self.enabled.add if enabled else self.enabled.discard)(index)

    async def get_vring_base(self, index: int) -> int:
        self._record("get_vring_base", index)
        await self._wait("get_vring_base")
        return self.bases[index]

    async def reset_device(self) -> None:
        self._record("reset_device")
        self.enabled.clear()

    def get_inflight(self, num_queues: int, queue_size: int) -> tuple[int, int]:
        self._record("get_inflight", num_queues, queue_size)
        fd = os.memfd_create("inflight", os.MFD_CLOEXEC)
        os.ftruncate(fd, 4096)
        return fd, 4096

    async def set_inflight(self, inflight: Inflight, fd: int) -> None:
        self._record("set_inflight", inflight, os.fstat(fd).st_size)

    def set_backend_channel(self, channel: socket.socket | None) -> None:
        self._record("set_backend_channel", channel)
        if self.channel is not None:
            self.channel.close()
        self.channel = channel

    async def disconnected(self) -> None:
        self._record("disconnected")
        self._replace_regions([])
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self.enabled.clear()
        self._status = 0
        self.connections_ended += 1


class LoopThread:
    """An asyncio loop in a thread; `call` runs a coroutine there and returns what it returns."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


class Backend:
    """A device, a server that is live on `path`, and what a test does with them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.device = RecordingDevice()
        self.thread = LoopThread()
        self.server = Server.at_path(self.device, path)
        self.thread.call(self.server.start())

    def connect(self) -> Frontend:
        return Frontend(self.path, timeout=PATIENCE)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(condition, what)

    def wait_for_end(self, number: int) -> None:
        self.wait_for(lambda: self.device.connections_ended >= number, f"the end of connection {number}")

    def open_event(self) -> asyncio.Event:
        async def make() -> asyncio.Event:
            return asyncio.Event()

        return self.thread.call(make())

    def set_event(self, event: asyncio.Event) -> None:
        self.thread.loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        self.thread.call(self.server.close())
        self.thread.stop()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def fd_count() -> Callable[[], int]:
    return open_fds


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    before = open_fds()
    live = Backend(str(tmp_path / "s"))
    yield live
    live.close()
    assert open_fds() == before, "descriptors leaked"


@pytest.fixture
def frontend(backend: Backend) -> Iterator[Frontend]:
    """Connected, nothing negotiated."""
    with backend.connect() as connected:
        yield connected


@pytest.fixture
def negotiated(frontend: Frontend) -> Frontend:
    """All that is offered is negotiated, so every message is acknowledged."""
    frontend.negotiate()
    return frontend


@pytest.fixture
def packed(frontend: Frontend) -> Frontend:
    """As `negotiated`, with packed rings."""
    frontend.negotiate(OFFERED_FEATURES)
    return frontend


@pytest.fixture
def memory(backend: Backend) -> Iterator[SharedMemory]:
    shared = SharedMemory(1 << 20)
    yield shared
    shared.close()


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    loop_thread = LoopThread()
    yield loop_thread
    loop_thread.stop()


@pytest.fixture
def device() -> RecordingDevice:
    return RecordingDevice()


@pytest.fixture
def control_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "vhost_scsi.control")
    return caplog
