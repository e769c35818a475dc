# SPDX-License-Identifier: Apache-2.0
"""SEND DIAGNOSTIC and RECEIVE DIAGNOSTIC RESULTS (SPC-5 6.28, 6.42): self-tests that read the medium, and their results
for the log page. A short one reads the first, middle and last blocks; an extended one reads them all.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from construct import GreedyBytes, Int8ub, Int16ub, Struct
from construct import Prefixed as PrefixedBytes

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.dispatch import Alongside, Exclusive, Request, handles
from vhost_scsi.scsi.sense import CheckCondition, SenseCode

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit

RESULTS: Final = 20
"""as many as the log page has"""
PIECE_BYTES: Final = 1 << 20

# SPC-5 table 237, SELF-TEST CODE
BACKGROUND_SHORT, BACKGROUND_EXTENDED, ABORT_BACKGROUND = 0b001, 0b010, 0b100
FOREGROUND_SHORT, FOREGROUND_EXTENDED = 0b101, 0b110
EXTENDED: Final = (BACKGROUND_EXTENDED, FOREGROUND_EXTENDED)

# SPC-5 table 380, SELF-TEST RESULTS
PASSED, ABORTED_BY_COMMAND, FAILED, RUNNING = 0x0, 0x1, 0x6, 0xF

DIAGNOSTIC_PAGE = Struct("code" / Int8ub, "specific" / Int8ub, "data" / PrefixedBytes(Int16ub, GreedyBytes))
SUPPORTED_PAGES: Final = 0x00


@dataclass(slots=True)
class Result:
    """A line of log page 10h."""

    code: int
    result: int
    hours: int
    address: int = 0xFFFFFFFFFFFFFFFF
    sense: SenseCode | None = None


class SelfTests:
    """The results of one unit, newest first, and the test that runs in the background."""

    def __init__(self) -> None:
        self.results: Final[deque[Result]] = deque(maxlen=RESULTS)
        self.running: asyncio.Task[None] | None = None
        self.born: Final = time.monotonic()

    def hours(self) -> int:
        return min(int((time.monotonic() - self.born) // 3600), 0xFFFF)


def _pieces(unit: LogicalUnit, *, extended: bool) -> list[tuple[int, int]] | range:
    total = unit.medium.num_blocks
    if extended:
        return range(0, total, max(1, PIECE_BYTES // unit.medium.block_size))
    return [(lba, 1) for lba in sorted({0, total // 2, total - 1})]


async def _read_all(unit: LogicalUnit, code: int) -> None:
    bad = unit.medium.bad_blocks()
    total, piece = unit.medium.num_blocks, max(1, PIECE_BYTES // unit.medium.block_size)
    for each in _pieces(unit, extended=code in EXTENDED):
        lba, blocks = each if isinstance(each, tuple) else (each, min(piece, total - each))
        async with unit.moving():
            await unit.medium.read(lba, blocks)
        marked = next((block for block in bad if lba <= block < lba + blocks), None)
        if marked is not None:
            raise CheckCondition(sense.READ_ERROR_LBA_MARKED_BAD_BY_APPLICATION_CLIENT, information=marked)
        await asyncio.sleep(0)


async def _test(unit: LogicalUnit, result: Result) -> bool:
    tests = unit.self_tests
    tests.results.appendleft(result)
    result.result = RUNNING
    try:
        await _read_all(unit, result.code)
        result.result = PASSED
    except CheckCondition as condition:
        result.result = FAILED
        result.sense = condition.sense.code
        if condition.sense.information is not None:
            result.address = condition.sense.information
    except asyncio.CancelledError:
        result.result = ABORTED_BY_COMMAND
        raise
    finally:
        result.hours = tests.hours()
    return result.result == PASSED


async def _foreground(unit: LogicalUnit, code: int) -> bytes:
    if not await _test(unit, Result(code, RUNNING, 0)):
        raise CheckCondition(sense.LOGICAL_UNIT_FAILED_SELF_TEST)
    return b""


def _in_background(unit: LogicalUnit, code: int) -> None:
    async def run() -> None:
        try:
            await _test(unit, Result(code, RUNNING, 0))
        finally:
            unit.self_tests.running = None

    work: Coroutine[Any, Any, None] = run()
    unit.self_tests.running = unit.spawn(work)


@handles("send_diagnostic")
def send_diagnostic(request: Request) -> bytes | Exclusive | Alongside:
    unit, code = request.logical_unit, request["self_test_code"]
    tests = unit.self_tests
    data = request.parameter_list()
    if request["selftest"]:
        if code or data:
            raise request.refuse("self_test_code" if code else "parameter_list_length")
        code = FOREGROUND_SHORT
    if not code:
        return _page(request, data)
    if data:
        raise request.refuse("parameter_list_length")
    if code == ABORT_BACKGROUND:
        if tests.running is None:
            raise request.refuse("self_test_code")
        tests.running.cancel()
        return b""
    if code not in (BACKGROUND_SHORT, BACKGROUND_EXTENDED, FOREGROUND_SHORT, FOREGROUND_EXTENDED):
        raise request.refuse("self_test_code")
    if tests.running is not None:
        raise CheckCondition(sense.LOGICAL_UNIT_NOT_READY_SELF_TEST_IN_PROGRESS)
    if code in (BACKGROUND_SHORT, BACKGROUND_EXTENDED):
        _in_background(unit, code)
        return b""
    return Alongside(_foreground(unit, code))


def _page(request: Request, data: bytes) -> bytes:
    """The only page that can be sent asks for the list of pages, which is what RECEIVE DIAGNOSTIC RESULTS gives."""
    if not data:
        return b""
    if not request["pf"]:
        raise request.refuse("pf")
    if len(data) < 4:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    if data[0] != SUPPORTED_PAGES:
        raise sense.invalid_parameter(0, 7)
    if any(data[1:]):
        raise sense.invalid_parameter(1, 7)
    return b""


@handles("receive_diagnostic_results")
def receive_diagnostic_results(request: Request) -> bytes:
    if request["pcv"] and request["page_code"] != SUPPORTED_PAGES:
        raise request.refuse("page_code")
    built: bytes = DIAGNOSTIC_PAGE.build({"code": SUPPORTED_PAGES, "specific": 0, "data": bytes([SUPPORTED_PAGES])})
    return built
