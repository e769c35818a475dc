# SPDX-License-Identifier: Apache-2.0
"""`lun add|remove|replace` on a running daemon, on a port and in a target, and what `config save` keeps of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import Run, Serve
from tests.cli.test_iscsi import IQN, address_of
from tests.iscsi.scsi_host import ScsiHost
from tests.live import PATIENCE, REPORT_LUNS, TEST_UNIT_READY, Host, inquiry, read10
from tests.vhost_user.test_events import reset, told
from vhost_scsi.scsi import sense
from vhost_scsi.vhost_user.initiator import Initiator
from vhost_scsi.virtqueue.virtio_scsi import ResetReason

AT_ONCE = ("--patience", "0")  # who waits for events here answers the command first
FILE = """# Disks of the lab.
[lu.root]    # the old one
url = "memory:4M"

[map]
"0:0" = "root"

[port.vm]
socket = "s"
"""


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "one.img", tmp_path / "two.img"
    for path, byte in zip(paths, b"12", strict=True):
        path.write_bytes(bytes([byte]) * (1 << 20))
    return paths


def guest(path: Path) -> Host:
    host = Host(Initiator(path, timeout=PATIENCE))
    host.driver.post_events()
    return host


def test_a_guest_follows_what_is_added_removed_and_replaced(
    serve: Serve, quick: Run, tmp_path: Path, images: tuple[Path, Path]
) -> None:
    (tmp_path / "d.toml").write_text(FILE)
    served = serve("--config", "d.toml", socket_path=False)
    with guest(tmp_path / "s") as host:
        host.ready()
        assert quick("lun", "add", "0:1=one.img").stdout == "lun-0-1: 1048576 bytes at 0:1\n"
        assert told(host) == [reset(ResetReason.RESCAN, 0, 1)]
        host.ready((0, 1))
        assert host.ok(read10(0, 1), in_len=512, at=(0, 1)) == b"1" * 512
        before = host.ok(inquiry(252, page=0x83), in_len=252, at=(0, 1))

        done = quick("lun", "replace", "lun-0-1", "two.img,readonly", *AT_ONCE)
        assert done.returncode == 0, done.stderr
        assert told(host, 2) == [reset(ResetReason.REMOVED, 0, 1), reset(ResetReason.RESCAN, 0, 1)]
        host.fails(sense.POWER_ON_OCCURRED, read10(0, 1), in_len=512, at=(0, 1))
        assert host.ok(read10(0, 1), in_len=512, at=(0, 1)) == b"2" * 512
        assert host.ok(inquiry(252, page=0x83), in_len=252, at=(0, 1)) != before
        assert "one.img" not in "".join(map(str, _open_files(served.process.pid)))

        assert quick("config", "save").returncode == 0
        saved = tomllib.loads((tmp_path / "d.toml").read_text())
        assert saved["map"] == {"0:0": "root", "vm:0:1": "lun-0-1"}
        assert saved["lu"]["lun-0-1"] == {"url": f"file:{images[1]}", "readonly": True}
        assert "# the old one" in (tmp_path / "d.toml").read_text()

        assert quick("lun", "remove", "root", *AT_ONCE).stdout == "root: removed\n"
        assert told(host) == [reset(ResetReason.REMOVED, 0, 0)]
        host.fails(sense.LOGICAL_UNIT_NOT_SUPPORTED, read10(0, 1), in_len=512)
        assert quick("lun", "remove", "vm:0:1", *AT_ONCE).stdout == "lun-0-1: removed\n"
        assert told(host) == [reset(ResetReason.REMOVED, 0, 1)]

        # A port may be empty then, and is so in the file.
        assert quick("config", "save").returncode == 0
        saved = tomllib.loads((tmp_path / "d.toml").read_text())
        assert (saved.get("map", {}), saved.get("lu", {}), saved["port"]["vm"]["spare"]) == ({}, {}, True)
        # What the file says is taken over on ports, too.
        (tmp_path / "d.toml").write_text(FILE)
        assert quick("config", "reload").stdout == ""
        assert told(host) == [reset(ResetReason.RESCAN, 0, 0)]
        host.ready()
        assert host.ok(read10(0, 1), in_len=512) == bytes(512)
    assert served.stop() == 0


def _open_files(pid: int) -> list[Path]:
    return [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]


def test_what_cannot_be_plugged(serve: Serve, quick: Run, images: tuple[Path, Path]) -> None:
    serve("--lun", "0:0=one.img", "--lun", "0:1=memory:1M,removable")
    for words, said in (
        (("add", "0:0=memory:1M"), "lun-0-0 is there already"),
        (("add", "--unit-name", "x", "0:0=memory:1M"), "LUN 0:0 of port default is given twice"),
        (("add", "0:2=one.img"), "are both on"),
        (("add", "0:2=missing.img"), "missing.img"),
        (("add", "0:2"), "not PLACE=URL"),
        (("add", "nowhere=memory:1M"), "is not T:L"),
        (("add", "7=memory:1M"), "names no iSCSI target"),
        (("add", "other:0:0=memory:1M"), "there is no port 'other'"),
        (("add", "0:2=memory:1M,wce=perhaps"), "must be on or off"),
        (("remove", "lun-0-2"), "there is no logical unit 'lun-0-2', did you mean"),
        (("remove", "0:7"), "there is no logical unit at default:0:7"),
        (("remove", "lun-0-0", "--patience", "61"), "from 0 to 60 seconds"),
        (("replace", "lun-0-7", "memory:1M"), "there is no logical unit"),
        (("replace", "lun-0-0", "missing.img"), "missing.img"),
        (("replace", "lun-0-0", "memory:1000"), "not a multiple of the block size"),
        (("replace", "lun-0-1", "memory:1M"), "eject and insert"),
    ):
        failed = quick("lun", *words)
        assert failed.returncode != 0, words
        assert failed.stderr.startswith("vhost-scsi: "), failed.stderr
        assert failed.stderr.count("\n") == 1, failed.stderr
        assert said in failed.stderr, failed.stderr
    # None of it has changed anything.
    assert quick("config", "show").stdout.count("[lu.") == 2


def test_an_initiator_follows_too(serve: Serve, quick: Run, images: tuple[Path, Path]) -> None:
    served = serve("--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", "0=memory:1M", socket_path=False)
    inventory = sense.REPORTED_LUNS_DATA_HAS_CHANGED
    with ScsiHost(address_of(served), IQN) as host:
        host.fails(sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED, TEST_UNIT_READY)
        assert quick("lun", "add", f"{IQN}:3=one.img").stdout == f"lun-disk-3: 1048576 bytes at {IQN}:3\n"
        assert host.event() == (3, inventory)
        host.fails(inventory, TEST_UNIT_READY)
        assert host.ok(REPORT_LUNS, in_len=4096)[8:] == bytes(9) + b"\x03" + bytes(6)
        host.fails(sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED, TEST_UNIT_READY, lun=3)
        assert host.ok(read10(0, 1), in_len=512, lun=3) == b"1" * 512

        assert quick("lun", "replace", "lun-disk-3", "two.img").returncode == 0
        assert [host.event(), host.event()] == [(3, inventory)] * 2
        host.fails(sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED, TEST_UNIT_READY, lun=3)
        assert host.ok(read10(0, 1), in_len=512, lun=3) == b"2" * 512

        assert quick("lun", "resize", "lun-disk-3", "2M").returncode == 0
        assert host.event() == (3, sense.CAPACITY_DATA_HAS_CHANGED)
        host.fails(sense.CAPACITY_DATA_HAS_CHANGED, TEST_UNIT_READY, lun=3)

        assert quick("lun", "remove", f"{IQN}:3").stdout == "lun-disk-3: removed\n"
        assert host.event() == (3, inventory)
        host.fails(sense.LOGICAL_UNIT_NOT_SUPPORTED, TEST_UNIT_READY, lun=3)
        assert host.ok(REPORT_LUNS, in_len=4096)[8:] == bytes(8)
        assert "the last logical unit of target" in quick("lun", "remove", "lun-0").stderr
    assert served.stop() == 0
