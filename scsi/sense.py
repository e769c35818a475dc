# SPDX-License-Identifier: Apache-2.0
"""Sense keys, additional sense codes in SPC's spelling, and the exceptions that a handler raises.

    Exception
    ├── CheckCondition      a handler's CHECK CONDITION; caught in one place, LogicalUnit's decision
    └── EndsWith            another status than GOOD, without sense data; caught in the same place

How sense data look on the wire is `sense_data`. The table is generated into C (`VS_SK_*`, `VS_ASC_*`).
"""

import re
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from vhost_scsi.scsi.task import Status


class SenseKey(IntEnum):
    """SPC-5 4.4.7."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


@dataclass(frozen=True, slots=True)
class SenseCode:
    """An additional sense code with its qualifier, and the sense key with which we report it."""

    key: SenseKey
    asc: int
    ascq: int
    text: str

    @property
    def name(self) -> str:
        """The identifier: the standard's words joined by underscores."""
        return re.sub(r"[^A-Z0-9]+", "_", self.text).strip("_")

    @property
    def word(self) -> int:
        return self.asc << 8 | self.ascq


SENSE_CODES: Final[list[SenseCode]] = []


def _code(key: SenseKey, word: int, text: str) -> SenseCode:
    code = SenseCode(key, word >> 8, word & 0xFF, text)
    SENSE_CODES.append(code)
    return code


_NONE, _NOT_READY, _MEDIUM, _HARDWARE = (
    SenseKey.NO_SENSE,
    SenseKey.NOT_READY,
    SenseKey.MEDIUM_ERROR,
    SenseKey.HARDWARE_ERROR,
)
_ILLEGAL, _ATTENTION, _PROTECT, _ABORTED = (
    SenseKey.ILLEGAL_REQUEST,
    SenseKey.UNIT_ATTENTION,
    SenseKey.DATA_PROTECT,
    SenseKey.ABORTED_COMMAND,
)

# SPC-5 Annex F.2
NO_ADDITIONAL_SENSE_INFORMATION = _code(_NONE, 0x0000, "NO ADDITIONAL SENSE INFORMATION")
LOGICAL_UNIT_NOT_READY_CAUSE_NOT_REPORTABLE = _code(_NOT_READY, 0x0400, "LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE")
LOGICAL_UNIT_IS_IN_PROCESS_OF_BECOMING_READY = _code(_NOT_READY, 0x0401, "LOGICAL UNIT IS IN PROCESS OF BECOMING READY")
LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED = _code(
    _NOT_READY, 0x0402, "LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED"
)
LOGICAL_UNIT_NOT_READY_MANUAL_INTERVENTION_REQUIRED = _code(
    _NOT_READY, 0x0403, "LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED"
)
WRITE_ERROR = _code(_MEDIUM, 0x0C00, "WRITE ERROR")
LOGICAL_BLOCK_GUARD_CHECK_FAILED = _code(_ABORTED, 0x1001, "LOGICAL BLOCK GUARD CHECK FAILED")
LOGICAL_BLOCK_APPLICATION_TAG_CHECK_FAILED = _code(_ABORTED, 0x1002, "LOGICAL BLOCK APPLICATION TAG CHECK FAILED")
LOGICAL_BLOCK_REFERENCE_TAG_CHECK_FAILED = _code(_ABORTED, 0x1003, "LOGICAL BLOCK REFERENCE TAG CHECK FAILED")
UNRECOVERED_READ_ERROR = _code(_MEDIUM, 0x1100, "UNRECOVERED READ ERROR")
READ_ERROR_LBA_MARKED_BAD_BY_APPLICATION_CLIENT = _code(
    _MEDIUM, 0x1114, "READ ERROR - LBA MARKED BAD BY APPLICATION CLIENT"
)
PARAMETER_LIST_LENGTH_ERROR = _code(_ILLEGAL, 0x1A00, "PARAMETER LIST LENGTH ERROR")
MISCOMPARE_DURING_VERIFY_OPERATION = _code(SenseKey.MISCOMPARE, 0x1D00, "MISCOMPARE DURING VERIFY OPERATION")
INVALID_COMMAND_OPERATION_CODE = _code(_ILLEGAL, 0x2000, "INVALID COMMAND OPERATION CODE")
LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE = _code(_ILLEGAL, 0x2100, "LOGICAL BLOCK ADDRESS OUT OF RANGE")
INVALID_FIELD_IN_CDB = _code(_ILLEGAL, 0x2400, "INVALID FIELD IN CDB")
LOGICAL_UNIT_NOT_SUPPORTED = _code(_ILLEGAL, 0x2500, "LOGICAL UNIT NOT SUPPORTED")
INVALID_FIELD_IN_PARAMETER_LIST = _code(_ILLEGAL, 0x2600, "INVALID FIELD IN PARAMETER LIST")
PARAMETER_NOT_SUPPORTED = _code(_ILLEGAL, 0x2601, "PARAMETER NOT SUPPORTED")
PARAMETER_VALUE_INVALID = _code(_ILLEGAL, 0x2602, "PARAMETER VALUE INVALID")
INVALID_RELEASE_OF_PERSISTENT_RESERVATION = _code(_ILLEGAL, 0x2604, "INVALID RELEASE OF PERSISTENT RESERVATION")
WRITE_PROTECTED = _code(_PROTECT, 0x2700, "WRITE PROTECTED")
HARDWARE_WRITE_PROTECTED = _code(_PROTECT, 0x2701, "HARDWARE WRITE PROTECTED")
LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED = _code(_PROTECT, 0x2702, "LOGICAL UNIT SOFTWARE WRITE PROTECTED")
SPACE_ALLOCATION_FAILED_WRITE_PROTECT = _code(_PROTECT, 0x2707, "SPACE ALLOCATION FAILED WRITE PROTECT")
NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED = _code(
    _ATTENTION, 0x2800, "NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED"
)
POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED = _code(_ATTENTION, 0x2900, "POWER ON, RESET, OR BUS DEVICE RESET OCCURRED")
POWER_ON_OCCURRED = _code(_ATTENTION, 0x2901, "POWER ON OCCURRED")
SCSI_BUS_RESET_OCCURRED = _code(_ATTENTION, 0x2902, "SCSI BUS RESET OCCURRED")
BUS_DEVICE_RESET_FUNCTION_OCCURRED = _code(_ATTENTION, 0x2903, "BUS DEVICE RESET FUNCTION OCCURRED")
DEVICE_INTERNAL_RESET = _code(_ATTENTION, 0x2904, "DEVICE INTERNAL RESET")
I_T_NEXUS_LOSS_OCCURRED = _code(_ATTENTION, 0x2907, "I_T NEXUS LOSS OCCURRED")
MODE_PARAMETERS_CHANGED = _code(_ATTENTION, 0x2A01, "MODE PARAMETERS CHANGED")
RESERVATIONS_PREEMPTED = _code(_ATTENTION, 0x2A03, "RESERVATIONS PREEMPTED")
RESERVATIONS_RELEASED = _code(_ATTENTION, 0x2A04, "RESERVATIONS RELEASED")
REGISTRATIONS_PREEMPTED = _code(_ATTENTION, 0x2A05, "REGISTRATIONS PREEMPTED")
CAPACITY_DATA_HAS_CHANGED = _code(_ATTENTION, 0x2A09, "CAPACITY DATA HAS CHANGED")
COMMAND_SEQUENCE_ERROR = _code(_ILLEGAL, 0x2C00, "COMMAND SEQUENCE ERROR")
COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = _code(_ATTENTION, 0x2F00, "COMMANDS CLEARED BY ANOTHER INITIATOR")
SAVING_PARAMETERS_NOT_SUPPORTED = _code(_ILLEGAL, 0x3900, "SAVING PARAMETERS NOT SUPPORTED")
MEDIUM_NOT_PRESENT = _code(_NOT_READY, 0x3A00, "MEDIUM NOT PRESENT")
INQUIRY_DATA_HAS_CHANGED = _code(_ATTENTION, 0x3F03, "INQUIRY DATA HAS CHANGED")
REPORTED_LUNS_DATA_HAS_CHANGED = _code(_ATTENTION, 0x3F0E, "REPORTED LUNS DATA HAS CHANGED")
INTERNAL_TARGET_FAILURE = _code(_HARDWARE, 0x4400, "INTERNAL TARGET FAILURE")
PERSISTENT_RESERVATION_INFORMATION_LOST = _code(_HARDWARE, 0x4401, "PERSISTENT RESERVATION INFORMATION LOST")
INVALID_MESSAGE_ERROR = _code(_ILLEGAL, 0x4900, "INVALID MESSAGE ERROR")
OVERLAPPED_COMMANDS_ATTEMPTED = _code(_ABORTED, 0x4E00, "OVERLAPPED COMMANDS ATTEMPTED")
SYSTEM_RESOURCE_FAILURE = _code(_HARDWARE, 0x5500, "SYSTEM RESOURCE FAILURE")
INSUFFICIENT_REGISTRATION_RESOURCES = _code(_ILLEGAL, 0x5504, "INSUFFICIENT REGISTRATION RESOURCES")

# What an initiator is told when a store fails: by the names of `enum vs_store_error`. BUSY is a status, not sense.
STORE_ERRORS: Final[dict[str, SenseCode]] = {
    "READ": UNRECOVERED_READ_ERROR,
    "WRITE": WRITE_ERROR,
    "NO_SPACE": SPACE_ALLOCATION_FAILED_WRITE_PROTECT,
    "READ_ONLY": WRITE_PROTECTED,
    "NOT_READY": LOGICAL_UNIT_NOT_READY_CAUSE_NOT_REPORTABLE,
    "GONE": INTERNAL_TARGET_FAILURE,
    "RANGE": LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
    "UNSUPPORTED": INTERNAL_TARGET_FAILURE,
    "FLUSH_LATCHED": WRITE_ERROR,
    "INTERNAL": INTERNAL_TARGET_FAILURE,
    "ABORTED": replace(NO_ADDITIONAL_SENSE_INFORMATION, key=_ABORTED),
}

BY_WORD: Final = {code.word: code for code in SENSE_CODES}


@dataclass(frozen=True, slots=True)
class FieldPointer:
    """The field that an ILLEGAL REQUEST is about (SPC-5 4.4.2.4.2): byte, and the field's most significant bit."""

    in_cdb: bool
    byte: int
    bit: int | None = None


@dataclass(frozen=True, slots=True)
class Sense:
    """What one CHECK CONDITION (or REQUEST SENSE) says, before it has a format."""

    code: SenseCode
    information: int | None = None
    field: FieldPointer | None = None


class CheckCondition(Exception):
    """A handler ends its command with CHECK CONDITION. Never leaves the core."""

    def __init__(self, code: SenseCode, *, information: int | None = None, field: FieldPointer | None = None) -> None:
        super().__init__(code.text)
        self.sense = Sense(code, information, field)


class EndsWith(Exception):
    """A command ends with a status that has no sense data: RESERVATION CONFLICT, BUSY ... Never leaves the core."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


def invalid_cdb_field(byte: int, bit: int | None = None) -> CheckCondition:
    return CheckCondition(INVALID_FIELD_IN_CDB, field=FieldPointer(True, byte, bit))


def invalid_parameter(byte: int, bit: int | None = None) -> CheckCondition:
    return CheckCondition(INVALID_FIELD_IN_PARAMETER_LIST, field=FieldPointer(False, byte, bit))
