# SPDX-License-Identifier: Apache-2.0
"""The client's memory as it was mapped by DMA_MAP: windows of its address space, some with a descriptor.

Each window has a map of its own, whose pins are those of the requests that use it: taking a window away waits for
these and for no other. What is taken away in vain (the client went meanwhile) is waited for when all is.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vhost_scsi._core import ffi, lib
from vhost_scsi.hba.function import Function
from vhost_scsi.hba.messages import PAGE, DmaFlag, DmaMap, Refused

if TYPE_CHECKING:
    from vhost_scsi._core import CData

ADDRESS_SPACE = 1 << 64


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """`direct`: mapped here; else its bytes are asked for by messages. `map` is a vs_memmap."""

    address: int
    size: int
    flags: DmaFlag
    direct: bool
    map: CData


class Windows:
    def __init__(self, function: Function) -> None:
        self._function = function
        self._core = function.core
        self._present: dict[int, Window] = {}
        self._leaving: list[Window] = []

    def __len__(self) -> int:
        return len(self._present)

    async def add(self, wanted: DmaMap, fd: int) -> None:
        """Maps a window; `fd` is closed here, -1: there is none. Refused when it cannot be."""
        try:
            self._check(wanted)
            flags = DmaFlag(wanted.flags)
            direct = fd >= 0 and _may_write(fd)
            window = Window(wanted.address, wanted.size, flags, direct, self._map(wanted, fd if direct else -1))
        finally:
            if fd >= 0:
                os.close(fd)
        self._present[window.address] = window
        try:
            await self._tell()
        except OSError as error:
            del self._present[window.address]
            self._leaving.append(window)
            raise Refused(error.errno or errno.EIO, f"window at {wanted.address:#x}") from error

    async def remove(self, address: int, size: int) -> None:
        """Returns when nothing uses the window any more. Refused: there is no such one."""
        window = self._present.get(address)
        if window is None or window.size != size:
            raise Refused(errno.ENOENT, f"no window of {size:#x} bytes at {address:#x}")
        await self._remove([window])

    async def clear(self) -> None:
        """All of them, and those that were left over; returns when nothing uses any."""
        await self._remove(list(self._present.values()))

    async def _remove(self, windows: Iterable[Window]) -> None:
        for window in windows:
            del self._present[window.address]
            self._leaving.append(window)
        await self._tell()
        # One at a time comes here: messages are answered in order, and `clear` is called when none is left.
        while self._leaving:
            window = self._leaving[0]
            await self._core.quiesce(lib.vs_memmap_pins(window.map), window)
            lib.vs_memmap_destroy(self._leaving.pop(0).map)

    def _check(self, wanted: DmaMap) -> None:
        where = f"window of {wanted.size:#x} bytes at {wanted.address:#x}"
        if wanted.flags & ~int(DmaFlag.READ | DmaFlag.WRITE):
            raise Refused(errno.EINVAL, f"{where}: flags {wanted.flags:#x}")
        if not wanted.size or wanted.address + wanted.size > ADDRESS_SPACE:
            raise Refused(errno.EINVAL, f"{where}: empty, or over the end of the address space")
        if wanted.address % PAGE or wanted.size % PAGE:
            raise Refused(errno.EINVAL, f"{where}: no multiples of {PAGE}, the page size that was agreed upon")
        if len(self._present) >= lib.VS_HBA_WINDOWS_MAX:
            raise Refused(errno.ENOSPC, f"{where}: there are {len(self._present)} already")
        end = wanted.address + wanted.size
        if any(each.address < end and wanted.address < each.address + each.size for each in self._present.values()):
            # "A command to map over an existing region must be failed by the server with EEXIST"
            raise Refused(errno.EEXIST, f"{where}: over another one")

    def _map(self, wanted: DmaMap, fd: int) -> CData:
        region: Any = ffi.new("struct vs_region[1]")
        region[0].guest_addr = region[0].user_addr = wanted.address
        region[0].size, region[0].mmap_offset, region[0].fd = wanted.size, wanted.offset, fd
        out = ffi.new("vs_memmap **")
        err = lib.vs_memmap_create(self._core.handle, region, 1 if fd >= 0 else 0, ffi.NULL, self._core.cookie(), out)
        if err:
            raise Refused(-err, f"window of {wanted.size:#x} bytes at {wanted.address:#x}: cannot be mapped")
        created: CData = out[0]
        return created

    async def _tell(self) -> None:
        table: Any = ffi.new("struct vs_hba_window[]", max(1, len(self._present)))
        for entry, window in zip(table, self._present.values(), strict=False):
            entry.addr, entry.size, entry.map = window.address, window.size, window.map
            entry.flags = int(window.flags) | (lib.VS_HBA_DIRECT if window.direct else 0)
        # The table is copied in the call; the reply comes also to somebody who has gone meanwhile.
        await asyncio.shield(self._function.set_windows(table, len(self._present)))


def _may_write(fd: int) -> bool:
    """A read-only file cannot be mapped the way guest memory is; its bytes can still be asked for."""
    return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
