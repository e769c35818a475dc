# SPDX-License-Identifier: Apache-2.0
"""One logical unit, two transports: a virtio-scsi initiator and an iSCSI initiator at once on the same unit. Data, unit
attentions, resets and mode pages in each direction (DESIGN: what happens to a unit happens to all of its nexuses).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.iscsi.client import TARGET
from tests.iscsi.scsi_host import ScsiHost
from tests.live import (
    TEST_UNIT_READY,
    Host,
    Live,
    compare_and_write,
    mode_select10,
    mode_sense10,
    read10,
    set_d_sense,
    set_swp,
    set_wce,
    write10,
)
from tests.scsi.reserving import basic
from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi.data_plane import DataPlane
from vhost_scsi.iscsi.node import Node
from vhost_scsi.iscsi.portals import Portal
from vhost_scsi.iscsi.server import IscsiServer
from vhost_scsi.iscsi.targets import IscsiTarget
from vhost_scsi.scsi import sense
from vhost_scsi.virtqueue.virtio_scsi import Response, TaskManagement

BLOCK = 512
A, B = b"\xaa" * BLOCK, b"\xbb" * BLOCK


@dataclass
class Both:
    """The unit `disk` at both, both ready."""

    live: Live
    node: Node
    vm: Host
    host: ScsiHost
    connect: Callable[..., ScsiHost]


@pytest.fixture(params=[1, 2], ids=["one-worker", "two-workers"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Both]:
    live = Live(tmp_path, "auto", request.param)
    disk = live.unit("delay(write=700ms):memory:16M")
    end = live.end((0, 0, disk))
    node = Node()
    node.add_target(IscsiTarget(TARGET, luns={0: "disk"}))
    plane = DataPlane(live.core, live.target, (request.param - 1,))
    server = live.run(lambda: IscsiServer(node, plane, plane, [Portal("127.0.0.1", 0)]))
    live.call(server.start())
    address = ("127.0.0.1", node.portals[0].port)
    try:
        with end.connect() as vm, ScsiHost(address) as host:
            vm.ready()
            host.ready()
            yield Both(live, node, vm, host, lambda **fields: ScsiHost(address, **fields))
    finally:
        live.call(server.close())
        live.close()


def test_each_is_greeted_by_a_unit_attention(both: Both) -> None:
    with both.connect(isid=b"\x80\x12\x34\x56\x00\x02") as new:
        new.fails(sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED, TEST_UNIT_READY)
        new.ok(TEST_UNIT_READY)
        both.vm.ok(TEST_UNIT_READY)
        both.host.ok(TEST_UNIT_READY)


def test_what_one_writes_the_other_reads(both: Both) -> None:
    both.vm.ok(write10(7, 1), A)
    assert both.host.ok(read10(7, 1), in_len=BLOCK) == A
    both.host.ok(write10(7, 1), B)
    assert both.vm.ok(read10(7, 1), in_len=BLOCK) == B


def test_compare_and_write_is_one_for_both(both: Both) -> None:
    both.vm.ok(write10(9, 1), A)
    both.host.ok(compare_and_write(9), A + B)
    both.vm.fails(sense.MISCOMPARE_DURING_VERIFY_OPERATION, compare_and_write(9), A + B)
    both.vm.ok(compare_and_write(9), B + A)
    assert both.host.ok(read10(9, 1), in_len=BLOCK) == A


def test_it_is_the_same_disk(both: Both) -> None:
    page = bytes([0x12, 1, 0x83, 0, 252, 0])
    by_vm, by_host = both.vm.ok(page, in_len=252), both.host.ok(page, in_len=252)
    assert naa(by_vm) == naa(by_host) != b""


def naa(page: bytes) -> bytes:
    """The designator of type NAA of the logical unit."""
    place = 4
    while place < len(page):
        kind, length = page[place + 1], page[place + 3]
        if kind & 0x3F == 3:
            return page[place + 4 : place + 4 + length]
        place += 4 + length
    return b""


@pytest.mark.parametrize("change", [set_wce, set_d_sense])
def test_a_mode_change_of_the_vm_is_told_to_the_host(both: Both, change: Callable[..., None]) -> None:
    page, bit = (0x08, 2) if change is set_wce else (0x0A, 2)
    before = both.host.ok(mode_sense10(page), in_len=252)[8 + 2] >> bit & 1
    change(both.vm, not before)
    both.host.fails(sense.MODE_PARAMETERS_CHANGED, TEST_UNIT_READY)
    assert both.host.ok(mode_sense10(page), in_len=252)[8 + 2] >> bit & 1 == (not before)
    both.vm.ok(TEST_UNIT_READY)


def test_a_mode_change_of_the_host_is_told_to_the_vm(both: Both) -> None:
    data = bytearray(both.host.ok(mode_sense10(0x0A), in_len=252)[8:20])
    data[0] &= 0x3F
    data[4] |= 0x08  # SWP
    cdb, parameters = mode_select10(bytes(data))
    both.host.ok(cdb, parameters)
    both.vm.fails(sense.MODE_PARAMETERS_CHANGED, write10(0, 1), A)
    both.vm.fails(sense.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED, write10(0, 1), A)
    both.host.fails(sense.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED, write10(0, 1), A)
    set_swp(both.vm, False)
    both.host.fails(sense.MODE_PARAMETERS_CHANGED, write10(0, 1), A)
    both.host.ok(write10(0, 1), A)


def test_a_reset_by_the_host_ends_the_commands_of_the_vm(both: Both) -> None:
    tag = both.vm.send(write10(1000, 1), A)
    both.live.wait_for(lambda: both.live.in_flight() > 0, "the write to be on its way")
    both.host.reset_unit()
    assert both.vm.wait(tag).response == Response.RESET
    for initiator in (both.vm, both.host):
        initiator.fails(sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED, TEST_UNIT_READY)
        initiator.ok(TEST_UNIT_READY)


def test_a_reset_by_the_vm_ends_the_commands_of_the_host(both: Both) -> None:
    both.host.send(write10(1000, 1), A)
    both.live.wait_for(lambda: both.live.in_flight() > 0, "the write to be on its way")
    assert both.vm.manage(TaskManagement.LOGICAL_UNIT_RESET) == 0
    # RFC 7143, 4.2.3.3: no response to what was aborted; the next command is answered.
    both.host.fails(sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED, TEST_UNIT_READY)
    both.host.ok(TEST_UNIT_READY)
    both.vm.fails(sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED, TEST_UNIT_READY)


def test_the_loss_of_a_session_is_nothing_to_the_vm(both: Both) -> None:
    with both.connect(isid=b"\x80\x12\x34\x56\x00\x02") as second:
        second.ready()
        tag = both.vm.send(write10(1001, 1), B)
        second.send(write10(1000, 1), A)
        both.live.wait_for(lambda: both.live.in_flight() > 1, "both writes to be on their way")
    assert both.vm.wait(tag).status == 0
    both.live.wait_for(lambda: len(both.node.sessions) <= 1, "the end of the session")
    both.vm.ok(TEST_UNIT_READY)
    both.host.ok(TEST_UNIT_READY)
    assert both.vm.ok(read10(1001, 1), in_len=BLOCK) == B


def test_the_loss_of_the_vm_is_nothing_to_the_host(both: Both) -> None:
    tag = both.host.send(write10(1001, 1), A)
    both.live.wait_for(lambda: both.live.in_flight() > 0, "the write to be on its way")
    both.vm.close()
    assert both.host.wait(tag).status == 0
    assert both.host.ok(read10(1001, 1), in_len=BLOCK) == A


def test_each_sees_the_whole_of_an_exclusive_write(both: Both) -> None:
    """Both write the same eight blocks at once, and each block is of one of them."""
    for _ in range(5):
        vm, host = both.vm.send(write10(64, 8), A * 8), both.host.send(write10(64, 8), B * 8)
        assert both.vm.wait(vm).status == both.host.wait(host).status == 0
        seen = both.host.ok(read10(64, 8), in_len=8 * BLOCK)
        assert {seen[at : at + BLOCK] for at in range(0, len(seen), BLOCK)} <= {A, B}
        assert both.vm.ok(read10(64, 8), in_len=8 * BLOCK) == seen


READ_CAPACITY = bytes([0x25]) + bytes(9)


def blocks(answer: bytes) -> int:
    return int.from_bytes(answer[:4], "big") + 1


@pytest.mark.parametrize("size", [24 << 20, 8 << 20], ids=["longer", "shorter"])
def test_another_size_is_told_to_both(both: Both, size: int) -> None:
    assert both.live.call(both.live.units["disk"].resize(size)) == size
    last = size // BLOCK - 1
    for initiator in (both.vm, both.host):
        initiator.fails(sense.CAPACITY_DATA_HAS_CHANGED, TEST_UNIT_READY)
        assert blocks(initiator.ok(READ_CAPACITY, in_len=8)) == last + 1
        initiator.ok(write10(last, 1), A)
        initiator.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, write10(last, 2), A + A)
        initiator.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, read10(last + 1, 1), in_len=BLOCK)


def test_the_same_size_is_told_to_nobody(both: Both) -> None:
    assert both.live.call(both.live.units["disk"].resize(16 << 20)) == 16 << 20
    both.vm.ok(TEST_UNIT_READY)
    both.host.ok(TEST_UNIT_READY)


def test_a_size_that_is_no_number_of_blocks(both: Both) -> None:
    for size in (1000, -512, 1 << 62):
        with pytest.raises(ConfigError, match="logical unit disk"):
            both.live.call(both.live.units["disk"].resize(size))
    both.vm.ok(TEST_UNIT_READY)
    assert blocks(both.host.ok(READ_CAPACITY, in_len=8)) == (16 << 20) // BLOCK


def test_what_is_in_flight_beyond_a_new_end_has_ended_before(both: Both) -> None:
    """Writes of both are in the store while it is cut off; what comes behind them waits and is refused."""
    end = (8 << 20) // BLOCK
    vm, host = both.vm.send(write10(end, 1), A), both.host.send(write10(end + 1, 1), A)
    both.live.wait_for(lambda: both.live.in_flight() == 2, "both writes")
    resizing = asyncio.run_coroutine_threadsafe(both.live.units["disk"].resize(8 << 20), both.live.thread.loop)
    assert both.vm.wait(vm).status == both.host.wait(host).status == 0
    assert resizing.result(30) == 8 << 20
    for initiator in (both.vm, both.host):
        initiator.fails(sense.CAPACITY_DATA_HAS_CHANGED, TEST_UNIT_READY)
        initiator.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, write10(end, 1), A)
    both.live.call(both.live.units["disk"].resize(16 << 20))
    both.vm.ready()
    assert both.vm.ok(read10(end, 2), in_len=2 * BLOCK) == bytes(2 * BLOCK), "what was cut off is gone"


# ---- two nodes of a cluster, one over each transport ---------------------------------------------------------------

RESERVATION_CONFLICT = 0x18
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_ANYWAY = range(7)
REGISTRANTS_ONLY = 5  # write exclusive; what clusters of Windows use
KEYS = bytes([0x5E, 0, 0, 0, 0, 0, 0, 1, 0, 0])


def reserve_out(action: int, kind: int = 0) -> bytes:
    return bytes([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0])


def test_two_nodes_fight_for_a_disk_as_clusters_do(both: Both) -> None:
    """Each registers, one reserves, the other finds it silent, preempts it, and in the end cleans up."""
    vm, host = both.vm, both.host
    vm.ok(reserve_out(REGISTER_ANYWAY), basic(0, 0xA))
    host.ok(reserve_out(REGISTER_ANYWAY), basic(0, 0xB))
    vm.ok(reserve_out(RESERVE, REGISTRANTS_ONLY), basic(0xA))
    assert host.command(reserve_out(RESERVE, REGISTRANTS_ONLY), basic(0xB)).status == RESERVATION_CONFLICT
    host.ok(write10(0, 1), A)  # a registrant may write
    with both.connect(isid=b"\x80\x12\x34\x56\x00\x07") as stranger:
        stranger.ready()
        assert stranger.command(write10(0, 1), B).status == RESERVATION_CONFLICT
        assert stranger.ok(read10(0, 1), in_len=BLOCK) == A
        # The owner renews and does not see the challenger's turn come: it is preempted, with a write on its way.
        vm.ok(reserve_out(RESERVE, REGISTRANTS_ONLY), basic(0xA))
        tag = vm.send(write10(1, 1), A)
        both.live.wait_for(lambda: both.live.in_flight() > 0, "the write to be on its way")
        host.ok(reserve_out(PREEMPT, REGISTRANTS_ONLY), basic(0xB, 0xA))
        assert host.ok(read10(1, 1), in_len=BLOCK) == A, "it came before the status of PREEMPT, or not at all"
        assert vm.wait(tag).status == 0
        vm.fails(sense.REGISTRATIONS_PREEMPTED, write10(2, 1), A)
        assert vm.command(write10(2, 1), A).status == RESERVATION_CONFLICT
        assert vm.command(reserve_out(RESERVE, REGISTRANTS_ONLY), basic(0xA)).status == RESERVATION_CONFLICT
        # It comes back as a member; then the cluster gives the disk away.
        vm.ok(reserve_out(REGISTER), basic(0, 0xA))
        vm.ok(write10(2, 1), B)
        assert host.ok(KEYS, in_len=256)[8:] == (0xB).to_bytes(8) + (0xA).to_bytes(8)
        host.ok(reserve_out(CLEAR), basic(0xB))
        vm.fails(sense.RESERVATIONS_PREEMPTED, TEST_UNIT_READY)
        assert vm.ok(KEYS, in_len=256)[4:] == bytes(4)
        stranger.ok(write10(0, 1), B)


def test_preempt_and_abort_reaches_over_to_the_other_transport(both: Both) -> None:
    both.vm.ok(reserve_out(REGISTER), basic(0, 0xA))
    both.host.ok(reserve_out(REGISTER), basic(0, 0xB))
    both.vm.ok(reserve_out(RESERVE, 3), basic(0xA))
    tag = both.vm.send(write10(5, 1), A)
    both.live.wait_for(lambda: both.live.in_flight() > 0, "the write to be on its way")
    both.host.ok(reserve_out(PREEMPT_AND_ABORT, 3), basic(0xB, 0xA))
    assert both.vm.wait(tag).response == Response.ABORTED
    both.vm.fails(sense.REGISTRATIONS_PREEMPTED, TEST_UNIT_READY)
    assert both.vm.command(read10(5, 1), in_len=BLOCK).status == RESERVATION_CONFLICT
