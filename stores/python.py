# SPDX-License-Identifier: Apache-2.0
"""`python:MODULE:CLASS[,name=value...]`: a store written in Python, on the class `PythonStore`; and what carries ios to
it. The other half is core/store_python.c: every SCSI media command works on such a store, at Python's speed.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core
from vhost_scsi.stores.errors import StoreConfigError, StoreError, StoreErrorKind
from vhost_scsi.stores.kind import Opening, StoreKind
from vhost_scsi.stores.store import Capability, Store, create

if TYPE_CHECKING:
    from vhost_scsi._core import CData

LOG: Final = logging.getLogger("vhost_scsi.data")
AT_ONCE: Final = 64
"""ios that are in one store's hands; the rest waits without being copied"""
ZERO_CHUNK: Final = 1 << 20


class PythonStore:
    """Base of stores written in Python. Set `size`; write `read` and `write`; the rest as you can.

    Methods run on the control plane's loop: they must not block it (`asyncio.to_thread` for what blocks). Several are
    under way at once. They raise StoreError; any other exception is logged and counts as INTERNAL.
    """

    size: int = 0
    """bytes; fixed while the store is open"""
    read_only: bool = False
    unmapped_reads_zero: bool = False
    """what was unmapped reads as zeroes"""

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        raise NotImplementedError

    async def write(self, offset: int, data: bytes) -> None:
        raise NotImplementedError

    async def flush(self) -> None:
        """When it returns, every write that had ended before it began survives whatever this store promises to."""

    async def unmap(self, offset: int, length: int) -> None:
        """The bytes are not needed any more. Not offered to initiators unless it is overridden."""
        raise StoreError(StoreErrorKind.UNSUPPORTED)

    async def zero(self, offset: int, length: int, *, may_unmap: bool) -> None:
        """The bytes read as zeroes from now on."""
        end = offset + length
        while offset < end:
            n = min(ZERO_CHUNK, end - offset)
            await self.write(offset, bytes(n))
            offset += n

    def close(self) -> None:
        """Called once; nothing is under way."""

    def overrides(self, name: str) -> bool:
        return getattr(type(self), name) is not getattr(PythonStore, name)


class _Server:
    """Takes ios from the data plane, lets the store carry them out, and posts what came of it in batches."""

    def __init__(self, core: Core, python: PythonStore) -> None:
        self._core = core
        self._python = python
        self._waiting: deque[CData] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._ended: list[tuple[CData, bytes, int]] = []
        self._post_due = False
        self._logged_at = float("-inf")

    def arrived(self, up: Any) -> None:
        self._waiting.append(up.io)
        self._start()

    def _start(self) -> None:
        while self._waiting and len(self._running) < AT_ONCE:
            task = asyncio.get_running_loop().create_task(self._serve(self._waiting.popleft()))
            self._running.add(task)
            task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start()

    async def _serve(self, io: CData) -> None:
        data, error = b"", int(StoreErrorKind.ABORTED)
        try:
            data = await self._carry_out(io)
            error = 0
        except StoreError as failure:
            error = int(failure.kind)
        except Exception:
            error = int(StoreErrorKind.INTERNAL)
            self._log_failure()
        finally:
            # Also when the task is cancelled: C waits for every io.
            self._ended.append((io, data, error))
            if not self._post_due:
                self._post_due = True
                asyncio.get_running_loop().call_soon(self._post)

    async def _carry_out(self, io: CData) -> bytes:
        info: Any = ffi.new("struct vs_io_info *")
        lib.vs_io_info(io, info)
        op, flags, offset, length = info.op, info.flags, info.offset, info.length
        python = self._python
        if op == lib.VS_IO_READ:
            data = await python.read(offset, length)
            if len(data) != length:
                raise ValueError(f"read({offset}, {length}) returned {len(data)} bytes")
            return bytes(data)
        if op == lib.VS_IO_WRITE:
            buffer = ffi.new("uint8_t[]", length)
            await python.write(offset, bytes(ffi.buffer(buffer, lib.vs_io_gather(io, buffer, length))))
        elif op == lib.VS_IO_UNMAP:
            await python.unmap(offset, length)
        elif op == lib.VS_IO_ZERO:
            await python.zero(offset, length, may_unmap=bool(flags & lib.VS_IO_MAY_UNMAP))
        if op == lib.VS_IO_FLUSH or flags & lib.VS_IO_FUA:
            await python.flush()
        return b""

    def _log_failure(self) -> None:
        now = time.monotonic()
        if now - self._logged_at >= 1:
            self._logged_at = now
            LOG.exception("the store %s failed", type(self._python).__qualname__)

    def _post(self) -> None:
        self._post_due = False
        ended, self._ended = self._ended, []
        results: Any = ffi.new("struct vs_io_result[]", len(ended))
        blob = b"".join(data for _, data, _ in ended)
        at = 0
        for result, (io, data, error) in zip(results, ended, strict=True):
            result.io = io
            result.error = error
            result.data_offset = at
            result.data_length = len(data)
            at += len(data)
        c_blob = ffi.from_buffer(blob) if blob else ffi.NULL
        lib.vs_core_post_io(self._core.handle, results, len(ended), c_blob, len(blob))


def serve(core: Core, python: PythonStore) -> Store:
    """The store that initiators see over one written in Python."""
    info: Any = ffi.new("struct vs_store_info *")
    info.size = python.size
    info.io_align = 1
    info.read_only = python.read_only
    info.fua = Capability.EMULATED
    info.unmap = Capability.NATIVE if python.overrides("unmap") else Capability.NONE
    info.zero = Capability.NATIVE if python.overrides("zero") else Capability.EMULATED
    info.unmapped_reads_zero = python.unmapped_reads_zero
    info.volatile_cache = python.overrides("flush")
    cookie = core.cookie()
    handle = create(lambda out, why, room: lib.vs_store_python(core.handle, info, cookie, out, why, room))
    core.listen(lib.VS_UP_STORE_IO, cookie, _Server(core, python).arrived)
    store = Store(core, handle)
    store.when_closed(lambda: core.unlisten(lib.VS_UP_STORE_IO, cookie))
    store.when_closed(python.close)
    return store


def _open(opening: Opening) -> Store:
    module_name, _, class_name = opening.target.partition(":")
    name = f"python:{opening.target}"
    if not module_name or not class_name:
        raise StoreConfigError(f"{name}: write python:MODULE:CLASS")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise StoreConfigError(f"{name}: {error}") from error
    if not isinstance(found, type) or not issubclass(found, PythonStore):
        raise StoreConfigError(f"{name}: {class_name} is not a PythonStore")
    try:
        python = found(**opening.options)
    except (TypeError, ValueError) as error:
        raise StoreConfigError(f"{name}: {error}") from error
    return serve(opening.core, python)


KIND = StoreKind("python", "object", None, _open)
