# SPDX-License-Identifier: Apache-2.0
"""Which accelerator to use. /dev/kvm says little: some hosts have one in which no stock kernel starts.

KVM counts only after a kernel has come all the way up in it, once per boot of the host; everything else is TCG. The
verdict is kept in the user's cache directory. It does not judge speed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vhost_scsi.errors import ConfigError
from vhost_scsi.qemu.binary import Qemu
from vhost_scsi.qemu.errors import QemuError
from vhost_scsi.qemu.guest import Guest, GuestConfig
from vhost_scsi.qemu.options import Accel

ENVIRONMENT = "VHOST_SCSI_ACCEL"
KVM_DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PROBE_TIMEOUT = 30.0  # s; under working KVM the kernel needs less than one
# Without a root file system a kernel ends here, after it has started its processors, memory, timers and devices.
CAME_UP = "Unable to mount root fs"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What a probe found."""

    works: bool
    reason: str


def choose_accel(qemu: Qemu, kernel: Path | None = None) -> Accel:
    """The accelerator for this QEMU on this host: $VHOST_SCSI_ACCEL (kvm or tcg), else KVM if proven, else TCG.

    `kernel` is what the probe boots; without one the host's own is taken. No kernel, no proof.
    """
    kvm, tcg = Accel("kvm", "host"), Accel("tcg", qemu.tcg_cpu)
    forced = os.environ.get(ENVIRONMENT)
    if forced:
        if forced not in ("kvm", "tcg"):
            raise ConfigError(f"{ENVIRONMENT}={forced}: must be kvm or tcg")
        return dataclasses.replace(kvm if forced == "kvm" else tcg, reason=f"{ENVIRONMENT} says so")
    verdict = kvm_verdict(qemu, kvm, [kernel] if kernel else host_kernels())
    return dataclasses.replace(kvm if verdict.works else tcg, reason=verdict.reason)


def host_kernels(boot: Path = Path("/boot")) -> list[Path]:
    """The kernels on this machine that we may read, the running one first."""
    running = boot / f"vmlinuz-{os.uname().release}"
    found = sorted(boot.glob("vmlinuz-*"), key=lambda path: (path != running, path.name))
    return [path for path in found if os.access(path, os.R_OK)]


def kvm_verdict(qemu: Qemu, accel: Accel, kernels: Sequence[Path]) -> Verdict:
    """Whether KVM works, from the cache or by booting a kernel."""
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return Verdict(False, f"{KVM_DEVICE} is missing or not ours to open")
    if not kernels:
        return Verdict(False, "KVM is not proven: no readable kernel to try it with")
    kernel = kernels[0]
    key = hashlib.sha256(
        json.dumps([BOOT_ID.read_text(), qemu.command, qemu.version, str(kernel), kernel.stat().st_mtime_ns]).encode()
    ).hexdigest()
    cached = _cache_file()
    try:
        stored = json.loads(cached.read_text())
        if stored["key"] == key:
            return Verdict(bool(stored["works"]), str(stored["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no verdict yet, or none that can be read: the probe makes a new one
    verdict = _boot(qemu, accel, kernel)
    _store(cached, {"key": key, "works": verdict.works, "reason": verdict.reason})
    return verdict


def _boot(qemu: Qemu, accel: Accel, kernel: Path) -> Verdict:
    append = "console=ttyS0 panic=-1 root=/dev/none"
    config = GuestConfig(qemu, accel, memory_mib=256, kernel=kernel, append=append, no_reboot=True)
    try:
        with Guest(config) as guest:
            guest.expect(CAME_UP, PROBE_TIMEOUT)
    except QemuError as error:
        return Verdict(False, f"no guest starts in KVM: {error}")
    return Verdict(True, "a kernel came up in KVM")


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vhost-scsi" / "kvm.json"


def _store(path: Path, content: dict[str, object]) -> None:
    """Keep a verdict; where nothing can be written the next run probes again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as handle:
            json.dump(content, handle)
        os.replace(handle.name, path)
    except OSError:
        return
