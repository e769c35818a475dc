# SPDX-License-Identifier: Apache-2.0
"""Finding QEMU and knowing its version."""

from __future__ import annotations

from pathlib import Path

import pytest

from vhost_scsi.qemu import Qemu, QemuError, QemuNotFound, find_qemu
from vhost_scsi.qemu.binary import parse_version


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_version_is_read_from_what_qemu_prints() -> None:
    assert parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright") == (7, 2, 22)
    assert parse_version("QEMU emulator version 11.1") == (11, 1, 0)


def test_something_else_is_no_qemu() -> None:
    with pytest.raises(QemuNotFound, match="GNU bash"):
        parse_version("GNU bash, version 5.2")


def test_the_environment_names_a_program_with_a_blank_in_its_path(
    fake_program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VHOST_SCSI_QEMU", str(fake_program))
    assert find_qemu() == Qemu((str(fake_program),), (10, 0, 2))
    assert find_qemu().version_text == "10.0.2"


def test_the_environment_names_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = script(tmp_path / "loader", 'test "$1" = --library-path && echo QEMU emulator version 11.1.0')
    monkeypatch.setenv("VHOST_SCSI_QEMU", f"{loader} --library-path /x")
    assert find_qemu().command == (str(loader), "--library-path", "/x")


def test_no_qemu_on_the_path_is_one_clear_line_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VHOST_SCSI_QEMU", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QemuNotFound, match="install qemu-system-x86") as caught:
        find_qemu()
    assert caught.value.exit_code == 11
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHOST_SCSI_QEMU", "/no/such/qemu")
    with pytest.raises(QemuNotFound, match="/no/such/qemu"):
        find_qemu()


def test_a_program_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHOST_SCSI_QEMU", str(script(tmp_path / "broken", "echo no library >&2; exit 127")))
    with pytest.raises(QemuNotFound, match="status 127: no library"):
        find_qemu()


def test_a_qemu_without_our_device_is_one_that_refuses(tmp_path: Path) -> None:
    broken = script(tmp_path / "broken", "echo no such device >&2; exit 1")
    with pytest.raises(QemuError, match="no such device") as caught:
        Qemu((str(broken),), (10, 0, 0)).properties()
    assert caught.value.exit_code == 10


def test_a_program_that_cannot_be_executed_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "noformat"
    program.write_text("")
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    monkeypatch.setenv("VHOST_SCSI_QEMU", str(program))
    with pytest.raises(QemuNotFound, match="cannot be run"):
        find_qemu()


@pytest.mark.parametrize(
    ("version", "option"),
    [
        ((7, 2, 22), None),
        ((8, 1, 9), None),
        ((8, 2, 0), "reconnect=1"),
        ((9, 1, 3), "reconnect=1"),
        ((9, 2, 0), "reconnect-ms=1000"),
        ((11, 1, 0), "reconnect-ms=1000"),
    ],
)
def test_each_version_gets_the_reconnect_option_it_understands(
    version: tuple[int, int, int], option: str | None
) -> None:
    assert Qemu(("q",), version).reconnect_option == option


def test_cmpxchg16b_is_hidden_from_guests_of_an_old_tcg() -> None:
    assert Qemu(("q",), (7, 2, 0)).tcg_cpu == "max,-cx16"
    assert Qemu(("q",), (11, 1, 0)).tcg_cpu == "max"


def test_the_properties_are_asked_of_the_binary(fake: Qemu) -> None:
    assert fake.properties() == {"packed", "num_queues"}
