# SPDX-License-Identifier: Apache-2.0
"""Drives on the command line: what `serve` takes, and eject and insert while an initiator is there."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, Serve, Served
from tests.cli.test_bad_input import one_line
from tests.cli.test_iscsi import IQN, Ask, address_of
from tests.cli.test_iscsi import ask as ask
from tests.iscsi.scsi_host import ScsiHost
from tests.live import PATIENCE, Host
from vhost_scsi.scsi import sense
from vhost_scsi.vhost_user.initiator import Initiator

READY, READ = bytes(6), bytes.fromhex("28000000000000000100")
PREVENT, ALLOW, EJECT = (bytes.fromhex(cdb) for cdb in ("1E0000000100", "1E0000000000", "1B0000000200"))
CHANGED = sense.NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED


def medium(ask: Ask) -> dict[str, Any]:
    (unit,) = ask("lun", "list")["logical_units"]
    found: dict[str, Any] = unit["medium"]
    return found


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    for name in "ab":
        (tmp_path / f"{name}.iso").write_bytes(name.encode() * 2048 * 16)
    return ["a.iso", "b.iso"]


def test_a_medium_is_changed_while_an_initiator_is_there(serve: Serve, run: Run, ask: Ask, images: list[str]) -> None:
    served = serve("--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", f"0={images[0]},type=cdrom", socket_path=False)
    with ScsiHost(address_of(served), IQN) as host:
        host.ready()
        assert host.ok(READ, in_len=2048) == b"a" * 2048
        assert " in " in run("lun", "list").stdout
        assert "cd_dvd" in run("lun", "list", "--json").stdout
        host.ok(PREVENT)
        one_line(run("lun", "eject", "lun-0"), 7, "prevents the removal of the medium")
        assert medium(ask) == {"present": True, "filled": True, "open": False, "locked": True}
        assert run("lun", "eject", "lun-0", "--force").stdout == "lun-0: taken out\n"
        host.fails(sense.MEDIUM_NOT_PRESENT_TRAY_OPEN, READY)
        assert medium(ask) == {"present": False, "filled": False, "open": True, "locked": False}
        assert "none open" in run("lun", "list").stdout
        assert run("lun", "insert", "lun-0", images[1]).stdout == f"lun-0: {16 * 2048} bytes\n"
        host.fails(CHANGED, READY)
        assert host.ok(READ, in_len=2048) == b"b" * 2048
        host.ok(EJECT)
        assert "ejected open" in run("lun", "list").stdout
        assert ask("lun", "insert", "lun-0")["medium"]["present"]
        host.fails(CHANGED, READY)
        assert images[1] in run("config", "show").stdout
    one_line(run("lun", "insert", "lun-0", images[0]), 7, "has a medium: eject it first")
    one_line(run("lun", "eject", "lun-1"), 7, "there is no logical unit 'lun-1'")
    assert served.stop() == 0
    assert "Traceback" not in served.log()


def test_an_empty_drive(serve: Serve, run: Run, ask: Ask, images: list[str]) -> None:
    serve("--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", "0=none,type=cdrom", socket_path=False)
    assert medium(ask) == {"present": False, "filled": False, "open": False, "locked": False}
    one_line(run("lun", "insert", "lun-0", "absent.iso"), 7, "absent.iso: no such file")
    one_line(run("lun", "insert", "lun-0", f"{images[0]},wce=off"), 3, "wce")
    assert run("lun", "eject", "lun-0").stdout == "lun-0: open, and empty as before\n"
    assert run("lun", "insert", "lun-0").stdout == "lun-0: closed, and empty\n"
    assert ask("lun", "insert", "lun-0", images[0])["size_bytes"] == 16 * 2048


def test_what_is_in_a_drive_is_no_reason_for_a_restart(
    serve: Serve, run: Run, ask: Ask, tmp_path: Path, images: list[str]
) -> None:
    file = tmp_path / "drive.toml"
    file.write_text(
        f'[lu.cd]\nurl = "{tmp_path / images[0]}"\ntype = "cdrom"\n[iscsi]\nportal = [{{listen = "127.0.0.1:0"}}]\n'
        f'target = [{{name = "{IQN}", luns = {{0 = "cd"}}}}]\n'
    )
    serve("--config", str(file), socket_path=False)
    assert run("lun", "eject", "cd").returncode == 0
    assert run("lun", "insert", "cd", images[1]).returncode == 0
    assert ask("config", "show")["drift"]
    assert run("config", "reload").returncode == 0
    assert images[1] in run("config", "show").stdout
    assert run("config", "save").returncode == 0
    assert images[1] in file.read_text()
    assert 'type = "cdrom"' in file.read_text()


def test_a_fixed_disk_has_no_drive(serve: Serve, run: Run) -> None:
    serve("--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", "0=memory:1M", socket_path=False)
    one_line(run("lun", "eject", "lun-0"), 7, "logical unit lun-0 is not removable")


@pytest.mark.parametrize(
    ("lun", "said"),
    [
        ("0:0=none", "exactly one of url and store"),
        ("0:0=memory:1M,type=floppy", "'floppy' is not one of 'disk' or 'cdrom'"),
        ("0:0=memory:1M,type=cdrom,block_size=512", "the blocks of a cdrom have 2048 bytes"),
    ],
)
def test_a_mistake_is_one_line(run: Run, lun: str, said: str) -> None:
    one_line(run("serve", "--socket-path", "s", "--lun", lun), 3, said)


@contextmanager
def guest(served: Served) -> Iterator[Host]:
    with Host(Initiator(str(served.socket), request_queues=1, timeout=PATIENCE)) as host:
        host.ready()
        yield host


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_locks_outlive_the_daemon(serve: Serve, run: Run, ask: Ask, images: list[str], end: signal.Signals) -> None:
    words = ["--lun", f"0:0={images[0]},type=cdrom"]
    served = serve(*words)
    with guest(served) as host:
        host.ok(PREVENT)
        served.stop(end)
    served = serve(*words)
    one_line(run("lun", "eject", "lun-0-0"), 7, "prevents the removal of the medium")
    with guest(served) as host:
        assert host.ok(READ, in_len=2048) == b"a" * 2048
        host.ok(ALLOW)
        host.ok(EJECT)
        assert medium(ask)["open"]
        served.stop(end)
    serve(*words)
    assert medium(ask) == {"present": False, "filled": True, "open": True, "locked": False}


def test_a_medium_that_was_put_in_outlives_the_daemon(
    serve: Serve, run: Run, ask: Ask, tmp_path: Path, images: list[str]
) -> None:
    words = ["--lun", f"0:0={images[0]},type=cdrom"]
    served = serve(*words)
    assert run("lun", "eject", "lun-0-0").returncode == 0
    served.stop(signal.SIGKILL)
    served = serve(*words)
    assert medium(ask) == {"present": False, "filled": False, "open": True, "locked": False}
    assert run("lun", "insert", "lun-0-0", images[1]).returncode == 0
    served.stop(signal.SIGKILL)
    served = serve(*words)
    assert "another medium is in it" in ask("config", "show")["drift"][0]
    with guest(served) as host:
        assert host.ok(READ, in_len=2048) == b"b" * 2048
    served.stop()
    (tmp_path / images[1]).rename(tmp_path / "c.iso")
    served = serve(*words)  # what was put in is not there any more
    assert not medium(ask)["filled"]
    assert "the drive is empty, though that was put in before" in served.log()
    served.stop()
    serve("--lun", "0:0=c.iso,type=cdrom").stop()  # somebody says what is in it
    (tmp_path / "c.iso").rename(tmp_path / images[1])
    serve(*words)
    assert medium(ask)["present"]
    assert images[0] in run("config", "show").stdout
