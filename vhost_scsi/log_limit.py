# SPDX-License-Identifier: Apache-2.0
"""A logger that says each kind of thing at most once a second, so that a hostile peer cannot fill a disk with our log;
or so many times an interval, where lines come in groups.

What was kept back is counted and said with the next line of its kind. It chooses no level and formats nothing else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class _Kind:
    said_at: float
    said: int = 1
    kept_back: int = 0


class LimitedLog:
    """One per device or node, shared by its connections: a peer that reconnects for each error is limited as well.

    `kind` must come from a small fixed set (rule names), never from what a peer sent.
    """

    def __init__(
        self,
        logger: logging.Logger,
        interval: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        *,
        burst: int = 1,
    ) -> None:
        """`burst`: how many lines of a kind an interval may have, for what is no error and comes in groups."""
        self._logger = logger
        self._interval = interval
        self._clock = clock
        self._burst = burst
        self._kinds: dict[str, _Kind] = {}

    def say(self, level: int, kind: str, text: str, *, trace: bool = False) -> None:
        """Logs `text` unless the interval has its lines of this kind already; `trace` adds the traceback."""
        now = self._clock()
        kind_state = self._kinds.get(kind)
        if kind_state is not None and now - kind_state.said_at < self._interval:
            if kind_state.said >= self._burst:
                kind_state.kept_back += 1
                return
            kind_state.said += 1
            self._logger.log(level, "%s", text, exc_info=trace)
            return
        more = f" ({kind_state.kept_back} more since)" if kind_state is not None and kind_state.kept_back else ""
        self._kinds[kind] = _Kind(now)
        self._logger.log(level, "%s%s", text, more, exc_info=trace)
