# SPDX-License-Identifier: Apache-2.0
"""What a row of the command table is made of: fields of a CDB, the reasons that keep a command waiting, and the row.

Types and builders only; the rows stand in `medium_rows`, `unit_rows` and whatever else `commands` puts together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from vhost_scsi.scsi.gate import GateBit


class MediaOp(IntEnum):
    """What C runs for a row; NONE is a Python handler."""

    NONE = 0
    TEST_UNIT_READY = 1
    READ = 2
    WRITE = 3
    SYNCHRONIZE_CACHE = 4
    UNMAP = 5
    WRITE_SAME = 6
    VERIFY = 7
    COMPARE_AND_WRITE = 8
    WRITE_AND_VERIFY = 9
    ORWRITE = 10
    PRE_FETCH = 11
    WRITE_ATOMIC = 12


class Direction(IntEnum):
    """The buffer that the command transfers through, if it transfers."""

    NONE = 0
    IN = 1
    OUT = 2


class DeviceType(IntEnum):
    """SPC-5 6.7.2, PERIPHERAL DEVICE TYPE."""

    DISK = 0x00
    CD_DVD = 0x05
    WELL_KNOWN = 0x1E
    UNKNOWN = 0x1F


class Conflict(IntEnum):
    """How a command meets another nexus's persistent reservation (SPC-5 5.14.1, SBC-4 4.19)."""

    ALLOWED = 0
    READ = 1
    """conflicts with exclusive access types only"""
    WRITE = 2
    """conflicts with write exclusive types too"""


class Access(IntEnum):
    """Which asymmetric access states let a command through (SPC-5 5.17.2.4); each includes those before it."""

    ACTIVE = 0
    STANDBY = 1
    UNAVAILABLE = 2
    """offline too"""
    ALWAYS = 3
    """in transition as well"""


class Feature(IntEnum):
    """An ability of the medium without which a command is not offered."""

    NONE = 0
    UNMAP = 1
    ATOMIC = 2
    """writes of some length are carried out as a whole or not at all"""
    CDB_32 = 3
    """not the medium's but the unit's: SBC-3 5.15 asks for them with type 2 protection only, and initiators that know
    no others than CDBs of 16 bytes stumble over them in the list of commands"""
    REMOVABLE = 4
    """the unit's: its medium can be taken out"""
    USAGE = 5
    """it can be unmapped, and tells how much room is taken"""


NACA: Final = 0x04
VARIABLE_LENGTH: Final = 0x7F
"""SPC-5 4.2.3: the operation code of CDBs that say their own length"""
SECONDS: Final = 30
"""how long an initiator should wait for a command that does not say otherwise"""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a CDB: `length` bytes from `byte` on, or the bits of `mask` in one byte. In a field of several bytes
    the mask is the first byte's. `zero_means`: what a zero stands for (SBC-4 5.13: READ(6) of 0 blocks is 256).
    `requires`: units without that have no such field."""

    name: str
    byte: int
    length: int = 1
    mask: int = 0
    zero_means: int = 0
    requires: Feature = Feature.NONE

    def used(self) -> Iterable[tuple[int, int]]:
        """Byte and the bits in it that the field has."""
        for at in range(self.length):
            yield self.byte + at, self.mask if self.mask and at == 0 else 0xFF

    @property
    def first_bit(self) -> int:
        """The most significant bit, as field pointers name it."""
        return (self.mask or 0xFF).bit_length() - 1


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `usage` is the CDB usage data of SPC-5 6.36.3: byte 0 is the operation code, the SERVICE ACTION
    field holds the row's own service action, every other bit is 1 where the device server looks at it; a CDB with
    any other bit set is refused. `timeout`: seconds that an initiator should grant, 0 where nobody can say."""

    name: str
    usage: bytes
    gate_mask: GateBit
    service_action: int | None = None
    direction: Direction = Direction.NONE
    media: MediaOp = MediaOp.NONE
    handler: str = ""
    parameter_list_max: int = 0
    conflict: Conflict = Conflict.ALLOWED
    device_types: frozenset[DeviceType] = frozenset({DeviceType.DISK})
    requires: Feature = Feature.NONE
    fields: tuple[Field, ...] = ()
    timeout: int = SECONDS
    passes_reserve: bool = False
    """another nexus's RESERVE does not keep it out (SPC-2 table 10), or its handler decides"""
    conflicts_unless: str = ""
    """the field that lifts `conflict` where it is not zero"""
    conflicts_if: str = ""
    """the field that lifts it where it is zero"""
    may_repair: bool = False
    """may run on a unit that a failed operation left behind"""
    access: Access = Access.ACTIVE
    once: bool = False
    """may not run twice: what a process that was killed had in flight is answered from what it kept"""

    @property
    def opcode(self) -> int:
        return self.usage[0]

    @property
    def cdb_length(self) -> int:
        return len(self.usage)

    def field(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)

    def __getitem__(self, name: str) -> Field:
        """The field of that name; KeyError when the command has none."""
        field = self.field(name)
        if field is None:
            raise KeyError(f"{self.name} has no {name}")
        return field

    def conflict_of(self, cdb: bytes) -> Conflict:
        """How this very command meets a persistent reservation."""
        if self.conflicts_unless and self.value(self[self.conflicts_unless], cdb):
            return Conflict.ALLOWED
        if self.conflicts_if and not self.value(self[self.conflicts_if], cdb):
            return Conflict.ALLOWED
        return self.conflict

    def only(self, has: Callable[[Feature], bool]) -> Command:
        """The command as a unit has it that lacks some of the features which fields require."""
        fields = tuple(field for field in self.fields if has(field.requires))
        if len(fields) == len(self.fields):
            return self
        usage = usage_of(self.opcode, self.cdb_length, self.service_action, fields)
        return replace(self, fields=fields, usage=usage)

    def value(self, field: Field, cdb: bytes) -> int:
        """The field's value in a CDB of at least cdb_length bytes."""
        if field.mask and field.length == 1:
            return (cdb[field.byte] & field.mask) // (field.mask & -field.mask)
        value = int.from_bytes(cdb[byte] & bits for byte, bits in field.used())
        return value or field.zero_means


# ---- why a command may have to wait, or be refused -------------------------------------------------------------------

ANY: Final = GateBit.FAULT | GateBit.TRACE | GateBit.TMF | GateBit.ORDERED | GateBit.ACA | GateBit.HOLD
ATTENTIVE: Final = ANY | GateBit.UNIT_ATTENTION
WITH_MEDIUM: Final = ATTENTIVE | GateBit.NO_MEDIUM
READY: Final = WITH_MEDIUM | GateBit.NOT_READY | GateBit.ACCESS
READS: Final = READY | GateBit.EXCLUSIVE | GateBit.RESERVED_READ
CHANGES: Final = READY | GateBit.EXCLUSIVE | GateBit.RESERVED_WRITE | GateBit.WRITE_PROTECTED
WRITES: Final = CHANGES | GateBit.STORE_FAILED | GateBit.MARKED
FLUSHES: Final = READY | GateBit.RESERVED_WRITE | GateBit.STORE_FAILED
CONTROLS: Final = ATTENTIVE | GateBit.RESERVED_WRITE

DISK_AND_WELL_KNOWN: Final = frozenset({DeviceType.DISK, DeviceType.CD_DVD, DeviceType.WELL_KNOWN})
DISK: Final = frozenset({DeviceType.DISK})
DISK_AND_CD: Final = frozenset({DeviceType.DISK, DeviceType.CD_DVD})
CD: Final = frozenset({DeviceType.CD_DVD})


# ---- builders --------------------------------------------------------------------------------------------------------


def usage_of(opcode: int, length: int, service_action: int | None, fields: Iterable[Field]) -> bytes:
    """The CDB usage data: everything that has a name, and nothing else."""
    usage = bytearray(length)
    # SAM-5 5.2: CONTROL, of which NACA is looked at.
    usage[1 if opcode == VARIABLE_LENGTH else -1] = NACA
    usage[0] = opcode
    if opcode == VARIABLE_LENGTH:
        usage[7] = length - 8
        usage[8:10] = (service_action or 0).to_bytes(2)
    elif service_action is not None:
        usage[1] = service_action
    for field in fields:
        for byte, bits in field.used():
            usage[byte] |= bits
    return bytes(usage)


def python(
    name: str,
    opcode: int,
    length: int,
    gate_mask: GateBit,
    handler: str,
    fields: tuple[Field, ...] = (),
    *,
    service_action: int | None = None,
    direction: Direction = Direction.IN,
    parameter_list_max: int = 0,
    conflict: Conflict = Conflict.ALLOWED,
    device_types: frozenset[DeviceType] = frozenset({DeviceType.DISK}),
    requires: Feature = Feature.NONE,
    timeout: int = SECONDS,
    passes_reserve: bool = False,
    conflicts_unless: str = "",
    conflicts_if: str = "",
    may_repair: bool = False,
    access: Access = Access.ACTIVE,
    once: bool = False,
) -> Command:
    """A command that a handler serves."""
    return Command(
        name,
        usage_of(opcode, length, service_action, fields),
        gate_mask,
        service_action=service_action,
        direction=direction,
        handler=handler,
        parameter_list_max=parameter_list_max,
        conflict=conflict,
        device_types=device_types,
        requires=requires,
        fields=fields,
        timeout=timeout,
        passes_reserve=passes_reserve,
        conflicts_unless=conflicts_unless,
        conflicts_if=conflicts_if,
        may_repair=may_repair,
        access=access,
        once=once,
    )


def media(
    name: str,
    opcode: int,
    length: int,
    gate_mask: GateBit,
    operation: MediaOp,
    direction: Direction,
    fields: tuple[Field, ...] = (),
    *,
    service_action: int | None = None,
    parameter_list_max: int = 0,
    requires: Feature = Feature.NONE,
    device_types: frozenset[DeviceType] = frozenset({DeviceType.DISK}),
    once: bool = False,
) -> Command:
    """A command that C carries out; how it meets reservations is in its gate mask."""
    conflict = Conflict.ALLOWED
    if DeviceType.CD_DVD not in device_types:
        gate_mask |= GateBit.DISK_ONLY
    if gate_mask & GateBit.RESERVED_READ:
        conflict = Conflict.READ
    if gate_mask & GateBit.RESERVED_WRITE:
        conflict = Conflict.WRITE
    return Command(
        name,
        usage_of(opcode, length, service_action, fields),
        gate_mask,
        service_action=service_action,
        direction=direction,
        media=operation,
        parameter_list_max=parameter_list_max,
        conflict=conflict,
        requires=requires,
        device_types=device_types,
        fields=fields,
        once=once,
    )


def allocation(byte: int, length: int) -> Field:
    return Field("allocation_length", byte, length)


def parameter_list(byte: int, length: int) -> Field:
    return Field("parameter_list_length", byte, length)
