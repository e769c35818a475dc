# SPDX-License-Identifier: Apache-2.0
"""Bytes through everything: random commands with random scatter lists against a model of the disk, over each store."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.disk_model import SIZE, Model
from tests.live import (
    Host,
    Live,
    check,
    compare_and_write,
    mode_select10,
    read10,
    read16,
    synchronize_cache,
    unmap_blocks,
    write10,
    write16,
)
from vhost_scsi.scsi import sense
from vhost_scsi.scsi.task import Status
from vhost_scsi.stores import PythonStore
from vhost_scsi.virtqueue.virtio_scsi import Response

CACHE_OFF = bytes([0x08, 0x12]) + bytes(18)
STORES = {
    "memory": "memory:4M",
    "file": "{}",
    "file direct": "{},cache=direct",
    "overlay": "overlay:{}",
    "overlay in a file": "overlay(file={}.cow):{}",
    "delay": "delay(read=200us,write=300us):memory:4M",
    "delay direct": "delay(write=100us):{},cache=direct",
    "python": "",
}


class Bytes(PythonStore):
    """A store in Python that does the least it must."""

    size = SIZE

    def __init__(self) -> None:
        self.content = bytearray(SIZE)

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(self.content[offset : offset + length])

    async def write(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data


def image(directory: Path, size: int = SIZE) -> str:
    path = directory / "disk.img"
    with open(path, "wb") as file:
        file.truncate(size)
    return str(path)


def source(name: str, directory: Path) -> str | PythonStore:
    if name == "python":
        return Bytes()
    path = image(directory)
    return STORES[name].replace("{}", path)


@pytest.mark.parametrize("block", [512, 4096])
@pytest.mark.parametrize("name", STORES)
def test_random_commands_leave_disk_and_model_alike(live: Live, tmp_path: Path, name: str, block: int) -> None:
    end = live.end((0, 0, live.unit(source(name, tmp_path), block_size=block)))
    with end.connect() as host:
        host.ready()
        Model(host, block, seed=block + len(name)).run(120)


@pytest.mark.parametrize(("cdb_size", "sense_size"), [(16, 18), (32, 252), (255, 96), (17, 19)])
def test_other_sizes_of_cdb_and_sense(live: Live, cdb_size: int, sense_size: int) -> None:
    end = live.end((0, 0, live.unit("memory:4M")), cdb_size=cdb_size, sense_size=sense_size)
    with end.connect() as host:
        host.ready()
        Model(host, 512, seed=cdb_size).run(60)
        found = host.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, read16(1 << 40, 1), in_len=512)
        assert found.code == sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE


@pytest.mark.parametrize("block", [512, 4096])
def test_the_far_end_of_a_large_disk(live: Live, tmp_path: Path, block: int) -> None:
    size = 5 << 40
    end = live.end((0, 0, live.unit(image(tmp_path, size), block_size=block)))
    last = size // block - 1
    with end.connect() as host:
        host.ready()
        for lba in (last, (2 << 40) // block, (2 << 40) // block - 1, (4 << 40) // block):
            data = os.urandom(block)
            host.ok(write16(lba, 1), data)
            assert host.ok(read16(lba, 1), in_len=block) == data
        host.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, read16(last, 2), in_len=2 * block)
        host.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, write16((1 << 64) - 1, 1), bytes(block))
        host.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, read16((1 << 64) - 1, 1), in_len=block)


def test_residuals_both_ways(live: Live) -> None:
    with live.end((0, 0, live.unit("memory:4M"))).connect() as host:
        host.ready()
        host.ok(write10(0, 4), b"\x11" * 2048)
        more = host.command(read10(0, 2), in_len=4096)
        assert (more.status, more.residual, len(more.data)) == (Status.GOOD, 3072, 1024)
        less = host.command(read10(0, 4), in_len=1000)
        assert (less.response, less.residual, less.data) == (Response.OVERRUN, 1000, b"")
        more = host.command(write10(0, 2), b"\x22" * 4096)
        assert (more.status, more.residual) == (Status.GOOD, 3072)
        less = host.command(write10(0, 4), b"\x33" * 1000)
        assert (less.response, less.residual) == (Response.OVERRUN, 1000)
        assert host.ok(read10(0, 4), in_len=2048) == b"\x22" * 1024 + b"\x11" * 1024


def test_buffers_of_both_kinds(live: Live) -> None:
    """The residual is of the buffer that the command moves data through; nothing is said to be written that is not."""
    with live.end((0, 0, live.unit("memory:4M"))).connect() as host:
        host.ready()
        out = host.command(write10(0, 2), b"\x22" * 4096, in_len=512)
        assert (out.status, out.residual, out.data) == (Status.GOOD, 3072, b"")
        cdb, pages = mode_select10(CACHE_OFF)
        select = host.command(cdb, pages + bytes(100), in_len=512)
        assert (select.status, select.residual, select.data) == (Status.GOOD, 100, b"")
        back = host.command(read10(0, 1), b"\x33" * 4096, in_len=1024)
        assert (back.status, back.residual, back.data) == (Status.GOOD, 512, b"\x22" * 512)


def test_unmapped_blocks_read_as_zeroes_and_free_space(live: Live, tmp_path: Path) -> None:
    path = image(tmp_path)
    with live.end((0, 0, live.unit(path))).connect() as host:
        host.ready()
        host.ok(write10(0, 2048), b"\x77" * (1 << 20))
        host.ok(synchronize_cache())
        before = os.stat(path).st_blocks
        cdb, parameters = unmap_blocks((0, 1024), (1500, 8))
        host.ok(cdb, parameters)
        assert host.ok(read10(0, 1024), in_len=1 << 19) == bytes(1 << 19)
        assert host.ok(read10(1500, 8), in_len=4096) == bytes(4096)
        assert host.ok(read10(1508, 8), in_len=4096) == b"\x77" * 4096
        assert before - os.stat(path).st_blocks >= 1024


@pytest.mark.parametrize("store", ["memory:4M", "delay(read=300us,write=300us):memory:4M", "{}"])
@pytest.mark.parametrize("engine", ["auto", "epoll"])
def test_compare_and_write_from_several_queues_counts_exactly(
    make_live,
    tmp_path: Path,
    store: str,
    engine: str,  # type: ignore[no-untyped-def]
) -> None:
    live: Live = make_live(engine, 2)
    unit = live.unit(store.replace("{}", image(tmp_path)))
    one, two = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="two")
    turns, hosts = 60, [one.connect(), two.connect()]
    done: list[int] = []

    def count(host: Host, queue: int) -> None:
        value = 0
        for _ in range(turns):
            while True:
                old, new = value.to_bytes(512, "big"), (value + 1).to_bytes(512, "big")
                result = host.command(compare_and_write(7), old + new, queue=queue)
                if result.status == Status.GOOD:
                    value += 1
                    break
                check(result, sense.MISCOMPARE_DURING_VERIFY_OPERATION)
                value = int.from_bytes(host.ok(read10(7, 1), in_len=512, queue=queue), "big")
        done.append(turns)

    # A driver object is one thread's: each thread is one initiator, and takes its queues in turn.
    def each(host: Host) -> None:
        for queue in range(4):
            count(host, queue)

    for host in hosts:
        host.ready()
    threads = [threading.Thread(target=each, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(done) == 2 * 4 * turns
    assert int.from_bytes(hosts[0].ok(read10(7, 1), in_len=512), "big") == sum(done)
    for host in hosts:
        host.close()


def test_compare_and_write_races_with_itself_on_all_queues(live: Live) -> None:
    """Of many that compare with the same bytes at once exactly one wins."""
    with live.end((0, 0, live.unit("delay(read=2ms,write=2ms):memory:1M"))).connect() as host:
        host.ready()
        for turn in range(20):
            old, new = turn.to_bytes(512, "big"), (turn + 1).to_bytes(512, "big")
            tags = [host.send(compare_and_write(3), old + new, queue=n % 4, publish=False) for n in range(12)]
            host.driver.publish()
            won = sum(result.status == Status.GOOD for result in host.drain(tags))
            assert won == 1
            assert host.ok(read10(3, 1), in_len=512) == new


# ---- images that shrink ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", ",cache=direct"], ids=["buffered", "direct"])
def test_an_image_that_is_truncated_under_load(live: Live, tmp_path: Path, options: str) -> None:
    path = image(tmp_path)
    end = live.end((0, 0, live.unit(path + options)), (0, 1, live.unit("memory:1M", "other")))
    with end.connect() as host:
        host.ready((0, 0), (0, 1))
        host.ok(write10(0, 2048), b"\x42" * (1 << 20))
        tags = [host.send(read10(64 * n, 64), in_len=64 * 512, queue=n % 4) for n in range(20)]
        os.truncate(path, 1 << 19)
        for result in host.drain(tags):
            assert result.status in (Status.GOOD, Status.CHECK_CONDITION)
        # The store is gone as far as it was cut: an error of ours, not of the medium or the command.
        host.fails(sense.INTERNAL_TARGET_FAILURE, read10(4096, 8), in_len=4096)
        assert host.ok(read10(0, 8), in_len=4096) == b"\x42" * 4096
        host.ok(write10(0, 1), bytes(512), at=(0, 1))
