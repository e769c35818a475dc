# SPDX-License-Identifier: Apache-2.0
"""The command as users run it: a process of its own, in an environment of its own; and a `serve` that is watched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "vhost_scsi.cli")
FAKE_QEMU = ROOT / "tests" / "qemu" / "fake_qemu.py"
TIMEOUT = 60.0

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Nothing of this machine's daemons and state is seen or touched, and QEMU is a fake."""
    program = tmp_path / "qemu-fake"
    program.write_text(f'#!/bin/sh\nFAKE_BIN=/nowhere exec {sys.executable} {FAKE_QEMU} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "run").mkdir(mode=0o700)
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("VHOST_SCSI_", "LISTEN_", "NOTIFY_"))
    }
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "VHOST_SCSI_QEMU": str(program),
        "VHOST_SCSI_ACCEL": "tcg",
    }


@pytest.fixture
def run(environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs the command to its end."""

    def call(*words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            cwd=tmp_path,
            env={**environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    return call


@pytest.fixture
def quick(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """As `run`, in this process: for many commands after one another, which need no interpreter of their own each."""
    from vhost_scsi.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        texts = list(map(str, words))
        result = CliRunner().invoke(main, texts, env={**environment, **(env or {})}, prog_name="vhost-scsi")
        return subprocess.CompletedProcess(texts, result.exit_code, result.stdout, result.stderr)

    return call


@dataclass
class Served:
    """A `serve` that is ready. `output` is what it said up to then."""

    process: subprocess.Popen[str]
    socket: Path
    output: str
    errors: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT)

    def log(self) -> str:
        return self.errors.read_text()


Serve = Callable[..., Served]


@pytest.fixture
def serve(environment: dict[str, str], tmp_path: Path) -> Iterator[Serve]:
    """Starts `serve` on `tmp_path/s` and returns when it is ready; killed in the end, if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def start(
        *words: str | Path, env: dict[str, str] | None = None, socket_path: bool = True, **options: object
    ) -> Served:
        errors = tmp_path / f"errors-{len(started)}"
        path = tmp_path / "s"
        first = ["--socket-path", str(path)] if socket_path else []
        with errors.open("w") as stream:
            process = subprocess.Popen(  # type: ignore[call-overload]
                [*COMMAND, "serve", *first, *map(str, words)],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                **options,
            )
        started.append(process)
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        output = ""
        for line in process.stdout:
            output += line
            if line.startswith("READY") or '"ready"' in line:
                break
        watchdog.cancel()
        assert "READY" in output or '"ready"' in output, errors.read_text()
        return Served(process, path, output, errors)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(4 << 20))
    return path
