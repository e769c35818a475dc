# SPDX-License-Identifier: Apache-2.0
"""Long loops on the event loop, in slices: a port may have 16384 LUNs, and what is done for each of them must not keep
everybody else waiting until it is done for all.

Between two slices anything can happen: who walks through things that come and go looks at each one anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from typing import Final, TypeVar

T = TypeVar("T")
SLICE: Final = 32
"""items; at some 0.1 ms for each, a slice is a few milliseconds"""


async def sliced(items: Iterable[T], size: int = SLICE) -> AsyncIterator[T]:
    """The items, with a turn of the loop for others after every `size` of them. An item is asked for when it is its
    turn, never before the wait."""
    for number, item in enumerate(items, 1):
        yield item
        if number % size == 0:
            await asyncio.sleep(0)


@asynccontextmanager
async def all_entered(contexts: Iterable[AbstractContextManager[None]], size: int = SLICE) -> AsyncIterator[None]:
    """Enters them in order and leaves them in the reverse one, both in slices."""
    async with AsyncExitStack() as stack:
        for number, context in enumerate(contexts, 1):
            stack.enter_context(context)
            if number % size == 0:
                stack.push_async_callback(asyncio.sleep, 0)
                await asyncio.sleep(0)
        yield
