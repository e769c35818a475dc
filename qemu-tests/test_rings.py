# SPDX-License-Identifier: Apache-2.0
"""Rings of several kinds under a real driver: how many, how large, with which features, on which workers and engine.

Every setup is booted once and all checks run in it. The twins judge the plainest setup by the expectations of another
one, so that a check which sees nothing would be found out.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backend import FIRST_REQUEST, Backend, Bed
from guest_disks import Disk, disks, file_hash, make_data, read_hash, write

from vhost_scsi.qemu import Accel, Guest, Qemu

MIB = 1 << 20
CPUS = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Rings:
    """A setup: request queues, descriptors in each, features, and what serves them."""

    queues: int
    size: int
    event_idx: bool
    indirect: bool
    workers: int = 1
    engine: str = "io_uring"
    packed: bool = False

    def __str__(self) -> str:
        features = f"{'event_idx' if self.event_idx else 'no_event_idx'}-{'indirect' if self.indirect else 'direct'}"
        layout = "-packed" if self.packed else ""
        return f"{self.queues}x{self.size}-{features}-{self.workers}-{self.engine}{layout}"


PLAIN = Rings(1, 64, event_idx=False, indirect=False)
RICH = Rings(4, 1024, event_idx=True, indirect=True, workers=2, engine="epoll")
SETUPS = (
    PLAIN,
    RICH,
    Rings(4, 64, event_idx=True, indirect=False, workers=2),
    pytest.param(Rings(1, 1024, event_idx=False, indirect=True), marks=pytest.mark.slow),
    Rings(4, 256, event_idx=True, indirect=True, workers=2, packed=True),
    pytest.param(Rings(1, 64, event_idx=False, indirect=False, packed=True), marks=pytest.mark.slow),
    pytest.param(Rings(4, 64, event_idx=True, indirect=False, engine="epoll", packed=True), marks=pytest.mark.slow),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Running:
    """A setup with its guest. Disk 0:0 is the file `image`, 0:1 answers reads late, 0:2 tears one write."""

    rings: Rings
    backend: Backend
    guest: Guest
    disks: dict[tuple[int, int], Disk]
    image: Path


def switch(on: bool) -> str:
    return "on" if on else "off"


def boot(bed: Bed, rings: Rings) -> Running:
    image = bed.disk("data", 64 * MIB)
    backend = bed.serve(
        f"0:0={image}",
        "0:1=delay(read=1500ms):memory:16M",
        "0:2=faulty(op=write,fault=torn,skip=3,count=1):memory:64M",
        queues=rings.queues,
        options=["--workers", str(rings.workers), "--engine", rings.engine],
    )
    properties = {
        "event_idx": switch(rings.event_idx),
        "indirect_desc": switch(rings.indirect),
        "packed": switch(rings.packed),
    }
    guest = bed.tiny(*bed.attach(backend, queues=rings.queues, size=rings.size, properties=properties), cpus=CPUS)
    return Running(rings, backend, guest, disks(guest), image)


@pytest.fixture(scope="module", params=SETUPS, ids=str)
def running(
    request: pytest.FixtureRequest, qemu: Qemu, accel: Accel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with Bed(qemu, accel, tmp_path_factory.mktemp("rings")) as bed:
        yield boot(bed, request.param)


@pytest.fixture(scope="module")
def plain(qemu: Qemu, accel: Accel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Bed(qemu, accel, tmp_path_factory.mktemp("plain")) as bed:
        yield boot(bed, PLAIN)


# -- the checks; `expected` is the setup that the guest is believed to have -------------------------------------------


def request_queues(running: Running) -> list[dict[str, Any]]:
    """As `vhost-scsi queue list` tells them."""
    queues: list[dict[str, Any]] = running.backend.command("queue", "list")["queues"]
    return queues[FIRST_REQUEST:]


def check_features(running: Running, expected: Rings) -> None:
    for queue in request_queues(running):
        assert ("EVENT_IDX" in queue["features"]) == expected.event_idx, f"EVENT_IDX in {queue['features']}"
        assert ("INDIRECT_DESC" in queue["features"]) == expected.indirect, f"INDIRECT_DESC in {queue['features']}"
        assert ("RING_PACKED" in queue["features"]) == expected.packed, f"RING_PACKED in {queue['features']}"
        assert queue["layout"] == ("packed" if expected.packed else "split")
        assert (queue["avail_wrap"] is not None) == expected.packed


def check_sizes(running: Running, expected: Rings) -> None:
    queues = request_queues(running)
    assert [queue["size"] for queue in queues] == [expected.size] * expected.queues
    assert all(queue["started"] and queue["enabled"] and not queue["broken"] for queue in queues)


def check_each_queue_carries_requests(running: Running, expected: Rings) -> None:
    """Each processor reads from its own; every queue's counter, and every worker's, must move by as much."""
    reads = 64
    before, work_before = running.backend.requests(), worker_requests(running)
    for cpu in range(CPUS):
        disk = running.disks[0, 0].block
        running.guest.check(f"taskset -c {cpu} dd if={disk} of=/dev/null bs=4k count={reads} iflag=direct 2>/dev/null")
    grown = [after - first for first, after in zip(before, running.backend.requests(), strict=True)]
    assert len(grown) == expected.queues, f"{len(grown)} request queues"
    assert all(number >= reads for number in grown), f"requests in each queue: {grown}"
    assert sum(grown) >= reads * CPUS
    worked = [after - first for first, after in zip(work_before, worker_requests(running), strict=True)]
    assert len(worked) == expected.workers, f"{len(worked)} workers"
    assert all(number >= reads for number in worked), f"requests of each worker: {worked}"


def worker_requests(running: Running) -> list[int]:
    return [worker["requests"] for worker in running.backend.command("status")["workers"]]


def check_engine(running: Running, expected: Rings) -> None:
    assert running.backend.command("status")["engine"] == expected.engine


def check_descriptors_in_flight(running: Running, expected: Rings) -> None:
    """A read that waits in the store is seen in its ring from outside, with its CDB, as a direct or indirect chain."""
    disk = running.disks[0, 1].block
    running.guest.send(f"taskset -c 0 dd if={disk} of=/dev/null bs=64k skip=3 count=1 iflag=direct 2>/dev/null &")
    try:
        deadline = time.monotonic() + 20
        while not (tasks := running.backend.tasks()):
            assert time.monotonic() < deadline, "no read comes to the delayed disk"
        shown = running.backend.call("queue.show", index=tasks[0]["queue"])
        assert [(task["lba"], task["length_bytes"]) for task in shown["tasks"]] == [(384, 65536)]
        assert "READ" in shown["tasks"][0]["command"]
        if running.rings.packed:
            # What a chain was is overwritten where it stood; how many descriptors it took is not.
            assert shown["ring"]["in_flight_ids"] == [shown["tasks"][0]["head"]]
            held = shown["ring"]["held"]
            assert (held == 1) == expected.indirect, f"chains in flight: {held} descriptors"
            assert shown["ring"]["strip"].count("F") == held
        else:
            chains = [chain for chain in shown["ring"]["chains"] if chain["head"] == shown["tasks"][0]["head"]]
            assert [chain["indirect"] for chain in chains] == [expected.indirect], f"chains in flight: {chains}"
        assert not shown["ring"]["violations"]
    finally:
        running.guest.check("wait", 30)


def check_integrity(running: Running, place: tuple[int, int]) -> None:
    """Small and large requests, and four writers at once; read back in other portions than written."""
    guest, disk = running.guest, running.disks[place]
    written = make_data(guest, 8)
    write(guest, disk, block="1M")
    assert read_hash(guest, disk, 8, block="4k") == written, "large writes, small reads"
    write(guest, disk, at_mib=8, block="4k")
    assert read_hash(guest, disk, 8, at_mib=8) == written, "small writes, large reads"
    writer = f"dd if=/tmp/data of={disk.block} bs=64k oflag=direct conv=notrunc 2>/dev/null"
    guest.check(" & ".join(f"taskset -c {cpu} {writer} seek={(cpu + 2) * 128}" for cpu in range(CPUS)) + " & wait", 300)
    for cpu in range(CPUS):
        assert read_hash(guest, disk, 8, at_mib=(cpu + 2) * 8, block="256k") == written, f"writer {cpu}"


# -- each setup by its own expectations -------------------------------------------------------------------------------


def test_the_negotiated_features_are_the_wanted_ones(running: Running) -> None:
    check_features(running, running.rings)


def test_the_rings_have_the_wanted_size(running: Running) -> None:
    check_sizes(running, running.rings)


def test_each_queue_and_each_worker_carries_requests(running: Running) -> None:
    check_each_queue_carries_requests(running, running.rings)


def test_the_engine_is_the_wanted_one(running: Running) -> None:
    check_engine(running, running.rings)


def test_a_request_in_flight_is_seen_in_its_ring(running: Running) -> None:
    check_descriptors_in_flight(running, running.rings)


def test_what_is_written_is_what_is_read_and_what_the_image_holds(running: Running) -> None:
    check_integrity(running, (0, 0))
    assert file_hash(running.image, 8) == file_hash(running.image, 8, at_mib=40)


# -- and the plain one by those of the rich one -----------------------------------------------------------------------


def test_missing_features_are_noticed(plain: Running) -> None:
    """Broken: event_idx, indirect_desc and packed are off."""
    with pytest.raises(AssertionError, match="EVENT_IDX in"):
        check_features(plain, RICH)
    with pytest.raises(AssertionError, match="INDIRECT_DESC in"):
        check_features(plain, dataclasses.replace(PLAIN, indirect=True))
    with pytest.raises(AssertionError, match="RING_PACKED in"):
        check_features(plain, dataclasses.replace(PLAIN, packed=True))


def test_rings_of_another_size_are_noticed(plain: Running) -> None:
    """Broken: 64 descriptors instead of 1024."""
    with pytest.raises(AssertionError, match="1024"):
        check_sizes(plain, dataclasses.replace(PLAIN, size=1024))


def test_missing_queues_and_workers_are_noticed(plain: Running) -> None:
    """Broken: one request queue and one worker only."""
    with pytest.raises(AssertionError, match="1 request queues"):
        check_each_queue_carries_requests(plain, RICH)
    with pytest.raises(AssertionError, match="1 workers"):
        check_each_queue_carries_requests(plain, dataclasses.replace(PLAIN, workers=2))


def test_queues_that_the_driver_leaves_alone_are_noticed(bed: Bed) -> None:
    """Broken: the device has four queues, but the guest has one processor and uses one queue."""
    backend = bed.serve("0:0=memory:16M", queues=4)
    guest = bed.tiny(*bed.attach(backend, queues=4))
    lonely = Running(dataclasses.replace(PLAIN, queues=4), backend, guest, disks(guest), bed.folder)
    lonely.guest.check("printf '#!/bin/sh\\nshift 2\\nexec \"$@\"\\n' >/tmp/taskset && chmod +x /tmp/taskset")
    lonely.guest.send("PATH=/tmp:$PATH")  # there is no second processor to bind to
    with pytest.raises(AssertionError, match=r"requests in each queue: \[256, 0, 0, 0\]"):
        check_each_queue_carries_requests(lonely, lonely.rings)


def check_many_queues(backend: Backend, number: int) -> None:
    """Linux takes one for each processor; the others are there, and rest."""
    queues = backend.queues()
    assert len(queues) == FIRST_REQUEST + number, f"{len(queues)} queues"
    assert [queue["index"] for queue in queues if queue["started"]] == list(range(FIRST_REQUEST + CPUS))


@pytest.mark.slow
def test_a_device_of_128_queues(bed: Bed) -> None:
    backend = bed.serve("0:0=memory:64M", queues=128)
    guest = bed.tiny(*bed.attach(backend, queues=128, size=64, properties={"packed": "on"}), cpus=CPUS)
    check_many_queues(backend, 128)
    rings = Rings(CPUS, 64, event_idx=True, indirect=True, packed=True)
    check_integrity(Running(rings, backend, guest, disks(guest), bed.folder), (0, 0))
    assert all(queue["requests"] for queue in backend.queues()[FIRST_REQUEST : FIRST_REQUEST + CPUS])


def test_fewer_queues_are_noticed(plain: Running) -> None:
    """Broken: one request queue only."""
    with pytest.raises(AssertionError, match="3 queues"):
        check_many_queues(plain.backend, 128)


def test_another_engine_is_noticed(plain: Running) -> None:
    """Broken: io_uring instead of epoll."""
    with pytest.raises(AssertionError, match="io_uring"):
        check_engine(plain, RICH)


def test_direct_chains_are_not_taken_for_indirect_ones(plain: Running) -> None:
    """Broken: indirect_desc is off."""
    with pytest.raises(AssertionError, match="chains in flight"):
        check_descriptors_in_flight(plain, dataclasses.replace(PLAIN, indirect=True))


def test_a_torn_write_is_noticed(plain: Running) -> None:
    """Broken: the fourth write to the disk loses half of its data and reports success."""
    with pytest.raises(AssertionError, match="large writes, small reads"):
        check_integrity(plain, (0, 2))
