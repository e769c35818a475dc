# SPDX-License-Identifier: Apache-2.0
"""A disk over a file on a file system that fills up: run as a program in a mount namespace of its own, which
`test_thin` makes, with a directory to mount over.

    unshare --user --map-root-user --mount python -m tests.target.full_disk DIRECTORY
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.live import TEST_UNIT_READY, Host, Live, mode_select10, read10, unmap_blocks, write10
from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.mode_pages import LOGICAL_BLOCK_PROVISIONING, READ_WRITE_ERROR_RECOVERY
from vhost_scsi.scsi.task import Status

MIB = 2048
"""in blocks"""
ROOM = 8
"""MiB of the file system"""


def arm(host: Host, **values: int) -> None:
    """A threshold, and that it is to be told."""
    page = LOGICAL_BLOCK_PROVISIONING
    host.ok(*mode_select10(READ_WRITE_ERROR_RECOVERY.build({"lbpere": 1})))
    host.ok(*mode_select10(page.build({**page.defaults, **values})))


def waits_for_the_threshold(live: Live, host: Host) -> None:
    def told() -> bool:
        result = host.command(TEST_UNIT_READY)
        if result.status == Status.GOOD:
            return False
        assert sense_data.parse(result.sense).code is sense.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED
        return True

    live.wait_for(told, "the threshold's unit attention")


def full(live: Live, host: Host) -> None:
    """ROOM is all there is below a disk of twice that, and all of it is free."""
    for mib in range(ROOM - 1):
        host.ok(write10(mib * MIB, MIB), b"x" * MIB * 512)
    host.fails(sense.SPACE_ALLOCATION_FAILED_WRITE_PROTECT, write10(ROOM * MIB, 2 * MIB), b"y" * 2 * MIB * 512)
    assert host.ok(read10(0, MIB), in_len=MIB * 512) == b"x" * MIB * 512
    host.ok(write10(0, MIB), b"z" * MIB * 512)  # what is there can be written
    host.ok(*unmap_blocks((0, (ROOM + 2) * MIB)))
    host.ok(write10(ROOM * MIB, 2 * MIB), b"y" * 2 * MIB * 512)
    arm(host, available_enabled=1, available_count=3)
    host.ok(TEST_UNIT_READY)
    for mib in range(ROOM - 4):
        result = host.command(write10(mib * MIB, MIB), b"x" * MIB * 512)
        if result.status != Status.GOOD:
            code = sense_data.parse(result.sense).code
            assert code is sense.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED
            return
    waits_for_the_threshold(live, host)


def main(directory: Path) -> None:
    disk = directory / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}m", "tmpfs", str(disk)], check=True)
    with (disk / "disk.img").open("wb") as file:
        file.truncate(2 * ROOM << 20)
    live = Live(directory, "auto", 1)
    try:
        unit = live.unit(str(disk / "disk.img"))
        with live.end((0, 0, unit)).connect() as host:
            host.ready()
            full(live, host)
    finally:
        live.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
