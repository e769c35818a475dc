# SPDX-License-Identifier: Apache-2.0
"""The tiny guest: Debian's kernel and an initrd with a shell on the serial port, for many checks in one short boot.

Everything in it is taken out of the root file system of debian.py: busybox, a few real programs with their
libraries, and the kernel modules that a SCSI test needs. It has no boot loader and no disk of its own; QEMU loads
it with -kernel and -initrd. It is not the demo image (image.py).
"""

from __future__ import annotations

import dataclasses
import lzma
import re
import shutil
import sys
import time
from pathlib import Path

from debian import BuildError, cache_dir, cache_lock, recipe_key, rootfs, rootfs_key, run_tool, scratch_dir

MODULES = (
    "virtio_pci", "virtio_scsi", "sd_mod", "sg", "sr_mod", "isofs", "ext4", "sym53c8xx", "crc32c_generic",
    "crct10dif_generic",
)  # fmt: skip
LOADED = ("virtio_pci", "virtio_scsi", "sd_mod", "sg")

PROGRAMS = (
    "usr/bin/dash", "usr/bin/busybox", "usr/bin/sg_*", "usr/bin/lsscsi", "usr/bin/lsblk", "usr/bin/dd",
    "usr/bin/findmnt", "usr/bin/mount", "usr/bin/umount", "usr/sbin/blkdiscard", "usr/sbin/blockdev",
    "usr/sbin/fstrim", "usr/sbin/mke2fs", "usr/sbin/e2fsck", "usr/sbin/blkid",
)  # fmt: skip

# dash, not busybox's shell: it leaves line editing and echo to the terminal, so a script can talk to it.
INIT = f"""\
#!/bin/dash
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /tmp
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ TERM=dumb
for module in {" ".join(LOADED)}; do modprobe $module; done
dmesg -n 1
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
echo 'tiny guest is up'
while :; do setsid -c env PS1= PS2= dash -i; done
"""
POWEROFF = "#!/bin/dash\nsync\nexec /bin/busybox poweroff -f\n"
REBOOT = "#!/bin/dash\nsync\nexec /bin/busybox reboot -f\n"
READY = "tiny guest is up"
# no_timer_check: as in image.py.
APPEND = "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/init"
XZ_MAGIC = b"\xfd7zXZ\x00"


@dataclasses.dataclass(frozen=True, slots=True)
class TinyGuest:
    """What QEMU loads: the kernel, the initrd, the command line, and the text that says that the shell is there."""

    kernel: Path
    initrd: Path
    append: str = APPEND
    ready: str = READY


def tiny_guest() -> TinyGuest:
    """The tiny guest, built on first use."""
    target = cache_dir() / f"tiny-{recipe_key(rootfs_key(), Path(__file__).read_text())}"
    with cache_lock("tiny"):
        if not target.exists():
            _build(target)
    return TinyGuest(target / "vmlinux", target / "initrd.cpio")


def _build(target: Path) -> None:
    tar = rootfs()
    with scratch_dir("tiny") as scratch:
        source, root, product = scratch / "source", scratch / "root", scratch / "product"
        for path in (source, root, product):
            path.mkdir()
        wanted = ["./boot", "./usr/bin", "./usr/sbin", "./usr/lib/x86_64-linux-gnu", "./usr/lib/modules"]
        run_tool(["tar", "-x", "--no-same-owner", "-C", source, "-f", tar, *wanted])
        _lay_out(root)
        _copy_programs(source, root)
        _copy_modules(source, root)
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
        cpio = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "--reproducible"]
        run_tool([*cpio, "-D", root, "-F", product / "initrd.cpio"], stdin="\n".join(names).encode())
        (product / "vmlinux").write_bytes(_uncompressed_kernel(_one(source, "boot/vmlinuz-*").read_bytes()))
        for old in cache_dir().glob("tiny-*"):
            shutil.rmtree(old)
        product.rename(target)


def _one(base: Path, pattern: str) -> Path:
    found = sorted(base.glob(pattern))
    if len(found) != 1:
        raise BuildError(f"{pattern}: found {len(found)} in the root file system, expected one")
    return found[0]


def _lay_out(root: Path) -> None:
    for name in ("usr/bin", "usr/sbin", "usr/lib/x86_64-linux-gnu", "usr/lib64", "dev", "proc", "sys", "tmp", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "mnt").mkdir()
    (root / "etc/mtab").symlink_to("/proc/self/mounts")
    for path, text in (("init", INIT), ("usr/sbin/poweroff", POWEROFF), ("usr/sbin/reboot", REBOOT)):
        (root / path).write_text(text)
        (root / path).chmod(0o755)


def _copy_programs(source: Path, root: Path) -> None:
    libraries = source / "usr/lib/x86_64-linux-gnu"
    loader = libraries / "ld-linux-x86-64.so.2"
    for pattern in PROGRAMS:
        found = sorted(source.glob(pattern))
        if not found:
            raise BuildError(f"{pattern}: not in the root file system")
        for program in found:
            if program.is_symlink() or program.read_bytes()[:4] != b"\x7fELF":
                continue
            shutil.copy2(program, root / program.relative_to(source))
            if program.name == "busybox":
                continue  # static
            listing = run_tool([loader, "--library-path", libraries, "--list", program])
            for name in re.findall(rf"=> {re.escape(str(libraries))}/(\S+)", listing):
                shutil.copy2((libraries / name).resolve(), root / "usr/lib/x86_64-linux-gnu" / name)
    shutil.copy2(loader.resolve(), root / "usr/lib64/ld-linux-x86-64.so.2")
    (root / "usr/bin/sh").symlink_to("dash")
    (root / "usr/sbin/mkfs.ext4").symlink_to("mke2fs")
    taken = {path.name for folder in ("usr/bin", "usr/sbin") for path in (root / folder).iterdir()}
    for applet in run_tool([root / "usr/bin/busybox", "--list-full"]).split():
        folder, name = ("usr/sbin" if "sbin/" in applet else "usr/bin"), Path(applet).name
        if name not in taken:
            (root / folder / name).symlink_to("/usr/bin/busybox")


def _copy_modules(source: Path, root: Path) -> None:
    tree = _one(source, "usr/lib/modules/*")
    requires: dict[str, list[str]] = {}
    path_of: dict[str, str] = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        requires[path] = needs.split()
        path_of[Path(path).name.split(".")[0].replace("-", "_")] = path
    for module in MODULES:
        if module not in path_of:
            raise BuildError(f"{module}: the kernel has no such module")
        for path in (path_of[module], *requires[path_of[module]]):  # modules.dep is transitive already
            copy = root / "usr/lib/modules" / tree.name / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / path, copy)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy2(tree / name, root / "usr/lib/modules" / tree.name / name)
    run_tool(["depmod", "-b", root, tree.name])


def _uncompressed_kernel(image: bytes) -> bytes:
    """The ELF file inside a bzImage: QEMU starts it through PVH and the guest need not unpack itself under TCG."""
    start = image.find(XZ_MAGIC)
    if start < 0:
        raise BuildError("the kernel is not compressed with xz")
    kernel = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(image[start:])
    if kernel[:4] != b"\x7fELF":
        raise BuildError("the kernel unpacks to something that is no ELF file")
    return kernel


if __name__ == "__main__":
    started = time.monotonic()
    try:
        guest = tiny_guest()
    except BuildError as error:
        sys.exit(f"initrd.py: {error}")
    print(f"{guest.kernel} {guest.initrd} ({time.monotonic() - started:.1f} s)")
