# SPDX-License-Identifier: Apache-2.0
"""Unit attention conditions: precedence, who is told, how they end, and the gate that goes with them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.unit_attention import LIMIT, UnitAttentions

ATTENTIONS = [code for code in sense.SENSE_CODES if code.key == sense.SenseKey.UNIT_ATTENTION]


def queue(*codes):
    attentions = UnitAttentions()
    for code in codes:
        attentions.establish(code)
    return attentions


# ---- the queue ----


def test_a_reset_is_told_before_older_conditions():
    attentions = queue(sense.MODE_PARAMETERS_CHANGED, sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED)
    assert attentions.take() is sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED
    assert attentions.take() is sense.MODE_PARAMETERS_CHANGED
    assert attentions.take() is None


def test_other_conditions_are_told_in_order_of_age():
    codes = (sense.CAPACITY_DATA_HAS_CHANGED, sense.MODE_PARAMETERS_CHANGED, sense.REPORTED_LUNS_DATA_HAS_CHANGED)
    assert queue(*codes).pending() == codes


def test_power_on_ends_all_others():
    assert queue(sense.MODE_PARAMETERS_CHANGED, sense.POWER_ON_OCCURRED).pending() == (sense.POWER_ON_OCCURRED,)


def test_a_lesser_reset_adds_nothing_to_a_greater_one():
    attentions = queue(sense.POWER_ON_OCCURRED, sense.I_T_NEXUS_LOSS_OCCURRED, sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED)
    assert attentions.pending() == (sense.POWER_ON_OCCURRED,)


def test_a_greater_reset_replaces_a_lesser_one():
    attentions = queue(sense.I_T_NEXUS_LOSS_OCCURRED, sense.CAPACITY_DATA_HAS_CHANGED, sense.SCSI_BUS_RESET_OCCURRED)
    assert attentions.pending() == (sense.SCSI_BUS_RESET_OCCURRED, sense.CAPACITY_DATA_HAS_CHANGED)


def test_a_condition_is_pending_once():
    assert len(queue(*[sense.CAPACITY_DATA_HAS_CHANGED] * 5).pending()) == 1


def test_one_condition_can_be_ended_alone():
    attentions = queue(sense.CAPACITY_DATA_HAS_CHANGED, sense.MODE_PARAMETERS_CHANGED)
    attentions.clear(sense.CAPACITY_DATA_HAS_CHANGED)
    attentions.clear(sense.POWER_ON_OCCURRED)
    assert attentions.pending() == (sense.MODE_PARAMETERS_CHANGED,)


@given(st.lists(st.sampled_from(sense.SENSE_CODES)))
def test_the_queue_is_bounded_and_never_repeats(codes):
    pending = queue(*codes).pending()
    assert len(pending) <= LIMIT + 1
    assert len(set(pending)) == len(pending)


def test_all_conditions_that_we_know_fit():
    assert len(ATTENTIONS) <= LIMIT


# ---- at a logical unit ----


def test_a_new_nexus_is_told_of_power_on_once(lu, fails, executes):
    itl = lu.attach()
    assert itl.gate.bits & GateBit.UNIT_ATTENTION
    fails(lu, "TEST UNIT READY", sense.POWER_ON_OCCURRED, itl=itl)
    assert not itl.gate.bits & GateBit.UNIT_ATTENTION
    executes(lu, "TEST UNIT READY", itl=itl)


def test_the_gate_stays_closed_until_the_last_condition_is_told(lu, fails):
    lu.unit.capacity_changed()
    lu.unit.establish(sense.REPORTED_LUNS_DATA_HAS_CHANGED)
    fails(lu, "READ(10)", sense.CAPACITY_DATA_HAS_CHANGED)
    assert lu.itl.gate.bits & GateBit.UNIT_ATTENTION
    fails(lu, "READ(10)", sense.REPORTED_LUNS_DATA_HAS_CHANGED)
    assert not lu.itl.gate.bits & GateBit.UNIT_ATTENTION


@pytest.mark.parametrize("command", ["INQUIRY", "REPORT LUNS"])
def test_two_commands_pass_a_pending_condition(lu, ok, command):
    lu.unit.capacity_changed()
    ok(lu, command)
    assert lu.itl.attentions.pending() == (sense.CAPACITY_DATA_HAS_CHANGED,)


def test_an_inquiry_that_fails_leaves_the_condition_pending(lu, fails):
    lu.unit.capacity_changed()
    fails(lu, "INQUIRY", sense.INVALID_FIELD_IN_CDB, page_code=1)
    assert lu.itl.attentions


def test_request_sense_gives_the_condition_as_data_and_ends_it(lu, ok, executes):
    lu.unit.capacity_changed()
    assert sense_data.parse(ok(lu, "REQUEST SENSE")).code is sense.CAPACITY_DATA_HAS_CHANGED
    executes(lu, "TEST UNIT READY")


def test_request_sense_without_a_condition(lu, ok):
    data = ok(lu, "REQUEST SENSE")
    assert data.hex() == "70000000000000" + "0a" + "00" * 10


def test_request_sense_in_descriptor_format(lu, ok):
    lu.unit.capacity_changed()
    assert ok(lu, "REQUEST SENSE", desc=1).hex() == "72062a0900000000"


def test_request_sense_ends_at_the_allocation_length(lu, ok):
    assert ok(lu, "REQUEST SENSE", allocation_length=3) == b"\x70\0\0"


def test_a_condition_comes_before_an_unknown_command(lu, fails):
    lu.unit.capacity_changed()
    fails(lu, b"\xc1" + bytes(5), sense.CAPACITY_DATA_HAS_CHANGED)
    fails(lu, b"\xc1" + bytes(5), sense.INVALID_COMMAND_OPERATION_CODE)


def test_each_nexus_is_told(lu, fails):
    other = lu.attach()
    other.take()
    lu.unit.capacity_changed()
    fails(lu, "READ(10)", sense.CAPACITY_DATA_HAS_CHANGED)
    fails(lu, "READ(10)", sense.CAPACITY_DATA_HAS_CHANGED, itl=other)


def test_a_detached_nexus_is_told_nothing_more(lu):
    other = lu.attach()
    lu.run(lu.unit.detach(other))
    other.take()
    lu.unit.capacity_changed()
    assert not other.attentions
    assert other not in lu.unit.itls
    assert other not in other.nexus.itls
