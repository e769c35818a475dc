# SPDX-License-Identifier: Apache-2.0
"""What can go wrong around QEMU. Each class is one clear line for a person, and the exit code that a command ends with.

VhostScsiError
└── QemuError            10   QEMU refuses what we want of it
    ├── QemuNotFound     11   no QEMU on this machine
    ├── QemuDied         12   QEMU ended before it should
    └── GuestTimeout     13   the guest did not say in time what was waited for
"""

from __future__ import annotations

from vhost_scsi.errors import VhostScsiError


class QemuError(VhostScsiError):
    """QEMU, or the guest in it, did not do what was asked."""

    exit_code = 10


class QemuNotFound(QemuError):
    """There is no QEMU, or what was named as one is none."""

    exit_code = 11


class QemuDied(QemuError):
    """QEMU ended. `status` is its exit status (negative: the signal), `stderr` the end of what it wrote there."""

    exit_code = 12

    def __init__(self, status: int, stderr: str, waiting_for: str, console: str = "") -> None:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        words = " | ".join(stderr.strip().splitlines()[-3:]) or "it wrote nothing to stderr"
        last = console.strip().splitlines()[-4:]
        if last:
            words += f"; the console ends with: {' | '.join(last)}"
        super().__init__(f"QEMU {how} while we waited for {waiting_for}: {words}")
        self.status = status
        self.stderr = stderr


class GuestTimeout(QemuError):
    """Something did not come in time. `console` is the end of what the guest wrote."""

    exit_code = 13

    def __init__(self, waiting_for: str, seconds: float, console: str) -> None:
        tail = console.strip().splitlines()[-1:] or ["nothing"]
        super().__init__(f"no {waiting_for} within {seconds:g} s; the console's last line: {tail[0]}")
        self.console = console
