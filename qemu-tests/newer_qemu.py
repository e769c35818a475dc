# SPDX-License-Identifier: Apache-2.0
"""A QEMU that goes on when its back end has died and come back: the installed one where it can, else that of a newer
Debian, unpacked into the cache and started by its own loader, so that nothing is installed.

It does not start a guest.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path

from debian import AptSource, apt_sources, cache_dir, cache_lock, recipe_key, run_tool

from vhost_scsi.qemu import Qemu, find_qemu
from vhost_scsi.qemu.binary import parse_version

SUITES = ("trixie", "trixie-backports")
PACKAGES = ("qemu-system-x86", "seabios")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
RECONNECTS = (10, 0, 0)  # the first whose vhost-user-scsi is known to keep the in-flight memory


def reconnecting_qemu() -> Qemu:
    """At least QEMU 10."""
    installed = find_qemu()
    return installed if installed.version >= RECONNECTS else _unpacked(_tree())


def _unpacked(root: Path) -> Qemu:
    """The QEMU of a tree, with what finds its libraries, modules and firmware there."""
    command = (
        *("env", f"QEMU_MODULE_DIR={root / LIBRARIES / 'qemu'}"),
        *(str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(root / LIBRARIES)),
        *(str(root / "usr/bin/qemu-system-x86_64"), "-L", str(root / "usr/share/qemu")),
        *("-L", str(root / "usr/share/seabios")),
    )
    return Qemu(command, parse_version(run_tool([*command, "--version"])))


def _sources() -> list[AptSource]:
    """The newer suites on the machine's own mirror: the archive of the security suite has none of them."""
    [ours] = [each for each in apt_sources() if re.fullmatch(r"[a-z]+", each.suite)]
    return [dataclasses.replace(ours, suite=suite) for suite in SUITES]


def _tree() -> Path:
    target = cache_dir() / f"qemu-{recipe_key(*SUITES, *PACKAGES)}"
    with cache_lock("qemu"):
        if not target.exists():
            partial = target.with_name(f"partial-{os.getpid()}-{target.name}")
            try:
                run_tool([
                    "mmdebstrap", "--quiet", "--variant=extract", "--architectures=amd64",
                    f"--mode={'root' if os.geteuid() == 0 else 'unshare'}", f"--include={','.join(PACKAGES)}",
                    f'--aptopt=APT::Default-Release "{SUITES[-1]}"', '--aptopt=APT::Install-Recommends "false"',
                    SUITES[0], partial, *(source.line() for source in _sources()),
                ])  # fmt: skip
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target
