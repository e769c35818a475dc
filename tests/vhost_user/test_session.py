# SPDX-License-Identifier: Apache-2.0
"""What a connection does with messages in every order that the specification allows."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest

from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.vhost_user.frontend import Frontend, SharedMemory
from vhost_scsi.vhost_user.messages import (
    SINGLE_REGION,
    U64,
    VRING_STATE,
    MemoryRegion,
    ProtocolFeature,
    Request,
    VringAddr,
    VringState,
    pack_header,
)
from vhost_scsi.vhost_user.session import OFFERED, Session

USER = 0x7F00_0000_0000
ADDR = VringAddr(0, USER, USER + 0x3000, USER + 0x2000)
ALL = Feature.VHOST_USER_PROTOCOL_FEATURES


def geometry(regions: list[MemoryRegion]) -> list[tuple[int, int, int, int]]:
    return [(each.guest_addr, each.size, each.user_addr, each.mmap_offset) for each in regions]


def test_offers_the_devices_features_and_protocol_features(backend: Any, frontend: Frontend) -> None:
    assert frontend.get_features() == backend.device.features | ALL


def test_offers_exactly_these_protocol_features(frontend: Frontend) -> None:
    names = {"MQ", "REPLY_ACK", "BACKEND_REQ", "CONFIGURE_MEM_SLOTS", "RESET_DEVICE", "STATUS", "INFLIGHT_SHMFD"}
    assert {each.name for each in ProtocolFeature if each in frontend.get_protocol_features()} == names


def test_queue_number_is_told_unasked(backend: Any, frontend: Frontend) -> None:
    assert frontend.get_queue_num() == backend.device.num_queues


def test_memory_slots_are_509(negotiated: Frontend) -> None:
    assert negotiated.get_max_mem_slots() == 509


def test_the_device_sees_virtio_bits_only(backend: Any, negotiated: Frontend) -> None:
    assert backend.device.last("set_features") == ("set_features", backend.device.features & ~int(Feature.RING_PACKED))


@pytest.mark.parametrize("bit", [Feature.VERSION_1, Feature.ANY_LAYOUT])
def test_bits_that_qemu_sets_by_itself_are_accepted(backend: Any, frontend: Frontend, bit: Feature) -> None:
    backend.device.features = int(Feature.EVENT_IDX)
    frontend.negotiate(int(bit | Feature.EVENT_IDX))
    assert backend.device.last("set_features") == ("set_features", int(bit | Feature.EVENT_IDX))


def test_no_acknowledgement_without_reply_ack(backend: Any, frontend: Frontend) -> None:
    frontend.send(Request.SET_OWNER, need_reply=True)
    assert frontend.get_queue_num() == 6  # the next answer is this one's


def test_reply_ack_acknowledges_each_message_that_asks(negotiated: Frontend) -> None:
    assert negotiated.ask(Request.SET_OWNER, need_reply=True) == U64.build(0)


def test_a_message_with_its_own_reply_is_answered_once(negotiated: Frontend) -> None:
    assert U64.parse(negotiated.ask(Request.GET_QUEUE_NUM, need_reply=True)) == 6
    assert U64.parse(negotiated.ask(Request.GET_PROTOCOL_FEATURES)) == OFFERED


def test_setting_protocol_features_acknowledges_itself_once_ack_is_on(frontend: Frontend) -> None:
    reply = frontend.ask(Request.SET_PROTOCOL_FEATURES, U64.build(ProtocolFeature.REPLY_ACK), need_reply=True)
    assert reply == U64.build(0)


def test_reset_owner_is_ignored(backend: Any, negotiated: Frontend) -> None:
    before = list(backend.device.calls)
    negotiated.tell(Request.RESET_OWNER)
    assert backend.device.calls == before


def test_memory_table_reaches_the_device_with_its_files(
    backend: Any, negotiated: Frontend, memory: SharedMemory
) -> None:
    memory.map[0x2000:0x2005] = b"hello"
    half = memory.region.size // 2
    low = MemoryRegion(0, half, USER, 0, memory.fd)
    high = MemoryRegion(1 << 32, half, USER + half, half, memory.fd)
    negotiated.set_mem_table([low, high])
    regions = backend.device.last("set_mem_table")[1]
    assert geometry(regions) == geometry([low, high])
    assert os.pread(regions[0].fd, 5, 0x2000) == b"hello"


def test_received_descriptors_are_close_on_exec(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.set_mem_table([memory.region])
    assert not os.get_inheritable(backend.device.regions[0].fd)


def test_the_same_memory_table_may_come_again_and_again(
    backend: Any, negotiated: Frontend, memory: SharedMemory
) -> None:
    for _ in range(5):
        negotiated.set_mem_table([memory.region])
    assert backend.device.names().count("set_mem_table") == 5


def test_an_empty_memory_table_takes_all_memory_away(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.set_mem_table([memory.region])
    negotiated.set_mem_table([])
    assert backend.device.regions == []


def test_a_table_of_the_full_size_with_unused_regions_is_read(
    backend: Any, negotiated: Frontend, memory: SharedMemory
) -> None:
    region = SINGLE_REGION.build(memory.region)[8:]
    payload = (1).to_bytes(8, "little") + region + bytes(7 * 32)
    negotiated.tell(Request.SET_MEM_TABLE, payload, [memory.fd])
    assert geometry(backend.device.regions) == geometry([memory.region])


def test_guest_physical_and_user_addresses_may_be_the_same_numbers(backend: Any, negotiated: Frontend) -> None:
    shared = SharedMemory(1 << 20, guest_addr=0x10_0000, user_addr=0x10_0000)
    negotiated.set_mem_table([shared.region])
    shared.close()
    assert geometry(backend.device.regions) == [(0x10_0000, 1 << 20, 0x10_0000, 0)]


def test_regions_are_added_and_removed_one_by_one(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    low = MemoryRegion(0, 0x1000, USER, 0, memory.fd)
    high = MemoryRegion(0x1000, 0x1000, USER + 0x1000, 0x1000, memory.fd)
    negotiated.add_mem_region(low)
    negotiated.add_mem_region(high)
    negotiated.remove_mem_region(low)
    assert geometry(backend.device.regions) == geometry([high])


def test_a_region_is_removed_whatever_offset_is_said(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.add_mem_region(memory.region)
    negotiated.remove_mem_region(MemoryRegion(0, 1 << 20, USER, 0x5000))
    assert backend.device.regions == []


def test_a_descriptor_sent_with_a_removal_is_only_closed(
    backend: Any, negotiated: Frontend, memory: SharedMemory
) -> None:
    negotiated.add_mem_region(memory.region)
    negotiated.tell(Request.REM_MEM_REG, SINGLE_REGION.build(memory.region), [memory.fd])
    assert backend.device.regions == []


def test_509_regions_fit(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    for number in range(509):
        negotiated.add_mem_region(MemoryRegion(number << 12, 0x1000, USER + (number << 12), 0, memory.fd))
    assert len(backend.device.regions) == 509


def test_a_ring_is_set_up_as_the_front_end_says(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.set_mem_table([memory.region])
    ring = negotiated.setup_vring(2, 128, ADDR, base=7)
    device = backend.device
    assert device.last("set_vring_num") == ("set_vring_num", 2, 128)
    assert device.last("set_vring_addr") == ("set_vring_addr", 2, ADDR)
    assert device.last("set_vring_base") == ("set_vring_base", 2, 7)
    assert device.enabled == {2}
    ring.kick()
    assert os.eventfd_read(device.fds["set_vring_kick", 2]) == 1


def test_a_ring_may_be_polled(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.set_mem_table([memory.region])
    negotiated.setup_vring(0, 64, ADDR, polled=True)
    assert backend.device.last("set_vring_kick") == ("set_vring_kick", 0, None)
    assert backend.device.last("set_vring_call") == ("set_vring_call", 0, None)


def test_an_error_descriptor_may_be_taken_back(backend: Any, negotiated: Frontend) -> None:
    negotiated.set_notifier(Request.SET_VRING_ERR, 1, None)
    assert backend.device.last("set_vring_err") == ("set_vring_err", 1, None)


def test_a_pipe_is_a_notifier_too(backend: Any, negotiated: Frontend) -> None:
    reader, writer = os.pipe()
    negotiated.set_notifier(Request.SET_VRING_KICK, 1, reader)
    assert backend.device.fds["set_vring_kick", 1] >= 0
    os.close(reader)
    os.close(writer)


def test_a_call_descriptor_that_nobody_reads_stops_nothing(backend: Any, negotiated: Frontend) -> None:
    for _ in range(3):
        call = os.eventfd(0, os.EFD_NONBLOCK)
        os.eventfd_write(call, 2**64 - 2)  # full: one more write would block
        negotiated.set_notifier(Request.SET_VRING_CALL, 0, call)
        os.close(call)
    assert negotiated.get_queue_num() == 6


def test_rings_may_be_enabled_before_there_is_memory(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    for index in range(6):
        negotiated.set_vring_enable(index, True)
    negotiated.set_mem_table([memory.region])
    negotiated.setup_vring(0, 64, ADDR, enable=False)
    assert backend.device.enabled == set(range(6))


def test_a_whole_ring_may_come_before_memory(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.setup_vring(0, 64, ADDR)
    negotiated.set_mem_table([memory.region])
    names = backend.device.names()
    assert names.index("set_vring_kick") < names.index("set_mem_table")


def test_a_kick_may_come_before_the_rings_address(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.set_mem_table([memory.region])
    kick = os.eventfd(0)
    negotiated.set_notifier(Request.SET_VRING_KICK, 3, kick)
    os.close(kick)
    negotiated.setup_vring(3, 64, ADDR)
    assert backend.device.names().count("set_vring_kick") == 2


def test_without_protocol_features_every_ring_is_enabled_at_once(backend: Any, frontend: Frontend) -> None:
    frontend.set_features(int(Feature.VERSION_1))
    backend.wait_for(lambda: len(backend.device.enabled) == 6, "the rings")


def test_with_protocol_features_no_ring_is_enabled_by_itself(backend: Any, negotiated: Frontend) -> None:
    assert backend.device.enabled == set()


def test_setting_features_again_disables_nothing(backend: Any, negotiated: Frontend) -> None:
    negotiated.set_vring_enable(2, True)
    negotiated.set_features(negotiated.features)
    assert backend.device.enabled == {2}


def test_stopping_a_ring_returns_its_base(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.set_mem_table([memory.region])
    negotiated.setup_vring(4, 64, ADDR, base=0xFFFF)
    assert negotiated.stop_vring(4) == 0xFFFF


def test_stop_is_answered_when_the_device_has_ended(backend: Any, negotiated: Frontend) -> None:
    gate = backend.device.wait["get_vring_base"] = backend.open_event()
    negotiated.send(Request.GET_VRING_BASE, VRING_STATE.build(VringState(1, 0)))
    negotiated.send(Request.GET_QUEUE_NUM)
    backend.wait_for(lambda: "get_vring_base" in backend.device.names(), "the stop")
    negotiated.sock.settimeout(0.1)
    with pytest.raises(TimeoutError):
        negotiated.receive()
    backend.set_event(gate)
    negotiated.sock.settimeout(20)
    assert [negotiated.receive().request for _ in range(2)] == [Request.GET_VRING_BASE, Request.GET_QUEUE_NUM]


def test_start_stop_start_with_other_features_in_one_connection(
    backend: Any, negotiated: Frontend, memory: SharedMemory
) -> None:
    for features in (int(Feature.VERSION_1 | ALL), int(Feature.EVENT_IDX | Feature.INDIRECT_DESC | ALL)):
        negotiated.reset_device()
        negotiated.set_features(features)
        negotiated.set_mem_table([memory.region])
        negotiated.setup_vring(2, 64, ADDR)
        assert backend.device.last("set_features")[1] == features & ~int(ALL)
        assert negotiated.stop_vring(2) == 0


def test_reset_keeps_memory(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.add_mem_region(memory.region)
    negotiated.reset_device()
    negotiated.setup_vring(0, 64, ADDR)
    assert len(backend.device.regions) == 1


def test_reset_forgets_where_rings_were(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.set_mem_table([memory.region])
    negotiated.setup_vring(0, 64, ADDR)
    negotiated.reset_device()
    moved = MemoryRegion(0, memory.region.size, USER + (1 << 40), 0, memory.fd)
    negotiated.set_mem_table([moved])
    kick = os.eventfd(0)
    negotiated.set_notifier(Request.SET_VRING_KICK, 0, kick)  # the old address would be outside the map
    os.close(kick)
    assert backend.device.names()[-1] == "set_vring_kick"


def test_a_stop_forgets_where_the_ring_was(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.set_mem_table([memory.region])
    negotiated.setup_vring(0, 64, ADDR)
    negotiated.stop_vring(0)
    negotiated.set_mem_table([MemoryRegion(0, memory.region.size, USER + (1 << 40), 0, memory.fd)])
    kick = os.eventfd(0)
    negotiated.set_notifier(Request.SET_VRING_KICK, 0, kick)
    os.close(kick)
    assert backend.device.names()[-1] == "set_vring_kick"


def test_a_region_may_come_back_after_it_was_removed(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    for _ in range(2):
        negotiated.add_mem_region(memory.region)
        negotiated.remove_mem_region(memory.region)
    assert backend.device.names().count("remove_mem_region") == 2


def test_a_region_may_end_with_the_address_space(backend: Any, negotiated: Frontend, memory: SharedMemory) -> None:
    negotiated.set_mem_table([MemoryRegion((1 << 64) - 0x1000, 0x1000, (1 << 64) - 0x1000, 0, memory.fd)])
    assert len(backend.device.regions) == 1


def test_status_is_kept_by_the_device(backend: Any, negotiated: Frontend) -> None:
    negotiated.set_status(0x0F)
    assert negotiated.get_status() == 0x0F


def test_the_back_end_channel_reaches_the_device(backend: Any, negotiated: Frontend) -> None:
    ours = negotiated.set_backend_channel()
    assert isinstance(backend.device.channel, socket.socket)
    assert not backend.device.channel.getblocking()
    backend.device.channel.send(b"x")
    assert ours.recv(1) == b"x"
    ours.close()


def test_the_device_is_told_of_the_end(backend: Any) -> None:
    with backend.connect() as frontend:
        frontend.negotiate()
    backend.wait_for_end(1)
    assert backend.device.names()[-1] == "disconnected"


def test_the_next_connection_starts_with_nothing(backend: Any, memory: SharedMemory) -> None:
    with backend.connect() as first:
        first.negotiate()
        first.set_mem_table([memory.region])
    backend.wait_for_end(1)
    with backend.connect() as second:
        second.send(Request.SET_OWNER, need_reply=True)  # not acknowledged: REPLY_ACK went with the first
        assert second.get_queue_num() == 6
        assert backend.device.regions == []


def test_between_any_two_messages_the_loop_serves_others() -> None:
    messages, turns = 200, 0

    async def scenario() -> None:
        nonlocal turns
        peer, ours = socket.socketpair()
        peer.sendall(pack_header(Request.SET_OWNER, 1, 0) * messages)
        peer.shutdown(socket.SHUT_WR)
        serving = asyncio.create_task(Session(StillDevice()).run(ours))
        while not serving.done():
            await asyncio.sleep(0)
            turns += 1
        peer.close()

    asyncio.run(scenario())
    assert turns >= messages


class StillDevice:
    """Of a Device only what a connection that asks for nothing needs."""

    num_queues = 1

    async def disconnected(self) -> None:
        pass
