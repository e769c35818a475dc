# SPDX-License-Identifier: Apache-2.0
"""What the specification forbids: each broken rule by name, what it costs, and that the next connection works."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.vhost_user.frontend import Disconnected, Frontend, RequestRefused, SharedMemory
from vhost_scsi.vhost_user.messages import (
    MESSAGES,
    U64,
    VRING_ADDR,
    VRING_STATE,
    IndexedVringAddr,
    MemoryRegion,
    ProtocolFeature,
    Request,
    VringAddr,
    VringState,
)
from vhost_scsi.vhost_user.rules import ProtocolError, Rule
from vhost_scsi.vhost_user.session import OFFERED

USER = 0x7F00_0000_0000
PAGE = 0x1000
TOP = 1 << 64
ADDR = VringAddr(0, USER, USER + 0x3000, USER + 0x2000)


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def refused(rule: Rule, frontend: Frontend, request: Request, payload: bytes = b"", fds: Any = ()) -> None:
    """The request gets the rule's number as its error reply, and the connection goes on."""
    with pytest.raises(RequestRefused) as caught:
        frontend.tell(request, payload, fds)
    assert Rule(caught.value.code) is rule
    assert frontend.get_queue_num() == 6


def closed(frontend: Frontend) -> None:
    with pytest.raises(Disconnected):
        frontend.receive()


def still_serves(backend: Any) -> None:
    with backend.connect() as other:
        assert other.negotiate()


def refused_table(rule: Rule, frontend: Frontend, *regions: MemoryRegion) -> None:
    with pytest.raises(RequestRefused) as caught:
        frontend.set_mem_table(regions)
    assert Rule(caught.value.code) is rule


# Features


@pytest.mark.parametrize(
    "bit",
    [
        Feature.SCSI_T10_PI,
        Feature.ACCESS_PLATFORM,
        Feature.VHOST_LOG_ALL,
        Feature.IN_ORDER,
        Feature.NOTIFICATION_DATA,
        Feature.RING_RESET,
        1 << 57,
    ],
)
def test_features_that_cannot_be_served_are_refused(backend: Any, negotiated: Frontend, bit: int) -> None:
    before = list(backend.device.calls)
    refused(Rule.FEATURES_REFUSED, negotiated, Request.SET_FEATURES, U64.build(negotiated.features | bit))
    assert backend.device.calls == before


def test_refused_features_are_named_in_the_log(frontend: Frontend, control_log: Any) -> None:
    frontend.set_features(int(Feature.IN_ORDER | Feature.SCSI_T10_PI) | 1 << 57)
    closed(frontend)
    assert "SCSI_T10_PI, IN_ORDER, BIT_57" in control_log.text


def test_packed_rings_of_a_legacy_driver_are_refused(negotiated: Frontend, control_log: Any) -> None:
    legacy = int(Feature.RING_PACKED | Feature.EVENT_IDX)
    refused(Rule.FEATURES_REFUSED, negotiated, Request.SET_FEATURES, U64.build(legacy))
    assert "FEATURES_REFUSED: SET_FEATURES: RING_PACKED" in control_log.text


def test_features_the_device_refuses_are_refused(backend: Any, negotiated: Frontend) -> None:
    backend.device.fail["set_features"] = ProtocolError(Rule.FEATURES_REFUSED, "EVENT_IDX")
    refused(Rule.FEATURES_REFUSED, negotiated, Request.SET_FEATURES, U64.build(negotiated.features))


def test_protocol_features_not_offered_are_refused(negotiated: Frontend) -> None:
    for bit in (ProtocolFeature.CONFIG, ProtocolFeature.XEN_MMAP, 1 << 63):
        value = U64.build(int(ProtocolFeature.REPLY_ACK | bit))
        refused(Rule.PROTOCOL_FEATURES_REFUSED, negotiated, Request.SET_PROTOCOL_FEATURES, value)


def test_features_refused_without_a_reply_close_the_connection(backend: Any, frontend: Frontend) -> None:
    frontend.set_features(int(Feature.RING_PACKED))
    closed(frontend)
    still_serves(backend)


def test_enable_without_protocol_features_is_refused(backend: Any, frontend: Frontend) -> None:
    frontend.set_protocol_features(ProtocolFeature.REPLY_ACK)
    frontend.set_features(int(Feature.VERSION_1))
    refused(Rule.NOT_NEGOTIATED, frontend, Request.SET_VRING_ENABLE, VRING_STATE.build(VringState(0, 0)))


# Requests


def _payload_of(request: Request) -> bytes:
    sizes = MESSAGES[request].payload.sizes
    return bytes(max(sizes)) if sizes else b""


UNSERVED = sorted(Request(number) for number, row in MESSAGES.items() if row.requires & ~OFFERED)


@pytest.mark.parametrize("request_", UNSERVED, ids=lambda each: each.name)
def test_requests_of_features_not_offered_are_answered_with_an_error(
    negotiated: Frontend, request_: Request, eventfd: int
) -> None:
    row = MESSAGES[request_]
    reply = negotiated.ask(request_, _payload_of(request_), [eventfd] * row.min_fds, need_reply=True)
    assert reply == row.error_reply(Rule.NOT_NEGOTIATED, True)
    assert negotiated.get_queue_num() == 6


def test_an_iotlb_message_is_refused_in_its_own_reply(negotiated: Frontend) -> None:
    assert U64.parse(negotiated.ask(Request.IOTLB_MSG, bytes(32))) == Rule.NOT_NEGOTIATED


def test_a_device_state_refusal_says_that_no_descriptor_comes(negotiated: Frontend, eventfd: int) -> None:
    code = U64.parse(negotiated.ask(Request.SET_DEVICE_STATE_FD, bytes(8), [eventfd]))
    assert code & 0xFF
    assert code & 0x100


@pytest.mark.parametrize("request_", [Request.GET_STATUS, Request.GET_MAX_MEM_SLOTS], ids=lambda each: each.name)
def test_values_not_negotiated_are_answered_by_nothing(frontend: Frontend, request_: Request) -> None:
    assert frontend.ask(request_) == b""
    assert frontend.get_queue_num() == 6


def test_a_request_for_another_device_type_is_unsupported(negotiated: Frontend, eventfd: int) -> None:
    refused(Rule.UNSUPPORTED_REQUEST, negotiated, Request.GPU_SET_SOCKET, fds=[eventfd])


@pytest.mark.parametrize("number", [0, 45, 4711, 0xFFFF_FFFF])
def test_an_unknown_request_is_refused_where_it_asks(negotiated: Frontend, number: int) -> None:
    negotiated.send(number, bytes(100), need_reply=True)
    assert U64.parse(negotiated.receive().payload) == Rule.UNKNOWN_REQUEST


def test_an_unknown_request_is_passed_over_where_it_does_not_ask(frontend: Frontend) -> None:
    frontend.send(4711, bytes(4096))
    assert frontend.get_queue_num() == 6


def test_a_reply_that_nobody_asked_for_is_refused(negotiated: Frontend) -> None:
    negotiated.send_bytes(b"\x03\0\0\0" + b"\x0d\0\0\0" + bytes(4))
    assert U64.parse(negotiated.receive().payload) == Rule.REPLY_FLAG_IN_REQUEST


@pytest.mark.parametrize(
    "request_",
    sorted({Request(number) for number, row in MESSAGES.items() if not row.requires} - {Request.GPU_SET_SOCKET}),
    ids=lambda each: each.name,
)
def test_a_payload_of_the_wrong_size_is_refused(negotiated: Frontend, request_: Request, eventfd: int) -> None:
    row = MESSAGES[request_]
    rule = Rule.NOT_NEGOTIATED if row.requires_virtio & Feature.ACCESS_PLATFORM else Rule.PAYLOAD_SIZE
    for size in {max(row.payload.sizes or {0}) + 1, max(row.payload.sizes or {0}) - 1} - {-1}:
        reply = negotiated.ask(request_, bytes(size), [eventfd] * row.min_fds, need_reply=True)
        assert reply == row.error_reply(rule, True)


def test_a_memory_table_that_claims_more_than_it_carries_is_refused(negotiated: Frontend, eventfd: int) -> None:
    refused(Rule.PAYLOAD_SIZE, negotiated, Request.SET_MEM_TABLE, (2).to_bytes(8, "little") + bytes(32))
    refused(Rule.PAYLOAD_SIZE, negotiated, Request.SET_MEM_TABLE, (1).to_bytes(8, "little") + bytes(96))


@pytest.mark.parametrize("count", [9, 0xFFFF_FFFF])
def test_a_memory_table_of_too_many_regions_is_refused(negotiated: Frontend, count: int) -> None:
    refused(Rule.REGION_COUNT, negotiated, Request.SET_MEM_TABLE, count.to_bytes(8, "little") + bytes(8 * 32))


@pytest.mark.parametrize(
    ("request_", "payload", "count"),
    [
        (Request.SET_OWNER, b"", 1),
        (Request.SET_FEATURES, bytes(8), 1),
        (Request.SET_BACKEND_REQ_FD, b"", 0),
        (Request.SET_BACKEND_REQ_FD, b"", 2),
        (Request.ADD_MEM_REG, bytes(40), 0),
        (Request.ADD_MEM_REG, bytes(40), 2),
        (Request.REM_MEM_REG, bytes(40), 2),
        (Request.SET_VRING_KICK, U64.build(0), 0),
        (Request.SET_VRING_KICK, U64.build(0), 2),
        (Request.SET_VRING_KICK, U64.build(0x100), 1),
        (Request.SET_VRING_CALL, U64.build(0x100), 1),
        (Request.SET_VRING_ERR, U64.build(0), 0),
        (Request.SET_MEM_TABLE, bytes(8), 1),
    ],
)
def test_a_wrong_number_of_descriptors_is_refused(
    negotiated: Frontend, eventfd: int, request_: Request, payload: bytes, count: int
) -> None:
    refused(Rule.FD_COUNT, negotiated, request_, payload, [eventfd] * count)


def test_a_status_of_more_than_a_byte_is_refused(negotiated: Frontend) -> None:
    refused(Rule.STATUS_VALUE, negotiated, Request.SET_STATUS, U64.build(0x100))


def test_a_back_end_channel_must_be_a_stream_socket(negotiated: Frontend, eventfd: int) -> None:
    refused(Rule.CHANNEL_KIND, negotiated, Request.SET_BACKEND_REQ_FD, fds=[eventfd])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        refused(Rule.CHANNEL_KIND, negotiated, Request.SET_BACKEND_REQ_FD, fds=[datagrams.fileno()])


def test_a_channel_the_device_does_not_take_is_closed(backend: Any, negotiated: Frontend) -> None:
    backend.device.fail["set_backend_channel"] = OSError(12, "Cannot allocate memory")
    with pytest.raises(RequestRefused):
        negotiated.set_backend_channel()
    assert backend.device.last("set_backend_channel")[1].fileno() == -1


# Memory


def test_an_empty_region_is_refused(negotiated: Frontend, memory: SharedMemory) -> None:
    refused_table(Rule.REGION_EMPTY, negotiated, MemoryRegion(0, 0, USER, 0, memory.fd))


@pytest.mark.parametrize(
    "region",
    [
        MemoryRegion(TOP - PAGE, 2 * PAGE, USER, 0),
        MemoryRegion(0, 2 * PAGE, TOP - PAGE, 0),
        MemoryRegion(0, 2 * PAGE, USER, TOP - PAGE),
        MemoryRegion(PAGE, TOP - PAGE, 2 * PAGE, 0),
    ],
)
def test_a_region_that_runs_over_the_address_space_is_refused(
    negotiated: Frontend, memory: SharedMemory, region: MemoryRegion
) -> None:
    refused_table(
        Rule.REGION_OVERFLOW,
        negotiated,
        MemoryRegion(region.guest_addr, region.size, region.user_addr, region.mmap_offset, memory.fd),
    )


@pytest.mark.parametrize("numbers", [(1, PAGE, USER, 0), (0, 100, USER, 0), (0, PAGE, USER + 8, 0), (0, PAGE, USER, 1)])
def test_an_unaligned_region_is_refused(
    negotiated: Frontend, memory: SharedMemory, numbers: tuple[int, int, int, int]
) -> None:
    refused_table(Rule.REGION_UNALIGNED, negotiated, MemoryRegion(*numbers, memory.fd))


def test_regions_that_share_a_guest_address_are_refused(negotiated: Frontend, memory: SharedMemory) -> None:
    first = MemoryRegion(0, 2 * PAGE, USER, 0, memory.fd)
    second = MemoryRegion(PAGE, PAGE, USER + 2 * PAGE, 0, memory.fd)
    refused_table(Rule.REGION_GUEST_OVERLAP, negotiated, first, second)


def test_regions_that_share_a_user_address_are_refused(negotiated: Frontend, memory: SharedMemory) -> None:
    first = MemoryRegion(0, 2 * PAGE, USER, 0, memory.fd)
    second = MemoryRegion(2 * PAGE, PAGE, USER + PAGE, 0, memory.fd)
    refused_table(Rule.REGION_USER_OVERLAP, negotiated, second, first)


def test_a_region_beyond_its_file_is_refused(negotiated: Frontend, memory: SharedMemory) -> None:
    refused_table(Rule.REGION_BEYOND_FILE, negotiated, MemoryRegion(0, 1 << 20, USER, PAGE, memory.fd))


def test_a_region_on_something_that_is_no_file_is_refused(negotiated: Frontend) -> None:
    reader, writer = os.pipe()
    refused_table(Rule.REGION_NOT_MAPPABLE, negotiated, MemoryRegion(0, PAGE, USER, 0, reader))
    os.close(reader)
    os.close(writer)


def test_a_map_the_device_cannot_make_is_refused(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    backend.device.fail["set_mem_table"] = PermissionError(13, "Permission denied")
    refused_table(Rule.DEVICE_FAILED, negotiated, memory.region)
    assert backend.device.regions == []


def test_a_refused_table_leaves_the_old_one(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.set_mem_table([memory.region])
    refused_table(Rule.REGION_EMPTY, negotiated, MemoryRegion(0, 0, USER, 0, memory.fd))
    assert len(backend.device.regions) == 1
    negotiated.remove_mem_region(memory.region)


def test_a_bad_table_without_a_reply_closes_the_connection(
    backend: Any, frontend: Frontend, memory: SharedMemory
) -> None:
    frontend.set_mem_table([MemoryRegion(0, 0, USER, 0, memory.fd)])
    closed(frontend)
    still_serves(backend)


def test_an_added_region_must_not_overlap(negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.add_mem_region(memory.region)
    with pytest.raises(RequestRefused) as caught:
        negotiated.add_mem_region(memory.region)
    assert Rule(caught.value.code) is Rule.REGION_GUEST_OVERLAP


def test_more_regions_than_slots_are_refused(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    backend.device.max_mem_slots = 1
    negotiated.add_mem_region(MemoryRegion(0, PAGE, USER, 0, memory.fd))
    with pytest.raises(RequestRefused) as caught:
        negotiated.add_mem_region(MemoryRegion(PAGE, PAGE, USER + PAGE, 0, memory.fd))
    assert Rule(caught.value.code) is Rule.REGION_COUNT


@pytest.mark.parametrize("wrong", [(PAGE, 1 << 20, USER), (0, PAGE, USER), (0, 1 << 20, USER + PAGE)])
def test_only_a_region_that_is_there_can_be_removed(
    negotiated: Frontend, memory: SharedMemory, wrong: tuple[int, int, int]
) -> None:
    negotiated.add_mem_region(memory.region)
    with pytest.raises(RequestRefused) as caught:
        negotiated.remove_mem_region(MemoryRegion(*wrong, 0))
    assert Rule(caught.value.code) is Rule.REGION_UNKNOWN


# Rings


@pytest.mark.parametrize("index", [6, 255, 0xFFFF_FFFF])
@pytest.mark.parametrize(
    "request_", [Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.SET_VRING_ENABLE], ids=lambda each: each.name
)
def test_a_ring_that_is_not_there_is_refused(negotiated: Frontend, request_: Request, index: int) -> None:
    refused(Rule.QUEUE_INDEX, negotiated, request_, VRING_STATE.build(VringState(index, 1)))


def test_a_notifier_for_a_ring_that_is_not_there_is_refused(negotiated: Frontend, eventfd: int) -> None:
    for request in (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR):
        refused(Rule.QUEUE_INDEX, negotiated, request, U64.build(6), [eventfd])


def test_an_address_for_a_ring_that_is_not_there_is_refused(negotiated: Frontend) -> None:
    refused(Rule.QUEUE_INDEX, negotiated, Request.SET_VRING_ADDR, VRING_ADDR.build(IndexedVringAddr(6, ADDR)))


def test_a_ring_that_is_not_there_cannot_be_stopped(backend: Any, negotiated: Frontend) -> None:
    with pytest.raises(RequestRefused):
        negotiated.stop_vring(6)
    assert "get_vring_base" not in backend.device.names()


def test_a_ring_that_is_not_there_without_a_reply_is_passed_over(frontend: Frontend) -> None:
    frontend.send(Request.SET_VRING_NUM, VRING_STATE.build(VringState(6, 64)))
    assert frontend.get_queue_num() == 6


@pytest.mark.parametrize("num", [0, 3, 127, 65536, 0xFFFF_FFFF])
def test_a_ring_size_that_cannot_be_is_refused(negotiated: Frontend, num: int) -> None:
    refused(Rule.RING_SIZE, negotiated, Request.SET_VRING_NUM, VRING_STATE.build(VringState(0, num)))


@pytest.mark.parametrize("num", [1, 32768])
def test_the_smallest_and_the_largest_ring_are_taken(backend: Any, negotiated: Frontend, num: int) -> None:
    negotiated.tell(Request.SET_VRING_NUM, VRING_STATE.build(VringState(0, num)))
    assert backend.device.last("set_vring_num") == ("set_vring_num", 0, num)


def test_a_bad_ring_size_without_a_reply_closes_the_connection(backend: Any, frontend: Frontend) -> None:
    frontend.send(Request.SET_VRING_NUM, VRING_STATE.build(VringState(0, 3)))
    closed(frontend)
    still_serves(backend)


@pytest.mark.parametrize(
    "addr",
    [
        VringAddr(0, USER + 8, USER + 0x3000, USER + 0x2000),
        VringAddr(0, USER, USER + 0x3002, USER + 0x2000),
        VringAddr(0, USER, USER + 0x3000, USER + 0x2001),
    ],
)
def test_an_unaligned_ring_part_is_refused(negotiated: Frontend, addr: VringAddr) -> None:
    refused(Rule.RING_UNALIGNED, negotiated, Request.SET_VRING_ADDR, VRING_ADDR.build(IndexedVringAddr(0, addr)))


@pytest.mark.parametrize("flags", [1, 2, 0x8000_0000])
def test_ring_flags_that_cannot_be_served_are_refused(negotiated: Frontend, flags: int) -> None:
    addr = VringAddr(flags, ADDR.desc, ADDR.used, ADDR.avail)
    refused(Rule.RING_FLAGS, negotiated, Request.SET_VRING_ADDR, VRING_ADDR.build(IndexedVringAddr(0, addr)))


END = USER + (1 << 20)


@pytest.mark.parametrize(
    "addr",
    [
        VringAddr(0, END, USER, USER),
        VringAddr(0, END - 16 * 63, USER, USER),
        VringAddr(0, USER, END - 516, USER),
        VringAddr(0, USER, USER, END - 132),
        VringAddr(0, USER - 16, USER, USER),
        VringAddr(0, 0, 0, 0),
    ],
)
def test_a_ring_outside_memory_cannot_be_armed(
    backend: Any, negotiated: Frontend, memory: SharedMemory, addr: VringAddr
) -> None:
    negotiated.set_mem_table([memory.region])
    with pytest.raises(RequestRefused) as caught:
        negotiated.setup_vring(0, 64, addr)
    assert Rule(caught.value.code) is Rule.RING_NOT_MAPPED
    assert "set_vring_kick" not in backend.device.names()


@pytest.mark.parametrize(
    "addr",
    [
        VringAddr(0, END - 16 * 64, USER, USER + PAGE),
        VringAddr(0, USER, END - 520, USER + PAGE),
        VringAddr(0, USER, USER + PAGE, END - 134),
    ],
)
def test_a_ring_that_ends_with_memory_can_be_armed(
    backend: Any, negotiated: Frontend, memory: SharedMemory, addr: VringAddr
) -> None:
    """64 entries: 1024 bytes of descriptors, 518 of used ring, 134 of available ring."""
    negotiated.set_mem_table([memory.region])
    negotiated.setup_vring(0, 64, addr)
    assert "set_vring_kick" in backend.device.names()


def test_a_ring_across_two_regions_is_refused(negotiated: Frontend, memory: SharedMemory) -> None:
    low = MemoryRegion(0, PAGE, USER, 0, memory.fd)
    high = MemoryRegion(PAGE, PAGE, USER + PAGE, PAGE, memory.fd)
    negotiated.set_mem_table([low, high])
    with pytest.raises(RequestRefused) as caught:
        negotiated.setup_vring(0, 128, VringAddr(0, USER + PAGE - 1024, USER, USER))
    assert Rule(caught.value.code) is Rule.RING_NOT_MAPPED


def test_a_ring_that_runs_over_the_address_space_is_refused(negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.set_mem_table([memory.region])
    with pytest.raises(RequestRefused) as caught:
        negotiated.setup_vring(0, 64, VringAddr(0, TOP - 16, USER, USER))
    assert Rule(caught.value.code) is Rule.RING_OVERFLOW


def test_an_armed_ring_cannot_be_moved_out_of_memory(negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.set_mem_table([memory.region])
    negotiated.setup_vring(0, 64, ADDR)
    outside = VringAddr(0, END, END, END)
    refused(Rule.RING_NOT_MAPPED, negotiated, Request.SET_VRING_ADDR, VRING_ADDR.build(IndexedVringAddr(0, outside)))


def test_what_the_device_knows_of_a_ring_is_refused_by_its_rule(backend: Any, negotiated: Frontend) -> None:
    backend.device.fail["set_vring_num"] = ProtocolError(Rule.RING_STARTED, "ring 0 runs")
    refused(Rule.RING_STARTED, negotiated, Request.SET_VRING_NUM, VRING_STATE.build(VringState(0, 64)))


def test_a_base_with_wrap_counters_is_refused_for_a_split_ring(negotiated: Frontend) -> None:
    state = VRING_STATE.build(VringState(0, 0x8000_8000))
    refused(Rule.RING_BASE, negotiated, Request.SET_VRING_BASE, state)


@pytest.mark.parametrize("num", [0, 32769, 0xFFFF_FFFF])
def test_a_packed_ring_size_that_cannot_be_is_refused(packed: Frontend, num: int) -> None:
    refused(Rule.RING_SIZE, packed, Request.SET_VRING_NUM, VRING_STATE.build(VringState(0, num)))


@pytest.mark.parametrize("num", [1, 3, 100, 32767, 32768])
def test_a_packed_ring_need_not_be_a_power_of_two(backend: Any, packed: Frontend, num: int) -> None:
    packed.tell(Request.SET_VRING_NUM, VRING_STATE.build(VringState(0, num)))
    assert backend.device.last("set_vring_num") == ("set_vring_num", 0, num)


@pytest.mark.parametrize("base", [0x8000_8064, 0x8064_8000, 0x7FFF_0000, 0xFFFF_FFFF])
def test_a_base_beyond_a_packed_ring_is_refused(packed: Frontend, base: int) -> None:
    packed.tell(Request.SET_VRING_NUM, VRING_STATE.build(VringState(0, 100)))
    refused(Rule.RING_BASE, packed, Request.SET_VRING_BASE, VRING_STATE.build(VringState(0, base)))


@pytest.mark.parametrize("base", [0x8000_8000, 0x0063_8063, 0])
def test_a_base_of_a_packed_ring_reaches_the_device_whole(backend: Any, packed: Frontend, base: int) -> None:
    packed.tell(Request.SET_VRING_NUM, VRING_STATE.build(VringState(0, 100)))
    packed.tell(Request.SET_VRING_BASE, VRING_STATE.build(VringState(0, base)))
    assert backend.device.last("set_vring_base") == ("set_vring_base", 0, base)
    assert packed.stop_vring(0) == base


@pytest.mark.parametrize(
    "addr",
    [
        VringAddr(0, USER + 8, USER + 0x3000, USER + 0x2000),
        VringAddr(0, USER, USER + 0x3002, USER + 0x2000),
        VringAddr(0, USER, USER + 0x3000, USER + 0x2002),
    ],
)
def test_an_unaligned_part_of_a_packed_ring_is_refused(packed: Frontend, addr: VringAddr) -> None:
    """2.8.10.1: the driver's event structure is aligned to four, where an available ring is to two."""
    refused(Rule.RING_UNALIGNED, packed, Request.SET_VRING_ADDR, VRING_ADDR.build(IndexedVringAddr(0, addr)))


def test_a_packed_ring_needs_four_bytes_for_each_event_structure(packed: Frontend, memory: SharedMemory) -> None:
    packed.set_mem_table([memory.region])
    addr = VringAddr(0, USER, END - 4, END - 8)
    packed.setup_vring(0, 100, addr)
    outside = VringAddr(0, USER, END, END - 8)
    refused(Rule.RING_NOT_MAPPED, packed, Request.SET_VRING_ADDR, VRING_ADDR.build(IndexedVringAddr(0, outside)))


def test_enabling_with_another_number_is_refused(negotiated: Frontend) -> None:
    refused(Rule.ENABLE_VALUE, negotiated, Request.SET_VRING_ENABLE, VRING_STATE.build(VringState(0, 2)))


def test_reserved_bits_of_a_notifier_are_refused(negotiated: Frontend, eventfd: int) -> None:
    refused(Rule.RESERVED_BITS, negotiated, Request.SET_VRING_KICK, U64.build(0x200), [eventfd])


def test_a_notifier_must_be_an_eventfd_or_a_pipe(backend: Any, negotiated: Frontend) -> None:
    with tempfile.TemporaryFile() as file:  # always readable: it would make a ring spin
        refused(Rule.NOTIFIER_KIND, negotiated, Request.SET_VRING_KICK, U64.build(0), [file.fileno()])
    refused(Rule.NOTIFIER_KIND, negotiated, Request.SET_VRING_CALL, U64.build(0), [negotiated.sock.fileno()])


def test_a_device_that_fails_by_mistake_ends_only_its_connection(
    backend: Any, negotiated: Frontend, control_log: Any
) -> None:
    backend.device.fail["set_vring_num"] = ZeroDivisionError("a bug")
    negotiated.send(Request.SET_VRING_NUM, VRING_STATE.build(VringState(0, 64)))
    closed(negotiated)
    backend.device.fail.clear()
    still_serves(backend)
    assert "ZeroDivisionError" in control_log.text


# Log


def test_a_flood_of_errors_is_logged_once_a_second(backend: Any, control_log: Any) -> None:
    for _ in range(3):
        with backend.connect() as frontend:
            for _ in range(300):
                frontend.send(4711)
            assert frontend.get_queue_num() == 6
    lines = [each for each in control_log.records if "UNKNOWN_REQUEST" in each.getMessage()]
    assert 1 <= len(lines) <= 3
