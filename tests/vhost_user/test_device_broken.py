# SPDX-License-Identifier: Apache-2.0
"""What a hostile driver can do to its rings: the broken rule is named, that queue stops, and nobody else does."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import pytest

from tests.live import End, Host, Live, good, inquiry, read10, write10
from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.virtqueue.layout import DescFlag
from vhost_scsi.virtqueue.split_driver import RawRing
from vhost_scsi.virtqueue.virtio_scsi import LunAddress, RequestHeader, TaskManagement

NEXT, WRITE, INDIRECT = int(DescFlag.NEXT), int(DescFlag.WRITE), int(DescFlag.INDIRECT)
QUEUE = 0  # the request queue that is broken
NO_INDIRECT = int(Feature.VERSION_1 | Feature.EVENT_IDX)


class Pieces:
    """Guest memory of a well-formed INQUIRY, for chains that are put together wrongly."""

    def __init__(self, host: Host) -> None:
        driver = host.driver
        self.raw: RawRing = driver.requests[QUEUE].queue.raw
        self.host = host
        header = RequestHeader(LunAddress(0, 0).encode(), 999, inquiry(36), 0).build(driver.cdb_size)
        self.out = driver.memory.allocate(len(header))
        self.out.view[:] = header
        self.in_ = driver.memory.allocate(12 + driver.sense_size + 36)

    def table(self, *descriptors: tuple[int, int, int, int]) -> tuple[int, int]:
        buffer = self.raw.table(descriptors)
        return buffer.address, buffer.length

    def chain(self, *descriptors: tuple[int, int, int]) -> None:
        """One chain in the ring's own table: (address, length, flags)."""
        heads = self.raw.reserve(len(descriptors))
        for n, (address, length, flags) in enumerate(descriptors):
            more = n + 1 < len(descriptors)
            self.raw.descriptor(heads[n], address, length, flags | (NEXT if more else 0), heads[n + 1] if more else 0)
        self.raw.post(heads[0])


def avail_jump(p: Pieces) -> None:
    p.raw.set_avail_idx(p.host.driver.requests[QUEUE].queue.next_avail + 129)


def head_range(p: Pieces) -> None:
    p.raw.post(128)


def next_range(p: Pieces) -> None:
    (head,) = p.raw.reserve(1)
    p.raw.descriptor(head, p.out.address, p.out.length, NEXT, 128)
    p.raw.post(head)


def loop(p: Pieces) -> None:
    (head,) = p.raw.reserve(1)
    p.raw.descriptor(head, p.out.address, p.out.length, NEXT, head)
    p.raw.post(head)


def unmapped(p: Pieces) -> None:
    p.chain((1 << 40, 64, 0), (p.in_.address, p.in_.length, WRITE))


def overflow(p: Pieces) -> None:
    p.chain(((1 << 64) - 16, 64, 0), (p.in_.address, p.in_.length, WRITE))


def readable_after_writable(p: Pieces) -> None:
    p.chain((p.in_.address, p.in_.length, WRITE), (p.out.address, p.out.length, 0))


def zero_length(p: Pieces) -> None:
    p.chain((p.out.address, 0, 0))


def request_short(p: Pieces) -> None:
    p.chain((p.out.address, 20, 0), (p.in_.address, p.in_.length, WRITE))


def response_short(p: Pieces) -> None:
    p.chain((p.out.address, p.out.length, 0), (p.in_.address, 20, WRITE))


def indirect_nested(p: Pieces) -> None:
    inner = p.table((p.out.address, p.out.length, 0, 0))
    p.chain((*p.table((*inner, INDIRECT, 0)), INDIRECT))


def indirect_length(p: Pieces) -> None:
    address, _ = p.table((p.out.address, p.out.length, 0, 0))
    p.chain((address, 17, INDIRECT))


def indirect_and_next(p: Pieces) -> None:
    p.chain((*p.table((p.out.address, p.out.length, 0, 0)), INDIRECT), (p.in_.address, p.in_.length, WRITE))


def indirect_loop(p: Pieces) -> None:
    table = p.table((p.out.address, p.out.length, NEXT, 1), (p.out.address, p.out.length, NEXT, 0))
    p.chain((*table, INDIRECT))


def indirect_next_range(p: Pieces) -> None:
    p.chain((*p.table((p.out.address, p.out.length, NEXT, 9)), INDIRECT))


def indirect_unmapped(p: Pieces) -> None:
    p.chain((1 << 41, 32, INDIRECT))


def chain_bytes(p: Pieces) -> None:
    memory = p.host.driver.memory.regions[0]
    size = memory.size & ~0xFFFF
    p.chain(*[(memory.guest_addr, size, 0)] * 100, (p.in_.address, p.in_.length, WRITE))


def indirect_refused(p: Pieces) -> None:
    table = p.table((p.out.address, p.out.length, NEXT, 1), (p.in_.address, p.in_.length, WRITE, 0))
    p.chain((*table, INDIRECT))


BREAKS: list[tuple[Callable[[Pieces], None], str]] = [
    (avail_jump, "AVAIL_JUMP"),
    (head_range, "HEAD_RANGE"),
    (next_range, "NEXT_RANGE"),
    (loop, "LOOP"),
    (unmapped, "UNMAPPED"),
    (overflow, "ADDRESS_OVERFLOW"),
    (readable_after_writable, "READABLE_AFTER_WRITABLE"),
    (zero_length, "ZERO_LENGTH"),
    (request_short, "REQUEST_SHORT"),
    (response_short, "REQUEST_SHORT"),
    (indirect_nested, "INDIRECT_NESTED"),
    (indirect_length, "INDIRECT_LENGTH"),
    (indirect_and_next, "INDIRECT_AND_NEXT"),
    (indirect_loop, "LOOP"),
    (indirect_next_range, "NEXT_RANGE"),
    (indirect_unmapped, "UNMAPPED"),
    (chain_bytes, "CHAIN_BYTES"),
]


def works(host: Host, queue: int = 0) -> None:
    host.ready(queue=queue)
    data = os.urandom(512)
    host.ok(write10(3, 1), data, queue=queue)
    assert host.ok(read10(3, 1), in_len=512, queue=queue) == data


def breaks(live: Live, end: End, host: Host, how: Callable[[Pieces], None], rule: str) -> None:
    pieces = Pieces(host)
    how(pieces)
    port = host.driver.requests[QUEUE]
    if how is not avail_jump:
        port.queue.publish()
    port.notify()
    live.wait_for(lambda: end.queue(2 + QUEUE).broken, "the broken queue")
    status = end.queue(2 + QUEUE)
    assert (status.error, status.errors, status.in_flight) == (rule, 1, 0)
    err_fd = host.initiator.vrings[2 + QUEUE].err_fd
    assert err_fd is not None
    assert os.eventfd_read(err_fd) == 1


@pytest.mark.parametrize(("how", "rule"), BREAKS, ids=[f"{how.__name__}" for how, _ in BREAKS])
def test_a_broken_rule_stops_that_queue_only(
    live: Live, caplog: pytest.LogCaptureFixture, how: Callable[[Pieces], None], rule: str
) -> None:
    caplog.set_level(logging.WARNING, "vhost_scsi.data")
    unit = live.unit()
    end, other_end = live.end((0, 0, unit)), live.end((0, 0, unit), name="other")
    with other_end.connect() as other:
        with end.connect() as host:
            works(host)
            works(other)
            breaks(live, end, host, how, rule)
            # Its other queues, its control queue, and other devices go on.
            works(host, queue=1)
            assert host.manage(TaskManagement.QUERY_TASK_SET) == 0
            works(other)
            assert host.initiator.frontend.get_queue_num() == end.device.num_queues
            assert f"request 0 stopped: the driver broke {rule}" in caplog.text
            # Nothing is taken from it any more.
            host.driver.requests[QUEUE].notify()
            assert end.queue(2 + QUEUE).errors == 1
        live.wait_until_free(end)
        with end.connect() as host:
            works(host)
            assert not end.queue(2 + QUEUE).broken
        works(other)


def test_indirect_where_it_was_not_negotiated(live: Live) -> None:
    end = live.end((0, 0, live.unit()))
    with end.connect(features=NO_INDIRECT) as host:
        works(host)
        breaks(live, end, host, indirect_refused, "INDIRECT_NOT_NEGOTIATED")
        works(host, queue=1)


def test_a_head_that_is_still_in_flight(live: Live) -> None:
    end = live.end((0, 0, live.unit("delay(read=700ms):memory:1M")))
    with end.connect() as host:
        host.ready()
        tag = host.send(read10(0, 1), in_len=512)
        live.wait_for(lambda: end.queue(2).in_flight == 1, "the read")
        queue = host.driver.requests[QUEUE].queue
        head = next(iter(queue._outstanding))
        outstanding = queue._outstanding[head]
        queue.raw.post(head)
        queue._outstanding[head] = outstanding
        queue.publish()
        host.driver.requests[QUEUE].notify()
        live.wait_for(lambda: end.queue(2).broken, "the broken queue")
        assert end.queue(2).error == "HEAD_BUSY"
        # What was in flight before still ends, in the memory that it was given.
        good(host.wait(tag))


@pytest.mark.parametrize("index", [0, 1], ids=["control", "event"])
def test_a_broken_control_or_event_queue_leaves_requests_alone(live: Live, index: int) -> None:
    end = live.end((0, 0, live.unit()))
    with end.connect() as host:
        works(host)
        port = (host.driver.control, host.driver.event)[index]
        assert port is not None
        port.queue.raw.post(128)
        port.queue.publish()
        port.notify()
        if index == 0:
            live.wait_for(lambda: end.queue(0).broken, "the broken queue")
            assert end.queue(0).error == "HEAD_RANGE"
        works(host)


def test_a_broken_queue_can_be_started_anew_on_the_same_connection(live: Live) -> None:
    end = live.end((0, 0, live.unit()))
    with end.connect() as host:
        works(host)
        breaks(live, end, host, avail_jump, "AVAIL_JUMP")
        initiator = host.initiator
        initiator.stop()
        host.driver.reset()
        initiator.vrings.clear()
        initiator.queues[:] = [initiator._new_queue(128) for _ in initiator.queues]
        initiator.start()
        ports = [initiator._port(index) for index in range(len(initiator.queues))]
        host.driver.control, host.driver.event, host.driver.requests = ports[0], ports[1], ports[2:]
        works(host)


def test_guest_memory_that_is_truncated_breaks_that_device_only(live: Live) -> None:
    unit = live.unit()
    end, other_end = live.end((0, 0, unit)), live.end((0, 0, unit), name="other")
    with other_end.connect() as other, end.connect(memory_size=16 << 20) as host:
        works(host)
        works(other)
        (region,) = host.initiator.memory.regions
        # The rings stand at the front and stay; the buffers of these commands are beyond the new end.
        first = host.driver.memory.allocate(4 << 20)
        tags = [host.send(read10(0, 64), in_len=64 * 512, publish=False) for _ in range(8)]
        host.driver.publish()
        os.ftruncate(region.fd, 4 << 20)
        host.driver.requests[1].notify()
        for _ in range(3):
            pieces = [(0x1000 + (8 << 20), 4096)]
            queue = host.driver.requests[1].queue
            queue.add(pieces, [(0x1000 + (9 << 20), 4096)], indirect=False)
            queue.publish()
            host.driver.requests[1].notify()
        live.wait_for(lambda: any(q.broken for q in live.run(end.device.queue_status)), "the broken device")
        assert "MEMORY_GONE" in {q.error for q in live.run(end.device.queue_status)}
        works(other)
        assert tags
        assert first
    live.wait_until_free(end)
    with end.connect() as host:
        works(host)
