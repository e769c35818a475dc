# SPDX-License-Identifier: Apache-2.0
"""Gives the memory of ended sessions back to the system. Not an allocator, and nothing on the way of a command.

The C library learns from large buffers that come and go to keep them in its arenas, and gives back only what is free
at the end of one. A session with many reads of mixed sizes may leave tens of MiB behind what is still in use.
"""

from __future__ import annotations

import asyncio
import ctypes
from typing import Final

PAUSE: Final = 1.0  # seconds; sessions that end together, or one after the other, cost one pass over the arenas
_trim: Final = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""None where the C library is not glibc"""


class HeapTrim:
    """`ask` when a session has ended: at most once in PAUSE seconds, all that is free is given back."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self.times = 0

    def ask(self) -> None:
        if self._timer is None and _trim is not None:
            self._timer = asyncio.get_running_loop().call_later(PAUSE, self._run)

    def _run(self) -> None:
        self._timer = None
        self.times += 1
        assert _trim is not None
        _trim(ctypes.c_size_t(0))
