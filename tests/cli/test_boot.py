# SPDX-License-Identifier: Apache-2.0
"""`boot` with a QEMU that is a fake: what its ends look like. Real guests are in qemu-tests/."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, Run

LOGIN = {"FAKE_QEMU": "login"}


def test_it_ends_as_soon_as_the_text_is_seen(run: Run, disk: Path) -> None:
    result = run("boot", disk, "--expect", "fake login:", "--timeout", "30", env=LOGIN)
    assert result.returncode == 0, result.stderr
    assert "fake login: " in result.stdout
    assert "'fake login:' was seen after" in result.stderr


def test_the_result_as_json_is_alone_on_stdout(run: Run, disk: Path) -> None:
    result = run("boot", disk, "--expect", "fake login:", "--json", env=LOGIN)
    said = json.loads(result.stdout)
    assert (said["schema_version"], said["accel"]) == (1, "tcg")
    assert "fake login: " in result.stderr


def test_a_failure_is_one_json_object_too(run: Run, disk: Path) -> None:
    result = run("boot", disk, "--json", env={"FAKE_QEMU": "dies"})
    said = json.loads(result.stdout)
    assert (result.returncode, said["exit_code"], said["schema_version"]) == (12, 12, 1)
    assert result.stderr == f"vhost-scsi: {said['error']}\n"


def test_the_console_is_logged_as_it_came(run: Run, disk: Path, tmp_path: Path) -> None:
    result = run("boot", disk, "--expect", "fake login:", "--quiet", "--serial-log", tmp_path / "serial", env=LOGIN)
    assert result.returncode == 0
    assert result.stdout == ""
    assert (tmp_path / "serial").read_bytes() == b"\x1b[0mfake login: "


def test_a_snapshot_leaves_the_image_to_others(run: Run, disk: Path) -> None:
    with subprocess.Popen(["flock", "--shared", disk, "sleep", "60"]) as reader:
        result = run("boot", disk, "--snapshot", "--expect", "fake login:", "--quiet", env=LOGIN)
        reader.terminate()
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("words", [["--lun", "0:0=memory:1M"], ["--lun", "boot:0:0=memory:1M"]])
def test_the_place_of_the_image_is_taken(run: Run, disk: Path, words: list[str]) -> None:
    result = run("boot", disk, *words)
    assert result.returncode == 3
    assert "given twice" in result.stderr


def test_leftovers_go(run: Run, environment: dict[str, str], disk: Path, tmp_path: Path) -> None:
    """What a killed one left goes with the next. The name is short: a socket's path under it must fit in 107 bytes."""
    ours = {**LOGIN, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([*COMMAND, "boot", disk], env={**environment, **ours}, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.read(4) == b"fake"
        killed.kill()
    assert len(list(tmp_path.glob("vhost-scsi-boot.*"))) == 1
    assert len(list((tmp_path / "run" / "vhost-scsi").iterdir())) == 2
    assert run("boot", disk, "--expect", "fake login:", "--quiet", env=ours).returncode == 0
    assert list(tmp_path.glob("vhost-scsi-boot.*")) == []
    assert list((tmp_path / "run" / "vhost-scsi").iterdir()) == []


def test_nothing_is_left_behind(run: Run, disk: Path, tmp_path: Path) -> None:
    assert (
        run("boot", disk, "--expect", "fake login:", "--quiet", env={**LOGIN, "TMPDIR": str(tmp_path)}).returncode == 0
    )
    assert list(tmp_path.glob("vhost-scsi-boot.*")) == []
    assert list((tmp_path / "run" / "vhost-scsi").iterdir()) == []
