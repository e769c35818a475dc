# SPDX-License-Identifier: Apache-2.0
"""REPORT LUNS, LUN addressing, and the units that are not there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.scsi import lun, sense, sense_data
from vhost_scsi.scsi.commands import COMMANDS, DeviceType
from vhost_scsi.scsi.null_unit import absent_unit, report_luns_unit
from vhost_scsi.scsi.task import Status

WLUN = bytes.fromhex("C101000000000000")


def luns(data):
    assert int.from_bytes(data[:4]) == len(data) - 8
    assert not any(data[4:8])
    return [data[at : at + 8] for at in range(8, len(data), 8)]


def number(text):
    return bytes.fromhex(text) + bytes(6)


# ---- LUNs as bytes ----


@pytest.mark.parametrize(("value", "text"), [(0, "0000"), (255, "00ff"), (256, "4100"), (16383, "7fff")])
def test_short_luns_are_peripheral_and_long_ones_flat(value, text):
    assert lun.encode(value) == number(text)


def test_both_methods_are_understood():
    assert lun.decode(number("0005")) == lun.decode(number("4005")) == 5


@given(st.integers(0, lun.MAX_LUN))
def test_what_is_encoded_decodes(value):
    assert lun.decode(lun.encode(value)) == value


@pytest.mark.parametrize("raw", [WLUN, number("0100"), number("8001"), b"", number("0001")[:7], b"\0\1\0\1" + bytes(4)])
def test_what_is_no_lun_of_ours_decodes_to_none(raw):
    assert lun.decode(raw) is None


@pytest.mark.parametrize("value", [-1, 16384])
def test_a_lun_out_of_range_cannot_be_encoded(value):
    with pytest.raises(ValueError, match="LUN"):
        lun.encode(value)


# ---- REPORT LUNS ----


@pytest.mark.parametrize(
    ("select_report", "expected"),
    [
        (0x00, [number("0000"), number("0003"), number("412c")]),
        (0x01, [WLUN]),
        (0x02, [number("0000"), number("0003"), number("412c"), WLUN]),
        (0x10, []),
        (0x11, [number("0000"), number("0003"), number("412c")]),
        (0x12, []),
    ],
)
def test_select_report(lu, ok, select_report, expected):
    lu.luns = [300, 0, 3, 3]
    assert luns(ok(lu, "REPORT LUNS", select_report=select_report)) == expected


@pytest.mark.parametrize("select_report", [0x03, 0x0F, 0x13, 0xFF])
def test_reserved_select_report_values_are_refused(lu, fails, select_report):
    fails(lu, "REPORT LUNS", sense.INVALID_FIELD_IN_CDB, select_report=select_report, at=(2, 7))


@pytest.mark.parametrize("length", [0, 4, 8, 16, 20])
def test_the_list_ends_at_the_allocation_length(lu, ok, length):
    assert ok(lu, "REPORT LUNS", allocation_length=length) == ok(lu, "REPORT LUNS")[:length]


def test_a_large_inventory(lu, ok):
    lu.luns = range(16384)
    assert len(luns(ok(lu, "REPORT LUNS"))) == 16384


def test_report_luns_ends_the_unit_attention_on_every_unit_of_the_nexus(lu, make_lu, ok):
    second = make_lu()
    itl = second.attach(lu.itl.nexus)
    itl.take()
    for unit in (lu.unit, second.unit):
        unit.establish(sense.REPORTED_LUNS_DATA_HAS_CHANGED)
    ok(lu, "REPORT LUNS")
    assert not lu.itl.attentions
    assert not itl.attentions


def test_report_luns_leaves_other_nexuses_and_other_conditions_alone(lu, ok, fails):
    other = lu.attach()
    other.take()
    lu.unit.capacity_changed()
    lu.unit.establish(sense.REPORTED_LUNS_DATA_HAS_CHANGED)
    ok(lu, "REPORT LUNS")
    fails(lu, "TEST UNIT READY", sense.CAPACITY_DATA_HAS_CHANGED)
    assert not lu.itl.attentions
    assert sense.REPORTED_LUNS_DATA_HAS_CHANGED in other.attentions.pending()


# ---- no unit ----


def good(outcome):
    assert outcome.status is Status.GOOD
    return outcome.data_in


def bad(outcome, code):
    assert outcome.status is Status.CHECK_CONDITION
    assert sense_data.parse(outcome.sense).code is code


def test_inquiry_of_an_absent_unit(lu, cdb):
    data = good(absent_unit(cdb("INQUIRY"), lu.itl.nexus))
    assert data[0] == 0x7F
    assert len(data) == 96


def test_vpd_of_an_absent_unit_is_refused(lu, cdb):
    bad(absent_unit(cdb("INQUIRY", evpd=1), lu.itl.nexus), sense.INVALID_FIELD_IN_CDB)


def test_report_luns_of_an_absent_unit(lu, cdb):
    lu.unit.establish(sense.REPORTED_LUNS_DATA_HAS_CHANGED)
    assert luns(good(absent_unit(cdb("REPORT LUNS"), lu.itl.nexus))) == [number("0000"), number("0001")]
    assert not lu.itl.attentions


def test_report_luns_of_an_absent_unit_refuses_reserved_values(lu, cdb):
    bad(absent_unit(cdb("REPORT LUNS", select_report=9), lu.itl.nexus), sense.INVALID_FIELD_IN_CDB)


def test_request_sense_of_an_absent_unit(lu, cdb):
    data = good(absent_unit(cdb("REQUEST SENSE"), lu.itl.nexus))
    assert sense_data.parse(data).code is sense.LOGICAL_UNIT_NOT_SUPPORTED


def test_request_sense_of_an_absent_unit_in_descriptor_format(lu, cdb):
    assert good(absent_unit(cdb("REQUEST SENSE", desc=1, allocation_length=5), lu.itl.nexus)) == b"\x72\x05\x25\0\0"


@pytest.mark.parametrize("command", ["TEST UNIT READY", "READ(10)", "MODE SENSE(6)"])
def test_anything_else_at_an_absent_unit(lu, cdb, command):
    bad(absent_unit(cdb(command), lu.itl.nexus), sense.LOGICAL_UNIT_NOT_SUPPORTED)


@pytest.mark.parametrize("raw", [b"", b"\xc1"])
def test_no_command_at_an_absent_unit(lu, raw):
    bad(absent_unit(raw, lu.itl.nexus), sense.LOGICAL_UNIT_NOT_SUPPORTED)


@pytest.mark.parametrize("raw", ["120000", "120000006004"])
def test_a_malformed_cdb_at_an_absent_unit(lu, raw):
    bad(absent_unit(bytes.fromhex(raw), lu.itl.nexus), sense.INVALID_FIELD_IN_CDB)


def test_the_well_known_unit(lu, cdb):
    nexus = lu.itl.nexus
    assert good(report_luns_unit(cdb("INQUIRY"), nexus))[0] == 0x1E
    assert good(report_luns_unit(cdb("TEST UNIT READY"), nexus)) == b""
    assert luns(good(report_luns_unit(cdb("REPORT LUNS", select_report=1), nexus))) == [WLUN]
    told = good(report_luns_unit(cdb("REQUEST SENSE"), nexus))
    assert sense_data.parse(told).code is sense.NO_ADDITIONAL_SENSE_INFORMATION
    bad(report_luns_unit(cdb("READ(10)"), nexus), sense.INVALID_COMMAND_OPERATION_CODE)


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_the_well_known_unit_answers_exactly_the_commands_whose_rows_name_it(lu, row):
    sent = bytearray(row.cdb_length)
    sent[0], sent[1] = row.opcode, row.service_action or 0
    outcome = report_luns_unit(bytes(sent), lu.itl.nexus)
    refused = bool(outcome.sense) and sense_data.parse(outcome.sense).code is sense.INVALID_COMMAND_OPERATION_CODE
    assert refused == (DeviceType.WELL_KNOWN not in row.device_types)


def test_vpd_of_the_well_known_unit(lu, cdb):
    nexus = lu.itl.nexus
    assert good(report_luns_unit(cdb("INQUIRY", evpd=1), nexus)) == bytes([0x1E, 0, 0, 2, 0x00, 0x83])
    identification = good(report_luns_unit(cdb("INQUIRY", evpd=1, page_code=0x83), nexus))
    assert identification[:4] == bytes([0x1E, 0x83, 0, 28])
    bad(report_luns_unit(cdb("INQUIRY", evpd=1, page_code=0x80), nexus), sense.INVALID_FIELD_IN_CDB)
    bad(report_luns_unit(cdb("INQUIRY", page_code=0x80), nexus), sense.INVALID_FIELD_IN_CDB)
