# SPDX-License-Identifier: Apache-2.0
"""What initiators asked for and did not get, in plain words, for people who wonder why a login or a command fails.

A bounded list of who, what and why; the same refusal again is counted, not kept twice. The log tells each kind at most
once a second, because an initiator decides how often it asks.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from vhost_scsi.log_limit import LimitedLog

KEPT: Final = 256
LONGEST: Final = 300  # characters of what a peer sent that are repeated
LOG: Final = logging.getLogger("vhost_scsi.control")


@dataclass(frozen=True, slots=True)
class Refusal:
    """`asked` is what was wanted ("login", "key MaxBurstLength=0", "SNACK"), `kind` one of a small fixed set of names.

    Times are seconds since the epoch. An initiator or target that is not known yet is empty.
    """

    peer: str
    initiator: str
    target: str
    kind: str
    asked: str
    why: str
    first: float = 0.0
    last: float = 0.0
    times: int = 1

    def __str__(self) -> str:
        who = f"{self.initiator} at {self.peer}" if self.initiator else self.peer
        where = f" of {self.target}" if self.target else ""
        return f"{who} asked for {self.asked}{where}: refused, {self.why}"


class RefusedLog:
    """All refusals of one node, newest last."""

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        logger: logging.Logger = LOG,
        interval: float = 1.0,
    ) -> None:
        self._clock = clock
        self._log = LimitedLog(logger, interval, clock)
        self._entries: OrderedDict[tuple[str, ...], Refusal] = OrderedDict()

    def add(self, peer: str, initiator: str, target: str, kind: str, asked: str, why: str) -> Refusal:
        now = self._clock()
        initiator, target, asked, why = (_shown(text) for text in (initiator, target, asked, why))
        # A peer's port changes with each attempt, and is nothing that two refusals differ in.
        key = (peer.rpartition(":")[0], initiator, target, kind, asked, why)
        known = self._entries.pop(key, None)
        if known is None:
            refusal = Refusal(peer, initiator, target, kind, asked, why, now, now)
        else:
            refusal = replace(known, peer=peer, last=now, times=known.times + 1)
        self._entries[key] = refusal
        while len(self._entries) > KEPT:
            self._entries.popitem(last=False)
        self._log.say(logging.WARNING, kind, f"iscsi: {refusal}")
        return refusal

    def all(self) -> list[Refusal]:
        return list(self._entries.values())


def _shown(text: str) -> str:
    """Fit for a terminal and a log: one line, no control characters, not long."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
