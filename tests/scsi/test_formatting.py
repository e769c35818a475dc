# SPDX-License-Identifier: Apache-2.0
"""FORMAT UNIT and SANITIZE: what they leave on the medium, and what the unit says meanwhile and after a failure."""

import pytest

from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.medium import Capabilities
from vhost_scsi.scsi.task import Aborted, Complete, Status

FORMATTING = sense.LOGICAL_UNIT_NOT_READY_FORMAT_IN_PROGRESS
SANITIZING = sense.LOGICAL_UNIT_NOT_READY_SANITIZE_IN_PROGRESS
OVERWRITE = "SANITIZE, OVERWRITE"
ERASE = "SANITIZE, BLOCK ERASE"
EXIT = "SANITIZE, EXIT FAILURE MODE"
BLOCKS = 64


@pytest.fixture
def small(make_lu):
    lu = make_lu(num_blocks=BLOCKS)
    lu.medium.content = {lba: bytes([lba]) * 512 for lba in range(BLOCKS)}
    return lu


def overwrite(pattern, *, count=1, invert=False, test=0, length=None):
    flags = int(invert) << 7 | test << 5 | count
    return bytes([flags, 0]) + (len(pattern) if length is None else length).to_bytes(2) + pattern


def patterned(rig, pattern):
    return all(rig.medium.content[lba] == (pattern * 512)[:512] for lba in range(BLOCKS))


# ---- what they leave -------------------------------------------------------------------------------------------------


def test_a_format_clears_all_blocks_and_forgets_bad_ones(small, ok):
    small.medium.bad.add(3)
    ok(small, "FORMAT UNIT")
    assert not small.medium.content
    assert not small.medium.bad
    assert small.medium.log[-1] == "flush"
    assert not small.gate.bits & (GateBit.NOT_READY | GateBit.HOLD)


def test_a_format_with_a_pattern_writes_it_everywhere(small, ok):
    data = bytes([0, 0x88, 0, 0]) + bytes([0, 1, 0, 3]) + b"abc"
    ok(small, "FORMAT UNIT", fmtdata=1, data_out=data)
    assert patterned(small, b"abc")


def test_a_long_list_may_ask_for_zeroes(small, ok):
    data = bytes([0, 0x88, 0, 0, 0, 0, 0, 0]) + bytes([0, 1, 0, 2, 0, 0])
    ok(small, "FORMAT UNIT", fmtdata=1, longlist=1, data_out=data)
    assert not small.medium.content


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (bytes([2, 0, 0, 0]), (0, 2)),
        (bytes([0, 0x08, 0, 0]), (1, 7)),
        (bytes([0, 0, 0, 4]) + bytes(4), (2, 7)),
        (bytes([0, 0x88, 0, 0, 0x40, 0, 0, 0]), (4, 6)),
        (bytes([0, 0x88, 0, 0, 0, 2, 0, 0]), (5, 7)),
        (bytes([0, 0x88, 0, 0, 0, 1, 0, 0]), (6, 7)),
        (bytes([0, 0x88, 0, 0, 0, 1, 2, 1]) + bytes(513), (6, 7)),
    ],
)
def test_a_wrong_format_list_is_refused(small, fails, data, at):
    fails(small, "FORMAT UNIT", sense.INVALID_FIELD_IN_PARAMETER_LIST, at=at, fmtdata=1, data_out=data)
    assert len(small.medium.content) == BLOCKS


@pytest.mark.parametrize("data", [b"", bytes([0, 0x88, 0, 0, 0, 1]), bytes([0, 0x88, 0, 0, 0, 1, 0, 9, 1])])
def test_a_format_list_that_is_cut_short_is_refused(small, fails, data):
    fails(small, "FORMAT UNIT", sense.PARAMETER_LIST_LENGTH_ERROR, fmtdata=1, data_out=data)


def test_options_of_a_list_need_a_list(small, fails):
    fails(small, "FORMAT UNIT", sense.INVALID_FIELD_IN_CDB, longlist=1, at=(1, 4))


def test_an_overwrite_repeats_the_pattern(small, ok):
    ok(small, OVERWRITE, parameter_list_length=7, data_out=overwrite(b"xyz"))
    assert patterned(small, b"xyz")


def test_an_inverted_overwrite_ends_with_the_pattern_itself(small, ok):
    ok(small, OVERWRITE, parameter_list_length=5, data_out=overwrite(b"\x0f", count=2, invert=True))
    writes = [entry for entry in small.medium.log if entry[0] == "write"]
    assert len(writes) == 2
    assert patterned(small, b"\x0f")


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (overwrite(b"x", count=0), (0, 4)),
        (overwrite(b"x", test=1), (0, 6)),
        (overwrite(b"xx", length=1), (2, 7)),
        (overwrite(b"x", length=0), (2, 7)),
    ],
)
def test_a_wrong_overwrite_list_is_refused(small, fails, data, at):
    given = {"parameter_list_length": len(data), "data_out": data}
    fails(small, OVERWRITE, sense.INVALID_FIELD_IN_PARAMETER_LIST, at=at, **given)


@pytest.mark.parametrize("length", [0, 4, 517])
def test_an_overwrite_list_has_some_pattern_and_at_most_a_block(small, fails, length):
    given = {"parameter_list_length": length, "data_out": bytes(length)}
    fails(small, OVERWRITE, sense.INVALID_FIELD_IN_CDB, at=(7, 7), **given)


def test_a_block_erase_deallocates(small, ok, make_lu, fails):
    ok(small, ERASE)
    assert not small.medium.content
    fails(small, ERASE, sense.INVALID_FIELD_IN_CDB, parameter_list_length=8, data_out=bytes(8), at=(7, 7))
    fails(make_lu(capabilities=Capabilities()), ERASE, sense.INVALID_FIELD_IN_CDB, at=(1, 4))


# ---- meanwhile -------------------------------------------------------------------------------------------------------


def begin(rig, command, **given):
    """Submits, and goes on until the medium has been asked for its first piece."""
    rig.medium.may_go.clear()
    outcomes = rig.begin(rig.task(command, **given))
    rig.settle()
    return outcomes


def finish(rig):
    rig.medium.may_go.set()
    for _ in range(20):
        rig.settle()


def test_a_unit_that_is_formatted_is_not_ready_and_says_how_far_it_is(make_lu, fails, ok):
    lu = make_lu(num_blocks=4 * (64 << 20) // 512)
    outcomes = begin(lu, "FORMAT UNIT")
    assert not outcomes
    assert lu.gate.bits & GateBit.NOT_READY
    assert not lu.gate.bits & GateBit.HOLD
    for command in ("TEST UNIT READY", "READ(10)", "MODE SENSE(6)", "FORMAT UNIT", ERASE):
        told = sense_data.parse(fails(lu, command, FORMATTING))
        assert told.progress == 0
    ok(lu, "INQUIRY")
    ok(lu, "REPORT LUNS")
    assert sense_data.parse(ok(lu, "REQUEST SENSE")).code is FORMATTING
    lu.unit.readiness.operation.done += 64 << 20 >> 9
    assert sense_data.parse(ok(lu, "REQUEST SENSE", desc=1)).progress == 65536 // 4
    finish(lu)
    assert outcomes == [Complete(Status.GOOD)]
    assert sense_data.parse(ok(lu, "REQUEST SENSE")).code is sense.NO_ADDITIONAL_SENSE_INFORMATION


def test_immed_has_its_status_at_once(small, ok):
    outcomes = begin(small, ERASE, immed=1)
    assert outcomes == [Complete(Status.GOOD)]
    assert sense_data.parse(ok(small, "REQUEST SENSE")).code is SANITIZING
    finish(small)
    assert not small.medium.content
    assert small.unit.readiness.operation is None


def test_a_sanitize_goes_on_when_its_command_is_aborted_or_the_unit_reset(small, fails):
    outcomes = begin(small, ERASE)
    small.run(small.unit.abort_task_set(small.itl))
    assert outcomes == [Aborted()]
    small.run(small.unit.logical_unit_reset(small.itl))
    small.itl.take()
    fails(small, "TEST UNIT READY", SANITIZING)
    assert small.gate.bits & GateBit.NOT_READY
    finish(small)
    assert not small.medium.content
    assert not small.gate.bits & GateBit.NOT_READY


def test_a_rate_slows_it_down(make_lu, ok):
    lu = make_lu(num_blocks=BLOCKS, overwrite_rate=BLOCKS * 512 * 20)
    began = lu.loop.time()
    ok(lu, ERASE)
    assert lu.loop.time() - began >= 0.05


# ---- failures --------------------------------------------------------------------------------------------------------


def test_a_format_that_fails_leaves_the_unit_unusable_until_one_succeeds(small, ok, fails, executes):
    small.medium.fails_with = sense.WRITE_ERROR
    fails(small, "FORMAT UNIT", sense.WRITE_ERROR)
    small.medium.fails_with = None
    fails(small, "READ(10)", sense.FORMAT_COMMAND_FAILED)
    assert sense_data.parse(ok(small, "REQUEST SENSE")).code is sense.FORMAT_COMMAND_FAILED
    ok(small, "FORMAT UNIT")
    executes(small, "READ(10)")


def test_a_failed_sanitize_may_be_left_if_it_was_allowed(small, ok, fails, executes):
    ok(small, EXIT)
    small.medium.fails_with = sense.WRITE_ERROR
    fails(small, ERASE, sense.WRITE_ERROR)
    fails(small, EXIT, sense.SANITIZE_COMMAND_FAILED)
    fails(small, ERASE, sense.WRITE_ERROR, ause=1)
    fails(small, "READ(10)", sense.SANITIZE_COMMAND_FAILED)
    fails(small, EXIT, sense.INVALID_FIELD_IN_CDB, parameter_list_length=1, data_out=b"x")
    ok(small, EXIT)
    executes(small, "READ(10)")


def test_an_immediate_one_that_fails_is_logged(small, caplog):
    small.medium.fails_with = sense.WRITE_ERROR
    outcomes = small.begin(small.task(ERASE, immed=1))
    for _ in range(20):
        small.settle()
    assert outcomes == [Complete(Status.GOOD)]
    assert small.unit.readiness.failure is sense.SANITIZE_COMMAND_FAILED
    assert "disk0: WRITE ERROR" in caplog.text
