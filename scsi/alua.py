# SPDX-License-Identifier: Apache-2.0
"""Asymmetric logical unit access (SPC-5 5.17): through which groups of target ports the unit is reached, REPORT and SET
TARGET PORT GROUPS, and which commands a state lets through.

States are the unit's, and are kept with it; which port is in which group is the ports' configuration. A group that
nobody ever changed is active/optimized.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from construct import (
    Array,
    BitsInteger,
    BitStruct,
    Const,
    ConstructError,
    Flag,
    GreedyBytes,
    GreedyRange,
    Int8ub,
    Int16ub,
    Int32ub,
    Padding,
    Prefixed,
    PrefixedArray,
    Struct,
    Terminated,
    this,
)

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.command import Access, Command
from vhost_scsi.scsi.dispatch import InTurn, Request, handles
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.saved_state import SavedStateDamaged, SavedStateError
from vhost_scsi.scsi.sense import CheckCondition, SenseCode, invalid_parameter

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit
    from vhost_scsi.scsi.nexus import ITL

LOG: Final = logging.getLogger("vhost_scsi.control")
BLOB: Final = "port-groups"


class AccessState(IntEnum):
    """SPC-5 5.17.2.4; LBA dependent states are not there."""

    ACTIVE_OPTIMIZED = 0x0
    ACTIVE_NON_OPTIMIZED = 0x1
    STANDBY = 0x2
    UNAVAILABLE = 0x3
    OFFLINE = 0xE
    TRANSITIONING = 0xF


class Altered(IntEnum):
    """SPC-5 6.32, STATUS CODE: what changed the state last."""

    NEVER = 0
    BY_COMMAND = 1
    IMPLICITLY = 2


SETTABLE: Final = frozenset(
    (AccessState.ACTIVE_OPTIMIZED, AccessState.ACTIVE_NON_OPTIMIZED, AccessState.STANDBY, AccessState.UNAVAILABLE)
)
"""by SET TARGET PORT GROUPS; OFFLINE is set by us only"""

# What a command needs to pass a state, and what it is told if it does not.
_CLOSED: Final[Mapping[AccessState, tuple[Access, SenseCode]]] = {
    AccessState.STANDBY: (Access.STANDBY, sense.LOGICAL_UNIT_NOT_ACCESSIBLE_TARGET_PORT_IN_STANDBY_STATE),
    AccessState.UNAVAILABLE: (Access.UNAVAILABLE, sense.LOGICAL_UNIT_NOT_ACCESSIBLE_TARGET_PORT_IN_UNAVAILABLE_STATE),
    AccessState.OFFLINE: (Access.UNAVAILABLE, sense.LOGICAL_UNIT_NOT_READY_OFFLINE),
    AccessState.TRANSITIONING: (Access.ALWAYS, sense.LOGICAL_UNIT_NOT_ACCESSIBLE_ASYMMETRIC_ACCESS_STATE_TRANSITION),
}

# SPC-5 6.32, 6.41
GROUP: Final = Struct(
    "first" / BitStruct("preferred" / Flag, "format" / BitsInteger(3), "state" / BitsInteger(4)),
    "supported"
    / BitStruct(
        "transitioning" / Flag,
        "offline" / Flag,
        Padding(1),
        "lba_dependent" / Flag,
        "unavailable" / Flag,
        "standby" / Flag,
        "non_optimized" / Flag,
        "optimized" / Flag,
    ),
    "group" / Int16ub,
    Padding(1),
    "status" / Int8ub,
    Padding(1),
    "count" / Int8ub,
    "ports" / Array(this.count, Struct(Padding(2), "id" / Int16ub)),
)
LENGTH_ONLY, EXTENDED = 0, 1
EXTENDED_HEADER: Final = Struct("format" / Const(0x10, Int8ub), "implicit_transition_seconds" / Int8ub, Padding(2))
REPORT: Final = Prefixed(Int32ub, GreedyBytes)
SET: Final = Struct(
    Padding(4),
    "groups"
    / GreedyRange(
        Struct("state" / BitStruct(Padding(4), "value" / BitsInteger(4)), Padding(1), "group" / Int16ub),
    ),
)
SET_HEADER, SET_DESCRIPTOR = 4, 4
TRANSITION_SECONDS: Final = 10
MAX_PORTS: Final = 0xFF
KEPT: Final = Struct(
    "version" / Const(1, Int16ub),
    "groups" / PrefixedArray(Int16ub, Struct("group" / Int16ub, "state" / Int8ub, "altered" / Int8ub)),
    Terminated,
)


class PortGroups:
    """The target port groups of one logical unit. All calls come from the event loop's thread."""

    def __init__(self, unit: LogicalUnit) -> None:
        self._unit = unit
        self.turn: Final = asyncio.Lock()
        """held while a state changes"""
        self._states: dict[int, tuple[AccessState, Altered]] = {}
        try:
            self._states = self._recall(unit.saved.get(BLOB))
        except SavedStateDamaged as error:
            LOG.error("%s: all port groups are active again: %s", unit.definition.name, error)

    @staticmethod
    def _recall(blob: bytes | None) -> dict[int, tuple[AccessState, Altered]]:
        if blob is None:
            return {}
        try:
            return {each.group: (AccessState(each.state), Altered(each.altered)) for each in KEPT.parse(blob).groups}
        except (ConstructError, ValueError) as error:
            raise SavedStateDamaged(f"port groups that make no sense: {error}") from None

    # ---- looking ---------------------------------------------------------------------------------------------------

    def groups(self) -> dict[int, list[int]]:
        """The relative identifiers of each group's ports."""
        found: dict[int, list[int]] = {}
        for port in self._unit.target_ports():
            found.setdefault(port.group, []).append(port.relative_id)
        return {group: sorted(ports) for group, ports in sorted(found.items())}

    def state(self, group: int) -> AccessState:
        return self._states.get(group, (AccessState.ACTIVE_OPTIMIZED, Altered.NEVER))[0]

    def altered(self, group: int) -> Altered:
        return self._states.get(group, (AccessState.ACTIVE_OPTIMIZED, Altered.NEVER))[1]

    def check(self, row: Command, itl: ITL) -> None:
        """Raises for a command that the state of the port it came through keeps out."""
        closed = _CLOSED.get(self.state(itl.nexus.target_port.group))
        if closed is not None and row.access < closed[0]:
            raise CheckCondition(closed[1])

    def show(self, itl: ITL) -> None:
        """Closes or opens the nexus's gate as its port's state says."""
        if self.state(itl.nexus.target_port.group) in _CLOSED:
            itl.gate.close(GateBit.ACCESS)
        else:
            itl.gate.open(GateBit.ACCESS)

    # ---- changing --------------------------------------------------------------------------------------------------

    async def change(self, wanted: Mapping[int, AccessState], by: ITL | None = None) -> None:
        """The groups get these states; `by`: who asked for it by a command, None where it is our own doing. Returns
        when that is kept and what was in flight through groups that are closed has ended. `turn` is held. Raises
        SavedStateError, with everything as it was."""
        before = dict(self._states)
        wanted = {group: state for group, state in wanted.items() if state is not self.state(group)}
        if not wanted:
            return
        how = Altered.IMPLICITLY if by is None else Altered.BY_COMMAND
        affected = [itl for itl in self._unit.itls if itl.nexus.target_port.group in wanted]
        for group in wanted:
            self._states[group] = (AccessState.TRANSITIONING, how)
        try:
            await asyncio.gather(*(itl.gate.fence(GateBit.ACCESS) for itl in affected))
            after = before | {group: (state, how) for group, state in wanted.items()}
            await self._unit.saved.put(BLOB, self._blob(after))
            self._states = after
        except BaseException:
            self._states = before
            raise
        finally:
            for itl in self._unit.itls:
                self.show(itl)
        self._unit.establish(sense.ASYMMETRIC_ACCESS_STATE_CHANGED, besides=by)

    async def change_implicitly(self, wanted: Mapping[int, AccessState]) -> None:
        """As `change`, by ourselves: initiators learn of it, also if it fails (SPC-5 5.17.2.3). Raises
        SavedStateError."""
        async with self.turn:
            try:
                await self.change(wanted)
            except SavedStateError:
                self._unit.establish(sense.IMPLICIT_ASYMMETRIC_ACCESS_STATE_TRANSITION_FAILED)
                raise

    @staticmethod
    def _blob(states: Mapping[int, tuple[AccessState, Altered]]) -> bytes:
        rows = [{"group": group, "state": state, "altered": how} for group, (state, how) in states.items()]
        built: bytes = KEPT.build({"groups": rows})
        return built


def _described(groups: PortGroups, group: int, ports: list[int]) -> bytes:
    supported = ("transitioning", "offline", "unavailable", "standby", "non_optimized", "optimized")
    built: bytes = GROUP.build(
        {
            "first": {"preferred": False, "format": 0, "state": groups.state(group)},
            "supported": {"lba_dependent": False, **dict.fromkeys(supported, True)},
            "group": group,
            "status": groups.altered(group),
            # The count has one byte; a group that is larger is reported with as many ports as that can say.
            "count": len(ports[:MAX_PORTS]),
            "ports": [{"id": port} for port in ports[:MAX_PORTS]],
        }
    )
    return built


@handles("report_target_port_groups")
def report_target_port_groups(request: Request) -> bytes:
    format_ = request["parameter_data_format"]
    if format_ not in (LENGTH_ONLY, EXTENDED):
        raise request.refuse("parameter_data_format")
    groups = request.logical_unit.port_groups
    data = b"".join(_described(groups, group, ports) for group, ports in groups.groups().items())
    if format_ == EXTENDED:
        data = EXTENDED_HEADER.build({"implicit_transition_seconds": TRANSITION_SECONDS}) + data
    built: bytes = REPORT.build(data)
    return built


@handles("set_target_port_groups")
def set_target_port_groups(request: Request) -> bytes | InTurn:
    data, groups = request.parameter_list(), request.logical_unit.port_groups
    if not data:
        # SPC-5 6.41: a parameter list length of zero is not an error
        return b""
    wanted = _wanted(data, groups)

    async def work() -> bytes:
        try:
            await groups.change(wanted, request.itl)
        except SavedStateError as error:
            request.logical_unit.complain("its port groups cannot be kept, so nothing changed: %s", error)
            raise CheckCondition(sense.SET_TARGET_PORT_GROUPS_COMMAND_FAILED) from None
        return b""

    return InTurn(groups.turn, work())


def _wanted(data: bytes, groups: PortGroups) -> dict[int, AccessState]:
    if len(data) < SET_HEADER or (len(data) - SET_HEADER) % SET_DESCRIPTOR:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    known = groups.groups()
    parsed: Any = SET.parse(data)
    wanted: dict[int, AccessState] = {}
    for number, each in enumerate(parsed.groups):
        at = SET_HEADER + SET_DESCRIPTOR * number
        if each.state.value not in SETTABLE:
            raise invalid_parameter(at, 3)
        if each.group not in known or each.group in wanted:
            raise invalid_parameter(at + 2, 7)
        wanted[each.group] = AccessState(each.state.value)
    return wanted
