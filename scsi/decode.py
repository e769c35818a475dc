# SPDX-License-Identifier: Apache-2.0
"""CDBs in words, for people who look at queues: "READ(10) lba 2048 blocks 8 fua". Derived from the command rows.

It reads whatever a guest sent and refuses nothing.
"""

from typing import Final

from vhost_scsi.scsi.commands import Command, Field, parse

ALWAYS: Final = frozenset({"lba", "blocks"})
"""said even when zero"""
HEXADECIMAL: Final = frozenset(
    {"page_code", "subpage_code", "select_report", "requested_operation_code", "requested_service_action"}
)


def _words(row: Command, field: Field, cdb: bytes) -> str | None:
    value = row.value(field, cdb)
    name = field.name.replace("_", " ")
    if not value and field.name not in ALWAYS:
        return None
    if field.mask and field.mask & (field.mask - 1) == 0:
        return name
    return f"{name} {value:02X}h" if field.name in HEXADECIMAL else f"{name} {value}"


def decode(cdb: bytes) -> str:
    """One line. An unknown command is named by its codes; a CDB that is too short by its row's name only."""
    row = parse(cdb)
    if row is None:
        if not cdb:
            return "empty CDB"
        return f"operation code {cdb[0]:02X}h" + (f" ({cdb[:16].hex(' ')})" if len(cdb) > 1 else "")
    if len(cdb) < row.cdb_length:
        return f"{row.name} (cut short: {len(cdb)} of {row.cdb_length} bytes)"
    words = (_words(row, field, cdb) for field in row.fields)
    return " ".join([row.name, *(word for word in words if word is not None)])
