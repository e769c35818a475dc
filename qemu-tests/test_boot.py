# SPDX-License-Identifier: Apache-2.0
"""A real Debian boots from our back end: firmware, boot loader, kernel, root file system, login, reboot, shutdown.

By SeaBIOS, and by OVMF on the default (transitional) device, which firmware drives as a legacy one, and on a modern
one. A second disk in the same guest loses data on purpose, so that the checksums of fio can be seen to notice.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from backend import BOOT_TIMEOUT, FIRST_REQUEST, MIB, Backend, Bed, wait_until
from debian import BuildError
from guest_disks import disks
from image import BOOT_CODE, ESP_START, ROOT_START, check_filesystem

from vhost_scsi.qemu import Firmware, Guest, GuestTimeout

NO_GRUB_WITHIN = 8.0  # s after the firmware's first read; GRUB comes within one
GRUB = {Firmware.BIOS: "GRUB (pc) starts Debian", Firmware.EFI: "GRUB (efi) starts Debian"}

# Random and sequential, small and large, shuffled and at depth; every block has its checksum in it.
VERIFY = """fio --filename={device} --ioengine=libaio --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 \
  --size=24M --randseed=7 --output-format=terse \
  --name=small --rw=randwrite --bs=4k --iodepth=16 --offset=0 --size=8M \
  --stonewall --name=mixed --rw=randwrite --bsrange=4k-256k --iodepth=8 --offset=32M \
  --stonewall --name=large --rw=write --bs=1M --iodepth=4 --offset=64M"""


def serve(bed: Bed, image: Path, *more: str, queues: int = 2) -> Backend:
    return bed.serve(f"0:0={image}", *more, queues=queues)


def start(bed: Bed, backend: Backend, firmware: Firmware, **properties: str) -> Guest:
    device = bed.attach(backend, queues=2, bootindex=0, properties=properties)
    return bed.start(*device, firmware=firmware, cpus=2)


def check_boot(guest: Guest, backend: Backend, firmware: Firmware) -> None:
    """From the first instruction to a login shell whose root file system is on our disk."""
    guest.expect(GRUB[firmware], BOOT_TIMEOUT)
    guest.login(BOOT_TIMEOUT)
    assert guest.check("findmnt -no SOURCE /").strip() == f"{disks(guest)[0, 0].block}2"
    assert re.search(r"\[0:0:0:0\]\s+disk\s+VHOST ", guest.check("lsscsi"))
    assert guest.check("systemctl --failed --no-legend --plain").strip() == ""
    queues = backend.queues()
    assert not [queue for queue in queues if queue["broken"]]
    assert all(queue["requests"] > 0 for queue in queues[FIRST_REQUEST:])


def check_checksums(guest: Guest, place: tuple[int, int]) -> None:
    """fio writes and verifies the disk at a place; the order of names is not that of LUNs."""
    result = guest.run(VERIFY.format(device=disks(guest)[place].block), 600)
    assert result.status == 0, f"fio: {result.output}"


@pytest.mark.full_boot
@pytest.mark.parametrize("packed", ["off", pytest.param("on", marks=pytest.mark.slow)])
def test_debian_boots_through_seabios_works_reboots_and_shuts_down(bed: Bed, demo_image: Path, packed: str) -> None:
    """Packed, the firmware has a split ring and Linux packed ones, in one connection."""
    backend = serve(bed, demo_image, "0:1=memory:128M", "0:2=faulty(op=write,fault=torn,skip=100,count=1):memory:128M")
    guest = start(bed, backend, Firmware.BIOS, packed=packed)
    check_boot(guest, backend, Firmware.BIOS)
    layout = "packed" if packed == "on" else "split"
    assert {queue["layout"] for queue in backend.queues()} == {layout}
    check_checksums(guest, (0, 1))
    # The negative twin of the line above. Broken: one write of hundreds loses half of its data.
    with pytest.raises(AssertionError, match="verify"):
        check_checksums(guest, (0, 2))
    guest.check("dd if=/dev/urandom of=/root/kept bs=1M count=16 conv=fsync", 120)
    kept = guest.check("sha256sum </root/kept").split()[0]

    guest.send("systemctl reboot")
    check_boot(guest, backend, Firmware.BIOS)
    assert guest.check("sha256sum </root/kept").split()[0] == kept
    assert guest.shutdown() == 0
    check_filesystem(demo_image)


def test_a_file_system_that_is_not_whole_is_noticed(demo_image: Path) -> None:
    """Broken: the group descriptors behind the super block are overwritten with ones."""
    with demo_image.open("r+b") as handle:
        handle.seek(ROOT_START + 4096)
        handle.write(b"\xff" * 4096)
    with pytest.raises(BuildError):
        check_filesystem(demo_image)


@pytest.mark.full_boot
def test_debian_boots_through_ovmf_on_the_default_device(bed: Bed, demo_image: Path) -> None:
    """Transitional: OVMF drives it without VERSION_1, Linux with it, in one connection."""
    backend = serve(bed, demo_image)
    guest = start(bed, backend, Firmware.EFI)
    check_boot(guest, backend, Firmware.EFI)
    assert guest.shutdown() == 0


@pytest.mark.full_boot
@pytest.mark.slow
def test_debian_boots_through_ovmf_on_a_modern_device(bed: Bed, demo_image: Path) -> None:
    backend = serve(bed, demo_image)
    guest = start(bed, backend, Firmware.EFI, **{"disable-legacy": "on"})
    check_boot(guest, backend, Firmware.EFI)
    assert guest.shutdown() == 0


def test_ovmf_finds_grub_on_a_modern_device(bed: Bed, demo_image: Path) -> None:
    """The short form: what OVMF reads comes through rings with VERSION_1."""
    backend = serve(bed, demo_image)
    guest = start(bed, backend, Firmware.EFI, **{"disable-legacy": "on"})
    guest.expect(GRUB[Firmware.EFI], BOOT_TIMEOUT)
    assert "VERSION_1" in backend.queues()[FIRST_REQUEST]["features"]


@pytest.mark.parametrize("firmware", list(Firmware), ids=lambda firmware: firmware.value)
def test_an_image_that_cannot_boot_is_noticed(bed: Bed, demo_image: Path, firmware: Firmware) -> None:
    """Broken: what this firmware starts is overwritten with zeroes; it must have looked for it on our disk."""
    with demo_image.open("r+b") as handle:
        if firmware is Firmware.BIOS:
            handle.write(bytes(BOOT_CODE))
        else:
            handle.seek(ESP_START)
            handle.write(bytes(MIB))
    backend = serve(bed, demo_image)
    guest = start(bed, backend, firmware)
    wait_until("the firmware reads from the disk", lambda: sum(backend.requests()) > 0, BOOT_TIMEOUT)
    with pytest.raises(GuestTimeout):
        guest.expect(GRUB[firmware], NO_GRUB_WITHIN)
