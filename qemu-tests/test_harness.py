# SPDX-License-Identifier: Apache-2.0
"""The yardstick: the guests and the harness against QEMU's own virtio-scsi. None of our back end runs here.

When one of these fails, the harness, QEMU or the machine is at fault; when they pass and the same check against our
back end fails, we are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from image import check_filesystem

from conftest import BOOT_TIMEOUT
from vhost_scsi.qemu import Firmware, Guest, GuestTimeout, QemuDied, QemuError

MIB = 1 << 20
WRITE = "dd if=/dev/urandom of=/tmp/d bs=1M count=8 2>/dev/null && dd if=/tmp/d of=/dev/sda bs=1M oflag=direct"
READ = "dd if=/dev/sda bs=1M count=8 iflag=direct 2>/dev/null | sha256sum"


def qemu_disk(path: Path, *, bootindex: int | None = None) -> list[str]:
    """A raw file as target 0 LUN 0 of QEMU's own virtio-scsi."""
    boot = "" if bootindex is None else f",bootindex={bootindex}"
    return [
        *("-drive", f"if=none,id=disk,format=raw,cache=writeback,file={path}"),
        *("-device", "virtio-scsi-pci,id=scsi", "-device", f"scsi-hd,drive=disk,bus=scsi.0{boot}"),
    ]


@pytest.fixture
def raw_disk(tmp_path: Path) -> Path:
    path = tmp_path / "raw.img"
    path.write_bytes(bytes(16 * MIB))
    return path


def test_what_the_guest_writes_is_what_it_reads_and_what_the_file_holds(
    tiny_guest: Callable[..., Guest], raw_disk: Path
) -> None:
    guest = tiny_guest(*qemu_disk(raw_disk))
    guest.check(WRITE)
    written = guest.check("sha256sum </tmp/d").split()[0]
    assert guest.check(READ).split()[0] == written
    assert guest.shutdown() == 0
    assert hashlib.sha256(raw_disk.read_bytes()[: 8 * MIB]).hexdigest() == written


def test_a_byte_changed_behind_the_guest_is_seen(tiny_guest: Callable[..., Guest], raw_disk: Path) -> None:
    """The negative twin: one byte of the file is flipped, and the same check must notice."""
    guest = tiny_guest(*qemu_disk(raw_disk))
    guest.check(WRITE)
    written = guest.check("sha256sum </tmp/d").split()[0]
    with raw_disk.open("r+b") as handle:
        handle.seek(5 * MIB + 12345)
        byte = handle.read(1)[0]
        handle.seek(-1, 1)
        handle.write(bytes([byte ^ 1]))
    assert guest.check(READ).split()[0] != written


def test_the_tiny_guest_has_the_tools_of_the_trade(tiny_guest: Callable[..., Guest], raw_disk: Path) -> None:
    guest = tiny_guest(*qemu_disk(raw_disk))
    assert "QEMU HARDDISK" in guest.check("sg_inq /dev/sda").replace("  ", " ")
    assert "sda" in guest.check("lsblk -d")
    assert "/dev/sda" in guest.check("lsscsi")
    guest.check("mkfs.ext4 -q /dev/sda && mount /dev/sda /mnt && echo hello >/mnt/f && fstrim -v /mnt && umount /mnt")
    guest.check(
        "e2fsck -fn /dev/sda && sg_reset -d /dev/sda && sg_vpd -p 0x83 /dev/sda && blockdev --getsize64 /dev/sda"
    )


def test_a_command_tells_its_status_and_all_of_its_output(tiny_guest: Callable[..., Guest]) -> None:
    guest = tiny_guest()
    assert guest.run("exit 3").status == 3
    assert guest.run("echo one; echo two >&2").output == "one\ntwo\n"
    assert guest.run("printf no-newline").output == "no-newline"
    assert guest.run("cat").output == ""  # nothing to read: a command never eats the next one
    numbers = guest.check("seq 1 20000")
    assert numbers.split() == [str(number) for number in range(1, 20001)]
    with pytest.raises(QemuError, match="status 1"):
        guest.check("false")
    with pytest.raises(GuestTimeout):
        guest.run("sleep 60", timeout=1)


def test_a_kernel_panic_ends_qemu_and_says_what_was_waited_for(tiny_guest: Callable[..., Guest]) -> None:
    guest = tiny_guest()
    guest.send("echo c >/proc/sysrq-trigger")
    guest.expect("Kernel panic", 60)
    with pytest.raises(QemuDied, match="never to come"):
        guest.expect("never to come", 60)


@pytest.mark.full_boot
@pytest.mark.parametrize("firmware", list(Firmware))
def test_debian_boots_to_login_and_its_file_system_is_clean_afterwards(
    start_guest: Callable[..., Guest], demo_image: Path, firmware: Firmware
) -> None:
    guest = start_guest(*qemu_disk(demo_image, bootindex=0), firmware=firmware)
    guest.expect(f"GRUB ({'efi' if firmware is Firmware.EFI else 'pc'}) starts Debian", BOOT_TIMEOUT)
    guest.login(BOOT_TIMEOUT)
    assert guest.check("findmnt -no SOURCE /").strip() == "/dev/sda2"
    assert guest.check("systemctl --failed --no-legend --plain").strip() == ""
    assert ("EFI" if firmware is Firmware.EFI else "BIOS") in guest.check(
        "test -d /sys/firmware/efi && echo EFI || echo BIOS"
    )
    guest.check("dd if=/dev/urandom of=/root/f bs=1M count=8 && sync")
    assert guest.shutdown() == 0
    check_filesystem(demo_image)


@pytest.mark.full_boot
def test_a_disk_without_boot_code_does_not_reach_grub(start_guest: Callable[..., Guest], demo_image: Path) -> None:
    """The negative twin: GRUB's first sector is wiped, so a boot can only come from this disk."""
    with demo_image.open("r+b") as handle:
        handle.write(bytes(440))
    guest = start_guest(*qemu_disk(demo_image, bootindex=0))
    with pytest.raises(GuestTimeout):
        guest.expect("starts Debian", 10)
