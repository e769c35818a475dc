# SPDX-License-Identifier: Apache-2.0
"""Asynchronous messages (RFC 7143, 11.9): what a target says without being asked, one function each.

They build headers and data; `RareHandler.notify` sends them. Times are whole seconds.
"""

from __future__ import annotations

from vhost_scsi.iscsi.codes import AsyncEvent
from vhost_scsi.iscsi.pdu import AsyncMessage


def scsi_event(lun: int, sense: bytes) -> tuple[AsyncMessage, bytes]:
    """11.9.4: sense data of a logical unit, the length before it as in a SCSI Response. `lun` is the 64-bit field."""
    data = len(sense).to_bytes(2, "big") + sense
    return AsyncMessage(lun=lun, event=AsyncEvent.SCSI_EVENT, data_segment_length=len(data)), data


def logout_requested(within: int) -> AsyncMessage:
    """The initiator is to log out within so many seconds; afterwards the target drops the connection."""
    return AsyncMessage(event=AsyncEvent.LOGOUT_REQUESTED, parameter3=within)


def connection_drop(cid: int, time2wait: int, time2retain: int) -> AsyncMessage:
    return AsyncMessage(event=AsyncEvent.CONNECTION_DROP, parameter1=cid, parameter2=time2wait, parameter3=time2retain)


def session_drop(time2wait: int, time2retain: int) -> AsyncMessage:
    return AsyncMessage(event=AsyncEvent.SESSION_DROP, parameter2=time2wait, parameter3=time2retain)


def negotiation_requested(within: int) -> AsyncMessage:
    return AsyncMessage(event=AsyncEvent.NEGOTIATION_REQUESTED, parameter3=within)


def tasks_terminated(lun: int) -> AsyncMessage:
    """All tasks of a logical unit are ended on behalf of another initiator (4.2.3.5, FastAbort)."""
    return AsyncMessage(lun=lun, event=AsyncEvent.TASKS_TERMINATED)
