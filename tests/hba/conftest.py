# SPDX-License-Identifier: Apache-2.0
"""A PCI function on a real data plane behind a real socket, and clients of it; nothing is a fake."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hba.client import Client, SharedMemory
from tests.live import LoopThread
from tests.waiting import wait_for
from vhost_scsi.dataplane import Core, CoreOptions
from vhost_scsi.hba.function import Chip, Function, Stats
from vhost_scsi.hba.server import Server

REGISTERS, MEMORY, CONFIG = 0, 2, 7
ID, WORD, CONTROL, STATUS, SOURCE, TARGET, LENGTH, MOVED, ENABLE = 0, 4, 8, 12, 16, 24, 32, 36, 40
COPY, RAISE, LOWER = 1, 2, 4
BUSY, DONE, FAULT = 1, 2, 3
BUS_MASTER = 4


class Bench:
    """A function, the exerciser (core/hba_exerciser.c) by default, served at `path`."""

    def __init__(self, path: str, chip: Chip = Chip.EXERCISER) -> None:
        self.path = path
        self.thread = LoopThread()
        self.core = Core(CoreOptions(poll="never", io_threads=1))
        self.thread.call(self.core.start())
        self.function = Function(self.core, chip)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen()
        self.server = Server(self.function, self.listener)
        self.thread.run(self.server.start)

    def connect(self) -> Client:
        return Client.connect(self.path)

    def stats(self) -> Stats:
        return self.thread.run(self.function.stats)

    def close(self) -> None:
        self.thread.call(self.server.close())
        self.thread.call(self.function.destroy())
        self.thread.call(self.core.close())
        self.thread.stop()


def copy(client: Client, source: int, target: int, length: int) -> None:
    """Starts a copy by the function."""
    client.write(REGISTERS, SOURCE, source.to_bytes(8, "little")[:4])
    client.write(REGISTERS, SOURCE + 4, source.to_bytes(8, "little")[4:])
    client.write(REGISTERS, TARGET, target.to_bytes(8, "little")[:4])
    client.write(REGISTERS, TARGET + 4, target.to_bytes(8, "little")[4:])
    client.write32(REGISTERS, LENGTH, length)
    client.write32(REGISTERS, CONTROL, COPY)


def status_after(client: Client) -> int:
    """How the copy ended; answers the function's own messages meanwhile."""
    wait_for(lambda: client.read32(REGISTERS, STATUS) != BUSY, "the end of the copy")
    return client.read32(REGISTERS, STATUS)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    before = open_fds()
    live = Bench(str(tmp_path / "s"))
    yield live
    live.close()
    assert open_fds() == before, "descriptors leaked"


@pytest.fixture
def stranger(bench: Bench) -> Iterator[Client]:
    """Connected, nothing agreed upon."""
    connected = bench.connect()
    yield connected
    connected.close()


@pytest.fixture
def client(stranger: Client) -> Client:
    stranger.negotiate()
    stranger.write(CONFIG, 4, BUS_MASTER.to_bytes(2, "little"))
    return stranger


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    shared = SharedMemory(1 << 16)
    yield shared
    shared.close()
