# SPDX-License-Identifier: Apache-2.0
"""What single kinds of store do, as a user of their names sees it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from vhost_scsi._core import lib
from vhost_scsi.dataplane import Core
from vhost_scsi.errors import VhostScsiError
from vhost_scsi.stores import (
    Capability,
    Extent,
    PythonStore,
    Store,
    StoreConfigError,
    StoreError,
    StoreErrorKind,
    StoreInUse,
    open_store,
    open_store_when_free,
)
from vhost_scsi.stores.faulty import ERRORS, FAULTS
from vhost_scsi.stores.store import OPERATIONS

WithCore = Callable[[Callable[[Core], Awaitable[Any]]], Any]


async def fails(io: object, kind: StoreErrorKind) -> None:
    with pytest.raises(StoreError) as raised:
        await io  # type: ignore[misc]
    assert raised.value.kind is kind


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"d" * 65536)
    return path


def test_names_and_numbers_are_those_of_c() -> None:
    for kind in StoreErrorKind:
        assert getattr(lib, f"VS_ERR_{kind.name}") == kind
    assert max(StoreErrorKind) + 1 == lib.VS_ERR_KINDS
    assert set(ERRORS.values()) == set(StoreErrorKind)
    assert [getattr(lib, f"VS_IO_{name.upper()}") for name in OPERATIONS] == list(range(lib.VS_IO_OPS))
    assert [getattr(lib, f"VS_FAULT_{name.upper()}") for name in FAULTS] == list(range(len(FAULTS)))
    for capability in Capability:
        assert getattr(lib, f"VS_CAP_{capability.name}") == capability


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: os.mkfifo(path), "not a file or block device"),
        (lambda path: path.touch(), "is empty"),
    ],
)
def test_a_file_that_cannot_be_a_store(make: object, says: str, tmp_path: Path, with_core: WithCore) -> None:
    path = tmp_path / "x"
    make(path)  # type: ignore[operator]

    async def body(core: Core) -> None:
        with pytest.raises(StoreConfigError) as raised:
            open_store(str(path), core)
        assert str(raised.value).startswith(f"{path}: ")
        assert says in str(raised.value)
        assert "\n" not in str(raised.value)

    with_core(body)


def test_the_lock(disk: Path, with_core: WithCore) -> None:
    async def body(core: Core) -> None:
        store = open_store(str(disk), core)
        told: list[StoreInUse] = []
        with pytest.raises(StoreInUse, match="in use"):
            open_store(str(disk), core)
        start = time.monotonic()
        with pytest.raises(StoreInUse):
            await open_store_when_free(str(disk), core, 0.05, told.append)
        assert len(told) == 1, "once, however often it looks"
        assert time.monotonic() - start >= 0.05
        open_store(f"{disk},lock=off", core).close()
        store.close()
        (await open_store_when_free(str(disk), core, 1)).close()

    with_core(body)


def test_read_only(disk: Path, with_core: WithCore) -> None:
    async def body(core: Core) -> None:
        store = open_store(f"{disk},readonly", core)
        assert store.info.read_only
        await fails(store.write(0, b"x"), StoreErrorKind.READ_ONLY)
        await store.flush()
        store.close()
        assert disk.read_bytes() == b"d" * 65536

    with_core(body)


def test_resize_and_map_of_a_file(disk: Path, with_core: WithCore) -> None:
    async def body(core: Core) -> None:
        store = open_store(str(disk), core)
        assert store.resize(1 << 20) == 1 << 20
        assert disk.stat().st_size == 1 << 20
        assert store.map(65536, (1 << 20) - 65536) == Extent(False, (1 << 20) - 65536)
        assert store.map(0, 1 << 20) == Extent(True, 65536)
        os.truncate(disk, 4096)
        await fails(store.read(8192, 1), StoreErrorKind.GONE)
        assert store.resize() == 4096
        with pytest.raises(VhostScsiError):
            store.map(4096, 1)
        store.close()
        store = open_store("memory:1M", core)
        assert store.map(0, 1 << 20) == Extent(False, 1 << 20)
        await store.write(8192, b"data")
        await store.write(200_000, bytes(400_000))
        assert store.map(0, 1 << 20) == Extent(False, 8192)
        assert store.map(8192, 1 << 19) == Extent(True, 4096)
        assert store.map(12288, 1 << 19) == Extent(False, 196608 - 12288)
        assert store.map(200_000, 1 << 19) == Extent(True, 602112 - 200_000)
        await store.unmap(0, 300_000)
        assert store.map(0, 1 << 20) == Extent(False, 299008)
        await store.zero(0, 1 << 20)
        assert store.map(0, 1 << 20) == Extent(False, 1 << 20)
        with pytest.raises(VhostScsiError, match="cannot be resized"):
            store.resize(2**62)
        store.close()

    with_core(body)


def test_an_overlay_writes_nothing_below_and_leaves_nothing(disk: Path, with_core: WithCore) -> None:
    disk.chmod(0o400)
    new = disk.parent / "new"

    async def body(core: Core) -> None:
        first = open_store(f"overlay(file={new}):{disk}", core)
        assert not new.exists()
        # What is below is opened for reading, so several overlays share it.
        second = open_store(f"overlay(file={new},keep=on):{disk}", core)
        assert new.exists()
        assert first.lower is not None
        assert first.lower.info.read_only
        assert not first.info.read_only
        await first.write(100, b"new")
        assert await first.read(98, 7) == b"ddnewdd"
        assert await second.read(98, 7) == b"ddddddd"
        first.close()
        second.close()
        with pytest.raises(StoreConfigError, match="exists already"):
            open_store(f"overlay(file={new}):{disk}", core)
        with pytest.raises(StoreConfigError, match="power of two"):
            open_store(f"overlay(block=1000):{disk}", core)
        # What failed on the way has let the file go.
        open_store(f"overlay:{disk},readonly=off", core).close()

    with_core(body)
    assert disk.read_bytes() == b"d" * 65536


def test_delay(with_core: WithCore) -> None:
    async def body(core: Core) -> None:
        store = open_store("delay(write=700ms):memory:1M", core)
        start = time.monotonic()
        write = asyncio.ensure_future(store.write(0, b"x"))
        await store.read(0, 512)
        assert not write.done(), "reads are not delayed"
        await write
        assert time.monotonic() - start >= 0.7
        assert (store.kind, store.lower and store.lower.kind) == ("delay", "memory")
        store.close()

    with_core(body)


def test_faults(with_core: WithCore) -> None:
    async def body(core: Core) -> None:
        rules = "op=read,lba=8-15,skip=1,count=1;op=write,lba=100-,error=no-space;op=write,fault=torn,lba=0,count=1"
        store = open_store(f"faulty({rules};op=flush):memory:1M", core)
        await store.read(8 * 512, 512)
        await fails(store.read(15 * 512, 512), StoreErrorKind.READ)
        await store.read(8 * 512, 512)
        await fails(store.write(2**20 - 1, b"x"), StoreErrorKind.NO_SPACE)
        await store.write(99 * 512, bytes(512))
        await store.write(0, b"t" * 2048)
        assert await store.read(0, 2048) == b"t" * 1024 + bytes(1024)
        await fails(store.flush(), StoreErrorKind.WRITE)
        await fails(store.flush(), StoreErrorKind.FLUSH_LATCHED)
        assert store.info.failed
        assert store.stats.errors == {"read": 1, "write": 1, "flush": 2, "unmap": 0, "zero": 0}
        store.close()
        for rule, says in [
            ("op=read,lba=1,offset=4K", "either lba or offset"),
            ("op=read,block=4K", "unit of lba"),
            ("op=read,lba=999999999999999999", "beyond any store"),
            ("fault=torn,op=read", "only a write"),
            ("error=read", "op is missing"),
        ]:
            with pytest.raises(StoreConfigError, match=says):
                open_store(f"faulty({rule}):memory:1M", core)

    with_core(body)


def test_a_store_in_python(ram_class: Any, with_core: WithCore, caplog: pytest.LogCaptureFixture) -> None:
    async def body(core: Core) -> None:
        ram = ram_class(65536)
        store = open_store(ram, core)
        assert store.info.unmap is Capability.NATIVE
        assert store.info.zero is Capability.EMULATED
        assert store.info.volatile_cache
        await store.write(0, b"abc", fua=True)
        assert ram.diary == ["write", "flush"]
        await store.zero(1, 1)
        assert await store.read(0, 4) == b"a\0c\0"
        ram.fail = "NO_SPACE"
        await fails(store.write(0, b"abc"), StoreErrorKind.NO_SPACE)
        ram.fail = "oops"
        await fails(store.read(0, 1), StoreErrorKind.INTERNAL)
        await fails(store.read(0, 1), StoreErrorKind.INTERNAL)
        assert caplog.text.count("the store Ram failed") == 1
        ram.fail = ""
        store.close()
        store.close()
        assert ram.closed == 1

    with_core(body)


def test_a_plain_store_in_python(with_core: WithCore) -> None:
    class Short(PythonStore):
        size = 4096

        async def read(self, offset: int, length: int) -> bytes:
            return bytes(length - 1)

    async def body(core: Core) -> None:
        store = open_store(Short(), core)
        assert store.info.unmap is Capability.NONE
        assert not store.info.volatile_cache
        await fails(store.unmap(0, 512), StoreErrorKind.UNSUPPORTED)
        await fails(store.read(0, 512), StoreErrorKind.INTERNAL)
        await fails(store.write(0, b"x"), StoreErrorKind.INTERNAL)
        await store.flush()
        store.close()

    with_core(body)


def test_a_store_in_python_gets_so_many_at_once(ram_class: Any, with_core: WithCore) -> None:
    async def body(core: Core) -> None:
        ram = ram_class()
        store = open_store(ram, core)
        await asyncio.gather(*(store.read(0, 512) for _ in range(300)))
        assert 1 < ram.busiest <= 64
        store.close()

    with_core(body)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("python:no.such.module:X", "No module named"),
        ("python:stores_of_the_tests:Missing", "has no attribute"),
        ("python:stores_of_the_tests:NotAStore", "is not a PythonStore"),
        ("python:stores_of_the_tests:Ram,colour=red", "unexpected keyword"),
        ("python:stores_of_the_tests:Ram,size=many", "invalid literal"),
        ("python:stores_of_the_tests", "python:MODULE:CLASS"),
        ("memory:many", "a size is a whole number"),
        ("memory:0", "cannot be had"),
        ("null:0", "cannot be had"),
    ],
)
def test_stores_that_cannot_be_opened(name: str, says: str, ram_class: Any, with_core: WithCore) -> None:
    async def body(core: Core) -> None:
        with pytest.raises(StoreConfigError, match=says):
            open_store(name, core)

    with_core(body)


def test_null_is_as_large_as_you_like(with_core: WithCore) -> None:
    async def body(core: Core) -> None:
        store: Store = open_store({"type": "null", "size": "3T"}, core)
        await store.write(3 * 2**40 - 1, b"x")
        assert await store.read(3 * 2**40 - 1, 1) == b"\0"
        store.close()

    with_core(body)
