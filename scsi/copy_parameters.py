# SPDX-License-Identifier: Apache-2.0
"""The parameter list of EXTENDED COPY(LID1) (SPC-4 6.4.3 to 6.4.7): which units, and which blocks from where to where.

Everything in it is checked against bounds before it is looked at; nothing is copied here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from construct import BitsInteger, BitStruct, Bytes, Flag, Int8ub, Int16ub, Int24ub, Int32ub, Int64ub, Padding, Struct

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.sense import CheckCondition

if TYPE_CHECKING:
    from vhost_scsi.scsi.nexus import ITL

TARGETS: Final = 16
SEGMENTS: Final = 16
BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_WITH_OFFSET, IDENTIFICATION = 0x02, 0x0A, 0xE4
CODES: Final = (BLOCK_TO_BLOCK, BLOCK_TO_BLOCK_WITH_OFFSET, IDENTIFICATION)
"""descriptor type codes that we know, in ascending order"""

HEADER = Struct(
    "list_id" / Int8ub,
    "flags" / BitStruct(Padding(2), "str" / Flag, "list_id_usage" / BitsInteger(2), "priority" / BitsInteger(3)),
    "targets_length" / Int16ub,
    Padding(4),
    "segments_length" / Int32ub,
    "inline_length" / Int32ub,
)
NO_LIST_ID: Final = 0b11

# SPC-4 6.4.5.1, 7.6.3.1: the identification descriptor, for a block device
TARGET = Struct(
    "code" / Int8ub,
    "kind" / BitStruct("lu_id_type" / BitsInteger(2), "nul" / Flag, "device_type" / BitsInteger(5)),
    "relative_initiator_port" / Int16ub,
    "code_set" / Int8ub,
    "association_and_type" / Int8ub,
    Padding(1),
    "length" / Int8ub,
    "designator" / Bytes(20),
    "pad" / Int8ub,
    "block_size" / Int24ub,
)
SEGMENT_HEAD = Struct("code" / Int8ub, "flags" / Int8ub, "length" / Int16ub, "source" / Int16ub, "target" / Int16ub)
BLOCKS = Struct(Padding(2), "blocks" / Int16ub, "source_lba" / Int64ub, "target_lba" / Int64ub)
WITH_OFFSET = Struct(
    "bytes" / Int32ub,
    "source_lba" / Int64ub,
    "target_lba" / Int64ub,
    "source_offset" / Int16ub,
    "target_offset" / Int16ub,
)
BODIES: Final = {BLOCK_TO_BLOCK: BLOCKS, BLOCK_TO_BLOCK_WITH_OFFSET: WITH_OFFSET}
LIST_BYTES: Final = TARGETS * TARGET.sizeof() + SEGMENTS * (SEGMENT_HEAD.sizeof() + WITH_OFFSET.sizeof())
SEGMENT_BYTES: Final = 1 << 30
DESTINATION_COUNTS: Final = 0x02
"""DC: NUMBER OF BLOCKS counts blocks of the destination"""

Designator = tuple[int, int, bytes]
"""code set, designator type, value"""


@dataclass(frozen=True, slots=True)
class Target:
    """A unit that the list names; `at`: where in the list, for field pointers."""

    at: int
    designator: Designator
    block_size: int


@dataclass(frozen=True, slots=True)
class Segment:
    """`bytes` is None where the descriptor counts blocks."""

    source: int
    target: int
    source_lba: int
    target_lba: int
    blocks: int
    bytes: int | None = None

    def length(self, targets: Sequence[ITL | None]) -> int:
        """In blocks of the source."""
        if self.bytes is None:
            return self.blocks
        itl = targets[self.source] if self.source < len(targets) else None
        return 0 if itl is None else self.bytes // itl.logical_unit.medium.block_size


@dataclass(frozen=True, slots=True)
class CopyParameters:
    """`list_id` is None where nobody will ask for the result."""

    list_id: int | None
    targets: list[Target]
    segments: list[Segment]


def _targets(data: bytes, at: int, end: int) -> list[Target]:
    found: list[Target] = []
    while at < end:
        if data[at] != IDENTIFICATION:
            raise CheckCondition(sense.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE)
        if len(found) == TARGETS:
            raise CheckCondition(sense.TOO_MANY_TARGET_DESCRIPTORS)
        if end - at < TARGET.sizeof():
            raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
        each = TARGET.parse(data[at : at + TARGET.sizeof()])
        if each.kind.device_type:
            raise sense.invalid_parameter(at + 1, 4)
        if each.length > len(each.designator) or each.association_and_type & 0x30:
            # Only a name of the logical unit itself names a logical unit.
            raise sense.invalid_parameter(at + (7 if each.length > len(each.designator) else 5), 7)
        designator = (each.code_set & 0x0F, each.association_and_type & 0x0F, each.designator[: each.length])
        found.append(Target(at, designator, each.block_size))
        at += TARGET.sizeof()
    return found


def _segments(data: bytes, at: int, end: int) -> list[Segment]:
    found: list[Segment] = []
    while at < end:
        body = BODIES.get(data[at])
        if body is None:
            raise CheckCondition(sense.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE)
        if len(found) == SEGMENTS:
            raise CheckCondition(sense.TOO_MANY_SEGMENT_DESCRIPTORS)
        whole = SEGMENT_HEAD.sizeof() + body.sizeof()
        if end - at < whole:
            raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
        head = SEGMENT_HEAD.parse(data[at:])
        if head.length != whole - 4:
            raise sense.invalid_parameter(at + 2, 7)
        parsed = body.parse(data[at + SEGMENT_HEAD.sizeof() :])
        if data[at] == BLOCK_TO_BLOCK:
            found.append(Segment(head.source, head.target, parsed.source_lba, parsed.target_lba, parsed.blocks))
        else:
            # Copies begin and end at blocks.
            if parsed.source_offset or parsed.target_offset:
                raise sense.invalid_parameter(at + (28 if parsed.source_offset else 30), 7)
            if parsed.bytes > SEGMENT_BYTES:
                raise sense.invalid_parameter(at + 8, 7)
            found.append(Segment(head.source, head.target, parsed.source_lba, parsed.target_lba, 0, parsed.bytes))
        at += whole
    return found


def parse(data: bytes) -> CopyParameters:
    """Raises CheckCondition for the first thing that is wrong."""
    if len(data) < HEADER.sizeof():
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    head = HEADER.parse(data)
    if head.inline_length:
        raise CheckCondition(sense.INLINE_DATA_LENGTH_EXCEEDED)
    usage = head.flags.list_id_usage
    if usage == 0b01 or (usage == NO_LIST_ID and head.list_id):
        raise sense.invalid_parameter(1 if usage == 0b01 else 0, 4 if usage == 0b01 else 7)
    middle = HEADER.sizeof() + head.targets_length
    end = middle + head.segments_length
    if end > len(data) or end - HEADER.sizeof() > LIST_BYTES:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    targets = _targets(data, HEADER.sizeof(), middle)
    return CopyParameters(None if usage == NO_LIST_ID else head.list_id, targets, _segments(data, middle, end))
