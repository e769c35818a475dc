# SPDX-License-Identifier: Apache-2.0
"""A back end that is killed with requests in flight and started again with the same guest: real processes, driven by an
initiator that does what QEMU does. What C makes of each step is core/test/test_crash.c's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live import TEST_UNIT_READY, Host, compare_and_write, read10, write10
from vhost_scsi.daemon.client import ControlClient
from vhost_scsi.scsi.task import Status
from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.vhost_user.initiator import Initiator

PATIENCE = 60.0  # seconds; processes start slowly beside everything else
BLOCK = 512
REGISTERED = 0x1234
_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    _libc.prctl(1, signal.SIGKILL)


class Daemon:
    """`vhost-scsi serve`, once more after each `kill`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket, self.log = folder, folder / "s", folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *luns: str) -> None:
        words = [sys.executable, "-m", "vhost_scsi.cli", "serve", "--json", "--state-dir", str(self.folder / "state")]
        words += ["--socket-path", str(self.socket), "--control", str(self.folder / "c"), "--num-queues", "2"]
        for lun in luns:
            words += ["--lun", lun]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, preexec_fn=die_with_parent
            )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), self.log.read_text()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def call(self, method: str) -> dict[str, Any]:
        with ControlClient(self.folder / "c") as client:
            return client.call(method)

    def wait_for_tasks(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(tasks := self.call("task.list")["tasks"]) < count:
            assert time.monotonic() < deadline, json.dumps(tasks)
            time.sleep(0.02)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    running = Daemon(tmp_path)
    yield running
    running.kill()


def persistent_reserve_out(action: int, key: int, new_key: int = 0, kind: int = 0) -> tuple[bytes, bytes]:
    data = key.to_bytes(8, "big") + new_key.to_bytes(8, "big") + bytes(8)
    return bytes([0x5F, action, kind]) + bytes(2) + len(data).to_bytes(4, "big") + bytes(1), data


def image(folder: Path) -> Path:
    path = folder / "disk.img"
    with path.open("xb") as file:
        file.truncate(1 << 20)
    return path


SPLIT = int(Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC)


@pytest.mark.parametrize("features", [SPLIT, SPLIT | int(Feature.RING_PACKED)], ids=["split", "packed"])
def test_what_was_in_flight_is_executed_by_the_next_process(daemon: Daemon, tmp_path: Path, features: int) -> None:
    """Eight writes and a COMPARE AND WRITE wait in a store that takes its time when the process is killed."""
    disk = image(tmp_path)
    daemon.start(f"0:0=delay(write=600s):{disk}")
    options = {"request_queues": 2, "inflight": True, "timeout": PATIENCE}
    with contextlib.closing(Initiator(daemon.socket, features=features, **options)) as initiator:  # type: ignore[arg-type]
        host = Host(initiator)
        host.ready()
        host.ok(*persistent_reserve_out(0, 0, REGISTERED))
        host.ok(*persistent_reserve_out(1, REGISTERED, kind=1))
        tags = [host.send(write10(n, 1), bytes([n + 1]) * BLOCK, queue=n % 2) for n in range(8)]
        tags.append(host.send(compare_and_write(8), bytes(BLOCK) + bytes([9]) * BLOCK))
        daemon.wait_for_tasks(9)
        daemon.kill()
        daemon.start(f"0:0={disk}")
        initiator.resume()
        for tag in tags:
            result = initiator.driver.wait(tag, PATIENCE)
            assert (result.response, result.status) == (0, Status.GOOD)
        # It was no power cycle: nothing is told, and the registration and the reservation are there.
        assert host.ok(read10(0, 9), in_len=9 * BLOCK) == b"".join(bytes([n + 1]) * BLOCK for n in range(9))
        assert host.command(TEST_UNIT_READY).status == Status.GOOD
        host.ok(*persistent_reserve_out(2, REGISTERED, kind=1))
        # And once more, with nothing in flight; a request that was sent while nobody was there is served, too.
        daemon.kill()
        late = host.send(write10(20, 1), b"z" * BLOCK)
        daemon.start(f"0:0={disk}")
        initiator.resume()
        assert initiator.driver.wait(late, PATIENCE).status == Status.GOOD
        assert host.ok(read10(20, 1), in_len=BLOCK) == b"z" * BLOCK
    assert "executed again" in daemon.log.read_text()
    assert "Traceback" not in daemon.log.read_text()


def test_without_that_memory_it_is_a_power_on(daemon: Daemon, tmp_path: Path) -> None:
    """The negative twin: nobody knows what was in flight, and the guest is told that power came on."""
    disk = image(tmp_path)
    daemon.start(f"0:0={disk}")
    with contextlib.closing(Initiator(daemon.socket, timeout=PATIENCE)) as initiator:
        host = Host(initiator)
        host.ready()
        daemon.kill()
        daemon.start(f"0:0={disk}")
        initiator.resume()
        assert host.command(TEST_UNIT_READY).status == Status.CHECK_CONDITION
