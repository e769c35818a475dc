# SPDX-License-Identifier: Apache-2.0
"""A guest in trouble: resets while requests are in flight, and a disk that fills up. I/O must come back, unharmed.

The virtio_scsi driver of Linux can reset a logical unit and nothing wider, so the wider resets of sg_reset end in the
guest; they must do no harm.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from backend import Backend, Bed
from guest_disks import Disk, disks, file_hash, make_data, read_hash, write

from vhost_scsi.qemu import Guest

MIB = 1 << 20
SLOW, TORN = (0, 0), (0, 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Delayed:
    """A guest whose disks take 150 ms for each write, the second one with a store that loses data."""

    guest: Guest
    backend: Backend
    disks: dict[tuple[int, int], Disk]
    image: Path


@pytest.fixture(scope="module")
def delayed(shared_bed: Bed) -> Delayed:
    image = shared_bed.disk("slow", 64 * MIB)
    backend = shared_bed.serve(
        f"0:0=delay(write=150ms):{image}", "0:1=delay(write=150ms):faulty(op=write,fault=torn,count=1):memory:64M"
    )
    guest = shared_bed.tiny(*shared_bed.attach(backend))
    return Delayed(guest, backend, disks(guest), image)


def check_resets(setup: Delayed, place: tuple[int, int], resets: Sequence[str]) -> None:
    """Four writers go on while the disk is reset again and again; all data arrive, and the resets came to us."""
    guest, disk = setup.guest, setup.disks[place]
    management = setup.backend.queues()[0]["requests"]
    written = make_data(guest, 2)
    writer = f"dd if=/tmp/data of={disk.block} bs=64k oflag=direct conv=notrunc 2>/tmp/dd-$n; echo $? >/tmp/status-$n"
    lines = [f"for n in 0 1 2 3; do ( {writer.replace('conv', 'seek=$((n * 32)) conv')} ) & done", "sleep 0.5"]
    lines += [f"sg_reset {option} {disk.generic}; echo reset {option} $?; sleep 0.4" for option in resets]
    said = guest.check("\n".join([*lines, "wait"]), 300)
    assert guest.check("cat /tmp/status-*").split() == ["0"] * 4, f"a writer failed: {guest.check('cat /tmp/dd-*')}"
    for writer_number in range(4):
        assert read_hash(guest, disk, 2, at_mib=2 * writer_number) == written, f"data of writer {writer_number}"
    asked = resets.count("-d")
    assert said.count("reset -d 0") == asked, f"a reset failed: {said}"
    assert setup.backend.queues()[0]["requests"] - management >= max(asked, 1), "no reset came to the back end"
    assert not setup.backend.tasks()


def test_resets_under_load_lose_nothing(delayed: Delayed) -> None:
    aborted = delayed.backend.unit(0, 0)["stats"]
    check_resets(delayed, SLOW, ["-d", "-d", "-t", "-b", "-d"])
    assert file_hash(delayed.image, 2) == file_hash(delayed.image, 2, at_mib=6)
    assert delayed.backend.unit(0, 0)["stats"]["writes"] > aborted["writes"] + 128, "nothing was sent twice"
    assert "Power-on or device reset occurred" in delayed.guest.check("dmesg | tail -n 30")


def test_a_write_that_is_lost_is_noticed(delayed: Delayed) -> None:
    """Broken: half of one write is lost, and success is reported."""
    with pytest.raises(AssertionError, match="data of writer"):
        check_resets(delayed, TORN, ["-d"])


def test_a_reset_that_never_comes_is_noticed(delayed: Delayed) -> None:
    """Broken: only those resets are asked for that the guest's driver does not have."""
    with pytest.raises(AssertionError, match="no reset came"):
        check_resets(delayed, SLOW, ["-t", "-b"])


# -- a disk that fills up ---------------------------------------------------------------------------------------------

# In a mount namespace of its own, so that nobody needs to be root and nothing stays behind: a small tmpfs with a
# sparse image that promises more than fits, and ballast that can be removed from outside.
SMALL = """
set -e
mount -t tmpfs -o size=24m tmpfs "$0"
truncate -s 64M "$0/thin.img"
head -c 8M /dev/zero >"$0/ballast"
exec "$@"
"""
THIN, ROOMY, FAILING = (0, 0), (0, 1), (0, 2)


@dataclasses.dataclass(frozen=True, slots=True)
class Small:
    """A guest with a disk that can fill up, one that cannot, and one that fails otherwise. `folder`: the tmpfs."""

    guest: Guest
    backend: Backend
    disks: dict[tuple[int, int], Disk]
    folder: Path


@pytest.fixture(scope="module")
def small(shared_bed: Bed) -> Small:
    folder = shared_bed.folder / "small"
    folder.mkdir()
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    backend = shared_bed.serve(
        f"0:0={folder}/thin.img",
        "0:1=memory:64M",
        "0:2=faulty(op=write,error=write,offset=16M):memory:64M",
        launcher=[*unshare, "sh", "-c", SMALL, str(folder)],
    )
    guest = shared_bed.tiny(*shared_bed.attach(backend))
    return Small(guest, backend, disks(guest), Path(f"/proc/{backend.pid}/root") / folder.relative_to("/"))


def fill(setup: Small, place: tuple[int, int]) -> tuple[int, str]:
    """Write 32 MiB from the beginning; dd's status, and what the kernel said meanwhile."""
    disk = setup.disks[place]
    setup.guest.check("dmesg -c >/dev/null")
    result = setup.guest.run(f"dd if=/tmp/data of={disk.block} bs=1M oflag=direct conv=notrunc", 300)
    return result.status, result.output + setup.guest.check("dmesg")


def check_full_disk(setup: Small, place: tuple[int, int]) -> None:
    """07/27/07 where space ends, which Linux makes ENOSPC; what was written stays, and nobody else is disturbed."""
    guest = setup.guest
    make_data(guest, 32)
    first = guest.check("head -c 12582912 /tmp/data | sha256sum").split()[0]
    status, said = fill(setup, place)
    assert status != 0, "the disk does not fill up"
    assert re.search(r"Sense Key : Data Protect", said), f"another sense key: {said}"
    assert re.search(r"Add\. Sense: Space allocation failed write protect", said), f"other sense data: {said}"
    assert "No space left on device" in said
    assert read_hash(guest, setup.disks[place], 12) == first
    assert setup.backend.alive
    guest.check(f"dd if=/tmp/data of={setup.disks[ROOMY].block} bs=1M count=4 oflag=direct")
    (setup.folder / "ballast").unlink()
    more = make_data(guest, 8)
    write(guest, setup.disks[place], at_mib=12)
    assert read_hash(guest, setup.disks[place], 8, at_mib=12) == more, "what is written after there is space again"


def test_a_disk_that_fills_up_says_so_and_goes_on_when_there_is_space(small: Small) -> None:
    check_full_disk(small, THIN)


def test_a_disk_with_space_enough_is_noticed(small: Small) -> None:
    """Broken: the disk has room for all that is written."""
    with pytest.raises(AssertionError, match="does not fill up"):
        check_full_disk(small, ROOMY)


def test_another_error_is_not_taken_for_a_full_disk(small: Small) -> None:
    """Broken: the store says that the medium is bad (03/0C/00)."""
    with pytest.raises(AssertionError, match="another sense key"):
        check_full_disk(small, FAILING)
