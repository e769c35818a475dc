# SPDX-License-Identifier: Apache-2.0
"""START STOP UNIT, and what a stopped unit does."""

import pytest

from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.commands import COMMANDS, MediaOp
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.medium import Counts

NOT_READY = sense.LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED


def test_stop_flushes_and_closes_the_gate(lu, ok):
    ok(lu, "START STOP UNIT")
    assert lu.medium.log == ["flush"]
    assert lu.gate.bits & GateBit.NOT_READY
    assert not lu.gate.bits & GateBit.HOLD


def test_no_flush_is_honoured(lu, ok):
    ok(lu, "START STOP UNIT", no_flush=1)
    assert not lu.medium.log
    assert lu.unit.stopped


def test_a_stop_whose_flush_fails_has_not_happened(lu, fails, executes):
    lu.medium.flush_failed = True
    fails(lu, "START STOP UNIT", sense.WRITE_ERROR)
    executes(lu, "READ(10)", lba=0, blocks=1)


@pytest.mark.parametrize("row", [row for row in COMMANDS if row.media is not MediaOp.NONE], ids=lambda row: row.name)
def test_a_stopped_unit_refuses_every_media_command_until_it_is_started(lu, ok, fails, executes, row):
    ok(lu, "START STOP UNIT")
    fails(lu, row.name, NOT_READY)
    ok(lu, "START STOP UNIT", start=1, immed=1)
    executes(lu, row.name)


def test_start_opens_the_gate(lu, ok):
    ok(lu, "START STOP UNIT")
    ok(lu, "START STOP UNIT", start=1)
    assert not lu.gate.bits & GateBit.NOT_READY


def test_stopping_twice_is_no_error(lu, ok):
    ok(lu, "START STOP UNIT")
    ok(lu, "START STOP UNIT")
    assert lu.medium.log == ["flush"]


def test_a_stopped_unit_says_so_to_request_sense(lu, ok):
    ok(lu, "START STOP UNIT")
    assert sense_data.parse(ok(lu, "REQUEST SENSE")).code is NOT_READY


def test_a_stopped_unit_answers_inquiry_and_mode_sense(lu, ok):
    ok(lu, "START STOP UNIT")
    ok(lu, "INQUIRY")
    ok(lu, "MODE SENSE(6)", page_code=0x3F)


@pytest.mark.parametrize(
    ("modifier", "byte_4", "at"),
    [(0, 0x02, (4, 1)), (0, 0x40, (4, 7)), (3, 0x20, (3, 3)), (1, 0x10, (3, 3)), (1, 0x01, (3, 3))],
)
def test_unknown_power_conditions_and_ejection_are_refused(lu, fails, modifier, byte_4, at):
    fails(lu, bytes([0x1B, 0, 0, modifier, byte_4, 0]), sense.INVALID_FIELD_IN_CDB, at=at)


@pytest.mark.parametrize(
    ("condition", "modifier", "code"),
    [
        (2, 0, sense.IDLE_CONDITION_ACTIVATED_BY_COMMAND),
        (2, 1, sense.IDLE_B_CONDITION_ACTIVATED_BY_COMMAND),
        (0xA, 2, sense.IDLE_C_CONDITION_ACTIVATED_BY_COMMAND),
        (3, 0, sense.STANDBY_CONDITION_ACTIVATED_BY_COMMAND),
        (0xB, 1, sense.STANDBY_Y_CONDITION_ACTIVATED_BY_COMMAND),
    ],
)
def test_a_power_condition_is_told_until_the_medium_is_used(lu, ok, executes, condition, modifier, code):
    ok(lu, "START STOP UNIT", power_condition=condition, power_condition_modifier=modifier)
    assert lu.medium.log == ["flush"]
    assert sense_data.parse(ok(lu, "REQUEST SENSE")).code is code
    assert not lu.gate.bits & GateBit.NOT_READY
    executes(lu, "READ(10)", blocks=1)
    lu.medium.counted = Counts(reads=1)
    assert sense_data.parse(ok(lu, "REQUEST SENSE")).code is sense.NO_ADDITIONAL_SENSE_INFORMATION


def test_active_ends_a_power_condition_and_a_stop(lu, ok):
    ok(lu, "START STOP UNIT", power_condition=2)
    ok(lu, "START STOP UNIT", power_condition=1)
    assert sense_data.parse(ok(lu, "REQUEST SENSE")).code is sense.NO_ADDITIONAL_SENSE_INFORMATION
    ok(lu, "START STOP UNIT")
    ok(lu, "START STOP UNIT", power_condition=1)
    assert not lu.unit.stopped


def test_timers_take_over_nothing(lu, ok):
    ok(lu, "START STOP UNIT", power_condition=7)
    assert not lu.medium.log


def test_a_reset_starts_the_unit(lu, ok):
    ok(lu, "START STOP UNIT")
    lu.run(lu.unit.logical_unit_reset(lu.itl))
    assert not lu.unit.stopped
    assert not lu.gate.bits & GateBit.NOT_READY


def test_the_last_initiator_that_leaves_takes_the_stop_with_it(lu, ok):
    other = lu.attach()
    ok(lu, "INQUIRY", itl=other)
    ok(lu, "START STOP UNIT")
    lu.run(lu.unit.initiators_gone([lu.itl]))
    assert lu.unit.stopped  # the other one uses it
    lu.run(lu.unit.initiators_gone([other]))
    assert not lu.unit.stopped
    assert not lu.gate.bits & (GateBit.NOT_READY | GateBit.HOLD)


def test_an_initiator_that_never_spoke_keeps_no_stop_alive(lu, ok):
    lu.attach()
    ok(lu, "START STOP UNIT")
    lu.run(lu.unit.initiators_gone([lu.itl]))
    assert not lu.unit.stopped


def test_a_nexus_reset_is_not_the_end_of_its_initiator(lu, ok):
    ok(lu, "START STOP UNIT")
    lu.run(lu.unit.nexus_lost(lu.itl))
    assert lu.unit.stopped


def test_a_unit_in_its_first_state_is_not_held_when_its_initiator_leaves(lu, ok):
    ok(lu, "INQUIRY")
    lu.gate.history.clear()
    lu.run(lu.unit.initiators_gone([lu.itl]))
    assert not lu.gate.history
