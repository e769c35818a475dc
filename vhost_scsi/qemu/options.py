# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line in pieces: shared memory, our device, accelerator, firmware.

Pure text, made from values; nothing is started here. `serve` prints these options and `boot` uses them, so what we
print is what we run.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from pathlib import Path

from vhost_scsi.errors import ConfigError
from vhost_scsi.qemu.binary import DEVICE, Qemu
from vhost_scsi.qemu.errors import QemuError

MAX_VIRTQUEUE_SIZE = 1024  # QEMU's own limit (VIRTQUEUE_MAX_SIZE), not that of the rings
MAX_QUEUES = 254  # request queues: vhost-user has 8 bits for a ring, and two are control and event queue

# Where distributions keep OVMF without secure boot: (code, variables).
OVMF_PAIRS = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)


class Firmware(enum.Enum):
    """What starts the guest."""

    BIOS = "bios"
    EFI = "efi"


@dataclasses.dataclass(frozen=True, slots=True)
class Accel:
    """How guest code is run, with which CPU model, and why this one was chosen."""

    name: str
    cpu: str
    reason: str = ""

    def options(self) -> list[str]:
        """The words for QEMU's command line."""
        return ["-accel", self.name, "-cpu", self.cpu]


def escape(value: str | Path) -> str:
    """A value inside an option list, where a comma is written twice."""
    return str(value).replace(",", ",,")


def memory_options(mebibytes: int) -> list[str]:
    """Guest memory that another process can map; without share=on a vhost-user back end sees nothing."""
    if mebibytes <= 0:
        raise ConfigError(f"{mebibytes} MiB of guest memory: must be more than 0")
    return [
        *("-m", f"{mebibytes}M"),
        *("-object", f"memory-backend-memfd,id=mem,size={mebibytes}M,share=on"),
        *("-machine", "memory-backend=mem"),
    ]


def device_options(
    socket_path: str | Path,
    num_queues: int = 1,
    virtqueue_size: int = 128,
    *,
    qemu: Qemu,
    ident: str = "scsi0",
    bootindex: int | None = None,
    reconnect: bool = True,
    properties: Mapping[str, str] | None = None,
) -> list[str]:
    """The chardev and the device for one back end socket.

    `num_queues` counts request queues. `reconnect` has an effect only where this QEMU can reconnect. `bootindex` is
    for target 0 LUN 0. Further `properties` are passed on when this QEMU has them and refused by name otherwise.
    """
    if not 1 <= num_queues <= MAX_QUEUES:
        raise ConfigError(f"num_queues={num_queues}: must be 1 to {MAX_QUEUES}")
    if not 4 <= virtqueue_size <= MAX_VIRTQUEUE_SIZE or virtqueue_size & (virtqueue_size - 1):
        raise ConfigError(f"virtqueue_size={virtqueue_size}: must be a power of two from 4 to {MAX_VIRTQUEUE_SIZE}")
    extra = dict(properties or {})
    if extra:
        unknown = sorted(set(extra) - qemu.properties(DEVICE))
        if unknown:
            raise QemuError(f"QEMU {qemu.version_text} has no property {', '.join(unknown)} of {DEVICE}")
    chardev = f"socket,id={ident}-backend,path={escape(socket_path)}"
    if reconnect and qemu.reconnect_option:
        chardev += f",{qemu.reconnect_option}"
    device = f"{DEVICE},id={ident},chardev={ident}-backend,num_queues={num_queues},virtqueue_size={virtqueue_size}"
    if bootindex is not None:
        device += f",bootindex={bootindex}"
    for name, value in extra.items():
        device += f",{name}={escape(value)}"
    return ["-chardev", chardev, "-device", device]


def find_ovmf() -> tuple[Path, Path]:
    """OVMF's code and its empty variable store."""
    for code, variables in OVMF_PAIRS:
        if Path(code).is_file() and Path(variables).is_file():
            return Path(code), Path(variables)
    raise QemuError("EFI firmware wanted, but no OVMF is installed (package ovmf)")


def efi_options(code: Path, variables: Path) -> list[str]:
    """OVMF as two flash chips; `variables` is written by the guest and must be its own copy."""
    return [
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={escape(code)}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={escape(variables)}"),
    ]
