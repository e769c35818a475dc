# SPDX-License-Identifier: Apache-2.0
"""What the store tests share: a core that runs for the length of one coroutine, and a store written in Python."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from types import ModuleType
from typing import Any

import pytest

from vhost_scsi.dataplane import Core, CoreOptions
from vhost_scsi.stores import PythonStore, StoreError, StoreErrorKind

MODULE = "stores_of_the_tests"
"""the name under which `python:` finds the classes of this file"""


class Ram(PythonStore):
    """Bytes in a bytearray, and a diary of what it was asked."""

    unmapped_reads_zero = True

    def __init__(self, size: str | int = 1 << 20, fail: str = "") -> None:
        self.size = int(size)
        self.data = bytearray(self.size)
        self.diary: list[str] = []
        self.fail = fail
        self.closed = 0
        self.busy = self.busiest = 0

    async def read(self, offset: int, length: int) -> bytes:
        await self._work("read")
        return bytes(self.data[offset : offset + length])

    async def write(self, offset: int, data: bytes) -> None:
        await self._work("write")
        self.data[offset : offset + len(data)] = data

    async def flush(self) -> None:
        await self._work("flush")

    async def unmap(self, offset: int, length: int) -> None:
        await self._work("unmap")
        self.data[offset : offset + length] = bytes(length)

    def close(self) -> None:
        self.closed += 1

    async def _work(self, what: str) -> None:
        self.diary.append(what)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        if self.fail == "oops":
            raise RuntimeError("the store's own fault")
        if self.fail:
            raise StoreError(StoreErrorKind[self.fail])


class NotAStore:
    """A class that `python:` must refuse."""


@pytest.fixture
def ram_class(monkeypatch: pytest.MonkeyPatch) -> type[Ram]:
    """`Ram`, which is also python:stores_of_the_tests:Ram while the test runs."""
    module = ModuleType(MODULE)
    module.__dict__.update(Ram=Ram, NotAStore=NotAStore)
    monkeypatch.setitem(sys.modules, MODULE, module)
    return Ram


@pytest.fixture(params=["epoll", "auto"])
def with_core(request: pytest.FixtureRequest) -> Callable[[Callable[[Core], Awaitable[Any]]], Any]:
    """Runs a coroutine function with a started core of two workers, and closes the core."""

    def run(body: Callable[[Core], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            core = Core(CoreOptions(workers=2, engine=request.param))
            await core.start()
            try:
                return await body(core)
            finally:
                await core.close()

        coroutine: Coroutine[Any, Any, Any] = main()
        return asyncio.run(coroutine)

    return run
