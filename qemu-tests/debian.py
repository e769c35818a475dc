# SPDX-License-Identifier: Apache-2.0
"""The Debian root file system that every guest is made from: one mmdebstrap run, kept as a tar file in the cache.

Knows where packages come from (the machine's own apt sources, never a mirror of our choice), what is installed and
how the system is set up. It is not a disk image (image.py makes that) and not the small guest (initrd.py does).
Works as root, and rootless where the user has subordinate ids (mmdebstrap --mode=unshare).
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CODENAME = "bookworm"
ROOT_UUID = "6d2f0c6d-1f5e-4f6d-9b1a-52f3a7c0e1d4"

PACKAGES = (
    "linux-image-amd64", "initramfs-tools", "zstd", "busybox-static", "systemd-sysv", "udev", "kmod",
    "util-linux", "coreutils", "e2fsprogs", "procps", "sg3-utils", "lsscsi", "fio",
    "iproute2", "open-iscsi", "multipath-tools",
)  # fmt: skip

# Documentation and drivers of hardware that no virtual machine has: half of the tree, and time in every build.
EXCLUDED = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*",
    "/lib/modules/*/kernel/sound/*", "/lib/modules/*/kernel/drivers/gpu/*", "/lib/modules/*/kernel/drivers/media/*",
    "/lib/modules/*/kernel/drivers/net/wireless/*", "/lib/modules/*/kernel/drivers/net/ethernet/*",
    "/lib/modules/*/kernel/drivers/infiniband/*", "/lib/modules/*/kernel/drivers/staging/*",
    "/lib/modules/*/kernel/drivers/iio/*", "/lib/modules/*/kernel/net/bluetooth/*",
)  # fmt: skip

# Runs before the kernel package: its post-install step makes the initramfs, and MODULES=most makes it 31 MB.
BEFORE_KERNEL = r"""
set -eu
mkdir -p "$1/etc/initramfs-tools/conf.d"
printf 'MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=3\nRESUME=none\nFSTYPE=ext4\n' >"$1/etc/initramfs-tools/conf.d/guest"
cat >"$1/etc/initramfs-tools/modules" <<'EOF'
virtio_pci
virtio_scsi
virtio_blk
sym53c8xx
sd_mod
ext4
EOF
"""

# Root without a password on a serial console, no network, no timers: what is left boots in seconds under TCG.
CUSTOMIZE = r"""
set -eu
chroot "$1" passwd -d root >/dev/null
echo debian-guest >"$1/etc/hostname"
printf '127.0.0.1 localhost debian-guest\n' >"$1/etc/hosts"
printf 'UUID=ROOT_UUID / ext4 errors=remount-ro 0 1\n' >"$1/etc/fstab"
printf 'Debian guest of the test suite\n' >"$1/etc/motd"
rm -f "$1/etc/update-motd.d/10-uname"
mkdir -p "$1/etc/systemd/journald.conf.d" "$1/etc/systemd/system.conf.d" "$1/boot/efi" "$1/etc/apt"
printf '[Journal]\nStorage=volatile\n' >"$1/etc/systemd/journald.conf.d/guest.conf"
printf '[Manager]\nDefaultTimeoutStartSec=300s\nDefaultTimeoutStopSec=60s\n' >"$1/etc/systemd/system.conf.d/guest.conf"
ln -sf /dev/null "$1/etc/systemd/system/getty@tty1.service"
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-firstboot.service systemd-pstore.service systemd-update-utmp-runlevel.service \
    systemd-update-utmp.service systemd-binfmt.service systemd-timesyncd.service systemd-networkd.service \
    getty-static.service systemd-machine-id-commit.service systemd-sysusers.service systemd-modules-load.service \
    modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service modprobe@fuse.service \
    modprobe@loop.service modprobe@efi_pstore.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount; do
    ln -sf /dev/null "$1/etc/systemd/system/$unit"
done
# Installed, and started by those tests that are about them.
chroot "$1" systemctl --quiet disable iscsid.socket open-iscsi.service multipathd.socket multipathd.service
# Found by the CPU's or the chip set's name and of no use here: loading them takes seconds under TCG.
for module in kvm_amd kvm_intel aesni_intel ghash_clmulni_intel crct10dif_pclmul crc32_pclmul sha512_ssse3 \
    sha256_ssse3 sha1_ssse3 polyval_clmulni i2c_i801 lpc_ich iTCO_wdt pcspkr powernow_k8 acpi_cpufreq qemu_fw_cfg \
    joydev psmouse evdev button; do
    echo "blacklist $module"
done >"$1/etc/modprobe.d/guest.conf"
# Debian's own unit waits until udev has seen the port, which is the last thing that coldplug gets to.
mkdir -p "$1/etc/systemd/system/getty.target.wants"
cat >"$1/etc/systemd/system/serial-getty@ttyS0.service" <<'EOF'
[Unit]
Description=Login on the serial port
After=systemd-user-sessions.service
[Service]
ExecStart=-/sbin/agetty -o '-p -- \\u' --keep-baud 115200 ttyS0 vt220
Type=idle
Restart=always
UtmpIdentifier=ttyS0
StandardInput=tty
StandardOutput=tty
TTYPath=/dev/ttyS0
TTYReset=yes
TTYVHangup=yes
SendSIGHUP=yes
EOF
ln -sf /etc/systemd/system/serial-getty@ttyS0.service \
    "$1/etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service"
""".replace("ROOT_UUID", ROOT_UUID)


class BuildError(Exception):
    """A guest could not be built; the message names the step and ends with the tool's last words."""


@dataclasses.dataclass(frozen=True, slots=True)
class AptSource:
    """One archive that the machine is configured for."""

    uri: str
    suite: str
    signed_by: str | None

    def line(self) -> str:
        """The entry in one-line form, reduced to the component `main`."""
        option = f"[signed-by={self.signed_by}] " if self.signed_by else ""
        return f"deb {option}{self.uri} {self.suite} main"


def cache_dir() -> Path:
    """Where built guests are kept: $VHOST_SCSI_CACHE, else .cache/ of the tree."""
    path = Path(os.environ.get("VHOST_SCSI_CACHE") or HERE.parent / ".cache").absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def cache_lock(name: str) -> Iterator[None]:
    """One builder at a time: the second waits and then finds the result of the first."""
    with (cache_dir() / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def recipe_key(*parts: str) -> str:
    """The name of what a recipe makes. A changed recipe has another name, so nothing stale is ever served."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part.encode())
    return digest.hexdigest()[:16]


def run_tool(argv: Sequence[str | Path], *, stdin: bytes | None = None, pass_fds: Sequence[int] = ()) -> str:
    """Run one build tool and return its standard output; a failure carries the end of what it wrote."""
    command = [str(word) for word in argv]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            pass_fds=pass_fds,
            env={**os.environ, "LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"},
        )
    except FileNotFoundError:
        raise BuildError(f"{command[0]}: not installed (qemu-tests/packages.txt lists what is needed)") from None
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-15:]
        raise BuildError(f"{command[0]} ended with status {done.returncode}:\n  " + "\n  ".join(words))
    return done.stdout.decode(errors="replace")


def _first_mirror(uri: str) -> str:
    """The first address of a mirror list (cloud images write `mirror+file:`), or the address itself."""
    if not uri.startswith("mirror+file:"):
        return uri
    path = Path("/" + uri.removeprefix("mirror+file:").lstrip("/"))
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            return line.split()[0]
    raise BuildError(f"{path}: no mirror in it")


def _deb822_entries(text: str) -> Iterator[tuple[str, str, str, str | None]]:
    """(uri, suite, components, signed-by) of each entry of a .sources file (sources.list(5), DEB822-STYLE)."""
    without_comments = re.sub(r"(?m)^#.*\n?", "", text)
    for stanza in re.split(r"\n[ \t]*\n", without_comments):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t") and key:
                fields[key] += "\n" + line.strip()
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        signed = fields.get("signed-by", "").strip()
        # An inline key block instead of a file name: apt knows it only there; the archive keyring has it too.
        signed_by = signed if signed.startswith("/") else None
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri, suite, fields.get("components", ""), signed_by


def _one_line_entries(text: str) -> Iterator[tuple[str, str, str, str | None]]:
    """The same of a sources.list file in one-line form."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s+([^#]*)", line)
        if match:
            signed = re.search(r"signed-by=(\S+)", match[1] or "")
            yield match[2], match[3], match[4], signed[1] if signed else None


def apt_sources(etc_apt: Path = Path("/etc/apt"), os_release: Path = Path("/etc/os-release")) -> list[AptSource]:
    """The archives of CODENAME, derived from the machine's own sources (an address is never ours to choose)."""
    entries: list[tuple[str, str, str, str | None]] = []
    for path in [etc_apt / "sources.list", *sorted((etc_apt / "sources.list.d").glob("*"))]:
        if path.suffix == ".list" and path.is_file():
            entries += _one_line_entries(path.read_text())
        elif path.suffix == ".sources" and path.is_file():
            entries += _deb822_entries(path.read_text())
    release = re.search(r"(?m)^VERSION_CODENAME=\"?([a-z]+)", os_release.read_text())
    ours = {CODENAME, "stable", "oldstable", release[1] if release else CODENAME}
    found: dict[str, AptSource] = {}
    # Other people's archives use Debian's suite names too; Debian's own mirrors nearly always say so in their path.
    for uri, suite, components, signed_by in sorted(entries, key=lambda entry: "debian" not in entry[0]):
        match = re.fullmatch(r"([a-z]+)(-updates|-security)?", suite.removesuffix("/"))
        if match is not None and match[1] in ours and "main" in components.split():
            name = CODENAME + (match[2] or "")
            found.setdefault(name, AptSource(_first_mirror(uri), name, signed_by))
    if CODENAME not in found:
        raise BuildError(f"{etc_apt}: no Debian archive with the component main in the apt sources")
    return [found[suite] for suite in sorted(found)]


def _apt_options() -> list[str]:
    """What the machine's apt needs to reach its mirror (proxies, date checks), for mmdebstrap's own apt."""
    wanted = re.compile(r'^(Acquire::(?:https?::Proxy|Check-Valid-Until|Check-Date|Retries)[^ ]*) "(.*)";$')
    options = []
    for line in run_tool(["apt-config", "dump"]).splitlines():
        match = wanted.match(line)
        if match and match[2]:
            options.append(f'--aptopt={match[1]} "{match[2]}"')
    return options


def rootfs_key() -> str:
    """The cache key of the root file system."""
    return recipe_key(CODENAME, " ".join(PACKAGES), " ".join(EXCLUDED), BEFORE_KERNEL, CUSTOMIZE)


def rootfs() -> Path:
    """The root file system as a tar file, built on first use."""
    target = cache_dir() / f"rootfs-{CODENAME}-{rootfs_key()}.tar"
    with cache_lock("rootfs"):
        if not target.exists():
            _bootstrap(target)
    return target


def _bootstrap(target: Path) -> None:
    debs = cache_dir() / "debs"
    debs.mkdir(exist_ok=True)
    partial = target.with_name(f"partial-{os.getpid()}-{target.name}")
    archives = "/var/cache/apt/archives"
    try:
        run_tool([
            "mmdebstrap", "--quiet", "--variant=minbase", f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
            "--architectures=amd64", f"--include={','.join(PACKAGES)}", '--aptopt=APT::Install-Recommends "false"',
            *_apt_options(), *(f"--dpkgopt=path-exclude={path}" for path in EXCLUDED),
            # The .debs of this run are kept: a changed recipe is rebuilt without the network.
            "--skip=download/empty", "--skip=essential/unlink",
            f'--setup-hook=mkdir -p "$1{archives}/partial"', f"--setup-hook=sync-in {debs} {archives}",
            f"--essential-hook={BEFORE_KERNEL}", f"--customize-hook={CUSTOMIZE}",
            f"--customize-hook=sync-out {archives} {debs}",
            CODENAME, partial, *(source.line() for source in apt_sources()),
        ])  # fmt: skip
        for old in cache_dir().glob(f"rootfs-{CODENAME}-*.tar"):
            old.unlink()
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_dir(prefix: str) -> Iterator[Path]:
    """A directory for one build, on the cache's file system, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix=f"{prefix}.", dir=cache_dir()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    started = time.monotonic()
    print(f"{rootfs()} ({time.monotonic() - started:.1f} s)")
