# SPDX-License-Identifier: Apache-2.0
"""Which QEMU is here, and what it can do.

What a device accepts is asked of the binary itself; the version decides only what cannot be asked. This module starts
QEMU for questions, never for a guest.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from vhost_scsi.qemu.errors import QemuError, QemuNotFound

PROGRAM = "qemu-system-x86_64"
ENVIRONMENT = "VHOST_SCSI_QEMU"
DEVICE = "vhost-user-scsi-pci"
QUESTION_TIMEOUT = 60.0  # s; a busy machine needs some to load QEMU's libraries


@dataclasses.dataclass(frozen=True, slots=True)
class Qemu:
    """One installed QEMU: the words that start it and its version as (major, minor, micro)."""

    command: tuple[str, ...]
    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        """The version as QEMU prints it."""
        return ".".join(str(part) for part in self.version)

    @property
    def reconnect_option(self) -> str | None:
        """What makes the chardev of a vhost-user-scsi device come back, or None where a lost back end is final.

        The device itself has known how since 8.2; before that the same chardev option makes QEMU fail at start.
        `reconnect-ms` came with 9.2 and is the only spelling left in 11.x.
        """
        if self.version < (8, 2, 0):
            return None
        return "reconnect-ms=1000" if self.version >= (9, 2, 0) else "reconnect=1"

    @property
    def tcg_cpu(self) -> str:
        """The CPU model for TCG. 7.2 miscompiles cmpxchg16b, 11.1 does not; what lies between is unproven."""
        return "max" if self.version >= (11, 0, 0) else "max,-cx16"

    def devices(self) -> frozenset[str]:
        """The names that `-device` knows."""
        return frozenset(re.findall(r'(?m)^name "([^"]+)"', _ask(self.command, "-device", "help")))

    def properties(self, device: str = DEVICE) -> frozenset[str]:
        """The names of a device's properties."""
        return frozenset(re.findall(r"(?m)^\s+([\w-]+)=", _ask(self.command, "-device", f"{device},help")))


def find_qemu() -> Qemu:
    """The QEMU to use: $VHOST_SCSI_QEMU (a program, or a command line with arguments), else the first on PATH."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        # A file whose path has blanks in it is meant as it stands; anything else is read as a shell would.
        command = (named,) if Path(named).is_file() else tuple(shlex.split(named))
        if not command or shutil.which(command[0]) is None:
            raise QemuNotFound(f"{ENVIRONMENT} names {named!r}, which is no program")
    else:
        found = shutil.which(PROGRAM)
        if found is None:
            raise QemuNotFound(f"no {PROGRAM} on PATH; install qemu-system-x86 or name one in {ENVIRONMENT}")
        command = (found,)
    return Qemu(command, parse_version(_ask(command, "--version")))


def parse_version(text: str) -> tuple[int, int, int]:
    """The version in the output of `--version`; QemuNotFound when that is not QEMU's."""
    match = re.search(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?", text)
    if match is None:
        line = (text.strip().splitlines() or ["nothing"])[0]
        raise QemuNotFound(f"this is no QEMU: to --version it answers {line!r}")
    return int(match[1]), int(match[2]), int(match[3] or 0)


@functools.cache
def _ask(command: tuple[str, ...], *arguments: str) -> str:
    """The answer to one question on QEMU's command line."""
    try:
        done = subprocess.run(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=QUESTION_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QemuNotFound(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["it wrote nothing to stderr"])[-1]
        # What does not even tell its version is none; one that does, and has no such device, is a QEMU that refuses.
        kind = QemuNotFound if arguments == ("--version",) else QemuError
        raise kind(f"{command[0]} {shlex.join(arguments)} ended with status {done.returncode}: {words}")
    return done.stdout
