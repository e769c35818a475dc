# SPDX-License-Identifier: Apache-2.0
"""Fixtures over a whole back end in this process; what it is stands in `live.py`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live import Live

# "auto" is io_uring where the kernel gives it to us; the suite must pass as it is where the kernel does not.
PLANES = [("auto", 1), ("epoll", 2)]


@pytest.fixture
def make_live(tmp_path: Path) -> Iterator[Callable[[str, int], Live]]:
    """Back ends by engine and number of workers; closed, and looked at for lost descriptors, in the end."""
    # Not at the top: tests of pure Python parts need no compiled core.
    from tests.live import Live, open_fds

    gc.collect()
    before = open_fds()
    made: list[Live] = []

    def make(engine: str = "auto", workers: int = 1) -> Live:
        made.append(Live(tmp_path, engine, workers))
        return made[-1]

    yield make
    for live in made:
        live.close()
    gc.collect()  # a mapping of guest memory keeps a descriptor as long as a view of it lives
    assert sorted(open_fds().items() - before.items()) == [], "descriptors leaked"


@pytest.fixture(params=PLANES, ids=lambda plane: f"{plane[0]}-{plane[1]}")
def live(request: pytest.FixtureRequest, make_live: Callable[[str, int], Live]) -> Live:
    """A back end with each engine, with one worker and with two."""
    return make_live(*request.param)
