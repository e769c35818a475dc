# SPDX-License-Identifier: Apache-2.0
"""START STOP UNIT (SBC-4 5.31): active and stopped, no other power condition. The medium stays where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vhost_scsi.scsi.dispatch import Exclusive, Request, handles

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit


async def _stop(unit: LogicalUnit, *, flush: bool) -> bytes:
    # A stop that cannot make the cache durable has not happened.
    if flush:
        await unit.medium.flush()
    unit.set_stopped(True)
    return b""


@handles("start_stop_unit")
def start_stop_unit(request: Request) -> bytes | Exclusive:
    """IMMED only allows an early status; ours comes when all is done."""
    unit = request.logical_unit
    if request["start"]:
        unit.set_stopped(False)
        return b""
    return b"" if unit.stopped else _stop(unit, flush=not request["no_flush"])
