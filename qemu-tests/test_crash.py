# SPDX-License-Identifier: Apache-2.0
"""Back ends that are killed while a guest writes, and started again: the guest notices nothing, and what fio wrote is
what it reads. QEMU 10 or newer, because older ones do not come back.

Each back end is stopped, looked at and then killed, so that it is known where it stood; that is printed in the end.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import os
import random
import re
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import image
import pytest
from backend import FIRST_REQUEST, Backend, Bed
from guest_disks import Disk, disks
from newer_qemu import reconnecting_qemu

from vhost_scsi.qemu import Accel, Guest

KILLS = int(os.environ.get("VHOST_SCSI_KILLS", "200"))  # of each layout
MIB = 1 << 20
SIZE = 64 * MIB
QUEUES, RING = 2, 128
PATIENCE = 120.0  # s, for a back end to be back and the guest to go on
GUEST_STEP = 120.0
PLACE, LOST = (1, 0), (1, 1)  # 0:0 is the root disk
TROUBLE = re.compile(r"I/O error|[Bb]uffer I/O|reset|[Aa]bort|[Tt]imed? ?out|Sense Key|offline|Power-on")
FIO = (
    "fio --name=verify --filename={disk} --ioengine=libaio --direct=1 --rw=randwrite --bsrange=4k-64k --iodepth=16"
    " --size=16M --verify=crc32c --verify_backlog=256 --verify_fatal=1 --do_verify=1 --output=/tmp/fio.txt"
)
# One run after the other, each over all that it wrote, until one fails or somebody says so.
WRITER = "rm -f /tmp/stop; while [ ! -e /tmp/stop ]; do {fio}; s=$?; echo $s >/tmp/status; [ $s = 0 ] || break; done"


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """How long a queue's region is before, and for, its requests (vhost-user: QueueRegionSplit, QueueRegionPacked)."""

    name: str
    header: int
    entry: int

    @property
    def stride(self) -> int:
        return (self.header + self.entry * RING + 63) // 64 * 64


SPLIT, PACKED = Layout("split", 16, 16), Layout("packed", 32, 32)


@dataclasses.dataclass(frozen=True, slots=True)
class Debian:
    layout: Layout
    guest: Guest
    backend: Backend
    disks: dict[tuple[int, int], Disk]


@pytest.fixture(scope="module")
def crash_bed(accel: Accel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    qemu = reconnecting_qemu()
    chosen = accel if accel.name == "kvm" else dataclasses.replace(accel, cpu=qemu.tcg_cpu)
    with Bed(qemu, chosen, tmp_path_factory.mktemp("bed")) as made:
        yield made


@pytest.fixture(params=[SPLIT, PACKED], ids=lambda layout: layout.name)
def debian(crash_bed: Bed, request: pytest.FixtureRequest) -> Debian:
    """Its root disk has a back end of its own, which lives."""
    layout: Layout = request.param
    number = len(list(crash_bed.folder.glob("disk-*")))
    disk, other = crash_bed.disk(f"disk-{number}", SIZE), crash_bed.disk(f"lost-{number}", SIZE)
    root = crash_bed.serve(f"0:0=overlay:{image.demo_image()}")
    # Slow enough to have requests in flight, and a worker that looks for more before it sleeps: so it is met at work.
    backend = crash_bed.serve(
        f"1:0=delay(read=20ms,write=20ms):{disk}",
        f"1:1=faulty(op=write,fault=torn,skip=40,count=1):{other}",
        queues=QUEUES,
        options=["--spin-us", "5000"],
    )
    properties = {"packed": "on"} if layout is PACKED else None
    attached = crash_bed.attach(backend, queues=QUEUES, size=RING, properties=properties)
    guest = crash_bed.start(*crash_bed.attach(root, bootindex=0, ident="root"), *attached, cpus=2)
    guest.login(PATIENCE * 4)
    mine = disks(guest)
    return Debian(layout, guest, backend, mine)


# -- where a back end stands ------------------------------------------------------------------------------------------


def inflight_memory(qemu_pid: int) -> list[bytes]:
    """What QEMU keeps for its back ends: each descriptor's whole content."""
    found: dict[int, bytes] = {}
    for each in Path(f"/proc/{qemu_pid}/fd").iterdir():
        try:
            if "vhost-scsi in flight" in os.readlink(each):
                found[each.stat().st_ino] = each.read_bytes()
        except FileNotFoundError:
            continue
    return list(found.values())


def in_flight(memory: bytes, layout: Layout) -> int:
    """Requests that a region says are in flight."""
    count = 0
    for queue in range(FIRST_REQUEST, FIRST_REQUEST + QUEUES):
        region = memory[queue * layout.stride : (queue + 1) * layout.stride]
        if struct.unpack_from("=H", region, 8)[0] == 1:
            count += sum(region[layout.header + layout.entry * entry] for entry in range(RING))
    return count


class Symbols:
    """The functions of the compiled core, by address in its file."""

    def __init__(self) -> None:
        self.path = os.path.realpath(__import__("vhost_scsi._core", fromlist=["lib"]).__file__)
        lines = subprocess.run(["nm", "--defined-only", self.path], capture_output=True, text=True, check=True).stdout
        found = sorted((int(at, 16), name) for at, kind, name in map(str.split, lines.splitlines()) if kind in "tT")
        self._at, self._names = [at for at, _ in found], [name for _, name in found]

    def name(self, pid: int, address: int) -> str:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, _, offset, _, _, *path = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if start <= address < end:
                if path and path[0] == self.path:
                    index = bisect.bisect_right(self._at, address - start + int(offset, 16)) - 1
                    return self._names[index] if index >= 0 else "core"
                return os.path.basename(path[0]) if path else "?"
        return "?"


def stopped_at(pid: int, symbols: Symbols) -> str:
    """Where the worker of a stopped process stands: a function of the core, a library, or a call into the kernel."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        if (thread / "comm").read_text().startswith("vs-worker"):
            words = (thread / "syscall").read_text().split()
            deadline = time.monotonic() + PATIENCE
            while words[0] == "running":  # it is told to stop, and has not yet
                assert time.monotonic() < deadline, "a stopped process runs on"
                words = (thread / "syscall").read_text().split()
            where = symbols.name(pid, int(words[-1], 16))
            return where if words[0] == "-1" else f"system call {words[0]}"
    return "no worker"


# -- the loop ---------------------------------------------------------------------------------------------------------


def wait_for_requests(backend: Backend, more: int) -> None:
    """Returns when the guest has sent so many requests to this process."""
    deadline = time.monotonic() + PATIENCE
    while sum(backend.requests()) < more:
        assert time.monotonic() < deadline, f"the guest does not go on:\n{backend.log.read_text()}"
        time.sleep(0.005)


def kill_often(setup: Debian, disk: Disk, kills: int) -> tuple[collections.Counter[str], int]:
    """Start fio, kill the back end again and again, let fio end. Where it stood, and how often it had requests."""
    guest, backend, symbols = setup.guest, setup.backend, Symbols()
    guest.check("dmesg -C")
    guest.check(f"({WRITER.format(fio=FIO.format(disk=disk.block))}; touch /tmp/ended) >/dev/null 2>&1 &")
    where: collections.Counter[str] = collections.Counter()
    busy, chance = 0, random.Random(1)
    for _ in range(kills):
        wait_for_requests(backend, 20)
        time.sleep(chance.random() * 0.05)
        os.kill(backend.pid, signal.SIGSTOP)
        where[stopped_at(backend.pid, symbols)] += 1
        backend.kill()
        busy += any(in_flight(memory, setup.layout) for memory in inflight_memory(guest.pid))
        backend.restart()
    wait_for_requests(backend, 20)
    guest.check("touch /tmp/stop; while [ ! -e /tmp/ended ]; do sleep 0.2; done; rm /tmp/ended", GUEST_STEP)
    return where, busy


def check_fio(guest: Guest) -> None:
    report = guest.check("cat /tmp/status /tmp/fio.txt", GUEST_STEP)
    assert report.split()[0] == "0", f"fio failed:\n{report}"
    assert "err= 0" in report, report
    said = guest.check("dmesg")
    assert not TROUBLE.search(said), f"the guest noticed:\n{said}"


@pytest.mark.slow
@pytest.mark.full_boot
@pytest.mark.timeout(14400)
def test_a_guest_does_not_notice_that_its_back_end_is_killed(debian: Debian) -> None:
    where, busy = kill_often(debian, debian.disks[PLACE], KILLS)
    print(f"\n{debian.layout.name}: {KILLS} kills, {busy} with requests in flight; the worker stood in:")
    for name, count in where.most_common():
        print(f"  {count:4} {name}")
    check_fio(debian.guest)
    assert busy >= KILLS * 3 // 4
    assert "executed again" in debian.backend.log.read_text()


@pytest.mark.slow
@pytest.mark.full_boot
@pytest.mark.timeout(3600)
def test_a_write_that_is_lost_on_the_way_is_noticed(debian: Debian) -> None:
    """Broken: one write in the middle is torn, and success is reported."""
    kill_often(debian, debian.disks[LOST], 2)
    with pytest.raises(AssertionError, match="fio failed"):
        check_fio(debian.guest)
