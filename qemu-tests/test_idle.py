# SPDX-License-Identifier: Apache-2.0
"""Idle costs nothing: a guest that is attached and leaves its disk alone costs our process no time.

The guest itself is awake meanwhile (its timer ticks), which must not reach us.
"""

from __future__ import annotations

import pytest
from backend import Backend, Bed, Cost
from guest_disks import disks

from vhost_scsi.qemu import Guest

SECONDS = 10.0
TICKS, SWITCHES = 1, 10  # in SECONDS


def check_idle(cost: Cost) -> None:
    assert cost.ticks <= TICKS, f"{cost.ticks} ticks of CPU time"
    assert cost.switches <= SWITCHES, f"{cost.switches} context switches"


WATCHDOG_RESTS = 21  # s; the stall watchdog looks every five, and no more when it has found nothing three times


def settle(guest: Guest, backend: Backend, seconds: int = 2) -> None:
    """Nothing of the boot goes on: what the guest wanted to write and read is done."""
    guest.check(f"sync; sleep {seconds}")
    assert not backend.tasks()


@pytest.mark.parametrize("engine", ["io_uring", pytest.param("epoll", marks=pytest.mark.slow)])
def test_an_idle_guest_costs_nothing(bed: Bed, engine: str) -> None:
    """Two workers, four queues, both sorts of threads; the default polling."""
    options = ["--workers", "2", "--engine", engine]
    backend = bed.serve(f"0:0={bed.disk('disk', 64 << 20)}", "0:1=memory:64M", queues=4, options=options)
    guest = bed.tiny(*bed.attach(backend, queues=4), cpus=4)
    disk = disks(guest)[0, 0].block
    guest.check(f"dd if=/dev/zero of={disk} bs=64k count=64 oflag=direct")  # threads have worked, not just been made
    settle(guest, backend, WATCHDOG_RESTS)
    guest.send("for n in $(seq 30); do sleep 0.5; : >/tmp/awake; done &")
    check_idle(backend.cost(SECONDS))
    # The negative twin. Broken: the guest reads one block now and then.
    guest.send(f"for n in $(seq 40); do dd if={disk} of=/dev/null count=1 iflag=direct 2>/dev/null; sleep 0.2; done &")
    with pytest.raises(AssertionError, match="context switches"):
        check_idle(backend.cost(SECONDS / 2))


def test_a_back_end_that_polls_is_noticed(bed: Bed) -> None:
    """Broken: --poll always."""
    backend = bed.serve("0:0=memory:64M", options=["--poll", "always"])
    guest = bed.tiny(*bed.attach(backend))
    settle(guest, backend)
    with pytest.raises(AssertionError, match="ticks of CPU time"):
        check_idle(backend.cost(1.0))
