# SPDX-License-Identifier: Apache-2.0
"""An open store as the control plane holds it: what it can do, what it did, and byte I/O for those who are not in a
hurry (the contract suite, tools). Initiators' I/O never passes here.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core
from vhost_scsi.errors import VhostScsiError
from vhost_scsi.stores.errors import StoreConfigError, StoreError, StoreErrorKind, StoreInUse

if TYPE_CHECKING:
    from vhost_scsi._core import CData

OPERATIONS: Final = ("read", "write", "flush", "unmap", "zero")
"""names of `enum vs_io_op`, in its order"""
WHY_SIZE: Final = 512


class Capability(IntEnum):
    NONE = 0
    EMULATED = 1
    NATIVE = 2


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """Sizes in bytes; `io_align`: smallest unit of direct I/O; `atomic_unit`: what one write moves as a whole or not at
    all; 0 where something is not known."""

    size: int
    io_align: int
    optimal_io: int
    discard_granularity: int
    atomic_unit: int
    read_only: bool
    fua: Capability
    unmap: Capability
    zero: Capability
    unmapped_reads_zero: bool
    rotational: bool
    volatile_cache: bool
    failed: bool


@dataclass(frozen=True, slots=True)
class StoreStats:
    """By name of the operation (`OPERATIONS`)."""

    ops: dict[str, int]
    bytes: dict[str, int]
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Extent:
    """The state of the first `length` bytes of what was asked about."""

    mapped: bool
    length: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes, as the store estimates them. `shared`: others take from what is available, too."""

    used: int
    available: int
    shared: bool


def create(call: Callable[[CData, CData, int], int]) -> CData:
    """Calls one of `vs_store_*(..., out, why, why_size)`. Raises StoreConfigError with the line that C wrote."""
    out = ffi.new("vs_store **")
    why = ffi.new("char[]", WHY_SIZE)
    err = call(out, why, WHY_SIZE)
    if err:
        line = ffi.string(why).decode(errors="replace")
        raise StoreInUse(line) if err == -errno.EWOULDBLOCK else StoreConfigError(line)
    handle: CData = out[0]
    return handle


class Store:
    """Owns the store below it: closing the top closes all. `handle` is the `vs_store *`."""

    def __init__(self, core: Core, handle: CData, lower: Store | None = None) -> None:
        self.core: Final = core
        self.handle: Final = handle
        self.lower: Final = lower
        self._closed = False
        self._when_closed: list[Callable[[], None]] = []
        if lower is not None:
            lower._closed = True
            self._when_closed += lower._when_closed

    def when_closed(self, call: Callable[[], None]) -> None:
        self._when_closed.append(call)

    def close(self) -> None:
        """No logical unit uses it any more, nothing is in flight."""
        if self._closed:
            return
        self._closed = True
        lib.vs_store_destroy(self.handle)
        for call in self._when_closed:
            call()

    @property
    def kind(self) -> str:
        return ffi.string(lib.vs_store_kind(self.handle)).decode()

    @property
    def info(self) -> StoreInfo:
        out: Any = ffi.new("struct vs_store_info *")
        lib.vs_store_info(self.handle, out)
        return StoreInfo(
            size=out.size,
            io_align=out.io_align,
            optimal_io=out.optimal_io,
            discard_granularity=out.discard_granularity,
            atomic_unit=out.atomic_unit,
            read_only=bool(out.read_only),
            fua=Capability(out.fua),
            unmap=Capability(out.unmap),
            zero=Capability(out.zero),
            unmapped_reads_zero=bool(out.unmapped_reads_zero),
            rotational=bool(out.rotational),
            volatile_cache=bool(out.volatile_cache),
            failed=bool(out.failed),
        )

    @property
    def stats(self) -> StoreStats:
        out: Any = ffi.new("struct vs_store_stats *")
        lib.vs_store_stats(self.handle, out)
        return StoreStats(
            *({name: counts[op] for op, name in enumerate(OPERATIONS)} for counts in (out.ops, out.bytes, out.errors))
        )

    def resize(self, size: int = 0) -> int:
        """The new size. 0: reads a file's size anew. The caller has fenced all I/O."""
        err = lib.vs_store_resize(self.handle, size)
        if err:
            raise VhostScsiError(f"{self.kind}: cannot be resized to {size} bytes: {os.strerror(-err)}")
        return self.info.size

    def map(self, offset: int, length: int) -> Extent | None:
        """None: the store does not know what is allocated."""
        mapped: Any = ffi.new("int *")
        run: Any = ffi.new("uint64_t *")
        err = lib.vs_store_map(self.handle, offset, length, mapped, run)
        if err == -errno.ENOTSUP:
            return None
        if err:
            raise VhostScsiError(f"{self.kind}: {os.strerror(-err)}")
        return Extent(bool(mapped[0]), run[0])

    def usage(self) -> Usage | None:
        """What is taken up; None: the store does not know. Costs no walk through the map."""
        out: Any = ffi.new("struct vs_store_usage *")
        err = lib.vs_store_usage(self.handle, out)
        if err == -errno.ENOTSUP:
            return None
        if err:
            raise VhostScsiError(f"{self.kind}: {os.strerror(-err)}")
        return Usage(out.used, out.available, bool(out.shared))

    # ---- byte I/O: each raises StoreError ---------------------------------------------------------------------------

    async def read(self, offset: int, length: int, *, worker: int = 0) -> bytes:
        buffer = ffi.new("uint8_t[]", max(length, 1))
        await self._submit(lib.VS_IO_READ, 0, offset, length, buffer, worker)
        return bytes(ffi.buffer(buffer, length))

    async def write(self, offset: int, data: bytes, *, fua: bool = False, worker: int = 0) -> None:
        buffer = ffi.new("uint8_t[]", max(len(data), 1))
        ffi.memmove(buffer, data, len(data))
        await self._submit(lib.VS_IO_WRITE, _flags(fua), offset, len(data), buffer, worker)

    async def flush(self, *, worker: int = 0) -> None:
        await self._submit(lib.VS_IO_FLUSH, 0, 0, 0, ffi.NULL, worker)

    async def unmap(self, offset: int, length: int, *, worker: int = 0) -> None:
        await self._submit(lib.VS_IO_UNMAP, 0, offset, length, ffi.NULL, worker)

    async def zero(
        self, offset: int, length: int, *, fua: bool = False, may_unmap: bool = False, worker: int = 0
    ) -> None:
        flags = _flags(fua) | (lib.VS_IO_MAY_UNMAP if may_unmap else 0)
        await self._submit(lib.VS_IO_ZERO, flags, offset, length, ffi.NULL, worker)

    async def _submit(self, op: int, flags: int, offset: int, length: int, buffer: CData, worker: int) -> None:
        def send(cookie: int) -> int:
            return lib.vs_store_submit_control(
                self.core.handle, self.handle, worker, op, flags, offset, length, buffer, cookie
            )

        # Shielded: if the caller is cancelled, the worker still has the buffer, and `send` keeps it alive.
        reply = await asyncio.shield(asyncio.ensure_future(self.core.message(send)))
        if reply.err:
            raise StoreError(StoreErrorKind(-reply.err))


def _flags(fua: bool) -> int:
    return lib.VS_IO_FUA if fua else 0
