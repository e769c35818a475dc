# SPDX-License-Identifier: Apache-2.0
"""One logical unit: the SCSI core's object, the data plane's object, and the store below both.

It is defined once and mapped many times. What it decides is `scsi.logical_unit`'s affair.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core, Gate
from vhost_scsi.errors import ConfigError, VhostScsiError
from vhost_scsi.scsi.logical_unit import LogicalUnit, LuDefinition
from vhost_scsi.scsi.saved_state import SavedState
from vhost_scsi.scsi.sense import CheckCondition
from vhost_scsi.stores import Store
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


class Unit:
    """A logical unit of a target. Made by `Target.add_lu`."""

    def __init__(self, core: Core, spec: LuSpec, store: Store, saved: SavedState | None = None) -> None:
        self.spec: Final = spec
        self.store: Final = store
        self._core = core
        medium = StoreMedium(core, spec, store)
        _check_size(spec, store, medium)
        self.cookie: Final = core.cookie()
        out = ffi.new("vs_lu **")
        err = lib.vs_lu_create(core.handle, medium.params(self.cookie), store.handle, out)
        if err:
            raise ConfigError(f"logical unit {spec.name}: the data plane refuses it (error {-err})")
        self.handle: Final[CData] = out[0]
        medium.lu = self.handle
        self._medium = medium
        self.gate: Final[Gate] = core.gate(self.handle)
        definition = LuDefinition(
            spec.name,
            spec.uuid,
            write_cache=spec.write_cache,
            strict=spec.strict,
            wsnz=spec.wsnz,
            cdb32=spec.cdb32,
            overwrite_rate=spec.overwrite_rate,
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
        return self.logical_unit.medium.num_blocks

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

    async def close(self) -> None:
        """Nothing is mapped any more: ends what is left and destroys the unit and its store."""
        await self.logical_unit.close()
        await self._core.quiesce(lib.vs_lu_pins(self.handle), self)
        if not self.store.info.read_only and not self.logical_unit.medium.flush_failed:
            try:
                await self.logical_unit.medium.flush()
            except CheckCondition:
                self._core.log.error("logical unit %s: the last flush failed", self.name)
        await self.gate.retire()
        self._core.unlisten(lib.VS_UP_STORE_FAILED, self.cookie)
        lib.vs_lu_destroy(self.handle)
        self.store.close()


def _check_size(spec: LuSpec, store: Store, medium: StoreMedium) -> None:
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
