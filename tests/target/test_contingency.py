# SPDX-License-Identifier: Apache-2.0
"""QERR and auto contingent allegiance (SAM-5 5.9) over two virtio-scsi devices: what both planes do together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.live import TEST_UNIT_READY, Host, Live, check, inquiry, mode_select10, mode_sense10, read10
from vhost_scsi.scsi import sense
from vhost_scsi.scsi.mode_pages import CONTROL
from vhost_scsi.scsi.task import Status
from vhost_scsi.target import Unit
from vhost_scsi.virtqueue.scsi_driver import CommandResult
from vhost_scsi.virtqueue.virtio_scsi import ControlResponse, Response, TaskAttr, TaskManagement

SLOW = "delay(read=20s):memory:1M"
END = 1 << 11  # blocks
COMPLETE = ControlResponse.FUNCTION_COMPLETE


@pytest.fixture
def live(make_live: Callable[[str, int], Live]) -> Live:
    """One plane: what the engines differ in is not to be seen here."""
    return make_live("epoll", 2)


def naca(cdb: bytes) -> bytes:
    return cdb[:-1] + b"\x04"


def beyond(*, establishes: bool = False) -> bytes:
    """A read that ends with CHECK CONDITION in C."""
    return naca(read10(END, 1)) if establishes else read10(END, 1)


@contextmanager
def two_hosts(live: Live, url: str, **control: int) -> Iterator[tuple[Unit, Host, Host]]:
    """The unit, whose Control page says so, and two initiators without a pending unit attention."""
    unit = live.unit(url)
    one, two = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="two")
    with one.connect() as here, two.connect() as there:
        here.ready()
        here.ok(*mode_select10(CONTROL.build({**CONTROL.defaults, **control})))
        here.ready()
        there.ready()
        yield unit, here, there
        live.wait_for(lambda: live.run(unit.gate.read) == 0, "an open gate")


def ended(result: CommandResult) -> int:
    """Response or status."""
    return result.status if result.response == Response.OK else -result.response


@pytest.mark.parametrize(("qerr", "tst", "tas"), [(1, 0, 0), (1, 0, 1), (1, 1, 0), (3, 0, 0)])
def test_a_check_condition_ends_the_commands_that_qerr_says(live: Live, qerr: int, tst: int, tas: int) -> None:
    """What was in the store ends before the CHECK CONDITION does; the other nexus learns of it (SPC-5 7.5.10)."""
    everybodys = qerr == 1 and not tst
    with two_hosts(live, SLOW, qerr=qerr, tst=tst, tas=tas) as (_, here, there):
        mine, theirs = here.send(read10(0, 1), in_len=512, queue=1), there.send(read10(1, 1), in_len=512)
        live.wait_for(lambda: live.in_flight() == 2, "the reads")
        here.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, beyond(), in_len=512)
        assert ended(here.wait(mine)) == -Response.ABORTED
        if everybodys:
            assert ended(there.wait(theirs)) == (Status.TASK_ABORTED if tas else -Response.ABORTED)
            if not tas:
                there.fails(sense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR, TEST_UNIT_READY)
        else:
            assert there.manage(TaskManagement.QUERY_TASK, theirs) == ControlResponse.FUNCTION_SUCCEEDED
            there.manage(TaskManagement.ABORT_TASK, theirs)
        there.ok(TEST_UNIT_READY)
        here.ok(TEST_UNIT_READY)


def test_with_qerr_zero_nobody_else_notices(live: Live) -> None:
    with two_hosts(live, SLOW) as (_, here, there):
        theirs = there.send(read10(1, 1), in_len=512)
        live.wait_for(lambda: live.in_flight() == 1, "the read")
        here.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, beyond(), in_len=512)
        assert there.manage(TaskManagement.QUERY_TASK, theirs) == ControlResponse.FUNCTION_SUCCEEDED
        there.manage(TaskManagement.ABORT_TASK, theirs)


@pytest.mark.parametrize("tst", [0, 1])
def test_an_aca_condition_keeps_others_out_until_it_is_cleared(live: Live, tst: int) -> None:
    with two_hosts(live, "memory:1M", tst=tst) as (_, here, there):
        here.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, beyond(establishes=True), in_len=512)
        # Commands of both planes; SAM-5 5.9.3.
        for cdb in (read10(0, 1), inquiry(36), TEST_UNIT_READY):
            assert ended(here.command(cdb, in_len=512)) == Status.ACA_ACTIVE
            assert ended(there.command(cdb, in_len=512)) == (Status.GOOD if tst else Status.BUSY)
            assert ended(there.command(naca(cdb), in_len=512)) == (Status.GOOD if tst else Status.ACA_ACTIVE)
        here.ok(read10(0, 1), in_len=512, attribute=TaskAttr.ACA)
        assert there.manage(TaskManagement.CLEAR_ACA) == COMPLETE  # it has none
        assert ended(here.command(TEST_UNIT_READY)) == Status.ACA_ACTIVE
        assert here.manage(TaskManagement.CLEAR_ACA) == COMPLETE
        for host in (here, there):
            host.ok(read10(0, 1), in_len=512)


def test_what_is_in_flight_ends_before_the_check_condition(live: Live) -> None:
    with two_hosts(live, "delay(read=500ms):memory:1M") as (_, here, there):
        mine, theirs = here.send(read10(0, 1), in_len=512, queue=1), there.send(read10(1, 1), in_len=512)
        live.wait_for(lambda: live.in_flight() == 2, "the reads")
        fault = here.wait(here.send(beyond(establishes=True), in_len=512))
        check(fault, sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
        assert {result.tag: ended(result) for result in here.driver.collect()} == {mine: Status.GOOD}
        assert {result.tag: ended(result) for result in there.driver.collect()} == {theirs: Status.GOOD}
        assert here.manage(TaskManagement.CLEAR_ACA) == COMPLETE


def test_the_aca_command_is_ended_by_clear_aca(live: Live) -> None:
    with two_hosts(live, SLOW) as (_, here, _there):
        here.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, beyond(establishes=True), in_len=512)
        aca = here.send(read10(0, 1), in_len=512, attribute=TaskAttr.ACA)
        live.wait_for(lambda: live.in_flight() == 1, "the read")
        # SAM-5 5.9.3: one at a time
        assert ended(here.command(TEST_UNIT_READY, attribute=TaskAttr.ACA)) == Status.ACA_ACTIVE
        assert here.manage(TaskManagement.CLEAR_ACA) == COMPLETE
        assert ended(here.wait(aca)) == -Response.ABORTED
        here.ok(TEST_UNIT_READY)


@pytest.mark.parametrize("again", [False, True])
def test_a_fault_of_the_aca_command_ends_the_condition_or_begins_another(live: Live, again: bool) -> None:
    with two_hosts(live, "memory:1M") as (_, here, there):
        here.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, beyond(establishes=True), in_len=512)
        cdb = beyond(establishes=again)
        here.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, cdb, in_len=512, attribute=TaskAttr.ACA)
        assert ended(there.command(TEST_UNIT_READY)) == (Status.BUSY if again else Status.GOOD)
        assert ended(here.command(TEST_UNIT_READY)) == (Status.ACA_ACTIVE if again else Status.GOOD)
        here.manage(TaskManagement.CLEAR_ACA)


@pytest.mark.parametrize("function", [TaskManagement.LOGICAL_UNIT_RESET, TaskManagement.I_T_NEXUS_RESET])
def test_resets_end_an_aca_condition(live: Live, function: TaskManagement) -> None:
    with two_hosts(live, "memory:1M") as (_, here, there):
        here.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, beyond(establishes=True), in_len=512)
        assert ended(there.command(TEST_UNIT_READY)) == Status.BUSY
        assert here.manage(function) == COMPLETE
        for host in (here, there):
            host.ready()
            host.ok(TEST_UNIT_READY)


def test_task_management_that_ends_tasks_leaves_an_aca_condition(live: Live) -> None:
    with two_hosts(live, "memory:1M") as (_, here, there):
        here.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, beyond(establishes=True), in_len=512)
        for host in (here, there):
            assert host.manage(TaskManagement.CLEAR_TASK_SET) == COMPLETE
            assert host.manage(TaskManagement.ABORT_TASK_SET) == COMPLETE
        assert ended(here.command(TEST_UNIT_READY)) == Status.ACA_ACTIVE
        assert here.manage(TaskManagement.CLEAR_ACA) == COMPLETE


def test_a_device_that_goes_takes_its_aca_condition_along(live: Live) -> None:
    unit = live.unit("memory:1M")
    one, two = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="two")
    with two.connect() as there:
        there.ready()
        with one.connect() as here:
            here.ready()
            here.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, beyond(establishes=True), in_len=512)
            assert ended(there.command(TEST_UNIT_READY)) == Status.BUSY
        live.wait_until_free(one)
        live.wait_for(lambda: ended(there.command(TEST_UNIT_READY)) != Status.BUSY, "the end of the condition")


def test_commands_with_naca_stay_in_c(live: Live) -> None:
    with two_hosts(live, "memory:1M") as (unit, here, _):
        before = live.run(unit.stats).escalated
        for _turn in range(10):
            here.ok(naca(read10(0, 1)), in_len=512)
        assert live.run(unit.stats).escalated == before


def test_the_control_page_says_what_may_be_changed(live: Live) -> None:
    with two_hosts(live, "memory:1M") as (_, here, _there):
        changeable = here.ok(mode_sense10(0x0A, changeable=True), in_len=252)[8:]
        assert CONTROL.field(changeable, "qerr") == 3
        reserved = CONTROL.build({**CONTROL.defaults, "qerr": 2})
        here.fails(sense.INVALID_FIELD_IN_PARAMETER_LIST, *mode_select10(reserved))


@pytest.mark.parametrize("qerr", [0, 1, 3])
def test_many_faults_of_both_nexuses_lose_no_command(live: Live, qerr: int) -> None:
    with two_hosts(live, "delay(read=1ms):memory:1M", qerr=qerr) as (_, here, there):
        for turn in range(12):
            sent = []
            for n in range(24):
                for host in (here, there):
                    cdb = beyond() if n % 8 == turn % 8 else read10(n, 1)
                    sent.append((host, host.send(cdb, in_len=512, queue=n % 4)))
            ends = {ended(host.wait(tag)) for host, tag in sent}
            assert ends <= {Status.GOOD, Status.CHECK_CONDITION} | ({-Response.ABORTED} if qerr else set())
            assert Status.CHECK_CONDITION in ends
            for host in (here, there):
                host.ready()
