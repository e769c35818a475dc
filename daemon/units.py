# SPDX-License-Identifier: Apache-2.0
"""From a logical unit's configuration to its open store: which store that is, whether somebody else has it, and what
makes it the same store next time.

The stores themselves, and the grammar of their names, are `vhost_scsi.stores`.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from vhost_scsi.daemon import unit_pages
from vhost_scsi.daemon.config import LuConfig, store_spec
from vhost_scsi.dataplane import Core
from vhost_scsi.errors import ConfigError
from vhost_scsi.scsi.commands import DeviceType
from vhost_scsi.stores import Store, StoreInUse, StoreSpec, open_store_when_free
from vhost_scsi.target import LuSpec

LOG: Final = logging.getLogger("vhost_scsi.control")
# After kill -9 the kernel still ends the old process's I/O, and keeps its lock meanwhile; a person who started the
# program twice should not have to wait much longer than that.
LOCK_PATIENCE: Final = 3.0  # seconds


async def open_unit_store(core: Core, name: str, lu: LuConfig) -> Store:
    """The open store of the unit `name`; the caller owns it. Waits a moment for a lock."""

    def waits(why: StoreInUse) -> None:
        LOG.info("logical unit %s: %s; waiting up to %g s for it to go", name, why, LOCK_PATIENCE)

    try:
        return await open_store_when_free(store_spec(lu), core, LOCK_PATIENCE, waits)
    except ConfigError as error:
        raise type(error)(f"logical unit {name}: {error}") from None


def spec(name: str, lu: LuConfig, uuid: UUID) -> LuSpec:
    """The unit as the target is told of it."""
    is_drive = lu.type == "cdrom"
    return LuSpec(
        name=name,
        uuid=uuid,
        block_size=lu.block_bytes,
        write_cache=lu.wce,
        read_only=lu.readonly or is_drive,
        rotational=lu.rotational,
        physical_block_size=lu.physical_block_size,
        strict=lu.strict,
        wsnz=lu.wsnz,
        cdb32=lu.cdb32,
        overwrite_rate=lu.overwrite_rate,
        outstanding=lu.outstanding,
        queue_depth=lu.queue_depth,
        command_timeout=lu.command_timeout,
        retries=lu.retries,
        device_type=DeviceType.CD_DVD if is_drive else DeviceType.DISK,
        removable=lu.has_drive,
        vendor=lu.vendor,
        product=lu.product,
        revision=lu.revision,
        serial=lu.serial,
        naa=bytes.fromhex(lu.naa or ""),
        eui64=bytes.fromhex(lu.eui64 or ""),
        mode_pages=tuple(unit_pages.mode_page(text) for text in lu.mode_pages),
        vpd_pages=tuple(unit_pages.vpd_page(text) for text in lu.vpd_pages),
    )


def unit_identity(name: str, lu: LuConfig) -> str:
    """As `identity`; a unit whose medium comes and goes is the same one with any."""
    return f"drive:{name}" if lu.has_drive else identity(store_spec(lu))


def identity(spec: StoreSpec) -> str:
    """What makes a store the same one: a file is where it really is, however it was spelled, wrapped or cached."""
    bottom = _bottom(spec)
    return file_identity(bottom.target) if bottom.kind == "file" else f"{bottom.kind}:{bottom.target}"


def file_identity(path: str) -> str:
    """The resolved path of a file; a device's numbers."""
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
    except OSError:
        return f"file:{real}"
    if stat.S_ISBLK(status.st_mode):
        return f"device:{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return f"file:{real}"


def check_shared(units: Mapping[str, LuConfig]) -> None:
    """Refuses two units on one file of which one writes: each believes that its blocks are its own."""
    seen: dict[str, tuple[str, bool]] = {}
    for name, lu in units.items():
        if lu.empty:
            continue
        spec = store_spec(lu)
        bottom = _bottom(spec)
        if bottom.kind != "file" or bottom.groups[0].get("lock") == "off":
            continue
        key, writes = file_identity(bottom.target), _writes(spec)
        other, other_writes = seen.setdefault(key, (name, writes))
        if other != name and (writes or other_writes):
            raise ConfigError(
                f"logical units {other} and {name} are both on {bottom.target}: map one unit twice, "
                "or open the file read-only in both"
            )


def _bottom(spec: StoreSpec) -> StoreSpec:
    while spec.lower is not None:
        spec = spec.lower
    return spec


def _writes(spec: StoreSpec) -> bool:
    """Whether the file at the bottom is opened for writing: an overlay only reads it."""
    while spec.lower is not None:
        if spec.kind == "overlay":
            return False
        spec = spec.lower
    return spec.groups[0].get("readonly", "off") not in ("on", "yes", "true")
