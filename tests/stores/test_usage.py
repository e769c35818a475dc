# SPDX-License-Identifier: Apache-2.0
"""How much room stores say they take, and stores that are given so much and no more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from vhost_scsi.dataplane import Core
from vhost_scsi.stores import Store, StoreConfigError, StoreError, StoreErrorKind, open_store
from vhost_scsi.stores.store import Usage

WithCore = Callable[[Callable[[Core], Awaitable[Any]]], Any]
PAGE = 4096
MIB = 1 << 20


async def full(io: Awaitable[None]) -> None:
    with pytest.raises(StoreError) as raised:
        await io
    assert raised.value.kind is StoreErrorKind.NO_SPACE


def test_memory_counts_the_pages_that_were_written(with_core: WithCore) -> None:
    async def work(core: Core) -> None:
        store = open_store("memory:16M", core)
        assert store.usage() == Usage(0, 16 * MIB, False)
        await store.write(PAGE - 1, b"ab")
        await store.write(PAGE, b"c")
        assert store.usage() == Usage(2 * PAGE, 16 * MIB - 2 * PAGE, False)
        await store.zero(8 * PAGE, PAGE)
        await store.unmap(0, PAGE // 2)
        assert store.usage() == Usage(2 * PAGE, 16 * MIB - 2 * PAGE, False)
        await store.unmap(PAGE, 4 * MIB)
        await store.unmap(PAGE, 4 * MIB)
        assert store.usage() == Usage(PAGE, 16 * MIB - PAGE, False)
        await store.write(0, b"x" * 16 * MIB)
        assert store.usage() == Usage(16 * MIB, 0, False)
        store.resize(8 * MIB)
        assert store.usage() == Usage(8 * MIB, 0, False)
        await store.unmap(0, 8 * MIB)  # so much that a thread does it
        assert store.usage() == Usage(0, 8 * MIB, False)
        store.close()

    with_core(work)


async def fill(store: Store) -> None:
    """A store of which 4 pages may be written."""
    await store.write(0, b"a" * 3 * PAGE)
    await full(store.write(3 * PAGE, b"b" * 2 * PAGE))
    assert await store.read(3 * PAGE, PAGE) == bytes(PAGE)
    await store.write(PAGE, b"c" * 3 * PAGE)  # two of them are there
    usage = store.usage()
    assert usage is not None
    assert (usage.used, usage.available) == (4 * PAGE, 0)
    await full(store.write(9 * PAGE + 1, b"d"))
    await store.write(0, b"e" * 4 * PAGE)
    await store.unmap(0, PAGE)
    await store.write(9 * PAGE + 1, b"d")
    assert await store.read(0, PAGE) == bytes(PAGE)
    assert await store.read(PAGE, PAGE) == b"e" * PAGE


@pytest.mark.parametrize("name", ["memory:1M,limit=16K", "overlay(limit=16K):memory:1M", "overlay(limit=18K):null:1M"])
def test_a_limit(name: str, with_core: WithCore) -> None:
    async def work(core: Core) -> None:
        store = open_store(name, core)
        await fill(store)
        store.close()

    with_core(work)


def test_what_is_below_an_overlay_is_not_what_it_takes(tmp_path: Path, with_core: WithCore) -> None:
    (tmp_path / "disk.img").write_bytes(b"d" * MIB)

    async def work(core: Core) -> None:
        store = open_store(f"delay:faulty(op=flush):overlay:{tmp_path}/disk.img", core)
        assert store.usage() == Usage(0, MIB, False)
        await store.write(10, b"x")
        assert store.usage() == Usage(PAGE, MIB - PAGE, False)
        store.close()
        kept = open_store(f"overlay(file={tmp_path}/changes):{tmp_path}/disk.img", core)
        before = kept.usage()
        assert before is not None
        assert before.shared
        await kept.write(0, b"y" * 512 * 1024)
        after = kept.usage()
        assert after is not None
        assert after.used >= before.used + 512 * 1024
        kept.close()

    with_core(work)


def test_a_file_counts_what_its_file_system_gave_it(tmp_path: Path, with_core: WithCore) -> None:
    path = tmp_path / "disk.img"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(64 * MIB)

    async def work(core: Core) -> None:
        store = open_store(str(path), core)
        empty = store.usage()
        assert empty is not None
        assert empty.shared
        assert empty.used < MIB
        await store.write(0, b"x" * 2 * MIB)
        await store.flush()
        used = store.usage()
        assert used is not None
        assert 2 * MIB <= used.used < 4 * MIB
        await store.unmap(0, 2 * MIB)
        await store.flush()
        again = store.usage()
        assert again is not None
        assert again.used < MIB
        store.close()

    with_core(work)


def test_who_does_not_know_says_so(ram_class: Any, with_core: WithCore) -> None:
    async def work(core: Core) -> None:
        store = open_store(ram_class(4096), core)
        assert store.usage() is None
        store.close()

    with_core(work)


def test_the_limit_of_a_file_is_its_file_systems(tmp_path: Path, with_core: WithCore) -> None:
    async def work(core: Core) -> None:
        with pytest.raises(StoreConfigError, match="the file system limits a file"):
            open_store(f"overlay(file={tmp_path}/new,limit=1M):memory:4M", core)

    with_core(work)
