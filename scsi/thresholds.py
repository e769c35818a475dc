# SPDX-License-Identifier: Apache-2.0
"""Thin provisioning thresholds (SBC-4 4.7.3): tells initiators when the room that is used, or left, reaches what the
Logical Block Provisioning mode page says, if the Read-Write Error Recovery page wants it told (LBPERE).

The store is asked for its figures now and then, while a threshold is enabled; no write is any slower for it. What is
reached is told once, and again after it was left, or set anew.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from vhost_scsi.log_limit import LimitedLog
from vhost_scsi.scsi import sense
from vhost_scsi.scsi.command import Feature
from vhost_scsi.scsi.mode_pages import LOGICAL_BLOCK_PROVISIONING, READ_WRITE_ERROR_RECOVERY

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit
    from vhost_scsi.scsi.medium import Usage

SET_BYTES: Final = 1 << 20
"""a threshold set, in which thresholds and the log page count"""
LOOK_EVERY: Final = 0.25
"""seconds"""
USED, AVAILABLE = "used", "available"


def exponent(block_size: int) -> int:
    """THRESHOLD EXPONENT (SBC-4 6.6.7): blocks of a threshold set as a power of two, and not zero."""
    return max(1, (SET_BYTES // block_size).bit_length() - 1)


class Thresholds:
    """Of one logical unit. All calls come from the event loop's thread."""

    def __init__(self, unit: LogicalUnit) -> None:
        self._unit = unit
        self._reached: dict[str, int] = {}
        """which were told, and with what count"""
        self._log = LimitedLog(logging.getLogger("vhost_scsi.control"))
        self._watching: asyncio.Task[None] | None = None

    @property
    def set_blocks(self) -> int:
        return 1 << exponent(self._unit.medium.block_size)

    def _enabled(self) -> dict[str, int]:
        """The thresholds that are to be told, in sets."""
        unit = self._unit
        if not unit.has(Feature.USAGE) or not unit.mode.field(READ_WRITE_ERROR_RECOVERY, "lbpere"):
            return {}
        page = LOGICAL_BLOCK_PROVISIONING
        enabled = [name for name in (AVAILABLE, USED) if unit.mode.field(page, f"{name}_enabled")]
        return {name: unit.mode.field(page, f"{name}_count") for name in enabled}

    def look(self) -> bool:
        """Tells every nexus of what was reached since the last look. False: nothing is enabled."""
        enabled = self._enabled()
        usage = self._unit.medium.usage() if enabled else None
        self._reached = {name: count for name, count in self._reached.items() if enabled.get(name) == count}
        if usage is None:
            return False
        for name, count in enabled.items():
            if not self._is_reached(name, count, usage):
                self._reached.pop(name, None)
            elif name not in self._reached:
                self._reached[name] = count
                self._log_reached(usage)
                self._unit.establish(sense.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED)
        return True

    def _log_reached(self, usage: Usage) -> None:
        size = self._unit.medium.block_size
        used, available = usage.used * size >> 20, usage.available * size >> 20
        text = f"{self._unit.definition.name}: a threshold is reached: {used} MiB used, {available} MiB available"
        self._log.say(logging.WARNING, "threshold", text)

    def _is_reached(self, name: str, count: int, usage: Usage) -> bool:
        # SBC-4 4.7.3: the count is the middle of a range that is one threshold set wide.
        middle, half = count * self.set_blocks, self.set_blocks // 2
        return usage.used >= middle - half if name == USED else usage.available <= middle + half

    def changed(self) -> None:
        """The mode pages, or the medium, may be others now."""
        if self._watching is not None or not self.look():
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return  # whoever attaches, or changes a page, asks again
        self._watching = self._unit.spawn(self._watch())

    async def _watch(self) -> None:
        try:
            while self.look():
                await asyncio.sleep(LOOK_EVERY)
        finally:
            self._watching = None
