# SPDX-License-Identifier: Apache-2.0
"""One logical unit seen through real rings: unit attentions, modes, power, LUN addressing; Python and C must agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from tests.live import (
    REPORT_LUNS,
    TEST_UNIT_READY,
    Live,
    good,
    inquiry,
    mode_sense10,
    read10,
    set_d_sense,
    set_swp,
    set_wce,
    start_stop,
    synchronize_cache,
    write10,
)
from vhost_scsi.errors import ConfigError
from vhost_scsi.scsi import sense
from vhost_scsi.scsi.commands import COMMANDS, VARIABLE_LENGTH, DeviceType
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.stores import PythonStore, open_store
from vhost_scsi.target import LuSpec
from vhost_scsi.vhost_user.device import VirtioScsiDevice
from vhost_scsi.vhost_user.server import Server
from vhost_scsi.virtqueue.virtio_scsi import Response, TaskManagement, WellKnownAddress

BLOCK = b"\xa5" * 512


class CountingStore(PythonStore):
    """Bytes in memory; remembers which operations it was asked for, and how many writes a flush made durable."""

    size = 1 << 20

    def __init__(self) -> None:
        self.bytes = bytearray(self.size)
        self.calls: list[str] = []

    async def read(self, offset: int, length: int) -> bytes:
        self.calls.append("read")
        return bytes(self.bytes[offset : offset + length])

    async def write(self, offset: int, data: bytes) -> None:
        self.calls.append("write")
        self.bytes[offset : offset + len(data)] = data

    async def flush(self) -> None:
        self.calls.append("flush")

    def taken(self) -> list[str]:
        taken, self.calls = self.calls, []
        return taken


# ---- unit attentions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [TEST_UNIT_READY, read10(0, 1), mode_sense10(8)], ids=["ready", "read", "mode"])
def test_power_on_is_told_once_by_the_first_command_that_tells_it(live: Live, first: bytes) -> None:
    with live.end((0, 0, live.unit())).connect() as host:
        host.ok(inquiry(), in_len=96)
        host.ok(REPORT_LUNS, in_len=1024)
        host.fails(sense.POWER_ON_OCCURRED, first, in_len=512)
        host.ok(first, in_len=512)


def test_a_write_that_met_a_unit_attention_wrote_nothing(live: Live) -> None:
    with live.end((0, 0, live.unit())).connect() as host:
        host.fails(sense.POWER_ON_OCCURRED, write10(0, 1), BLOCK)
        assert host.ok(read10(0, 1), in_len=512) == bytes(512)


def test_each_nexus_of_a_unit_is_told_of_power_on(live: Live) -> None:
    unit = live.unit()
    with live.end((0, 0, unit), (1, 7, unit)).connect() as host:
        host.fails(sense.POWER_ON_OCCURRED, TEST_UNIT_READY, at=(0, 0))
        host.fails(sense.POWER_ON_OCCURRED, TEST_UNIT_READY, at=(1, 7))
        host.ok(TEST_UNIT_READY, at=(0, 0))


def test_a_unit_reset_is_told_to_every_nexus(live: Live) -> None:
    unit = live.unit()
    one, two = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="two")
    with one.connect() as here, two.connect() as there:
        here.ready()
        there.ready()
        assert here.manage(TaskManagement.LOGICAL_UNIT_RESET) == 0
        here.fails(sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED, read10(0, 1), in_len=512)
        there.fails(sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED, read10(0, 1), in_len=512)
        here.ok(read10(0, 1), in_len=512)
        there.ok(read10(0, 1), in_len=512)


def test_a_lost_nexus_is_told_to_that_nexus_alone(live: Live) -> None:
    unit = live.unit()
    one, two = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="two")
    with one.connect() as here, two.connect() as there:
        here.ready()
        there.ready()
        assert here.manage(TaskManagement.I_T_NEXUS_RESET) == 0
        here.fails(sense.I_T_NEXUS_LOSS_OCCURRED, TEST_UNIT_READY)
        there.ok(TEST_UNIT_READY)


def test_a_new_connection_is_told_of_the_lost_one_unless_power_on_says_more(live: Live) -> None:
    end = live.end((0, 0, live.unit()))
    with end.connect():
        pass
    live.wait_until_free(end)
    with end.connect() as host:
        host.fails(sense.POWER_ON_OCCURRED, TEST_UNIT_READY)
        host.ready()
    with end.connect() as host:
        host.fails(sense.I_T_NEXUS_LOSS_OCCURRED, TEST_UNIT_READY)
        host.ok(TEST_UNIT_READY)


def test_a_mode_change_is_told_to_the_other_port_only(live: Live) -> None:
    unit = live.unit()
    one, two = live.end((0, 0, unit), name="one"), live.end((3, 5, unit), name="two")
    with one.connect() as here, two.connect() as there:
        here.ready()
        there.ready((3, 5))
        set_wce(here, False)
        here.ok(TEST_UNIT_READY)
        there.fails(sense.MODE_PARAMETERS_CHANGED, TEST_UNIT_READY, at=(3, 5))
        there.ok(TEST_UNIT_READY, at=(3, 5))
        assert there.ok(mode_sense10(8), in_len=252, at=(3, 5))[10] & 4 == 0


# ---- modes ---------------------------------------------------------------------------------------------------------


def test_write_cache_decides_whether_a_write_is_durable(live: Live) -> None:
    store = CountingStore()
    with live.end((0, 0, live.unit(store))).connect() as host:
        host.ready()
        host.ok(write10(0, 1), BLOCK)
        assert store.taken() == ["write"]
        set_wce(host, False)
        assert store.taken() == ["flush"]  # what was written before becomes durable
        host.ok(write10(0, 1), BLOCK)
        assert store.taken() == ["write", "flush"]
        set_wce(host, True)
        host.ok(write10(0, 1), BLOCK)
        assert store.taken() == ["write"]


def test_fua_and_synchronize_cache_reach_the_store(live: Live) -> None:
    store = CountingStore()
    with live.end((0, 0, live.unit(store))).connect() as host:
        host.ready()
        host.ok(write10(3, 1, fua=True), BLOCK)
        assert store.taken() == ["write", "flush"]
        host.ok(synchronize_cache())
        assert store.taken() == ["flush"]
        assert bytes(store.bytes[3 * 512 : 4 * 512]) == BLOCK


def test_a_reset_brings_the_default_of_write_cache_back(live: Live) -> None:
    store = CountingStore()
    with live.end((0, 0, live.unit(store))).connect() as host:
        host.ready()
        set_wce(host, False)
        host.manage(TaskManagement.LOGICAL_UNIT_RESET)
        host.ready()
        store.taken()
        host.ok(write10(0, 1), BLOCK)
        assert store.taken() == ["write"]


def test_d_sense_changes_the_format_in_both_planes(live: Live) -> None:
    in_c, in_python = read10(0xFFFFFFFF, 1), bytes([0xFF, *bytes(5)])
    with live.end((0, 0, live.unit())).connect() as host:
        host.ready()
        for descriptor in (False, True, False):
            set_d_sense(host, descriptor)
            format_ = 0x72 if descriptor else 0x70
            beyond = host.command(in_c, in_len=512)
            assert beyond.sense[0] & 0x7F == format_
            assert host.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, in_c, in_len=512)
            assert host.command(in_python).sense[0] & 0x7F == format_
            host.fails(sense.INVALID_COMMAND_OPERATION_CODE, in_python)


def test_software_write_protection_stops_writes_and_no_reads(live: Live) -> None:
    unit = live.unit()
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        host.ok(write10(1, 1), BLOCK)
        set_swp(host, True)
        # Nothing else stops the write: what held commands during the change is gone.
        live.wait_for(lambda: live.run(unit.gate.read) == GateBit.WRITE_PROTECTED, "a gate that stops writes only")
        host.fails(sense.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED, write10(1, 1), bytes(512))
        assert host.ok(mode_sense10(10), in_len=252)[3] & 0x80  # WP
        assert host.ok(read10(1, 1), in_len=512) == BLOCK
        set_swp(host, False)
        host.ok(write10(1, 1), bytes(512))
        assert host.ok(read10(1, 1), in_len=512) == bytes(512)


def test_a_read_only_unit_refuses_writes(live: Live) -> None:
    with live.end((0, 0, live.unit(read_only=True))).connect() as host:
        host.ready()
        host.fails(sense.WRITE_PROTECTED, write10(0, 1), BLOCK)
        assert host.ok(read10(0, 1), in_len=512) == bytes(512)


def test_a_file_opened_read_only_refuses_to_unmap_as_it_refuses_writes(live: Live) -> None:
    """Such a store offers no unmapping; the reason why nothing is unmapped is the protection all the same."""
    image = live.directory / "image"
    image.write_bytes(bytes(1 << 20))
    with live.end((0, 0, live.unit(f"{image},readonly"))).connect() as host:
        host.ready()
        unmap = bytes([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0])
        descriptor = bytes([0, 22, 0, 16, 0, 0, 0, 0, *bytes(8), 0, 0, 0, 8, *bytes(4)])
        write_same = bytes([0x93, 0x08, *bytes(8), 0, 0, 0, 8, 0, 0])
        host.fails(sense.WRITE_PROTECTED, unmap, descriptor)
        host.fails(sense.WRITE_PROTECTED, write_same, bytes(512))


def test_the_next_initiator_finds_the_unit_as_new(live: Live) -> None:
    store = CountingStore()
    end = live.end((0, 0, live.unit(store)))
    with end.connect() as host:
        host.ready()
        set_wce(host, False)
        set_swp(host, True)
        set_d_sense(host, True)
        host.ok(start_stop(False))
    live.wait_until_free(end)
    store.taken()
    with end.connect() as host:
        host.fails(sense.I_T_NEXUS_LOSS_OCCURRED, TEST_UNIT_READY)
        host.ok(TEST_UNIT_READY)
        host.ok(write10(0, 1), BLOCK)
        assert store.taken() == ["write"]
        assert host.command(read10(0xFFFFFFFF, 1), in_len=512).sense[0] & 0x7F == 0x70


def test_what_an_initiator_made_of_a_unit_stays_while_another_port_uses_it(live: Live) -> None:
    unit = live.unit()
    one, two = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="two")
    with two.connect() as there:
        there.ready()
        with one.connect() as here:
            here.ready()
            set_swp(here, True)
            here.ok(start_stop(False))
        live.wait_until_free(one)
        there.fails(sense.MODE_PARAMETERS_CHANGED, TEST_UNIT_READY)
        there.fails(sense.LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED, TEST_UNIT_READY)
        there.ok(start_stop(True))
        there.fails(sense.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED, write10(0, 1), BLOCK)
    live.wait_until_free(two)
    with one.connect() as here:
        here.ready()
        here.ok(write10(0, 1), BLOCK)


def test_a_reset_starts_a_stopped_unit(live: Live) -> None:
    with live.end((0, 0, live.unit())).connect() as host:
        host.ready()
        host.ok(start_stop(False))
        assert host.manage(TaskManagement.LOGICAL_UNIT_RESET) == 0
        host.fails(sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED, TEST_UNIT_READY)
        host.ok(read10(0, 1), in_len=512)


def test_a_stopped_unit_is_not_ready(live: Live) -> None:
    with live.end((0, 0, live.unit())).connect() as host:
        host.ready()
        host.ok(start_stop(False))
        for cdb in (TEST_UNIT_READY, read10(0, 1)):
            host.fails(sense.LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED, cdb, in_len=512)
        host.ok(inquiry(), in_len=96)
        host.ok(start_stop(True))
        host.ok(TEST_UNIT_READY)
        host.ok(read10(0, 1), in_len=512)


# ---- LUNs and targets ----------------------------------------------------------------------------------------------


def luns_of(data: bytes) -> list[int]:
    length = int.from_bytes(data[:4], "big")
    assert length == len(data) - 8
    return [int.from_bytes(data[at : at + 2], "big") & 0x3FFF for at in range(8, len(data), 8)]


def test_report_luns_names_the_luns_of_that_target_only(live: Live) -> None:
    unit = live.unit()
    with live.end((0, 0, unit), (0, 300, unit), (1, 2, unit)).connect() as host:
        assert luns_of(host.ok(REPORT_LUNS, in_len=1024, at=(0, 0))) == [0, 300]
        assert luns_of(host.ok(REPORT_LUNS, in_len=1024, at=(1, 0))) == [2]
        assert luns_of(host.ok(REPORT_LUNS, in_len=1024, at=(1, 2))) == [2]


def test_the_well_known_unit_reports_luns(live: Live) -> None:
    unit = live.unit()
    with live.end((0, 0, unit), (0, 9, unit)).connect() as host:
        assert luns_of(host.ok(REPORT_LUNS, in_len=1024, at=WellKnownAddress())) == [0, 9]
        assert host.ok(inquiry(), in_len=96, at=WellKnownAddress())[0] & 0x1F == 0x1E
        host.fails(sense.INVALID_COMMAND_OPERATION_CODE, read10(0, 1), in_len=512, at=WellKnownAddress())


def test_an_absent_lun_says_so_and_an_absent_target_is_no_target(live: Live) -> None:
    with live.end((0, 0, live.unit())).connect() as host:
        assert host.ok(inquiry(), in_len=96, at=(0, 5))[0] == 0x7F
        host.fails(sense.LOGICAL_UNIT_NOT_SUPPORTED, TEST_UNIT_READY, at=(0, 5))
        host.fails(sense.LOGICAL_UNIT_NOT_SUPPORTED, read10(0, 1), in_len=512, at=(0, 16383))
        assert host.command(TEST_UNIT_READY, at=(1, 0)).response == Response.BAD_TARGET
        assert host.command(TEST_UNIT_READY, at=(255, 0)).response == Response.BAD_TARGET


@pytest.mark.parametrize(
    "address",
    [
        bytes([1, 0, 0x40, 0, 0, 1, 0, 0]),  # a second level
        bytes([2, 0, 0x40, 0, 0, 0, 0, 0]),
        bytes([1, 0, 0x80, 0, 0, 0, 0, 0]),  # logical unit addressing
        bytes([1, 0, 0xC1, 2, 0, 0, 0, 0]),  # another well-known unit
        bytes([0xC1, 2, 0, 0, 0, 0, 0, 0]),
    ],
    ids=bytes.hex,
)
def test_an_address_of_another_kind_is_no_target(live: Live, address: bytes) -> None:
    with live.end((0, 0, live.unit())).connect() as host:
        assert host.command(TEST_UNIT_READY, at=address).response == Response.BAD_TARGET


def test_peripheral_and_flat_addressing_reach_the_same_unit(live: Live) -> None:
    with live.end((2, 4, live.unit())).connect() as host:
        host.ready((2, 4))
        for lun in (bytes([1, 2, 0x00, 4]), bytes([1, 2, 0x40, 4])):
            host.ok(TEST_UNIT_READY, at=lun + bytes(4))


@pytest.mark.slow
def test_a_target_with_every_lun_there_can_be(make_live: Callable[[str, int], Live]) -> None:
    live = make_live("auto", 1)
    unit = live.unit()

    async def build() -> None:
        await live.target.ports["many"].map_all((0, lun, unit) for lun in range(16384))

    live.run(lambda: live.target.add_port("many"))
    live.call(build(), 120)
    end = live.end(name="other")
    device = live.run(lambda: VirtioScsiDevice(live.core, live.target.ports["many"], workers=range(live.workers)))
    live.call(device.publish_luns())
    live.call(end.server.close())
    # The same socket, the other device.
    live.call(end.device.close())
    end.device, end.port, end.server = device, device.port, Server.at_path(device, end.path)
    live.call(end.server.start())
    with end.connect(request_queues=1) as host:
        data = host.ok(bytes([0xA0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]), in_len=0x40000)
        assert luns_of(data) == list(range(16384))
        host.fails(sense.POWER_ON_OCCURRED, TEST_UNIT_READY, at=(0, 16383))
        host.ok(TEST_UNIT_READY, at=(0, 16383))


def test_report_supported_operation_codes_names_what_runs(live: Live) -> None:
    cdb = bytes([0xA3, 0x0C, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0])
    with live.end((0, 0, live.unit(cdb32=True))).connect() as host:
        host.ready()
        data = host.ok(cdb, in_len=4096)
        length = int.from_bytes(data[:4], "big")
        listed = {(data[at], int.from_bytes(data[at + 2 : at + 4], "big")) for at in range(4, 4 + length, 8)}
        fixed = [row for row in COMMANDS if DeviceType.DISK in row.device_types]
        assert listed == {(row.opcode, row.service_action or 0) for row in fixed if row.name[:7] != "PREVENT"}
        for opcode, action in listed - {(0x04, 0)}:
            wide = action.to_bytes(2) if opcode == VARIABLE_LENGTH else bytes(2)
            cdb = bytes([opcode, 0 if any(wide) else action, *bytes(5), 0x18 if any(wide) else 0, *wide, *bytes(22)])
            result = host.command(cdb, in_len=512)
            assert result.sense[12:14] != b"\x20\x00", f"{opcode:#x} is listed and not known"


# ---- building ------------------------------------------------------------------------------------------------------


def test_places_that_do_not_exist_or_are_taken_are_refused(live: Live) -> None:
    unit = live.unit()
    port = live.end((0, 0, unit)).port
    for place, words in (((256, 0), "no place"), ((0, 16384), "no place"), ((0, 0), "taken by disk")):
        with pytest.raises(ConfigError, match=words):
            live.call(port.map(*place, unit))


def test_names_are_unique_and_sizes_make_sense(live: Live) -> None:
    live.unit()
    live.end()
    with pytest.raises(ConfigError, match="port is there already"):
        live.run(lambda: live.target.add_port("port"))

    def spec(store: str, **options: Any) -> None:
        async def add() -> None:
            opened = open_store(store, live.core)
            try:
                await live.target.add_lu(LuSpec(options.pop("name", "new"), uuid4(), **options), opened)
            except BaseException:
                opened.close()
                raise

        live.call(add())

    with pytest.raises(ConfigError, match="disk is there already"):
        spec("memory:1M", name="disk")
    with pytest.raises(ConfigError, match="not a power of two"):
        spec("memory:1M", block_size=1000)
    with pytest.raises(ConfigError, match="not a multiple of the block size 4096"):
        spec("memory:1536", block_size=4096)


def test_a_unit_that_is_unmapped_under_load_ends_its_commands_first(live: Live) -> None:
    unit = live.unit("delay(read=700ms):memory:1M")
    end = live.end((0, 0, unit), (0, 1, live.unit(name="stays")))
    with end.connect() as host:
        host.ready((0, 0), (0, 1))
        tags = [host.send(read10(n, 1), in_len=512) for n in range(20)]
        live.wait_for(lambda: live.in_flight() == 20, "the reads")
        live.call(end.port.unmap(0, 0))
        # Whatever became of them, each was answered before unmap returned.
        assert {result.tag for result in host.driver.collect()} == set(tags)
        host.fails(sense.LOGICAL_UNIT_NOT_SUPPORTED, TEST_UNIT_READY)
        host.fails(sense.REPORTED_LUNS_DATA_HAS_CHANGED, TEST_UNIT_READY, at=(0, 1))
        host.ok(TEST_UNIT_READY, at=(0, 1))
        assert unit.logical_unit.itls == []


def test_a_unit_closes_its_store_once_and_flushes_before(live: Live) -> None:
    store = CountingStore()
    closed: list[str] = []
    store.close = lambda: closed.append("closed")  # type: ignore[method-assign]
    unit = live.unit(store)
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        host.ok(write10(0, 1), BLOCK)
    end = live.ends[0]
    live.wait_until_free(end)
    live.call(end.port.unmap(0, 0))
    store.taken()
    live.call(unit.close())
    del live.target.units["disk"]
    assert (store.taken(), closed) == (["flush"], ["closed"])


def test_commands_of_one_nexus_in_both_planes_keep_each_other_busy(live: Live) -> None:
    """Reads in C and INQUIRYs in Python, interleaved: each gets its own answer."""
    with live.end((0, 0, live.unit())).connect() as host:
        host.ready()
        for n in range(8):
            host.ok(write10(n, 1), bytes([n]) * 512)
        tags = {}
        for n in range(64):
            tags[host.send(read10(n % 8, 1), in_len=512, publish=False, queue=n % 4)] = bytes([n % 8]) * 512
            tags[host.send(inquiry(36), in_len=36, publish=False, queue=n % 4)] = None
        host.driver.publish()
        for tag, data in tags.items():
            found = good(host.wait(tag))
            assert found == data if data is not None else len(found) == 36


def test_stats_count_what_was_done(live: Live) -> None:
    unit = live.unit()
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        before = live.run(unit.stats)
        host.ok(write10(0, 2), BLOCK * 2)
        host.ok(read10(0, 4), in_len=2048)
        host.ok(synchronize_cache())
        host.command(read10(0xFFFFFFFF, 1), in_len=512)
        host.ok(inquiry(), in_len=96)
        after = live.run(unit.stats)
    assert (after.writes - before.writes, after.write_bytes - before.write_bytes) == (1, 1024)
    assert after.read_bytes - before.read_bytes == 2048
    assert after.flushes - before.flushes == 1
    assert after.failed - before.failed == 1
    assert after.escalated - before.escalated == 1


def test_the_fixture_really_runs_both_engines(live: Live) -> None:
    epoll = live.core.options.engine == "epoll" or live.core.engine_why_not is not None
    assert live.core.engine_name == ("epoll" if epoll else "io_uring")


# ---- an inventory that changes (SPC-5 6.33) ------------------------------------------------------------------------


def test_luns_that_come_and_go_are_told_once_to_each_nexus(live: Live) -> None:
    first, new = live.unit(), live.unit(name="new")
    end = live.end((0, 0, first), (0, 1, live.unit(name="second")), (1, 0, first))
    changed = sense.REPORTED_LUNS_DATA_HAS_CHANGED
    with end.connect() as host:
        host.ready((0, 0), (0, 1), (1, 0))
        live.call(end.port.map(0, 2, new))
        host.fails(changed, TEST_UNIT_READY, at=(0, 1))
        host.ok(TEST_UNIT_READY, at=(0, 0))  # it was told
        host.ok(TEST_UNIT_READY, at=(1, 0))  # another target port, whose LUNs are the same as ever
        host.fails(sense.POWER_ON_OCCURRED, TEST_UNIT_READY, at=(0, 2))
        host.ok(TEST_UNIT_READY, at=(0, 2))
        live.call(end.port.unmap(0, 2))
        host.fails(changed, TEST_UNIT_READY, at=(0, 0))
        host.ok(TEST_UNIT_READY, at=(0, 1))
        live.call(end.port.unmap(0, 1))
        assert luns_of(host.ok(REPORT_LUNS, in_len=4096)) == [0]  # the command itself is the answer
        host.ok(TEST_UNIT_READY, at=(0, 0))


def test_who_never_asked_hears_of_no_change(live: Live) -> None:
    end = live.end((0, 0, live.unit()))
    live.call(end.port.map(0, 1, live.unit(name="second")))
    with end.connect() as host:
        for lun in (0, 1):
            host.fails(sense.POWER_ON_OCCURRED, TEST_UNIT_READY, at=(0, lun))
            host.ok(TEST_UNIT_READY, at=(0, lun))


def test_many_luns_are_published_at_once(live: Live) -> None:
    unit = live.unit()
    port = live.end(name="many").port
    publish = port.on_luns
    assert publish is not None
    published: list[int] = []

    async def count() -> None:
        published.append(len(port.luns))
        await publish()

    port.on_luns = count
    live.call(port.map_all((0, lun, unit) for lun in range(100)))
    with pytest.raises(ConfigError, match="taken by disk"):
        live.call(port.map_all([(1, 0, unit), (0, 99, unit), (1, 1, unit)]))
    assert (published, len(port.luns)) == ([100, 101], 101)
    live.call(port.unmap_all())
    assert (published, unit.logical_unit.itls) == ([100, 101, 0], [])


def test_a_loss_ends_tasks_of_busy_luns_and_is_told_on_all(live: Live) -> None:
    busy = live.unit("delay(read=30s):memory:1M", "busy")
    end = live.end(*((0, lun, busy) for lun in range(3)), (0, 3, live.unit()))
    with end.connect() as host:
        host.ready(*((0, lun) for lun in range(4)))
        tag = host.send(read10(0, 1), in_len=512, at=(0, 1))
        live.wait_for(lambda: live.in_flight() == 1, "the read")
        live.call(end.port.nexus_lost())
        assert host.wait(tag).response == Response.RESET
        for lun in range(4):
            host.fails(sense.I_T_NEXUS_LOSS_OCCURRED, TEST_UNIT_READY, at=(0, lun))
            host.ok(TEST_UNIT_READY, at=(0, lun))
