# SPDX-License-Identifier: Apache-2.0
"""What commands that run at once may have done: a history is right when there is an order of its commands, one after
the other, in which each ends as it did and leaves what was found in the end (SBC-4 5.3: COMPARE AND WRITE is one
operation).

A block holds one byte value, 512 times over. Plain writes are one operation to exclusive commands only, so that those
of one history must not overlap one another, nor reads of more than they wrote.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

BLOCK = 512
Blocks = tuple[int, ...]
GOOD = "GOOD"


class Kind(Enum):
    WRITE = "write"
    READ = "read"
    COMPARE_AND_WRITE = "compare and write"
    ORWRITE = "orwrite"


@dataclass(frozen=True)
class Operation:
    """`given` is what a COMPARE AND WRITE expects, `new` what comes into the blocks, or is read."""

    kind: Kind
    lba: int
    new: Blocks
    given: Blocks = ()

    @property
    def blocks(self) -> range:
        return range(self.lba, self.lba + len(self.new))

    def run(self, state: Blocks) -> tuple[object, Blocks]:
        """How it ends (GOOD, the block that differs, or what is read), and what it leaves."""
        here = state[self.lba : self.lba + len(self.new)]
        if self.kind is Kind.READ:
            return here, state
        new = self.new
        if self.kind is Kind.COMPARE_AND_WRITE and here != self.given:
            differs = next(i for i, (one, other) in enumerate(zip(here, self.given, strict=True)) if one != other)
            return differs, state
        if self.kind is Kind.ORWRITE:
            new = tuple(one | other for one, other in zip(here, new, strict=True))
        return GOOD, state[: self.lba] + new + state[self.lba + len(new) :]


def in_some_order(before: Blocks, history: list[tuple[Operation, object]], after: Blocks) -> bool:
    """Whether there is such an order."""
    seen: set[tuple[frozenset[int], Blocks]] = set()

    def goes_on(left: frozenset[int], state: Blocks) -> bool:
        if not left:
            return state == after
        if (left, state) in seen:
            return False
        seen.add((left, state))
        for index in left:
            operation, ended = history[index]
            outcome, then = operation.run(state)
            if outcome == ended and goes_on(left - {index}, then):
                return True
        return False

    return goes_on(frozenset(range(len(history))), before)


def apart(operations: list[Operation]) -> list[Operation]:
    """Those of which the order says everything: no two plain writes overlap, and no read a plain write."""
    written: set[int] = set()
    kept = []
    for each in operations:
        if each.kind is Kind.WRITE:
            if written & set(each.blocks):
                continue
            written |= set(each.blocks)
        kept.append(each)
    return [each for each in kept if each.kind is not Kind.READ or not written & set(each.blocks)]
