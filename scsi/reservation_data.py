# SPDX-License-Identifier: Apache-2.0
"""Reservations as bytes: parameter data of PERSISTENT RESERVE IN, parameter lists of PERSISTENT RESERVE OUT (SPC-5
6.14, 6.15), and the blob that is kept. What they mean is `reservations`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from construct import (
    BitsInteger,
    BitStruct,
    Bytes,
    ConstructError,
    Flag,
    GreedyBytes,
    If,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Padding,
    Prefixed,
    PrefixedArray,
    Struct,
    Terminated,
    this,
)

from vhost_scsi.scsi import sense, transport_id
from vhost_scsi.scsi.reservations import Moving, NexusId, Registering, Reservations, Type
from vhost_scsi.scsi.saved_state import SavedStateDamaged
from vhost_scsi.scsi.sense import CheckCondition, FieldPointer, invalid_parameter

# ---- PERSISTENT RESERVE IN -----------------------------------------------------------------------------------------

LISTED: Final = Struct("generation" / Int32ub, "data" / Prefixed(Int32ub, GreedyBytes))
KEY: Final = Int64ub
RESERVATION: Final = Struct("key" / Int64ub, Padding(5), "scope_type" / Int8ub, Padding(2))
CAPABILITIES: Final = Struct(
    "length" / Int16ub,
    "able"
    / BitStruct(
        "replace_lost" / Flag,
        Padding(2),
        "compatible_reservation_handling" / Flag,
        "specify_initiator_ports" / Flag,
        "all_target_ports" / Flag,
        Padding(1),
        "persist_through_power_loss" / Flag,
    ),
    "active"
    / BitStruct(
        "type_mask_valid" / Flag,
        "allow_commands" / BitsInteger(3),
        Padding(3),
        "persist_through_power_loss" / Flag,
    ),
    "types"
    / BitStruct(
        "write_exclusive_all_registrants" / Flag,
        "exclusive_access_registrants_only" / Flag,
        "write_exclusive_registrants_only" / Flag,
        Padding(1),
        "exclusive_access" / Flag,
        Padding(1),
        "write_exclusive" / Flag,
        Padding(1),
        Padding(7),
        "exclusive_access_all_registrants" / Flag,
    ),
    Padding(2),
)
_TYPES: Final = [kind.name.lower() for kind in Type]
FULL_STATUS: Final = Struct(
    "key" / Int64ub,
    Padding(4),
    "flags" / BitStruct(Padding(6), "all_target_ports" / Flag, "holder" / Flag),
    "scope_type" / Int8ub,
    Padding(4),
    "port" / Int16ub,
    "initiator" / Prefixed(Int32ub, GreedyBytes),
)
TEST_UNIT_READY_ALLOWED: Final = 1
"""ALLOW COMMANDS 001b (SPC-5 table 229): TEST UNIT READY passes; of the others nothing is said"""


def _listed(state: Reservations, data: bytes) -> bytes:
    built: bytes = LISTED.build({"generation": state.generation, "data": data})
    return built


def read_keys(state: Reservations) -> bytes:
    return _listed(state, b"".join(KEY.build(key) for key in state.registered.values()))


def read_reservation(state: Reservations) -> bytes:
    held = b"" if state.type is None else RESERVATION.build({"key": state.key, "scope_type": state.type})
    return _listed(state, held)


def report_capabilities(state: Reservations, *, durable: bool) -> bytes:
    built: bytes = CAPABILITIES.build(
        {
            "length": CAPABILITIES.sizeof(),
            "able": {
                "replace_lost": True,
                "compatible_reservation_handling": True,
                "specify_initiator_ports": True,
                "all_target_ports": True,
                "persist_through_power_loss": durable,
            },
            "active": {
                "type_mask_valid": True,
                "allow_commands": TEST_UNIT_READY_ALLOWED,
                "persist_through_power_loss": state.aptpl,
            },
            "types": dict.fromkeys(_TYPES, True),
        }
    )
    return built


def read_full_status(state: Reservations) -> bytes:
    parts = []
    for nexus, key in state.registered.items():
        holds = state.holds(nexus)
        flags = {"all_target_ports": False, "holder": holds}
        parts.append(
            FULL_STATUS.build(
                {
                    "key": key,
                    "flags": flags,
                    "scope_type": state.type if holds else 0,
                    "port": nexus.port,
                    "initiator": nexus.initiator,
                }
            )
        )
    return _listed(state, b"".join(parts))


# ---- PERSISTENT RESERVE OUT ----------------------------------------------------------------------------------------

BASIC: Final = Struct(
    "key" / Int64ub,
    "new_key" / Int64ub,
    Padding(4),
    "flags" / BitStruct(Padding(4), "spec_i_pt" / Flag, "all_tg_pt" / Flag, Padding(1), "aptpl" / Flag),
    Padding(3),
)
MOVE: Final = Struct(
    "key" / Int64ub,
    "new_key" / Int64ub,
    Padding(1),
    "flags" / BitStruct(Padding(6), "unregister" / Flag, "aptpl" / Flag),
    "port" / Int16ub,
    "length" / Int32ub,
)
BASIC_BYTES: Final = 24
MAX_INITIATORS: Final = 1024
FLAGS_AT, PORT_AT, LENGTH_AT, LIST_AT = 20, 18, 20, 24
SPEC_I_PT_BIT, APTPL_BIT = 3, 0

Ports = Callable[[bytes], list[NexusId]]
"""the nexuses that a TransportID of the list stands for"""


def _list_length_error() -> CheckCondition:
    return CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR, field=FieldPointer(True, 5))


def basic(data: bytes, *, with_list: bool = False, durable: bool = True) -> Any:
    """The first 24 bytes, parsed. `with_list`: SPEC_I_PT is allowed, and more may follow."""
    if len(data) < BASIC_BYTES:
        raise _list_length_error()
    parsed = BASIC.parse(data[:BASIC_BYTES])
    if parsed.flags.spec_i_pt and not with_list:
        raise invalid_parameter(FLAGS_AT, SPEC_I_PT_BIT)
    if not parsed.flags.spec_i_pt and len(data) != BASIC_BYTES:
        # SPC-5 6.15.1: without SPEC_I_PT the list has 24 bytes
        raise _list_length_error()
    if parsed.flags.aptpl and not durable:
        raise invalid_parameter(FLAGS_AT, APTPL_BIT)
    return parsed


def registering(
    data: bytes, ports: Ports, everywhere: Callable[[], Iterable[NexusId]], *, ignore: bool, durable: bool
) -> Registering:
    """Of REGISTER, and of REGISTER AND IGNORE EXISTING KEY, which knows no SPEC_I_PT."""
    parsed = basic(data, with_list=not ignore, durable=durable)
    others = None
    if parsed.flags.spec_i_pt:
        others = tuple(dict.fromkeys(nexus for each in _initiators(data) for nexus in ports(each)))
    return Registering(
        parsed.key,
        parsed.new_key,
        bool(parsed.flags.aptpl),
        tuple(everywhere()) if parsed.flags.all_tg_pt else (),
        others,
    )


def _initiators(data: bytes) -> list[bytes]:
    """SPC-5 6.15.3: a length, and so many bytes of TransportIDs."""
    if len(data) < LIST_AT + 4:
        raise _list_length_error()
    length = int.from_bytes(data[LIST_AT : LIST_AT + 4])
    at, end = LIST_AT + 4, LIST_AT + 4 + length
    if end != len(data):
        raise _list_length_error() if end > len(data) else invalid_parameter(LIST_AT)
    found: list[bytes] = []
    while at < end:
        initiator, length = _take(data, at, end)
        found.append(initiator)
        at += length
        if len(found) > MAX_INITIATORS:
            raise CheckCondition(sense.INSUFFICIENT_REGISTRATION_RESOURCES)
    return found


def _take(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    try:
        return transport_id.take(data[at:end])
    except transport_id.BadTransportId as error:
        raise invalid_parameter(at + error.at) from None


def moving(data: bytes, ports: Callable[[], Iterable[int]], *, durable: bool) -> tuple[int, Moving]:
    """REGISTER AND MOVE: the key, and what is asked for. `ports`: the relative identifiers that there are."""
    if len(data) < MOVE.sizeof():
        raise _list_length_error()
    parsed = MOVE.parse(data)
    if len(data) != MOVE.sizeof() + parsed.length:
        raise _list_length_error() if len(data) < MOVE.sizeof() + parsed.length else invalid_parameter(LENGTH_AT)
    if parsed.flags.aptpl and not durable:
        raise invalid_parameter(17, APTPL_BIT)
    if parsed.port not in set(ports()):
        raise invalid_parameter(PORT_AT)
    initiator, length = _take(data, MOVE.sizeof(), len(data))
    if length != parsed.length:
        raise invalid_parameter(LENGTH_AT)
    if transport_id.is_device(initiator):
        # SPC-5 7.6.4.6: one port must be meant
        raise invalid_parameter(MOVE.sizeof(), 7)
    to = NexusId(initiator, parsed.port)
    return parsed.key, Moving(parsed.new_key, to, bool(parsed.flags.aptpl), bool(parsed.flags.unregister))


def find_type(value: int) -> Type | None:
    return Type(value) if value in list(Type) else None


# ---- what is kept --------------------------------------------------------------------------------------------------

VERSION: Final = 2
NOBODY: Final = 0xFFFF
NEXUS: Final = Struct("initiator" / Prefixed(Int16ub, GreedyBytes), "port" / Int16ub)
KEPT: Final = Struct(
    "version" / Int16ub,
    "boot" / Bytes(16),
    "generation" / Int32ub,
    "aptpl" / Flag,
    "lost" / Flag,
    "type" / Int8ub,
    "holder" / Int16ub,
    "registered" / PrefixedArray(Int16ub, Struct("nexus" / NEXUS, "key" / Int64ub)),
    "legacy" / PrefixedArray(Int8ub, NEXUS),
    # Version 1 has none.
    "applied" / If(this.version > 1, PrefixedArray(Int8ub, Int64ub)),
    Terminated,
)


def _nexus(nexus: NexusId) -> dict[str, object]:
    return {"initiator": nexus.initiator, "port": nexus.port}


APPLIED_LIMIT: Final = 64
"""changes whose commands are known: more than can be on their way to their initiators at once"""


def keep(state: Reservations, boot: bytes, applied: Iterable[int] = ()) -> bytes | None:
    """The blob; None where nothing is worth keeping. `boot`: 16 bytes that tell one power cycle from another.
    `applied`: the commands (Task.once) that made it what it is, the last ones count."""
    kept = list(applied)[-APPLIED_LIMIT:]
    if state == Reservations() and not kept:
        return None
    registered = list(state.registered)
    built: bytes = KEPT.build(
        {
            "version": VERSION,
            "boot": boot,
            "generation": state.generation,
            "aptpl": state.aptpl,
            "lost": state.lost,
            "type": state.type or 0,
            "holder": NOBODY if state.holder is None else registered.index(state.holder),
            "registered": [{"nexus": _nexus(nexus), "key": key} for nexus, key in state.registered.items()],
            "legacy": [] if state.legacy is None else [_nexus(state.legacy)],
            "applied": kept,
        }
    )
    return built


def applied_by(blob: bytes | None) -> list[int]:
    """The commands that `keep` was told of. Raises SavedStateDamaged."""
    return [] if blob is None else list(_parse(blob).applied or ())


def _parse(blob: bytes) -> Any:
    try:
        parsed = KEPT.parse(blob)
    except ConstructError as error:
        raise SavedStateDamaged(f"reservations that make no sense: {error}") from None
    if not 1 <= parsed.version <= VERSION:
        raise SavedStateDamaged(f"reservations of version {parsed.version}, not {VERSION}")
    return parsed


def recall(blob: bytes | None, boot: bytes) -> Reservations:
    """What `keep` wrote. Another `boot` is another power cycle: then only APTPL keeps anything, and generations start
    anew (SPC-5 5.14.5, 6.14.2.2). Raises SavedStateDamaged."""
    if blob is None:
        return Reservations()
    parsed = _parse(blob)
    try:
        state = _state(parsed)
    except (ValueError, IndexError) as error:
        raise SavedStateDamaged(f"reservations that make no sense: {error}") from None
    if parsed.boot == boot:
        return state
    if not state.aptpl:
        return Reservations(lost=state.lost)
    return replace(state, generation=0, legacy=None)


def _state(parsed: Any) -> Reservations:
    def nexus(each: Any) -> NexusId:
        return NexusId(bytes(each.initiator), each.port)

    registered = {nexus(each.nexus): each.key for each in parsed.registered}
    if len(registered) != len(parsed.registered) or 0 in registered.values():
        raise ValueError("a registration is twice there, or has no key")
    kind = Type(parsed.type) if parsed.type else None
    holder = None if parsed.holder == NOBODY else list(registered)[parsed.holder]
    if (holder is not None) != (kind is not None and not kind.held_by_all) or (kind is not None and not registered):
        raise ValueError("the holder does not fit")
    return Reservations(
        registered,
        kind,
        holder,
        parsed.generation,
        parsed.aptpl,
        nexus(parsed.legacy[0]) if parsed.legacy else None,
        parsed.lost,
    )
