# SPDX-License-Identifier: Apache-2.0
"""Disks that come, go, grow and are exchanged under a running Linux, which follows by itself.

One guest, many checks in one order. The negative twin is in the same boot: a controller that was told not to negotiate
hot plug and parameter changes has the same done to it, and must show none of it.
"""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from backend import MIB, Backend, Bed

from vhost_scsi.qemu import Guest

PATIENCE = 60.0  # seconds; an idle machine needs a tenth of one
DEAF = {"hotplug": "off", "param_change": "off"}


@dataclasses.dataclass(frozen=True, slots=True)
class Setup:
    bed: Bed
    guest: Guest
    backend: Backend
    deaf: Backend

    def run(self, command: str) -> str:
        return self.guest.check(command, 120)

    def disks(self) -> dict[str, str]:
        """By target and LUN: the name; of both controllers (the deaf one has targets from 8 on)."""
        return self._column("NAME")

    def sizes(self) -> dict[str, int]:
        """Likewise, in bytes."""
        return {place: int(size) for place, size in self._column("SIZE").items()}

    def _column(self, name: str) -> dict[str, str]:
        # A disk that goes while lsblk looks makes it end with an error; the lines that it has shown count.
        lines = [
            line.split() for line in self.guest.run(f"lsblk -dnrbo HCTL,{name} 2>/dev/null", 120).output.splitlines()
        ]
        return {words[0].split(":", 2)[2]: words[1] for words in lines if len(words) == 2 and words[0].count(":") == 3}

    def wait_for(self, condition: Callable[[dict[str, str]], bool], what: str) -> dict[str, str]:
        """Looks at lsblk until it is so; says how long that took."""
        begin = time.monotonic()
        while not condition(found := self.disks()):
            assert time.monotonic() < begin + PATIENCE, f"lsblk does not show {what}: {found}"
            time.sleep(0.1)
        print(f"lsblk shows {what} after {time.monotonic() - begin:.1f} s")
        return found


@pytest.fixture(scope="module")
def setup(shared_bed: Bed) -> Setup:
    backend = shared_bed.serve("0:0=memory:16M", queues=2)
    deaf = shared_bed.serve(f"8:0={shared_bed.disk('deaf', 8 * MIB)}")
    options = (
        *shared_bed.attach(backend, queues=2),
        *shared_bed.attach(deaf, ident="scsi1", properties=DEAF)[-4:],
    )
    made = Setup(shared_bed, shared_bed.tiny(*options), backend, deaf)
    made.wait_for(lambda found: {"0:0", "8:0"} <= found.keys(), "the disks that were there from the beginning")
    return made


def add(backend: Backend, place: str, url: Path | str) -> str:
    name: str = backend.command("lun", "add", f"{place}={url}")["name"]
    return name


def test_a_disk_that_is_added_is_found_and_works(setup: Setup) -> None:
    image = setup.bed.disk("added", 4 * MIB)
    add(setup.backend, "0:1", image)
    name = setup.wait_for(lambda found: "0:1" in found, "the new disk")["0:1"]
    setup.run(f"echo kept by the host | dd of=/dev/{name} bs=512 conv=sync oflag=direct")
    assert image.read_bytes()[:16] == b"kept by the host"


def test_a_larger_disk_is_noticed(setup: Setup) -> None:
    setup.backend.command("lun", "resize", "lun-0-1", "6M")
    setup.wait_for(lambda found: setup.sizes().get("0:1") == 6 * MIB, "the new size")


def test_a_controller_that_was_not_asked_to_tell_tells_nothing(setup: Setup) -> None:
    """Broken: hot plug and parameter changes were not negotiated."""
    add(setup.deaf, "8:1", "memory:1M")
    setup.deaf.command("lun", "resize", "lun-8-0", "9M")
    # What the other one is told meanwhile is through before we look.
    add(setup.backend, "0:2", "memory:1M")
    setup.wait_for(lambda found: "0:2" in found, "a disk of the other controller")
    assert "8:1" not in setup.disks()
    assert setup.sizes()["8:0"] == 8 * MIB


def test_what_a_guest_had_in_its_cache_is_written_before_a_disk_goes(setup: Setup) -> None:
    image = setup.bed.folder / "added.img"
    name = setup.disks()["0:1"]
    # The shell keeps the device open: nobody writes it back by closing it.
    setup.run(f"exec 9<>/dev/{name} && dd if=/dev/zero bs=64k count=16 2>/dev/null | tr '\\0' w >&9")
    assert setup.backend.command("lun", "remove", "lun-0-1", "--patience", "60")["removed"] == ["lun-0-1"]
    assert image.read_bytes()[:MIB] == b"w" * MIB
    assert "0:1" not in setup.wait_for(lambda found: "0:1" not in found, "that the disk has gone")
    setup.run("exec 9>&-")


def test_a_disk_that_goes_under_load_ends_its_requests(setup: Setup) -> None:
    add(setup.backend, "0:3", "memory:64M")
    name = setup.wait_for(lambda found: "0:3" in found, "the disk")["0:3"]
    # nocreat: a file of that name would stand in the way of the next disk.
    dd = f"dd if=/dev/zero of=/dev/{name} bs=64k count=256 oflag=direct conv=nocreat"
    load = f"while {dd} 2>/dev/null; do :; done"
    setup.run(f"( {load}; echo ended > /tmp/load ) >/dev/null 2>&1 &")
    began = sum(setup.backend.requests())
    deadline = time.monotonic() + PATIENCE
    while sum(setup.backend.requests()) < began + 20:
        assert time.monotonic() < deadline, "the load does not begin"
        time.sleep(0.1)
    setup.backend.command("lun", "remove", "0:3", "--patience", "0")
    setup.wait_for(lambda found: "0:3" not in found, "that the disk has gone")
    setup.run("for i in $(seq 300); do [ -e /tmp/load ] && break; sleep 0.2; done; cat /tmp/load")
    assert setup.backend.tasks() == []
    setup.run(f"dd if=/dev/{setup.disks()['0:0']} of=/dev/null bs=1M iflag=direct")


def test_a_disk_that_is_replaced_is_another_one(setup: Setup) -> None:
    one, two = setup.bed.disk("one", 2 * MIB), setup.bed.disk("two", 3 * MIB)
    two.write_bytes(b"two".ljust(3 * MIB, b"\0"))
    name = add(setup.backend, "5:0", one)
    device = setup.wait_for(lambda found: "5:0" in found, "the disk")["5:0"]
    before = setup.run(f"sg_inq -p 0x83 /dev/{device}")
    setup.backend.command("lun", "replace", name, str(two))
    setup.wait_for(lambda found: setup.sizes().get("5:0") == 3 * MIB, "the other disk")
    device = setup.disks()["5:0"]
    assert setup.run(f"sg_inq -p 0x83 /dev/{device}") != before
    assert setup.run(f"head -c 3 /dev/{device}").strip() == "two"
    # Not a byte of it went to the one that took its place.
    assert one.read_bytes() == bytes(2 * MIB)


def test_a_guest_that_stood_still_looks_for_itself(setup: Setup) -> None:
    """Its rings are stopped meanwhile, and more comes than it has buffers for."""
    setup.guest.qmp.execute("stop")
    for lun in range(1, 13):
        add(setup.backend, f"6:{lun}", "memory:1M")
    setup.backend.command("lun", "remove", "5:0", "--patience", "0")
    setup.guest.qmp.execute("cont")
    wanted = {f"6:{lun}" for lun in range(1, 13)}
    setup.wait_for(lambda found: wanted <= found.keys() and "5:0" not in found, "all that came and went")


def test_what_cannot_be_is_refused_and_the_guest_goes_on(setup: Setup) -> None:
    before = setup.disks()
    with pytest.raises(subprocess.CalledProcessError) as refused:
        setup.backend.command("lun", "add", "0:0=memory:1M")
    assert "is there already" in refused.value.stderr
    assert setup.disks() == before
