# SPDX-License-Identifier: Apache-2.0
"""Reservations of a logical unit: who is registered, who holds it, and what each service action makes of that (SPC-5
5.14; SPC-2 5.5.1 for RESERVE and RELEASE).

One value and functions from the old one to the new one, without side effects: what a change costs, who is told and what
must be durable before the status is `reserve`'s affair. Bytes are `reservation_data`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.commands import Conflict
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.sense import CheckCondition, EndsWith, SenseCode, invalid_cdb_field, invalid_parameter
from vhost_scsi.scsi.task import Status

MAX_REGISTRATIONS: Final = 1024
RESERVATION_KEY_AT, SERVICE_ACTION_KEY_AT = 0, 8
"""where they stand in the parameter list, for field pointers"""


class Type(IntEnum):
    """SPC-5 6.15.3.4."""

    WRITE_EXCLUSIVE = 0x1
    EXCLUSIVE_ACCESS = 0x3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 0x6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 0x7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 0x8

    @property
    def keeps_readers_out(self) -> bool:
        return self in (
            Type.EXCLUSIVE_ACCESS,
            Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
            Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
        )

    @property
    def lets_registrants_in(self) -> bool:
        return self not in (Type.WRITE_EXCLUSIVE, Type.EXCLUSIVE_ACCESS)

    @property
    def held_by_all(self) -> bool:
        return self in (Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS, Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS)


@dataclass(frozen=True, slots=True, order=True)
class NexusId:
    """An I_T nexus by names that outlive it: initiator port by TransportID, target port by relative identifier."""

    initiator: bytes
    port: int


@dataclass(frozen=True, slots=True)
class Reservations:
    """`holder` is None where nobody or every registrant holds it. `legacy`: who made a RESERVE(6) or (10). `lost`: what
    was kept cannot be read any more, so anybody might hold anything."""

    registered: Mapping[NexusId, int] = field(default_factory=dict)
    type: Type | None = None
    holder: NexusId | None = None
    generation: int = 0
    aptpl: bool = False
    legacy: NexusId | None = None
    lost: bool = False

    def holds(self, nexus: NexusId) -> bool:
        if self.type is None:
            return False
        return nexus in self.registered if self.type.held_by_all else nexus == self.holder

    @property
    def key(self) -> int:
        """RESERVATION KEY of READ RESERVATION: zero where all registrants hold it (SPC-5 6.14.3.2)."""
        return self.registered[self.holder] if self.holder is not None else 0

    def conflicts(self, nexus: NexusId, conflict: Conflict) -> bool:
        """SPC-5 5.14.1: whether a persistent reservation keeps such a command of that nexus out."""
        if self.type is None or conflict is Conflict.ALLOWED or self.holds(nexus):
            return False
        if self.type.lets_registrants_in and nexus in self.registered:
            return False
        return conflict is Conflict.WRITE or self.type.keeps_readers_out

    def reserved_from(self, nexus: NexusId) -> bool:
        """Whether another nexus's RESERVE keeps it out."""
        return self.legacy is not None and self.legacy != nexus

    def gate_bits(self, nexus: NexusId) -> GateBit:
        """What the data plane must not decide for that nexus."""
        if self.lost or self.reserved_from(nexus):
            return RESERVED
        bits = GateBit(0)
        if self.conflicts(nexus, Conflict.READ):
            bits |= GateBit.RESERVED_READ
        if self.conflicts(nexus, Conflict.WRITE):
            bits |= GateBit.RESERVED_WRITE
        return bits


RESERVED: Final = GateBit.RESERVED | GateBit.RESERVED_READ | GateBit.RESERVED_WRITE


@dataclass(frozen=True, slots=True)
class Change:
    """`told`: the unit attention condition for each nexus. `aborted`: whose commands end."""

    state: Reservations
    told: Mapping[NexusId, SenseCode] = field(default_factory=dict)
    aborted: frozenset[NexusId] = frozenset()


def conflict() -> EndsWith:
    return EndsWith(Status.RESERVATION_CONFLICT)


# ---- what the service actions share --------------------------------------------------------------------------------


def check_key(state: Reservations, by: NexusId, key: int) -> None:
    """SPC-5 5.14.4: all but two service actions are for registrants that say their key."""
    if state.registered.get(by) != key:
        raise conflict()


def _generation(state: Reservations) -> int:
    return (state.generation + 1) & 0xFFFFFFFF


def _without(state: Reservations, gone: Iterable[NexusId]) -> Reservations:
    """SPC-5 5.14.11: registrations are removed, and a reservation goes with the last who holds it."""
    gone = set(gone)
    registered = {nexus: key for nexus, key in state.registered.items() if nexus not in gone}
    if state.type is None:
        return replace(state, registered=registered)
    released = not registered if state.type.held_by_all else state.holder in gone
    if released:
        return replace(state, registered=registered, type=None, holder=None)
    return replace(state, registered=registered)


def _tell(nexuses: Iterable[NexusId], by: NexusId, code: SenseCode) -> dict[NexusId, SenseCode]:
    return {nexus: code for nexus in nexuses if nexus != by}


def _check_room(registered: Mapping[NexusId, int]) -> None:
    if len(registered) > MAX_REGISTRATIONS:
        raise CheckCondition(sense.INSUFFICIENT_REGISTRATION_RESOURCES)


# ---- PERSISTENT RESERVE OUT (SPC-5 6.15) ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Registering:
    """`everywhere`: this initiator at each other target port (ALL_TG_PT). `others`: the nexuses of SPEC_I_PT's list,
    None where the bit is zero."""

    key: int
    new_key: int
    aptpl: bool = False
    everywhere: tuple[NexusId, ...] = ()
    others: tuple[NexusId, ...] | None = None


def register(state: Reservations, by: NexusId, asked: Registering, *, ignore: bool = False) -> Change:
    """SPC-5 5.14.7, table 65: REGISTER; with `ignore` REGISTER AND IGNORE EXISTING KEY."""
    known = state.registered.get(by)
    if not ignore and asked.key != (known or 0):
        raise conflict()
    if asked.others is not None and (known is not None or not asked.new_key):
        raise invalid_cdb_field(1, 4)
    whom = (by, *asked.everywhere)
    if not asked.new_key:
        gone = [nexus for nexus in whom if nexus in state.registered]
        return _unregister(state, by, gone, asked.aptpl) if gone else Change(state)
    registered = {**state.registered, **dict.fromkeys((*whom, *(asked.others or ())), asked.new_key)}
    _check_room(registered)
    return Change(replace(state, registered=registered, generation=_generation(state), aptpl=asked.aptpl))


def _unregister(state: Reservations, by: NexusId, gone: list[NexusId], aptpl: bool) -> Change:
    after = replace(_without(state, gone), generation=_generation(state), aptpl=aptpl)
    told: dict[NexusId, SenseCode] = {}
    if after.type is None and state.type is not None and state.type.lets_registrants_in:
        # SPC-5 5.14.11.3: those that were let in because of it are told that it is gone.
        told = _tell(after.registered, by, sense.RESERVATIONS_RELEASED)
    return Change(after, told)


def reserve(state: Reservations, by: NexusId, kind: Type) -> Change:
    """SPC-5 5.14.9."""
    if state.type is None:
        return Change(replace(state, type=kind, holder=None if kind.held_by_all else by))
    if state.holds(by) and state.type is kind:
        return Change(state)
    raise conflict()


def release(state: Reservations, by: NexusId, kind: Type) -> Change:
    """SPC-5 5.14.11.2."""
    if state.type is None or not state.holds(by):
        return Change(state)
    if state.type is not kind:
        raise CheckCondition(sense.INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
    told = _tell(state.registered, by, sense.RESERVATIONS_RELEASED) if state.type.lets_registrants_in else {}
    return Change(replace(state, type=None, holder=None), told)


def clear(state: Reservations, by: NexusId) -> Change:
    """SPC-5 5.14.11.6."""
    after = replace(state, registered={}, type=None, holder=None, generation=_generation(state))
    return Change(after, _tell(state.registered, by, sense.RESERVATIONS_PREEMPTED))


def preempt(state: Reservations, by: NexusId, victim: int, kind: Type, *, abort: bool = False) -> Change:
    """SPC-5 5.14.11.4 and 5.14.11.5. `victim`: the SERVICE ACTION RESERVATION KEY."""
    named = frozenset(nexus for nexus, key in state.registered.items() if key == victim)
    held_by_all = state.type is not None and state.type.held_by_all
    if not victim and not held_by_all:
        raise invalid_parameter(SERVICE_ACTION_KEY_AT)
    if held_by_all and not victim:
        gone = frozenset(state.registered) - {by}
        return _take_over(state, by, gone, kind, abort=abort)
    if not named:
        raise conflict()
    if state.holder is not None and state.holder in named:
        return _take_over(state, by, named - {by}, kind, abort=abort)
    after = replace(_without(state, named), generation=_generation(state))
    return Change(after, _tell(named, by, sense.REGISTRATIONS_PREEMPTED), named if abort else frozenset())


def _take_over(state: Reservations, by: NexusId, gone: frozenset[NexusId], kind: Type, *, abort: bool) -> Change:
    registered = {nexus: key for nexus, key in state.registered.items() if nexus not in gone}
    holder = None if kind.held_by_all else by
    after = replace(state, registered=registered, type=kind, holder=holder, generation=_generation(state))
    told = _tell(gone, by, sense.REGISTRATIONS_PREEMPTED)
    if kind is not state.type:
        # SPC-5 5.14.11.4: those that stay registered learn that the kind of reservation is another one.
        told |= _tell(registered, by, sense.RESERVATIONS_RELEASED)
    return Change(after, told, gone if abort else frozenset())


@dataclass(frozen=True, slots=True)
class Moving:
    """REGISTER AND MOVE: `to` gets the reservation under `new_key`; `unregister` forgets the nexus that gave it."""

    new_key: int
    to: NexusId
    aptpl: bool = False
    unregister: bool = False


def move(state: Reservations, by: NexusId, asked: Moving) -> Change:
    """SPC-5 5.14.8."""
    if state.type is None:
        raise invalid_cdb_field(1, 4)
    if state.type.held_by_all or state.holder != by:
        raise conflict()
    if not asked.new_key:
        raise invalid_parameter(SERVICE_ACTION_KEY_AT)
    registered = {**state.registered, asked.to: asked.new_key}
    if asked.unregister:
        del registered[by]
    _check_room(registered)
    after = replace(state, registered=registered, holder=asked.to, generation=_generation(state), aptpl=asked.aptpl)
    return Change(after)


def replace_lost(state: Reservations, by: NexusId, key: int, new_key: int, kind: Type) -> Change:
    """SPC-5 5.14.11.7: one who knows takes the unit back after what was kept has been lost."""
    if key:
        raise invalid_parameter(RESERVATION_KEY_AT)
    if not new_key:
        raise invalid_parameter(SERVICE_ACTION_KEY_AT)
    if not state.lost:
        raise invalid_cdb_field(1, 4)
    holder = None if kind.held_by_all else by
    return Change(Reservations({by: new_key}, kind, holder, _generation(state)))


# ---- RESERVE and RELEASE (SPC-2 7.21, SPC-5 5.14.3) ----------------------------------------------------------------


def _is_exempt(state: Reservations, by: NexusId) -> bool:
    """SPC-5 5.14.3 (CRH=1): who may do what it wants anyway is told so, and nothing changes. Raises where persistent
    reservations are in use and it may not."""
    if state.holds(by):
        return True
    if by in state.registered and state.type is not None and state.type.lets_registrants_in:
        return True
    if state.registered:
        raise conflict()
    return False


def reserve_legacy(state: Reservations, by: NexusId) -> Change:
    if state.reserved_from(by):
        raise conflict()
    return Change(state if _is_exempt(state, by) else replace(state, legacy=by))


def release_legacy(state: Reservations, by: NexusId) -> Change:
    """Nobody is refused who has nothing to give back."""
    if state.legacy is None:
        _is_exempt(state, by)
    return Change(forget_legacy(state, by))


def forget_legacy(state: Reservations, by: NexusId | None = None) -> Reservations:
    """After a reset, or the loss of the nexus that made it."""
    if state.legacy is None or by not in (None, state.legacy):
        return state
    return replace(state, legacy=None)
