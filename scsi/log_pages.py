# SPDX-License-Identifier: Apache-2.0
"""Log pages, one row each (SPC-5 7.3, SBC-4 6.4): the parameters that a unit has counters for, and no others.

Counters are the data plane's; what LOG SELECT does to them is `log`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from construct import Int8ub, Int32ub, Padding, Struct

from vhost_scsi.scsi.command import Feature
from vhost_scsi.scsi.medium import Counts
from vhost_scsi.scsi.self_test import RESULTS

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit

# SPC-5 table 344, FORMAT AND LINKING of the control byte: a counter that stops at its maximum, or a list in binary
COUNTER, BINARY_LIST = 0b00, 0b11
UNKNOWN_TEMPERATURE: Final = 0xFF
# SBC-4 6.4.5
RESOURCE_COUNT = Struct("count" / Int32ub, "scope" / Int8ub, Padding(3))
RESOURCE_SCOPE_UNIT, RESOURCE_SCOPE_SHARED = 0b01, 0b10
"""SBC-4 6.4.5.4: the unit's own, or perhaps others' too"""
INTERVAL_NS, INTERVAL_EXPONENT = 1000, 6
"""of the statistics: 1 times 10 to the minus sixth seconds"""

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


def _provisioning(unit: LogicalUnit) -> Iterator[Parameter]:
    """SBC-4 6.4.5, in threshold sets: what is taken in part is used, and is not available."""
    unit.thresholds.look()
    usage, one = unit.medium.usage(), unit.thresholds.set_blocks
    if usage is not None:
        available, used = usage.available // one, -(-usage.used // one)
        scope = RESOURCE_SCOPE_SHARED if usage.shared else RESOURCE_SCOPE_UNIT
        yield 0x0001, BINARY_LIST, RESOURCE_COUNT.build({"count": min(available, 0xFFFFFFFF), "scope": scope})
        yield 0x0002, BINARY_LIST, RESOURCE_COUNT.build({"count": min(used, 0xFFFFFFFF), "scope": RESOURCE_SCOPE_UNIT})


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
    """Commands, blocks, and the intervals that commands took; what is weighted by queue depths nobody counts. The unit
    was idle for at least what is left: commands that overlap are counted as if they had come one after the other."""
    counts, size = _since(unit), unit.medium.block_size
    blocks = (counts.write_bytes // size, counts.read_bytes // size)
    intervals = (counts.read_ns // INTERVAL_NS, counts.write_ns // INTERVAL_NS)
    numbers = (counts.reads, counts.writes, *blocks, *intervals, 0, 0)
    yield 0x0001, BINARY_LIST, b"".join(number.to_bytes(8) for number in numbers)
    taken = (counts.read_ns + counts.write_ns) // INTERVAL_NS
    yield _counter(0x0002, max(0, int((time.monotonic() - unit.log_began) * 10**INTERVAL_EXPONENT) - taken))
    yield 0x0003, BINARY_LIST, INTERVAL_EXPONENT.to_bytes(4) + (1).to_bytes(4)


def _informational_exceptions(unit: LogicalUnit) -> Iterator[Parameter]:
    yield 0x0000, BINARY_LIST, bytes([0, 0, UNKNOWN_TEMPERATURE, 0])


@dataclass(frozen=True, slots=True)
class LogPage:
    """`parameters` gives them in ascending order; None: the page is a list of pages. `counts`: LOG SELECT resets it.
    `requires`: units without that do not have the page."""

    code: int
    name: str
    parameters: Callable[[LogicalUnit], Iterator[Parameter]] | None
    subpage: int = 0
    counts: bool = False
    requires: Feature = Feature.NONE


PAGES: Final[tuple[LogPage, ...]] = (
    LogPage(0x00, "Supported Log Pages", None),
    LogPage(0x00, "Supported Log Pages and Subpages", None, subpage=0xFF),
    LogPage(0x02, "Write Error Counters", _write_errors, counts=True),
    LogPage(0x03, "Read Error Counters", _read_errors, counts=True),
    LogPage(0x05, "Verify Error Counters", _verify_errors, counts=True),
    LogPage(0x06, "Non-Medium Error", _non_medium_errors, counts=True),
    LogPage(0x0C, "Logical Block Provisioning", _provisioning, requires=Feature.USAGE),
    LogPage(0x0D, "Temperature", _temperature),
    LogPage(0x0E, "Start-Stop Cycle Counter", _start_stop_cycles),
    LogPage(0x10, "Self-Test Results", _self_tests),
    LogPage(0x15, "Background Scan", _background_scan),
    LogPage(0x19, "General Statistics and Performance", _statistics, counts=True),
    LogPage(0x2F, "Informational Exceptions", _informational_exceptions),
)


def pages_of(unit: LogicalUnit) -> list[LogPage]:
    return [page for page in PAGES if unit.has(page.requires)]


def find(unit: LogicalUnit, code: int, subpage: int) -> LogPage | None:
    return next((page for page in pages_of(unit) if (page.code, page.subpage) == (code, subpage)), None)
