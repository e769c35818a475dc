# SPDX-License-Identifier: Apache-2.0
"""The rows of commands that look after the medium and the unit: formatting, defects, copies, diagnostics, buffers,
identification (SPC-5 6, SPC-4 6, SBC-4 5). Served by Python handlers, some of which move data themselves.
"""

from typing import Final

from vhost_scsi.scsi.command import (
    ATTENTIVE,
    CHANGES,
    CONTROLS,
    READS,
    Access,
    Command,
    Conflict,
    Direction,
    Feature,
    Field,
    allocation,
    parameter_list,
    python,
)
from vhost_scsi.scsi.limits import PARAMETER_LIST_BYTES

_OUT, _NO_DATA = Direction.OUT, Direction.NONE
_LIST_MAX: Final = PARAMETER_LIST_BYTES - 1
_HOUR: Final = 3600


def _bits(byte: int, **masks: int) -> tuple[Field, ...]:
    return tuple(Field(name, byte, mask=mask) for name, mask in masks.items())


def _sanitize(name: str, action: int, handler: str, *, requires: Feature = Feature.NONE) -> Command:
    # ZNR has no bit: the unit has no zones.
    return python(
        f"SANITIZE, {name}",
        0x48,
        10,
        CHANGES,
        handler,
        (*_bits(1, immed=0x80, ause=0x20), parameter_list(7, 2)),
        service_action=action,
        direction=_OUT,
        parameter_list_max=_LIST_MAX,
        conflict=Conflict.WRITE,
        requires=requires,
        timeout=24 * _HOUR,
        may_repair=True,
    )


def _receive_copy(name: str, action: int, handler: str, *fields: Field) -> Command:
    return python(
        f"RECEIVE COPY RESULTS, {name}",
        0x84,
        16,
        ATTENTIVE,
        handler,
        (*fields, allocation(10, 4)),
        service_action=action,
        conflict=Conflict.WRITE,
    )


def _defects(name: str, opcode: int, length: int, at: int, handler: str, *fields: Field) -> Command:
    flags = _bits(at, req_plist=0x10, req_glist=0x08, defect_list_format=0x07)
    return python(name, opcode, length, READS, handler, (*flags, *fields), conflict=Conflict.READ)


def _read_long(length: int, opcode: int, action: int | None, *fields: Field) -> Command:
    return python(
        f"READ LONG({length})",
        opcode,
        length,
        READS,
        "read_long",
        fields,
        service_action=action,
        conflict=Conflict.READ,
    )


def _write_long(length: int, opcode: int, action: int | None, *fields: Field) -> Command:
    return python(
        f"WRITE LONG({length})",
        opcode,
        length,
        CHANGES,
        "write_long",
        (*_bits(1, cor_dis=0x80, wr_uncor=0x40), *fields),
        service_action=action,
        direction=_OUT,
        parameter_list_max=_LIST_MAX,
        conflict=Conflict.WRITE,
    )


def _maintenance_in(name: str, action: int, handler: str, *fields: Field, conflict: Conflict) -> Command:
    fields = (*fields, allocation(6, 4))
    return python(name, 0xA3, 12, CONTROLS, handler, fields, service_action=action, conflict=conflict)


def _maintenance_out(name: str, action: int, handler: str, *fields: Field) -> Command:
    return python(
        name,
        0xA4,
        12,
        CONTROLS,
        handler,
        (*fields, parameter_list(6, 4)),
        service_action=action,
        direction=_OUT,
        parameter_list_max=_LIST_MAX,
        conflict=Conflict.WRITE,
    )


_LONG_LENGTH_10: Final = (Field("lba", 2, 4), Field("byte_transfer_length", 7, 2))
_LONG_LENGTH_16: Final = (Field("lba", 2, 8), Field("byte_transfer_length", 12, 2))
_LOG_PAGE: Final = (*_bits(2, pc=0xC0, page_code=0x3F), Field("subpage_code", 3))
_BUFFER: Final = (Field("mode", 1, mask=0x1F), Field("buffer_id", 2), Field("buffer_offset", 3, 3))

SERVICE_ROWS: Final[tuple[Command, ...]] = (
    python(
        "FORMAT UNIT",
        0x04,
        6,
        CHANGES,
        "format_unit",
        _bits(1, longlist=0x20, fmtdata=0x10, cmplst=0x08, defect_list_format=0x07),
        direction=_OUT,
        parameter_list_max=_LIST_MAX,
        conflict=Conflict.WRITE,
        timeout=24 * _HOUR,
        may_repair=True,
    ),
    _sanitize("OVERWRITE", 0x01, "sanitize_overwrite"),
    _sanitize("BLOCK ERASE", 0x02, "sanitize_block_erase", requires=Feature.UNMAP),
    _sanitize("EXIT FAILURE MODE", 0x1F, "sanitize_exit_failure_mode"),
    python(
        "GET LBA STATUS(16)",
        0x9E,
        16,
        READS,
        "get_lba_status",
        (Field("lba", 2, 8), allocation(10, 4)),
        service_action=0x12,
        conflict=Conflict.READ,
    ),
    _defects("READ DEFECT DATA(10)", 0x37, 10, 2, "read_defect_data_10", allocation(7, 2)),
    _defects(
        "READ DEFECT DATA(12)",
        0xB7,
        12,
        1,
        "read_defect_data_12",
        Field("address_descriptor_index", 2, 4),
        allocation(6, 4),
    ),
    _read_long(10, 0x3E, None, Field("corrct", 1, mask=0x02), *_LONG_LENGTH_10),
    _read_long(16, 0x9E, 0x11, Field("corrct", 14, mask=0x01), *_LONG_LENGTH_16),
    _write_long(10, 0x3F, None, *_LONG_LENGTH_10),
    _write_long(16, 0x9F, 0x11, *_LONG_LENGTH_16),
    python(
        "EXTENDED COPY(LID1)",
        0x83,
        16,
        READS,
        "extended_copy",
        (parameter_list(10, 4),),
        service_action=0x00,
        direction=_OUT,
        parameter_list_max=_LIST_MAX,
        conflict=Conflict.WRITE,
        timeout=_HOUR,
        once=True,
    ),
    _receive_copy("COPY STATUS", 0x00, "receive_copy_status", Field("list_identifier", 2)),
    _receive_copy("OPERATING PARAMETERS", 0x03, "receive_copy_operating_parameters"),
    _receive_copy("FAILED SEGMENT DETAILS", 0x04, "receive_copy_failed_segment", Field("list_identifier", 2)),
    _maintenance_in(
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        0x0D,
        "report_supported_tmfs",
        Field("repd", 2, mask=0x80),
        conflict=Conflict.WRITE,
    ),
    _maintenance_in(
        "REPORT IDENTIFYING INFORMATION",
        0x05,
        "report_identifying_information",
        Field("information_type", 10, mask=0xFE),
        conflict=Conflict.ALLOWED,
    ),
    _maintenance_out(
        "SET IDENTIFYING INFORMATION",
        0x06,
        "set_identifying_information",
        Field("information_type", 10, mask=0xFE),
    ),
    _maintenance_in("REPORT TIMESTAMP", 0x0F, "report_timestamp", conflict=Conflict.ALLOWED),
    _maintenance_out("SET TIMESTAMP", 0x0F, "set_timestamp"),
    python(
        "LOG SELECT",
        0x4C,
        10,
        CONTROLS,
        "log_select",
        (*_bits(1, pcr=0x02), *_LOG_PAGE, parameter_list(7, 2)),
        direction=_OUT,
        parameter_list_max=_LIST_MAX,
        conflict=Conflict.WRITE,
    ),
    python(
        "LOG SENSE",
        0x4D,
        10,
        ATTENTIVE,
        "log_sense",
        (*_LOG_PAGE, Field("parameter_pointer", 5, 2), allocation(7, 2)),
    ),
    python("READ BUFFER(10)", 0x3C, 10, CONTROLS, "read_buffer", (*_BUFFER, allocation(6, 3)), conflict=Conflict.WRITE),
    python(
        "WRITE BUFFER",
        0x3B,
        10,
        CONTROLS,
        "write_buffer",
        (*_BUFFER, parameter_list(6, 3)),
        direction=_OUT,
        parameter_list_max=_LIST_MAX,
        conflict=Conflict.WRITE,
    ),
    python(
        "RECEIVE DIAGNOSTIC RESULTS",
        0x1C,
        6,
        CONTROLS,
        "receive_diagnostic_results",
        (Field("pcv", 1, mask=0x01), Field("page_code", 2), allocation(3, 2)),
        conflict=Conflict.WRITE,
        access=Access.STANDBY,
    ),
    python(
        "SEND DIAGNOSTIC",
        0x1D,
        6,
        CONTROLS | READS,
        "send_diagnostic",
        (
            *_bits(1, self_test_code=0xE0, pf=0x10, selftest=0x04, devoffl=0x02, unitoffl=0x01),
            parameter_list(3, 2),
        ),
        direction=_OUT,
        parameter_list_max=_LIST_MAX,
        conflict=Conflict.WRITE,
        timeout=_HOUR,
        access=Access.STANDBY,
    ),
)
