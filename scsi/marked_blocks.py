# SPDX-License-Identifier: Apache-2.0
"""Blocks that an initiator marked as bad (WRITE LONG with WR_UNCOR, SBC-4 4.7.7), kept beyond the life of the process.

The data plane knows the marks: it fails the reads, and ends a mark when its block is written. What is kept must never
call a block bad that was written since. So while anything is kept, writes pass here first (GateBit.MARKED): one that
touches a mark begins when the mark is no longer kept, and when it has failed the mark is kept again.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.commands import Command, MediaOp
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.saved_state import SavedStateDamaged, SavedStateError
from vhost_scsi.scsi.sense import CheckCondition
from vhost_scsi.scsi.task import Execute, Task

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit

LOG: Final = logging.getLogger("vhost_scsi.control")
BLOB: Final = "bad-blocks"
ENDS_MARKS: Final = frozenset(
    {MediaOp.WRITE, MediaOp.WRITE_SAME, MediaOp.WRITE_AND_VERIFY, MediaOp.WRITE_ATOMIC, MediaOp.UNMAP}
)
"""what else writes reads the block before, and fails"""
UNMAP_HEADER, UNMAP_DESCRIPTOR = 8, 16


def _unmapped(parameters: bytes) -> Iterator[tuple[int, int]]:
    """SBC-4 5.35: the ranges of an UNMAP parameter list that is not checked yet."""
    for at in range(UNMAP_HEADER, len(parameters) - UNMAP_DESCRIPTOR + 1, UNMAP_DESCRIPTOR):
        lba, blocks = struct.unpack_from(">QI", parameters, at)
        yield lba, blocks


def _ranges(row: Command, task: Task, end: int) -> Iterator[tuple[int, int]]:
    if row.media is MediaOp.UNMAP:
        yield from _unmapped(task.data_out)
        return
    lba, blocks = row.value(row["lba"], task.cdb), row.value(row["blocks"], task.cdb)
    # SBC-4 5.50: where WSNZ is zero, WRITE SAME of no blocks goes to the end of the medium.
    yield lba, blocks or (end - lba if row.media is MediaOp.WRITE_SAME else 0)


class MarkedBlocks:
    """Of one logical unit. All calls come from the event loop's thread. Where nothing is durable, nothing is kept."""

    def __init__(self, unit: LogicalUnit) -> None:
        self._unit = unit
        self._turn = asyncio.Lock()
        self._going: dict[Task, frozenset[int]] = {}
        """writes under way, and the marks that they may end"""
        self._kept = self._recall()
        self._show()

    def _recall(self) -> frozenset[int]:
        unit = self._unit
        try:
            blob = unit.saved.get(BLOB) or b""
            if len(blob) % 8:
                raise SavedStateDamaged(f"{len(blob)} bytes are no list of blocks")
        except SavedStateDamaged as error:
            LOG.error("%s: which blocks are marked as bad cannot be read; none is: %s", unit.definition.name, error)
            return frozenset()
        lbas = struct.unpack(f">{len(blob) // 8}Q", blob)
        # What lies beyond the end has gone with a part of the medium.
        return frozenset(lba for lba in lbas if lba < unit.medium.num_blocks and unit.medium.mark_bad(lba))

    def _show(self) -> None:
        if self._kept:
            self._unit.gate.close(GateBit.MARKED)
        else:
            self._unit.gate.open(GateBit.MARKED)

    async def _keep(self, lbas: Iterable[int]) -> None:
        """Durable on return. `_turn` is held. Raises CheckCondition."""
        fresh = frozenset(lbas)
        if fresh == self._kept or not self._unit.saved.durable:
            return
        try:
            ordered = sorted(fresh)
            await self._unit.saved.put(BLOB, struct.pack(f">{len(ordered)}Q", *ordered) if ordered else None)
        except SavedStateError as error:
            self._unit.complain("which blocks are marked as bad cannot be kept: %s", error)
            raise CheckCondition(sense.INTERNAL_TARGET_FAILURE) from None
        self._kept = fresh

    # ---- marks come and go ---------------------------------------------------------------------------------------

    async def mark(self, lba: int) -> None:
        """Nothing is in flight. Raises CheckCondition, with nothing marked."""
        async with self._turn:
            before = self._kept
            await self._keep({*before, lba})
            if not self._unit.medium.mark_bad(lba):
                await self._keep(before)
                raise CheckCondition(sense.SYSTEM_RESOURCE_FAILURE)
            self._show()

    async def written(self, lba: int, blocks: int) -> None:
        """A handler has written the blocks itself, and its command has not ended."""
        async with self._turn:
            self._unit.medium.clear_bad(lba, blocks)
            await self._keep(each for each in self._kept if not lba <= each < lba + blocks)
            self._show()

    async def forget_all(self) -> None:
        """The medium was formatted, or is another one now."""
        async with self._turn:
            self._unit.medium.clear_bad(0, self._unit.medium.num_blocks)
            await self._keep(())
            self._show()

    # ---- writes of initiators ------------------------------------------------------------------------------------

    def touched(self, row: Command, task: Task) -> frozenset[int]:
        """The kept marks that the command may end."""
        if not self._kept or row.media not in ENDS_MARKS:
            return frozenset()
        ranges = list(_ranges(row, task, self._unit.medium.num_blocks))
        return frozenset(lba for lba in self._kept if any(0 <= lba - first < blocks for first, blocks in ranges))

    async def let_write(self, task: Task, touched: frozenset[int]) -> Execute:
        """The marks are kept no longer: the command may run. `ended` is to be called."""
        async with self._turn:
            await self._keep(self._kept - touched)
            self._going[task] = touched
        return Execute(notify=True)

    def ended(self, task: Task) -> None:
        """The task is over; what it did not write stays marked."""
        if self._going.pop(task, None) is not None:
            self._unit.spawn(self._settle())

    async def _settle(self) -> None:
        async with self._turn:
            going = frozenset().union(*self._going.values())
            try:
                await self._keep(set(self._unit.medium.bad_blocks()) - going)
            except CheckCondition:
                return  # it was complained of, and the next change tries again
            if not going:
                self._show()
