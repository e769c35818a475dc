# SPDX-License-Identifier: Apache-2.0
"""What is measured: one row a case, and the pairs of cases whose quotient says something.

How a case is run is in ring.py, what it does in ring.c.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """Random 4096-byte reads at one depth. `target` is what docs/bench.md promises, in requests a second."""

    name: str
    depth: int
    memory: bool = False
    indirect: bool = False
    event_idx: bool = False
    packed: bool = False
    small_pages: bool = False
    adaptive: bool = False
    inflight: bool = False
    ring_size: int = 256
    target: float | None = None

    def options(self) -> list[str]:
        """The case as options of the C program."""
        flags = {
            "--memory": self.memory,
            "--indirect": self.indirect,
            "--event-idx": self.event_idx,
            "--packed": self.packed,
            "--small-pages": self.small_pages,
            "--adaptive": self.adaptive,
            "--inflight": self.inflight,
        }
        numbers = ["--depth", str(self.depth), "--ring", str(self.ring_size)]
        return [flag for flag, wanted in flags.items() if wanted] + numbers


CASES = (
    Case("memory-32", 32, memory=True, target=1.0e6),
    Case("memory-32-indirect", 32, memory=True, indirect=True),
    Case("memory-32-event", 32, memory=True, event_idx=True),
    Case("memory-32-packed", 32, memory=True, packed=True),
    Case("memory-32-small-pages", 32, memory=True, small_pages=True),
    Case("memory-1", 1, memory=True, target=0.5e6),
    Case("null-32", 32, target=4.0e6),
    Case("null-32-indirect", 32, indirect=True),
    Case("null-32-event", 32, event_idx=True),
    Case("null-32-packed", 32, packed=True),
    Case("null-32-packed-indirect", 32, packed=True, indirect=True),
    Case("null-32-packed-event", 32, packed=True, event_idx=True),
    Case("null-32-adaptive", 32, adaptive=True),
    Case("null-32-inflight", 32, inflight=True),
    Case("memory-32-inflight", 32, memory=True, inflight=True),
    Case("null-128", 128, ring_size=512),
    Case("null-1", 1),
    Case("null-1-packed", 1, packed=True),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """`case` divided by `base`, both from the same round."""

    case: str
    base: str
    says: str


RATIOS = (
    Ratio("memory-32", "null-32", "what copying from memory leaves of it"),
    Ratio("memory-1", "memory-32", "what a depth of one leaves of it"),
    Ratio("memory-32-small-pages", "memory-32", "without huge pages"),
    Ratio("memory-32-indirect", "memory-32", "one indirect table a request"),
    Ratio("null-32-indirect", "null-32", "one indirect table a request, nothing copied"),
    Ratio("null-32-event", "null-32", "event index"),
    Ratio("null-32-packed", "null-32", "packed ring"),
    Ratio("null-32-packed-indirect", "null-32-indirect", "packed ring, one indirect table a request"),
    Ratio("null-32-packed-event", "null-32-event", "packed ring, event suppression by descriptor"),
    Ratio("null-1-packed", "null-1", "packed ring, depth of one"),
    Ratio("memory-32-packed", "memory-32", "packed ring"),
    Ratio("null-32-adaptive", "null-32", "spins and may sleep, instead of polling for ever"),
    Ratio("null-32-inflight", "null-32", "requests in flight are kept for the next process"),
    Ratio("memory-32-inflight", "memory-32", "the same, with data moved"),
    Ratio("null-128", "null-32", "deeper"),
)
