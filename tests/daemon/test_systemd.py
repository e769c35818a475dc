# SPDX-License-Identifier: Apache-2.0
"""What systemd hands over and is told; a whole daemon under it is in tests/cli."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vhost_scsi.daemon import systemd
from vhost_scsi.errors import ConfigError


def handed(**more: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "HOME": "/", **more}


def test_nothing_is_taken_without_the_variables() -> None:
    assert systemd.take_listen_fds({}) == []


def test_what_is_for_another_process_is_not_ours() -> None:
    assert systemd.take_listen_fds({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []


def test_sockets_come_with_their_names_and_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = socket.socketpair()
    os.set_inheritable(first.fileno(), True)
    base = min(first.fileno(), second.fileno())
    monkeypatch.setattr(systemd, "FIRST_FD", base)
    environment = handed(LISTEN_FDS="2", LISTEN_FDNAMES="vm0")
    taken = systemd.take_listen_fds(environment)
    assert taken == [("vm0", base), ("", base + 1)]
    assert not os.get_inheritable(first.fileno())
    assert environment == {"HOME": "/"}
    first.close()
    second.close()


@pytest.mark.parametrize("count", ["x", "-1", "1.5", "100000"])
def test_a_senseless_number_is_one_line(count: str) -> None:
    with pytest.raises(ConfigError, match="not a number of descriptors"):
        systemd.take_listen_fds(handed(LISTEN_FDS=count))


def test_descriptors_that_are_not_there_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "FIRST_FD", 900)
    with pytest.raises(ConfigError, match="descriptor 900: Bad file descriptor"):
        systemd.take_listen_fds(handed(LISTEN_FDS="1"))


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"vhost-scsi-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else str(tmp_path / "notify"))
        systemd.notify("READY=1", "MAINPID=7")
        assert manager.recv(100) == b"READY=1\nMAINPID=7"
        systemd.notify_reloading()
        assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify"])
def test_a_manager_that_is_not_there_is_no_failure(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.notify("READY=1")
