# SPDX-License-Identifier: Apache-2.0
"""Media that come and go under real initiators: what C reads is the medium that is in the drive, and nothing once it
is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live import TEST_UNIT_READY, Live, read10, write10
from vhost_scsi.errors import ConfigError
from vhost_scsi.scsi import sense
from vhost_scsi.scsi.commands import DeviceType
from vhost_scsi.stores import open_store
from vhost_scsi.target import LuSpec, Unit

CD = {"device_type": DeviceType.CD_DVD, "block_size": 2048, "read_only": True}
CHANGED = sense.NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED
EJECT, LOAD = bytes.fromhex("1B0000000200"), bytes.fromhex("1B0000000300")
PREVENT, ALLOW = bytes.fromhex("1E0000000100"), bytes.fromhex("1E0000000000")


def image(directory: Path, name: str, fill: bytes, blocks: int = 8) -> str:
    path = directory / name
    path.write_bytes(fill * 2048 * blocks)
    return f"{path},readonly=on"


def insert(live: Live, unit: Unit, url: str) -> None:
    async def put_in() -> None:
        store = open_store(url, live.core)
        try:
            await unit.insert(store)
        except BaseException:
            store.close()
            raise

    live.call(put_in())


def test_a_medium_is_changed_under_a_guest(live: Live, tmp_path: Path) -> None:
    unit = live.unit(image(tmp_path, "a.iso", b"a"), **CD)
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        assert host.ok(read10(7, 1), in_len=2048) == b"a" * 2048
        host.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, read10(8, 1), in_len=2048)
        assert live.call(unit.eject())
        assert unit.num_blocks == 0
        host.fails(sense.MEDIUM_NOT_PRESENT_TRAY_OPEN, read10(0, 1), in_len=2048)
        insert(live, unit, image(tmp_path, "b.iso", b"b", 16))
        host.fails(CHANGED, read10(0, 1), in_len=2048)
        assert host.ok(read10(15, 1), in_len=2048) == b"b" * 2048
        assert unit.num_blocks == 16
        (tmp_path / "a.iso").unlink()  # nobody has it any more


def test_what_a_guest_ejects_is_there_when_it_loads_it_again(live: Live, tmp_path: Path) -> None:
    unit = live.unit(image(tmp_path, "a.iso", b"a"), **CD)
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        host.ok(EJECT)
        host.fails(sense.MEDIUM_NOT_PRESENT_TRAY_OPEN, read10(0, 1), in_len=2048)
        host.ok(LOAD)
        assert host.ok(read10(0, 1), in_len=2048) == b"a" * 2048
        host.ok(EJECT)
        insert(live, unit, image(tmp_path, "b.iso", b"b"))  # instead of what lies in the tray
        host.fails(CHANGED, TEST_UNIT_READY)
        assert host.ok(read10(0, 1), in_len=2048) == b"b" * 2048
        host.ok(EJECT)
        live.call(unit.load())
        host.fails(CHANGED, TEST_UNIT_READY)


def test_a_locked_drive_opens_by_force_only(live: Live, tmp_path: Path) -> None:
    unit = live.unit(image(tmp_path, "a.iso", b"a"), **CD)
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        host.ok(PREVENT)
        with pytest.raises(ConfigError, match="prevents the removal"):
            live.call(unit.eject())
        assert host.ok(read10(0, 1), in_len=2048) == b"a" * 2048
        assert host.ok(bytes.fromhex("4A010000100000000800"), in_len=8)[4] == 1  # somebody wants the medium
        assert live.call(unit.eject(force=True))
        host.fails(sense.MEDIUM_NOT_PRESENT_TRAY_OPEN, TEST_UNIT_READY)


def test_the_lock_ends_with_the_connection(live: Live, tmp_path: Path) -> None:
    unit = live.unit(image(tmp_path, "a.iso", b"a"), **CD)
    end = live.end((0, 0, unit))
    with end.connect() as host:
        host.ready()
        host.ok(PREVENT)
    live.wait_until_free(end)
    live.wait_for(lambda: unit.drive is not None and not unit.drive.locked, "the lock's end")


def test_c_runs_no_command_of_disks_on_a_drive(live: Live, tmp_path: Path) -> None:
    unit = live.unit(image(tmp_path, "a.iso", b"a"), **CD)
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        for cdb in (bytes.fromhex("080000000100"), bytes([0x88]) + bytes(15), bytes([0x35]) + bytes(9), write10(0, 1)):
            host.fails(sense.INVALID_COMMAND_OPERATION_CODE, cdb)
        host.ok(bytes([0xA8]) + bytes(8) + bytes([1, 0, 0]), in_len=2048)


def test_a_drive_may_be_empty_at_first(live: Live, tmp_path: Path) -> None:
    unit = live.call(live.target.add_lu(LuSpec("drive", live.unit().uuid, **CD), None))
    with live.end((0, 0, unit)).connect() as host:
        host.fails(sense.POWER_ON_OCCURRED, TEST_UNIT_READY)
        host.fails(sense.MEDIUM_NOT_PRESENT_TRAY_CLOSED, TEST_UNIT_READY)
        assert not live.call(unit.eject())
        insert(live, unit, image(tmp_path, "a.iso", b"a"))
        host.fails(CHANGED, TEST_UNIT_READY)
        assert host.ok(read10(0, 1), in_len=2048) == b"a" * 2048


def test_what_was_written_to_a_removable_disk_is_on_the_medium(live: Live, tmp_path: Path) -> None:
    path = tmp_path / "stick.img"
    path.write_bytes(bytes(1 << 20))
    unit = live.unit(str(path), removable=True)
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        host.ok(write10(3, 1), b"x" * 512)
        live.call(unit.eject())
        assert path.read_bytes()[3 * 512 : 4 * 512] == b"x" * 512
        host.fails(sense.MEDIUM_NOT_PRESENT, write10(3, 1), b"y" * 512)
        insert(live, unit, image(tmp_path, "fixed.img", b"f"))
        host.fails(CHANGED, TEST_UNIT_READY)
        host.fails(sense.WRITE_PROTECTED, write10(3, 1), b"y" * 512)
        live.call(unit.eject())
        insert(live, unit, str(path))
        host.fails(CHANGED, TEST_UNIT_READY)
        host.ok(write10(4, 1), b"z" * 512)


def test_what_cannot_be_done(live: Live, tmp_path: Path) -> None:
    fixed, drive = live.unit(), live.unit(image(tmp_path, "a.iso", b"a"), name="drive", **CD)
    for work in (fixed.eject, fixed.load):
        with pytest.raises(ConfigError, match="not removable"):
            live.call(work())
    with pytest.raises(ConfigError, match="has a medium: eject it first"):
        insert(live, drive, image(tmp_path, "b.iso", b"b"))
    live.call(drive.eject())
    with pytest.raises(ConfigError, match="not a multiple of the block size 2048"):
        insert(live, drive, "memory:3k")
    with pytest.raises(ConfigError, match="has no medium"):
        live.call(drive.resize())
    with pytest.raises(ConfigError, match="has no store, and is not removable"):
        live.call(live.target.add_lu(LuSpec("third", fixed.uuid), None))
