# SPDX-License-Identifier: Apache-2.0
"""How long the commands of a connection took, as the data plane counts it: from the arrival of the header until the
status is on its way, so that a write has in it what its data-out took to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

KINDS: Final = ("read", "write", "no_data")


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds. `histogram`: limit and how many took less than it, but not less than the limit before; the last
    one, without a limit, took longer than all others."""

    kind: str
    count: int = 0
    average_us: float | None = None
    min_us: float | None = None
    max_us: float | None = None
    histogram: tuple[tuple[int | None, int], ...] = ()

    def below(self, part: float) -> int | None:
        """The lowest limit that at least this part of the commands stayed below; None where there is none."""
        seen = 0
        for limit, count in self.histogram:
            seen += count
            if count and seen >= part * self.count:
                return limit
        return None


def latency_from(kind: str, info: Any) -> Latency:
    """Of a `struct vs_ilatency_info`."""
    counts = [int(count) for count in info.buckets]
    limits: list[int | None] = [1 << place for place in range(len(counts) - 1)]
    # One at a time is written and read: the sum is what fits the histogram.
    count = sum(counts)
    if not count:
        return Latency(kind)
    return Latency(
        kind,
        count,
        round(info.total_ns / count / 1000, 3),
        round(info.min_ns / 1000, 3),
        round(info.max_ns / 1000, 3),
        tuple(zip([*limits, None], counts, strict=True)),
    )
