# SPDX-License-Identifier: Apache-2.0
"""What a logical unit asks of the medium below it. Implemented over the data plane; no I/O happens here.

Data never passes through this interface: reads, writes and the other media operations run in C.
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
    def flush_failed(self) -> bool:
        """a flush failed; no later one may be answered with GOOD until the store is opened again"""

    async def flush(self) -> None:
        """All writes that ended before the call are durable when this returns; raises CheckCondition if not."""

    def set_write_cache(self, enabled: bool) -> None:
        """WCE. Called between a fence and its open; disabled, C treats every write as FUA."""

    def set_descriptor_sense(self, enabled: bool) -> None:
        """D_SENSE: the format of the sense data that C builds. Called between a fence and its open."""
