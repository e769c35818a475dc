# SPDX-License-Identifier: Apache-2.0
"""A CD drive and a removable disk in a guest: what Linux finds, mounts, ejects and locks, and what the host changes.

One guest, many checks in one order. The negative twin is in the same boot: a drive whose medium was not changed, and
one whose image is no ISO 9660 file system, must fail the very checks that the first one passes.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest
from backend import Backend, Bed

from vhost_scsi.qemu import Guest

DRIVE, SPOILT, STICK, DVD = (0, 0), (0, 1), (1, 0), (2, 0)
TEXT = {"one": "what stands on the first disc\n", "two": "what stands on the second\n"}


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    guest: Guest
    backend: Backend
    images: dict[str, Path]
    devices: dict[tuple[int, int], str]

    def run(self, command: str) -> str:
        return self.guest.check(command, 120)

    def fails(self, command: str) -> str:
        """What a command says that must not succeed."""
        return self.guest.check(f"if {command} 2>&1; then echo NOT-REFUSED; fi", 120)

    def medium(self, place: tuple[int, int]) -> dict[str, bool]:
        found: dict[str, bool] = self.backend.unit(*place)["medium"]
        return found


def iso(folder: Path, name: str) -> Path:
    """A file system with one file and a label."""
    content = folder / f"{name}.d"
    content.mkdir()
    (content / "text").write_text(TEXT[name])
    image = folder / f"{name}.img"
    words = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-V", name.upper(), "-o", str(image), str(content)]
    subprocess.run(words, check=True, capture_output=True)
    return image


@pytest.fixture(scope="module")
def setup(shared_bed: Bed) -> Setup:
    images = {name: iso(shared_bed.folder, name) for name in TEXT}
    images["spoilt"] = shared_bed.disk("spoilt", 1 << 20)
    images["stick"] = shared_bed.disk("stick", 16 << 20)
    backend = shared_bed.serve(
        f"0:0={images['one']},type=cdrom",
        f"0:1={images['spoilt']},type=cdrom",
        f"1:0={images['stick']},removable=on",
        "2:0=memory:1500M,type=cdrom",
    )
    guest = shared_bed.tiny(*shared_bed.attach(backend))
    guest.check("modprobe sr_mod && modprobe isofs && mkdir -p /mnt/cd", 60)
    devices = {}
    for line in guest.check("lsscsi").splitlines():
        match = re.match(r"\[\d+:\d+:(\d+):(\d+)\]\s+(?:cd/dvd|disk)\s.*\s(/dev/s\w+)", line)
        if match:
            devices[int(match[1]), int(match[2])] = match[3]
    return Setup(guest, backend, images, devices)


def label(setup: Setup, place: tuple[int, int] = DRIVE) -> str:
    """As it stands in the volume descriptor, read past the page cache."""
    said = setup.run(
        f"dd if={setup.devices[place]} bs=2048 skip=16 count=1 iflag=direct 2>/dev/null | tail -c +41 | head -c 32"
    )
    return said.split()[0] if said.split() else ""


def mounted_text(setup: Setup, place: tuple[int, int]) -> str:
    device = setup.devices[place]
    return setup.run(f"mount -t iso9660 -o ro {device} /mnt/cd && cat /mnt/cd/text && umount /mnt/cd")


def test_linux_finds_drives_and_a_removable_disk(setup: Setup) -> None:
    assert setup.devices.keys() == {DRIVE, SPOILT, STICK, DVD}
    assert setup.devices[DRIVE].startswith("/dev/sr")
    assert setup.devices[STICK].startswith("/dev/sd")
    names = {place: device.removeprefix("/dev/") for place, device in setup.devices.items()}
    for place in (DRIVE, STICK):
        assert setup.run(f"cat /sys/block/{names[place]}/removable").strip() == "1"
    said = setup.run("cat /proc/sys/dev/cdrom/info")
    for line in ("Can close tray", "Can open tray", "Can lock tray", "Can read DVD"):
        assert re.search(rf"{line}:\s+1", said), said
    assert re.search(r"Can write CD-R:\s+0", said), said


def test_sg3_utils_understand_the_drive(setup: Setup) -> None:
    device = setup.devices[DRIVE]
    assert "Peripheral device type: cd/dvd" in setup.run(f"sg_inq {device}")
    said = setup.run(f"sg_get_config {device}")
    for feature in ("Profile list", "Core", "Morphing", "Removable media", "Random readable", "CD read"):
        assert feature.lower() in said.lower(), said
    assert "CD-ROM" in said
    assert "DVD-ROM" in setup.run(f"sg_get_config --current {setup.devices[DVD]}")
    assert "MM capabilities" in setup.run(f"sg_modes -a {device}")
    assert "block" in setup.run(f"sg_readcap {device}").lower()


def test_a_disc_is_mounted_and_read(setup: Setup) -> None:
    assert mounted_text(setup, DRIVE).strip() == TEXT["one"].strip()
    assert label(setup) == "ONE"


def test_a_disc_without_a_file_system_is_noticed(setup: Setup) -> None:
    """Broken: the image of 0:1 is zeroes."""
    said = setup.fails(f"mount -t iso9660 -o ro {setup.devices[SPOILT]} /mnt/cd")
    assert "NOT-REFUSED" not in said
    assert label(setup, SPOILT) != "ONE"


def test_a_mounted_disc_locks_the_tray_and_the_host_is_refused(setup: Setup) -> None:
    device = setup.devices[DRIVE]
    setup.run(f"mount -t iso9660 -o ro {device} /mnt/cd")
    assert setup.medium(DRIVE)["locked"]
    name = setup.backend.unit(*DRIVE)["name"]
    with pytest.raises(subprocess.CalledProcessError) as refused:
        setup.backend.command("lun", "eject", name)
    assert "prevents the removal" in refused.value.stderr
    assert setup.run("cat /mnt/cd/text").strip() == TEXT["one"].strip()
    setup.run("umount /mnt/cd")
    assert not setup.medium(DRIVE)["locked"]


def test_the_guest_ejects_and_the_host_puts_another_disc_in(setup: Setup) -> None:
    device, name = setup.devices[DRIVE], setup.backend.unit(*DRIVE)["name"]
    setup.run(f"sg_start --eject {device}")
    assert setup.medium(DRIVE) == {"present": False, "filled": True, "open": True, "locked": False}
    setup.backend.command("lun", "insert", name, str(setup.images["two"]))
    assert setup.medium(DRIVE)["present"]
    assert label(setup) == "TWO"
    assert mounted_text(setup, DRIVE).strip() == TEXT["two"].strip()
    assert label(setup, SPOILT) != "TWO"  # broken: nobody changed that one


def test_the_guest_closes_a_tray_that_it_opened(setup: Setup) -> None:
    device = setup.devices[DRIVE]
    setup.run(f"sg_start --eject {device}")
    setup.run(f"sg_start --load {device}")
    assert setup.medium(DRIVE)["present"]
    assert label(setup) == "TWO"


def test_the_host_takes_the_disc_out_by_force(setup: Setup) -> None:
    device, name = setup.devices[DRIVE], setup.backend.unit(*DRIVE)["name"]
    setup.run(f"mount -t iso9660 -o ro {device} /mnt/cd")
    setup.backend.command("lun", "eject", name, "--force")
    said = setup.fails(f"dd if={device} bs=2048 count=1 iflag=direct of=/dev/null")
    assert "NOT-REFUSED" not in said
    setup.run("umount /mnt/cd")
    setup.backend.command("lun", "insert", name, str(setup.images["one"]))
    assert label(setup) == "ONE"


def test_a_removable_disk_is_changed(setup: Setup) -> None:
    device, name = setup.devices[STICK], setup.backend.unit(*STICK)["name"]
    setup.run(f"printf first >/tmp/word && dd if=/tmp/word of={device} conv=notrunc,fsync 2>/dev/null")
    setup.backend.command("lun", "eject", name)
    assert setup.images["stick"].read_bytes()[:5] == b"first"
    assert "NOT-REFUSED" not in setup.fails(f"dd if={device} bs=512 count=1 iflag=direct of=/dev/null")
    larger = setup.images["stick"].with_name("larger.img")
    larger.write_bytes(b"second".ljust(32 << 20, b"\0"))
    setup.backend.command("lun", "insert", name, str(larger))
    assert setup.run(f"dd if={device} bs=512 count=1 iflag=direct 2>/dev/null | head -c 6").strip("\0 \n") == "second"
    assert int(setup.run(f"blockdev --getsize64 {device}")) == 32 << 20
