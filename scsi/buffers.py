# SPDX-License-Identifier: Apache-2.0
"""READ BUFFER and WRITE BUFFER (SPC-5 6.18, 6.54): memory of the unit's that an initiator may use to try its way to it.

One buffer for all nexuses, and an echo buffer for each (EBOS=1). No microcode is taken.
"""

from __future__ import annotations

from typing import Final

from construct import BitsInteger, BitStruct, Flag, Int8ub, Int24ub, Padding, Struct

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.dispatch import Request, handles
from vhost_scsi.scsi.limits import BUFFER_BYTES, ECHO_BUFFER_BYTES
from vhost_scsi.scsi.sense import CheckCondition

DATA, DESCRIPTOR, ECHO, ECHO_DESCRIPTOR = 0x02, 0x03, 0x0A, 0x0B

BUFFER_DESCRIPTOR = Struct("offset_boundary" / Int8ub, "capacity" / Int24ub)
ECHO_BUFFER_DESCRIPTOR = BitStruct(Padding(7), "ebos" / Flag, Padding(11), "capacity" / BitsInteger(13))
ANY_OFFSET: Final = 0
"""2**0: an offset may be any byte"""


def _no_other_buffer(request: Request) -> None:
    if request["buffer_id"]:
        raise request.refuse("buffer_id")


def _within(request: Request, length: int) -> int:
    """The offset of a transfer of that length, which must lie in the buffer."""
    offset = request["buffer_offset"]
    if offset > BUFFER_BYTES:
        raise request.refuse("buffer_offset")
    if offset + length > BUFFER_BYTES:
        raise request.refuse("parameter_list_length")
    return offset


@handles("read_buffer")
def read_buffer(request: Request) -> bytes:
    unit, mode = request.logical_unit, request["mode"]
    built: bytes
    if mode == ECHO:
        if request.itl.echo is None:
            # SPC-5 6.18.9: nothing was written
            raise CheckCondition(sense.COMMAND_SEQUENCE_ERROR)
        return request.itl.echo
    if mode == ECHO_DESCRIPTOR:
        built = ECHO_BUFFER_DESCRIPTOR.build({"ebos": True, "capacity": ECHO_BUFFER_BYTES})
        return built
    if mode == DESCRIPTOR:
        if request["buffer_id"]:
            # SPC-5 6.18.5: a buffer that is not there is all zeroes
            return bytes(BUFFER_DESCRIPTOR.sizeof())
        built = BUFFER_DESCRIPTOR.build({"offset_boundary": ANY_OFFSET, "capacity": BUFFER_BYTES})
        return built
    if mode == DATA:
        _no_other_buffer(request)
        return bytes(unit.buffer[_within(request, 0) :])
    raise request.refuse("mode")


@handles("write_buffer")
def write_buffer(request: Request) -> bytes:
    unit, mode = request.logical_unit, request["mode"]
    if mode == ECHO:
        if request["parameter_list_length"] > ECHO_BUFFER_BYTES:
            raise request.refuse("parameter_list_length")
        request.itl.echo = request.parameter_list()
        return b""
    if mode == DATA:
        _no_other_buffer(request)
        offset = _within(request, request["parameter_list_length"])
        data = request.parameter_list()
        if len(unit.buffer) < BUFFER_BYTES:
            unit.buffer.extend(bytes(BUFFER_BYTES - len(unit.buffer)))
        unit.buffer[offset : offset + len(data)] = data
        return b""
    raise request.refuse("mode")
