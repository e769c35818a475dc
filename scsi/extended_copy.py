# SPDX-License-Identifier: Apache-2.0
"""EXTENDED COPY(LID1) and RECEIVE COPY RESULTS (SPC-4 6.4, 6.20): blocks are copied from one logical unit to another,
or within one, without passing the initiator.

Only units that the nexus itself can address are found; another nexus's LUNs cannot be named. What the parameter list
says is `copy_parameters`; its bounds are in the Third-party Copy page.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from construct import Int8ub, Int16ub, Int32ub, Padding, Struct

from vhost_scsi.scsi import copy_parameters, limits, sense
from vhost_scsi.scsi.commands import find
from vhost_scsi.scsi.copy_parameters import Segment, Target
from vhost_scsi.scsi.dispatch import Alongside, Request, handles
from vhost_scsi.scsi.sense import CheckCondition, EndsWith
from vhost_scsi.scsi.vpd import logical_unit_designators

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit
    from vhost_scsi.scsi.nexus import ITL

PIECE_BYTES: Final = 4 << 20
READ_16, WRITE_16 = 0x88, 0x8A

IN_PROGRESS, DONE, FAILED = 0x00, 0x01, 0x02
KIBIBYTES: Final = 0x01

# SPC-4 6.20.2
COPY_STATUS = Struct(
    "available" / Int32ub,
    "status" / Int8ub,
    "segments" / Int16ub,
    "units" / Int8ub,
    "transferred" / Int32ub,
)
HDD: Final = 0x80
"""what was held for the initiator has been thrown away: nothing ever is held"""

# SPC-4 6.20.4
OPERATING_PARAMETERS = Struct(
    "available" / Int32ub,
    "snlid" / Int8ub,
    Padding(3),
    "targets" / Int16ub,
    "segments" / Int16ub,
    "list_bytes" / Int32ub,
    "segment_bytes" / Int32ub,
    "inline_bytes" / Int32ub,
    "held_bytes" / Int32ub,
    "stream_bytes" / Int32ub,
    Padding(2),
    "total_copies" / Int16ub,
    "copies" / Int8ub,
    "segment_granularity" / Int8ub,
    "inline_granularity" / Int8ub,
    "held_granularity" / Int8ub,
    Padding(3),
    "codes_length" / Int8ub,
)

# SPC-4 6.20.5
FAILED_SEGMENT = Struct("available" / Int32ub, Padding(52), "status" / Int8ub, Padding(1), "sense_length" / Int16ub)


@dataclass(slots=True, eq=False)
class Copy:
    """One copy, and what is told of it."""

    status: int = IN_PROGRESS
    segments: int = 0
    moved: int = 0


Copies = OrderedDict[int, Copy]
"""by list identifier, the oldest first"""


def _keep(itl: ITL, list_id: int) -> Copy:
    copies = itl.copies
    running = copies.get(list_id)
    if running is not None and running.status == IN_PROGRESS:
        # SPC-4 6.4.3: a list identifier that is in use
        raise sense.invalid_parameter(0, 7)
    copies.pop(list_id, None)
    while len(copies) >= limits.COPIES:
        done = next((each for each, copy in copies.items() if copy.status != IN_PROGRESS), None)
        if done is None:
            raise CheckCondition(sense.SYSTEM_RESOURCE_FAILURE)
        del copies[done]
    copies[list_id] = Copy()
    return copies[list_id]


def _unreachable(segment: int) -> CheckCondition:
    return CheckCondition(sense.COPY_TARGET_DEVICE_NOT_REACHABLE, command_specific=segment)


def _unit_of(itl: ITL, target: Target) -> ITL | None:
    """The nexus's own way to the unit that the descriptor names."""
    for other in itl.nexus.itls:
        if target.designator in logical_unit_designators(other.logical_unit):
            return other
    return None


@dataclass(frozen=True, slots=True)
class Side:
    """One end of a segment."""

    itl: ITL
    lba: int

    @property
    def unit(self) -> LogicalUnit:
        return self.itl.logical_unit


def _side(targets: list[ITL | None], index: int, lba: int, blocks: int, opcode: int, segment: int) -> Side:
    itl = targets[index] if index < len(targets) else None
    if itl is None:
        raise _unreachable(segment)
    unit = itl.logical_unit
    if lba + blocks > unit.medium.num_blocks:
        raise CheckCondition(sense.COPY_ABORTED, command_specific=segment)
    row = find(opcode, None)
    assert row is not None
    try:
        unit.check_access(itl, row)
    except (CheckCondition, EndsWith):
        raise CheckCondition(sense.THIRD_PARTY_DEVICE_FAILURE, command_specific=segment) from None
    return Side(itl, lba)


async def _segment(targets: list[ITL | None], segment: Segment, number: int, copy: Copy) -> None:
    source_blocks = segment.length(targets)
    source = _side(targets, segment.source, segment.source_lba, source_blocks, READ_16, number)
    target = _side(targets, segment.target, segment.target_lba, source_blocks, WRITE_16, number)
    size = source.unit.medium.block_size
    if size != target.unit.medium.block_size:
        raise CheckCondition(sense.COPY_ABORTED, command_specific=number)
    bad = source.unit.medium.bad_blocks()
    if any(source.lba <= block < source.lba + source_blocks for block in bad):
        raise CheckCondition(sense.THIRD_PARTY_DEVICE_FAILURE, command_specific=number)
    # Overlapping ranges of one unit come out as if all had been read first: from the end where the target lies behind.
    pieces = list(range(0, source_blocks, max(1, PIECE_BYTES // size)))
    backwards = source.unit is target.unit and source.lba < target.lba < source.lba + source_blocks
    for at in reversed(pieces) if backwards else pieces:
        blocks = min(max(1, PIECE_BYTES // size), source_blocks - at)
        async with source.unit.moving(), target.unit.moving():
            data = await source.unit.medium.read(source.lba + at, blocks)
            await target.unit.medium.write(target.lba + at, data)
            await target.unit.marked.written(target.lba + at, len(data) // target.unit.medium.block_size)
        copy.moved += len(data)


async def _copy(targets: list[ITL | None], segments: list[Segment], copy: Copy) -> bytes:
    try:
        for number, segment in enumerate(segments):
            await _segment(targets, segment, number, copy)
            copy.segments += 1
        for unit in {itl.logical_unit for itl in targets if itl is not None}:
            if not unit.write_cache:
                await unit.medium.flush()
        copy.status = DONE
    finally:
        if copy.status == IN_PROGRESS:
            copy.status = FAILED
    return b""


@handles("extended_copy")
def extended_copy(request: Request) -> bytes | Alongside:
    data = request.parameter_list()
    if not data:
        # SPC-4 6.4.1: nothing to do is no error
        return b""
    parameters = copy_parameters.parse(data)
    itl = request.itl
    targets = [_unit_of(itl, target) for target in parameters.targets]
    for each, found in zip(parameters.targets, targets, strict=True):
        if found is not None and each.block_size not in (0, found.logical_unit.medium.block_size):
            raise sense.invalid_parameter(each.at + 29, 7)
    copy = Copy() if parameters.list_id is None else _keep(itl, parameters.list_id)
    return Alongside(_copy(targets, parameters.segments, copy))


# ---- RECEIVE COPY RESULTS --------------------------------------------------------------------------------------------


def _asked(request: Request) -> Copy:
    copy = request.itl.copies.get(request["list_identifier"])
    if copy is None:
        raise request.refuse("list_identifier")
    return copy


@handles("receive_copy_status")
def receive_copy_status(request: Request) -> bytes:
    copy = _asked(request)
    built: bytes = COPY_STATUS.build(
        {
            "available": COPY_STATUS.sizeof() - 4,
            "status": HDD | copy.status,
            "segments": copy.segments,
            "units": KIBIBYTES,
            "transferred": min(copy.moved >> 10, 0xFFFFFFFF),
        }
    )
    if copy.status != IN_PROGRESS:
        # SPC-4 6.20.2: told once
        del request.itl.copies[request["list_identifier"]]
    return built


@handles("receive_copy_failed_segment")
def receive_copy_failed_segment(request: Request) -> bytes:
    """A copy that failed said so in its own sense data: nothing more is kept."""
    copy = _asked(request)
    if copy.status == IN_PROGRESS:
        raise request.refuse("list_identifier")
    built: bytes = FAILED_SEGMENT.build({"available": FAILED_SEGMENT.sizeof() - 4, "status": 0, "sense_length": 0})
    return built


@handles("receive_copy_operating_parameters")
def receive_copy_operating_parameters(request: Request) -> bytes:
    codes = bytes(copy_parameters.CODES)
    granularity = request.logical_unit.medium.block_size.bit_length() - 1
    built: bytes = OPERATING_PARAMETERS.build(
        {
            "available": OPERATING_PARAMETERS.sizeof() - 4 + len(codes),
            "snlid": 1,
            "targets": copy_parameters.TARGETS,
            "segments": copy_parameters.SEGMENTS,
            "list_bytes": copy_parameters.LIST_BYTES,
            "segment_bytes": copy_parameters.SEGMENT_BYTES,
            "inline_bytes": 0,
            "held_bytes": 0,
            "stream_bytes": 0,
            "total_copies": limits.COPIES,
            "copies": limits.COPIES,
            "segment_granularity": granularity,
            "inline_granularity": 0,
            "held_granularity": 0,
            "codes_length": len(codes),
        }
    )
    return built + codes
