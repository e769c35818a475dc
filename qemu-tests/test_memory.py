# SPDX-License-Identifier: Apache-2.0
"""Guest memory that is plugged in while the guest runs: buffers in it must be reached like any other.

More regions come than a vhost-user front end may have without CONFIGURE_MEM_SLOTS (8).
"""

from __future__ import annotations

import time

import pytest
from backend import Bed
from guest_disks import disks, make_data, read_hash

from vhost_scsi.qemu import Guest

MIB = 1 << 20
DIMM_MIB = 128  # x86 hot-plugs memory in blocks of this size
DIMMS = 10
BOOT_MIB = 512
DATA_MIB = 32
MOVABLE = "echo online_movable >/sys/devices/system/memory/auto_online_blocks"


def plug(guest: Guest, number: int, *, share: bool) -> None:
    """One more DIMM; returns when Linux uses it."""
    before = memory_mib(guest)
    guest.qmp.execute(
        "object-add",
        **{"qom-type": "memory-backend-memfd", "id": f"plug{number}", "size": DIMM_MIB * MIB, "share": share},
    )
    guest.qmp.execute("device_add", driver="pc-dimm", id=f"dimm{number}", memdev=f"plug{number}")
    deadline = time.monotonic() + 30
    while memory_mib(guest) < before + DIMM_MIB - 8:
        assert time.monotonic() < deadline, "the guest does not take the memory"
        time.sleep(0.1)


def memory_mib(guest: Guest) -> int:
    return int(guest.check("awk '/MemTotal/ { print $2 }' /proc/meminfo")) // 1024


def check_plugged_memory(bed: Bed, number: int, *, share: bool) -> None:
    """Data that lie in memory which was not there at boot come to the disk and back."""
    image = bed.disk("disk", 64 * MIB)
    backend = bed.serve(f"0:0={image}")
    slots = ("-m", f"{BOOT_MIB}M,slots={DIMMS},maxmem=4G")
    guest = bed.tiny(*bed.attach(backend), *slots, memory_mib=BOOT_MIB)
    guest.check(MOVABLE)  # user pages go there first
    for each in range(number):
        plug(guest, each, share=share)
    disk = disks(guest)[0, 0]
    made = make_data(guest, DATA_MIB)
    # Straight from the pages of that file: no copy stands between them and the device.
    guest.check(f"dd if=/tmp/data of={disk.block} bs=1M oflag=direct", 300)
    assert read_hash(guest, disk, DATA_MIB) == made, "data in plugged memory"
    assert not [queue for queue in backend.queues() if queue["broken"]], "a ring is broken"


def test_plugged_memory_is_used_for_io(bed: Bed) -> None:
    check_plugged_memory(bed, DIMMS, share=True)


def test_memory_that_we_cannot_see_is_noticed(bed: Bed) -> None:
    """Broken: the plugged memory is private to QEMU."""
    with pytest.raises(AssertionError, match="data in plugged memory"):
        check_plugged_memory(bed, 3, share=False)
