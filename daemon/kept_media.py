# SPDX-License-Identifier: Apache-2.0
"""What lies in drives over a restart: a medium that was put in (or taken out) at run time is there again, as long as
the configuration says of the drive what it said then. Whether the drive is open or locked is `scsi.removable`'s affair.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from vhost_scsi.daemon import units
from vhost_scsi.daemon.config import LuConfig
from vhost_scsi.dataplane import Core
from vhost_scsi.errors import ConfigError
from vhost_scsi.scsi import removable
from vhost_scsi.scsi.saved_state import SavedState, SavedStateDamaged, SavedStateError

LOG: Final = logging.getLogger("vhost_scsi.control")
BLOB: Final = "medium"


def _medium(lu: LuConfig) -> dict[str, Any]:
    return {"url": lu.url, "store": lu.store}


async def keep(name: str, configured: LuConfig, now: LuConfig, saved: SavedState) -> None:
    """`now` is in the drive; durable on return, and if that cannot be it is logged."""
    values = {"configured": _medium(configured), "medium": _medium(now)}
    blob = None if values["configured"] == values["medium"] else json.dumps(values, sort_keys=True).encode()
    try:
        await saved.put(BLOB, blob)
    except SavedStateError as error:
        LOG.error("logical unit %s: what lies in the drive is not kept over a restart: %s", name, error)


async def recall(core: Core, name: str, lu: LuConfig, saved: SavedState) -> LuConfig:
    """The unit's table with what lies in its drive."""
    try:
        blob = saved.get(BLOB)
        values = json.loads(blob) if blob else None
        kept = lu if values is None else lu.model_copy(update=_medium(LuConfig.model_validate(values["medium"])))
        known = values is None or values["configured"] == _medium(lu)
    except (SavedStateDamaged, ValueError, LookupError, TypeError) as error:
        LOG.error("logical unit %s: what lay in its drive cannot be read; its configuration counts: %s", name, error)
        return lu
    if not known:
        await _forget(name, saved)
        return lu
    return kept if kept is lu or await _can_be_opened(core, name, kept) else lu.model_copy(update=_medium(LuConfig()))


async def _forget(name: str, saved: SavedState) -> None:
    """Somebody has configured another medium since, and put it in by that."""
    try:
        await saved.put(BLOB, None)
        await saved.put(removable.BLOB, None)
    except SavedStateError as error:
        LOG.error("logical unit %s: what lay in its drive cannot be forgotten: %s", name, error)


async def _can_be_opened(core: Core, name: str, lu: LuConfig) -> bool:
    """Whoever put the medium in is not there to be told: the drive is empty then, and that is no reason to end."""
    if lu.empty:
        return True
    try:
        (await units.open_unit_store(core, name, lu)).close()
    except ConfigError as error:
        LOG.error("%s: the drive is empty, though that was put in before", error)
        return False
    return True
