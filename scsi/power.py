# SPDX-License-Identifier: Apache-2.0
"""START STOP UNIT (SBC-4 5.31): started and stopped, and the power conditions. What moves the medium is `removable`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vhost_scsi.scsi import removable
from vhost_scsi.scsi.dispatch import Alongside, Exclusive, Request, handles
from vhost_scsi.scsi.readiness import Power

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit

START_VALID, LU_CONTROL = 0x0, 0x7

# SBC-4 table 105: POWER CONDITION and POWER CONDITION MODIFIER. FORCE_IDLE_0 and FORCE_STANDBY_0 end timers that we do
# not have, and so change the condition at once.
CONDITIONS: Final[dict[tuple[int, int], Power]] = {
    (0x1, 0): Power.ACTIVE,
    (0x2, 0): Power.IDLE_A,
    (0x2, 1): Power.IDLE_B,
    (0x2, 2): Power.IDLE_C,
    (0x3, 0): Power.STANDBY_Z,
    (0x3, 1): Power.STANDBY_Y,
    (0xA, 0): Power.IDLE_A,
    (0xA, 1): Power.IDLE_B,
    (0xA, 2): Power.IDLE_C,
    (0xB, 0): Power.STANDBY_Z,
    (0xB, 1): Power.STANDBY_Y,
}


async def _stop(unit: LogicalUnit, *, flush: bool) -> bytes:
    # A stop that cannot make the cache durable has not happened.
    if flush:
        await unit.medium.flush()
    unit.readiness.set_stopped(True)
    return b""


async def _lower(unit: LogicalUnit, power: Power, *, flush: bool) -> bytes:
    # SBC-4 5.31: the cache is written before idle and standby too, unless NO_FLUSH says otherwise.
    if flush:
        await unit.medium.flush()
    unit.readiness.set_power(power)
    return b""


@handles("start_stop_unit")
def start_stop_unit(request: Request) -> bytes | Exclusive | Alongside:
    """IMMED only allows an early status; ours comes when all is done."""
    unit = request.logical_unit
    condition, modifier = request["power_condition"], request["power_condition_modifier"]
    flush = not request["no_flush"]
    if condition == START_VALID:
        if modifier:
            raise request.refuse("power_condition_modifier")
        if request.row.field("loej") and request["loej"]:
            return removable.load_or_eject(request)
        if request["start"]:
            unit.readiness.set_power(Power.ACTIVE)
            return b""
        if unit.drive is not None:
            # A medium that stops spins up again by itself when it is asked for anything, as initiators expect.
            return removable.stop(request)
        return b"" if unit.stopped else _stop(unit, flush=flush)
    if condition == LU_CONTROL:
        # The timers take over again; none of them is enabled.
        return b""
    power = CONDITIONS.get((condition, modifier))
    if power is None:
        if not unit.definition.strict:
            return b""
        known = any(condition == each for each, _ in CONDITIONS)
        raise request.refuse("power_condition_modifier" if known else "power_condition")
    if power is Power.ACTIVE:
        unit.readiness.set_power(power)
        return b""
    return _lower(unit, power, flush=flush)
