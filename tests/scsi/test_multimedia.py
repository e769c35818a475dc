# SPDX-License-Identifier: Apache-2.0
"""A CD or DVD drive: what it is, which commands it has, what it says of its medium, and what it tells when asked."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.commands import COMMANDS, DeviceType, MediaOp
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.multimedia import CD_BLOCKS, LAYER_BLOCKS, lba_of, msf

CD_SIZE, DVD_SIZE = 1000, CD_BLOCKS + 1


@pytest.fixture
def make_drive(make_lu):
    def make(blocks=CD_SIZE, **medium):
        fixed = {"removable": True, "device_type": DeviceType.CD_DVD, "block_size": 2048, "read_only": True}
        return make_lu(num_blocks=blocks, cdb32=False, **fixed, **medium)

    return make


@pytest.fixture
def cd(make_drive):
    return make_drive()


@pytest.fixture
def dvd(make_drive):
    return make_drive(DVD_SIZE)


def number(data, at, length=4):
    return int.from_bytes(data[at : at + length])


# ---- what it is --------------------------------------------------------------------------------------------------


def test_inquiry(cd, ok):
    data = ok(cd, "INQUIRY")
    assert data[:2] == bytes([0x05, 0x80])
    assert bytes.fromhex("04E0") in [data[at : at + 2] for at in range(58, 74, 2)]
    pages = ok(cd, "INQUIRY", evpd=1)
    assert pages[0] == 0x05
    assert set(pages[4:]) >= {0x00, 0x80, 0x83}
    assert not [page for page in pages[4:] if page >= 0xB0]


def test_a_disk_s_page_is_not_a_drive_s(cd, fails):
    fails(cd, "INQUIRY", sense.INVALID_FIELD_IN_CDB, at=(2, 7), evpd=1, page_code=0xB0)


def test_read_capacity(cd, ok):
    assert ok(cd, "READ CAPACITY(10)") == (CD_SIZE - 1).to_bytes(4) + (2048).to_bytes(4)


@pytest.mark.parametrize("name", ["READ(10)", "READ(12)"])
def test_reading_is_the_data_plane_s(cd, executes, name):
    executes(cd, name, lba=0, blocks=1)


DISK_ONLY = [row for row in COMMANDS if DeviceType.CD_DVD not in row.device_types]
DRIVE_ONLY = [row for row in COMMANDS if DeviceType.DISK not in row.device_types]


@pytest.mark.parametrize("row", DISK_ONLY, ids=lambda row: row.name)
def test_a_drive_refuses_what_only_disks_have(cd, fails, row):
    code = sense.INVALID_COMMAND_OPERATION_CODE
    if row.service_action is not None and any(each.opcode == row.opcode and each not in DISK_ONLY for each in COMMANDS):
        code = sense.INVALID_FIELD_IN_CDB  # another service action of the code is there
    fails(cd, row.usage, code)


@pytest.mark.parametrize("row", DRIVE_ONLY, ids=lambda row: row.name)
def test_a_disk_refuses_what_only_drives_have(make_lu, fails, row):
    fails(make_lu(), row.name, sense.INVALID_COMMAND_OPERATION_CODE)


def test_c_asks_before_it_runs_a_disk_s_command_on_a_drive(cd, lu):
    assert cd.gate.bits & GateBit.DISK_ONLY
    assert not lu.gate.bits & GateBit.DISK_ONLY
    for row in COMMANDS:
        if row.media is not MediaOp.NONE:
            assert bool(row.gate_mask & GateBit.DISK_ONLY) == (row in DISK_ONLY), row.name


def test_report_supported_operation_codes_lists_what_is_served(cd, ok):
    data = ok(cd, "REPORT SUPPORTED OPERATION CODES")
    codes = {data[at] for at in range(4, len(data), 8)}
    assert codes == {row.opcode for row in COMMANDS if DeviceType.CD_DVD in row.device_types}
    assert {0x43, 0x46, 0x4A, 0x51, 0x52, 0xAD, 0xBD, 0x1E, 0x28, 0xA8} <= codes


def test_a_stop_without_loej_is_no_obstacle(cd, ok, executes):
    ok(cd, "START STOP UNIT")
    executes(cd, "READ(10)", lba=0, blocks=1)


# ---- mode pages --------------------------------------------------------------------------------------------------


def pages(data, at=8):
    found = {}
    while at < len(data):
        found[data[at] & 0x3F] = data[at : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return found


def test_mode_pages_of_a_drive(cd, ok):
    data = ok(cd, "MODE SENSE(10)", page_code=0x3F)
    assert data[3] == 0  # no device-specific parameter, and no block descriptor
    assert data[6:8] == bytes(2)
    found = pages(data)
    assert set(found) == {0x01, 0x0A, 0x0D, 0x1A, 0x1C, 0x1D, 0x2A}
    assert found[0x0D][4:8] == bytes([0, 60, 0, 75])


def test_capabilities_tell_what_it_reads_and_whether_it_is_locked(cd, ok):
    page = ok(cd, "MODE SENSE(6)", page_code=0x2A)[4:]
    assert page[1] == len(page) - 2 >= 18
    assert page[2] == 0x08  # DVD-ROM
    assert page[3] == 0  # writes nothing
    assert page[6] == 1 << 5 | 0x08 | 0x01  # tray, ejects, locks
    ok(cd, "PREVENT ALLOW MEDIUM REMOVAL", prevent=1)
    assert ok(cd, "MODE SENSE(6)", page_code=0x2A)[4:][6] == 1 << 5 | 0x08 | 0x02 | 0x01
    assert ok(cd, "MODE SENSE(6)", page_code=0x2A, pc=2)[4:] == page


def test_a_disk_has_no_page_of_a_drive_and_a_drive_none_of_a_disk(lu, cd, ok, fails):
    fails(lu, "MODE SENSE(6)", sense.INVALID_FIELD_IN_CDB, at=(2, 5), page_code=0x2A)
    fails(cd, "MODE SENSE(6)", sense.INVALID_FIELD_IN_CDB, at=(2, 5), page_code=0x08)
    assert not {0x0D, 0x1D, 0x2A} & set(pages(ok(lu, "MODE SENSE(10)", page_code=0x3F, dbd=1)))


def test_mode_select_of_a_disk_s_page_is_refused(cd, fails):
    page = bytes(8) + bytes([0x08, 0x12]) + bytes(18)
    given = {"pf": 1, "parameter_list_length": len(page), "data_out": page}
    fails(cd, "MODE SELECT(10)", sense.INVALID_FIELD_IN_PARAMETER_LIST, at=(8, 5), **given)


# ---- table of contents -------------------------------------------------------------------------------------------


def test_toc_in_blocks(cd, ok):
    data = ok(cd, "READ TOC/PMA/ATIP")
    assert data == bytes.fromhex("0012 01 01  00 14 01 00 00000000  00 14 AA 00") + CD_SIZE.to_bytes(4)


def test_toc_in_minutes(cd, ok):
    data = ok(cd, "READ TOC/PMA/ATIP", time=1)
    assert data[8:12] == bytes([0, 0, 2, 0])
    assert data[16:20] == bytes([0, 0, 15, 25])  # 1000 + 150 frames


def test_toc_of_the_lead_out_alone(cd, ok, fails):
    data = ok(cd, "READ TOC/PMA/ATIP", track=0xAA)
    assert data[:4] == bytes([0, 10, 1, 1])
    assert data[6] == 0xAA
    assert ok(cd, "READ TOC/PMA/ATIP", track=1) == ok(cd, "READ TOC/PMA/ATIP")
    fails(cd, "READ TOC/PMA/ATIP", sense.INVALID_FIELD_IN_CDB, at=(6, 7), track=2)


def test_toc_is_cut_to_the_allocation_length(cd, ok):
    assert ok(cd, "READ TOC/PMA/ATIP", allocation_length=4) == bytes([0, 18, 1, 1])


@pytest.mark.parametrize("how", [{"format": 1}, {"old_format": 1}])
def test_session_information(cd, ok, how):
    assert ok(cd, "READ TOC/PMA/ATIP", **how) == bytes.fromhex("000A 01 01  00 14 01 00 00000000")


def test_raw_toc(cd, ok):
    data = ok(cd, "READ TOC/PMA/ATIP", format=2)
    assert number(data, 0, 2) == len(data) - 2 == 2 + 4 * 11
    points = {data[at + 3]: data[at + 8 : at + 11] for at in range(4, len(data), 11)}
    assert points == {0xA0: bytes([1, 0, 0]), 0xA1: bytes([1, 0, 0]), 0xA2: msf(CD_SIZE), 1: bytes([0, 2, 0])}


@pytest.mark.parametrize("kind", [3, 4, 5, 15])
def test_what_only_recordable_or_audio_media_have_is_refused(cd, fails, kind):
    fails(cd, "READ TOC/PMA/ATIP", sense.INVALID_FIELD_IN_CDB, at=(2, 3), format=kind)


def test_a_dvd_has_no_raw_toc(dvd, ok, fails):
    assert number(ok(dvd, "READ TOC/PMA/ATIP"), 16) == DVD_SIZE
    fails(dvd, "READ TOC/PMA/ATIP", sense.INVALID_FIELD_IN_CDB, format=2)


@given(lba=st.integers(0, CD_BLOCKS))
def test_minutes_lead_back_to_the_block(lba):
    assert lba_of(int.from_bytes(msf(lba))) == lba


def test_what_minutes_cannot_say(make_drive, ok):
    assert msf(10**7) == bytes([0xFF, 0x3B, 0x4A])
    assert ok(make_drive(10**7), "READ TOC/PMA/ATIP", time=1)[17:20] == bytes([0xFF, 0x3B, 0x4A])


# ---- disc, track, structures -------------------------------------------------------------------------------------


def test_disc_information(cd, dvd, ok, fails):
    data = ok(cd, "READ DISC INFORMATION")
    assert len(data) == 34 == number(data, 0, 2) + 2
    assert data[2:9] == bytes([0x0E, 1, 1, 1, 1, 0x20, 0])
    assert ok(dvd, "READ DISC INFORMATION")[8] == 0xFF
    fails(cd, "READ DISC INFORMATION", sense.INVALID_FIELD_IN_CDB, at=(1, 2), data_type=1)


@pytest.mark.parametrize("how", [(0, 0), (0, CD_SIZE - 1), (1, 1), (2, 1)])
def test_track_information(cd, ok, how):
    data = ok(cd, "READ TRACK INFORMATION", address_type=how[0], address=how[1])
    assert len(data) == 36 == number(data, 0, 2) + 2
    assert data[2:4] == bytes([1, 1])
    assert data[5:7] == bytes([4, 1])
    assert (number(data, 8), number(data, 24)) == (0, CD_SIZE)


def test_a_track_that_is_not_there(cd, fails):
    beyond = {"address_type": 0, "address": CD_SIZE}
    fails(cd, "READ TRACK INFORMATION", sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, **beyond)
    for kind in (1, 2):
        fails(cd, "READ TRACK INFORMATION", sense.INVALID_FIELD_IN_CDB, at=(2, 7), address_type=kind, address=2)
    fails(cd, "READ TRACK INFORMATION", sense.INVALID_FIELD_IN_CDB, at=(1, 1), address_type=3)


def test_physical_format_of_a_dvd(dvd, make_drive, ok, fails):
    data = ok(dvd, "READ DVD STRUCTURE", format=0)
    assert len(data) == 2052 == number(data, 0, 2) + 2
    assert data[4:7] == bytes([0x01, 0x0F, 0x01])
    assert (number(data, 8), number(data, 12), number(data, 16)) == (0x30000, 0x30000 + DVD_SIZE - 1, 0)
    fails(dvd, "READ DVD STRUCTURE", sense.INVALID_FIELD_IN_CDB, at=(6, 7), format=0, layer=1)
    two = ok(make_drive(LAYER_BLOCKS + 2), "READ DVD STRUCTURE", format=0, layer=1)
    assert two[6] == 0x21
    assert number(two, 16) == 0x30000 + (LAYER_BLOCKS + 2) // 2 - 1


def test_other_structures_of_a_dvd(dvd, cd, ok, fails):
    assert ok(dvd, "READ DVD STRUCTURE", format=1) == bytes.fromhex("0006 0000 00000000")
    assert len(ok(dvd, "READ DVD STRUCTURE", format=4)) == 2052
    listed = ok(dvd, "READ DVD STRUCTURE", format=0xFF)
    assert [listed[at] for at in range(4, len(listed), 4)] == [0, 1, 4]
    for at in range(4, len(listed), 4):
        assert number(listed, at + 2, 2) == len(ok(dvd, "READ DVD STRUCTURE", format=listed[at]))
    fails(dvd, "READ DVD STRUCTURE", sense.INVALID_FIELD_IN_CDB, at=(7, 7), format=2)
    fails(dvd, "READ DVD STRUCTURE", sense.INVALID_FIELD_IN_CDB, at=(1, 3), media_type=1)
    fails(cd, "READ DVD STRUCTURE", sense.CANNOT_READ_MEDIUM_INCOMPATIBLE_FORMAT, format=0)


def test_mechanism_status(cd, ok):
    assert ok(cd, "MECHANISM STATUS") == bytes(8)
    ok(cd, "START STOP UNIT", loej=1)
    assert ok(cd, "MECHANISM STATUS")[1] == 0x10


# ---- READ CD -----------------------------------------------------------------------------------------------------

USER_DATA = 0b00010


def test_read_cd_gives_user_data(cd, ok):
    cd.medium.content[7] = bytes([7]) * 2048
    assert ok(cd, "READ CD", lba=6, blocks=2, main_channel=USER_DATA) == bytes(2048) + bytes([7]) * 2048
    assert ok(cd, "READ CD", lba=6, blocks=2, main_channel=USER_DATA, expected_sector_type=2)
    assert ok(cd, "READ CD", lba=6, blocks=2) == b""
    assert ok(cd, "READ CD", lba=6, main_channel=USER_DATA) == b""
    start, end = (int.from_bytes(msf(lba)) for lba in (7, 8))
    assert ok(cd, "READ CD MSF", start=start, end=end, main_channel=USER_DATA) == bytes([7]) * 2048


def test_what_read_cd_refuses(cd, dvd, make_drive, fails):
    beyond = sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE
    fails(cd, "READ CD", beyond, lba=CD_SIZE, blocks=1, main_channel=USER_DATA)
    fails(cd, "READ CD", beyond, lba=0xFFFFFFFF, blocks=0)
    fails(cd, "READ CD", sense.ILLEGAL_MODE_FOR_THIS_TRACK, blocks=1, expected_sector_type=1)
    fails(cd, "READ CD", sense.INVALID_FIELD_IN_CDB, at=(9, 7), blocks=1, main_channel=0b11111)
    fails(cd, "READ CD", sense.INVALID_FIELD_IN_CDB, at=(6, 7), blocks=CD_SIZE, main_channel=USER_DATA)
    fails(dvd, "READ CD", sense.CANNOT_READ_MEDIUM_INCOMPATIBLE_FORMAT, blocks=1)
    time = int.from_bytes(msf(3))
    fails(cd, "READ CD MSF", sense.INVALID_FIELD_IN_CDB, at=(3, 7), start=0, end=time)
    fails(cd, "READ CD MSF", sense.INVALID_FIELD_IN_CDB, at=(6, 7), start=time, end=0x00FF00)
    fails(cd, "READ CD MSF", sense.INVALID_FIELD_IN_CDB, at=(6, 7), start=time, end=time - 1)


# ---- features ----------------------------------------------------------------------------------------------------


def features(data):
    """By code: version, persistent, current, data."""
    assert number(data, 0) == len(data) - 4
    found, at = {}, 8
    while at < len(data):
        flags, length = data[at + 2], data[at + 3]
        found[number(data, at, 2)] = (flags >> 2, bool(flags & 2), bool(flags & 1), data[at + 4 : at + 4 + length])
        assert length % 4 == 0
        at += 4 + length
    assert list(found) == sorted(found)
    return found


def test_configuration_with_a_cd_with_a_dvd_and_without_any(cd, dvd, ok):
    for rig, profile, current in ((cd, 0x08, {0x10, 0x1D, 0x1E}), (dvd, 0x10, {0x10, 0x1F})):
        data = ok(rig, "GET CONFIGURATION")
        assert number(data, 6, 2) == profile
        found = features(data)
        persistent = {code for code, feature in found.items() if feature[1]}
        assert persistent == {0, 1, 2, 3, 0x100, 0x105}
        assert {code for code, feature in found.items() if feature[2]} == persistent | current
        assert {number(found[0][3], at, 2): found[0][3][at + 2] for at in (0, 4)} == {
            each: int(each == profile) for each in (0x10, 0x08)
        }
    ok(cd, "START STOP UNIT", loej=1)
    data = ok(cd, "GET CONFIGURATION")
    assert number(data, 6, 2) == 0
    assert {code for code, feature in features(data).items() if feature[2]} == persistent


def test_configuration_in_parts(cd, ok, fails):
    everything = features(ok(cd, "GET CONFIGURATION"))
    assert set(features(ok(cd, "GET CONFIGURATION", rt=1))) == set(everything) - {0x1F}
    assert set(features(ok(cd, "GET CONFIGURATION", starting_feature=0x1E))) == {0x1E, 0x1F, 0x100, 0x105}
    assert features(ok(cd, "GET CONFIGURATION", rt=2, starting_feature=3)) == {3: everything[3]}
    assert features(ok(cd, "GET CONFIGURATION", rt=2, starting_feature=0x1F)) == {0x1F: everything[0x1F]}
    assert features(ok(cd, "GET CONFIGURATION", rt=2, starting_feature=0x20)) == {}
    assert len(ok(cd, "GET CONFIGURATION", allocation_length=8)) == 8
    fails(cd, "GET CONFIGURATION", sense.INVALID_FIELD_IN_CDB, at=(1, 1), rt=3)


# ---- events ------------------------------------------------------------------------------------------------------

MEDIA = 1 << 4


def event(rig, ok, classes=MEDIA, **given):
    return ok(rig, "GET EVENT STATUS NOTIFICATION", polled=1, class_request=classes, **given)


def test_an_eject_and_a_load_are_told_once_to_each(cd, ok):
    other = cd.attach()
    assert event(cd, ok) == bytes.fromhex("0006 04 56 00 02 00 00")
    ok(cd, "START STOP UNIT", loej=1)
    assert event(cd, ok)[4:6] == bytes([3, 1])
    assert event(cd, ok)[4:6] == bytes([0, 1])
    ok(cd, "START STOP UNIT", loej=1, start=1)
    assert event(cd, ok)[4:6] == bytes([2, 2])
    assert event(cd, ok, itl=other)[4:6] == bytes([2, 2])
    assert event(cd, ok, itl=other)[4:6] == bytes([0, 2])


def test_the_button_of_a_locked_drive_is_told(cd, ok):
    cd.unit.drive.ask_for_ejection()
    assert event(cd, ok)[4:6] == bytes([1, 2])
    assert event(cd, ok)[4:6] == bytes([0, 2])


def test_who_has_no_room_for_an_event_has_not_been_told(cd, ok):
    cd.unit.drive.ask_for_ejection()
    assert event(cd, ok, allocation_length=4) == bytes([0, 6, 4, 0x56])
    assert event(cd, ok)[4] == 1


def test_a_medium_changes_features(cd, ok):
    everything = 0x7E
    assert event(cd, ok, 1 << 1) == bytes.fromhex("0006 01 56 00 00 00 00")
    ok(cd, "START STOP UNIT", loej=1)
    assert event(cd, ok, everything) == bytes.fromhex("0006 01 56 02 00 00 01")
    assert event(cd, ok, everything)[2:5] == bytes([4, 0x56, 3])
    assert event(cd, ok, everything)[2:5] == bytes([1, 0x56, 0])


def test_power_and_business(cd, ok):
    for condition, status in ((1, 1), (2, 2), (3, 3)):
        ok(cd, "START STOP UNIT", power_condition=condition)
        assert event(cd, ok, 1 << 2) == bytes([0, 6, 2, 0x56, 0, status, 0, 0])
    assert event(cd, ok, 1 << 6) == bytes.fromhex("0006 06 56 00 00 00 00")


def test_classes_that_are_not_there_and_waiting_for_events(cd, ok, fails):
    assert event(cd, ok, 1 << 5) == bytes.fromhex("0002 80 56")
    fails(cd, "GET EVENT STATUS NOTIFICATION", sense.INVALID_FIELD_IN_CDB, at=(1, 0), class_request=MEDIA)


def test_events_and_features_pass_a_unit_attention(cd, ok, fails):
    other = cd.attach()
    event(cd, ok, itl=other)
    ok(cd, "GET CONFIGURATION", itl=other)
    fails(cd, "TEST UNIT READY", sense.POWER_ON_OCCURRED, itl=other)


# ---- anything ----------------------------------------------------------------------------------------------------


def used(row):
    def mix(noise):
        rest = zip(row.usage[1:], noise, strict=True)
        return bytes([row.opcode, *(bits & noisy for bits, noisy in rest)])

    return st.builds(mix, st.binary(min_size=row.cdb_length - 1, max_size=row.cdb_length - 1))


DRIVES = [row for row in COMMANDS if DeviceType.CD_DVD in row.device_types]
shared = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@shared
@given(cdb=st.one_of(st.binary(max_size=16), *[used(row) for row in DRIVES]), data_out=st.binary(max_size=64))
def test_random_commands_always_get_a_proper_outcome(cd, is_proper, cdb, data_out):
    assert is_proper(cd.outcome(cdb, data_out=data_out))
