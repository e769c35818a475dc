# SPDX-License-Identifier: Apache-2.0
"""The sweep: what a killed `boot` left goes, and what somebody alive uses stays."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from vhost_scsi.daemon import leftovers


@pytest.fixture
def dead() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = tmp_path / "vhost-scsi"
    path.mkdir(mode=0o700)
    return path


def left(run: Path, pid: int) -> list[Path]:
    """What a `boot` of this id has in the file system."""
    folder = run.parent / f"vhost-scsi-boot.{pid}.abc"
    folder.mkdir()
    paths = [folder / leftovers.LOCK, run / f"boot-{pid}.sock", run / f"boot-{pid}.sock.lock"]
    for path in paths:
        path.touch()
    return [folder, *paths]


def test_what_a_dead_process_left_is_removed(run: Path, dead: int) -> None:
    paths = left(run, dead)
    leftovers.sweep()
    assert [path for path in paths if path.exists()] == []


def test_what_a_live_process_has_stays(run: Path) -> None:
    paths = left(run, os.getpid())
    leftovers.sweep()
    assert all(path.exists() for path in paths)


def test_what_is_locked_stays_whatever_its_name_says(run: Path, dead: int) -> None:
    folder, inside, socket, lock = left(run, dead)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fd = os.open(inside, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        leftovers.sweep()
        os.close(fd)
    assert all(path.exists() for path in (folder, inside, socket, lock))


def test_other_names_and_a_directory_of_others_are_not_touched(run: Path, dead: int) -> None:
    (run / "default.sock.lock").touch()
    (run.parent / "vhost-scsi-boot.mine").mkdir()
    paths = left(run, dead)
    run.chmod(0o777)
    leftovers.sweep()
    assert (run / "default.sock.lock").exists()
    assert (run.parent / "vhost-scsi-boot.mine").exists()
    assert [path.exists() for path in paths] == [False, False, True, True]


def test_the_own_folder_is_locked_and_goes(run: Path) -> None:
    with leftovers.folder() as path:
        fd = os.open(Path(path) / leftovers.LOCK, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
    assert not Path(path).exists()
