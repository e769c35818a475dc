# SPDX-License-Identifier: Apache-2.0
"""The rows of commands about the unit itself (SPC-5 6, SBC-4 5), served by Python handlers.

No bit is set for what we do not do (PMI, LOEJ of a unit that cannot be removed, NACA): it is refused, not ignored.
"""

from typing import Final

from vhost_scsi.scsi.command import (
    ANY,
    ATTENTIVE,
    CONTROLS,
    DISK_AND_WELL_KNOWN,
    Access,
    Command,
    Conflict,
    Direction,
    Field,
    allocation,
    parameter_list,
    python,
)
from vhost_scsi.scsi.limits import PARAMETER_LIST_BYTES

_IN, _OUT, _NO_DATA = Direction.IN, Direction.OUT, Direction.NONE
_PAGE: Final = (Field("pc", 2, mask=0xC0), Field("page_code", 2, mask=0x3F), Field("subpage_code", 3))
_DBD: Final = Field("dbd", 1, mask=0x08)
_PF: Final = Field("pf", 1, mask=0x10)
_SP: Final = Field("sp", 1, mask=0x01)

UNIT_ROWS: Final[tuple[Command, ...]] = (
    python(
        "REQUEST SENSE",
        0x03,
        6,
        ANY,
        "request_sense",
        (Field("desc", 1, mask=0x01), allocation(4, 1)),
        passes_reserve=True,
        access=Access.ALWAYS,
        device_types=DISK_AND_WELL_KNOWN,
    ),
    python(
        "INQUIRY",
        0x12,
        6,
        ANY,
        "inquiry",
        (Field("evpd", 1, mask=0x01), Field("page_code", 2), allocation(3, 2)),
        passes_reserve=True,
        access=Access.ALWAYS,
        device_types=DISK_AND_WELL_KNOWN,
    ),
    python(
        "MODE SELECT(6)",
        0x15,
        6,
        CONTROLS,
        "mode_select_6",
        (_PF, _SP, parameter_list(4, 1)),
        direction=_OUT,
        parameter_list_max=0xFF,
        conflict=Conflict.WRITE,
        access=Access.STANDBY,
    ),
    python(
        "MODE SENSE(6)",
        0x1A,
        6,
        CONTROLS,
        "mode_sense_6",
        (_DBD, *_PAGE, allocation(4, 1)),
        conflict=Conflict.WRITE,
        access=Access.STANDBY,
    ),
    # SBC-4 table 13: conflicts unless START is one.
    python(
        "START STOP UNIT",
        0x1B,
        6,
        ATTENTIVE,
        "start_stop_unit",
        (
            Field("immed", 1, mask=0x01),
            Field("power_condition_modifier", 3, mask=0x0F),
            Field("power_condition", 4, mask=0xF0),
            Field("no_flush", 4, mask=0x04),
            Field("start", 4, mask=0x01),
        ),
        direction=_NO_DATA,
        conflict=Conflict.WRITE,
        conflicts_unless="start",
    ),
    python("READ CAPACITY(10)", 0x25, 10, ATTENTIVE, "read_capacity_10"),
    python(
        "MODE SELECT(10)",
        0x55,
        10,
        CONTROLS,
        "mode_select_10",
        (_PF, _SP, parameter_list(7, 2)),
        direction=_OUT,
        parameter_list_max=PARAMETER_LIST_BYTES - 1,
        conflict=Conflict.WRITE,
        access=Access.STANDBY,
    ),
    python(
        "MODE SENSE(10)",
        0x5A,
        10,
        CONTROLS,
        "mode_sense_10",
        (Field("llbaa", 1, mask=0x10), _DBD, *_PAGE, allocation(7, 2)),
        conflict=Conflict.WRITE,
        access=Access.STANDBY,
    ),
    python(
        "READ CAPACITY(16)",
        0x9E,
        16,
        ATTENTIVE,
        "read_capacity_16",
        (allocation(10, 4),),
        service_action=0x10,
    ),
    python(
        "REPORT LUNS",
        0xA0,
        12,
        ANY,
        "report_luns",
        (Field("select_report", 2), allocation(6, 4)),
        passes_reserve=True,
        access=Access.ALWAYS,
        device_types=DISK_AND_WELL_KNOWN,
    ),
    python(
        "REPORT SUPPORTED OPERATION CODES",
        0xA3,
        12,
        CONTROLS,
        "report_supported_operation_codes",
        (
            Field("rctd", 2, mask=0x80),
            Field("reporting_options", 2, mask=0x07),
            Field("requested_operation_code", 3),
            Field("requested_service_action", 4, 2),
            allocation(6, 4),
        ),
        service_action=0x0C,
        conflict=Conflict.WRITE,
    ),
    # SPC-5 5.17.2.4: these two are how an initiator finds its way out of every state.
    python(
        "REPORT TARGET PORT GROUPS",
        0xA3,
        12,
        ATTENTIVE,
        "report_target_port_groups",
        (Field("parameter_data_format", 1, mask=0xE0), allocation(6, 4)),
        service_action=0x0A,
        access=Access.ALWAYS,
    ),
    python(
        "SET TARGET PORT GROUPS",
        0xA4,
        12,
        ATTENTIVE,
        "set_target_port_groups",
        (parameter_list(6, 4),),
        service_action=0x0A,
        direction=_OUT,
        parameter_list_max=PARAMETER_LIST_BYTES - 1,
        conflict=Conflict.WRITE,
        access=Access.UNAVAILABLE,
    ),
)
