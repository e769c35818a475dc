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
from typing import Final, TypeAlias

from vhost_scsi.log_limit import LimitedLog

KEPT: Final = 256
KEPT_EACH: Final = 64  # of one initiator: who asks for everything leaves the others their places
LONGEST: Final = 300  # characters of what a peer sent that are repeated
ROUTINE: Final = frozenset(("command",))  # kinds
LOG: Final = logging.getLogger("vhost_scsi.control")
_Key: TypeAlias = tuple[str, str, str, str, str, str, int | None]
"""peer's host, initiator, target, kind, asked, why, LUN"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """`asked` is what was wanted ("login", "key MaxBurstLength=0", "INQUIRY, VPD page C8h"), `kind` one of a small
    fixed set of names.

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
    lun: int | None = None

    def __str__(self) -> str:
        who = f"{self.initiator} at {self.peer}" if self.initiator else self.peer
        where = ("" if self.lun is None else f" of LUN {self.lun}") + (f" of {self.target}" if self.target else "")
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
        self._entries: OrderedDict[_Key, Refusal] = OrderedDict()
        self._of: dict[str, OrderedDict[_Key, None]] = {}
        """by initiator, oldest first"""

    def add(
        self,
        peer: str,
        initiator: str,
        target: str,
        kind: str,
        asked: str,
        why: str,
        *,
        lun: int | None = None,
        times: int = 1,
    ) -> Refusal:
        """`times`: so many at once."""
        now = self._clock()
        initiator, target, asked, why = (_shown(text) for text in (initiator, target, asked, why))
        # A peer's port changes with each attempt, and is nothing that two refusals differ in.
        key = (peer.rpartition(":")[0], initiator, target, kind, asked, why, lun)
        known = self._forget(key)
        if known is None:
            refusal = Refusal(peer, initiator, target, kind, asked, why, now, now, times, lun)
        else:
            refusal = replace(known, peer=peer, last=now, times=known.times + times)
        self._entries[key] = refusal
        own = self._of.setdefault(_who(key), OrderedDict())
        own[key] = None
        if len(own) > KEPT_EACH:
            self._forget(next(iter(own)))
        if len(self._entries) > KEPT:
            self._forget(next(iter(self._entries)))
        # An initiator that looks for what there is does nothing wrong.
        self._log.say(logging.INFO if kind in ROUTINE else logging.WARNING, kind, f"iscsi: {refusal}")
        return refusal

    def _forget(self, key: _Key) -> Refusal | None:
        known = self._entries.pop(key, None)
        if known is not None:
            own = self._of[_who(key)]
            del own[key]
            if not own:
                del self._of[_who(key)]
        return known

    def all(self) -> list[Refusal]:
        return list(self._entries.values())


def _who(key: _Key) -> str:
    return key[1] or key[0]


def _shown(text: str) -> str:
    """Fit for a terminal and a log: one line, no control characters, not long."""
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."
