# SPDX-License-Identifier: Apache-2.0
"""What a guest finds on many kinds of disk at once: identity, write protection, size, block size, unmapping.

Two guests: `sound` has everything as it should be; in `broken` each disk is spoilt in one way, and the very same
check must notice. Rings and restarts are not looked at here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from backend import Backend, Bed
from guest_disks import Disk, disks, file_hash, make_data, read_hash, send, write

from vhost_scsi.qemu import Guest

MIB = 1 << 20
TIB = 1 << 40
HUGE = 3 * TIB
FOUR = {(0, 0): "a", (0, 1): "b", (1, 0): "c", (3, 300): "d"}
PROTECTED, BIG, COARSE, TRIMMED = (4, 0), (5, 0), (6, 0), (7, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    """One guest with its disks; `images`: what should be behind each place."""

    guest: Guest
    backend: Backend
    disks: dict[tuple[int, int], Disk]
    images: dict[tuple[int, int], Path]


def set_up(bed: Bed, prefix: str, urls: dict[tuple[int, int], str], sizes: dict[str, int]) -> Setup:
    """`urls` may name images as {a}, {b} ...; the check's idea of where each belongs is that of FOUR and the rest."""
    images = {name: bed.disk(f"{prefix}-{name}", size) for name, size in sizes.items()}
    luns = [f"{target}:{lun}={url.format(**images)}" for (target, lun), url in urls.items()]
    backend = bed.serve(*luns)
    guest = bed.tiny(*bed.attach(backend))
    belongs = {**FOUR, PROTECTED: "protected", BIG: "big", COARSE: "coarse", TRIMMED: "trimmed"}
    return Setup(guest, backend, disks(guest), {place: images[name] for place, name in belongs.items()})


SIZES = {
    **{name: (16 + index) * MIB for index, name in enumerate("abcd")},
    "protected": 16 * MIB,
    "big": HUGE,
    "coarse": 64 * MIB,
    "trimmed": 256 * MIB,
}


@pytest.fixture(scope="module")
def sound(shared_bed: Bed) -> Setup:
    urls = {
        **{place: f"{{{name}}}" for place, name in FOUR.items()},
        PROTECTED: "{protected},readonly=on",
        BIG: "{big}",
        COARSE: "{coarse},block_size=4096",
        TRIMMED: "{trimmed}",
    }
    return set_up(shared_bed, "sound", urls, SIZES)


@pytest.fixture(scope="module")
def broken(shared_bed: Bed) -> Setup:
    """a and b change places, c is not there, the protected disk is writable, the big one tears writes beyond 2 TiB,
    the coarse one has blocks of 512 bytes, and unmapping fails on the trimmed one."""
    urls = {
        (0, 0): "{b}",
        (0, 1): "{a}",
        (3, 300): "{d}",
        PROTECTED: "{protected}",
        BIG: "faulty(op=write,fault=torn,offset=2T):{big}",
        COARSE: "{coarse}",
        TRIMMED: "faulty(op=unmap,error=write):{trimmed}",
    }
    return set_up(shared_bed, "broken", urls, SIZES)


# -- four disks -------------------------------------------------------------------------------------------------------


def check_place(setup: Setup, place: tuple[int, int]) -> None:
    """The disk at a place has its own size and identity, and its bytes are those of its own image."""
    assert place in setup.disks, f"no disk at {place[0]}:{place[1]}"
    disk, image = setup.disks[place], setup.images[place]
    assert int(setup.guest.check(f"blockdev --getsize64 {disk.block}")) == image.stat().st_size
    serial = setup.guest.check(f"sg_vpd -p 0x80 {disk.generic}").split("Unit serial number:")[1].strip()
    assert serial == str(setup.backend.unit(*place)["uuid"]).replace("-", "")
    written = make_data(setup.guest, 2)
    write(setup.guest, disk, at_mib=3)
    assert read_hash(setup.guest, disk, 2, at_mib=3) == written
    assert file_hash(image, 2, at_mib=3) == written


@pytest.mark.parametrize("place", FOUR, ids=lambda place: f"{place[0]}:{place[1]}")
def test_each_of_four_disks_is_where_it_belongs(sound: Setup, place: tuple[int, int]) -> None:
    check_place(sound, place)


def test_identities_differ(sound: Setup) -> None:
    pages = {sound.guest.check(f"sg_vpd -p 0x83 {disk.generic}") for disk in sound.disks.values()}
    assert len(pages) == len(sound.disks)


def test_disks_that_changed_places_are_noticed(broken: Setup) -> None:
    """Broken: the images of 0:0 and 0:1 are exchanged."""
    with pytest.raises(AssertionError, match=r"assert \d+ == \d+"):
        check_place(broken, (0, 0))


def test_a_missing_disk_is_noticed(broken: Setup) -> None:
    """Broken: nothing is mapped at 1:0."""
    with pytest.raises(AssertionError, match="no disk at 1:0"):
        check_place(broken, (1, 0))


# -- read-only --------------------------------------------------------------------------------------------------------

WRITES = {
    "WRITE(6)": "0a 00 00 00 01 00",
    "WRITE(10)": "2a 00 00 00 00 00 00 00 01 00",
    "WRITE(12)": "aa 00 00 00 00 00 00 00 00 01 00 00",
    "WRITE(16)": "8a 00 00 00 00 00 00 00 00 00 00 00 00 01 00 00",
    "WRITE SAME(10)": "41 00 00 00 00 00 00 00 01 00",
    "WRITE SAME(16)": "93 00 00 00 00 00 00 00 00 00 00 00 00 01 00 00",
}


def check_write_protection(setup: Setup) -> None:
    """Linux knows, every command that writes is refused with 07/27/00, and the image stays as it was."""
    disk, image = setup.disks[PROTECTED], setup.images[PROTECTED]
    before = file_hash(image, 16)
    setup.guest.check("yes guest | head -c 512 >/tmp/block")
    for name, cdb in WRITES.items():
        said = send(setup.guest, disk, cdb, out_bytes=512, data="/tmp/block")
        assert "Data Protect" in said, f"{name} is not refused: {said}"
        assert "Write protected" in said, f"{name} is refused with other sense data: {said}"
    assert file_hash(image, 16) == before
    assert setup.guest.check(f"cat /sys/block/{disk.name}/ro").strip() == "1"
    assert "Read-only file system" in setup.guest.run(f"dd if=/dev/zero of={disk.block} count=1").output
    assert read_hash(setup.guest, disk, 16) == before


def test_a_read_only_disk_refuses_writes_with_the_right_sense(sound: Setup) -> None:
    check_write_protection(sound)


def test_a_writable_disk_is_not_taken_for_a_read_only_one(broken: Setup) -> None:
    """Broken: the option readonly is missing."""
    with pytest.raises(AssertionError, match=r"WRITE\(6\) is not refused"):
        check_write_protection(broken)


# -- more than 2 TiB --------------------------------------------------------------------------------------------------


def check_far_end(setup: Setup) -> None:
    """Bytes at both ends and across 2 TiB (32 bits of 512-byte blocks) are where they belong; one block more is not."""
    disk, image = setup.disks[BIG], setup.images[BIG]
    assert int(setup.guest.check(f"blockdev --getsize64 {disk.block}")) == HUGE
    capacity = setup.guest.check(f"sg_readcap -l {disk.generic}")
    assert f"Number of logical blocks={HUGE // 512}" in capacity
    hashes = {}
    for at_mib in (0, 2 * TIB // MIB - 1, HUGE // MIB - 2):
        hashes[at_mib] = make_data(setup.guest, 2)
        write(setup.guest, disk, at_mib=at_mib)
    for at_mib, written in hashes.items():
        assert read_hash(setup.guest, disk, 2, at_mib=at_mib) == written, f"read back at {at_mib} MiB"
        assert file_hash(image, 2, at_mib=at_mib) == written, f"in the image at {at_mib} MiB"
    end = HUGE // 512
    last = " ".join(f"{byte:02x}" for byte in (end - 1).to_bytes(8, "big"))
    beyond = " ".join(f"{byte:02x}" for byte in end.to_bytes(8, "big"))
    assert "Good" in send(setup.guest, disk, f"88 00 {last} 00 00 00 01 00 00")
    said = send(setup.guest, disk, f"88 00 {beyond} 00 00 00 01 00 00")
    assert "Illegal Request" in said
    assert "Logical block address out of range" in said


def test_a_disk_beyond_two_tebibytes_is_usable_to_its_end(sound: Setup) -> None:
    check_far_end(sound)
    assert sound.images[BIG].stat().st_blocks * 512 < 64 * MIB  # sparse it stays


def test_writes_torn_beyond_two_tebibytes_are_noticed(broken: Setup) -> None:
    """Broken: beyond 2 TiB half of each write is lost, and success is reported."""
    with pytest.raises(AssertionError, match=f"read back at {2 * TIB // MIB - 1} MiB"):
        check_far_end(broken)


# -- blocks of 4096 bytes ---------------------------------------------------------------------------------------------


def check_block_size(setup: Setup, size: int) -> None:
    """Linux takes the block size over, uses it, and refuses less."""
    disk, image = setup.disks[COARSE], setup.images[COARSE]
    assert int(setup.guest.check(f"blockdev --getss {disk.block}")) == size
    assert f"Logical block length={size} bytes" in setup.guest.check(f"sg_readcap -l {disk.generic}")
    assert setup.guest.run(f"dd if=/dev/zero of={disk.block} bs={size // 2} count=1 oflag=direct").status != 0
    written = make_data(setup.guest, 2)
    write(setup.guest, disk, at_mib=62, block=str(size))
    assert read_hash(setup.guest, disk, 2, at_mib=62, block="64k") == written
    assert file_hash(image, 2, at_mib=62) == written
    setup.guest.check(f"mkfs.ext4 -q {disk.block} && mount {disk.block} /mnt && cp /tmp/data /mnt/data && umount /mnt")
    setup.guest.check(f"e2fsck -fn {disk.block}")
    setup.guest.check(f"mount -o ro {disk.block} /mnt && cmp /tmp/data /mnt/data && umount /mnt")


def test_a_disk_with_blocks_of_4096_bytes(sound: Setup) -> None:
    check_block_size(sound, 4096)


def test_another_block_size_is_noticed(broken: Setup) -> None:
    """Broken: block_size is left at 512."""
    with pytest.raises(AssertionError, match="512 == 4096"):
        check_block_size(broken, 4096)


# -- fstrim -----------------------------------------------------------------------------------------------------------


def check_fstrim(setup: Setup) -> None:
    """What a file took comes back to the host when it is removed and trimmed; another file keeps its bytes."""
    disk, image, guest = setup.disks[TRIMMED], setup.images[TRIMMED], setup.guest

    def allocated() -> int:
        return image.stat().st_blocks * 512

    kept = make_data(guest, 2)
    guest.check(f"mkfs.ext4 -q {disk.block} && mount {disk.block} /mnt && cp /tmp/data /mnt/kept && sync")
    try:
        empty = allocated()
        guest.check("dd if=/dev/zero of=/mnt/gone bs=1M count=64 && sync", 200)
        full = allocated()
        assert full - empty > 60 * MIB, "the file takes no space"
        guest.check("rm /mnt/gone && sync")
        result = guest.run("fstrim -v /mnt", 200)
        assert result.status == 0, f"fstrim fails: {result.output}"
        assert full - allocated() > 60 * MIB, "no space came back"
        guest.check("echo 3 >/proc/sys/vm/drop_caches")
        assert guest.check("sha256sum </mnt/kept").split()[0] == kept
    finally:
        guest.run("umount /mnt", 200)
    guest.check(f"e2fsck -fn {disk.block}")


def test_fstrim_gives_space_back_to_the_host(sound: Setup) -> None:
    check_fstrim(sound)


def test_space_that_does_not_come_back_is_noticed(broken: Setup) -> None:
    """Broken: every UNMAP fails, so Linux gives up on it."""
    with pytest.raises(AssertionError, match=r"fstrim fails|no space came back"):
        check_fstrim(broken)
