# SPDX-License-Identifier: Apache-2.0
"""The task and its outcomes: what every transport hands to a logical unit and what comes back.

Values only. Wire formats of tasks and responses belong to the transports; ordering belongs to `task_set`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhost_scsi.scsi.nexus import ITL


class TaskAttribute(IntEnum):
    """SAM-5 8.6; the numbers are ours, each transport maps its own."""

    SIMPLE = 0
    ORDERED = 1
    HEAD_OF_QUEUE = 2
    ACA = 3


class Status(IntEnum):
    """SAM-5 5.3.1."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class ServiceResponse(IntEnum):
    """SAM-5 5.1 (commands) and 7.1 (task management functions); the numbers are ours."""

    TASK_COMPLETE = 0
    SERVICE_DELIVERY_OR_TARGET_FAILURE = 1
    FUNCTION_COMPLETE = 2
    FUNCTION_SUCCEEDED = 3
    FUNCTION_REJECTED = 4
    INCORRECT_LOGICAL_UNIT_NUMBER = 5


@dataclass(slots=True, eq=False)
class Task:
    """One command of one I_T_L nexus. `data_out` holds the copied parameter list (rows with parameter_list_max),
    the two lengths are what the initiator's buffers hold, in bytes. `order` grows in the order of sending where the
    transport has one. `once`: of a command that may not run twice, the same when a process that was killed had it
    before us; else 0."""

    itl: ITL
    tag: int
    attribute: TaskAttribute
    cdb: bytes
    data_out: bytes = b""
    data_in_length: int = 0
    data_out_length: int = 0
    order: int = 0
    once: int = 0


@dataclass(frozen=True, slots=True)
class Complete:
    """The task ended: status, sense data with CHECK CONDITION, data-in (at most Task.data_in_length reaches the
    initiator; the transport computes the residual from the untruncated length)."""

    status: Status
    sense: bytes = b""
    data_in: bytes = b""


@dataclass(frozen=True, slots=True)
class Execute:
    """C runs the media command now, without testing the gate; `notify`: LogicalUnit.finished is then called."""

    notify: bool = False


@dataclass(frozen=True, slots=True)
class Aborted:
    """The task was ended by a task management function, a reset or a lost nexus; there is no status."""


@dataclass(frozen=True, slots=True)
class Tell:
    """C has ended the task with a status that was other commands' business too, and may tell it now."""


Outcome = Complete | Execute | Aborted | Tell
