# SPDX-License-Identifier: Apache-2.0
"""One logical unit: the SCSI core's object, the data plane's object, and the store below both.

It is defined once and mapped many times. What it decides is `scsi.logical_unit`'s affair.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core, Gate
from vhost_scsi.errors import ConfigError, VhostScsiError
from vhost_scsi.scsi.commands import DeviceType
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.logical_unit import LogicalUnit, LuDefinition
from vhost_scsi.scsi.removable import Drive
from vhost_scsi.scsi.saved_state import SavedState
from vhost_scsi.scsi.sense import CheckCondition
from vhost_scsi.stores import Store, open_store
from vhost_scsi.target.medium import LuSpec, StoreMedium

if TYPE_CHECKING:
    from vhost_scsi._core import CData


@dataclass(frozen=True, slots=True)
class LuStats:
    reads: int
    writes: int
    flushes: int
    unmaps: int
    others: int
    read_bytes: int
    write_bytes: int
    escalated: int
    failed: int
    verifies: int
    verify_bytes: int
    read_errors: int
    write_errors: int
    verify_errors: int
    read_ns: int
    write_ns: int


class Unit:
    """A logical unit of a target. Made by `Target.add_lu`."""

    def __init__(self, core: Core, spec: LuSpec, store: Store | None = None, saved: SavedState | None = None) -> None:
        filled = store is not None
        if store is None:
            if not (spec.removable or spec.device_type is DeviceType.CD_DVD):
                raise ConfigError(f"logical unit {spec.name} has no store, and is not removable")
            store = _nothing(core, spec)
        self.spec: Final = spec
        self.store = store
        self._core = core
        medium = StoreMedium(core, spec, store)
        check_size(spec, store)
        self.cookie: Final = core.cookie()
        out = ffi.new("vs_lu **")
        err = lib.vs_lu_create(core.handle, medium.params(self.cookie), store.handle, out)
        if err:
            raise ConfigError(f"logical unit {spec.name}: the data plane refuses it (error {-err})")
        self.handle: Final[CData] = out[0]
        medium.lu = self.handle
        self._medium = medium
        self.gate: Final[Gate] = core.gate(self.handle)
        is_drive = spec.device_type is DeviceType.CD_DVD
        definition = LuDefinition(
            spec.name,
            spec.uuid,
            vendor=spec.vendor or "VHOST",
            product=spec.product or ("SCSI CD-ROM" if is_drive else "SCSI DISK"),
            revision=spec.revision or "0001",
            serial=spec.serial or "",
            naa=spec.naa,
            eui64=spec.eui64,
            mode_pages=spec.mode_pages,
            vpd_pages=spec.vpd_pages,
            write_cache=spec.write_cache,
            strict=spec.strict,
            wsnz=spec.wsnz,
            cdb32=spec.cdb32,
            overwrite_rate=spec.overwrite_rate,
            retries=spec.retries,
            device_type=spec.device_type,
            removable=spec.removable or is_drive,
            filled=filled,
        )
        self.logical_unit: Final = LogicalUnit(definition, medium, self.gate, saved)
        self._resets = 0
        core.listen(lib.VS_UP_STORE_FAILED, self.cookie, self._store_failed)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def abort_response(self) -> int:
        """How the transport is told of tasks that are ended from outside: by a reset, or by task management."""
        return lib.VS_RESP_RESET if self._resets else lib.VS_RESP_ABORTED

    @contextmanager
    def resetting(self) -> Iterator[None]:
        """What ends meanwhile ends by a reset. May overlap with others of its kind."""
        self._resets += 1
        try:
            yield
        finally:
            self._resets -= 1

    @property
    def uuid(self) -> UUID:
        return self.spec.uuid

    @property
    def block_size(self) -> int:
        return self.logical_unit.medium.block_size

    @property
    def num_blocks(self) -> int:
        """0 where nothing is in the drive"""
        return self.logical_unit.medium.num_blocks if self.drive is None or self.drive.filled else 0

    @property
    def read_only(self) -> bool:
        return self.logical_unit.write_protected

    def stats(self) -> LuStats:
        out: Any = ffi.new("struct vs_lu_stats *")
        lib.vs_lu_stats(self.handle, out)
        return LuStats(*(getattr(out, name) for name in LuStats.__dataclass_fields__))

    def _store_failed(self, up: Any) -> None:
        self._core.log.error(
            "logical unit %s: a flush failed; writes since the last good one may be lost, and every flush fails from "
            "here on until the unit is opened again",
            self.name,
        )

    async def resize(self, size: int = 0) -> int:
        """Gives the store another size, in bytes, or takes over the one that its file has by now (0); returns what it
        has then. Nothing is in flight meanwhile, commands that come wait; every nexus learns of a change (SBC-4 4.7).
        What ends beyond a new end is refused from then on. Raises VhostScsiError, with nothing changed."""
        if size < 0 or size % self.block_size:
            raise ConfigError(
                f"logical unit {self.name}: size {size} is not a multiple of the block size {self.block_size}"
            )
        async with self.logical_unit.held():
            if self.drive is not None and not self.drive.filled:
                raise ConfigError(f"logical unit {self.name} has no medium")
            before = self.num_blocks
            try:
                self.store.resize(size)
            except VhostScsiError as error:
                raise ConfigError(f"logical unit {self.name}: {error}") from None
            self._medium.apply()
            if self.num_blocks != before:
                self._core.log.info("logical unit %s: %d blocks, %d before", self.name, self.num_blocks, before)
                self.logical_unit.capacity_changed()
        return self.num_blocks * self.block_size

    # ---- the medium of a removable unit ----------------------------------------------------------------------------

    @property
    def drive(self) -> Drive | None:
        return self.logical_unit.drive

    def _removable(self) -> Drive:
        if self.drive is None:
            raise ConfigError(f"logical unit {self.name} is not removable")
        return self.drive

    async def eject(self, *, force: bool = False) -> bool:
        """Opens the drive, takes the medium out and closes its store; whether there was one. Raises ConfigError while
        an initiator prevents it, unless `force`: it is told that somebody wants the medium."""
        drive = self._removable()
        async with self.logical_unit.held():
            if drive.locked and not force and not drive.open:
                drive.ask_for_ejection()
                raise ConfigError(
                    f"logical unit {self.name}: its initiator prevents the removal of the medium; it has been asked "
                    "to let go, and --force takes the medium out all the same"
                )
            if self.logical_unit.readiness.operation is not None:
                raise ConfigError(f"logical unit {self.name}: its medium is being formatted or sanitized")
            there = drive.filled
            if there:
                await self._flush_for_the_last_time()
                drive.take_out()
                await self._exchange(_nothing(self._core, self.spec))
            else:
                drive.take_out()
            await drive.keep()
        return there

    async def insert(self, store: Store) -> None:
        """Puts a medium in and closes the drive; it takes the store over. Raises ConfigError (the store is then still
        the caller's) where there is a medium already or the store does not suit the unit."""
        drive = self._removable()
        check_size(self.spec, store)
        async with self.logical_unit.held():
            if drive.present:
                raise ConfigError(f"logical unit {self.name} has a medium: eject it first")
            await self._exchange(store)
            # What a FORMAT UNIT left behind went with its medium.
            self.logical_unit.readiness.end()
            self.logical_unit.read_only_changed()
            drive.put_in()
            await drive.keep()

    async def load(self) -> None:
        """Closes the drive with what lies in it."""
        drive = self._removable()
        async with self.logical_unit.held():
            drive.load()
            await drive.keep()

    async def _flush_for_the_last_time(self) -> None:
        if not self.store.info.read_only and not self.logical_unit.medium.flush_failed:
            try:
                await self.logical_unit.medium.flush()
            except CheckCondition:
                self._core.log.error("logical unit %s: the last flush failed", self.name)

    async def _exchange(self, store: Store) -> None:
        """Nothing is in flight."""
        with suppress(CheckCondition):  # it was logged, and the next change tries again
            await self.logical_unit.marked.forget_all()
        old, self.store, self._medium.store = self.store, store, store
        lib.vs_lu_set_store(self.handle, store.handle)
        self._medium.apply()
        self.gate.open(GateBit.STORE_FAILED)
        old.close()

    async def close(self) -> None:
        """Nothing is mapped any more: ends what is left and destroys the unit and its store."""
        await self.logical_unit.close()
        await self._core.quiesce(lib.vs_lu_pins(self.handle), self)
        await self._flush_for_the_last_time()
        await self.gate.retire()
        self._core.unlisten(lib.VS_UP_STORE_FAILED, self.cookie)
        lib.vs_lu_destroy(self.handle)
        self.store.close()


def _nothing(core: Core, spec: LuSpec) -> Store:
    """What the data plane has in place of a medium; nobody reads it."""
    return open_store(f"null:{spec.block_size}", core)


def check_size(spec: LuSpec, store: Store) -> None:
    """Raises ConfigError for a store that cannot be the unit's."""
    size = store.info.size
    if spec.block_size < 512 or spec.block_size & (spec.block_size - 1) or spec.block_size > 1 << 20:
        raise ConfigError(
            f"logical unit {spec.name}: block size {spec.block_size} is not a power of two from 512 to 1048576"
        )
    if size % spec.block_size:
        raise ConfigError(
            f"logical unit {spec.name}: size {size} is not a multiple of the block size {spec.block_size}; "
            "resize the image or choose another block_size"
        )
    if not size:
        raise ConfigError(f"logical unit {spec.name}: the store is empty")
