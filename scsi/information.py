# SPDX-License-Identifier: Apache-2.0
"""What an initiator may leave with a unit for others to find: identifying information and the time (SPC-5 6.32, 6.47,
6.36, 6.51). The information is kept beyond a restart; the time is the host's until somebody sets it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from construct import BytesInteger, GreedyBytes, Int8ub, Int16ub, Padding, Struct
from construct import Prefixed as PrefixedBytes

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.dispatch import Exclusive, Request, handles
from vhost_scsi.scsi.saved_state import SavedStateError
from vhost_scsi.scsi.sense import CheckCondition

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit
    from vhost_scsi.scsi.nexus import ITL

# SPC-5 table 286: INFORMATION TYPE, and the most that it takes
IDENTIFYING, TEXT, SUPPORTED = 0x00, 0x02, 0x7F
MOST: Final = {IDENTIFYING: 64, TEXT: 256}
NAMES: Final = {IDENTIFYING: "identifying-information", TEXT: "identifying-text"}

INFORMATION = Struct(Padding(2), "information" / PrefixedBytes(Int16ub, GreedyBytes))
SUPPORTED_TYPE = Struct("type" / Int8ub, Padding(1), "most" / Int16ub)

# SPC-5 6.36, 6.51
TIMESTAMP = Struct("length" / Int16ub, "origin" / Int8ub, Padding(1), "timestamp" / BytesInteger(6), Padding(2))
TIMESTAMP_LIST = Struct(Padding(4), "timestamp" / BytesInteger(6), Padding(2))
SET_BY_COMMAND, SET_OTHERWISE = 0b010, 0b011
WRAP: Final = 1 << 48


@handles("report_identifying_information")
def report_identifying_information(request: Request) -> bytes:
    kind = request["information_type"]
    built: bytes
    if kind == SUPPORTED:
        types = b"".join(SUPPORTED_TYPE.build({"type": each << 1, "most": most}) for each, most in MOST.items())
        built = INFORMATION.build({"information": types})
        return built
    if kind not in MOST:
        raise request.refuse("information_type")
    built = INFORMATION.build({"information": request.logical_unit.saved.get(NAMES[kind]) or b""})
    return built


async def _keep(unit: LogicalUnit, kind: int, data: bytes, by: ITL) -> bytes:
    try:
        await unit.saved.put(NAMES[kind], data or None)
    except SavedStateError:
        raise CheckCondition(sense.INTERNAL_TARGET_FAILURE) from None
    unit.establish(sense.DEVICE_IDENTIFIER_CHANGED, besides=by)
    return b""


@handles("set_identifying_information")
def set_identifying_information(request: Request) -> Exclusive:
    kind = request["information_type"]
    if kind not in MOST:
        raise request.refuse("information_type")
    if request["parameter_list_length"] > MOST[kind]:
        raise request.refuse("parameter_list_length")
    data = request.parameter_list()
    if kind == TEXT:
        # SPC-5 4.3.2: null-terminated UTF-8
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise sense.invalid_parameter(error.start, 7) from None
        if data and data[-1]:
            raise sense.invalid_parameter(len(data) - 1, 7)
    return _keep(request.logical_unit, kind, data, request.itl)


class Clock:
    """Milliseconds since 1970 in UTC, as the host has them or counted on from what was set."""

    def __init__(self) -> None:
        self._set: tuple[int, float] | None = None

    @property
    def origin(self) -> int:
        return SET_OTHERWISE if self._set is None else SET_BY_COMMAND

    def now(self) -> int:
        if self._set is None:
            return time.time_ns() // 1_000_000 % WRAP
        value, at = self._set
        return (value + int((time.monotonic() - at) * 1000)) % WRAP

    def set(self, value: int) -> None:
        self._set = value, time.monotonic()


@handles("report_timestamp")
def report_timestamp(request: Request) -> bytes:
    clock = request.logical_unit.clock
    built: bytes = TIMESTAMP.build({"length": 10, "origin": clock.origin, "timestamp": clock.now()})
    return built


@handles("set_timestamp")
def set_timestamp(request: Request) -> bytes:
    data = request.parameter_list()
    if not data:
        return b""
    if len(data) < TIMESTAMP_LIST.sizeof():
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)
    unit = request.logical_unit
    unit.clock.set(TIMESTAMP_LIST.parse(data).timestamp)
    unit.establish(sense.TIMESTAMP_CHANGED, besides=request.itl)
    return b""
