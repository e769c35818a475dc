# SPDX-License-Identifier: Apache-2.0
"""What the data plane refused, in words: which command, page, service action or field an initiator asked for, or which
PDU, and why not. Derived from the command rows; it decides nothing, and reads whatever was sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vhost_scsi.iscsi import pdu
from vhost_scsi.iscsi.codes import Opcode, RejectReason
from vhost_scsi.iscsi.full_feature import RefusedBelow
from vhost_scsi.scsi import lun, sense, sense_data, vpd
from vhost_scsi.scsi.commands import (
    VARIABLE_LENGTH,
    Command,
    Field,
    has_service_actions,
    parse,
    service_action_of,
)
from vhost_scsi.scsi.sense import FieldPointer, SenseCode

COMMAND: Final = "command"
PDU: Final = "pdu"
"""kinds of refusals"""

# SPC-5 4.2.2.3: what operation codes with service actions are called without one
_FAMILIES: Final = {
    0x5E: "PERSISTENT RESERVE IN",
    0x5F: "PERSISTENT RESERVE OUT",
    0x7F: "variable-length CDB",
    0x9E: "SERVICE ACTION IN(16)",
    0x9F: "SERVICE ACTION OUT(16)",
    0xA3: "MAINTENANCE IN",
    0xA4: "MAINTENANCE OUT",
}
_PAGE_FIELDS: Final = frozenset(("evpd", "page_code", "subpage_code"))
_NO_COMMAND: Final = "there is no such command"
_NOT_TAKEN: Final = "the value is not supported"
_REASONS: Final = {
    RejectReason.COMMAND_NOT_SUPPORTED: "it is nothing that we know or do",
    RejectReason.IMMEDIATE_COMMAND_REJECT: "too many commands at once",
    RejectReason.INVALID_PDU_FIELD: "a field of it is wrong, such as a task tag that is in use",
    RejectReason.DATA_DIGEST_ERROR: "its data digest is wrong",
}


@dataclass(frozen=True, slots=True)
class Told:
    """As `Refusal` has them."""

    kind: str
    asked: str
    why: str
    lun: int | None = None


def tell(refused: RefusedBelow) -> Told:
    if refused.reject:
        known = _known_reason(refused.reject)
        why = "" if known is None else _REASONS.get(known, "")
        words = f"reject: {reason(refused.reject)}"
        return Told(PDU, pdu_name(refused.bhs), f"{why} ({words})" if why else words)
    place = lun.decode(refused.lun)
    asked, why = command(refused.cdb, refused.sense)
    if place is None and refused.lun != lun.REPORT_LUNS:
        asked += f" at LUN field {refused.lun.hex()}"
    return Told(COMMAND, asked, why, place)


def _known_reason(number: int) -> RejectReason | None:
    return RejectReason(number) if number in list(RejectReason) else None


def reason(number: int) -> str:
    known = _known_reason(number)
    return f"reason {number:02X}h" if known is None else known.name.replace("_", " ").lower()


def pdu_name(bhs: bytes) -> str:
    if not bhs:
        return "a PDU"
    opcode = pdu.opcode_of(bhs)
    if opcode not in list(Opcode):
        return f"opcode {opcode:#04x}"
    name = Opcode(opcode).name
    return f"{name} ({_name(bhs[32:48])})" if opcode == Opcode.SCSI_COMMAND else name


def command(cdb: bytes, sense_bytes: bytes) -> tuple[str, str]:
    """What was asked for, and why not."""
    try:
        told = sense_data.parse(sense_bytes)
    except ValueError:
        return _name(cdb), "for a reason that the sense data do not tell"
    code, pointer = told.code, told.field
    row = parse(cdb)
    if code.word == sense.INVALID_COMMAND_OPERATION_CODE.word:
        asked, why = _name(cdb), _NO_COMMAND
    elif row is None:
        asked, why = _name(cdb), "there is no such service action"
    elif len(cdb) < row.cdb_length:
        asked, why = row.name, f"its CDB ends after {len(cdb)} of {row.cdb_length} bytes"
    elif pointer is None:
        asked, why = row.name, "its lengths do not fit together"
    elif pointer.in_cdb and row.service_action is not None and (pointer.byte, pointer.bit) == _action_at(row):
        asked, why = row.name, "the unit does not have this service action"
    elif pointer.in_cdb:
        asked, why = _field(row, cdb, pointer)
    else:
        asked, why = f"{row.name}, parameter list", f"byte {pointer.byte} of it has a value that is not supported"
    return asked, f"{why} ({_spelled(code)})"


def _action_at(row: Command) -> tuple[int, int]:
    """The SERVICE ACTION field as sense data point at it."""
    return (8, 7) if row.opcode == VARIABLE_LENGTH else (1, 4)


def _spelled(code: SenseCode) -> str:
    return f"{code.text}, {code.asc:02X}h/{code.ascq:02X}h"


def _name(cdb: bytes) -> str:
    """The row's name, or the codes."""
    row = parse(cdb)
    if row is not None:
        return row.name
    if not cdb:
        return "an empty CDB"
    action = service_action_of(cdb)
    if cdb[0] not in _FAMILIES and not has_service_actions(cdb[0]):
        return f"operation code {cdb[0]:02X}h"
    name = f"{_FAMILIES[cdb[0]]} ({cdb[0]:02X}h)" if cdb[0] in _FAMILIES else f"operation code {cdb[0]:02X}h"
    return name if action is None else f"{name}, service action {action:02X}h"


def _field(row: Command, cdb: bytes, pointer: FieldPointer) -> tuple[str, str]:
    """Of a whole CDB, and the field that the sense data point at."""
    field = next((each for each in row.fields if _covers(each, pointer)), None)
    if field is None:
        bit = "" if pointer.bit is None else f"bit {pointer.bit} of "
        return row.name, f"{bit}byte {pointer.byte} of its CDB has to be zero"
    if field.name in _PAGE_FIELDS:
        return _page(row, cdb)
    words = field.name.replace("_", " ")
    # A long field may have any value, and each would be a refusal by itself.
    value = f" {row.value(field, cdb)}" if field.length == 1 else ""
    return f"{row.name} with {words}{value}", _NOT_TAKEN


def _covers(field: Field, pointer: FieldPointer) -> bool:
    return any(byte == pointer.byte and (pointer.bit is None or bits >> pointer.bit & 1) for byte, bits in field.used())


def _page(row: Command, cdb: bytes) -> tuple[str, str]:
    values = {field.name: row.value(field, cdb) for field in row.fields if field.name in _PAGE_FIELDS}
    code, subpage = values.get("page_code", 0), values.get("subpage_code", 0)
    if "evpd" not in values:
        kind = "log page" if row.name.startswith("LOG ") else "mode page"
        more = f", subpage {subpage:02X}h" if subpage else ""
        return f"{row.name}, {kind} {code:02X}h{more}", "there is no such page"
    if not values["evpd"]:
        return f"{row.name}, page code {code:02X}h without EVPD", "standard data have no pages"
    known = vpd.find(code)
    name = "" if known is None else f" ({known.name})"
    return f"{row.name}, VPD page {code:02X}h{name}", "there is no such page"
