# SPDX-License-Identifier: Apache-2.0
"""READ CAPACITY (SBC-4 5.20, 5.21): how many blocks, how long, and how they are provisioned."""

from typing import Final

from construct import BitsInteger, BitStruct, Flag, Int32ub, Int64ub, Padding, Struct

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.dispatch import Request, handles
from vhost_scsi.scsi.medium import Medium, Support
from vhost_scsi.scsi.sense import CheckCondition

CAPACITY_10 = Struct("last_lba" / Int32ub, "block_size" / Int32ub)
CAPACITY_16 = Struct(
    "last_lba" / Int64ub,
    "block_size" / Int32ub,
    "flags"
    / BitStruct(
        Padding(2),
        "rc_basis" / BitsInteger(2),
        "p_type" / BitsInteger(3),
        "prot_en" / Flag,
        "p_i_exponent" / BitsInteger(4),
        "physical_block_exponent" / BitsInteger(4),
        "lbpme" / Flag,
        "lbprz" / Flag,
        "lowest_aligned_lba" / BitsInteger(14),
    ),
    Padding(16),
)
NOT_IN_10_BYTES: Final = 0xFFFFFFFF


def _last_lba(medium: Medium) -> int:
    if not medium.num_blocks:
        raise CheckCondition(sense.LOGICAL_UNIT_NOT_READY_CAUSE_NOT_REPORTABLE)
    return medium.num_blocks - 1


@handles("read_capacity_10")
def read_capacity_10(request: Request) -> bytes:
    medium = request.logical_unit.medium
    last = min(_last_lba(medium), NOT_IN_10_BYTES)
    built: bytes = CAPACITY_10.build({"last_lba": last, "block_size": medium.block_size})
    return built


@handles("read_capacity_16")
def read_capacity_16(request: Request) -> bytes:
    medium = request.logical_unit.medium
    unmaps = medium.capabilities.unmap is not Support.NONE
    built: bytes = CAPACITY_16.build(
        {
            "last_lba": _last_lba(medium),
            "block_size": medium.block_size,
            "flags": {
                "rc_basis": 0,
                "p_type": 0,
                "prot_en": False,
                "p_i_exponent": 0,
                "physical_block_exponent": medium.physical_block_exponent,
                "lbpme": unmaps,
                "lbprz": unmaps and medium.lbprz,
                "lowest_aligned_lba": 0,
            },
        }
    )
    return built
