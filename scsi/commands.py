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

    @property
    def opcode(self) -> int:
        return self.usage[0]

    @property
    def cdb_length(self) -> int:
        return len(self.usage)


def _python(
    name: str,
    usage: str,
    gate_mask: GateBit,
    handler: str,
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
    )


def _media(
    name: str,
    usage: str,
    gate_mask: GateBit,
    media: MediaOp,
    direction: Direction,
    *,
    requires: Feature = Feature.NONE,
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
        conflict=conflict,
        requires=requires,
    )


_IN, _OUT, _NO_DATA = Direction.IN, Direction.OUT, Direction.NONE
_M = MediaOp

# No bit is set for RDPROTECT, WRPROTECT, VRPROTECT (no protection information), RARC, GROUP NUMBER (GROUP_SUP=0),
# ANCHOR (ANC_SUP=0), PMI (obsolete), SP (nothing is saved), POWER CONDITION, LOEJ (not removable) and NACA
# (NORMACA=0): a request for what we do not do is refused, not ignored.
COMMANDS: Final[tuple[Command, ...]] = (
    _media("TEST UNIT READY", "00 00 00 00 00 00", _ATTENTIVE | GateBit.NOT_READY, _M.TEST_UNIT_READY, _NO_DATA),
    _python("REQUEST SENSE", "03 01 00 00 FF 00", _ANY, "request_sense", device_types=_DISK_AND_WELL_KNOWN),
    _media("READ(6)", "08 1F FF FF FF 00", _READS, _M.READ, _IN),
    _media("WRITE(6)", "0A 1F FF FF FF 00", _WRITES, _M.WRITE, _OUT),
    _python("INQUIRY", "12 01 FF FF FF 00", _ANY, "inquiry", device_types=_DISK_AND_WELL_KNOWN),
    _python(
        "MODE SELECT(6)",
        "15 10 00 00 FF 00",
        _CONTROLS,
        "mode_select_6",
        direction=_OUT,
        parameter_list_max=0xFF,
        conflict=Conflict.WRITE,
    ),
    _python("MODE SENSE(6)", "1A 08 FF FF FF 00", _CONTROLS, "mode_sense_6", conflict=Conflict.WRITE),
    # SPC-5 table 71: conflicts unless START is one; the handler, not the gate, sees that bit.
    _python(
        "START STOP UNIT",
        "1B 01 00 00 05 00",
        _ATTENTIVE,
        "start_stop_unit",
        direction=_NO_DATA,
        conflict=Conflict.WRITE,
    ),
    _python("READ CAPACITY(10)", "25 00 00 00 00 00 00 00 00 00", _ATTENTIVE, "read_capacity_10"),
    _media("READ(10)", "28 18 FF FF FF FF 00 FF FF 00", _READS, _M.READ, _IN),
    _media("WRITE(10)", "2A 18 FF FF FF FF 00 FF FF 00", _WRITES, _M.WRITE, _OUT),
    _media("VERIFY(10)", "2F 16 FF FF FF FF 00 FF FF 00", _READS, _M.VERIFY, _OUT),
    _media("SYNCHRONIZE CACHE(10)", "35 02 FF FF FF FF 00 FF FF 00", _FLUSHES, _M.SYNCHRONIZE_CACHE, _NO_DATA),
    _media("WRITE SAME(10)", "41 08 FF FF FF FF 00 FF FF 00", _WRITES, _M.WRITE_SAME, _OUT),
    _media("UNMAP", "42 00 00 00 00 00 00 FF FF 00", _WRITES, _M.UNMAP, _OUT, requires=Feature.UNMAP),
    _python(
        "MODE SELECT(10)",
        "55 10 00 00 00 00 00 FF FF 00",
        _CONTROLS,
        "mode_select_10",
        direction=_OUT,
        parameter_list_max=PARAMETER_LIST_BYTES - 1,
        conflict=Conflict.WRITE,
    ),
    _python("MODE SENSE(10)", "5A 18 FF FF 00 00 00 FF FF 00", _CONTROLS, "mode_sense_10", conflict=Conflict.WRITE),
    _media("READ(16)", "88 18 FF FF FF FF FF FF FF FF FF FF FF FF 00 00", _READS, _M.READ, _IN),
    _media(
        "COMPARE AND WRITE",
        "89 18 FF FF FF FF FF FF FF FF 00 00 00 FF 00 00",
        _WRITES,
        _M.COMPARE_AND_WRITE,
        _OUT,
    ),
    _media("WRITE(16)", "8A 18 FF FF FF FF FF FF FF FF FF FF FF FF 00 00", _WRITES, _M.WRITE, _OUT),
    _media("VERIFY(16)", "8F 16 FF FF FF FF FF FF FF FF FF FF FF FF 00 00", _READS, _M.VERIFY, _OUT),
    _media(
        "SYNCHRONIZE CACHE(16)",
        "91 02 FF FF FF FF FF FF FF FF FF FF FF FF 00 00",
        _FLUSHES,
        _M.SYNCHRONIZE_CACHE,
        _NO_DATA,
    ),
    _media("WRITE SAME(16)", "93 09 FF FF FF FF FF FF FF FF FF FF FF FF 00 00", _WRITES, _M.WRITE_SAME, _OUT),
    _python(
        "READ CAPACITY(16)",
        "9E 10 00 00 00 00 00 00 00 00 FF FF FF FF 00 00",
        _ATTENTIVE,
        "read_capacity_16",
        service_action=0x10,
    ),
    _python(
        "REPORT LUNS",
        "A0 00 FF 00 00 00 FF FF FF FF 00 00",
        _ANY,
        "report_luns",
        device_types=_DISK_AND_WELL_KNOWN,
    ),
    _python(
        "REPORT SUPPORTED OPERATION CODES",
        "A3 0C 87 FF FF FF FF FF FF FF 00 00",
        _CONTROLS,
        "report_supported_operation_codes",
        service_action=0x0C,
        conflict=Conflict.WRITE,
    ),
    _media("READ(12)", "A8 18 FF FF FF FF FF FF FF FF 00 00", _READS, _M.READ, _IN),
    _media("WRITE(12)", "AA 18 FF FF FF FF FF FF FF FF 00 00", _WRITES, _M.WRITE, _OUT),
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
