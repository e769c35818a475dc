# SPDX-License-Identifier: Apache-2.0
"""What a logical unit takes at most: commands at once, of all and of one initiator, the time of a store, its tries."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.live import TEST_UNIT_READY, Host, Live, inquiry, mode_select10, mode_sense10, read10, write10
from vhost_scsi.scsi import sense
from vhost_scsi.scsi.mode_pages import CONTROL, READ_WRITE_ERROR_RECOVERY
from vhost_scsi.scsi.task import Status
from vhost_scsi.virtqueue.virtio_scsi import TaskAttr, TaskManagement

SLOW = "delay(read=20s):memory:1M"


@pytest.fixture(params=[1, 2])
def live(request: pytest.FixtureRequest, make_live: Callable[[str, int], Live]) -> Live:
    """With one worker and with two, which count together."""
    return make_live("epoll", request.param)


def fill(live: Live, host: Host, count: int) -> None:
    """So many reads that stay in the store."""
    before = live.in_flight()
    for n in range(count):
        host.send(read10(n, 1), in_len=512, queue=n % 4)
    live.wait_for(lambda: live.in_flight() == before + count, "the reads")


def status_of(host: Host, cdb: bytes, in_len: int = 0, **options: int) -> int:
    return host.command(cdb, in_len=in_len, **options).status


@pytest.mark.parametrize("limit", [1, 5])
def test_one_command_more_than_a_unit_takes_is_told_so(live: Live, limit: int) -> None:
    unit = live.unit(SLOW, outstanding=limit)
    one, two = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="two")
    with one.connect() as here, two.connect() as there:
        here.ready()
        there.ready()
        fill(live, here, limit)
        for cdb in (read10(0, 1), inquiry(36), TEST_UNIT_READY):
            assert status_of(here, cdb, in_len=512) == Status.TASK_SET_FULL
            # SAM-5 5.3.1: nothing of its own will make room
            assert status_of(there, cdb, in_len=512) == Status.BUSY
        assert status_of(here, TEST_UNIT_READY, attribute=TaskAttr.ORDERED) == Status.TASK_SET_FULL
        assert here.manage(TaskManagement.ABORT_TASK_SET) == 0
        for host in (here, there):
            host.ok(inquiry(36), in_len=36)
            host.ok(TEST_UNIT_READY)
        assert live.run(unit.gate.read) == 0


def test_one_initiator_has_a_limit_of_its_own(live: Live) -> None:
    unit = live.unit(SLOW, queue_depth=3)
    one, two = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="two")
    with one.connect() as here, two.connect() as there:
        here.ready()
        there.ready()
        fill(live, here, 3)
        assert status_of(here, TEST_UNIT_READY) == Status.TASK_SET_FULL
        fill(live, there, 2)
        there.ok(TEST_UNIT_READY)
        for host in (here, there):
            host.manage(TaskManagement.ABORT_TASK_SET)


def test_what_python_holds_counts(live: Live) -> None:
    unit = live.unit(SLOW, outstanding=4)
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        fill(live, host, 1)
        host.send(read10(0, 1), in_len=512, attribute=TaskAttr.ORDERED)
        live.wait_for(lambda: live.in_flight() == 2, "the ordered read")
        for _ in range(2):
            host.send(inquiry(36), in_len=36)
        live.wait_for(lambda: live.in_flight() == 4, "what waits behind it")
        assert status_of(host, inquiry(36), in_len=36) == Status.TASK_SET_FULL
        host.manage(TaskManagement.ABORT_TASK_SET)
        host.ok(inquiry(36), in_len=36)


@pytest.mark.parametrize("interlock", [2, 3])
def test_such_a_status_may_leave_a_unit_attention(live: Live, interlock: int) -> None:
    """SPC-5 7.5.10: with UA_INTLCK_CTRL=11b it says so until REQUEST SENSE takes it."""
    unit = live.unit(SLOW, outstanding=1)
    one, two = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="two")
    with one.connect() as here, two.connect() as there:
        here.ready()
        there.ready()
        here.ok(*mode_select10(CONTROL.build({**CONTROL.defaults, "ua_intlck_ctrl": interlock})))
        there.command(bytes([3, 0, 0, 0, 252, 0]), in_len=252)  # the mode page's
        fill(live, here, 1)
        assert status_of(here, TEST_UNIT_READY) == Status.TASK_SET_FULL
        assert status_of(there, TEST_UNIT_READY) == Status.BUSY
        here.manage(TaskManagement.ABORT_TASK_SET)
        for host, code in ((here, sense.PREVIOUS_TASK_SET_FULL_STATUS), (there, sense.PREVIOUS_BUSY_STATUS)):
            if interlock == 3:
                host.fails(code, TEST_UNIT_READY)
                host.ok(bytes([3, 0, 0, 0, 252, 0]), in_len=252)
            host.ok(TEST_UNIT_READY)
        live.wait_for(lambda: live.run(unit.gate.read) == 0, "an open gate")


def test_a_store_that_takes_too_long_is_not_waited_for(live: Live) -> None:
    with live.end((0, 0, live.unit("delay(read=60s):memory:1M", command_timeout=1))).connect() as host:
        host.ready()
        host.fails(sense.COMMAND_TIMEOUT_DURING_PROCESSING, read10(0, 1), in_len=512)
        host.ok(write10(0, 1), bytes(512))


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_a_store_operation_is_tried_again_as_often_as_it_may_be(live: Live, retries: int) -> None:
    url = "faulty(op=read,lba=8-15,error=read,count=2):memory:1M"
    with live.end((0, 0, live.unit(url, retries=retries))).connect() as host:
        host.ready()
        host.ok(write10(8, 1), b"x" * 512)
        if retries < 2:
            host.fails(sense.UNRECOVERED_READ_ERROR, read10(8, 1), in_len=512)
        else:
            assert host.ok(read10(8, 1), in_len=512) == b"x" * 512
        page = host.ok(mode_sense10(0x01), in_len=252)[8:]
        for field in ("read_retry_count", "write_retry_count"):
            assert READ_WRITE_ERROR_RECOVERY.field(page, field) == retries
