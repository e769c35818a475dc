# SPDX-License-Identifier: Apache-2.0
"""QEMU from the outside: find it, write its options, run a guest and talk to it. No back end, no SCSI."""

from __future__ import annotations

from vhost_scsi.qemu.binary import Qemu, find_qemu
from vhost_scsi.qemu.errors import GuestTimeout, QemuDied, QemuError, QemuNotFound
from vhost_scsi.qemu.guest import CommandResult, Guest, GuestConfig
from vhost_scsi.qemu.options import Accel, Firmware, device_options, memory_options
from vhost_scsi.qemu.probe import choose_accel

__all__ = [
    "Accel",
    "CommandResult",
    "Firmware",
    "Guest",
    "GuestConfig",
    "GuestTimeout",
    "Qemu",
    "QemuDied",
    "QemuError",
    "QemuNotFound",
    "choose_accel",
    "device_options",
    "find_qemu",
    "memory_options",
]
