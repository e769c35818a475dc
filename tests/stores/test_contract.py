# SPDX-License-Identifier: Apache-2.0
"""The contract of stores once more, through the binding: every kind and some compositions, opened by their names."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from vhost_scsi.dataplane import Core
from vhost_scsi.stores import Capability, PythonStore, Store, StoreError, StoreErrorKind, open_store

WithCore = Callable[[Callable[[Core], Awaitable[Any]]], Any]

Opened = Callable[[str, Core], Store]
SIZE = 1 << 20
STORES = [
    f"memory:{SIZE}",
    "memory:1M,huge-pages=on",
    "{disk}",
    "file:{disk},cache=direct",
    "overlay:{disk}",
    "overlay(file={new},block=64K):file:{disk},cache=direct",
    "overlay:overlay:memory:1M",
    "delay(read=20us,write=20us,flush=20us):memory:1M",
    "faulty(op=write,skip=1000000):{disk}",
    "python",
    "overlay:python",
]


@pytest.fixture
def opened(ram_class: Callable[[int], PythonStore], tmp_path: Path) -> Opened:
    return lambda name, core: open_named(name, core, tmp_path, ram_class)


def open_named(name: str, core: Core, folder: Path, ram_class: Callable[[int], PythonStore]) -> Store:
    disk = folder / "disk"
    disk.write_bytes(bytes(SIZE))
    if name == "python":
        return open_store(ram_class(SIZE), core)
    if name == "overlay:python":
        name = f"overlay:python:stores_of_the_tests:Ram,size={SIZE}"
    return open_store(name.format(disk=disk, new=folder / "new"), core)


@pytest.mark.parametrize("name", STORES)
def test_bytes_come_back(name: str, opened: Opened, with_core: WithCore) -> None:
    chance = random.Random(7)
    model = bytearray(SIZE)

    async def step(store: Store) -> None:
        length = chance.choice([1, 511, 512, 4096, 5000, 70000])
        offset = chance.randrange(SIZE - length)
        worker = chance.randrange(2)
        match chance.choice(["read", "read", "write", "write", "zero", "unmap", "flush"]):
            case "read":
                assert await store.read(offset, length, worker=worker) == model[offset : offset + length]
            case "write":
                data = chance.randbytes(length)
                await store.write(offset, data, fua=chance.random() < 0.1, worker=worker)
                model[offset : offset + length] = data
            case "zero":
                await store.zero(offset, length, may_unmap=chance.random() < 0.5, worker=worker)
                model[offset : offset + length] = bytes(length)
            case "unmap":
                await store.unmap(offset, length, worker=worker)
                model[offset : offset + length] = bytes(length)
            case _:
                await store.flush(worker=worker)

    async def body(core: Core) -> None:
        store = opened(name, core)
        assert store.info.size == SIZE
        assert not store.info.failed
        assert store.info.fua is not Capability.NONE
        for _ in range(150):
            await step(store)
        assert await store.read(0, SIZE) == model
        assert store.stats.ops["read"] > 0
        assert sum(store.stats.errors.values()) == 0
        store.close()

    with_core(body)


@pytest.mark.parametrize("name", STORES)
def test_beyond_the_end(name: str, opened: Opened, with_core: WithCore) -> None:
    async def body(core: Core) -> None:
        store = opened(name, core)
        for io in (
            store.read(SIZE, 1),
            store.write(SIZE - 1, b"12"),
            store.zero(0, SIZE + 1),
            store.unmap(2**63, 2**63),
        ):
            with pytest.raises(StoreError) as raised:
                await io
            assert raised.value.kind is StoreErrorKind.RANGE
        assert await store.read(SIZE, 0) == b""
        store.close()

    with_core(body)


@pytest.mark.parametrize("name", STORES)
def test_many_at_once(name: str, opened: Opened, with_core: WithCore) -> None:
    async def body(core: Core) -> None:
        store = opened(name, core)
        pieces = [bytes([n + 1]) * 700 for n in range(100)]
        await asyncio.gather(*(store.write(n * 701, piece, worker=n % 2) for n, piece in enumerate(pieces)))
        found = await asyncio.gather(*(store.read(n * 701, 701, worker=(n + 1) % 2) for n in range(100)))
        assert found == [piece + b"\0" for piece in pieces]
        store.close()

    with_core(body)


def test_a_cancelled_caller_leaves_the_buffer_to_the_worker(with_core: WithCore) -> None:
    async def body(core: Core) -> None:
        store = open_store("delay(read=50ms):memory:1M", core)
        reading = asyncio.create_task(store.read(0, 4096))
        await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await asyncio.sleep(0.1)
        assert store.lower is not None
        assert store.lower.stats.ops["read"] == 1
        store.close()

    with_core(body)
