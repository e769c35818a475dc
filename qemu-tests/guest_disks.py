# SPDX-License-Identifier: Apache-2.0
"""Disks as a guest sees them, and what tests do with them from its shell: find one, write, read, send a command.

Each function runs commands in a guest and says what came of it. It decides nothing; asserting is the tests' business.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from pathlib import Path

from vhost_scsi.qemu import Guest

MIB = 1 << 20
FLAT_ADDRESSING = 0x4000  # how Linux shows a LUN above 255 (SAM-5 4.7.7.3)


@dataclasses.dataclass(frozen=True, slots=True)
class Disk:
    """One disk: its block device and its generic one, as paths in the guest."""

    block: str
    generic: str

    @property
    def name(self) -> str:
        return self.block.removeprefix("/dev/")


def disks(guest: Guest) -> dict[tuple[int, int], Disk]:
    """Every disk by target and LUN. Linux probes them side by side: which one becomes sda is chance."""
    found = {}
    for line in guest.check("lsscsi -g").splitlines():
        match = re.match(r"\[\d+:\d+:(\d+):(\d+)\]\s+disk\s.*\s(/dev/sd\w+)\s+(/dev/sg\d+)", line)
        if match:
            lun = int(match[2])
            found[int(match[1]), lun & ~FLAT_ADDRESSING if lun > 255 else lun] = Disk(match[3], match[4])
    return found


def wait_for_disks(guest: Guest, number: int, seconds: float) -> dict[tuple[int, int], Disk]:
    """The disks when there are `number`, or those that there are when time is up."""
    deadline = time.monotonic() + seconds
    while True:
        found = disks(guest)
        if len(found) == number or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def make_data(guest: Guest, mib: int, name: str = "data") -> str:
    """Random bytes in the guest's /tmp/NAME; their SHA-256."""
    guest.check(f"dd if=/dev/urandom of=/tmp/{name} bs=1M count={mib} 2>/dev/null")
    return guest.check(f"sha256sum </tmp/{name}").split()[0]


def write(guest: Guest, disk: Disk, *, at_mib: int = 0, name: str = "data", block: str = "1M") -> None:
    """Write /tmp/NAME past the page cache. `block`: bytes a request has at most (what dd writes at a time)."""
    seek = at_mib * MIB // _bytes(block)
    guest.check(f"dd if=/tmp/{name} of={disk.block} bs={block} seek={seek} oflag=direct conv=notrunc", 300)


def read_hash(guest: Guest, disk: Disk, mib: int, *, at_mib: int = 0, block: str = "1M") -> str:
    """SHA-256 of what the disk holds there, read past the page cache."""
    unit = _bytes(block)
    skip, count = at_mib * MIB // unit, mib * MIB // unit
    command = f"dd if={disk.block} bs={block} skip={skip} count={count} iflag=direct 2>/tmp/dd.err | sha256sum"
    digest = guest.check(command, 300).split()[0]
    assert f"{count}+0 records in" in (said := guest.check("cat /tmp/dd.err")), f"reading {disk.block}: {said}"
    return digest


def file_hash(path: Path, mib: int, *, at_mib: int = 0) -> str:
    """SHA-256 of a part of the image, seen from outside."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        handle.seek(at_mib * MIB)
        for _ in range(mib):
            digest.update(handle.read(MIB))
    return digest.hexdigest()


def send(guest: Guest, disk: Disk, cdb: str, *, out_bytes: int = 0, data: str = "/dev/zero") -> str:
    """Send a command through the generic device; what sg_raw says of its end, sense data in words."""
    payload = f"-s {out_bytes} -i {data} " if out_bytes else "-r 65536 "
    return guest.run(f"sg_raw {payload}{disk.generic} {cdb} 2>&1 | head -n 20").output


def _bytes(size: str) -> int:
    scale = {"k": 1024, "M": MIB}.get(size[-1], 1)
    return int(size.rstrip("kM")) * scale
