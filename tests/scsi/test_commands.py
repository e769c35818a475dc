# SPDX-License-Identifier: Apache-2.0
"""The command table holds together, and the parser finds its rows."""

import pytest

from vhost_scsi.scsi.commands import COMMANDS, Conflict, Direction, MediaOp, find, first_unused_bit, parse
from vhost_scsi.scsi.gate import GateBit

# SPC-5 4.2.5.1: the group code in the top three bits of the operation code gives the length.
GROUP_LENGTH = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}

by_name = pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)


@by_name
def test_cdb_length_agrees_with_the_group_code(row):
    assert row.cdb_length == GROUP_LENGTH[row.opcode >> 5]


@by_name
def test_a_cdb_made_of_the_usage_data_parses_to_its_row(row):
    assert parse(row.usage) is row
    assert first_unused_bit(row, row.usage) is None


@by_name
def test_naca_is_refused_because_normaca_is_zero(row):
    assert not row.usage[-1]


@by_name
def test_media_rows_have_no_handler_and_others_have_one(row):
    assert bool(row.handler) == (row.media is MediaOp.NONE)


@by_name
def test_a_command_takes_a_parameter_list_when_its_cdb_says_how_long_one_is(row):
    assert (row.parameter_list_max > 0) == (row.field("parameter_list_length") is not None)
    assert not row.parameter_list_max or row.direction is Direction.OUT


@by_name
def test_every_command_waits_for_task_management_and_holds(row):
    always = GateBit.TMF | GateBit.HOLD | GateBit.ORDERED | GateBit.TRACE | GateBit.FAULT
    assert row.gate_mask & always == always


@by_name
def test_the_usage_data_are_the_fields_that_have_names(row):
    named = bytearray(row.cdb_length)
    named[0], named[1] = row.opcode, row.service_action or 0
    for field in row.fields:
        for byte in range(field.byte, field.byte + field.length):
            # The LBA of READ(6) and WRITE(6) begins inside byte 1: SBC-4 5.13
            named[byte] |= field.mask or (0x1F if row.cdb_length == 6 and byte == 1 else 0xFF)
    assert row.usage == named


def test_codes_are_unique():
    assert len({(row.opcode, row.service_action) for row in COMMANDS}) == len(COMMANDS)
    assert len({row.name for row in COMMANDS}) == len(COMMANDS)


def test_three_commands_pass_a_unit_attention():
    passing = {row.name for row in COMMANDS if not row.gate_mask & GateBit.UNIT_ATTENTION}
    assert passing == {"INQUIRY", "REPORT LUNS", "REQUEST SENSE"}


def test_exactly_the_commands_that_change_the_medium_are_stopped_by_write_protection():
    changing = {MediaOp.WRITE, MediaOp.UNMAP, MediaOp.WRITE_SAME, MediaOp.COMPARE_AND_WRITE}
    for row in COMMANDS:
        assert bool(row.gate_mask & GateBit.WRITE_PROTECTED) == (row.media in changing), row.name


def test_gate_mask_follows_the_conflict_class_of_media_commands():
    for row in COMMANDS:
        if row.media is MediaOp.NONE:
            continue
        assert bool(row.gate_mask & GateBit.RESERVED_READ) == (row.conflict is Conflict.READ), row.name
        assert bool(row.gate_mask & GateBit.RESERVED_WRITE) == (row.conflict is Conflict.WRITE), row.name


def test_a_service_action_selects_the_row():
    assert find(0x9E, 0x10).name == "READ CAPACITY(16)"
    assert find(0x9E, 0x12) is None
    assert parse(bytes([0x9E, 0x12]) + bytes(14)) is None


def test_an_operation_code_without_service_actions_ignores_one():
    assert find(0x28, 5).name == "READ(10)"


def test_no_cdb_is_no_row():
    assert parse(b"") is None


def test_first_unused_bit_names_byte_and_bit():
    assert first_unused_bit(find(0x28, None), bytes([0x28, 0x20]) + bytes(8)) == (1, 5)
    assert first_unused_bit(find(0x9E, 0x10), bytes([0x9E, 0x30]) + bytes(14)) == (1, 5)
