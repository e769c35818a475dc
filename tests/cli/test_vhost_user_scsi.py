# SPDX-License-Identifier: Apache-2.0
"""`vhost-user-scsi`, as a management layer starts it: QEMU's conventions for back ends, and nothing more."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, TIMEOUT
from tests.live import Host
from vhost_scsi.vhost_user.initiator import Initiator

PROGRAM = (sys.executable, "-c", "from vhost_scsi.cli.vhost_user_scsi import main; main(prog_name='vhost-user-scsi')")
FILE = '[lu.root]\nurl = "memory:1M"\n\n[map]\n"0:0" = "root"\n'


def call(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *words], env=environment, capture_output=True, text=True, timeout=TIMEOUT)


@pytest.fixture
def config(environment: dict[str, str], tmp_path: Path) -> Path:
    path = tmp_path / "config" / "vhost-scsi" / "vhost-user-scsi.toml"
    path.parent.mkdir(parents=True)
    path.write_text(FILE)
    environment["XDG_CONFIG_HOME"] = str(tmp_path / "config")
    return path


def test_it_says_what_it_is(environment: dict[str, str]) -> None:
    done = call(environment, "--print-capabilities")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"type": "scsi"})
    described = json.loads((ROOT / "cli" / "50-vhost-scsi.json").read_text())
    assert described["type"] == "scsi"
    assert Path(described["binary"]).name == "vhost-user-scsi"
    assert described["description"]


def test_it_takes_three_options_and_no_more(environment: dict[str, str], config: Path, tmp_path: Path) -> None:
    for words, said in (
        ((), "exactly one of --socket-path and --fd"),
        (("--socket-path", "s", "--fd", "3"), "exactly one of --socket-path and --fd"),
        (("--lun", "0:0=memory:1M"), "(see vhost-user-scsi --help)"),
        (("--fd", "77"), "--fd 77: "),
    ):
        done = call(environment, *words)
        assert done.returncode != 0
        assert done.stderr.startswith("vhost-user-scsi: ")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
    environment["XDG_CONFIG_HOME"] = str(tmp_path)
    done = call(environment, "--socket-path", "s")
    assert "nothing says what to serve" in done.stderr
    environment["VHOST_USER_SCSI_CONFIG"] = str(tmp_path / "missing")
    assert f"{tmp_path}/missing" in call(environment, "--socket-path", "s").stderr


@pytest.mark.parametrize("by", ["path", "listening"])
def test_it_serves_what_its_file_says(environment: dict[str, str], config: Path, tmp_path: Path, by: str) -> None:
    path = tmp_path / "s"
    words, inherited = ["--socket-path", str(path)], []
    if by == "listening":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        words, inherited = ["--fd", str(listener.fileno())], [listener.fileno()]
    process = subprocess.Popen([*PROGRAM, *words], env=environment, pass_fds=inherited, cwd=tmp_path)
    try:
        deadline = time.monotonic() + TIMEOUT
        while not path.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with Host(Initiator(path, timeout=TIMEOUT)) as host:
            host.ready()
        assert [each.name.startswith("vhost-user-scsi-") for each in (tmp_path / "run" / "vhost-scsi").glob("*.sock")]
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()
    assert os.path.exists(path) == (by == "listening")
