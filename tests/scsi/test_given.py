# SPDX-License-Identifier: Apache-2.0
"""Units that say of themselves what a user wants: names, mode pages and vital product data pages."""

import pytest

from vhost_scsi.scsi import sense, vpd
from vhost_scsi.scsi.commands import DeviceType
from vhost_scsi.scsi.mode_parameters import GivenPage, problem
from vhost_scsi.scsi.saved_state import NotKept

SHORT = GivenPage(0x20, 0, bytes([1, 2, 3]), bytes([0, 0xF0, 0]))
LONG = GivenPage(0x3E, 0x01, bytes([9] * 4))
NO_CACHE = GivenPage(0x08, 0, bytes(18))


def pages(ok, lu, code, subpage=0, pc=0):
    return ok(lu, "MODE SENSE(10)", dbd=1, page_code=code, subpage_code=subpage, pc=pc)[8:]


def select(lu, page, **given):
    data = bytes(4) + page
    return {"pf": 1, "parameter_list_length": len(data), "data_out": data, **given}


@pytest.fixture
def saved():
    return NotKept()


@pytest.fixture
def lu(make_lu, saved):
    return make_lu(mode_pages=(LONG, SHORT, NO_CACHE), saved=saved)


def test_pages_are_told_among_ours(lu, ok):
    assert pages(ok, lu, 0x20) == bytes([0xA0, 3, 1, 2, 3])
    assert pages(ok, lu, 0x20, pc=1) == bytes([0xA0, 3, 0, 0xF0, 0])
    assert pages(ok, lu, 0x20, pc=2) == pages(ok, lu, 0x20, pc=3) == bytes([0xA0, 3, 1, 2, 3])
    assert pages(ok, lu, 0x3E, 1) == bytes([0x7E, 1, 0, 4]) + bytes([9] * 4)
    everything = pages(ok, lu, 0x3F, 0xFF)
    assert everything.endswith(bytes([0xA0, 3, 1, 2, 3]) + pages(ok, lu, 0x3E, 1))


def test_a_bit_that_may_change_is_changed_and_saved(lu, ok, fails, make_lu, saved):
    ok(lu, "MODE SELECT(6)", **select(lu, bytes([0x20, 3, 1, 0xA2, 3]), sp=1))
    assert pages(ok, lu, 0x20)[3] == 0xA2
    assert pages(ok, lu, 0x20, pc=2)[3] == 2
    wrong = select(lu, bytes([0x20, 3, 1, 0xA3, 3]))
    fails(lu, "MODE SELECT(6)", sense.INVALID_FIELD_IN_PARAMETER_LIST, at=(7, 0), **wrong)
    fixed = select(lu, bytes([0x7E, 1, 0, 4, 9, 9, 9, 8]))
    fails(lu, "MODE SELECT(6)", sense.INVALID_FIELD_IN_PARAMETER_LIST, at=(11, 0), **fixed)
    assert pages(ok, make_lu(mode_pages=(SHORT,), saved=saved), 0x20)[3] == 0xA2


def test_other_defaults_of_our_pages_hold(lu, ok):
    assert not lu.unit.write_cache
    assert pages(ok, lu, 0x08, pc=2)[2] == 0
    assert pages(ok, lu, 0x08, pc=1)[2] == 4


def test_what_has_no_room_in_six_bytes_is_there_in_ten(make_lu, ok, fails):
    lu = make_lu(mode_pages=(GivenPage(0x21, 0, bytes(200)),))
    fails(lu, "MODE SENSE(6)", sense.INVALID_FIELD_IN_CDB, page_code=0x3F, at=(2, 5))
    assert len(pages(ok, lu, 0x3F)) > 255
    assert len(ok(lu, "MODE SENSE(6)", dbd=1, page_code=0x21)) == 4 + 202


def test_a_drive_has_its_own(make_lu, ok, fails):
    assert problem(DeviceType.CD_DVD, [NO_CACHE]) is None  # no drive has a caching page of ours
    drive = make_lu(removable=True, device_type=DeviceType.CD_DVD, block_size=2048, mode_pages=(SHORT,))
    assert pages(ok, drive, 0x20) == bytes([0xA0, 3, 1, 2, 3])


def test_names(make_lu, ok):
    lu = make_lu(
        vendor="ACME",
        product="FAST",
        revision="9",
        serial="S-1",
        naa=bytes.fromhex("5000c50012345678"),
        eui64=bytes.fromhex("001b44113ab71234"),
    )
    assert ok(lu, "INQUIRY")[8:36] == b"ACME    FAST            9   "
    assert ok(lu, "INQUIRY", evpd=1, page_code=0x80)[4:] == b"S-1"
    data = ok(lu, "INQUIRY", evpd=1, page_code=0x83)
    assert bytes([0x01, 0x03, 0, 8]) + bytes.fromhex("5000c50012345678") in data
    assert bytes([0x01, 0x02, 0, 8]) + bytes.fromhex("001b44113ab71234") in data
    assert bytes([0x02, 0x01, 0, 11]) + b"ACME    S-1" in data
    assert bytes([0x03, 0x08, 0, 24]) + b"naa.5000C50012345678\0\0\0\0" in data


def test_vital_product_data(make_lu, ok, fails):
    lu = make_lu(vpd_pages=((0xD0, b"two"), (0xC0, b"one")))
    assert ok(lu, "INQUIRY", evpd=1, page_code=0x00)[4:] == bytes(page.code for page in vpd.PAGES) + b"\xc0\xd0"
    assert ok(lu, "INQUIRY", evpd=1, page_code=0xC0) == b"\x00\xc0\x00\x03one"
    fails(lu, "INQUIRY", sense.INVALID_FIELD_IN_CDB, evpd=1, page_code=0xC1, at=(2, 7))
