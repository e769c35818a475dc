# SPDX-License-Identifier: Apache-2.0
"""Blobs in the state directory: for each logical unit, by its UUID, named bytes that outlive the process and the power.

A blob is one file, replaced as a whole: written beside, made durable, renamed, and the rename made durable. After a
crash at any moment the old one is there or the new one. Its header has a version and a checksum, so that what a disk
made of it later is found out. It does not know what is in a blob; identities of units are `state`'s.

    UNITS/<uuid>/<name>         a blob
    UNITS/<uuid>/<name>.new     one that was being written
    UNITS/<uuid>/lock           held by the process that writes
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from uuid import UUID

from construct import Bytes, Const, ConstructError, GreedyBytes, Int16ub, Int32ub, Struct

from vhost_scsi.daemon import durable
from vhost_scsi.errors import ConfigError
from vhost_scsi.scsi.saved_state import SavedStateDamaged, SavedStateError

UNITS: Final = "units"
LOCK: Final = "lock"
FRESH: Final = ".new"
VERSION: Final = 1
MAX_BLOB: Final = 16 << 20
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")

BLOB: Final = Struct(
    "magic" / Const(b"vhost-scsi state"),
    "version" / Int16ub,
    "digest" / Bytes(32),
    "length" / Int32ub,
    "data" / GreedyBytes,
)


def _digest(name: str, data: bytes) -> bytes:
    # With the name: a file that was copied over another one is not that other one's content.
    return hashlib.sha256(name.encode() + b"\0" + data).digest()


def pack(name: str, data: bytes) -> bytes:
    """The file of a blob."""
    built: bytes = BLOB.build(
        {"version": VERSION, "digest": _digest(name, data), "length": len(data), "data": data},
    )
    return built


def unpack(name: str, raw: bytes) -> bytes:
    """The blob of a file. Raises ValueError, in words."""
    try:
        parsed = BLOB.parse(raw)
    except ConstructError:
        raise ValueError("it is no state file") from None
    if parsed.version != VERSION:
        raise ValueError(f"its version is {parsed.version}, not {VERSION}")
    data: bytes = parsed.data
    if len(data) != parsed.length or _digest(name, data) != parsed.digest:
        raise ValueError("its checksum is wrong")
    return data


class BlobDirectory:
    """The blobs of one directory, synchronously. Nothing is made before there is something to keep. Raises OSError."""

    def __init__(self, directory: Path) -> None:
        self.directory: Final = directory
        self._lock: int | None = None

    def read(self, name: str) -> bytes | None:
        """The file as it is; None where there is none."""
        try:
            fd = os.open(self.directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            return file.read(MAX_BLOB + 1)

    def names(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self.directory) if name != LOCK and _NAME.fullmatch(name))
        except FileNotFoundError:
            return []

    def claim(self) -> bool:
        """Becomes the one writer, as long as this process lives or until `close`. False: another process is it."""
        if self._lock is not None:
            return True
        durable.make_directory(self.directory)
        fd = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock = fd
        return True

    def write(self, name: str, raw: bytes) -> None:
        """Durable on return. The caller is the writer."""
        durable.replace(self.directory / name, raw, fresh=self.directory / f"{name}{FRESH}")

    def remove(self, name: str) -> None:
        """As `write`; no error if it is not there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.directory / name)
            durable.sync_directory(self.directory)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class UnitState:
    """`scsi.saved_state.SavedState` of one logical unit. Made by `StateDirectory.unit`."""

    durable = True

    def __init__(self, owner: StateDirectory, directory: Path, raws: dict[str, bytes]) -> None:
        self._owner = owner
        self._blobs = BlobDirectory(directory)
        self._raws = raws
        """the files as they were read or written last"""
        self._ours = False

    def path(self, name: str) -> Path:
        return self._blobs.directory / name

    def get(self, name: str) -> bytes | None:
        raw = self._raws.get(name)
        if raw is None:
            return None
        try:
            return unpack(name, raw)
        except ValueError as error:
            raise SavedStateDamaged(f"{self.path(name)}: {error}") from None

    async def put(self, name: str, data: bytes | None) -> None:
        if not _NAME.fullmatch(name) or name == LOCK:
            raise ValueError(f"{name!r} is no name of a blob")
        if data is not None and len(data) > MAX_BLOB // 2:
            raise SavedStateError(f"{self.path(name)}: {len(data)} bytes are too many")
        raw = None if data is None else pack(name, data)
        await self._owner.run(lambda: self._put(name, raw))

    def _put(self, name: str, raw: bytes | None) -> None:
        """In the writing thread."""
        try:
            self._claim()
            if raw is None:
                self._blobs.remove(name)
                self._raws.pop(name, None)
            else:
                self._blobs.write(name, raw)
                self._raws[name] = raw
        except OSError as error:
            raise SavedStateError(f"{self.path(name)}: {error.strerror}") from error

    def _claim(self) -> None:
        if self._ours:
            return
        if not self._blobs.claim():
            raise SavedStateError(f"{self._blobs.directory}: another process keeps the state of this logical unit")
        # Somebody may have written and gone since we read: then what we know is not what counts.
        found = {name: self._blobs.read(name) for name in self._blobs.names()}
        if found != self._raws:
            self._blobs.close()
            raise SavedStateError(f"{self._blobs.directory}: another process has changed it meanwhile")
        self._ours = True

    def close(self) -> None:
        self._blobs.close()
        self._ours = False


class StateDirectory:
    """All blobs of a daemon. File work goes on in one thread of its own, in the order in which it was asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory: Final = directory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._units: list[UnitState] = []

    async def unit(self, uuid: UUID) -> UnitState:
        """What is kept of that logical unit. Raises ConfigError if it cannot be read; a damaged blob is told by `get`,
        because what its loss means is for its owner to say."""
        directory = self.directory / UNITS / str(uuid)
        blobs = BlobDirectory(directory)

        def read() -> dict[str, bytes]:
            found = {name: blobs.read(name) for name in blobs.names()}
            return {name: raw for name, raw in found.items() if raw is not None}

        try:
            raws = await asyncio.get_running_loop().run_in_executor(self._thread, read)
        except OSError as error:
            raise ConfigError(f"state directory: {directory}: {error.strerror}") from error
        state = UnitState(self, directory, raws)
        self._units.append(state)
        return state

    async def run(self, work: Callable[[], None]) -> None:
        # Shielded: who gives up waiting must not stop a file half-way between two names.
        await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    async def close(self) -> None:
        """Everything that was put is durable; the next process may write."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        for unit in self._units:
            unit.close()
