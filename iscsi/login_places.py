# SPDX-License-Identifier: Apache-2.0
"""Who of those that connected may log in now, who waits, and who has to go: the limit of logins in progress.

A connection takes a place with its first whole request, not before: silence costs nobody else a place. Those without
one wait in a room of fixed size. When it is full the oldest that is still silent of the address with most in it goes
at once, so that a new one always gets in. One address gets most of the places but not all, and a free one goes to
whoever has fewest. No socket is touched here; nothing but the end of a task is asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

ROOM: Final = 512  # connections without a place; each costs a descriptor and little else
GRACE: Final = 2.0  # seconds; a login that has its place for less keeps it


@dataclass(slots=True, eq=False)
class Attempt:
    """A connection that has not logged in yet."""

    address: str
    task: asyncio.Task[None] | None = None
    waits: asyncio.Future[None] | None = None
    since: float | None = None
    """when it got its place; None without one"""
    committing: bool = False
    evicted: str = ""
    """why it had to go"""

    def cancel(self) -> None:
        # A session that is being made is made, or taken back, by the keeper: it is not interrupted half way.
        if self.task is not None and not self.committing:
            self.task.cancel()


class LoginPlaces:
    """`begin`, then `take` with the first request, then `end`: all from the loop's thread."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._outside: dict[Attempt, None] = {}
        """without a place, oldest first"""
        self._inside: dict[Attempt, None] = {}
        """with one, oldest first"""
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._outside) + len(self._inside)

    @property
    def all(self) -> list[Attempt]:
        return [*self._outside, *self._inside]

    def begin(self, address: str) -> Attempt:
        if sum(not each.evicted for each in self._outside) >= ROOM:
            self.make_room()
        attempt = Attempt(address)
        self._outside[attempt] = None
        return attempt

    def make_room(self) -> None:
        """Ends the oldest silent one of the address with most of them outside; one that waits if none is silent."""
        here = [each for each in self._outside if not each.evicted]
        victim = _oldest_of_most([each for each in here if each.waits is None]) or _oldest_of_most(here)
        if victim is not None:
            victim.evicted = "too many connections had not begun to log in, and this was the oldest"
            victim.cancel()

    async def take(self, attempt: Attempt) -> None:
        """Returns when the login may go on."""
        attempt.waits = asyncio.get_running_loop().create_future()
        self._fill()
        await attempt.waits

    def end(self, attempt: Attempt) -> None:
        self._outside.pop(attempt, None)
        self._inside.pop(attempt, None)
        self._fill()

    def _fill(self) -> None:
        """Gives out what is free; asks an old one for its place if somebody still waits."""
        limit = self._limit()
        share = limit - limit // 4
        held = Counter(each.address for each in self._inside)
        waiting = [each for each in self._outside if each.waits is not None and not each.evicted]
        while waiting and len(self._inside) < limit:
            first = min(waiting, key=lambda each: held[each.address])
            if held[first.address] >= share:
                break
            waiting.remove(first)
            held[first.address] += 1
            self._let_in(first)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if len(waiting) > sum(bool(each.evicted) for each in self._inside):
            self._evict()

    def _let_in(self, attempt: Attempt) -> None:
        del self._outside[attempt]
        attempt.since = time.monotonic()
        self._inside[attempt] = None
        assert attempt.waits is not None
        if not attempt.waits.done():  # its task is cancelled, and will end it
            attempt.waits.set_result(None)

    def _evict(self) -> None:
        """Whoever waits does so for the address with most places, be it its own: the oldest login of it goes, or is
        looked at again when it is old enough."""
        victim = _oldest_of_most(each for each in self._inside if not each.committing and not each.evicted)
        if victim is None:
            return
        assert victim.since is not None
        left = victim.since + GRACE - time.monotonic()
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._fill)
            return
        victim.evicted = "too many logins were in progress, and this was the oldest"
        victim.cancel()


def _oldest_of_most(attempts: Iterable[Attempt]) -> Attempt | None:
    """`attempts` are in order of age."""
    each_one = list(attempts)
    counts = Counter(each.address for each in each_one)
    return max(each_one, key=lambda each: counts[each.address], default=None)
