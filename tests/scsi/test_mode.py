# SPDX-License-Identifier: Apache-2.0
"""MODE SENSE and MODE SELECT: what is told, what may change, and that a bad list changes nothing."""

import pytest

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.commands import DeviceType
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.logical_unit import LogicalUnit
from vhost_scsi.scsi.medium import Capabilities, Support
from vhost_scsi.scsi.mode_pages import PAGES
from vhost_scsi.scsi.mode_parameters import ModeParameters
from vhost_scsi.scsi.saved_state import NotKept, SavedStateDamaged, SavedStateError
from vhost_scsi.scsi.task import Status

CURRENT, CHANGEABLE, DEFAULT, SAVED = range(4)
HEADER_6 = bytes(4)
HEADER_10 = bytes(8)
DISK_PAGES = [page for page in PAGES if DeviceType.DISK in page.device_types]
CACHING = bytes.fromhex("0812040000000000000000000000000000000000")
NO_CACHE = bytes.fromhex("0812000000000000000000000000000000000000")
CONTROL = bytes.fromhex("0a0a001000000000ffff0000")
DESCRIPTOR_SENSE = bytes.fromhex("0a0a041000000000ffff0000")
RECOVERY = bytes.fromhex("010a00000000000000000000")
THRESHOLDS = bytes.fromhex("5c02001c") + bytes(12) + bytes.fromhex("00010000000000000102000000000000")
PROTECTED = bytes.fromhex("0a0a001008000000ffff0000")


@pytest.fixture
def select(ok):
    """MODE SELECT(6) with PF."""

    def select(lu, *parts, **given):
        data = HEADER_6 + b"".join(parts)
        return ok(lu, "MODE SELECT(6)", pf=1, parameter_list_length=len(data), data_out=data, **given)

    return select


@pytest.fixture
def refused(fails):
    """MODE SELECT(6) that fails and changes nothing."""

    def refused(lu, data, code, **given):
        before = [lu.unit.mode.current(page) for page in PAGES]
        fails(lu, "MODE SELECT(6)", code, pf=1, parameter_list_length=len(data), data_out=data, **given)
        assert [lu.unit.mode.current(page) for page in PAGES] == before
        assert not lu.medium.log

    return refused


def page_of(ok, lu, code, pc=CURRENT, subpage=0):
    """As MODE SELECT takes it: without PS."""
    return without_ps(ok(lu, "MODE SENSE(6)", dbd=1, page_code=code, subpage_code=subpage, pc=pc)[4:])


def without_ps(page):
    return bytes([page[0] & 0x7F]) + page[1:]


# ---- MODE SENSE ----


def test_one_page_with_its_short_block_descriptor(make_lu, ok):
    data = ok(make_lu(num_blocks=0x12345), "MODE SENSE(6)", page_code=0x08)
    assert data[:12] == bytes([3 + 8 + 20, 0, 0x10, 8]) + bytes.fromhex("0001234500000200")
    assert without_ps(data[12:]) == CACHING


def test_ten_byte_header(lu, ok):
    data = ok(lu, "MODE SENSE(10)", page_code=0x0A)
    assert data[:8] == bytes([0, 6 + 8 + 12, 0, 0x10, 0, 0, 0, 8])
    assert without_ps(data[16:]) == CONTROL


def test_dbd_leaves_the_block_descriptor_out(lu, ok):
    data = ok(lu, "MODE SENSE(6)", page_code=0x08, dbd=1)
    assert data[:4] == bytes([23, 0, 0x10, 0])
    assert without_ps(data[4:]) == CACHING


def test_llbaa_gives_a_long_block_descriptor(make_lu, ok):
    data = ok(make_lu(num_blocks=1 << 33, block_size=4096), "MODE SENSE(10)", page_code=0x08, llbaa=1)
    assert data[:8] == bytes([0, 6 + 16 + 20, 0, 0x10, 1, 0, 0, 16])
    assert data[8:24].hex() == "0000000200000000" + "00000000" + "00001000"


def test_llbaa_with_dbd_claims_no_long_descriptor(lu, ok):
    assert ok(lu, "MODE SENSE(10)", page_code=0x08, llbaa=1, dbd=1)[4:8] == bytes(4)


def test_a_short_block_descriptor_of_a_large_medium_says_all_ones(make_lu, ok):
    assert ok(make_lu(num_blocks=1 << 33), "MODE SENSE(6)", page_code=0x08)[4:8] == b"\xff" * 4


@pytest.mark.parametrize("page", DISK_PAGES, ids=lambda page: page.name)
def test_every_page_says_its_code_and_length(lu, ok, page):
    for pc in (CURRENT, CHANGEABLE, DEFAULT, SAVED):
        data = page_of(ok, lu, page.code, pc, page.subpage)
        if page.subpage:
            assert data[:2] == bytes([0x40 | page.code, page.subpage])
            assert int.from_bytes(data[2:4]) == len(data) - 4
        else:
            assert data[:2] == bytes([page.code, len(data) - 2])


@pytest.mark.parametrize("page", DISK_PAGES, ids=lambda page: page.name)
def test_ps_is_set_where_something_can_change(lu, ok, page):
    data = ok(lu, "MODE SENSE(10)", dbd=1, page_code=page.code, subpage_code=page.subpage)[8:]
    assert bool(data[0] & 0x80) == bool(page.changeable)


@pytest.mark.parametrize(
    ("code", "length"), [(0x01, 12), (0x02, 16), (0x07, 12), (0x08, 20), (0x0A, 12), (0x1A, 40), (0x1C, 12)]
)
def test_page_lengths_are_the_standards(lu, ok, code, length):
    assert len(page_of(ok, lu, code)) == length


@pytest.mark.parametrize("subpage", [0x00, 0xFF])
def test_page_3f_gives_all_pages_in_ascending_order(lu, ok, subpage):
    data = ok(lu, "MODE SENSE(6)", dbd=1, page_code=0x3F, subpage_code=subpage)
    assert data[0] == len(data) - 1
    shown = [page for page in DISK_PAGES if subpage or not page.subpage]
    at = 4
    for page in shown:
        whole = page_of(ok, lu, page.code, subpage=page.subpage)
        assert without_ps(data[at : at + len(whole)]) == whole
        at += len(whole)
    assert at == len(data)
    assert [page.key for page in PAGES] == sorted(page.key for page in PAGES)


def test_all_subpages_of_one_page(lu, ok):
    data = ok(lu, "MODE SENSE(6)", dbd=1, page_code=0x0A, subpage_code=0xFF)[4:]
    assert without_ps(data[:12]) == CONTROL
    assert data[12:16] == bytes([0x4A, 0x01, 0, 0x1C])
    assert len(data) == 12 + 32


def test_an_unknown_page_is_refused(lu, fails):
    fails(lu, "MODE SENSE(6)", sense.INVALID_FIELD_IN_CDB, page_code=0x05, at=(2, 5))


@pytest.mark.parametrize(("page_code", "subpage"), [(0x0A, 2), (0x3F, 1), (0x08, 1)])
def test_an_unknown_subpage_is_refused(lu, fails, page_code, subpage):
    fails(lu, "MODE SENSE(10)", sense.INVALID_FIELD_IN_CDB, page_code=page_code, subpage_code=subpage, at=(3, 7))


def test_what_was_saved_comes_back_with_a_reset_and_a_new_unit(lu, ok, make_lu):
    data = HEADER_6 + NO_CACHE
    ok(lu, "MODE SELECT(6)", pf=1, sp=1, parameter_list_length=len(data), data_out=data)
    assert page_of(ok, lu, 0x08, SAVED) == NO_CACHE
    assert page_of(ok, lu, 0x08, DEFAULT) == CACHING
    data = HEADER_6 + CACHING
    ok(lu, "MODE SELECT(6)", pf=1, parameter_list_length=len(data), data_out=data)
    assert page_of(ok, lu, 0x08) == CACHING
    assert page_of(ok, lu, 0x08, SAVED) == NO_CACHE
    lu.run(lu.unit.logical_unit_reset(lu.itl))
    lu.itl.take()
    assert page_of(ok, lu, 0x08) == NO_CACHE
    again = LogicalUnit(lu.unit.definition, lu.medium, lu.gate, lu.unit.saved)
    assert not again.write_cache
    assert ModeParameters(saved=b"\x08\x12").to_save() != NO_CACHE


def test_saving_alone_is_no_change_for_others(lu, ok):
    other = lu.attach()
    other.take()
    data = HEADER_6 + CACHING
    ok(lu, "MODE SELECT(6)", pf=1, sp=1, parameter_list_length=len(data), data_out=data)
    assert other.take() is None


def test_what_cannot_be_saved_is_not_changed_either(lu, ok, fails, monkeypatch):
    async def put(name, data):
        raise SavedStateError("no room")

    monkeypatch.setattr(lu.unit.saved, "put", put)
    given = {"pf": 1, "sp": 1, "parameter_list_length": 24, "data_out": HEADER_6 + NO_CACHE}
    fails(lu, "MODE SELECT(6)", sense.INTERNAL_TARGET_FAILURE, **given)
    assert page_of(ok, lu, 0x08) == page_of(ok, lu, 0x08, SAVED) == CACHING


def test_damaged_saved_pages_are_not_used(lu, caplog):
    class Damaged(NotKept):
        def get(self, name):
            raise SavedStateDamaged("checksum")

    unit = LogicalUnit(lu.unit.definition, lu.medium, lu.gate, Damaged())
    assert unit.write_cache
    assert "damaged" in caplog.text


def test_saved_pages_of_another_version_change_nothing_that_cannot_be_changed():
    blob = bytes.fromhex("0a0afff0ffffffffffffffff") + bytes.fromhex("3f02aaaa") + bytes.fromhex("0802ffff")
    parameters = ModeParameters(saved=blob)
    others = [RECOVERY, THRESHOLDS]
    control = bytes.fromhex("0a0a241038400000ffff0000")
    assert parameters.to_save() == b"".join([others[0], CACHING, control, others[1]])


def test_changeable_bits(lu, ok):
    assert page_of(ok, lu, 0x08, CHANGEABLE)[2:4].hex() == "0400"
    assert page_of(ok, lu, 0x0A, CHANGEABLE)[2:6].hex() == "24063840"
    assert not any(page_of(ok, lu, 0x1C, CHANGEABLE)[2:])


def test_mode_data_end_at_the_allocation_length(lu, ok):
    whole = ok(lu, "MODE SENSE(6)", page_code=0x3F)
    assert ok(lu, "MODE SENSE(6)", page_code=0x3F, allocation_length=7) == whole[:7]


def test_wp_says_that_the_medium_is_read_only(make_lu, ok):
    assert ok(make_lu(read_only=True), "MODE SENSE(6)", page_code=0x08)[2] == 0x90


def test_dpofua_is_not_claimed_without_fua(make_lu, ok):
    lu = make_lu(capabilities=Capabilities(fua=Support.NONE))
    assert ok(lu, "MODE SENSE(6)", page_code=0x08)[2] == 0


def test_the_write_cache_may_be_off_by_default(make_lu, ok):
    lu = make_lu(write_cache=False)
    assert page_of(ok, lu, 0x08) == page_of(ok, lu, 0x08, DEFAULT) == NO_CACHE


# ---- MODE SELECT: what changes ----


def test_wce_off_flushes_before_it_tells_c(lu, ok, select):
    select(lu, NO_CACHE)
    assert lu.medium.log[:2] == ["flush", ("write_cache", False)]
    assert page_of(ok, lu, 0x08) == NO_CACHE
    assert page_of(ok, lu, 0x08, DEFAULT) == CACHING


def test_wce_on_needs_no_flush(lu, select):
    select(lu, NO_CACHE)
    lu.medium.log.clear()
    select(lu, CACHING)
    assert "flush" not in lu.medium.log
    assert ("write_cache", True) in lu.medium.log


def test_wce_stays_on_when_the_flush_fails(lu, ok, fails):
    lu.medium.flush_failed = True
    data = HEADER_6 + NO_CACHE
    fails(lu, "MODE SELECT(6)", sense.WRITE_ERROR, pf=1, parameter_list_length=len(data), data_out=data)
    assert page_of(ok, lu, 0x08) == CACHING
    assert ("write_cache", False) not in lu.medium.log


def test_a_change_is_made_behind_a_fence_that_opens_again(lu, select):
    select(lu, NO_CACHE)
    kinds = [kind for kind, bits in lu.gate.history if bits & GateBit.HOLD]
    assert kinds == ["close", "fence", "open"]


def test_a_change_waits_for_commands_in_flight(lu):
    lu.gate.in_flight_ended.clear()
    data = HEADER_6 + NO_CACHE
    outcomes = lu.run(submit_soon(lu, data))
    lu.settle()
    assert not outcomes
    assert not lu.medium.log
    lu.gate.in_flight_ended.set()
    lu.settle()
    assert outcomes[0].status is Status.GOOD
    assert "flush" in lu.medium.log


async def submit_soon(lu, data):
    return lu.submit(lu.task("MODE SELECT(6)", pf=1, parameter_list_length=len(data), data_out=data))


def test_the_same_values_change_nothing(lu, select):
    other = lu.attach()
    other.take()
    select(lu, CACHING, CONTROL)
    assert not lu.medium.log
    assert not other.attentions


def test_d_sense_switches_to_descriptor_format(lu, fails, select):
    assert fails(lu, b"\xc1" + bytes(5), sense.INVALID_COMMAND_OPERATION_CODE)[0] == 0x70
    select(lu, DESCRIPTOR_SENSE)
    assert ("descriptor_sense", True) in lu.medium.log
    assert fails(lu, b"\xc1" + bytes(5), sense.INVALID_COMMAND_OPERATION_CODE)[0] == 0x72


def test_swp_write_protects_the_unit(lu, ok, select, fails, executes):
    select(lu, PROTECTED)
    assert lu.gate.bits & GateBit.WRITE_PROTECTED
    assert ok(lu, "MODE SENSE(6)", page_code=0x0A)[2] & 0x80
    fails(lu, "WRITE(10)", sense.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED, lba=0, blocks=1)
    executes(lu, "READ(10)", lba=0, blocks=1)
    select(lu, CONTROL)
    assert not lu.gate.bits & GateBit.WRITE_PROTECTED
    executes(lu, "WRITE(10)", lba=0, blocks=1)


def test_clearing_swp_does_not_make_a_read_only_medium_writable(make_lu, select, fails):
    lu = make_lu(read_only=True)
    select(lu, PROTECTED)
    select(lu, CONTROL)
    assert lu.gate.bits & GateBit.WRITE_PROTECTED
    fails(lu, "WRITE(10)", sense.WRITE_PROTECTED, lba=0, blocks=1)


def test_other_nexuses_are_told_and_this_one_is_not(lu, ok, fails, select):
    other = lu.attach()
    other.take()
    select(lu, NO_CACHE)
    fails(lu, "TEST UNIT READY", sense.MODE_PARAMETERS_CHANGED, itl=other)
    assert not lu.itl.attentions


def test_two_pages_in_one_list(lu, ok, select):
    select(lu, DESCRIPTOR_SENSE, NO_CACHE)
    assert page_of(ok, lu, 0x0A) == DESCRIPTOR_SENSE
    assert page_of(ok, lu, 0x08) == NO_CACHE


def test_the_last_of_two_equal_pages_counts(lu, ok, select):
    select(lu, NO_CACHE, CACHING)
    assert page_of(ok, lu, 0x08) == CACHING


def test_what_mode_sense_tells_can_be_sent_back(lu, ok):
    for size, at in ((6, 12), (10, 16)):
        command, sent = f"MODE SENSE({size})", f"MODE SELECT({size})"
        data = bytearray(ok(lu, command, page_code=0x3F, subpage_code=0xFF))
        while at < len(data):
            data[at] &= 0x7F
            at += 4 + int.from_bytes(data[at + 2 : at + 4]) if data[at] & 0x40 else 2 + data[at + 1]
        data = bytes(data)
        ok(lu, sent, pf=1, parameter_list_length=len(data), data_out=data)


def test_mode_select_10_with_a_long_block_descriptor(lu, ok):
    data = bytearray(ok(lu, "MODE SENSE(10)", page_code=0x08, llbaa=1))
    data[24] &= 0x7F
    data[24 + 2] = 0
    ok(lu, "MODE SELECT(10)", pf=1, parameter_list_length=len(data), data_out=bytes(data))
    assert page_of(ok, lu, 0x08) == NO_CACHE


@pytest.mark.parametrize("blocks", [0, 0xFFFFFFFF, 1 << 20])
def test_a_block_descriptor_may_keep_the_capacity(lu, ok, blocks):
    data = bytes([0, 0, 0, 8]) + blocks.to_bytes(4) + bytes.fromhex("00000200")
    ok(lu, "MODE SELECT(6)", pf=1, parameter_list_length=len(data), data_out=data)


@pytest.mark.parametrize("command", ["MODE SELECT(6)", "MODE SELECT(10)"])
def test_an_empty_list_is_no_error(lu, ok, command):
    ok(lu, command, pf=1)
    ok(lu, command)


def test_data_beyond_the_list_length_is_not_looked_at(lu, ok):
    ok(lu, "MODE SELECT(6)", pf=1, parameter_list_length=4, data_out=HEADER_6 + b"\xff" * 20)


# ---- MODE SELECT: what is refused ----


def test_a_list_without_pf_is_refused(lu, fails):
    fails(lu, "MODE SELECT(6)", sense.INVALID_FIELD_IN_CDB, parameter_list_length=4, data_out=HEADER_6, at=(1, 4))


def test_less_data_than_the_list_length(lu, fails):
    fails(lu, "MODE SELECT(6)", sense.PARAMETER_LIST_LENGTH_ERROR, pf=1, parameter_list_length=24, data_out=HEADER_6)


@pytest.mark.parametrize(
    "data",
    [bytes(3), HEADER_6 + b"\x08", HEADER_6 + CACHING[:-1], bytes([0, 0, 0, 8]) + bytes(7)],
    ids=["header", "page header", "page", "block descriptor"],
)
def test_a_list_that_is_cut_short(lu, refused, data):
    refused(lu, data, sense.PARAMETER_LIST_LENGTH_ERROR)


def test_a_ten_byte_list_that_is_cut_short(lu, fails):
    fails(
        lu, "MODE SELECT(10)", sense.PARAMETER_LIST_LENGTH_ERROR, pf=1, parameter_list_length=7, data_out=HEADER_10[:7]
    )


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (bytes([0, 1, 0, 0]), (1, 7)),
        (bytes([0, 0, 0, 16]) + bytes(16), (3, 7)),
        (bytes([0, 0, 0, 8]) + bytes.fromhex("0000000700000200"), (4, 7)),
        (bytes([0, 0, 0, 8]) + bytes.fromhex("0000000000001000"), (9, 7)),
        (HEADER_6 + bytes([0x88]) + CACHING[1:], (4, 7)),
        (HEADER_6 + bytes([0x48]) + CACHING[1:], (4, 6)),
        (HEADER_6 + bytes([0x4A, 0x02, 0, 0]), (5, 7)),
        (HEADER_6 + bytes([0x4A, 0x01, 0, 0]), (6, 7)),
        (HEADER_6 + bytes([0x05, 0x0A]) + bytes(10), (4, 5)),
        (HEADER_6 + bytes([0x08, 0x0A]) + bytes(10), (5, 7)),
        (HEADER_6 + bytes([0x08, 0x12, 0x05]) + bytes(17), (6, 0)),
        (HEADER_6 + NO_CACHE + bytes.fromhex("0a0a00100000000000000000"), (32, 7)),
    ],
    ids=[
        "medium type",
        "block descriptor length",
        "another capacity",
        "another block length",
        "PS",
        "SPF",
        "unknown subpage",
        "subpage length",
        "unknown page",
        "page length",
        "a bit that cannot change",
        "the second page",
    ],
)
def test_a_bad_list_changes_nothing(lu, refused, data, at):
    refused(lu, data, sense.INVALID_FIELD_IN_PARAMETER_LIST, at=at)


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (bytes([0, 0, 1, 0, 0, 0, 0, 0]), (2, 7)),
        (bytes([0, 0, 0, 0, 2, 0, 0, 0]), (4, 1)),
        (bytes([0, 0, 0, 0, 1, 0, 0, 8]) + bytes(8), (6, 7)),
        (bytes([0, 0, 0, 0, 1, 0, 0, 16]) + bytes(15) + b"\1", (20, 7)),
    ],
    ids=["medium type", "reserved bits", "short descriptor with LONGLBA", "another block length"],
)
def test_a_bad_ten_byte_list(lu, fails, data, at):
    code = sense.INVALID_FIELD_IN_PARAMETER_LIST
    fails(lu, "MODE SELECT(10)", code, pf=1, parameter_list_length=len(data), data_out=data, at=at)


def test_a_second_change_waits_for_the_first(lu, ok):
    async def both():
        first = await submit_soon(lu, HEADER_6 + NO_CACHE)
        second = await submit_soon(lu, HEADER_6 + CACHING)
        return first, second

    first, second = lu.run(both())
    lu.settle()
    assert first[0].status is second[0].status is Status.GOOD
    assert page_of(ok, lu, 0x08) == CACHING
    assert [call for call in lu.medium.log if call[0] == "write_cache"] == [
        ("write_cache", False),
        ("write_cache", True),
    ]
    assert not lu.gate.bits & GateBit.HOLD
