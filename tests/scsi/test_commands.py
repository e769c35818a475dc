# SPDX-License-Identifier: Apache-2.0
"""The command table holds together, and the parser finds its rows."""

import pytest

from vhost_scsi.scsi.commands import (
    COMMANDS,
    VARIABLE_LENGTH,
    Conflict,
    Direction,
    MediaOp,
    find,
    first_unused_bit,
    parse,
)
from vhost_scsi.scsi.gate import GateBit

# SPC-5 4.2.5.1: the group code in the top three bits of the operation code gives the length.
GROUP_LENGTH = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}

by_name = pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)


@by_name
def test_cdb_length_agrees_with_the_group_code(row):
    assert row.cdb_length == (32 if row.opcode == VARIABLE_LENGTH else GROUP_LENGTH[row.opcode >> 5])


@by_name
def test_a_cdb_made_of_the_usage_data_parses_to_its_row(row):
    assert parse(row.usage) is row
    assert first_unused_bit(row, row.usage) is None


@by_name
def test_of_control_naca_is_looked_at(row):
    # Bits 7 and 6 of CONTROL are the vendor's.
    assert row.usage[1 if row.opcode == VARIABLE_LENGTH else -1] & 0x3F == 0x04


@by_name
def test_media_rows_have_no_handler_and_others_have_one(row):
    assert bool(row.handler) == (row.media is MediaOp.NONE)


@by_name
def test_a_command_takes_a_parameter_list_when_its_cdb_says_how_long_one_is(row):
    says = (
        row.field("parameter_list_length") or row.field("byte_transfer_length")
        if row.direction is Direction.OUT
        else None
    )
    # SBC-4 5.4: the list of FORMAT UNIT says its own length, if there is one.
    assert (row.parameter_list_max > 0) == (says is not None or row.name == "FORMAT UNIT")
    assert not row.parameter_list_max or row.direction is Direction.OUT


@by_name
def test_every_command_waits_for_task_management_and_holds(row):
    always = GateBit.TMF | GateBit.HOLD | GateBit.ORDERED | GateBit.ACA | GateBit.TRACE | GateBit.FAULT
    assert row.gate_mask & always == always


# As the standards draw them: what is derived from the fields must come out so.
USAGE = {
    "READ(6)": "08 1F FF FF FF 04",
    "INQUIRY": "12 01 FF FF FF 04",
    "START STOP UNIT": "1B 01 00 0F F7 04",
    "WRITE(10)": "2A 18 FF FF FF FF 1F FF FF 04",
    "VERIFY(12)": "AF 16 FF FF FF FF FF FF FF FF 1F 04",
    "COMPARE AND WRITE": "89 18 FF FF FF FF FF FF FF FF 00 00 00 FF 1F 04",
    "WRITE ATOMIC(16)": "9C 18 FF FF FF FF FF FF FF FF 00 00 FF FF 1F 04",
    "READ CAPACITY(16)": "9E 10 00 00 00 00 00 00 00 00 FF FF FF FF 00 04",
    "REPORT SUPPORTED OPERATION CODES": "A3 0C 87 FF FF FF FF FF FF FF 00 04",
    "READ(32)": "7F 04 00 00 00 00 1F 18 00 09 18 00" + " FF" * 20,
    "WRITE SAME(32)": "7F 04 00 00 00 00 1F 18 00 0D 09 00" + " FF" * 20,
}


@pytest.mark.parametrize("name", USAGE)
def test_the_usage_data_are_the_standard_s(name):
    row = next(row for row in COMMANDS if row.name == name)
    assert row.usage == bytes.fromhex(USAGE[name])


@by_name
def test_no_two_fields_share_a_bit(row):
    seen = set()
    for field in row.fields:
        bits = {(byte, bit) for byte, mask in field.used() for bit in range(8) if mask >> bit & 1}
        assert not bits & seen, field
        seen |= bits


def test_codes_are_unique():
    assert len({(row.opcode, row.service_action) for row in COMMANDS}) == len(COMMANDS)
    assert len({row.name for row in COMMANDS}) == len(COMMANDS)


def test_three_commands_pass_a_unit_attention_and_two_of_a_drive():
    passing = {row.name for row in COMMANDS if not row.gate_mask & GateBit.UNIT_ATTENTION}
    drives = {"GET CONFIGURATION", "GET EVENT STATUS NOTIFICATION"}
    assert passing == {"INQUIRY", "REPORT LUNS", "REQUEST SENSE"} | drives


def test_exactly_the_commands_that_change_the_medium_are_stopped_by_write_protection():
    changing = {
        MediaOp.WRITE,
        MediaOp.UNMAP,
        MediaOp.WRITE_SAME,
        MediaOp.COMPARE_AND_WRITE,
        MediaOp.WRITE_AND_VERIFY,
        MediaOp.ORWRITE,
        MediaOp.WRITE_ATOMIC,
    }
    for row in COMMANDS:
        changes = row.media in changing or row.name.startswith(("FORMAT UNIT", "SANITIZE", "WRITE LONG"))
        assert bool(row.gate_mask & GateBit.WRITE_PROTECTED) == changes, row.name


def test_gate_mask_follows_the_conflict_class_of_media_commands():
    for row in COMMANDS:
        if row.media is MediaOp.NONE:
            continue
        assert bool(row.gate_mask & GateBit.RESERVED_READ) == (row.conflict is Conflict.READ), row.name
        assert bool(row.gate_mask & GateBit.RESERVED_WRITE) == (row.conflict is Conflict.WRITE), row.name


def test_a_service_action_selects_the_row():
    assert find(0x9E, 0x10).name == "READ CAPACITY(16)"
    assert find(0x9E, 0x1F) is None
    assert parse(bytes([0x9E, 0x1F]) + bytes(14)) is None
    assert parse(bytes([0x7F, 0, 0, 0, 0, 0, 0, 0x18, 0, 9]) + bytes(22)).name == "READ(32)"
    assert parse(bytes([0x7F, 0, 0, 0, 0, 0, 0, 0x18])) is None


def test_an_operation_code_without_service_actions_ignores_one():
    assert find(0x28, 5).name == "READ(10)"


def test_no_cdb_is_no_row():
    assert parse(b"") is None


def test_first_unused_bit_names_byte_and_bit():
    assert first_unused_bit(find(0x28, None), bytes([0x28, 0x20]) + bytes(8)) == (1, 5)
    assert first_unused_bit(find(0x9E, 0x10), bytes([0x9E, 0x30]) + bytes(14)) == (1, 5)
