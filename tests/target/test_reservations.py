# SPDX-License-Identifier: Apache-2.0
"""Reservations through real rings: what they keep out in C, what they wait for, and what they end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.live import TEST_UNIT_READY, Host, Live, mode_select10, read10, write10
from tests.scsi.reserving import basic
from vhost_scsi.scsi import sense
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.mode_pages import CONTROL
from vhost_scsi.scsi.task import Status
from vhost_scsi.virtqueue.virtio_scsi import Response, TaskManagement

BLOCK = b"\xa5" * 512
RESERVE_6, RELEASE_6 = b"\x16" + bytes(5), b"\x17" + bytes(5)
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_ANYWAY = range(7)
WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS = 1, 3


def out(action: int, kind: int = 0) -> bytes:
    return bytes([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0])


def conflicts(host: Host, cdb: bytes, data: bytes = b"", in_len: int = 0) -> None:
    result = host.command(cdb, data, in_len)
    assert (result.response, result.status) == (Response.OK, Status.RESERVATION_CONFLICT)


@contextmanager
def pairing(live: Live) -> Iterator[tuple[Host, Host]]:
    """Two initiators on a unit whose writes take a while."""
    unit = live.unit("delay(write=700ms):memory:16M")
    ends = [live.end((0, 0, unit), name=name) for name in ("one", "two")]
    with ends[0].connect() as one, ends[1].connect() as two:
        one.ready()
        two.ready()
        yield one, two


def registered(one: Host, two: Host) -> None:
    one.ok(out(REGISTER), basic(0, 1))
    two.ok(out(REGISTER), basic(0, 2))


def test_an_exclusive_access_reservation_keeps_the_other_out_until_it_is_released(live: Live) -> None:
    with pairing(live) as (one, two):
        registered(one, two)
        one.ok(out(RESERVE, EXCLUSIVE_ACCESS), basic(1))
        conflicts(two, read10(0, 1), in_len=512)
        conflicts(two, write10(0, 1), BLOCK)
        two.ok(TEST_UNIT_READY)
        one.ok(write10(0, 1), BLOCK)
        one.ok(out(RELEASE, EXCLUSIVE_ACCESS), basic(1))
        assert two.ok(read10(0, 1), in_len=512) == BLOCK


def test_readers_pass_a_write_exclusive_reservation(live: Live) -> None:
    with pairing(live) as (one, two):
        registered(one, two)
        one.ok(out(RESERVE, WRITE_EXCLUSIVE), basic(1))
        assert two.ok(read10(0, 1), in_len=512) == bytes(512)
        conflicts(two, write10(0, 1), BLOCK)


def test_the_data_plane_decides_alone_whom_no_reservation_concerns(live: Live) -> None:
    """It costs the holder nothing: none of its commands goes to Python."""
    with pairing(live) as (one, two):
        registered(one, two)
        one.ok(out(RESERVE, EXCLUSIVE_ACCESS), basic(1))
        unit = live.units["disk"]
        before = live.run(unit.stats).escalated
        for _ in range(20):
            one.ok(read10(0, 1), in_len=512)
        assert live.run(unit.stats).escalated == before
        conflicts(two, read10(0, 1), in_len=512)
        assert live.run(unit.stats).escalated == before + 1


def test_preempt_waits_for_what_the_victim_has_in_flight(live: Live) -> None:
    with pairing(live) as (one, two):
        registered(one, two)
        two.ok(out(RESERVE, WRITE_EXCLUSIVE), basic(2))
        tag = two.send(write10(7, 1), BLOCK)
        live.wait_for(lambda: live.in_flight() > 0, "the write to be on its way")
        one.ok(out(PREEMPT, WRITE_EXCLUSIVE), basic(1, 2))
        # What it wrote is there for good: nothing of it comes after the status of PREEMPT.
        assert one.ok(read10(7, 1), in_len=512) == BLOCK
        assert two.wait(tag).status == Status.GOOD
        two.fails(sense.REGISTRATIONS_PREEMPTED, write10(8, 1), BLOCK)
        conflicts(two, write10(8, 1), BLOCK)


def test_preempt_and_abort_ends_what_the_victim_has_in_flight(live: Live) -> None:
    with pairing(live) as (one, two):
        registered(one, two)
        two.ok(out(RESERVE, WRITE_EXCLUSIVE), basic(2))
        tag = two.send(write10(7, 1), BLOCK)
        live.wait_for(lambda: live.in_flight() > 0, "the write to be on its way")
        one.ok(out(PREEMPT_AND_ABORT, WRITE_EXCLUSIVE), basic(1, 2))
        assert live.in_flight() == 0
        assert two.wait(tag).response == Response.ABORTED
        two.fails(sense.REGISTRATIONS_PREEMPTED, TEST_UNIT_READY)


def test_two_that_preempt_each_other_both_end(live: Live) -> None:
    with pairing(live) as (one, two):
        for _ in range(10):
            one.ready()
            two.ready()
            one.ok(out(REGISTER_ANYWAY), basic(0, 1))
            two.ready()
            two.ok(out(REGISTER_ANYWAY), basic(0, 2))
            tags = [host.send(out(PREEMPT_AND_ABORT, 1), basic(key, 3 - key)) for host, key in ((one, 1), (two, 2))]
            ends = [host.wait(tag) for host, tag in zip((one, two), tags, strict=True)]
            assert any(end.response == Response.OK and end.status == Status.GOOD for end in ends)
            winners = [end.response == Response.OK and end.status == Status.GOOD for end in ends]
            assert winners.count(True) == 1, "the second one had no registration any more, or was aborted"


def test_a_reserve_keeps_even_test_unit_ready_out(live: Live) -> None:
    with pairing(live) as (one, two):
        one.ok(RESERVE_6)
        conflicts(two, TEST_UNIT_READY)
        conflicts(two, RESERVE_6)
        two.ok(RELEASE_6)
        conflicts(two, read10(0, 1), in_len=512)
        conflicts(two, out(REGISTER), basic(0, 2))
        one.ok(read10(0, 1), in_len=512)
        one.ok(RELEASE_6)
        two.ok(TEST_UNIT_READY)


def test_the_loss_of_its_nexus_ends_a_reserve_and_no_persistent_one(live: Live) -> None:
    unit = live.unit()
    one, two = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="two")
    with two.connect() as there:
        there.ready()
        with one.connect() as here:
            here.ready()
            here.ok(RESERVE_6)
            conflicts(there, TEST_UNIT_READY)
        live.wait_until_free(one)
        there.ok(TEST_UNIT_READY)
        with one.connect() as here:
            here.ready()
            here.ok(out(REGISTER), basic(0, 1))
            here.ok(out(RESERVE, EXCLUSIVE_ACCESS), basic(1))
        live.wait_until_free(one)
        conflicts(there, read10(0, 1), in_len=512)
        with one.connect() as here:
            here.ready()
            here.ok(read10(0, 1), in_len=512)


def test_a_nexus_that_goes_while_a_reservation_waits_for_it(live: Live) -> None:
    """The fence of a nexus outlives nothing: its word in the data plane is freed after it."""
    unit = live.unit("delay(write=700ms):memory:16M")
    one, two = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="two")
    with one.connect() as here, two.connect() as there:
        here.ready()
        there.ready()
        for _ in range(3):
            there.send(write10(0, 1), BLOCK)
            live.wait_for(lambda: live.in_flight() > 0, "the write to be on its way")
            tag = here.send(RESERVE_6)
            gate = live.run(lambda: two.port.luns[0].gate)
            live.wait_for(lambda gate=gate: bool(live.run(gate.read) & GateBit.RESERVED), "the fence")
            live.call(two.port.unmap(0, 0))
            assert here.wait(tag).status == Status.GOOD
            here.ok(RELEASE_6)
            live.call(two.port.map(0, 0, unit))
            there.ready()


def test_tas_tells_the_victim_of_preempt_and_abort(live: Live) -> None:
    with pairing(live) as (one, two):
        cdb, data = mode_select10(CONTROL.build({**CONTROL.defaults, "tas": 1}))
        one.ok(cdb, data)
        two.ready()
        registered(one, two)
        tag = two.send(write10(7, 1), BLOCK)
        live.wait_for(lambda: live.in_flight() > 0, "the write to be on its way")
        one.ok(out(PREEMPT_AND_ABORT, WRITE_EXCLUSIVE), basic(1, 2))
        ended = two.wait(tag)
        assert (ended.response, ended.status) == (Response.OK, Status.TASK_ABORTED)
        tag = one.send(write10(7, 1), BLOCK)
        live.wait_for(lambda: live.in_flight() > 0, "the write to be on its way")
        two.ready()
        two.manage(TaskManagement.CLEAR_TASK_SET)
        ended = one.wait(tag)
        assert (ended.response, ended.status) == (Response.OK, Status.TASK_ABORTED)
        one.ok(TEST_UNIT_READY)
