# SPDX-License-Identifier: Apache-2.0
"""A whole daemon, killed at every write, fsync and rename below its state directory while an initiator changes all that
is kept: identities, mode pages, identifying information, reservations, port groups. After its next start each of them
is as it was or as it was told to be; what was answered with GOOD before is there, and what was never asked for is not.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, TIMEOUT
from tests.iscsi.client import Client
from tests.iscsi.scsi_host import ScsiHost
from tests.live import inquiry
from tests.scsi.conftest import cdb_of
from tests.scsi.reserving import basic

IQN = "iqn.2026-11.org.example:kept"
CACHING, SP = 0x08, 0x11
DEADLY = """
import os, signal, sys

sys.path.insert(0, sys.argv[1])
below, at, count = sys.argv[2], int(sys.argv[3]), 0

def about(call, words):
    if call in ("write", "fsync"):
        try:
            return os.readlink(f"/proc/self/fd/{words[0]}")
        except OSError:
            return ""
    return os.path.abspath(os.fspath(words[0]))

def deadly(name):
    call = getattr(os, name)
    def run(*words, **more):
        global count
        if about(name, words).startswith(below):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*words, **more)
    return run

for name in ("write", "fsync", "rename", "unlink", "mkdir"):
    setattr(os, name, deadly(name))
from vhost_scsi.cli import main
main(sys.argv[4:], prog_name="vhost-scsi")
"""


@dataclass(frozen=True)
class Change:
    """One command, and how what it changes is read back."""

    name: str
    cdb: bytes
    data: bytes
    look: Callable[[ScsiHost], object]
    after: object


def serial(host: ScsiHost) -> bytes:
    return host.ok(inquiry(page=0x80), in_len=96)[4:36]


def saved_wce(host: ScsiHost) -> int:
    return host.ok(bytes([0x5A, 8, 0xC0 | CACHING, *bytes(4), 0, 252, 0]), in_len=252)[8 + 2] >> 2 & 1


def information(host: ScsiHost) -> bytes:
    cdb = cdb_of("REPORT IDENTIFYING INFORMATION", allocation_length=256)
    return host.ok(cdb, in_len=256)[4:]


def reservation(host: ScsiHost) -> tuple[bytes, bytes]:
    keys = host.ok(cdb_of("PERSISTENT RESERVE IN, READ KEYS", allocation_length=256), in_len=256)
    held = host.ok(cdb_of("PERSISTENT RESERVE IN, READ RESERVATION", allocation_length=256), in_len=256)
    return keys[8:], held[21:22]


def access_state(host: ScsiHost) -> int:
    return host.ok(cdb_of("REPORT TARGET PORT GROUPS", allocation_length=256), in_len=256)[4] & 0x0F


def mode(wce: bool) -> tuple[bytes, bytes]:
    data = bytes(8) + bytes([CACHING, 18, wce << 2]) + bytes(17)
    return bytes([0x55, SP, *bytes(5), 0, len(data), 0]), data


def out(action: str, data: bytes, kind: int = 0) -> tuple[bytes, bytes]:
    return cdb_of(f"PERSISTENT RESERVE OUT, {action}", type=kind, parameter_list_length=len(data)), data


def identify(data: bytes) -> tuple[bytes, bytes]:
    return cdb_of("SET IDENTIFYING INFORMATION", parameter_list_length=len(data)), data


def access(state: int) -> tuple[bytes, bytes]:
    data = bytes([0, 0, 0, 0, state, 0, 0, 1])
    return cdb_of("SET TARGET PORT GROUPS", parameter_list_length=len(data)), data


ONE, TWO = (1).to_bytes(8), (2).to_bytes(8)
CHANGES = (
    Change("mode page saved", *mode(False), saved_wce, 0),
    Change("information set", *identify(b"a disk of host A"), information, b"a disk of host A"),
    Change("registered", *out("REGISTER", basic(0, 1, aptpl=True)), reservation, (ONE, b"")),
    Change("reserved", *out("RESERVE", basic(1), 5), reservation, (ONE, b"\x05")),
    Change("group changed", *access(1), access_state, 1),
    Change("mode page saved again", *mode(True), saved_wce, 1),
    Change("information cleared", *identify(b""), information, b""),
    Change("another key", *out("REGISTER", basic(1, 2, aptpl=True)), reservation, (TWO, b"\x05")),
    Change("group changed again", *access(0), access_state, 0),
    Change("cleared", *out("CLEAR", basic(2)), reservation, (b"", b"")),
)
BEFORE = {saved_wce: 1, information: b"", reservation: (b"", b""), access_state: 0}


@contextmanager
def serving(tmp_path: Path, *command: str) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int] | None]]:
    """The daemon and its portal; None where it ended before it was ready."""
    words = [
        *command,
        *("serve", "--state-dir", str(tmp_path / "state"), "--control", str(tmp_path / "control")),
        *("--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", f"0={tmp_path / 'disk.img'}"),
    ]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("READY"):
                break
        match = re.search(r"READY iscsi (.*):(\d+),\d+$", said, re.MULTILINE)
        yield process, (match[1], int(match[2])) if match else None
    finally:
        process.kill()
        process.wait(TIMEOUT)
        assert process.stdout is not None
        process.stdout.close()


def changed(address: tuple[str, int]) -> tuple[int, bytes | None]:
    """How many changes were answered, and the unit's serial number if it was told."""
    done, number = 0, None
    try:
        with ScsiHost(address, IQN, client=Client(address, TIMEOUT)) as host:
            host.ready()
            number = serial(host)
            for change in CHANGES:
                host.ok(change.cdb, change.data)
                done += 1
    except (EOFError, ConnectionError):
        pass  # it was killed
    return done, number


def expected(done: int) -> dict[Callable[[ScsiHost], object], object]:
    found: dict[Callable[[ScsiHost], object], object] = dict(BEFORE)
    for change in CHANGES[:done]:
        found[change.look] = change.after
    return found


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_every_call_the_daemon_comes_back_with_the_old_or_the_new(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    told: list[int] = []
    ended_by_itself = False
    at = 0
    while not ended_by_itself:
        at += 1
        subprocess.run(["rm", "-rf", str(tmp_path / "state")], check=True)
        number = None
        done = 0
        deadly = (sys.executable, "-c", DEADLY, str(ROOT), str(tmp_path / "state"), str(at))
        with serving(tmp_path, *deadly) as (process, address):
            if address is not None:
                done, number = changed(address)
            ended_by_itself = process.poll() is None and done == len(CHANGES)
            if not ended_by_itself:
                assert process.wait(TIMEOUT) == -signal.SIGKILL, f"call {at}: another end"
        told.append(done)
        with serving(tmp_path, sys.executable, "-m", "vhost_scsi.cli") as (_, address):
            assert address is not None, f"call {at}: it does not start again"
            with ScsiHost(address, IQN) as host:
                host.ready()
                if number is not None:
                    assert serial(host) == number, f"call {at}: another disk"
                found = {look: look(host) for look in BEFORE}
        after = expected(done), expected(min(done + 1, len(CHANGES)))
        assert found in after, f"killed at call {at}, in {CHANGES[done].name if done < len(CHANGES) else 'the end'}"
    assert told == sorted(told), "the same calls each time"
    assert set(told) >= set(range(len(CHANGES) + 1)), "killed in each of the changes"
    assert at > 5 * len(CHANGES)
    print(f"\nkilled at {at - 1} calls, in {len(CHANGES)} changes and before")
