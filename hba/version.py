# SPDX-License-Identifier: Apache-2.0
"""VFIO_USER_VERSION: what a client proposes, and what we answer. The JSON is checked number by number; what it holds
beside the capabilities that we know is passed over.
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from typing import Any, Final

from vhost_scsi.hba.messages import PAGE, VERSION, Refused

MAJOR: Final = 0
MINOR: Final = 1
DATA_MAX: Final = 4096  # bytes of JSON; QEMU's are under 300
MAX_MSG_FDS: Final = 8
MAX_DATA_XFER_SIZE: Final = 65536
MAX_DMA_MAPS: Final = 1024
_DEFAULT_XFER: Final = 1 << 20
_WHAT: Final = "VERSION"


@dataclass(frozen=True, slots=True)
class Agreement:
    """The client's side of it: bytes it takes in one message, descriptors it takes with one."""

    minor: int
    max_data_xfer_size: int
    max_msg_fds: int


def _number(capabilities: dict[str, Any], name: str, default: int) -> int:
    value = capabilities.get(name, default)
    # True is an int to Python.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 64:
        raise Refused(errno.EINVAL, f"{_WHAT}: capability {name} is no number", closes=True)
    return value


def _capabilities(data: bytes) -> dict[str, Any]:
    if not data:
        return {}
    if len(data) > DATA_MAX or data[-1]:
        raise Refused(errno.EINVAL, f"{_WHAT}: {len(data)} bytes of JSON, too long or without a NUL", closes=True)
    try:
        document = json.loads(data[:-1].decode())
    except (ValueError, RecursionError) as error:
        raise Refused(errno.EINVAL, f"{_WHAT}: not JSON", closes=True) from error
    found = document.get("capabilities", {}) if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise Refused(errno.EINVAL, f"{_WHAT}: the capabilities are no object", closes=True)
    return found


def agree(data: bytes) -> tuple[Agreement, bytes]:
    """What was agreed upon, and the payload of the answer; or Refused."""
    if len(data) < VERSION.sizeof():
        raise Refused(errno.EINVAL, f"{_WHAT}: {len(data)} bytes", closes=True)
    proposed = VERSION.parse(data)
    if proposed.major != MAJOR:
        raise Refused(errno.EINVAL, f"{_WHAT}: {proposed.major}.{proposed.minor}, we have {MAJOR}.{MINOR}", closes=True)
    capabilities = _capabilities(data[VERSION.sizeof() :])
    transfer = _number(capabilities, "max_data_xfer_size", _DEFAULT_XFER)
    descriptors = _number(capabilities, "max_msg_fds", 1)
    maps = _number(capabilities, "max_dma_maps", 65535)
    pages = _number(capabilities, "pgsizes", PAGE)
    if not transfer or not pages & PAGE:
        raise Refused(errno.EINVAL, f"{_WHAT}: no data or no {PAGE}-byte pages", closes=True)
    ours: dict[str, Any] = {
        "max_msg_fds": MAX_MSG_FDS,
        "max_data_xfer_size": MAX_DATA_XFER_SIZE,
        "max_dma_maps": min(maps, MAX_DMA_MAPS),
        "pgsizes": PAGE,
        "write_multiple": capabilities.get("write_multiple") is True,
    }
    # "The capability list must be a subset of those proposed."
    answer = {"capabilities": {name: value for name, value in ours.items() if name in capabilities}}
    minor = min(proposed.minor, MINOR)
    head = bytes(VERSION.build({"major": MAJOR, "minor": minor}))
    return Agreement(minor, transfer, descriptors), head + json.dumps(answer).encode() + b"\0"
