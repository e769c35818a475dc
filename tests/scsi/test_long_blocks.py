# SPDX-License-Identifier: Apache-2.0
"""GET LBA STATUS, READ LONG, WRITE LONG and READ DEFECT DATA."""

import pytest

from vhost_scsi.scsi import sense, sense_data

BAD = {"lba": 7, "wr_uncor": 1}


def status(data):
    assert int.from_bytes(data[:4]) == len(data) - 4
    entries = [data[at : at + 16] for at in range(8, len(data), 16)]
    return [(int.from_bytes(each[:8]), int.from_bytes(each[8:12]), each[12]) for each in entries]


def test_lba_status_is_the_store_s_map(make_lu, ok):
    lu = make_lu(num_blocks=100)
    lu.medium.content = dict.fromkeys([10, 11, 12, 99], b"")
    found = status(ok(lu, "GET LBA STATUS(16)"))
    assert found == [(0, 10, 1), (10, 3, 0), (13, 86, 1), (99, 1, 0)]
    assert status(ok(lu, "GET LBA STATUS(16)", lba=11))[0] == (11, 2, 0)
    assert len(ok(lu, "GET LBA STATUS(16)", allocation_length=24)) == 24


def test_a_store_without_a_map_has_all_blocks_mapped(make_lu, ok, fails):
    lu = make_lu(num_blocks=100, knows_map=False)
    assert status(ok(lu, "GET LBA STATUS(16)", lba=4)) == [(4, 96, 0)]
    fails(lu, "GET LBA STATUS(16)", sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, lba=100)


def test_an_answer_has_a_bounded_number_of_descriptors(make_lu, ok):
    lu = make_lu(num_blocks=2000)
    lu.medium.content = dict.fromkeys(range(0, 2000, 2), b"")
    assert len(status(ok(lu, "GET LBA STATUS(16)"))) == 256


@pytest.mark.parametrize("name", ["READ LONG(10)", "READ LONG(16)"])
def test_a_long_block_is_read(lu, ok, fails, name):
    lu.medium.content[5] = b"5" * 512
    assert ok(lu, name, lba=5, byte_transfer_length=512) == b"5" * 512
    assert ok(lu, name, lba=5) == b""
    told = sense_data.parse(fails(lu, name, sense.INVALID_FIELD_IN_CDB, lba=5, byte_transfer_length=520))
    assert told.incorrect_length
    assert told.information == 8
    told = sense_data.parse(fails(lu, name, sense.INVALID_FIELD_IN_CDB, lba=5, byte_transfer_length=500))
    assert told.information == 0xFFFFFFF4


def test_incorrect_length_in_descriptors(lu, ok, fails):
    ok(lu, "MODE SELECT(6)", pf=1, parameter_list_length=16, data_out=d_sense(lu, ok))
    told = fails(lu, "READ LONG(16)", sense.INVALID_FIELD_IN_CDB, lba=5, byte_transfer_length=520)
    assert told[0] == 0x72
    assert sense_data.parse(told).incorrect_length


def d_sense(lu, ok):
    page = bytearray(ok(lu, "MODE SENSE(6)", dbd=1, page_code=0x0A))
    page[0], page[2], page[4] = 0, 0, page[4] & 0x3F
    page[6] |= 0x04
    return bytes(page)


@pytest.mark.parametrize("name", ["WRITE LONG(10)", "WRITE LONG(16)"])
def test_a_long_block_is_written_or_marked(lu, ok, fails, name):
    data = b"w" * 512
    ok(lu, name, lba=5, byte_transfer_length=512, data_out=data)
    assert lu.medium.content[5] == data
    ok(lu, name, lba=5)
    ok(lu, name, **BAD)
    assert lu.medium.bad == {7}
    ok(lu, name, **BAD, cor_dis=1)
    fails(lu, name, sense.INVALID_FIELD_IN_CDB, lba=7, cor_dis=1, at=(1, 7))
    fails(lu, name, sense.INVALID_FIELD_IN_CDB, lba=7, byte_transfer_length=511)
    fails(lu, name, sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, lba=lu.medium.num_blocks)


def test_no_more_blocks_can_be_marked_than_the_table_has(lu, ok, fails):
    for lba in range(4):
        ok(lu, "WRITE LONG(16)", lba=lba, wr_uncor=1)
    fails(lu, "WRITE LONG(16)", sense.SYSTEM_RESOURCE_FAILURE, lba=4, wr_uncor=1)


def test_defect_lists_are_empty(lu, ok, fails):
    assert ok(lu, "READ DEFECT DATA(10)", req_plist=1, req_glist=1) == bytes([0, 0x18, 0, 0])
    assert ok(lu, "READ DEFECT DATA(12)", req_glist=1, defect_list_format=3) == bytes([0, 0x0B, 0, 0, 0, 0, 0, 0])
    fails(lu, "READ DEFECT DATA(10)", sense.INVALID_FIELD_IN_CDB, defect_list_format=5, at=(2, 2))
    fails(lu, "READ DEFECT DATA(12)", sense.INVALID_FIELD_IN_CDB, defect_list_format=5, at=(1, 2))
