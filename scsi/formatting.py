# SPDX-License-Identifier: Apache-2.0
"""FORMAT UNIT and SANITIZE (SBC-4 5.4, 5.30): what takes the whole medium, a piece at a time, with other units and the
loop going on beside it. Meanwhile the unit is not ready, and REQUEST SENSE says how far it is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from construct import BitsInteger, BitStruct, Flag, Int8ub, Int16ub, Int32ub, Padding, Struct

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.dispatch import Alongside, Request, handles
from vhost_scsi.scsi.readiness import Operation
from vhost_scsi.scsi.sense import CheckCondition, SenseCode

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit

PIECE_BYTES: Final = 4 << 20
"""written at a time"""
ZERO_PIECE_BYTES: Final = 64 << 20
"""cleared at a time: most stores do that without writing"""

# SBC-4 5.4.2, the bytes that both parameter list headers begin with
FORMAT_FLAGS = BitStruct(
    Padding(5),
    "protection_field_usage" / BitsInteger(3),
    "fov" / Flag,
    "dpry" / Flag,
    "dcrt" / Flag,
    "stpf" / Flag,
    "ip" / Flag,
    Padding(1),
    "immed" / Flag,
    Padding(1),
)
SHORT_FORMAT_HEADER = Struct("flags" / FORMAT_FLAGS, "defect_list_length" / Int16ub)
LONG_FORMAT_HEADER = Struct("flags" / FORMAT_FLAGS, Padding(2), "defect_list_length" / Int32ub)
INITIALIZATION_PATTERN = Struct("modifier" / Int8ub, "type" / Int8ub, "length" / Int16ub)
SI: Final = 0x20

# SBC-4 5.30.2
OVERWRITE = Struct(
    "flags" / BitStruct("invert" / Flag, "test" / BitsInteger(2), "count" / BitsInteger(5)),
    Padding(1),
    "pattern_length" / Int16ub,
)


@dataclass(frozen=True, slots=True)
class Pass:
    """Once over the medium; no pattern: blocks are cleared, and given back where the store can."""

    pattern: bytes = b""


async def _over(unit: LogicalUnit, operation: Operation, each: Pass, wait: Callable[[], Awaitable[None]]) -> None:
    medium = unit.medium
    piece = max(1, (PIECE_BYTES if each.pattern else ZERO_PIECE_BYTES) // medium.block_size)
    block = (each.pattern * (medium.block_size // len(each.pattern) + 1))[: medium.block_size] if each.pattern else b""
    data = block * piece
    total = medium.num_blocks
    for lba in range(0, total, piece):
        blocks = min(piece, total - lba)
        if each.pattern:
            await medium.write(lba, data[: blocks * medium.block_size])
        else:
            await medium.zero(lba, blocks, may_unmap=True)
        operation.done += blocks
        await wait()


def _paced(unit: LogicalUnit, operation: Operation) -> Callable[[], Awaitable[None]]:
    """Waits as long as the unit's rate asks for, and gives everybody else a turn in any case."""
    rate, began = unit.definition.overwrite_rate, time.monotonic()

    async def wait() -> None:
        due = began + operation.done * unit.medium.block_size / rate if rate else 0.0
        await asyncio.sleep(max(0.0, due - time.monotonic()))

    return wait


@dataclass(frozen=True, slots=True)
class Plan:
    """`failure` is left behind when the medium fails; `may_leave`: AUSE."""

    code: SenseCode
    failure: SenseCode
    passes: list[Pass]
    immediate: bool
    may_leave: bool = False


async def _carry_out(unit: LogicalUnit, operation: Operation, plan: Plan) -> None:
    """Raises CheckCondition when the medium fails."""
    left: SenseCode | None = plan.failure
    try:
        wait = _paced(unit, operation)
        for each in plan.passes:
            await _over(unit, operation, each, wait)
        await unit.medium.flush()
        await unit.marked.forget_all()
        left = None
    finally:
        unit.readiness.end(left, may_leave=plan.may_leave)


async def _take_medium(unit: LogicalUnit, plan: Plan) -> bytes:
    operation = Operation(plan.code, unit.medium.num_blocks * len(plan.passes))
    async with unit.held():
        unit.readiness.begin(operation)
    if not plan.immediate:
        await _carry_out(unit, operation, plan)
        return b""

    async def alone() -> None:
        try:
            await _carry_out(unit, operation, plan)
        except CheckCondition as condition:
            unit.log_error("%s", condition.sense.code.text)

    unit.spawn(alone())
    return b""


# ---- FORMAT UNIT -----------------------------------------------------------------------------------------------------


def _initialization_pattern(request: Request, data: bytes, at: int) -> bytes:
    if len(data) < at + INITIALIZATION_PATTERN.sizeof():
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    head = INITIALIZATION_PATTERN.parse(data[at:])
    if head.modifier & ~SI:
        raise sense.invalid_parameter(at, head.modifier.bit_length() - 1)
    if head.type > 1:
        raise sense.invalid_parameter(at + 1, 7)
    pattern = data[at + INITIALIZATION_PATTERN.sizeof() :][: head.length]
    if len(pattern) < head.length:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    # SBC-4 table 40: type 00h is the default pattern, 01h repeats the given one.
    if head.length > request.logical_unit.medium.block_size or bool(head.type) != bool(head.length):
        raise sense.invalid_parameter(at + 2, 7)
    return pattern if any(pattern) else b""


def _format_parameters(request: Request, data: bytes) -> tuple[bool, bytes]:
    """Whether status comes at once, and the pattern (empty: zeroes)."""
    layout = LONG_FORMAT_HEADER if request["longlist"] else SHORT_FORMAT_HEADER
    if len(data) < layout.sizeof():
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    head = layout.parse(data)
    flags = head.flags
    if flags.protection_field_usage:
        raise sense.invalid_parameter(0, 2)
    # SBC-4 5.4.2.2: FOV=0 leaves the rest to the target, and then nothing else may be set.
    if not flags.fov and (flags.dpry or flags.dcrt or flags.stpf or flags.ip):
        raise sense.invalid_parameter(1, 7)
    if head.defect_list_length:
        # Nothing on our media is to be avoided.
        raise sense.invalid_parameter(layout.sizeof() - (4 if request["longlist"] else 2), 7)
    pattern = _initialization_pattern(request, data, layout.sizeof()) if flags.ip else b""
    return bool(flags.immed), pattern


@handles("format_unit")
def format_unit(request: Request) -> Alongside:
    unit = request.logical_unit
    immediate, pattern = False, b""
    if request["fmtdata"]:
        immediate, pattern = _format_parameters(request, request.task.data_out)
    elif request["longlist"] or request["cmplst"] or request["defect_list_format"]:
        raise request.refuse("fmtdata")
    code = sense.LOGICAL_UNIT_NOT_READY_FORMAT_IN_PROGRESS
    plan = Plan(code, sense.FORMAT_COMMAND_FAILED, [Pass(pattern)], immediate)
    return Alongside(_take_medium(unit, plan), goes_on=True)


# ---- SANITIZE --------------------------------------------------------------------------------------------------------


def _sanitize(request: Request, passes: list[Pass]) -> Alongside:
    plan = Plan(
        sense.LOGICAL_UNIT_NOT_READY_SANITIZE_IN_PROGRESS,
        sense.SANITIZE_COMMAND_FAILED,
        passes,
        bool(request["immed"]),
        bool(request["ause"]),
    )
    return Alongside(_take_medium(request.logical_unit, plan), goes_on=True)


@handles("sanitize_overwrite")
def sanitize_overwrite(request: Request) -> Alongside:
    size = request.logical_unit.medium.block_size
    # SBC-4 5.30.2: the list has at least a byte of pattern and at most a block.
    if not OVERWRITE.sizeof() < request["parameter_list_length"] <= size + OVERWRITE.sizeof():
        raise request.refuse("parameter_list_length")
    data = request.parameter_list()
    head = OVERWRITE.parse(data)
    if not head.flags.count:
        raise sense.invalid_parameter(0, 4)
    if head.flags.test:
        raise sense.invalid_parameter(0, 6)
    if not 0 < head.pattern_length <= size or len(data) != OVERWRITE.sizeof() + head.pattern_length:
        raise sense.invalid_parameter(2, 7)
    pattern = data[OVERWRITE.sizeof() :]
    inverted = bytes(byte ^ 0xFF for byte in pattern)
    # SBC-4 4.11.2: INVERT turns the pattern over with each pass, and the last one writes it as it is given.
    turned = [bool(head.flags.invert) and (head.flags.count - 1 - i) % 2 == 1 for i in range(head.flags.count)]
    return _sanitize(request, [Pass(inverted if turn else pattern) for turn in turned])


def _no_list(request: Request) -> None:
    if request["parameter_list_length"]:
        raise request.refuse("parameter_list_length")


@handles("sanitize_block_erase")
def sanitize_block_erase(request: Request) -> Alongside:
    _no_list(request)
    return _sanitize(request, [Pass()])


@handles("sanitize_exit_failure_mode")
def sanitize_exit_failure_mode(request: Request) -> bytes:
    """SBC-4 5.30.5: only for a failure that AUSE allowed to leave; else the unit stays as it is."""
    _no_list(request)
    request.logical_unit.readiness.leave_failure()
    return b""
