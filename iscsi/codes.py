# SPDX-License-Identifier: Apache-2.0
"""The code points of iSCSI (RFC 7143): opcodes, stages, reject reasons, login statuses, and each in plain words.

Numbers and names only; where a code stands in a PDU is said in `pdu.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, unique
from typing import Final

RESERVED_TAG: Final = 0xFFFFFFFF  # 11.2.1.8: no task, no transfer
ISCSI_PORT: Final = 3260
VERSION: Final = 0x00  # 11.12.4: RFC 3720 and RFC 7143 are both version 0


@unique
class Opcode(IntEnum):
    """11.2.1.2. Below 0x20 from the initiator, from 0x20 on from the target."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK_REQUEST = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


@unique
class AhsType(IntEnum):
    """11.2.2.1."""

    EXTENDED_CDB = 1
    BIDIRECTIONAL_READ_LENGTH = 2


@unique
class Stage(IntEnum):
    """11.12.3, the values of CSG and NSG; 2 is not used."""

    SECURITY = 0
    OPERATIONAL = 1
    FULL_FEATURE = 3


@unique
class RejectReason(IntEnum):
    """11.17.1."""

    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    IMMEDIATE_COMMAND_REJECT = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_PDU_FIELD = 0x09
    OUT_OF_RESOURCES = 0x0A
    WAITING_FOR_LOGOUT = 0x0C


@unique
class LogoutReason(IntEnum):
    """11.14.1."""

    CLOSE_SESSION = 0
    CLOSE_CONNECTION = 1
    REMOVE_FOR_RECOVERY = 2


@unique
class LogoutResponseCode(IntEnum):
    """11.15.1."""

    CLOSED = 0
    CID_NOT_FOUND = 1
    RECOVERY_NOT_SUPPORTED = 2
    CLEANUP_FAILED = 3


@unique
class AsyncEvent(IntEnum):
    """11.9.1."""

    SCSI_EVENT = 0
    LOGOUT_REQUESTED = 1
    CONNECTION_DROP = 2
    SESSION_DROP = 3
    NEGOTIATION_REQUESTED = 4
    TASKS_TERMINATED = 5
    VENDOR_SPECIFIC = 255


@unique
class TaskFunction(IntEnum):
    """11.5.1; from 9 on RFC 7144, which needs iSCSIProtocolLevel 2."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8
    QUERY_TASK = 9
    QUERY_TASK_SET = 10
    I_T_NEXUS_RESET = 11
    QUERY_ASYNCHRONOUS_EVENT = 12


RFC_7144_FUNCTIONS: Final = frozenset(
    (
        TaskFunction.QUERY_TASK,
        TaskFunction.QUERY_TASK_SET,
        TaskFunction.I_T_NEXUS_RESET,
        TaskFunction.QUERY_ASYNCHRONOUS_EVENT,
    )
)


@unique
class TaskResponse(IntEnum):
    """11.6.1; 7 is RFC 7144."""

    COMPLETE = 0
    TASK_DOES_NOT_EXIST = 1
    LUN_DOES_NOT_EXIST = 2
    TASK_STILL_ALLEGIANT = 3
    REASSIGN_NOT_SUPPORTED = 4
    NOT_SUPPORTED = 5
    AUTHORIZATION_FAILED = 6
    SUCCEEDED = 7
    REJECTED = 255


@dataclass(frozen=True, slots=True)
class LoginStatusRow:
    """11.13.5: one Status-Class with one Status-Detail."""

    status_class: int
    detail: int
    text: str


@unique
class LoginStatus(Enum):
    """The statuses of a Login Response."""

    SUCCESS = LoginStatusRow(0x00, 0x00, "success")
    MOVED_TEMPORARILY = LoginStatusRow(0x01, 0x01, "target moved temporarily")
    MOVED_PERMANENTLY = LoginStatusRow(0x01, 0x02, "target moved permanently")
    INITIATOR_ERROR = LoginStatusRow(0x02, 0x00, "initiator error")
    AUTHENTICATION_FAILURE = LoginStatusRow(0x02, 0x01, "authentication failure")
    AUTHORIZATION_FAILURE = LoginStatusRow(0x02, 0x02, "authorization failure")
    NOT_FOUND = LoginStatusRow(0x02, 0x03, "no such target here")
    TARGET_REMOVED = LoginStatusRow(0x02, 0x04, "target removed")
    UNSUPPORTED_VERSION = LoginStatusRow(0x02, 0x05, "unsupported version")
    TOO_MANY_CONNECTIONS = LoginStatusRow(0x02, 0x06, "too many connections")
    MISSING_PARAMETER = LoginStatusRow(0x02, 0x07, "missing parameter")
    CANNOT_INCLUDE_IN_SESSION = LoginStatusRow(0x02, 0x08, "cannot include in session")
    SESSION_TYPE_NOT_SUPPORTED = LoginStatusRow(0x02, 0x09, "session type not supported")
    SESSION_DOES_NOT_EXIST = LoginStatusRow(0x02, 0x0A, "session does not exist")
    INVALID_DURING_LOGIN = LoginStatusRow(0x02, 0x0B, "invalid request during login")
    TARGET_ERROR = LoginStatusRow(0x03, 0x00, "target error")
    SERVICE_UNAVAILABLE = LoginStatusRow(0x03, 0x01, "service unavailable")
    OUT_OF_RESOURCES = LoginStatusRow(0x03, 0x02, "out of resources")

    @property
    def code(self) -> tuple[int, int]:
        return self.value.status_class, self.value.detail

    @property
    def text(self) -> str:
        return self.value.text
