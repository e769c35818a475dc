# SPDX-License-Identifier: Apache-2.0
"""The medium of a logical unit: a store as the SCSI core sees it, in blocks, and what the data plane must know of it.

Store errors become sense here for what handlers do themselves; for initiators' reads and writes C has the same map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core
from vhost_scsi.scsi import limits, sense
from vhost_scsi.scsi.commands import DeviceType
from vhost_scsi.scsi.medium import Capabilities, Counts, Extent, Support, Usage
from vhost_scsi.scsi.mode_parameters import GivenPage
from vhost_scsi.scsi.sense import CheckCondition
from vhost_scsi.stores import Store, StoreError

if TYPE_CHECKING:
    from vhost_scsi._core import CData


@dataclass(frozen=True, slots=True)
class LuSpec:
    """What a user says of a logical unit. `block_size` in bytes, a power of two from 512 on; `write_cache` is WCE's
    default; `strict` refuses CDBs with reserved bits; `wsnz` refuses a WRITE SAME of zero blocks, which else goes
    to the end of the medium; `cdb32` serves READ(32) and its like; `overwrite_rate` bounds
    what FORMAT UNIT and SANITIZE write, in bytes a second (0: nothing does). `removable`: its medium can be changed,
    and there may be none at first; a CD or DVD drive (`device_type`) is always like that, has blocks of 2048 bytes and
    only reads. `outstanding` commands may be under way at once, `queue_depth` of one initiator (0: as many). A store
    operation may take `command_timeout` seconds (0: any time), and is tried again `retries` times when it fails. What
    it says of itself: `vendor` to `vpd_pages`, as LuDefinition has them; where there is nothing, it is made up."""

    name: str
    uuid: UUID
    block_size: int = 512
    write_cache: bool = True
    read_only: bool = False
    rotational: bool | None = None
    physical_block_size: int | None = None
    strict: bool = True
    wsnz: bool = True
    cdb32: bool = False
    overwrite_rate: int = 0
    device_type: DeviceType = DeviceType.DISK
    removable: bool = False
    outstanding: int = limits.OUTSTANDING
    queue_depth: int = 0
    command_timeout: int = limits.COMMAND_TIMEOUT
    retries: int = 0
    vendor: str | None = None
    product: str | None = None
    revision: str | None = None
    serial: str | None = None
    naa: bytes = b""
    eui64: bytes = b""
    mode_pages: tuple[GivenPage, ...] = ()
    vpd_pages: tuple[tuple[int, bytes], ...] = ()


@contextmanager
def _as_sense() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise CheckCondition(sense.STORE_ERRORS.get(error.kind.name, sense.INTERNAL_TARGET_FAILURE)) from error


class StoreMedium:
    """`scsi.medium.Medium` over a store and the data plane's logical unit."""

    def __init__(self, core: Core, spec: LuSpec, store: Store) -> None:
        self._core = core
        self._spec = spec
        self.store = store
        self._write_cache = True
        self._descriptor_sense = False
        self._queue_error = False
        self._tell_full = False
        self.lu: CData | None = None

    def _info(self) -> Any:
        info = ffi.new("struct vs_store_info *")
        lib.vs_store_info(self.store.handle, info)
        return info

    @property
    def block_size(self) -> int:
        return self._spec.block_size

    @property
    def num_blocks(self) -> int:
        return int(self._info().size) // self._spec.block_size

    @property
    def read_only(self) -> bool:
        return self._spec.read_only or bool(self._info().read_only)

    @property
    def rotational(self) -> bool:
        return bool(self._info().rotational) if self._spec.rotational is None else self._spec.rotational

    @property
    def capabilities(self) -> Capabilities:
        info = self._info()
        return Capabilities(unmap=Support(info.unmap), zero=Support(info.zero), fua=Support(info.fua))

    @property
    def lbprz(self) -> bool:
        return bool(self._info().unmapped_reads_zero)

    @property
    def physical_block_exponent(self) -> int:
        size = self._spec.physical_block_size or max(self._spec.block_size, self._info().optimal_io or 0)
        exponent = (size // self._spec.block_size).bit_length() - 1
        return min(max(exponent, 0), 15)

    @property
    def unmap_granularity(self) -> int:
        return int(self._info().discard_granularity) // self._spec.block_size

    @property
    def flush_failed(self) -> bool:
        return bool(self._info().failed)

    @property
    def atomic_blocks(self) -> int:
        return int(self._info().atomic_unit) // self._spec.block_size

    # ---- what handlers do to the medium themselves -----------------------------------------------------------------

    async def flush(self) -> None:
        with _as_sense():
            await self.store.flush()

    async def read(self, lba: int, blocks: int) -> bytes:
        with _as_sense():
            return await self.store.read(lba * self.block_size, blocks * self.block_size)

    async def write(self, lba: int, data: bytes) -> None:
        with _as_sense():
            await self.store.write(lba * self.block_size, data)
        # SBC-4 5.44: what was written is no longer marked, whoever wrote it.
        if self.lu is not None:
            lib.vs_lu_clear_bad(self.lu, lba, len(data) // self.block_size)

    async def zero(self, lba: int, blocks: int, *, may_unmap: bool) -> None:
        with _as_sense():
            await self.store.zero(lba * self.block_size, blocks * self.block_size, may_unmap=may_unmap)

    async def unmap(self, lba: int, blocks: int) -> None:
        with _as_sense():
            await self.store.unmap(lba * self.block_size, blocks * self.block_size)

    def map(self, lba: int, blocks: int) -> Extent | None:
        size = self.block_size
        found = self.store.map(lba * size, blocks * size)
        if found is None:
            return None
        # A block of which some part is allocated is mapped.
        whole, rest = divmod(found.length, size)
        if found.mapped:
            return Extent(True, whole + bool(rest))
        return Extent(False, whole) if whole else Extent(True, 1)

    def usage(self) -> Usage | None:
        found, size = self.store.usage(), self.block_size
        if found is None:
            return None
        # What is taken in part is taken.
        return Usage(-(-found.used // size), found.available // size, found.shared)

    def mark_bad(self, lba: int) -> bool:
        return self.lu is not None and lib.vs_lu_mark_bad(self.lu, lba) == 0

    def bad_blocks(self) -> list[int]:
        if self.lu is None:
            return []
        out = ffi.new("uint64_t[]", lib.VS_BAD_MAX)
        return sorted(out[i] for i in range(lib.vs_lu_bad(self.lu, out, lib.VS_BAD_MAX)))

    def clear_bad(self, lba: int, blocks: int) -> None:
        if self.lu is not None:
            lib.vs_lu_clear_bad(self.lu, lba, blocks)

    def counts(self) -> Counts:
        out: Any = ffi.new("struct vs_lu_stats *")
        if self.lu is not None:
            lib.vs_lu_stats(self.lu, out)
        return Counts(**{name: getattr(out, name) for name in Counts.__dataclass_fields__})

    # ---- what C must know ------------------------------------------------------------------------------------------

    def set_write_cache(self, enabled: bool) -> None:
        self._write_cache = enabled
        self.apply()

    def set_descriptor_sense(self, enabled: bool) -> None:
        self._descriptor_sense = enabled
        self.apply()

    def set_queue_error(self, enabled: bool) -> None:
        self._queue_error = enabled
        self.apply()

    def set_tell_full(self, enabled: bool) -> None:
        self._tell_full = enabled
        self.apply()

    def params(self, cookie: int = 0) -> Any:
        """What C must know of the unit now."""
        out = ffi.new("struct vs_lu_params *")
        out.num_blocks = self.num_blocks
        out.cookie = cookie
        out.block_size = self.block_size
        out.max_unmap_blocks = limits.UNMAP_BLOCKS
        out.max_unmap_descriptors = limits.UNMAP_DESCRIPTORS
        out.max_write_same_blocks = min(limits.WRITE_SAME_BYTES // self.block_size, 0xFFFFFFFF)
        out.max_transfer_blocks = limits.TRANSFER_BYTES // self.block_size
        out.max_atomic_blocks = min(self.atomic_blocks, out.max_transfer_blocks)
        out.lenient = not self._spec.strict
        out.wsnz = self._spec.wsnz
        out.cdb32 = self._spec.cdb32
        out.write_cache = self._write_cache
        out.descriptor_sense = self._descriptor_sense
        out.queue_error = self._queue_error
        out.tell_full = self._tell_full
        out.max_outstanding = self._spec.outstanding
        out.queue_depth = self._spec.queue_depth
        out.timeout_ms = self._spec.command_timeout * 1000
        out.retries = self._spec.retries
        out.unmap = self.capabilities.unmap is not Support.NONE
        return out

    def apply(self) -> None:
        if self.lu is not None:
            lib.vs_lu_update(self.lu, self.params())
