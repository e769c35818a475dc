# SPDX-License-Identifier: Apache-2.0
"""Guests that come and go on a running back end: reboots, drivers unbound and bound, QEMU ended and killed.

What was written before must be there afterwards, and the back end must be the same process with nothing left over.
"""

from __future__ import annotations

import time

import pytest
from backend import TINY_BOOT_TIMEOUT, Backend, Bed
from guest_disks import disks, make_data, read_hash, wait_for_disks, write
from initrd import READY

from vhost_scsi.qemu import Guest, QemuDied

MIB = 1 << 20
PLACE = (0, 0)
DRIVER = "/sys/bus/virtio/drivers/virtio_scsi"
BUSY = "while :; do dd if=/dev/urandom of={} bs=64k count=64 seek=512 oflag=direct conv=notrunc; done >/dev/null 2>&1 &"


def keep_busy(guest: Guest, backend: Backend) -> None:
    """Write for ever to the second half of the disk; returns when requests flow."""
    before = sum(backend.requests())
    guest.send(BUSY.format(disks(guest)[PLACE].block))
    deadline = time.monotonic() + 30
    while sum(backend.requests()) < before + 20:
        assert time.monotonic() < deadline, "no requests come"
        time.sleep(0.05)


def check_disk(guest: Guest, written: str, patience: float = 30.0) -> None:
    """The disk is there and holds at its beginning what was written once."""
    found = wait_for_disks(guest, 1, patience)
    assert PLACE in found, "the disk is gone"
    assert read_hash(guest, found[PLACE], 4) == written, "the disk has other data"


# -- reboot -----------------------------------------------------------------------------------------------------------


def check_after_reboot(guest: Guest, written: str, patience: float = 30.0) -> None:
    guest.expect(READY, TINY_BOOT_TIMEOUT)
    check_disk(guest, written, patience)


LAYOUTS = ["off", pytest.param("on", marks=pytest.mark.slow)]


def check_layout(backend: Backend, packed: str) -> None:
    """What QEMU was told is what the guest's driver made of it."""
    wanted = {"packed" if packed == "on" else "split"}
    assert {queue["layout"] for queue in backend.queues()} == wanted


@pytest.mark.parametrize("packed", LAYOUTS)
def test_a_guest_reboots_inside_one_qemu(bed: Bed, packed: str) -> None:
    """By its own command, and by the reset button while it writes; the disk works on, and so does its driver."""
    backend = bed.serve(f"0:0={bed.disk('disk', 64 * MIB)}", queues=2)
    device = bed.attach(backend, queues=2, properties={"packed": packed})
    guest = bed.tiny(*device, cpus=2, no_reboot=False)
    check_layout(backend, packed)
    pid, descriptors = guest.pid, backend.call("status")["descriptors"]
    written = make_data(guest, 4)
    write(guest, disks(guest)[PLACE])
    guest.send("reboot")
    check_after_reboot(guest, written)
    keep_busy(guest, backend)
    guest.reset()
    check_after_reboot(guest, written)
    check_layout(backend, packed)
    again = make_data(guest, 4)
    write(guest, disks(guest)[PLACE])
    check_disk(guest, again)
    assert guest.pid == pid
    assert backend.call("status")["descriptors"] <= descriptors + 2
    assert not [queue for queue in backend.queues() if queue["broken"]]


def test_a_disk_that_does_not_survive_the_reboot_is_noticed(bed: Bed) -> None:
    """Broken: the back end is killed before the guest reboots."""
    backend = bed.serve(f"0:0={bed.disk('disk', 64 * MIB)}")
    guest = bed.tiny(*bed.attach(backend), no_reboot=False)
    written = make_data(guest, 4)
    write(guest, disks(guest)[PLACE])
    bed.abandon(backend)
    guest.reset()  # a reboot from its shell would wait for the disk's cache to be flushed
    # 7.2 gives up when the firmware starts the device; a QEMU that can reconnect goes on without a disk.
    with pytest.raises((QemuDied, AssertionError), match=r"vhost|the disk is gone"):
        check_after_reboot(guest, written, patience=2)


# -- unbind and bind --------------------------------------------------------------------------------------------------


def check_rebind(guest: Guest, backend: Backend, written: str, *, bind: bool = True) -> None:
    """Without its driver the disk is gone and the rings stand still; with it both are back."""
    guest.check(f"echo virtio0 >{DRIVER}/unbind")
    assert not disks(guest)
    assert not [queue for queue in backend.queues() if queue["started"]], "rings run without a driver"
    if bind:
        guest.check(f"echo virtio0 >{DRIVER}/bind")
    check_disk(guest, written, 10 if bind else 1)
    assert all(queue["started"] and not queue["broken"] for queue in backend.queues())


@pytest.mark.parametrize("packed", LAYOUTS)
def test_the_driver_is_unbound_and_bound_in_the_guest(bed: Bed, packed: str) -> None:
    backend = bed.serve(f"0:0={bed.disk('disk', 64 * MIB)}")
    guest = bed.tiny(*bed.attach(backend, properties={"packed": packed}))
    check_layout(backend, packed)
    written = make_data(guest, 4)
    write(guest, disks(guest)[PLACE])
    for _ in range(3):
        check_rebind(guest, backend, written)
    # The negative twin. Broken: the driver is not bound again.
    with pytest.raises(AssertionError, match="the disk is gone"):
        check_rebind(guest, backend, written, bind=False)
    # And of the layout. Broken: it is judged by the other one.
    with pytest.raises(AssertionError):
        check_layout(backend, "off" if packed == "on" else "on")


# -- QEMU again and again ---------------------------------------------------------------------------------------------


def check_next_guest(bed: Bed, backend: Backend, written: str) -> None:
    guest = bed.tiny(*bed.attach(backend))
    check_disk(guest, written)
    guest.kill()


def test_the_next_qemu_finds_what_the_last_one_wrote(bed: Bed) -> None:
    """One ends in good order; one is killed with writes in flight; each time the next one works."""
    image = bed.disk("disk", 64 * MIB)
    backend = bed.serve(f"0:0=delay(write=20ms):{image}")
    guest = bed.tiny(*bed.attach(backend))
    written = make_data(guest, 4)
    write(guest, disks(guest)[PLACE])
    assert guest.shutdown() == 0
    waits_for_nobody = backend.call("status")["descriptors"]
    guest = bed.tiny(*bed.attach(backend))
    check_disk(guest, written)
    keep_busy(guest, backend)
    deadline = time.monotonic() + 30
    while not backend.tasks():
        assert time.monotonic() < deadline, "nothing is ever in flight"
    guest.kill()
    deadline = time.monotonic() + 30
    while (status := backend.call("status"))["ports"][0]["connected"] or backend.tasks():
        assert time.monotonic() < deadline, "the back end does not see that QEMU is gone"
        time.sleep(0.05)
    assert status["descriptors"] <= waits_for_nobody, "descriptors are left over"
    check_next_guest(bed, backend, written)


def test_a_back_end_that_forgets_is_noticed(bed: Bed) -> None:
    """Broken: between two QEMUs the back end is replaced by one with an empty disk, and then by none at all."""
    backend = bed.serve("0:0=memory:64M")
    guest = bed.tiny(*bed.attach(backend))
    written = make_data(guest, 4)
    write(guest, disks(guest)[PLACE])
    guest.kill()
    other = bed.serve("0:0=memory:64M")
    with pytest.raises(AssertionError, match="the disk has other data"):
        check_next_guest(bed, other, written)
    bed.abandon(backend)
    with pytest.raises(QemuDied):
        check_next_guest(bed, backend, written)
