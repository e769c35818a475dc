# SPDX-License-Identifier: Apache-2.0
"""REPORT SUPPORTED OPERATION CODES says what the table says."""

import pytest

from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.commands import COMMANDS, VARIABLE_LENGTH, DeviceType, Feature
from vhost_scsi.scsi.medium import Capabilities
from vhost_scsi.scsi.task import Complete

RSOC = "REPORT SUPPORTED OPERATION CODES"
by_name = pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)


def all_commands(data, size):
    assert int.from_bytes(data[:4]) == len(data) - 4
    assert (len(data) - 4) % size == 0
    return [data[at : at + size] for at in range(4, len(data), size)]


def test_all_commands(lu, ok):
    found = all_commands(ok(lu, RSOC), 8)
    expected = [
        bytes([row.opcode, 0])
        + (row.service_action or 0).to_bytes(2)
        + bytes([0, int(row.service_action is not None), 0, row.cdb_length])
        for row in COMMANDS
        if DeviceType.DISK in row.device_types and row.requires is not Feature.REMOVABLE
    ]
    assert found == expected


def timeouts(seconds):
    return bytes([0, 10]) + bytes(6) + seconds.to_bytes(4)


def test_all_commands_with_timeouts(lu, ok):
    wanted = {(row.opcode, row.service_action or 0): row.timeout for row in COMMANDS}
    assert set(wanted.values()) == {30, 3600, 24 * 3600}
    for descriptor in all_commands(ok(lu, RSOC, rctd=1), 20):
        assert descriptor[5] & 0x02
        row = descriptor[0], int.from_bytes(descriptor[2:4])
        assert descriptor[8:] == timeouts(wanted[row])


@by_name
def test_one_command_gives_its_usage_data(lu, ok, row):
    options = 2 if row.service_action is not None else 1
    data = ok(
        lu,
        RSOC,
        reporting_options=options,
        requested_operation_code=row.opcode,
        requested_service_action=row.service_action or 0,
    )
    assert data == bytes([0, 3]) + row.cdb_length.to_bytes(2) + row.usage


def test_one_command_with_timeouts(lu, ok):
    data = ok(lu, RSOC, reporting_options=1, rctd=1, requested_operation_code=0x12)
    assert data[:4] == bytes([0, 0x83, 0, 6])
    assert data[10:] == timeouts(30)
    data = ok(lu, RSOC, reporting_options=1, rctd=1, requested_operation_code=0x04)
    assert data[10:] == timeouts(24 * 3600)


@pytest.mark.parametrize(
    ("options", "opcode", "action"), [(1, 0x96, 0), (2, 0x9E, 0x1F), (3, 0x9E, 0x1F), (3, 0x28, 1)]
)
def test_a_command_that_is_not_there(lu, ok, options, opcode, action):
    given = {"requested_operation_code": opcode, "requested_service_action": action}
    assert ok(lu, RSOC, reporting_options=options, rctd=1, **given) == bytes([0, 1, 0, 0])


@by_name
def test_option_3_takes_both_kinds(lu, ok, row):
    given = {"requested_operation_code": row.opcode, "requested_service_action": row.service_action or 0}
    assert ok(lu, RSOC, reporting_options=3, **given)[1] == 3


@pytest.mark.parametrize(("options", "opcode"), [(1, 0x9E), (2, 0x28)])
def test_the_wrong_option_for_an_operation_code_is_refused(lu, fails, options, opcode):
    given = {"reporting_options": options, "requested_operation_code": opcode}
    fails(lu, RSOC, sense.INVALID_FIELD_IN_CDB, at=(3, 7), **given)


@pytest.mark.parametrize("options", [4, 5, 6, 7])
def test_reserved_options_are_refused(lu, fails, options):
    fails(lu, RSOC, sense.INVALID_FIELD_IN_CDB, reporting_options=options, at=(2, 2))


def test_the_list_ends_at_the_allocation_length(lu, ok):
    assert ok(lu, RSOC, allocation_length=4) == ok(lu, RSOC)[:4]


def test_unmap_is_not_offered_without_a_medium_that_can(make_lu, ok, fails):
    lu = make_lu(capabilities=Capabilities())
    needing = [row for row in COMMANDS if row.requires is Feature.UNMAP]
    assert len(all_commands(ok(lu, RSOC), 8)) == len(all_commands(ok(make_lu(), RSOC), 8)) - len(needing)
    assert ok(lu, RSOC, reporting_options=1, requested_operation_code=0x42)[1] == 1
    fails(lu, "UNMAP", sense.INVALID_COMMAND_OPERATION_CODE)


@by_name
def test_what_is_reported_is_served(lu, row):
    told = lu.outcome(row.name)
    if isinstance(told, Complete) and told.sense:
        assert sense_data.parse(told.sense).code is not sense.INVALID_COMMAND_OPERATION_CODE


def test_every_other_operation_code_is_refused(lu, fails):
    known = {row.opcode for row in COMMANDS}
    for opcode in set(range(256)) - known:
        fails(lu, bytes([opcode]) + bytes(15), sense.INVALID_COMMAND_OPERATION_CODE)


def test_an_unknown_service_action_is_an_invalid_field(lu, fails):
    fails(lu, bytes([0x9E, 0x1F]) + bytes(14), sense.INVALID_FIELD_IN_CDB, at=(1, 4))


@by_name
def test_every_unused_bit_is_refused_with_a_pointer_to_it(lu, fails, cdb, row):
    first = 1
    for byte in range(first, row.cdb_length):
        for bit in range(8):
            if row.usage[byte] >> bit & 1:
                continue
            if row.opcode == VARIABLE_LENGTH:
                if byte in (8, 9):  # the service action
                    continue
            elif byte == 1 and row.service_action is not None and bit < 5:
                continue
            wrong = bytearray(cdb(row.name, **({"allocation_length": 0} if row.field("allocation_length") else {})))
            wrong[byte] |= 1 << bit
            fails(lu, bytes(wrong), sense.INVALID_FIELD_IN_CDB, at=(byte, bit))


@by_name
def test_a_cdb_that_is_too_short_is_refused(lu, fails, cdb, row):
    fails(lu, cdb(row.name)[:-1], sense.INVALID_FIELD_IN_CDB)


def test_nothing_is_reserved_where_nobody_is_strict(make_lu, ok):
    ok(make_lu(strict=False), bytes([0x12, 0xE0, 0, 0, 36, 0]))


def test_a_variable_length_cdb_says_its_own_length(lu, fails, cdb):
    wrong = bytearray(cdb("READ(32)", blocks=1))
    wrong[7] = 0x10
    fails(lu, bytes(wrong), sense.INVALID_FIELD_IN_CDB, at=(7, 7))


def test_cdbs_of_32_bytes_are_served_where_they_are_wanted(make_lu, ok, fails, cdb):
    lu = make_lu(cdb32=False)
    assert not any(each[0] == VARIABLE_LENGTH for each in all_commands(ok(lu, RSOC), 8))
    fails(lu, cdb("READ(32)", blocks=1), sense.INVALID_COMMAND_OPERATION_CODE)
