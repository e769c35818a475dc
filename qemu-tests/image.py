# SPDX-License-Identifier: Apache-2.0
"""The demo image: a Debian disk that SeaBIOS and OVMF both boot, made without a running VM and without loop devices.

    MBR   boot.img in sector 0, core.img from sector 1 on (the gap before the first partition)
    1     EFI system partition, FAT16, EFI/BOOT/BOOTX64.EFI
    2     ext4, the root file system of debian.py

Run as a program it builds the image and prints its path. It is not the small guest of the fast tests (initrd.py).
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from pathlib import Path

from debian import (
    CODENAME,
    ROOT_UUID,
    BuildError,
    cache_dir,
    cache_lock,
    recipe_key,
    rootfs,
    rootfs_key,
    run_tool,
    scratch_dir,
)

SECTOR = 512
MIB = 1 << 20
IMAGE_MIB = 1100
ESP_START = 1 * MIB
ESP_SIZE = 8 * MIB
ROOT_START = ESP_START + ESP_SIZE
ROOT_SIZE = IMAGE_MIB * MIB - ROOT_START
BOOT_CODE = 440  # bytes of sector 0 before the disk signature and the partition table

MACHINE_ID = ROOT_UUID.replace("-", "")

GRUB_LIB = Path("/usr/lib/grub")
GRUB_MODULES = (
    "part_msdos", "fat", "ext2", "search", "search_fs_uuid", "normal", "configfile", "linux", "echo", "test", "serial",
    "terminal", "reboot", "halt",
)  # fmt: skip
GRUB_EARLY = f"search --no-floppy --fs-uuid --set=root {ROOT_UUID}\nset prefix=($root)/boot/grub\n"
# OVMF shows its console on the serial port by itself; two outputs there would print every character twice.
# no_timer_check: the kernel panics when too few timer interrupts come while it tries the IO-APIC out, and under TCG on
# a busy machine they do come too late. Where the kernel knows its hypervisor (KVM) it leaves that check out by itself.
GRUB_CFG = f"""\
if [ "$grub_platform" = pc ]; then
    serial --unit=0 --speed=115200
    terminal_input serial
    terminal_output serial
fi
echo "GRUB ($grub_platform) starts Debian"
set gfxpayload=text
set timeout=0
set default=0
menuentry Debian {{
    linux /vmlinuz root=UUID={ROOT_UUID} ro console=ttyS0,115200 quiet panic=-1 no_timer_check \
systemd.machine_id={MACHINE_ID}
    initrd /initrd.img
}}
"""

SFDISK = f"""\
label: dos
label-id: 0x76736373
unit: sectors
start={ESP_START // SECTOR}, size={ESP_SIZE // SECTOR}, type=ef
start={ROOT_START // SECTOR}, size={ROOT_SIZE // SECTOR}, type=83, bootable
"""

# orphan_file and metadata_csum_seed are newer than the guest's own e2fsprogs, whatever the builder's version makes.
MKFS = (
    f"mkfs.ext4 -q -F -L root -U {ROOT_UUID} -m 0 -N 65536 -O ^orphan_file,^metadata_csum_seed,^resize_inode"
    f" -J size=16 -E offset={ROOT_START},lazy_itable_init=0,root_owner=0:0"
)
# $1 is the image, $2 the tar file, both as descriptors: in a user namespace their directories may be out of reach.
# The device nodes stay out: devtmpfs has them, and mknod is not for everyone.
FILL = f"""\
set -eu
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
tar -x --numeric-owner --exclude='./dev/*' -C "$tree" -f "$2"
mkdir -p "$tree/boot/grub"
printf '%s' "$GRUB_CFG" >"$tree/boot/grub/grub.cfg"
{MKFS} -d "$tree" "$1" {ROOT_SIZE // 1024}k
"""


def image_key() -> str:
    """The cache key of the image: this file and the recipe of the root file system."""
    return recipe_key(rootfs_key(), Path(__file__).read_text())


def demo_image() -> Path:
    """The bootable image, built on first use. It is shared: boot a copy (`copy_image`), never this file."""
    target = cache_dir() / f"debian-{CODENAME}-{image_key()}.img"
    with cache_lock("image"):
        if not target.exists():
            _build(target)
    return target


def copy_image(source: Path, target: Path) -> Path:
    """A private copy: by reflink where the file system can, else only the blocks that hold data."""
    run_tool(["cp", "--reflink=auto", "--sparse=auto", source, target])
    target.chmod(0o600)
    return target


def check_filesystem(image: Path) -> str:
    """Check the root file system in the image from outside, changing nothing; BuildError when it is not clean."""
    return run_tool(["e2fsck", "-f", "-n", f"{image}?offset={ROOT_START}"])


def _build(target: Path) -> None:
    tar = rootfs()
    with scratch_dir("image") as scratch:
        partial = scratch / "disk.img"
        with partial.open("wb") as handle:
            handle.truncate(IMAGE_MIB * MIB)
        run_tool(["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", partial], stdin=SFDISK.encode())
        _fill_root(partial, tar)
        early = scratch / "early.cfg"
        early.write_text(GRUB_EARLY)
        _install_bios(partial, early, scratch / "core.img")
        _install_efi(partial, early, scratch)
        check_filesystem(partial)
        partial.chmod(0o444)
        for old in cache_dir().glob(f"debian-{CODENAME}-*.img"):
            old.unlink()
        partial.rename(target)


def _fill_root(image: Path, tar: Path) -> None:
    rootless = os.geteuid() != 0
    # Root inside the user namespace is nobody special outside: it may write the image by its mode only.
    image.chmod(0o666 if rootless else 0o600)
    image_fd, tar_fd = os.open(image, os.O_RDWR), os.open(tar, os.O_RDONLY)
    try:
        script = f"GRUB_CFG={shlex.quote(GRUB_CFG)}\n{FILL}"
        command = ["sh", "-c", script, "fill", f"/proc/self/fd/{image_fd}", f"/proc/self/fd/{tar_fd}"]
        if rootless:
            command = ["mmdebstrap", "--unshare-helper", *command]
        run_tool(command, pass_fds=(image_fd, tar_fd))
    finally:
        os.close(image_fd)
        os.close(tar_fd)
        image.chmod(0o600)


def _grub_image(platform: str, early: Path, output: Path, extra: tuple[str, ...]) -> None:
    run_tool([
        "grub-mkimage", "-O", platform, "-d", GRUB_LIB / platform, "-p", "/boot/grub", "-c", early, "-o", output,
        *GRUB_MODULES, *extra,
    ])  # fmt: skip


def _install_bios(image: Path, early: Path, core: Path) -> None:
    """Put GRUB where the BIOS looks. As built, boot.img loads sector 1 and core.img continues at sector 2."""
    _grub_image("i386-pc", early, core, ("biosdisk",))
    code = core.read_bytes()
    if len(code) > ESP_START - SECTOR:
        raise BuildError(f"GRUB's core.img has {len(code)} bytes; the gap before the first partition is smaller")
    with image.open("r+b") as handle:
        handle.write((GRUB_LIB / "i386-pc" / "boot.img").read_bytes()[:BOOT_CODE])
        handle.seek(SECTOR)
        handle.write(code)


def _install_efi(image: Path, early: Path, scratch: Path) -> None:
    efi, esp = scratch / "BOOTX64.EFI", scratch / "esp.img"
    _grub_image("x86_64-efi", early, efi, ())
    with esp.open("wb") as handle:
        handle.truncate(ESP_SIZE)
    run_tool(["mkfs.vfat", "-F", "16", "-s", "1", "-n", "ESP", "-i", "76736373", esp])
    run_tool(["mmd", "-i", esp, "::/EFI", "::/EFI/BOOT"])
    run_tool(["mcopy", "-i", esp, efi, "::/EFI/BOOT/BOOTX64.EFI"])
    with image.open("r+b") as handle, esp.open("rb") as source:
        handle.seek(ESP_START)
        shutil.copyfileobj(source, handle)


def main() -> int:
    """Build the image and say where it is and what it takes."""
    started = time.monotonic()
    try:
        path = demo_image()
    except BuildError as error:
        print(f"image.py: {error}", file=sys.stderr)
        return 1
    used = path.stat().st_blocks * SECTOR
    print(f"{path}: {path.stat().st_size // MIB} MiB, {used // MIB} MiB used, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
