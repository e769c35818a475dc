# SPDX-License-Identifier: Apache-2.0
"""A test bed: back ends as child processes (`vhost-scsi serve`), and guests that are attached to them.

What a test bed starts is gone when it is closed, and every back end must then end in good order: alive until it is
told to go, status 0, no error and no traceback in its log. It checks nothing of SCSI; that is what the tests do.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import initrd
import pytest

from vhost_scsi.daemon.client import ControlClient
from vhost_scsi.qemu import Accel, Firmware, Guest, GuestConfig, Qemu, device_options

# TCG on a busy machine: ten times what an idle one needs.
READY_TIMEOUT = 60.0
END_TIMEOUT = 30.0
BOOT_TIMEOUT = 400.0
TINY_BOOT_TIMEOUT = 120.0
MIB = 1 << 20
FIRST_REQUEST = 2  # queues 0 and 1 are the control and the event queue
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """What a process used up in a span of time."""

    ticks: int
    switches: int


class Backend:
    """One `vhost-scsi serve`. Its log stands in `log`; `socket` is for QEMU, where `vhost` says that there is one."""

    def __init__(
        self, folder: Path, arguments: Sequence[str], launcher: Sequence[str] = (), *, vhost: bool = True
    ) -> None:
        folder.mkdir()
        self.folder, self.socket, self.control, self.log = folder, folder / "vhost", folder / "control", folder / "log"
        self._words = [
            *launcher,
            *(sys.executable, "-m", "vhost_scsi.cli", "serve", "--json", "--state-dir", str(folder / "state")),
            *(["--socket-path", str(self.socket)] if vhost else []),
            *("--control", str(self.control), *arguments),
        ]
        self._start()

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, preexec_fn=_die_with_parent
            )
        self.ready = self._wait_ready()
        self.pid = int(self.ready["pid"])

    def restart(self) -> None:
        """Start it once more, as before and in the same folder, after `kill`."""
        assert not self.alive
        self._start()

    def _wait_ready(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        readable = select.select([self._process.stdout], [], [], READY_TIMEOUT)[0]
        line = self._process.stdout.readline() if readable else b""
        if not line:
            self.kill()
            raise AssertionError(f"the back end does not start: {self.log.read_text()}")
        ready: dict[str, Any] = json.loads(line)
        return ready

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One answer from the management socket."""
        with ControlClient(self.control) as client:
            return client.call(method, **params)

    def command(self, *words: str) -> dict[str, Any]:
        """What `vhost-scsi WORDS --json` says of this back end."""
        line = [sys.executable, "-m", "vhost_scsi.cli", *words, "--json", "--control", str(self.control)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def queues(self) -> list[dict[str, Any]]:
        """Every queue, control and event queue first."""
        queues: list[dict[str, Any]] = self.call("queue.list")["queues"]
        return queues

    def requests(self) -> list[int]:
        """How many requests came through each request queue so far."""
        return [queue["requests"] for queue in self.queues()[FIRST_REQUEST:]]

    def tasks(self) -> list[dict[str, Any]]:
        """Requests in flight."""
        tasks: list[dict[str, Any]] = self.call("task.list")["tasks"]
        return tasks

    def unit(self, target: int, lun: int) -> dict[str, Any]:
        """What the daemon says of the logical unit at a place."""
        for unit in self.call("lun.list")["logical_units"]:
            if any((place["target"], place["lun"]) == (target, lun) for place in unit["mapped"]):
                found: dict[str, Any] = unit
                return found
        raise AssertionError(f"the back end has nothing at {target}:{lun}")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def cost(self, seconds: float) -> Cost:
        """CPU ticks and context switches of all its threads in the next `seconds`."""
        before = self._used()
        time.sleep(seconds)
        after = self._used()
        return Cost(after.ticks - before.ticks, after.switches - before.switches)

    def _used(self) -> Cost:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        switches = 0
        for status in Path(f"/proc/{self.pid}/task").glob("*/status"):
            switches += sum(int(number) for number in re.findall(r"ctxt_switches:\s+(\d+)", status.read_text()))
        return Cost(int(fields[11]) + int(fields[12]), switches)  # utime, stime (proc(5))

    def stop(self) -> None:
        """SIGTERM, and everything that must be true of a back end that ends."""
        assert self.alive, f"the back end is gone: {self._process.poll()}\n{self.log.read_text()}"
        os.kill(self.pid, signal.SIGTERM)
        try:
            status = self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the back end does not end:\n{self.log.read_text()}") from None
        log = self.log.read_text()
        assert status == 0, f"the back end ended with {status}:\n{log}"
        bad = [line for line in log.splitlines() if "Traceback" in line or " error " in line]
        assert not bad, f"the back end complains:\n{log}"

    def kill(self) -> None:
        """SIGKILL; safe to call at any time."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Bed:
    """Starts back ends and guests below one folder. Close it, or use it as a context manager."""

    def __init__(self, qemu: Qemu, accel: Accel, folder: Path) -> None:
        self.qemu, self.accel, self.folder = qemu, accel, folder
        self._guests: list[Guest] = []
        self._backends: list[Backend] = []
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Guests first, hard; then each back end in good order. Images take space, so they go too."""
        with contextlib.ExitStack() as stack:
            for path in self.folder.glob("*.img"):
                stack.callback(path.unlink)
            for backend in self._backends:
                stack.callback(backend.kill)
            for backend in self._backends:
                stack.callback(backend.stop)
            for guest in self._guests:
                stack.callback(guest.kill)
            self._guests, self._backends = [], []

    def disk(self, name: str, size: int) -> Path:
        """A sparse file of zeroes."""
        path = self.folder / f"{name}.img"
        with path.open("xb") as handle:
            handle.truncate(size)
        return path

    def serve(
        self,
        *luns: str,
        queues: int = 1,
        options: Sequence[str] = (),
        launcher: Sequence[str] = (),
        vhost: bool = True,
    ) -> Backend:
        """A back end with logical units given as `T:L=URL[,OPTION=VALUE...]`; without `vhost` it has no such port."""
        self._count += 1
        words = [word for lun in luns for word in ("--lun", lun)]
        if vhost:
            words += ["--num-queues", str(queues)]
        backend = Backend(self.folder / f"backend-{self._count}", [*words, *options], launcher, vhost=vhost)
        self._backends.append(backend)
        return backend

    def abandon(self, backend: Backend) -> None:
        """Kill a back end on purpose: it need not end in good order."""
        self._backends.remove(backend)
        backend.kill()

    def attach(
        self,
        backend: Backend,
        *,
        queues: int = 1,
        size: int = 128,
        bootindex: int | None = None,
        properties: Mapping[str, str] | None = None,
        ident: str = "scsi0",
    ) -> tuple[str, ...]:
        """QEMU's options for the device; each of one guest has an `ident` of its own."""
        options = device_options(
            backend.socket, queues, size, qemu=self.qemu, bootindex=bootindex, properties=properties, ident=ident
        )
        return tuple(options)

    def start(self, *extra: str, **settings: Any) -> Guest:
        """A QEMU that boots from what `extra` gives it."""
        log = self.folder / f"serial-{len(list(self.folder.glob('serial-*')))}.log"
        guest = Guest(GuestConfig(self.qemu, self.accel, extra=extra, serial_log=log, **settings))
        self._guests.append(guest)
        guest.start()
        return guest

    def tiny(self, *extra: str, **settings: Any) -> Guest:
        """The small guest, with a root shell that takes `run`."""
        built = initrd.tiny_guest()
        defaults: dict[str, Any] = {"memory_mib": 512, "no_reboot": True, "firmware": Firmware.BIOS}
        wanted = {**defaults, **settings}
        guest = self.start(*extra, kernel=built.kernel, initrd=built.initrd, append=built.append, **wanted)
        guest.expect(built.ready, TINY_BOOT_TIMEOUT)
        return guest


def wait_until(what: str, holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """`holds` is asked again and again."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} seconds: {what}"
        time.sleep(0.2)


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@pytest.fixture
def bed(qemu: Qemu, accel: Accel, tmp_path: Path) -> Iterator[Bed]:
    """A test bed of one test."""
    with Bed(qemu, accel, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared_bed(qemu: Qemu, accel: Accel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """A test bed of all tests in one file: many checks, few boots."""
    with Bed(qemu, accel, tmp_path_factory.mktemp("bed")) as made:
        yield made
