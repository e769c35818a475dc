# SPDX-License-Identifier: Apache-2.0
"""Every SCSI command, one row each. The parser, REPORT SUPPORTED OPERATION CODES, the C dispatch table and the
decoder are derived from these rows; nothing else in the tree lists commands.

A row says what a command looks like and what may keep it from running. What it does is its handler, registered
under the row's handler name (`dispatch`), or, for rows with a media operation, C.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.limits import PARAMETER_LIST_BYTES


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


class Direction(IntEnum):
    """The buffer that the command transfers through, if it transfers."""

    NONE = 0
    IN = 1
    OUT = 2


class DeviceType(IntEnum):
    """SPC-5 6.7.2, PERIPHERAL DEVICE TYPE."""

    DISK = 0x00
    WELL_KNOWN = 0x1E
    UNKNOWN = 0x1F


class Conflict(IntEnum):
    """How a command meets another nexus's persistent reservation (SPC-5 5.14.1, SBC-4 4.19)."""

    ALLOWED = 0
    READ = 1
    """conflicts with exclusive access types only"""
    WRITE = 2
    """conflicts with write exclusive types too"""


class Feature(IntEnum):
    """An ability of the medium without which a command is not offered."""

    NONE = 0
    UNMAP = 1


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a CDB: `length` bytes from `byte` on, as far as the usage data cover them, or the bits of `mask` in
    one byte. `zero_means`: what a zero stands for (SBC-4 5.13: READ(6) of 0 blocks is 256 blocks)."""

    name: str
    byte: int
    length: int = 1
    mask: int = 0
    zero_means: int = 0


_DISK: Final = frozenset({DeviceType.DISK})
_DISK_AND_WELL_KNOWN: Final = frozenset({DeviceType.DISK, DeviceType.WELL_KNOWN})

_ANY: Final = GateBit.FAULT | GateBit.TRACE | GateBit.TMF | GateBit.ORDERED | GateBit.ACA | GateBit.HOLD
_ATTENTIVE: Final = _ANY | GateBit.UNIT_ATTENTION
_READS: Final = _ATTENTIVE | GateBit.NOT_READY | GateBit.EXCLUSIVE | GateBit.RESERVED_READ
_CHANGES: Final = _ATTENTIVE | GateBit.NOT_READY | GateBit.EXCLUSIVE | GateBit.RESERVED_WRITE | GateBit.WRITE_PROTECTED
_WRITES: Final = _CHANGES | GateBit.STORE_FAILED
_FLUSHES: Final = _ATTENTIVE | GateBit.NOT_READY | GateBit.RESERVED_WRITE | GateBit.STORE_FAILED
_CONTROLS: Final = _ATTENTIVE | GateBit.RESERVED_WRITE


@dataclass(frozen=True, slots=True)
class Command:
    """One command. `usage` is the CDB usage data of SPC-5 6.36.3: byte 0 is the operation code, the SERVICE ACTION
    field holds the row's own service action, every other bit is 1 where the device server looks at it; a CDB with
    any other bit set is refused."""

    name: str
    usage: bytes
    gate_mask: GateBit
    service_action: int | None = None
    direction: Direction = Direction.NONE
    media: MediaOp = MediaOp.NONE
    handler: str = ""
    parameter_list_max: int = 0
    conflict: Conflict = Conflict.ALLOWED
    device_types: frozenset[DeviceType] = _DISK
    requires: Feature = Feature.NONE
    fields: tuple[Field, ...] = ()

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

    def value(self, field: Field, cdb: bytes) -> int:
        """The field's value in a CDB of at least cdb_length bytes."""
        if field.mask:
            return (cdb[field.byte] & field.mask) // (field.mask & -field.mask)
        part = slice(field.byte, field.byte + field.length)
        value = int.from_bytes(byte & used for byte, used in zip(cdb[part], self.usage[part], strict=True))
        return value or field.zero_means


def _python(
    name: str,
    usage: str,
    gate_mask: GateBit,
    handler: str,
    fields: tuple[Field, ...],
    *,
    service_action: int | None = None,
    direction: Direction = Direction.IN,
    parameter_list_max: int = 0,
    conflict: Conflict = Conflict.ALLOWED,
    device_types: frozenset[DeviceType] = _DISK,
) -> Command:
    return Command(
        name,
        bytes.fromhex(usage),
        gate_mask,
        service_action=service_action,
        direction=direction,
        handler=handler,
        parameter_list_max=parameter_list_max,
        conflict=conflict,
        device_types=device_types,
        fields=fields,
    )


def _media(
    name: str,
    usage: str,
    gate_mask: GateBit,
    media: MediaOp,
    direction: Direction,
    fields: tuple[Field, ...],
    *,
    parameter_list_max: int = 0,
    requires: Feature = Feature.NONE,
    device_types: frozenset[DeviceType] = _DISK,
) -> Command:
    conflict = Conflict.ALLOWED
    if gate_mask & GateBit.RESERVED_READ:
        conflict = Conflict.READ
    if gate_mask & GateBit.RESERVED_WRITE:
        conflict = Conflict.WRITE
    return Command(
        name,
        bytes.fromhex(usage),
        gate_mask,
        direction=direction,
        media=media,
        parameter_list_max=parameter_list_max,
        conflict=conflict,
        requires=requires,
        device_types=device_types,
        fields=fields,
    )


def _allocation(byte: int, length: int) -> Field:
    return Field("allocation_length", byte, length)


def _list(byte: int, length: int) -> Field:
    return Field("parameter_list_length", byte, length)


def _range(lba: tuple[int, int], blocks: tuple[int, int], zero_means: int = 0) -> tuple[Field, ...]:
    return Field("lba", *lba), Field("blocks", *blocks, zero_means=zero_means)


_DPO_FUA: Final = (Field("dpo", 1, mask=0x10), Field("fua", 1, mask=0x08))
_VERIFY: Final = (Field("dpo", 1, mask=0x10), Field("bytchk", 1, mask=0x06))
_IMMED: Final = (Field("immed", 1, mask=0x02),)
_UNMAP: Final = (Field("unmap", 1, mask=0x08),)
_RANGE_6: Final = _range((1, 3), (4, 1), zero_means=256)
_RANGE_10: Final = _range((2, 4), (7, 2))
_RANGE_12: Final = _range((2, 4), (6, 4))
_RANGE_16: Final = _range((2, 8), (10, 4))
_PAGE: Final = (Field("pc", 2, mask=0xC0), Field("page_code", 2, mask=0x3F), Field("subpage_code", 3))
_DBD: Final = Field("dbd", 1, mask=0x08)
_PF: Final = Field("pf", 1, mask=0x10)


_IN, _OUT, _NO_DATA = Direction.IN, Direction.OUT, Direction.NONE
_M = MediaOp

# No bit is set for RDPROTECT, WRPROTECT, VRPROTECT (no protection information), RARC, GROUP NUMBER (GROUP_SUP=0),
# ANCHOR (ANC_SUP=0), PMI (obsolete), SP (nothing is saved), POWER CONDITION, LOEJ (not removable) and NACA
# (NORMACA=0): a request for what we do not do is refused, not ignored.
COMMANDS: Final[tuple[Command, ...]] = (
    _media(
        "TEST UNIT READY",
        "00 00 00 00 00 00",
        _ATTENTIVE | GateBit.NOT_READY,
        _M.TEST_UNIT_READY,
        _NO_DATA,
        (),
        device_types=_DISK_AND_WELL_KNOWN,
    ),
    _python(
        "REQUEST SENSE",
        "03 01 00 00 FF 00",
        _ANY,
        "request_sense",
        (Field("desc", 1, mask=0x01), _allocation(4, 1)),
        device_types=_DISK_AND_WELL_KNOWN,
    ),
    _media("READ(6)", "08 1F FF FF FF 00", _READS, _M.READ, _IN, _RANGE_6),
    _media("WRITE(6)", "0A 1F FF FF FF 00", _WRITES, _M.WRITE, _OUT, _RANGE_6),
    _python(
        "INQUIRY",
        "12 01 FF FF FF 00",
        _ANY,
        "inquiry",
        (Field("evpd", 1, mask=0x01), Field("page_code", 2), _allocation(3, 2)),
        device_types=_DISK_AND_WELL_KNOWN,
    ),
    _python(
        "MODE SELECT(6)",
        "15 10 00 00 FF 00",
        _CONTROLS,
        "mode_select_6",
        (_PF, _list(4, 1)),
        direction=_OUT,
        parameter_list_max=0xFF,
        conflict=Conflict.WRITE,
    ),
    _python(
        "MODE SENSE(6)",
        "1A 08 FF FF FF 00",
        _CONTROLS,
        "mode_sense_6",
        (_DBD, *_PAGE, _allocation(4, 1)),
        conflict=Conflict.WRITE,
    ),
    # SPC-5 table 71: conflicts unless START is one; the handler, not the gate, sees that bit.
    _python(
        "START STOP UNIT",
        "1B 01 00 00 05 00",
        _ATTENTIVE,
        "start_stop_unit",
        (Field("immed", 1, mask=0x01), Field("no_flush", 4, mask=0x04), Field("start", 4, mask=0x01)),
        direction=_NO_DATA,
        conflict=Conflict.WRITE,
    ),
    _python("READ CAPACITY(10)", "25 00 00 00 00 00 00 00 00 00", _ATTENTIVE, "read_capacity_10", ()),
    _media("READ(10)", "28 18 FF FF FF FF 00 FF FF 00", _READS, _M.READ, _IN, (*_RANGE_10, *_DPO_FUA)),
    _media("WRITE(10)", "2A 18 FF FF FF FF 00 FF FF 00", _WRITES, _M.WRITE, _OUT, (*_RANGE_10, *_DPO_FUA)),
    _media("VERIFY(10)", "2F 16 FF FF FF FF 00 FF FF 00", _READS, _M.VERIFY, _OUT, (*_RANGE_10, *_VERIFY)),
    _media(
        "SYNCHRONIZE CACHE(10)",
        "35 02 FF FF FF FF 00 FF FF 00",
        _FLUSHES,
        _M.SYNCHRONIZE_CACHE,
        _NO_DATA,
        (*_RANGE_10, *_IMMED),
    ),
    _media("WRITE SAME(10)", "41 08 FF FF FF FF 00 FF FF 00", _WRITES, _M.WRITE_SAME, _OUT, (*_RANGE_10, *_UNMAP)),
    _media(
        "UNMAP",
        "42 00 00 00 00 00 00 FF FF 00",
        _WRITES,
        _M.UNMAP,
        _OUT,
        (_list(7, 2),),
        parameter_list_max=PARAMETER_LIST_BYTES - 1,
        requires=Feature.UNMAP,
    ),
    _python(
        "MODE SELECT(10)",
        "55 10 00 00 00 00 00 FF FF 00",
        _CONTROLS,
        "mode_select_10",
        (_PF, _list(7, 2)),
        direction=_OUT,
        parameter_list_max=PARAMETER_LIST_BYTES - 1,
        conflict=Conflict.WRITE,
    ),
    _python(
        "MODE SENSE(10)",
        "5A 18 FF FF 00 00 00 FF FF 00",
        _CONTROLS,
        "mode_sense_10",
        (Field("llbaa", 1, mask=0x10), _DBD, *_PAGE, _allocation(7, 2)),
        conflict=Conflict.WRITE,
    ),
    _media(
        "READ(16)", "88 18 FF FF FF FF FF FF FF FF FF FF FF FF 00 00", _READS, _M.READ, _IN, (*_RANGE_16, *_DPO_FUA)
    ),
    _media(
        "COMPARE AND WRITE",
        "89 18 FF FF FF FF FF FF FF FF 00 00 00 FF 00 00",
        _WRITES,
        _M.COMPARE_AND_WRITE,
        _OUT,
        (*_range((2, 8), (13, 1)), *_DPO_FUA),
    ),
    _media(
        "WRITE(16)", "8A 18 FF FF FF FF FF FF FF FF FF FF FF FF 00 00", _WRITES, _M.WRITE, _OUT, (*_RANGE_16, *_DPO_FUA)
    ),
    _media(
        "VERIFY(16)", "8F 16 FF FF FF FF FF FF FF FF FF FF FF FF 00 00", _READS, _M.VERIFY, _OUT, (*_RANGE_16, *_VERIFY)
    ),
    _media(
        "SYNCHRONIZE CACHE(16)",
        "91 02 FF FF FF FF FF FF FF FF FF FF FF FF 00 00",
        _FLUSHES,
        _M.SYNCHRONIZE_CACHE,
        _NO_DATA,
        (*_RANGE_16, *_IMMED),
    ),
    _media(
        "WRITE SAME(16)",
        "93 09 FF FF FF FF FF FF FF FF FF FF FF FF 00 00",
        _WRITES,
        _M.WRITE_SAME,
        _OUT,
        (*_RANGE_16, *_UNMAP, Field("ndob", 1, mask=0x01)),
    ),
    _python(
        "READ CAPACITY(16)",
        "9E 10 00 00 00 00 00 00 00 00 FF FF FF FF 00 00",
        _ATTENTIVE,
        "read_capacity_16",
        (_allocation(10, 4),),
        service_action=0x10,
    ),
    _python(
        "REPORT LUNS",
        "A0 00 FF 00 00 00 FF FF FF FF 00 00",
        _ANY,
        "report_luns",
        (Field("select_report", 2), _allocation(6, 4)),
        device_types=_DISK_AND_WELL_KNOWN,
    ),
    _python(
        "REPORT SUPPORTED OPERATION CODES",
        "A3 0C 87 FF FF FF FF FF FF FF 00 00",
        _CONTROLS,
        "report_supported_operation_codes",
        (
            Field("rctd", 2, mask=0x80),
            Field("reporting_options", 2, mask=0x07),
            Field("requested_operation_code", 3),
            Field("requested_service_action", 4, 2),
            _allocation(6, 4),
        ),
        service_action=0x0C,
        conflict=Conflict.WRITE,
    ),
    _media("READ(12)", "A8 18 FF FF FF FF FF FF FF FF 00 00", _READS, _M.READ, _IN, (*_RANGE_12, *_DPO_FUA)),
    _media("WRITE(12)", "AA 18 FF FF FF FF FF FF FF FF 00 00", _WRITES, _M.WRITE, _OUT, (*_RANGE_12, *_DPO_FUA)),
)

_WITH_SERVICE_ACTION: Final = frozenset(row.opcode for row in COMMANDS if row.service_action is not None)
_BY_CODE: Final = {(row.opcode, row.service_action): row for row in COMMANDS}


def has_service_actions(opcode: int) -> bool:
    return opcode in _WITH_SERVICE_ACTION


def find(opcode: int, service_action: int | None) -> Command | None:
    """The row of an operation code and, for codes that have them, a service action."""
    return _BY_CODE.get((opcode, service_action if has_service_actions(opcode) else None))


def parse(cdb: bytes) -> Command | None:
    """The row of a CDB, or None. The service action of our opcodes stands in byte 1, bits 4..0 (SPC-5 4.2.2)."""
    if not cdb:
        return None
    return find(cdb[0], cdb[1] & 0x1F if len(cdb) > 1 else None)


def first_unused_bit(row: Command, cdb: bytes) -> tuple[int, int] | None:
    """The first bit (byte, bit) that is set in the CDB though the row does not use it."""
    for byte in range(1, row.cdb_length):
        stray = cdb[byte] & ~row.usage[byte]
        if stray:
            return byte, stray.bit_length() - 1
    return None
