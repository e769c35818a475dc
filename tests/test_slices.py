# SPDX-License-Identifier: Apache-2.0
"""Sliced loops: others have their turn, items are asked for late, and what was entered is left again, come what may."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest

from vhost_scsi.slices import SLICE, all_entered, sliced

Noted = list[object]


def with_turns(work: Callable[[Noted], Awaitable[None]]) -> Noted:
    """What `work` noted, with "turn" wherever somebody else had one."""
    noted: Noted = []

    async def main() -> None:
        async def other() -> None:
            while True:
                await asyncio.sleep(0)
                noted.append("turn")

        beside = asyncio.ensure_future(other())
        await asyncio.sleep(0)
        await work(noted)
        beside.cancel()

    asyncio.run(main())
    return noted


def test_others_have_a_turn_after_each_slice_and_items_are_asked_for_late() -> None:
    async def work(noted: Noted) -> None:
        def items() -> Iterator[int]:
            for number in range(5):
                noted.append(f"asked {number}")
                yield number

        async for item in sliced(items(), 2):
            noted.append(item)

    assert with_turns(work) == [
        *("asked 0", 0, "asked 1", 1, "turn"),
        *("asked 2", 2, "asked 3", 3, "turn"),
        *("asked 4", 4),
    ]


def test_few_items_keep_nobody_waiting_and_wait_for_nobody() -> None:
    async def work(noted: Noted) -> None:
        noted += [item async for item in sliced(range(SLICE - 1))]

    assert with_turns(work) == list(range(SLICE - 1))


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_entered_is_left_in_reverse_in_slices_too(fails: bool) -> None:
    async def work(noted: Noted) -> None:
        @contextmanager
        def one(number: int) -> Iterator[None]:
            noted.append(f"in {number}")
            try:
                yield
            finally:
                noted.append(f"out {number}")

        try:
            async with all_entered((one(number) for number in range(3)), 2):
                noted.append("body")
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            noted.append("failed")

    assert with_turns(work) == [
        *("in 0", "in 1", "turn", "in 2", "body"),
        *("out 2", "turn", "out 1", "out 0"),
        *(["failed"] if fails else []),
    ]


def test_an_entry_that_fails_leaves_those_before() -> None:
    async def work(noted: Noted) -> None:
        @contextmanager
        def one(number: int) -> Iterator[None]:
            if number == 2:
                raise ZeroDivisionError
            yield
            noted.append(f"out {number}")

        with pytest.raises(ZeroDivisionError):
            async with all_entered(one(number) for number in range(3)):
                noted.append("never")

    # The exception comes through the ones that were entered, which do not get to their end.
    assert "never" not in with_turns(work)
