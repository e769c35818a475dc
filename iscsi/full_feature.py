# SPDX-License-Identifier: Apache-2.0
"""The boundary to the data plane: what a login hands over, what comes up from full-feature phase, what goes down.

Protocols and values only. The data plane frames PDUs, checks digests, runs SCSI commands and fills in StatSN, ExpCmdSN
and MaxCmdSN; whatever is rare comes up through `Upcalls`. Tests put a Python object in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, unique
from typing import Protocol

from vhost_scsi.iscsi.keys import Values


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """What initiator and target agreed on for the session. Lengths in bytes, times in seconds."""

    max_connections: int
    initial_r2t: bool
    immediate_data: bool
    max_burst_length: int
    first_burst_length: int
    max_outstanding_r2t: int
    data_pdu_in_order: bool
    data_sequence_in_order: bool
    error_recovery_level: int
    default_time2wait: int
    default_time2retain: int
    task_reporting: str
    iscsi_protocol_level: int

    @classmethod
    def of(cls, values: Values) -> SessionKeys:
        def number(name: str) -> int:
            return int(values[name])

        return cls(
            max_connections=number("MaxConnections"),
            initial_r2t=bool(values["InitialR2T"]),
            immediate_data=bool(values["ImmediateData"]),
            max_burst_length=number("MaxBurstLength"),
            # Both may be at defaults that do not fit the other: 13.14 has the burst win.
            first_burst_length=min(number("FirstBurstLength"), number("MaxBurstLength")),
            max_outstanding_r2t=number("MaxOutstandingR2T"),
            data_pdu_in_order=bool(values["DataPDUInOrder"]),
            data_sequence_in_order=bool(values["DataSequenceInOrder"]),
            error_recovery_level=number("ErrorRecoveryLevel"),
            default_time2wait=number("DefaultTime2Wait"),
            default_time2retain=number("DefaultTime2Retain"),
            task_reporting=str(values["TaskReporting"]),
            iscsi_protocol_level=number("iSCSIProtocolLevel"),
        )


@dataclass(frozen=True, slots=True)
class SessionParams:
    """A discovery session has no target and no LUNs; every SCSI command of one comes up. `cmd_sn` is the number of the
    first command, `queue_depth` how many the window lets in. `luns`: names of logical units."""

    tsih: int
    isid: int
    initiator_name: str
    initiator_alias: str
    target: str | None
    portal_group_tag: int
    luns: Mapping[int, str]
    cmd_sn: int
    queue_depth: int
    keys: SessionKeys


@dataclass(frozen=True, slots=True)
class ConnectionParams:
    """`max_send` is the initiator's MaxRecvDataSegmentLength, `max_recv` the target's. `stat_sn` is the next to use."""

    cid: int
    header_digest: bool
    data_digest: bool
    max_send: int
    max_recv: int
    stat_sn: int
    peer: str
    local: str


@unique
class RemoveReason(Enum):
    """Why a connection is ended from above."""

    LOGOUT = "logout"
    GONE = "the initiator has gone"
    PROTOCOL = "the initiator broke the protocol"
    REINSTATED = "another login has taken its place"
    TIMEOUT = "it did not answer"
    ADMINISTRATIVE = "it was told to go"
    FAILED = "an error of ours"


@unique
class EventKind(Enum):
    """What happened to a connection in full-feature phase. After all but DATA_DIGEST_ERROR it carries nothing more."""

    CLOSED_BY_PEER = "closed by the initiator"
    HEADER_DIGEST_ERROR = "header digest error"
    DATA_DIGEST_ERROR = "data digest error"
    PROTOCOL_ERROR = "protocol error"
    TIMEOUT = "no answer to a ping"
    SOCKET_ERROR = "socket error"


@dataclass(frozen=True, slots=True)
class ConnectionEvent:
    """`detail` names the rule that was broken, or the error; `bhs` is the header it is about, if there is one."""

    kind: EventKind
    detail: str = ""
    bhs: bytes = b""


@dataclass(frozen=True, slots=True)
class RefusedBelow:
    """What the data plane did not do: a command that ended for its operation code or a field (`lun`, `cdb` cut to its
    first bytes, `sense`), or a PDU it rejected (`bhs`, `reject`: the reason). `missed`: so many of the session before
    this one were not told."""

    missed: int = 0
    lun: bytes = bytes(8)
    cdb: bytes = b""
    sense: bytes = b""
    bhs: bytes = b""
    reject: int = 0


class SessionHandle(Protocol):
    """The data plane's, of one session."""

    @property
    def window(self) -> tuple[int, int]:
        """ExpCmdSN and MaxCmdSN of this moment."""
        ...


class ConnectionHandle(Protocol):
    """The data plane's, of one connection; hashable, told apart by identity."""


class Upcalls(Protocol):
    """Called on the loop's thread. Neither may block; what takes time goes on in a task."""

    def on_pdu(self, connection: ConnectionHandle, bhs: bytes, ahs: bytes, data: bytes, order: int) -> None:
        """Text, Logout, task management, SNACK, SCSI commands with AHS, any command of a discovery session, and
        opcodes that mean nothing, in the order of their CmdSN, immediate ones at once. Digests and padding are off.
        `order` is higher than that of whatever stands before it in the session."""
        ...

    def on_event(self, connection: ConnectionHandle, event: ConnectionEvent) -> None: ...

    def on_refused(self, connection: ConnectionHandle, refused: RefusedBelow) -> None:
        """For people to read; the initiator has its answer."""
        ...


class FullFeature(Protocol):
    """Called on the loop's thread."""

    def attach(self, upcalls: Upcalls) -> None:
        """Once, before anything else."""
        ...

    async def open_session(self, params: SessionParams) -> SessionHandle: ...

    async def add_connection(
        self, session: SessionHandle, sock_fd: int, params: ConnectionParams, leftover: bytes
    ) -> ConnectionHandle:
        """Takes `sock_fd` over, also if it raises. `leftover` are bytes that arrived behind the login."""
        ...

    async def remove_connection(self, connection: ConnectionHandle, reason: RemoveReason) -> None:
        """Returns when its tasks have ended, what was to be sent was sent or given up, and the socket is closed."""
        ...

    async def close_session(self, session: SessionHandle) -> None:
        """Ends its connections and its tasks; returns when nothing of it runs and what was queued is out or given up.
        The I_T nexus is lost."""
        ...

    def send(
        self,
        connection: ConnectionHandle,
        bhs: bytes,
        data: bytes = b"",
        *,
        final: bool = False,
        advance_stat_sn: bool = True,
    ) -> None:
        """Queues a PDU behind what is queued; `final` ends the connection once it is out. Connections that have ended
        swallow it."""
        ...

    def set_max_send(self, connection: ConnectionHandle, length: int) -> None:
        """The initiator declared another MaxRecvDataSegmentLength: it holds for what is sent from now on."""
        ...
