# SPDX-License-Identifier: Apache-2.0
"""virtio-scsi on the wire, as the driver sees it: requests, responses, control requests, events, configuration, LUNs.

Formats and numbers of virtio 1.3, 5.6, declared once with construct, and the typed values they become. It sends nothing
(scsi_driver does), and the device's own parser is C. T10_PI is not served, so its fields are not here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import Any, Final, Self

from construct import Bytes, Const, ConstructError, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from vhost_scsi.errors import VhostScsiError

# 5.6.2: queue numbers
CONTROL_QUEUE: Final = 0
EVENT_QUEUE: Final = 1
FIRST_REQUEST_QUEUE: Final = 2

# 5.6.4.2: what the device sets at reset
DEFAULT_CDB_SIZE: Final = 32
DEFAULT_SENSE_SIZE: Final = 96

# 5.6.6.1: single level LUN structures reach 16384 LUNs of 256 targets
MAX_TARGET: Final = 255
MAX_LUN: Final = 16383
LUN_BYTES: Final = 8

EVENTS_MISSED: Final = 0x8000_0000


class WireError(VhostScsiError):
    """Bytes that are not what virtio 1.3, 5.6 says they should be."""


class Feature(IntFlag):
    """Device feature bits (5.6.3)."""

    INOUT = 1 << 0
    HOTPLUG = 1 << 1
    CHANGE = 1 << 2
    T10_PI = 1 << 3


class Response(IntEnum):
    """response of a request (5.6.6.1)."""

    OK = 0
    OVERRUN = 1
    ABORTED = 2
    BAD_TARGET = 3
    RESET = 4
    BUSY = 5
    TRANSPORT_FAILURE = 6
    TARGET_FAILURE = 7
    NEXUS_FAILURE = 8
    FAILURE = 9


class ControlResponse(IntEnum):
    """response of a control request (5.6.6.2). FUNCTION COMPLETE and OK are the same number."""

    FUNCTION_COMPLETE = 0
    BAD_TARGET = 3
    BUSY = 5
    TRANSPORT_FAILURE = 6
    TARGET_FAILURE = 7
    NEXUS_FAILURE = 8
    FAILURE = 9
    FUNCTION_SUCCEEDED = 10
    FUNCTION_REJECTED = 11
    INCORRECT_LUN = 12


class TaskAttr(IntEnum):
    """task_attr (5.6.6.1)."""

    SIMPLE = 0
    ORDERED = 1
    HEAD_OF_QUEUE = 2
    ACA = 3


class ControlType(IntEnum):
    """type of a control request (5.6.6.2)."""

    TMF = 0
    AN_QUERY = 1
    AN_SUBSCRIBE = 2


class TaskManagement(IntEnum):
    """subtype of a task management function (5.6.6.2)."""

    ABORT_TASK = 0
    ABORT_TASK_SET = 1
    CLEAR_ACA = 2
    CLEAR_TASK_SET = 3
    I_T_NEXUS_RESET = 4
    LOGICAL_UNIT_RESET = 5
    QUERY_TASK = 6
    QUERY_TASK_SET = 7


class AsyncEvent(IntFlag):
    """Asynchronous notifications that a driver can ask for (5.6.6.2)."""

    OPERATIONAL_CHANGE = 2
    POWER_MGMT = 4
    EXTERNAL_REQUEST = 8
    MEDIA_CHANGE = 16
    MULTI_HOST = 32
    DEVICE_BUSY = 64


class EventType(IntEnum):
    """event without its bit 31 (5.6.6.3)."""

    NO_EVENT = 0
    TRANSPORT_RESET = 1
    ASYNC_NOTIFY = 2
    PARAM_CHANGE = 3


class ResetReason(IntEnum):
    """reason of a TRANSPORT_RESET event (5.6.6.3)."""

    HARD = 0
    RESCAN = 1
    REMOVED = 2


class LunFormat(IntEnum):
    """Addressing methods of the single level LUN structure (SAM-5 4.7.7): the two high bits of its first byte."""

    PERIPHERAL = 0
    FLAT = 1


@dataclass(frozen=True, slots=True)
class LunAddress:
    """A logical unit of a target, in the encoding that was used or shall be used."""

    target: int
    lun: int
    format: LunFormat = LunFormat.FLAT

    def encode(self) -> bytes:
        """Eight bytes: 1, target, single level LUN structure, four zeros (5.6.6.1)."""
        if not 0 <= self.target <= MAX_TARGET or not 0 <= self.lun <= MAX_LUN:
            raise ValueError(f"target {self.target} LUN {self.lun} cannot be addressed")
        if self.format is LunFormat.PERIPHERAL and self.lun > 255:
            raise ValueError(f"LUN {self.lun} needs flat space addressing")
        return bytes((1, self.target, self.format << 6 | self.lun >> 8, self.lun & 0xFF, 0, 0, 0, 0))


@dataclass(frozen=True, slots=True)
class WellKnownAddress:
    """A well-known logical unit: REPORT LUNS of the whole device (target None), or any W-LUN of one target."""

    w_lun: int = 1
    target: int | None = None

    def encode(self) -> bytes:
        """C1h 01h and zeros, or the well-known LUN in bytes 2 and 3, which 5.6.6.1 lets a device support."""
        if not 0 <= self.w_lun <= 255 or (self.target is None and self.w_lun != 1):
            raise ValueError(f"well-known LUN {self.w_lun} cannot be addressed without a target")
        if self.target is None:
            return bytes((0xC1, 0x01, 0, 0, 0, 0, 0, 0))
        if not 0 <= self.target <= MAX_TARGET:
            raise ValueError(f"target {self.target} cannot be addressed")
        return bytes((1, self.target, 0xC1, self.w_lun, 0, 0, 0, 0))


REPORT_LUNS: Final = WellKnownAddress()


def decode_lun(data: bytes) -> LunAddress | WellKnownAddress:
    """The address in an 8-byte lun field; WireError for every form that 5.6.6.1 does not know."""
    if len(data) != LUN_BYTES:
        raise WireError(f"a lun field has {LUN_BYTES} bytes, not {len(data)}")
    if data == REPORT_LUNS.encode():
        return REPORT_LUNS
    target, high, low = data[1:4]
    if data[0] != 1 or any(data[4:]):
        raise WireError(f"lun field {data.hex()} does not address a target")
    if high == 0xC1:
        return WellKnownAddress(low, target)
    # peripheral device addressing with bus identifier 0 only: another bus is another level (SAM-5 4.7.7.2)
    if high == 0:
        return LunAddress(target, low, LunFormat.PERIPHERAL)
    if high >> 6 == LunFormat.FLAT:
        return LunAddress(target, (high & 0x3F) << 8 | low, LunFormat.FLAT)
    raise WireError(f"lun field {data.hex()} has an addressing method that is not served")


@lru_cache
def _request_layout(cdb_size: int) -> Any:
    return Struct(
        "lun" / Bytes(LUN_BYTES),
        "tag" / Int64ul,
        "task_attr" / Int8ul,
        "prio" / Int8ul,
        "crn" / Int8ul,
        "cdb" / Bytes(cdb_size),
    )


@lru_cache
def _response_layout(sense_size: int) -> Any:
    return Struct(
        "sense_len" / Int32ul,
        "residual" / Int32ul,
        "status_qualifier" / Int16ul,
        "status" / Int8ul,
        "response" / Int8ul,
        "sense" / Bytes(sense_size),
    )


_TMF = Struct(
    "type" / Const(int(ControlType.TMF), Int32ul),
    "subtype" / Int32ul,
    "lun" / Bytes(LUN_BYTES),
    "tag" / Int64ul,
)
_AN = Struct("type" / Int32ul, "lun" / Bytes(LUN_BYTES), "event_requested" / Int32ul)
_AN_RESPONSE = Struct("event_actual" / Int32ul, "response" / Int8ul)
_EVENT = Struct("event" / Int32ul, "lun" / Bytes(LUN_BYTES), "reason" / Int32ul)
_CONFIG = Struct(
    "num_queues" / Int32ul,
    "seg_max" / Int32ul,
    "max_sectors" / Int32ul,
    "cmd_per_lun" / Int32ul,
    "event_info_size" / Int32ul,
    "sense_size" / Int32ul,
    "cdb_size" / Int32ul,
    "max_channel" / Int16ul,
    "max_target" / Int16ul,
    "max_lun" / Int32ul,
)

TMF_BYTES: Final[int] = _TMF.sizeof()
AN_BYTES: Final[int] = _AN.sizeof()
AN_RESPONSE_BYTES: Final[int] = _AN_RESPONSE.sizeof()
EVENT_BYTES: Final[int] = _EVENT.sizeof()
CONFIG_BYTES: Final[int] = _CONFIG.sizeof()


def request_header_bytes(cdb_size: int = DEFAULT_CDB_SIZE) -> int:
    """Bytes of a request before dataout."""
    return int(_request_layout(cdb_size).sizeof())


def response_header_bytes(sense_size: int = DEFAULT_SENSE_SIZE) -> int:
    """Bytes of a response before datain."""
    return int(_response_layout(sense_size).sizeof())


def _parse(layout: Any, data: bytes, what: str) -> dict[str, Any]:
    """The fields of the front of `data`; what follows belongs to somebody else."""
    try:
        fields = dict(layout.parse(data))
    except ConstructError as error:
        raise WireError(f"{len(data)} bytes are not a {what}: {error}") from error
    fields.pop("_io", None)
    return fields


def _build(layout: Any, fields: dict[str, Any], what: str) -> bytes:
    try:
        return bytes(layout.build(fields))
    except ConstructError as error:
        raise ValueError(f"a {what} cannot carry {fields}: {error}") from error


@dataclass(frozen=True, slots=True)
class RequestHeader:
    """The device-readable part of a request before dataout. `lun` is raw: a hostile one is still a header."""

    lun: bytes
    tag: int
    cdb: bytes
    task_attr: int = TaskAttr.SIMPLE
    prio: int = 0
    crn: int = 0

    def build(self, cdb_size: int = DEFAULT_CDB_SIZE) -> bytes:
        """The bytes, with the CDB padded with zeros to the `cdb_size` of the configuration."""
        if len(self.cdb) > cdb_size:
            raise ValueError(f"a CDB of {len(self.cdb)} bytes does not fit into {cdb_size}")
        return _build(_request_layout(cdb_size), {**asdict(self), "cdb": self.cdb.ljust(cdb_size, b"\0")}, "request")

    @classmethod
    def parse(cls, data: bytes, cdb_size: int = DEFAULT_CDB_SIZE) -> Self:
        return cls(**_parse(_request_layout(cdb_size), data, "request header"))


@dataclass(frozen=True, slots=True)
class ResponseHeader:
    """The device-writable part of a request before datain. `sense` is as long as sense_len says."""

    response: int = Response.OK
    status: int = 0
    sense: bytes = b""
    residual: int = 0
    status_qualifier: int = 0

    def build(self, sense_size: int = DEFAULT_SENSE_SIZE) -> bytes:
        if len(self.sense) > sense_size:
            raise ValueError(f"{len(self.sense)} bytes of sense do not fit into {sense_size}")
        fields = {**asdict(self), "sense_len": len(self.sense), "sense": self.sense.ljust(sense_size, b"\0")}
        return _build(_response_layout(sense_size), fields, "response")

    @classmethod
    def parse(cls, data: bytes, sense_size: int = DEFAULT_SENSE_SIZE) -> Self:
        """Raises WireError where sense_len is more than sense_size: the device MUST NOT write more (5.6.4)."""
        fields = _parse(_response_layout(sense_size), data, "response header")
        sense_len = fields.pop("sense_len")
        if sense_len > sense_size:
            raise WireError(f"sense_len {sense_len} is more than sense_size {sense_size}")
        return cls(**{**fields, "sense": fields["sense"][:sense_len]})


@dataclass(frozen=True, slots=True)
class TmfRequest:
    """A task management function; `tag` counts for ABORT TASK and QUERY TASK only."""

    subtype: int
    lun: bytes
    tag: int = 0

    def build(self) -> bytes:
        return _build(_TMF, asdict(self), "task management function")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        fields = _parse(_TMF, data, "task management function")
        del fields["type"]
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class AnRequest:
    """An asynchronous notification query or subscription."""

    type: int
    lun: bytes
    event_requested: int

    def build(self) -> bytes:
        return _build(_AN, asdict(self), "notification request")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        return cls(**_parse(_AN, data, "notification request"))


@dataclass(frozen=True, slots=True)
class AnResponse:
    """The answer to an AnRequest."""

    event_actual: int
    response: int

    def build(self) -> bytes:
        return _build(_AN_RESPONSE, asdict(self), "notification response")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        return cls(**_parse(_AN_RESPONSE, data, "notification response"))


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `missed` is bit 31 of the event field: others were lost for want of buffers."""

    type: int
    lun: bytes
    reason: int
    missed: bool = False

    def build(self) -> bytes:
        event = self.type | (EVENTS_MISSED if self.missed else 0)
        return _build(_EVENT, {"event": event, "lun": self.lun, "reason": self.reason}, "event")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        fields = _parse(_EVENT, data, "event")
        event = fields["event"]
        return cls(event & ~EVENTS_MISSED, fields["lun"], fields["reason"], bool(event & EVENTS_MISSED))

    @property
    def sense_code(self) -> tuple[int, int]:
        """(ASC, ASCQ) of a PARAM_CHANGE event: bits 0 to 7 and 8 to 15 of reason."""
        return self.reason & 0xFF, self.reason >> 8 & 0xFF


@dataclass(frozen=True, slots=True)
class Config:
    """struct virtio_scsi_config (5.6.4)."""

    num_queues: int = 1
    seg_max: int = 126
    max_sectors: int = 0xFFFF
    cmd_per_lun: int = 128
    event_info_size: int = EVENT_BYTES
    sense_size: int = DEFAULT_SENSE_SIZE
    cdb_size: int = DEFAULT_CDB_SIZE
    max_channel: int = 0
    max_target: int = MAX_TARGET
    max_lun: int = MAX_LUN

    def build(self) -> bytes:
        return _build(_CONFIG, asdict(self), "configuration")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        return cls(**_parse(_CONFIG, data, "configuration"))
