# SPDX-License-Identifier: Apache-2.0
"""GET LBA STATUS (SBC-4 5.6): which blocks the store has room for, from its own allocation map."""

from typing import Final

from construct import Int8ub, Int32ub, Int64ub, Padding, Struct

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.dispatch import Request, handles
from vhost_scsi.scsi.medium import Extent, Medium
from vhost_scsi.scsi.sense import CheckCondition

HEADER = Struct("length" / Int32ub, Padding(4))
DESCRIPTOR = Struct("lba" / Int64ub, "blocks" / Int32ub, "status" / Int8ub, Padding(3))
MAPPED, DEALLOCATED = 0x0, 0x1
DESCRIPTORS: Final = 256
"""at most, in one answer"""
LOOKS: Final = 1024
"""at the map, for one answer: a file in many pieces must not keep the loop"""
LONGEST: Final = 0xFFFFFFFF


def _runs(medium: Medium, lba: int) -> list[tuple[int, Extent]]:
    found: list[tuple[int, Extent]] = []
    for _ in range(LOOKS):
        if lba == medium.num_blocks:
            break
        wanted = min(medium.num_blocks - lba, LONGEST)
        run = medium.map(lba, wanted) or Extent(True, wanted)
        if found and found[-1][1].mapped == run.mapped and found[-1][1].blocks + run.blocks <= LONGEST:
            start, last = found.pop()
            found.append((start, Extent(run.mapped, last.blocks + run.blocks)))
        elif len(found) == DESCRIPTORS:
            break
        else:
            found.append((lba, run))
        lba += run.blocks
    return found


@handles("get_lba_status")
def get_lba_status(request: Request) -> bytes:
    medium, lba = request.logical_unit.medium, request["lba"]
    if lba >= medium.num_blocks:
        raise CheckCondition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, information=lba)
    descriptors = b"".join(
        DESCRIPTOR.build({"lba": start, "blocks": run.blocks, "status": MAPPED if run.mapped else DEALLOCATED})
        for start, run in _runs(medium, lba)
    )
    built: bytes = HEADER.build({"length": 4 + len(descriptors)})
    return built + descriptors
