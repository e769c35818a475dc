# SPDX-License-Identifier: Apache-2.0
"""Starts what is measured, each on one CPU, on loopback and a port that was free: our server as a user would, tgtd with
a file on tmpfs, and the bare sendmsg loop of canned.c. Every unit is filled, each piece with its number.

It measures nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "build" / "core-test" / "plain" / "bench" / "iscsi"
IQN = "iqn.2026-11.org.example:bench"
TMPFS = Path("/dev/shm")
PIECE = 4096
PATIENCE = 60.0  # seconds that a target has to start
PRIORITY = 1  # of the real-time class: before everything that is not in it


class BenchError(Exception):
    """Something is missing, or did not do what it should."""


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    port: int
    lun: int
    pid: int

    @property
    def url(self) -> str:
        return f"iscsi://127.0.0.1:{self.port}/{IQN}/{self.lun}"

    def threads(self) -> list[int]:
        return [int(entry.name) for entry in Path(f"/proc/{self.pid}/task").iterdir()]


def build() -> None:
    command = ["make", "--no-print-directory", "-s", "-C", str(ROOT / "core"), f"PYTHON={sys.executable}", "bench"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"the programs do not compile:\n{result.stdout}{result.stderr}")


def program(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise BenchError(f"{name} is not installed; `make deps` installs it")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: Sequence[str], cpu: int, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """The program on one CPU until the block ends; it inherits the CPU, as all its threads will."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **(env or {})}
        )
    finally:
        os.sched_setaffinity(0, usable)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def first_line(process: subprocess.Popen[str], what: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchError(f"{what} ended with exit code {process.wait()}")
    return line


def prefer(target: Target) -> bool:
    """Puts its threads before those of other programs; False where that is not allowed."""
    try:
        for thread in target.threads():
            os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:
        return False
    return True


@contextlib.contextmanager
def ours(cpu: int, size: int, serve_options: Sequence[str] = ()) -> Iterator[Target]:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="vs-bench-") as folder:
        command = [sys.executable, "-m", "vhost_scsi.cli", "serve", "--json", "--control", f"{folder}/control"]
        command += ["--iscsi", f"127.0.0.1:{port}", "--target", IQN, "--lun", f"0=memory:{size}", *serve_options]
        with running(command, cpu) as process:
            json.loads(first_line(process, "vhost-scsi serve"))
            target = Target("ours", port, 0, process.pid)
            fill = [str(PROGRAMS / "initiator"), "--port", str(port), "--target", IQN, "--fill"]
            result = subprocess.run(fill, capture_output=True, text=True, check=False)
            if result.returncode:
                raise BenchError(f"filling our unit: {result.stderr.strip()}")
            yield target


def number_pieces(path: Path, size: int) -> None:
    chunk = 256
    with path.open("wb") as file:
        for first in range(0, size // PIECE, chunk):
            count = min(chunk, size // PIECE - first)
            file.write(b"".join(struct.pack("<Q", first + i).ljust(PIECE, b"\xa5") for i in range(count)))


def tgtadm(env: dict[str, str], *arguments: str) -> bool:
    """True: it did. Its own socket (TGT_IPC_SOCKET) keeps a tgtd that the machine may run out of this."""
    command = [program("tgtadm"), "--lld", "iscsi", *arguments]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def tgtd(cpu: int, size: int) -> Iterator[Target]:
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="vs-bench-") as folder,
        tempfile.NamedTemporaryFile(prefix="vs-bench-", dir=TMPFS) as image,
    ):
        number_pieces(Path(image.name), size)
        env = {"TGT_IPC_SOCKET": f"{folder}/ipc"}
        command = [program("tgtd"), "-f", "--iscsi", f"portal=127.0.0.1:{port}"]
        with running(command, cpu, env) as process:
            deadline = time.monotonic() + PATIENCE
            make = ["--op", "new", "--mode", "target", "--tid", "1", "-T", IQN]
            while not tgtadm(env, *make):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError("tgtd does not start; does it want to be run by root?")
                time.sleep(0.1)
            unit = ["--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", image.name]
            if not tgtadm(env, *unit) or not tgtadm(env, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"):
                raise BenchError("tgtadm: no logical unit can be made")
            try:
                yield Target("tgtd", port, 1, process.pid)
            finally:
                process.kill()  # with targets it stays through SIGTERM


@contextlib.contextmanager
def bare(cpu: int, size: int) -> Iterator[Target]:
    with running([str(PROGRAMS / "canned"), str(size)], cpu) as process:
        yield Target("bare", int(first_line(process, "canned")), 0, process.pid)
