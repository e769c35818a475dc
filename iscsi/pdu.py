# SPDX-License-Identifier: Apache-2.0
"""Every iSCSI PDU's basic header segment (RFC 7143, 11), declared once, and the additional header segments.

A field says where it stands as the RFC draws it: byte, bit from the left, width in bits. The construct layout that
parses and builds is derived from that. Reserved bits are ignored when read and zero when written. Nothing here reads a
socket, follows the protocol or knows digests; the fast PDUs are parsed by the data plane in C, from the same places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self, TypeVar

from construct import BitsInteger, Bitwise, Bytes, Bytewise, Construct, Flag, Padding, Struct

from vhost_scsi.iscsi.codes import RESERVED_TAG, VERSION, AhsType, Opcode

BHS_SIZE: Final = 48
MAX_DATA_SEGMENT: Final = (1 << 24) - 1
MAX_AHS_SIZE: Final = 255 * 4

P = TypeVar("P", bound="Bhs")


class PduError(Exception):
    """Bytes that are no PDU of the kind they claim to be; the text says why."""


def at(byte: int, width: int, *, bit: int = 0, default: int = 0) -> Any:
    """A number of `width` bits."""
    return dataclasses.field(default=default, metadata={"place": byte * 8 + bit, "width": width})


def flag(byte: int, bit: int, *, default: bool = False) -> Any:
    return dataclasses.field(default=default, metadata={"place": byte * 8 + bit, "width": 1, "subcon": Flag})


def octets(byte: int, length: int) -> Any:
    subcon = Bytewise(Bytes(length))
    return dataclasses.field(default=bytes(length), metadata={"place": byte * 8, "width": length * 8, "subcon": subcon})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bhs:
    """What all basic header segments share. `total_ahs_length` counts words of four bytes."""

    OPCODE: ClassVar[Opcode]
    LAYOUT: ClassVar[Construct]

    immediate: bool = flag(0, 1)
    total_ahs_length: int = at(4, 8)
    data_segment_length: int = at(5, 24)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Raises PduError if `raw` is not 48 bytes with this opcode."""
        if len(raw) != BHS_SIZE:
            raise PduError(f"a basic header segment has {BHS_SIZE} bytes, not {len(raw)}")
        values = cls.LAYOUT.parse(raw)
        if values["opcode"] != cls.OPCODE:
            raise PduError(f"opcode {values['opcode']:#04x} is not {cls.OPCODE.name}")
        return cls(**{each.name: values[each.name] for each in dataclasses.fields(cls)})

    def to_bytes(self) -> bytes:
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        raw: bytes = self.LAYOUT.build({"opcode": self.OPCODE, **values})
        return raw


def _layout(cls: type[Bhs]) -> Construct:
    """The Struct of a class, with padding where it has no field. Two fields at one place are an error in this file."""
    places = [(2, 6, "opcode", BitsInteger(6))]
    for each in dataclasses.fields(cls):
        place, width = each.metadata["place"], each.metadata["width"]
        places.append((place, width, each.name, each.metadata.get("subcon") or BitsInteger(width)))
    parts, end = [], 0
    for place, width, name, subcon in sorted(places, key=lambda item: item[0]):
        if place < end:
            raise TypeError(f"{cls.__name__}.{name} overlaps what stands before it")
        if place > end:
            parts.append(Padding(place - end))
        parts.append(name / subcon)
        end = place + width
    if end < BHS_SIZE * 8:
        parts.append(Padding(BHS_SIZE * 8 - end))
    return Bitwise(Struct(*parts))


PDUS: Final[dict[Opcode, type[Bhs]]] = {}


def _pdu(opcode: Opcode) -> Callable[[type[P]], type[P]]:
    def declare(cls: type[P]) -> type[P]:
        cls.OPCODE = opcode
        cls.LAYOUT = _layout(cls)
        PDUS[opcode] = cls
        return cls

    return declare


# ---- from the initiator ----------------------------------------------------------------------------------------------


@_pdu(Opcode.NOP_OUT)
@dataclass(frozen=True, slots=True, kw_only=True)
class NopOut(Bhs):
    """11.18."""

    final: bool = flag(1, 0, default=True)
    lun: int = at(8, 64)
    initiator_task_tag: int = at(16, 32, default=RESERVED_TAG)
    target_transfer_tag: int = at(20, 32, default=RESERVED_TAG)
    cmd_sn: int = at(24, 32)
    exp_stat_sn: int = at(28, 32)


@_pdu(Opcode.SCSI_COMMAND)
@dataclass(frozen=True, slots=True, kw_only=True)
class ScsiCommand(Bhs):
    """11.3. A CDB longer than 16 bytes goes on in an additional header segment."""

    final: bool = flag(1, 0, default=True)
    read: bool = flag(1, 1)
    write: bool = flag(1, 2)
    attribute: int = at(1, 3, bit=5)
    command_priority: int = at(3, 4, bit=4)  # RFC 7144
    lun: int = at(8, 64)
    initiator_task_tag: int = at(16, 32)
    expected_data_transfer_length: int = at(20, 32)
    cmd_sn: int = at(24, 32)
    exp_stat_sn: int = at(28, 32)
    cdb: bytes = octets(32, 16)


@_pdu(Opcode.TASK_MANAGEMENT_REQUEST)
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskManagementRequest(Bhs):
    """11.5."""

    final: bool = flag(1, 0, default=True)
    function: int = at(1, 7, bit=1)
    lun: int = at(8, 64)
    initiator_task_tag: int = at(16, 32)
    referenced_task_tag: int = at(20, 32, default=RESERVED_TAG)
    cmd_sn: int = at(24, 32)
    exp_stat_sn: int = at(28, 32)
    ref_cmd_sn: int = at(32, 32)
    exp_data_sn: int = at(36, 32)


@_pdu(Opcode.LOGIN_REQUEST)
@dataclass(frozen=True, slots=True, kw_only=True)
class LoginRequest(Bhs):
    """11.12. T is `transit`, C is `more_to_come`."""

    transit: bool = flag(1, 0)
    more_to_come: bool = flag(1, 1)
    current_stage: int = at(1, 2, bit=4)
    next_stage: int = at(1, 2, bit=6)
    version_max: int = at(2, 8, default=VERSION)
    version_min: int = at(3, 8, default=VERSION)
    isid: int = at(8, 48)
    tsih: int = at(14, 16)
    initiator_task_tag: int = at(16, 32)
    cid: int = at(20, 16)
    cmd_sn: int = at(24, 32)
    exp_stat_sn: int = at(28, 32)


@_pdu(Opcode.TEXT_REQUEST)
@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest(Bhs):
    """11.10. C is `more_to_come`."""

    final: bool = flag(1, 0, default=True)
    more_to_come: bool = flag(1, 1)
    lun: int = at(8, 64)
    initiator_task_tag: int = at(16, 32)
    target_transfer_tag: int = at(20, 32, default=RESERVED_TAG)
    cmd_sn: int = at(24, 32)
    exp_stat_sn: int = at(28, 32)


@_pdu(Opcode.DATA_OUT)
@dataclass(frozen=True, slots=True, kw_only=True)
class DataOut(Bhs):
    """11.7."""

    final: bool = flag(1, 0)
    lun: int = at(8, 64)
    initiator_task_tag: int = at(16, 32)
    target_transfer_tag: int = at(20, 32, default=RESERVED_TAG)
    exp_stat_sn: int = at(28, 32)
    data_sn: int = at(36, 32)
    buffer_offset: int = at(40, 32)


@_pdu(Opcode.LOGOUT_REQUEST)
@dataclass(frozen=True, slots=True, kw_only=True)
class LogoutRequest(Bhs):
    """11.14."""

    final: bool = flag(1, 0, default=True)
    reason: int = at(1, 7, bit=1)
    initiator_task_tag: int = at(16, 32)
    cid: int = at(20, 16)
    cmd_sn: int = at(24, 32)
    exp_stat_sn: int = at(28, 32)


@_pdu(Opcode.SNACK_REQUEST)
@dataclass(frozen=True, slots=True, kw_only=True)
class SnackRequest(Bhs):
    """11.16."""

    final: bool = flag(1, 0, default=True)
    type: int = at(1, 4, bit=4)
    lun: int = at(8, 64)
    initiator_task_tag: int = at(16, 32)
    target_transfer_tag: int = at(20, 32)
    exp_stat_sn: int = at(28, 32)
    beg_run: int = at(40, 32)
    run_length: int = at(44, 32)


# ---- from the target; in full-feature phase whoever sends fills in StatSN, ExpCmdSN and MaxCmdSN ---------------------


@_pdu(Opcode.NOP_IN)
@dataclass(frozen=True, slots=True, kw_only=True)
class NopIn(Bhs):
    """11.19."""

    final: bool = flag(1, 0, default=True)
    lun: int = at(8, 64)
    initiator_task_tag: int = at(16, 32, default=RESERVED_TAG)
    target_transfer_tag: int = at(20, 32, default=RESERVED_TAG)
    stat_sn: int = at(24, 32)
    exp_cmd_sn: int = at(28, 32)
    max_cmd_sn: int = at(32, 32)


@_pdu(Opcode.SCSI_RESPONSE)
@dataclass(frozen=True, slots=True, kw_only=True)
class ScsiResponse(Bhs):
    """11.4."""

    final: bool = flag(1, 0, default=True)
    bidirectional_overflow: bool = flag(1, 3)
    bidirectional_underflow: bool = flag(1, 4)
    overflow: bool = flag(1, 5)
    underflow: bool = flag(1, 6)
    response: int = at(2, 8)
    status: int = at(3, 8)
    status_qualifier: int = at(8, 16)  # RFC 7144
    initiator_task_tag: int = at(16, 32)
    snack_tag: int = at(20, 32)
    stat_sn: int = at(24, 32)
    exp_cmd_sn: int = at(28, 32)
    max_cmd_sn: int = at(32, 32)
    exp_data_sn: int = at(36, 32)
    bidirectional_residual_count: int = at(40, 32)
    residual_count: int = at(44, 32)


@_pdu(Opcode.TASK_MANAGEMENT_RESPONSE)
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskManagementResponse(Bhs):
    """11.6. The three bytes of additional information are RFC 7144's."""

    final: bool = flag(1, 0, default=True)
    response: int = at(2, 8)
    additional_information: int = at(8, 24)
    initiator_task_tag: int = at(16, 32)
    stat_sn: int = at(24, 32)
    exp_cmd_sn: int = at(28, 32)
    max_cmd_sn: int = at(32, 32)


@_pdu(Opcode.LOGIN_RESPONSE)
@dataclass(frozen=True, slots=True, kw_only=True)
class LoginResponse(Bhs):
    """11.13."""

    transit: bool = flag(1, 0)
    more_to_come: bool = flag(1, 1)
    current_stage: int = at(1, 2, bit=4)
    next_stage: int = at(1, 2, bit=6)
    version_max: int = at(2, 8, default=VERSION)
    version_active: int = at(3, 8, default=VERSION)
    isid: int = at(8, 48)
    tsih: int = at(14, 16)
    initiator_task_tag: int = at(16, 32)
    stat_sn: int = at(24, 32)
    exp_cmd_sn: int = at(28, 32)
    max_cmd_sn: int = at(32, 32)
    status_class: int = at(36, 8)
    status_detail: int = at(37, 8)


@_pdu(Opcode.TEXT_RESPONSE)
@dataclass(frozen=True, slots=True, kw_only=True)
class TextResponse(Bhs):
    """11.11."""

    final: bool = flag(1, 0, default=True)
    more_to_come: bool = flag(1, 1)
    lun: int = at(8, 64)
    initiator_task_tag: int = at(16, 32)
    target_transfer_tag: int = at(20, 32, default=RESERVED_TAG)
    stat_sn: int = at(24, 32)
    exp_cmd_sn: int = at(28, 32)
    max_cmd_sn: int = at(32, 32)


@_pdu(Opcode.DATA_IN)
@dataclass(frozen=True, slots=True, kw_only=True)
class DataIn(Bhs):
    """11.7. `status` counts only with `has_status` (S)."""

    final: bool = flag(1, 0)
    acknowledge: bool = flag(1, 1)
    overflow: bool = flag(1, 5)
    underflow: bool = flag(1, 6)
    has_status: bool = flag(1, 7)
    status: int = at(3, 8)
    lun: int = at(8, 64)
    initiator_task_tag: int = at(16, 32)
    target_transfer_tag: int = at(20, 32, default=RESERVED_TAG)
    stat_sn: int = at(24, 32)
    exp_cmd_sn: int = at(28, 32)
    max_cmd_sn: int = at(32, 32)
    data_sn: int = at(36, 32)
    buffer_offset: int = at(40, 32)
    residual_count: int = at(44, 32)


@_pdu(Opcode.LOGOUT_RESPONSE)
@dataclass(frozen=True, slots=True, kw_only=True)
class LogoutResponse(Bhs):
    """11.15."""

    final: bool = flag(1, 0, default=True)
    response: int = at(2, 8)
    initiator_task_tag: int = at(16, 32)
    stat_sn: int = at(24, 32)
    exp_cmd_sn: int = at(28, 32)
    max_cmd_sn: int = at(32, 32)
    time2wait: int = at(40, 16)
    time2retain: int = at(42, 16)


@_pdu(Opcode.R2T)
@dataclass(frozen=True, slots=True, kw_only=True)
class R2T(Bhs):
    """11.8."""

    final: bool = flag(1, 0, default=True)
    lun: int = at(8, 64)
    initiator_task_tag: int = at(16, 32)
    target_transfer_tag: int = at(20, 32)
    stat_sn: int = at(24, 32)
    exp_cmd_sn: int = at(28, 32)
    max_cmd_sn: int = at(32, 32)
    r2t_sn: int = at(36, 32)
    buffer_offset: int = at(40, 32)
    desired_data_transfer_length: int = at(44, 32)


@_pdu(Opcode.ASYNC_MESSAGE)
@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncMessage(Bhs):
    """11.9. The tag stands where others have the initiator's."""

    final: bool = flag(1, 0, default=True)
    lun: int = at(8, 64)
    tag: int = at(16, 32, default=RESERVED_TAG)
    stat_sn: int = at(24, 32)
    exp_cmd_sn: int = at(28, 32)
    max_cmd_sn: int = at(32, 32)
    event: int = at(36, 8)
    vendor_code: int = at(37, 8)
    parameter1: int = at(38, 16)
    parameter2: int = at(40, 16)
    parameter3: int = at(42, 16)


@_pdu(Opcode.REJECT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Reject(Bhs):
    """11.17. Its data segment is the header that was rejected."""

    final: bool = flag(1, 0, default=True)
    reason: int = at(2, 8)
    tag: int = at(16, 32, default=RESERVED_TAG)
    stat_sn: int = at(24, 32)
    exp_cmd_sn: int = at(28, 32)
    max_cmd_sn: int = at(32, 32)
    data_sn: int = at(36, 32)


# ---- any PDU ---------------------------------------------------------------------------------------------------------


def opcode_of(raw: bytes) -> int:
    return raw[0] & 0x3F


def parse(raw: bytes) -> Bhs:
    """The header as what its opcode says. Raises PduError for an opcode that nobody assigned, and for a wrong size."""
    if len(raw) != BHS_SIZE:
        raise PduError(f"a basic header segment has {BHS_SIZE} bytes, not {len(raw)}")
    try:
        cls = PDUS[Opcode(opcode_of(raw))]
    except ValueError:
        raise PduError(f"opcode {opcode_of(raw):#04x} means nothing") from None
    return cls.from_bytes(raw)


def padding(length: int) -> int:
    """How many bytes follow a segment of this length so that the next begins at a multiple of four (11.2)."""
    return -length % 4


@dataclass(frozen=True, slots=True)
class SegmentSizes:
    """What follows a basic header segment, in bytes, digests not counted."""

    ahs: int
    data: int
    padding: int


def sizes(raw: bytes) -> SegmentSizes:
    data = int.from_bytes(raw[5:8], "big")
    return SegmentSizes(raw[4] * 4, data, padding(data))


@dataclass(frozen=True, slots=True)
class Ahs:
    """11.2.2. `specific` is what follows the type, its reserved byte included, padding not."""

    type: int
    specific: bytes


def parse_ahs(raw: bytes) -> list[Ahs]:
    """Raises PduError if the lengths do not add up."""
    segments, offset = [], 0
    while offset < len(raw):
        if offset + 4 > len(raw):
            raise PduError("an additional header segment is cut short")
        length = int.from_bytes(raw[offset : offset + 2], "big")
        end = offset + 3 + length
        if length == 0 or end > len(raw):
            raise PduError(f"an additional header segment of {length} bytes does not fit")
        segments.append(Ahs(raw[offset + 2], raw[offset + 3 : end]))
        offset = end + padding(end - offset)
    return segments


def build_ahs(segments: list[Ahs]) -> bytes:
    raw = b""
    for each in segments:
        body = len(each.specific).to_bytes(2, "big") + bytes([each.type]) + each.specific
        raw += body + bytes(padding(len(body)))
    return raw


def full_cdb(command: ScsiCommand, segments: list[Ahs]) -> bytes:
    """The CDB with what of it stands in an additional header segment (11.2.2.3). Raises PduError if two do, or if one
    holds nothing."""
    extended = [each for each in segments if each.type == AhsType.EXTENDED_CDB]
    if len(extended) > 1 or any(len(each.specific) < 2 for each in extended):
        raise PduError("more than one extended CDB, or an empty one")
    return command.cdb + b"".join(each.specific[1:] for each in extended)
