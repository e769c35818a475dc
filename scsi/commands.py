# SPDX-License-Identifier: Apache-2.0
"""Every SCSI command, one row each. The parser, REPORT SUPPORTED OPERATION CODES, the C dispatch table, the decoder and
docs/conformance.md are derived from these rows; nothing else in the tree lists commands.

A row says what a command looks like and what may keep it from running. What it does is its handler, registered
under the row's handler name (`dispatch`), or, for rows with a media operation, C. To add a command is to add its row to
one of the tables below.
"""

from typing import Final

from vhost_scsi.scsi.command import (
    VARIABLE_LENGTH,
    Command,
    Conflict,
    DeviceType,
    Direction,
    Feature,
    Field,
    MediaOp,
)
from vhost_scsi.scsi.medium_rows import MEDIUM_ROWS
from vhost_scsi.scsi.multimedia_rows import MULTIMEDIA_ROWS
from vhost_scsi.scsi.reservation_rows import RESERVATION_ROWS
from vhost_scsi.scsi.service_rows import SERVICE_ROWS
from vhost_scsi.scsi.unit_rows import UNIT_ROWS

__all__ = [
    "COMMANDS",
    "VARIABLE_LENGTH",
    "Command",
    "Conflict",
    "DeviceType",
    "Direction",
    "Feature",
    "Field",
    "MediaOp",
    "find",
    "first_unused_bit",
    "has_service_actions",
    "parse",
    "service_action_of",
]

COMMANDS: Final[tuple[Command, ...]] = tuple(
    sorted(
        (*MEDIUM_ROWS, *MULTIMEDIA_ROWS, *RESERVATION_ROWS, *SERVICE_ROWS, *UNIT_ROWS),
        key=lambda row: (row.opcode, row.service_action or 0),
    )
)

_WITH_SERVICE_ACTION: Final = frozenset(row.opcode for row in COMMANDS if row.service_action is not None)
_BY_CODE: Final = {(row.opcode, row.service_action): row for row in COMMANDS}


def has_service_actions(opcode: int) -> bool:
    return opcode in _WITH_SERVICE_ACTION


def find(opcode: int, service_action: int | None) -> Command | None:
    """The row of an operation code and, for codes that have them, a service action."""
    return _BY_CODE.get((opcode, service_action if has_service_actions(opcode) else None))


def service_action_of(cdb: bytes) -> int | None:
    """Byte 1, bits 4..0, or bytes 8 and 9 of a variable-length CDB (SPC-5 4.2.2, 4.2.3); None when it is too short."""
    if cdb[:1] == bytes([VARIABLE_LENGTH]):
        return int.from_bytes(cdb[8:10]) if len(cdb) >= 10 else None
    return cdb[1] & 0x1F if len(cdb) > 1 else None


def parse(cdb: bytes) -> Command | None:
    """The row of a CDB, or None."""
    return find(cdb[0], service_action_of(cdb)) if cdb else None


def first_unused_bit(row: Command, cdb: bytes) -> tuple[int, int] | None:
    """The first bit (byte, bit) that is set in the CDB though the row does not use it."""
    for byte in range(1, row.cdb_length):
        stray = cdb[byte] & ~row.usage[byte]
        if stray:
            return byte, stray.bit_length() - 1
    return None
