# SPDX-License-Identifier: Apache-2.0
"""The memory in which a device keeps what it has in flight, on the control plane: made for the front end, which holds
it while no back end lives, and taken from it again (vhost-user, "Inflight I/O tracking"). What stands in it is read and
written by C (core/inflight.c).
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core
from vhost_scsi.vhost_user.messages import Inflight
from vhost_scsi.vhost_user.rules import ProtocolError, Rule

if TYPE_CHECKING:
    from vhost_scsi._core import CData

FORGOTTEN: Final = 1 << 32
"""in how a queue's start ended: what was kept did not fit the ring"""


def create(num_queues: int, queue_size: int) -> tuple[int, int]:
    """Zeroes with our mark behind them: a descriptor and its size. Nobody can make it shorter under us."""
    size = lib.vs_inflight_size(num_queues, queue_size)
    fd = os.memfd_create("vhost-scsi in flight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        mark = struct.pack("=Q", lib.vs_inflight_magic()) + os.urandom(8)
        os.pwrite(fd, mark, lib.vs_inflight_own_offset(num_queues, queue_size))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd, size


class InflightMemory:
    """Mapped; close it when no ring runs with it."""

    def __init__(self, core: Core, inflight: Inflight, fd: int) -> None:
        out = ffi.new("vs_inflight **")
        err = lib.vs_inflight_open(
            core.handle,
            fd,
            inflight.mmap_size,
            inflight.mmap_offset,
            inflight.num_queues,
            inflight.queue_size,
            out,
        )
        if err:
            what = f"{inflight.mmap_size:#x} bytes at {inflight.mmap_offset:#x}: {os.strerror(-err)}"
            raise ProtocolError(Rule.INFLIGHT_SHAPE, what)
        self.handle: Final[CData] = out[0]
        self.num_queues: Final = inflight.num_queues

    def left(self, ring_features: int) -> set[int]:
        """The queues that a process before us had something in flight of."""
        return {
            index for index in range(self.num_queues) if lib.vs_inflight_left(self.handle, index, ring_features) > 0
        }

    def forget(self, ring_features: int) -> None:
        """The device was reset: nothing is in flight, whatever stands there."""
        lib.vs_inflight_forget(self.handle, ring_features)

    def close(self) -> None:
        lib.vs_inflight_close(self.handle)
