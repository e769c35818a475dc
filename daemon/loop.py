# SPDX-License-Identifier: Apache-2.0
"""The event loop of the control plane, with a watch on its own stalls.

A stall is a turn of the loop that kept everybody else waiting. It is measured where the loop goes to sleep, so that
watching costs an idle process nothing: no timer, no thread.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import time
from typing import Any, Final

STALL: Final = 0.05  # seconds
LOG_INTERVAL: Final = 1.0  # seconds between two lines
_LOG: Final = logging.getLogger("vhost_scsi.control")


class StallWatch(selectors.EpollSelector):
    """A selector that knows how long the loop was away between two looks at it."""

    def __init__(self, stall: float = STALL) -> None:
        super().__init__()
        self._stall = stall
        self._left_at: float | None = None
        self._said_at = -LOG_INTERVAL
        self._kept_back = 0
        self.on = False  # a program that starts or ends keeps nobody waiting
        self.stalls = 0
        self.longest = 0.0  # seconds

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        now = time.monotonic()
        if self.on and self._left_at is not None and now - self._left_at > self._stall:
            self._stalled(now, now - self._left_at)
        ready = super().select(timeout)
        self._left_at = time.monotonic()
        return ready

    def _stalled(self, now: float, seconds: float) -> None:
        self.stalls += 1
        self.longest = max(self.longest, seconds)
        if now - self._said_at < LOG_INTERVAL:
            self._kept_back += 1
            return
        more = f" ({self._kept_back} more since the last line)" if self._kept_back else ""
        self._said_at, self._kept_back = now, 0
        _LOG.warning("the control loop stalled for %.0f ms%s", seconds * 1000, more)


def new_loop() -> tuple[asyncio.AbstractEventLoop, StallWatch]:
    """A loop and its watch."""
    watch = StallWatch()
    return asyncio.SelectorEventLoop(watch), watch


def run(main: Any) -> Any:
    """Runs `main(watch)`, a coroutine function, on a watched loop; returns its result."""
    loop, watch = new_loop()

    async def watched() -> Any:
        try:
            return await main(watch)
        finally:
            watch.on = False

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(watched())
