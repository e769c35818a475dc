# SPDX-License-Identifier: Apache-2.0
"""READ LONG, WRITE LONG and READ DEFECT DATA (SBC-4 5.17, 5.48, SBC-3 5.19): a block with all that the medium keeps of
it, blocks marked so that they cannot be read, and the lists of physical defects, which are empty.

Our media keep no check bytes, so a long block is as long as any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from construct import Int8ub, Int16ub, Int32ub, Padding, Struct

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.dispatch import Exclusive, Request, handles
from vhost_scsi.scsi.sense import CheckCondition

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit

SHORT_BLOCK, LONG_BLOCK = 0b000, 0b011
PLISTV: Final = 0x10
GLISTV: Final = 0x08
DEFECTS_10 = Struct(Padding(1), "flags" / Int8ub, "length" / Int16ub)
DEFECTS_12 = Struct(Padding(1), "flags" / Int8ub, "generation" / Int16ub, "length" / Int32ub)


def _checked_lba(request: Request) -> int:
    lba = request["lba"]
    if lba >= request.logical_unit.medium.num_blocks:
        raise CheckCondition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, information=lba)
    return lba


def _check_length(request: Request) -> None:
    wanted = request["byte_transfer_length"]
    size = request.logical_unit.medium.block_size
    if wanted != size:
        # SBC-3 5.19: ILI, and INFORMATION has the difference in two's complement.
        difference = (wanted - size) & 0xFFFFFFFF
        pointer = request.refuse("byte_transfer_length").sense.field
        raise CheckCondition(sense.INVALID_FIELD_IN_CDB, information=difference, field=pointer, incorrect_length=True)


async def _read(unit: LogicalUnit, lba: int) -> bytes:
    return await unit.medium.read(lba, 1)


@handles("read_long")
def read_long(request: Request) -> bytes | Exclusive:
    """A block that is marked bad is read all the same: that is what the command is for."""
    lba = _checked_lba(request)
    if not request["byte_transfer_length"]:
        return b""
    _check_length(request)
    return _read(request.logical_unit, lba)


async def _mark(unit: LogicalUnit, lba: int) -> bytes:
    await unit.marked.mark(lba)
    return b""


async def _write(unit: LogicalUnit, lba: int, data: bytes) -> bytes:
    await unit.medium.write(lba, data)
    await unit.marked.written(lba, 1)
    return b""


@handles("write_long")
def write_long(request: Request) -> bytes | Exclusive:
    """WR_UNCOR moves no data, whatever BYTE TRANSFER LENGTH says; COR_DIS asks for the same without correction, of
    which there is none."""
    lba = _checked_lba(request)
    if request["wr_uncor"]:
        return _mark(request.logical_unit, lba)
    if request["cor_dis"]:
        raise request.refuse("cor_dis")
    if not request["byte_transfer_length"]:
        return b""
    _check_length(request)
    return _write(request.logical_unit, lba, request.parameter_list("byte_transfer_length"))


def _defect_flags(request: Request) -> int:
    form = request["defect_list_format"]
    if form not in (SHORT_BLOCK, LONG_BLOCK):
        raise request.refuse("defect_list_format")
    return (PLISTV if request["req_plist"] else 0) | (GLISTV if request["req_glist"] else 0) | form


@handles("read_defect_data_10")
def read_defect_data_10(request: Request) -> bytes:
    built: bytes = DEFECTS_10.build({"flags": _defect_flags(request), "length": 0})
    return built


@handles("read_defect_data_12")
def read_defect_data_12(request: Request) -> bytes:
    built: bytes = DEFECTS_12.build({"flags": _defect_flags(request), "generation": 0, "length": 0})
    return built
