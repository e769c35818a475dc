# SPDX-License-Identifier: Apache-2.0
"""Task management (SAM-5 7) on tasks in both planes: in a slow store, held in Python, and still in the ring."""

from __future__ import annotations

import time

import pytest

from tests.live import TEST_UNIT_READY, End, Host, Live, check, good, inquiry, read10, set_wce, write10
from vhost_scsi.scsi import sense
from vhost_scsi.virtqueue.virtio_scsi import ControlResponse, Response, TaskAttr, TaskManagement

SLOW = "delay(read=20s,write=20s):memory:1M"
COMPLETE, SUCCEEDED = ControlResponse.FUNCTION_COMPLETE, ControlResponse.FUNCTION_SUCCEEDED
ENDING = [
    (TaskManagement.ABORT_TASK_SET, Response.ABORTED),
    (TaskManagement.CLEAR_TASK_SET, Response.ABORTED),
    (TaskManagement.LOGICAL_UNIT_RESET, Response.RESET),
    (TaskManagement.I_T_NEXUS_RESET, Response.RESET),
]


def slow_end(live: Live, **options: object) -> End:
    """LUN 0 takes 20 s for a read or write; LUN 1 is quick."""
    return live.end((0, 0, live.unit(SLOW, "slow")), (0, 1, live.unit("memory:1M", "quick")), **options)  # type: ignore[arg-type]


def start_reads(live: Live, host: Host, count: int) -> list[int]:
    tags = [host.send(read10(n, 1), in_len=512, queue=n % 4) for n in range(count)]
    live.wait_for(lambda: live.in_flight() >= count, "the reads to be in flight")
    return tags


def responses(host: Host) -> dict[int, int]:
    """What has come back without waiting."""
    return {result.tag: result.response for result in host.driver.collect()}


@pytest.mark.parametrize(("function", "response"), ENDING, ids=lambda value: getattr(value, "name", None))
def test_tasks_in_c_have_been_answered_before_the_function_is(
    live: Live, function: TaskManagement, response: Response
) -> None:
    with slow_end(live).connect() as host:
        host.ready((0, 0), (0, 1))
        tags = start_reads(live, host, 20)
        assert host.manage(function) == COMPLETE
        assert responses(host) == dict.fromkeys(tags, response)
        assert live.in_flight() == 0
        if function in (TaskManagement.ABORT_TASK_SET, TaskManagement.CLEAR_TASK_SET):
            host.ok(TEST_UNIT_READY)
        host.command(TEST_UNIT_READY, at=(0, 1))


def test_abort_task_ends_that_task_alone(live: Live) -> None:
    with slow_end(live).connect() as host:
        host.ready()
        tags = start_reads(live, host, 6)
        assert host.manage(TaskManagement.ABORT_TASK, tags[2]) == COMPLETE
        assert responses(host) == {tags[2]: Response.ABORTED}
        assert live.in_flight() == 5
        assert host.manage(TaskManagement.ABORT_TASK, tags[2]) == COMPLETE  # SAM-5 7.2: not there is no error
        host.manage(TaskManagement.ABORT_TASK_SET)


def test_an_aborted_write_touches_neither_medium_nor_buffer_any_more(live: Live) -> None:
    unit = live.unit("delay(write=700ms):memory:1M")
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        tag = host.send(write10(0, 1), b"\xee" * 512)
        live.wait_for(lambda: live.in_flight() == 1, "the write")
        assert host.manage(TaskManagement.ABORT_TASK, tag) == COMPLETE
        before = host.ok(read10(0, 1), in_len=512)
        time.sleep(0.5)
        assert host.ok(read10(0, 1), in_len=512) == before


@pytest.mark.parametrize(("function", "response"), ENDING[:2], ids=lambda value: getattr(value, "name", None))
def test_tasks_of_another_nexus(live: Live, function: TaskManagement, response: Response) -> None:
    """ABORT TASK SET leaves them alone; CLEAR TASK SET ends them, and their nexus is told so (SAM-5 7.4)."""
    unit = live.unit(SLOW)
    one, two = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="two")
    with one.connect() as here, two.connect() as there:
        here.ready()
        there.ready()
        theirs = there.send(read10(0, 1), in_len=512)
        live.wait_for(lambda: live.in_flight() == 1, "the other's read")
        ours = here.send(read10(0, 1), in_len=512)
        live.wait_for(lambda: live.in_flight() == 2, "our read")
        assert here.manage(function) == COMPLETE
        assert responses(here) == {ours: response}
        if function is TaskManagement.ABORT_TASK_SET:
            assert responses(there) == {}
            assert there.manage(TaskManagement.QUERY_TASK, theirs) == SUCCEEDED
            there.manage(TaskManagement.ABORT_TASK, theirs)
        else:
            assert responses(there) == {theirs: response}
            there.fails(sense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR, TEST_UNIT_READY)
        there.ok(TEST_UNIT_READY)
        here.ok(TEST_UNIT_READY)


def test_query_finds_tasks_in_c(live: Live) -> None:
    with slow_end(live).connect() as host:
        host.ready()
        assert host.manage(TaskManagement.QUERY_TASK_SET) == COMPLETE
        tag = start_reads(live, host, 1)[0]
        assert host.manage(TaskManagement.QUERY_TASK, tag) == SUCCEEDED
        assert host.manage(TaskManagement.QUERY_TASK, tag + 1) == COMPLETE
        assert host.manage(TaskManagement.QUERY_TASK_SET) == SUCCEEDED
        assert host.manage(TaskManagement.QUERY_TASK_SET, at=(0, 1)) == COMPLETE
        host.manage(TaskManagement.ABORT_TASK_SET)
        assert host.manage(TaskManagement.QUERY_TASK, tag) == COMPLETE


def test_query_finds_tasks_that_python_holds(live: Live) -> None:
    with slow_end(live).connect() as host:
        host.ready()
        start_reads(live, host, 1)
        ordered = host.send(read10(1, 1), in_len=512, attribute=TaskAttr.ORDERED)
        held = host.send(inquiry(36), in_len=36)
        assert host.manage(TaskManagement.QUERY_TASK, held) == SUCCEEDED
        assert host.manage(TaskManagement.QUERY_TASK, ordered) == SUCCEEDED
        host.manage(TaskManagement.ABORT_TASK_SET)
        assert host.manage(TaskManagement.QUERY_TASK, held) == COMPLETE


def test_tasks_that_are_only_in_the_avail_ring_count(live: Live) -> None:
    """SAM-5 7.1: the driver placed them before the function, whether the device has seen them or not."""
    with slow_end(live).connect() as host:
        host.ready()
        time.sleep(0.05)  # the workers sleep
        tags = [host.send(read10(n, 1), in_len=512, publish=False, queue=n % 4) for n in range(12)]
        for port in host.driver.requests:
            port.queue.publish()  # and nobody is notified
        assert host.manage(TaskManagement.ABORT_TASK_SET) == COMPLETE
        assert responses(host) == dict.fromkeys(tags, Response.ABORTED)


@pytest.mark.parametrize("function", [each for each, _ in ENDING], ids=lambda value: value.name)
def test_more_tasks_in_the_ring_than_python_takes_at_a_time(live: Live, function: TaskManagement) -> None:
    """An ORDERED task in C holds those that Python has; the rest waits in the ring for credit. All of them end."""
    with slow_end(live, credit=4, request_queues=1).connect() as host:
        host.ready()
        tags = [host.send(read10(0, 1), in_len=512, attribute=TaskAttr.ORDERED)]
        tags += [host.send(inquiry(36), in_len=36) for _ in range(90)]
        live.wait_for(lambda: live.ends[0].queue(2).stalled, "the credit's end")
        assert host.manage(function) == COMPLETE
        found = responses(host)
        assert set(found) == set(tags)
        assert set(found.values()) <= {Response.ABORTED, Response.RESET}
        host.ready()
        host.ok(inquiry(36), in_len=36)


def test_functions_without_a_unit_say_so(live: Live) -> None:
    with slow_end(live).connect() as host:
        for function in TaskManagement:
            assert host.manage(function, at=(7, 0)) == ControlResponse.BAD_TARGET
            if function is not TaskManagement.I_T_NEXUS_RESET:
                assert host.manage(function, at=(0, 99)) == ControlResponse.INCORRECT_LUN


def test_unknown_functions_are_rejected(live: Live) -> None:
    with slow_end(live).connect() as host:
        for number in (8, 0x80000000):
            assert host.driver.task_management(number, bytes([1, 0, 0x40, 0, 0, 0, 0, 0])) == (
                ControlResponse.FUNCTION_REJECTED
            )


def test_a_nexus_reset_ends_the_tasks_of_every_lun_of_that_target(live: Live) -> None:
    a, b = live.unit(SLOW, "a"), live.unit(SLOW, "b")
    with live.end((0, 0, a), (0, 1, b), (1, 0, a)).connect() as host:
        host.ready((0, 0), (0, 1), (1, 0))
        tags = [host.send(read10(0, 1), in_len=512, at=at) for at in ((0, 0), (0, 1), (1, 0))]
        live.wait_for(lambda: live.in_flight() == 3, "the reads")
        assert host.manage(TaskManagement.I_T_NEXUS_RESET) == COMPLETE
        assert responses(host) == dict.fromkeys(tags[:2], Response.RESET)
        for at in ((0, 0), (0, 1)):
            host.fails(sense.I_T_NEXUS_LOSS_OCCURRED, TEST_UNIT_READY, at=at)
        host.ok(TEST_UNIT_READY, at=(1, 0))
        host.manage(TaskManagement.ABORT_TASK, tags[2], at=(1, 0))


def test_many_functions_under_load_lose_no_task(live: Live) -> None:
    """The reads race the functions; the write of each turn is in the store until a function ends it."""
    unit = live.unit("delay(read=2ms,write=20s):memory:1M")
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        ended: dict[int, int] = {}
        sent: set[int] = set()
        writes: set[int] = set()
        for turn in range(30):
            slow = host.send(write10(turn, 1), bytes(512), queue=turn % 4)
            batch = [host.send(read10(n, 1), in_len=512, queue=n % 4) for n in range(20)]
            batch.append(host.send(inquiry(36), in_len=36))
            writes.add(slow)
            sent |= {slow, *batch}
            if turn % 2:
                assert host.manage(TaskManagement.ABORT_TASK, batch[turn % 20]) == COMPLETE
                assert host.manage(TaskManagement.ABORT_TASK, slow) == COMPLETE
                ended |= responses(host)
            else:
                assert host.manage(TaskManagement.ABORT_TASK_SET) == COMPLETE
                ended |= responses(host)
                assert set(ended) == sent
        live.wait_for(lambda: ended.update(responses(host)) or set(ended) == sent, "every answer")
        assert {ended[tag] for tag in writes} == {Response.ABORTED}
        assert {ended[tag] for tag in sent - writes} <= {Response.OK, Response.ABORTED}
        assert Response.OK in ended.values()


# ---- order ---------------------------------------------------------------------------------------------------------


def test_an_ordered_task_waits_for_older_ones_and_holds_younger_ones(live: Live) -> None:
    unit = live.unit("delay(write=700ms):memory:1M")
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        older = host.send(write10(0, 1), b"1" * 512, queue=0)
        live.wait_for(lambda: live.in_flight() == 1, "the older write")
        ordered = host.send(write10(0, 1), b"2" * 512, attribute=TaskAttr.ORDERED, queue=1)
        live.wait_for(lambda: live.in_flight() == 2, "the ordered write")
        younger = host.send(read10(0, 1), in_len=512, queue=2)
        assert good(host.wait(younger)) == b"2" * 512
        # Both were answered before it.
        assert {result.tag for result in host.driver.collect()} == {older, ordered}


def test_a_head_of_queue_task_overtakes_those_that_wait(live: Live) -> None:
    unit = live.unit("delay(write=700ms):memory:1M")
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        first = host.send(write10(0, 1), b"1" * 512, attribute=TaskAttr.ORDERED)
        live.wait_for(lambda: live.in_flight() == 1, "the ordered write")
        second = host.send(write10(0, 1), b"2" * 512, attribute=TaskAttr.ORDERED)
        live.wait_for(lambda: live.in_flight() == 2, "the second write")
        head = host.send(read10(8, 1), in_len=512, attribute=TaskAttr.HEAD_OF_QUEUE)
        good(host.wait(head))
        assert second not in {result.tag for result in host.driver.collect()}
        for tag in (first, second):
            if tag in host.driver._pending:
                good(host.wait(tag))


def test_the_gate_opens_again_after_ordered_tasks(live: Live) -> None:
    unit = live.unit()
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        for n in range(50):
            host.ok(read10(0, 1), in_len=512, attribute=TaskAttr(n % 3))
        live.wait_for(lambda: live.run(unit.gate.read) == 0, "an open gate")
        before = live.run(unit.stats).escalated
        for _ in range(10):
            host.ok(read10(0, 1), in_len=512)
        assert live.run(unit.stats).escalated == before


def test_an_aca_task_is_refused_while_no_aca_condition_is_in_effect(live: Live) -> None:
    with live.end((0, 0, live.unit())).connect() as host:
        host.ready()
        host.fails(sense.INVALID_MESSAGE_ERROR, TEST_UNIT_READY, attribute=TaskAttr.ACA)
        host.ok(read10(0, 1), in_len=512)
        result = host.command(TEST_UNIT_READY, attribute=4)
        assert result.response == Response.FAILURE


def test_commands_that_a_hold_kept_come_back_in_order(live: Live) -> None:
    """A MODE SELECT that flushes holds the unit; what arrives meanwhile runs after it, in order of arrival."""
    unit = live.unit("delay(flush=700ms):memory:1M")
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        host.ok(write10(0, 1), b"0" * 512)
        page = bytearray(20)
        page[0:2] = b"\x08\x12"
        select = host.send(bytes([0x55, 0x10, 0, 0, 0, 0, 0, 0, 28, 0]), bytes(8) + bytes(page))
        live.wait_for(lambda: live.run(unit.gate.read) != 0, "the hold")
        tags = []
        for n in range(1, 10):
            tags.append(host.send(write10(0, 1), bytes([n]) * 512))
            tags.append(host.send(read10(0, 1), in_len=512))
        results = host.drain([select, *tags])
        for n, result in enumerate(results[2::2], 1):
            assert good(result) == bytes([n]) * 512
        live.wait_for(lambda: live.run(unit.gate.read) == 0, "an open gate")


def test_abort_of_a_mode_select_that_waits_for_a_flush(live: Live) -> None:
    unit = live.unit("delay(flush=700ms):memory:1M")
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        page = bytes.fromhex("0812") + bytes(18)
        select = host.send(bytes([0x55, 0x10, 0, 0, 0, 0, 0, 0, 28, 0]), bytes(8) + page)
        live.wait_for(lambda: live.run(unit.gate.read) != 0, "the hold")
        waits = host.send(read10(0, 1), in_len=512)
        assert host.manage(TaskManagement.ABORT_TASK_SET) == COMPLETE
        assert responses(host) == {select: Response.ABORTED, waits: Response.ABORTED}
        host.ok(TEST_UNIT_READY)


# ---- fairness ------------------------------------------------------------------------------------------------------


def test_a_flood_for_python_starves_neither_another_device_nor_its_own_socket(live: Live) -> None:
    unit = live.unit()
    flood_end = live.end((0, 0, unit), name="flood")
    calm_end = live.end((0, 0, unit), name="calm")
    with flood_end.connect(queue_size=1024) as flood, calm_end.connect() as calm:
        flood.ready()
        calm.ready()
        tags = [flood.send(inquiry(36), in_len=36, publish=False, queue=n % 4) for n in range(1000)]
        flood.driver.publish()
        calm.ok(inquiry(36), in_len=36)
        assert flood.initiator.frontend.get_queue_num() == flood_end.device.num_queues
        done = len(flood.driver.collect())
        assert done < len(tags), "the flood was over before anybody could starve"
        remaining = [tag for tag in tags if tag in flood.driver._pending]
        for result in flood.drain(remaining):
            good(result)


def test_credit_comes_back(live: Live) -> None:
    with slow_end(live, credit=2).connect() as host:
        host.ready((0, 1))
        for _ in range(5):
            tags = [host.send(inquiry(36), in_len=36, at=(0, 1), queue=n % 4) for n in range(100)]
            for result in host.drain(tags):
                assert len(good(result)) == 36


def test_mode_changes_race_with_io_on_two_queues(live: Live) -> None:
    unit = live.unit()
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        for n in range(20):
            tags = [host.send(write10(m, 1), bytes([n]) * 512, queue=m % 4) for m in range(32)]
            set_wce(host, bool(n % 2), queue=n % 4)
            for result in host.drain(tags):
                good(result)
            assert host.ok(read10(0, 32), in_len=32 * 512) == bytes([n]) * 512 * 32
        check(host.command(read10(1 << 30, 1), in_len=512), sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
