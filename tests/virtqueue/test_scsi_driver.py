# SPDX-License-Identifier: Apache-2.0
"""ScsiDriver against a small in-process virtio-scsi device: commands, framing, task management, events, waiting.

The device here keeps a byte array per (target, LUN): opcode 0x2A writes dataout at the offset in CDB bytes 2 to 5, 0x28
reads. That is no SCSI, but it tells whether bytes arrive where they should.
"""

import os
import struct
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhost_scsi.virtqueue.memory import GuestMemory, OutOfGuestMemoryError
from vhost_scsi.virtqueue.ring_driver import QueueFullError
from vhost_scsi.virtqueue.scsi_driver import CommandTimeoutError, QueuePort, ScsiDriver, cut, eventfd_notifier
from vhost_scsi.virtqueue.split_driver import SplitDriver
from vhost_scsi.virtqueue.virtio_scsi import (
    REPORT_LUNS,
    AnResponse,
    AsyncEvent,
    ControlResponse,
    ControlType,
    Event,
    EventType,
    LunAddress,
    Response,
    TaskManagement,
    WireError,
)

WRITE, READ, FAIL = 0x2A, 0x28, 0xFF


def cdb(opcode, offset=0):
    return struct.pack(">BBI", opcode, 0, offset)


class Target:
    """The device side of the three kinds of queue. `process` does all there is to do."""

    def __init__(self, device_class, queues, cdb_size=32, sense_size=96):
        self.rings = [device_class(queue) for queue in queues]
        self.control, self.event, *self.requests = self.rings
        self.cdb_size, self.sense_size = cdb_size, sense_size
        self.disk = bytearray(1 << 16)
        self.seen = []
        self.paused = False
        self.control_answer = None

    def process(self):
        if self.paused:
            return
        for ring in self.requests:
            while (chain := ring.take()) is not None:
                self.run(ring, *chain)
        while (chain := self.control.take()) is not None:
            head, readable, writable = chain
            self.seen.append(self.control.read(readable))
            answer = bytes([10]) if self.seen[-1][:4] == bytes(4) else struct.pack("<IB", 16, 0)
            answer = answer if self.control_answer is None else self.control_answer
            self.control.use(head, self.control.write(writable, answer))
        for ring in self.rings:
            ring.want_kick()

    def run(self, ring, head, readable, writable):
        request = ring.read(readable)
        lun, tag, *_ = struct.unpack_from("<8sQBBB", request)
        command, data = request[19 : 19 + self.cdb_size], request[19 + self.cdb_size :]
        self.seen.append((lun, tag, command, data))
        opcode, _, offset = struct.unpack_from(">BBI", command)
        room = sum(length for _, length in writable) - 12 - self.sense_size
        found, status, sense, response = b"", 0, b"", 0
        if opcode == WRITE:
            self.disk[offset : offset + len(data)] = data
        elif opcode == READ:
            found = bytes(self.disk[offset : offset + room])
        elif opcode == FAIL:
            status, sense = 2, b"\x72\x05\x20\x00"
        else:
            response = 3
        answer = struct.pack("<IIHBB", len(sense), room - len(found), 0, status, response)
        answer += sense.ljust(self.sense_size, b"\0") + found
        ring.use(head, ring.write(writable, answer))

    def report(self, data):
        head, _, writable = self.event.take()
        self.event.use(head, self.event.write(writable, data))


class Bench:
    """A driver and its target in one memory."""

    def __init__(self, accessors, device_class, *, size=16, queues=1, cdb_size=32, sense_size=96, **options):
        self.memory = GuestMemory.create(1 << 20)
        rings = [SplitDriver(self.memory, size, accessors=accessors(), **options) for _ in range(queues + 2)]
        self.target = Target(device_class, rings, cdb_size, sense_size)
        control, event, *requests = [QueuePort(ring, self.target.process) for ring in rings]
        self.driver = ScsiDriver(
            self.memory, requests, control=control, event=event, cdb_size=cdb_size, sense_size=sense_size
        )
        self.idle_bytes = self.memory.free_bytes


@pytest.fixture
def make_bench(plain_accessors, reference_device):
    made = []

    def make(**options):
        made.append(Bench(plain_accessors, reference_device, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.memory.close()


@pytest.fixture
def bench(make_bench):
    return make_bench()


def test_what_was_written_is_read_back(bench):
    result = bench.driver.command(3, 5, cdb(WRITE, 100), b"hello")
    assert (result.response, result.status, result.residual, result.data) == (Response.OK, 0, 0, b"")
    assert bench.driver.command(3, 5, cdb(READ, 98), in_len=9).data == b"\0\0hello\0\0"
    assert bench.target.seen[0][0] == LunAddress(3, 5).encode()
    assert bench.target.seen[0][2:] == (cdb(WRITE, 100).ljust(32, b"\0"), b"hello")


def test_sense_comes_back_as_long_as_it_is(bench):
    result = bench.driver.command(0, 0, cdb(FAIL))
    assert (result.status, result.sense) == (2, b"\x72\x05\x20\x00")


def test_a_read_that_ends_early_has_a_residual(bench):
    result = bench.driver.command(0, 0, cdb(READ, (1 << 16) - 4), in_len=10)
    assert (result.residual, result.data, result.written) == (6, bytes(4), 112)


def test_a_response_code_is_handed_through(bench):
    assert bench.driver.command(0, 0, cdb(0x77)).response == Response.BAD_TARGET


def test_other_cdb_and_sense_sizes(make_bench):
    bench = make_bench(cdb_size=16, sense_size=18)
    bench.driver.command(0, 0, cdb(WRITE), b"x")
    assert bench.driver.command(0, 0, cdb(READ), in_len=1).data == b"x"
    assert bench.driver.command(0, 0, cdb(FAIL)).sense == b"\x72\x05\x20\x00"


def test_other_addresses(bench):
    bench.driver.wait(bench.driver.submit(REPORT_LUNS, cdb(READ)))
    bench.driver.wait(bench.driver.submit(b"\xff" * 8, cdb(READ)))
    assert [seen[0] for seen in bench.target.seen] == [REPORT_LUNS.encode(), b"\xff" * 8]


@settings(deadline=None)
@given(
    data=st.binary(min_size=1, max_size=2000),
    cuts=st.lists(st.integers(0, 2200), max_size=12),
    indirect=st.sampled_from([None, False, True]),
)
def test_bytes_arrive_whatever_the_framing(plain_accessors, reference_device, data, cuts, indirect):
    bench = Bench(plain_accessors, reference_device)
    driver = bench.driver
    driver.wait(driver.submit(LunAddress(0, 0), cdb(WRITE, 7), data, out_cuts=cuts, indirect=indirect))
    assert bench.target.disk[7 : 7 + len(data)] == data
    tag = driver.submit(LunAddress(0, 0), cdb(READ, 7), in_len=len(data), in_cuts=cuts, indirect=indirect)
    assert driver.wait(tag).data == data
    assert bench.memory.free_bytes == bench.idle_bytes
    bench.memory.close()


@given(total=st.integers(1, 100), cuts=st.lists(st.integers(-5, 110)))
def test_cut_pieces_are_the_whole(total, cuts):
    pieces = cut(total, cuts)
    assert sum(pieces) == total
    assert all(piece > 0 for piece in pieces)


def test_nothing_has_no_pieces():
    assert cut(0, [0]) == []


def test_commands_over_several_queues_come_back_with_their_tags(make_bench):
    bench = make_bench(queues=3)
    tags = [
        bench.driver.submit(LunAddress(0, 0), cdb(WRITE, n), bytes([n + 1]), queue=n % 3, publish=False)
        for n in range(9)
    ]
    assert bench.target.seen == []
    assert bench.driver.pending == 9
    bench.driver.publish()
    assert sorted(result.tag for result in bench.driver.collect()) == sorted(tags)
    assert bench.driver.pending == 0
    assert bench.target.disk[:9] == bytes(range(1, 10))


def test_waiting_for_one_leaves_the_others_to_collect(bench):
    first = bench.driver.submit(LunAddress(0, 0), cdb(READ), in_len=1)
    second = bench.driver.submit(LunAddress(0, 0), cdb(READ), in_len=1)
    assert bench.driver.wait(second).tag == second
    assert [result.tag for result in bench.driver.collect()] == [first]


def test_a_tag_in_use_or_unknown_is_refused(bench):
    bench.target.paused = True
    bench.driver.submit(LunAddress(0, 0), cdb(READ), tag=7)
    with pytest.raises(ValueError, match="in use"):
        bench.driver.submit(LunAddress(0, 0), cdb(READ), tag=7)
    with pytest.raises(ValueError, match="no command"):
        bench.driver.wait(8)


def test_own_tags_avoid_those_in_use(bench):
    bench.target.paused = True
    assert bench.driver.submit(LunAddress(0, 0), cdb(READ), tag=1) == 1
    assert bench.driver.submit(LunAddress(0, 0), cdb(READ)) == 2


def test_a_command_that_cannot_be_queued_leaves_nothing_behind(make_bench):
    bench = make_bench(size=2, indirect=False)
    bench.target.paused = True
    bench.driver.submit(LunAddress(0, 0), cdb(READ))
    free = bench.memory.free_bytes
    with pytest.raises(QueueFullError):
        bench.driver.submit(LunAddress(0, 0), cdb(READ))
    with pytest.raises(ValueError, match="elements"):
        bench.driver.submit(LunAddress(0, 0), cdb(READ), out_cuts=[1, 2, 3])
    with pytest.raises(OutOfGuestMemoryError):
        bench.driver.submit(LunAddress(0, 0), cdb(READ), in_len=1 << 21)
    assert (bench.memory.free_bytes, bench.driver.pending) == (free, 1)


def test_no_answer_is_a_timeout_and_a_late_one_still_comes(bench):
    bench.target.paused = True
    tag = bench.driver.submit(LunAddress(0, 0), cdb(READ))
    with pytest.raises(CommandTimeoutError, match=f"tag {tag}"):
        bench.driver.wait(tag, 0.01)
    bench.target.paused = False
    bench.target.process()
    assert bench.driver.wait(tag).response == Response.OK


def test_an_answer_without_a_response_header_is_a_wire_error(bench):
    bench.target.paused = True
    tag = bench.driver.submit(LunAddress(0, 0), cdb(READ))
    ring = bench.target.requests[0]
    ring.use(ring.take()[0], 107)
    with pytest.raises(WireError, match=f"tag {tag}"):
        bench.driver.wait(tag)
    assert bench.memory.free_bytes == bench.idle_bytes


def test_task_management_is_sent_and_answered(bench):
    answer = bench.driver.task_management(TaskManagement.ABORT_TASK, LunAddress(2, 1), 99)
    assert answer == ControlResponse.FUNCTION_SUCCEEDED
    assert bench.target.seen == [struct.pack("<II8sQ", 0, 0, LunAddress(2, 1).encode(), 99)]
    assert bench.memory.free_bytes == bench.idle_bytes


def test_a_task_management_function_without_response_is_a_wire_error(bench):
    bench.target.control_answer = b""
    with pytest.raises(WireError, match="no response"):
        bench.driver.task_management(TaskManagement.QUERY_TASK, LunAddress(0, 0))


def test_the_late_answer_to_an_earlier_function_is_not_taken_for_the_next(bench):
    bench.target.paused = True
    with pytest.raises(CommandTimeoutError):
        bench.driver.task_management(TaskManagement.QUERY_TASK, LunAddress(0, 0), timeout=0.01)
    bench.target.paused = False
    bench.target.control_answer = bytes([9])
    bench.target.process()
    bench.target.control_answer = bytes([4])
    assert bench.driver.task_management(TaskManagement.ABORT_TASK, LunAddress(0, 0)) == 4
    assert bench.memory.free_bytes == bench.idle_bytes


def test_a_full_control_queue_leaves_nothing_behind(make_bench):
    bench = make_bench(size=1, indirect=False)
    with pytest.raises(ValueError, match="2 elements"):
        bench.driver.task_management(TaskManagement.QUERY_TASK, LunAddress(0, 0))
    bench = make_bench(size=2, indirect=False)
    bench.target.paused = True
    with pytest.raises(CommandTimeoutError):
        bench.driver.task_management(TaskManagement.QUERY_TASK, LunAddress(0, 0), timeout=0.01)
    free = bench.memory.free_bytes
    with pytest.raises(QueueFullError):
        bench.driver.task_management(TaskManagement.QUERY_TASK, LunAddress(0, 0))
    assert bench.memory.free_bytes == free


def test_notifications_are_asked_for(bench):
    answer = bench.driver.notification_request(ControlType.AN_QUERY, LunAddress(0, 0), AsyncEvent.MEDIA_CHANGE)
    assert answer == AnResponse(16, 0)
    assert bench.target.seen == [struct.pack("<I8sI", 1, LunAddress(0, 0).encode(), 16)]


def test_events_come_and_their_buffers_go_back(bench):
    bench.driver.post_events(4)
    event = Event(EventType.PARAM_CHANGE, LunAddress(0, 3).encode(), 0x092A)
    for _ in range(10):
        bench.target.report(event.build())
        assert bench.driver.wait_event() == [event]
    assert bench.target.event.available == 4
    assert bench.driver.wait_event(0.01) == []


def test_reset_takes_everything_back(bench):
    bench.target.paused = True
    tags = [bench.driver.submit(LunAddress(0, 0), cdb(READ), in_len=9) for _ in range(3)]
    bench.driver.post_events(2)
    with pytest.raises(CommandTimeoutError):
        bench.driver.task_management(TaskManagement.QUERY_TASK, LunAddress(0, 0), timeout=0.01)
    assert bench.driver.reset() == tags
    assert (bench.memory.free_bytes, bench.driver.pending) == (bench.idle_bytes, 0)


def test_a_driver_without_control_and_event_queue_says_so(bench):
    alone = ScsiDriver(bench.memory, bench.driver.requests)
    with pytest.raises(ValueError, match="no control queue"):
        alone.task_management(TaskManagement.QUERY_TASK, LunAddress(0, 0))
    with pytest.raises(ValueError, match="no event queue"):
        alone.events()
    assert alone.reset() == []


@pytest.fixture
def eventfds():
    fds = [os.eventfd(0), os.eventfd(0)]
    yield fds
    for fd in fds:
        os.close(fd)


def test_kick_and_call_travel_by_eventfd(bench, eventfds):
    kick, call = eventfds
    port = bench.driver.requests[0]
    port.notify, port.call_fd = eventfd_notifier(kick), call
    ring = bench.target.requests[0]

    def serve():
        for _ in range(20):
            os.eventfd_read(kick)
            head, readable, writable = ring.take()
            ring.want_kick()
            before = ring.interrupts
            bench.target.run(ring, head, readable, writable)
            if ring.interrupts > before:
                os.eventfd_write(call, 1)

    # daemon: when a kick is lost the test fails, and the server must not keep the process alive
    server = threading.Thread(target=serve, daemon=True)
    server.start()
    for number in range(20):
        bench.driver.command(0, 0, cdb(WRITE, number), bytes([number + 1]), timeout=30)
    server.join()
    assert bench.target.disk[:20] == bytes(range(1, 21))
    assert port.kicks == 20


def test_a_spurious_call_is_no_answer(bench, eventfds):
    bench.target.paused = True
    bench.driver.requests[0].call_fd = eventfds[1]
    os.eventfd_write(eventfds[1], 1)
    before = time.monotonic()
    with pytest.raises(CommandTimeoutError):
        bench.driver.command(0, 0, cdb(READ), timeout=0.05)
    assert time.monotonic() - before >= 0.05
