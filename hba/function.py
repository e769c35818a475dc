# SPDX-License-Identifier: Apache-2.0
"""A PCI function in the data plane, typed: the binding of `vs_hba_*` of core/api.h. It decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core
from vhost_scsi.errors import VhostScsiError

if TYPE_CHECKING:
    from vhost_scsi._core import CData

REGIONS: Final = lib.VS_HBA_REGIONS
IRQS: Final = lib.VS_HBA_IRQS


class Chip(IntEnum):
    EXERCISER = lib.VS_HBA_EXERCISER
    LSI53C895A = lib.VS_HBA_LSI53C895A


class Ending(IntEnum):
    """Why a client is over: enum vs_hba_event."""

    PEER_CLOSED = lib.VS_HBA_PEER_CLOSED
    SOCKET_ERROR = lib.VS_HBA_SOCKET_ERROR
    BAD_SIZE = lib.VS_HBA_BAD_SIZE
    BAD_TYPE = lib.VS_HBA_BAD_TYPE
    FDS_LOST = lib.VS_HBA_FDS_LOST
    NO_MEMORY = lib.VS_HBA_NO_MEMORY
    TRUNCATED = lib.VS_HBA_TRUNCATED


@dataclass(frozen=True, slots=True)
class Region:
    """`fd` is the data plane's; -1: the region cannot be mapped."""

    size: int
    flags: int
    fd: int


@dataclass(frozen=True, slots=True)
class Stats:
    reads: int
    writes: int
    interrupts: int
    interrupts_masked: int
    messages: int
    dma_messages: int
    dma_faults: int
    stray_replies: int
    refused: int


class Message:
    """One message for Python, answered exactly once; then its descriptors are closed unless they were taken."""

    def __init__(self, core: Core, handle: CData) -> None:
        self._core = core
        self._handle: CData | None = handle
        info: Any = ffi.new("struct vs_hmsg_info *")
        lib.vs_hmsg_info(handle, info)
        self.command: int = info.command
        self.data = bytes(ffi.buffer(info.data, info.length)) if info.length else b""
        self.nfds: int = info.nfds

    def take_fd(self, index: int) -> int:
        """The caller's from here."""
        assert self._handle is not None
        return lib.vs_hmsg_take_fd(self._handle, index)

    def reply(self, data: bytes = b"", fds: Sequence[int] = ()) -> None:
        self._answer(0, data, fds)

    def refuse(self, code: int) -> None:
        """`code`: an errno. Nothing once it has been answered."""
        if self._handle is not None:
            self._answer(code, b"", ())

    def _answer(self, code: int, data: bytes, fds: Sequence[int]) -> None:
        handle, self._handle = self._handle, None
        assert handle is not None
        # The client is told of an answer that there is no memory for: its connection ends.
        lib.vs_hmsg_reply(self._core.handle, handle, code, data, len(data), list(fds), len(fds))


class Function:
    """Made at once; `await destroy()` in the end, without a client and without windows."""

    def __init__(self, core: Core, chip: Chip, worker: int = 0) -> None:
        self.core: Final = core
        self.cookie: Final = core.cookie()
        params: Any = ffi.new("struct vs_hba_params *")
        params.cookie, params.worker, params.chip = self.cookie, worker, chip
        out = ffi.new("vs_hba **")
        err = lib.vs_hba_create(core.handle, params, out)
        if err:
            raise VhostScsiError(f"cannot make the PCI function {chip.name}: error {-err}")
        self._handle: Final[CData] = out[0]

    def region(self, index: int) -> Region:
        info: Any = ffi.new("struct vs_hba_region_info *")
        if lib.vs_hba_region_info(self._handle, index, info):
            raise IndexError(index)
        return Region(info.size, info.flags, info.fd)

    def irq_count(self, index: int) -> int:
        return lib.vs_hba_irq_count(self._handle, index)

    def stats(self) -> Stats:
        out: Any = ffi.new("struct vs_hba_stats *")
        lib.vs_hba_stats(self._handle, out)
        return Stats(*(getattr(out, name) for name in Stats.__dataclass_fields__))

    def attach(self, fd: int, cookie: int, arrived: Callable[[Message], None], ended: Callable[[Ending], None]) -> None:
        """Serves the client behind `fd`, which is the data plane's from here; OSError when there is one already."""
        self.core.listen(lib.VS_UP_HMSG, cookie, lambda up: arrived(Message(self.core, up.hmsg)))
        self.core.listen(lib.VS_UP_HCONN, cookie, lambda up: ended(Ending(up.aux)))
        err = lib.vs_hba_attach(self._handle, fd, cookie)
        if err:
            self._unlisten(cookie)
            raise OSError(-err, f"the function takes no client: error {-err}")

    async def detach(self, cookie: int) -> None:
        """Returns when the client is gone; every message must be answered for that. Its windows are left."""
        await self.core.message(lambda order: lib.vs_hba_detach(self._handle, order))
        self._unlisten(cookie)

    def _unlisten(self, cookie: int) -> None:
        self.core.unlisten(lib.VS_UP_HMSG, cookie)
        self.core.unlisten(lib.VS_UP_HCONN, cookie)

    async def open(self, max_xfer: int) -> None:
        limit = min(max_xfer, lib.VS_HBA_XFER_MAX)
        await self.core.message(lambda order: lib.vs_hba_open(self._handle, limit, order))

    async def set_windows(self, windows: CData, count: int) -> None:
        """`windows`: an array of struct vs_hba_window."""
        await self.core.message(lambda order: lib.vs_hba_set_windows(self._handle, windows, count, order))

    async def set_irq_fds(self, index: int, start: int, fds: Sequence[int]) -> None:
        """The descriptors are the data plane's from here; -1 takes one away."""
        await self.core.message(
            lambda order: lib.vs_hba_set_irq_fds(self._handle, index, start, len(fds), list(fds), order)
        )

    async def reset(self) -> None:
        """Returns when what the function did has ended; OSError while another reset is under way."""
        reply = await self.core.message(lambda order: lib.vs_hba_reset(self._handle, order))
        if reply.err:
            raise OSError(-reply.err, "a reset is under way")

    async def destroy(self) -> None:
        await self.core.message(lambda order: lib.vs_hba_destroy(self._handle, order))
