# SPDX-License-Identifier: Apache-2.0
"""Log pages, one row each (SPC-5 7.3, SBC-4 6.4): the parameters that a unit has counters for, and no others.

Counters are the data plane's; what LOG SELECT does to them is `log`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vhost_scsi.scsi.medium import Counts
from vhost_scsi.scsi.self_test import RESULTS

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit

# SPC-5 table 344, FORMAT AND LINKING of the control byte: a counter that stops at its maximum, or a list in binary
COUNTER, BINARY_LIST = 0b00, 0b11
UNKNOWN_TEMPERATURE: Final = 0xFF
LOOKS: Final = 1024
"""at the allocation map, for one answer"""
RESOURCE_SCOPE_UNIT: Final = 0b01
"""SBC-4 6.4.5.4: not shared with other units"""

Parameter = tuple[int, int, bytes]
"""code, format, value"""


def _counter(code: int, value: int, length: int = 8) -> Parameter:
    return code, COUNTER, min(value, (1 << 8 * length) - 1).to_bytes(length)


def _since(unit: LogicalUnit) -> Counts:
    """What was counted since somebody reset the counters."""
    now, then = unit.medium.counts(), unit.log_base
    return Counts(**{name: getattr(now, name) - getattr(then, name) for name in Counts.__dataclass_fields__})


def _errors(total_bytes: int, uncorrected: int) -> Iterator[Parameter]:
    # SPC-5 table 360. Nothing is corrected and nothing is tried again.
    yield _counter(0x0003, 0)
    yield _counter(0x0005, total_bytes)
    yield _counter(0x0006, uncorrected)


def _write_errors(unit: LogicalUnit) -> Iterator[Parameter]:
    counts = _since(unit)
    return _errors(counts.write_bytes, counts.write_errors)


def _read_errors(unit: LogicalUnit) -> Iterator[Parameter]:
    counts = _since(unit)
    return _errors(counts.read_bytes, counts.read_errors)


def _verify_errors(unit: LogicalUnit) -> Iterator[Parameter]:
    counts = _since(unit)
    return _errors(counts.verify_bytes, counts.verify_errors)


def _non_medium_errors(unit: LogicalUnit) -> Iterator[Parameter]:
    yield _counter(0x0000, unit.internal_failures)


def _used_blocks(unit: LogicalUnit) -> int | None:
    """None where the store does not know, or is in too many pieces to be counted now."""
    medium, lba, used = unit.medium, 0, 0
    for _ in range(LOOKS):
        if lba == medium.num_blocks:
            return used
        run = medium.map(lba, medium.num_blocks - lba)
        if run is None:
            return None
        used += run.blocks if run.mapped else 0
        lba += run.blocks
    return None


def _provisioning(unit: LogicalUnit) -> Iterator[Parameter]:
    used = _used_blocks(unit)
    if used is not None:
        value = min(used, 0xFFFFFFFF).to_bytes(4) + bytes([RESOURCE_SCOPE_UNIT, 0, 0, 0])
        yield 0x0002, BINARY_LIST, value


def _temperature(unit: LogicalUnit) -> Iterator[Parameter]:
    # SPC-5 7.3.20: there is no sensor
    yield 0x0000, BINARY_LIST, bytes([0, UNKNOWN_TEMPERATURE])
    yield 0x0001, BINARY_LIST, bytes([0, UNKNOWN_TEMPERATURE])


def _start_stop_cycles(unit: LogicalUnit) -> Iterator[Parameter]:
    yield 0x0004, BINARY_LIST, min(unit.readiness.stops, 0xFFFFFFFF).to_bytes(4)


def _self_tests(unit: LogicalUnit) -> Iterator[Parameter]:
    results = list(unit.self_tests.results)
    for number in range(RESULTS):
        value = bytearray(16)
        if number < len(results):
            each = results[number]
            value[0] = each.code << 5 | each.result
            value[2:4] = each.hours.to_bytes(2)
            value[4:12] = each.address.to_bytes(8)
            if each.sense is not None:
                value[12:15] = bytes([each.sense.key, each.sense.asc, each.sense.ascq])
        yield number + 1, BINARY_LIST, bytes(value)


def _background_scan(unit: LogicalUnit) -> Iterator[Parameter]:
    # SBC-4 6.4.2: power on minutes, and no scan has ever run
    minutes = int((time.monotonic() - unit.self_tests.born) // 60)
    yield 0x0000, BINARY_LIST, min(minutes, 0xFFFFFFFF).to_bytes(4) + bytes(8)


def _statistics(unit: LogicalUnit) -> Iterator[Parameter]:
    """Commands and blocks. Intervals and times are zero: nobody takes the time of a command."""
    counts, size = _since(unit), unit.medium.block_size
    numbers = (counts.reads, counts.writes, counts.write_bytes // size, counts.read_bytes // size, 0, 0, 0, 0)
    yield 0x0001, BINARY_LIST, b"".join(number.to_bytes(8) for number in numbers)


def _informational_exceptions(unit: LogicalUnit) -> Iterator[Parameter]:
    yield 0x0000, BINARY_LIST, bytes([0, 0, UNKNOWN_TEMPERATURE, 0])


@dataclass(frozen=True, slots=True)
class LogPage:
    """`parameters` gives them in ascending order; None: the page is a list of pages. `counts`: LOG SELECT resets it."""

    code: int
    name: str
    parameters: Callable[[LogicalUnit], Iterator[Parameter]] | None
    subpage: int = 0
    counts: bool = False


PAGES: Final[tuple[LogPage, ...]] = (
    LogPage(0x00, "Supported Log Pages", None),
    LogPage(0x00, "Supported Log Pages and Subpages", None, subpage=0xFF),
    LogPage(0x02, "Write Error Counters", _write_errors, counts=True),
    LogPage(0x03, "Read Error Counters", _read_errors, counts=True),
    LogPage(0x05, "Verify Error Counters", _verify_errors, counts=True),
    LogPage(0x06, "Non-Medium Error", _non_medium_errors, counts=True),
    LogPage(0x0C, "Logical Block Provisioning", _provisioning),
    LogPage(0x0D, "Temperature", _temperature),
    LogPage(0x0E, "Start-Stop Cycle Counter", _start_stop_cycles),
    LogPage(0x10, "Self-Test Results", _self_tests),
    LogPage(0x15, "Background Scan", _background_scan),
    LogPage(0x19, "General Statistics and Performance", _statistics, counts=True),
    LogPage(0x2F, "Informational Exceptions", _informational_exceptions),
)

_BY_CODE: Final = {(page.code, page.subpage): page for page in PAGES}


def find(code: int, subpage: int) -> LogPage | None:
    return _BY_CODE.get((code, subpage))
