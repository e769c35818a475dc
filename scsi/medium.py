# SPDX-License-Identifier: Apache-2.0
"""What a logical unit asks of the medium below it. Implemented over the data plane; no I/O happens here.

Initiators' reads and writes never pass here, they run in C. What handlers move by themselves (copies, long reads,
formatting) does, a piece at a time.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol


class Support(IntEnum):
    """How a store does something, as the stores declare it."""

    NONE = 0
    EMULATED = 1
    NATIVE = 2


@dataclass(frozen=True, slots=True)
class Capabilities:
    unmap: Support = Support.NONE
    zero: Support = Support.NONE
    fua: Support = Support.EMULATED


@dataclass(frozen=True, slots=True)
class Extent:
    """The state of the first `blocks` blocks of what was asked about."""

    mapped: bool
    blocks: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Blocks, as the store estimates them. `shared`: others take from what is available, too."""

    used: int
    available: int
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """Commands and bytes; errors are commands that the medium failed; times are estimated from some of the commands."""

    reads: int = 0
    writes: int = 0
    verifies: int = 0
    flushes: int = 0
    unmaps: int = 0
    others: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    verify_bytes: int = 0
    read_errors: int = 0
    write_errors: int = 0
    verify_errors: int = 0
    failed: int = 0
    read_ns: int = 0
    write_ns: int = 0


class Medium(Protocol):
    """Read anew whenever a handler needs it, so a resize or a reopened store shows at once."""

    @property
    def block_size(self) -> int:
        """bytes, a power of two from 512 on"""

    @property
    def num_blocks(self) -> int: ...

    @property
    def read_only(self) -> bool: ...

    @property
    def rotational(self) -> bool: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def lbprz(self) -> bool:
        """unmapped blocks read as zeroes"""

    @property
    def physical_block_exponent(self) -> int:
        """2**n logical blocks make a physical block"""

    @property
    def unmap_granularity(self) -> int:
        """blocks; 0 where the store gives none"""

    @property
    def atomic_blocks(self) -> int:
        """how many blocks one write moves as a whole or not at all; 0 where nothing is promised"""

    @property
    def flush_failed(self) -> bool:
        """a flush failed; no later one may be answered with GOOD until the store is opened again"""

    # Each of these raises CheckCondition when the store fails.

    async def flush(self) -> None:
        """All writes that ended before the call are durable when this returns."""

    async def read(self, lba: int, blocks: int) -> bytes: ...

    async def write(self, lba: int, data: bytes) -> None: ...

    async def zero(self, lba: int, blocks: int, *, may_unmap: bool) -> None:
        """The blocks read as zeroes; `may_unmap`: they need no room any more."""

    async def unmap(self, lba: int, blocks: int) -> None: ...

    def map(self, lba: int, blocks: int) -> Extent | None:
        """What is allocated, from the block on; None where the store does not know."""

    def usage(self) -> Usage | None:
        """How much room is taken and how much is left, cheaply; None where the store does not know."""

    def mark_bad(self, lba: int) -> bool:
        """Reads of the block fail until it is written. False: no more blocks can be marked."""

    def bad_blocks(self) -> list[int]:
        """in ascending order"""

    def clear_bad(self, lba: int, blocks: int) -> None:
        """None of these is marked bad any more."""

    def counts(self) -> Counts:
        """What was done to the medium since the unit exists."""

    def set_write_cache(self, enabled: bool) -> None:
        """WCE. Called between a fence and its open; disabled, C treats every write as FUA."""

    def set_descriptor_sense(self, enabled: bool) -> None:
        """D_SENSE: the format of the sense data that C builds. Called between a fence and its open."""

    def set_queue_error(self, enabled: bool) -> None:
        """QERR: C tells nobody of a CHECK CONDITION before we have seen to the others. Called as above."""

    def set_tell_full(self, enabled: bool) -> None:
        """UA_INTLCK_CTRL: C tells nobody of BUSY and TASK SET FULL before it has told us. Called as above."""
