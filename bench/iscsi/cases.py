# SPDX-License-Identifier: Apache-2.0
"""What is measured over iSCSI: one row a case, the clients, the targets, and the quotients that are promised.

How a client is run is in clients.py, how a target is started in targets.py.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 512
CLIENTS = ("iscsi-perf", "polled")


@dataclass(frozen=True, slots=True)
class Case:
    """Reads of `length` bytes with `depth` of them under way."""

    name: str
    depth: int
    length: int
    random: bool


CASES = (
    Case("4k-1", 1, 4096, random=True),
    Case("4k-8", 8, 4096, random=True),
    Case("4k-32", 32, 4096, random=True),
    Case("256k-1", 1, 262144, random=False),
    Case("256k-32", 32, 262144, random=False),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """What `case` is of `base`, both with one client in one round; `target` is what is promised for iscsi-perf."""

    case: str
    of: str
    base: str
    target: float | None = None

    @property
    def name(self) -> str:
        return f"{self.of} / {self.base}"


RATIOS = (
    Ratio("4k-1", "ours", "tgtd", 2.0),
    Ratio("4k-8", "ours", "tgtd"),
    Ratio("4k-32", "ours", "tgtd", 4.0),
    Ratio("256k-1", "ours", "tgtd", 2.0),
    Ratio("256k-32", "ours", "tgtd", 2.0),
    Ratio("4k-1", "ours", "bare"),
    Ratio("4k-8", "ours", "bare"),
    Ratio("4k-32", "ours", "bare"),
    Ratio("256k-1", "ours", "bare", 0.8),
    Ratio("256k-32", "ours", "bare", 0.8),
    Ratio("4k-32", "bare", "tgtd"),
)
