# SPDX-License-Identifier: Apache-2.0
"""Identifying information, the time, buffers, diagnostics and the list of task management functions."""

import time

import pytest

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.saved_state import SavedStateError
from vhost_scsi.scsi.task import Aborted, Complete, Status

REPORT, SET = "REPORT IDENTIFYING INFORMATION", "SET IDENTIFYING INFORMATION"


# ---- identifying information -----------------------------------------------------------------------------------------


def keep(ok, rig, kind, data):
    ok(rig, SET, information_type=kind, parameter_list_length=len(data), data_out=data)


@pytest.mark.parametrize(("kind", "data"), [(0, b"\xff\x00any bytes"), (2, "Büro\0".encode())])
def test_information_is_kept_and_told_to_others(lu, ok, kind, data):
    other = lu.attach()
    other.take()
    assert ok(lu, REPORT, information_type=kind) == bytes(4)
    keep(ok, lu, kind, data)
    assert ok(lu, REPORT, information_type=kind) == bytes(2) + len(data).to_bytes(2) + data
    assert other.take() is sense.DEVICE_IDENTIFIER_CHANGED
    assert lu.itl.take() is None
    keep(ok, lu, kind, b"")
    assert ok(lu, REPORT, information_type=kind) == bytes(4)


def test_the_types_that_are_there(lu, ok, fails):
    assert ok(lu, REPORT, information_type=0x7F) == bytes([0, 0, 0, 8, 0, 0, 0, 64, 4, 0, 1, 0])
    fails(lu, REPORT, sense.INVALID_FIELD_IN_CDB, information_type=1, at=(10, 7))
    fails(lu, SET, sense.INVALID_FIELD_IN_CDB, information_type=0x7F, at=(10, 7))


@pytest.mark.parametrize(("data", "at"), [(b"\xff\0", (0, 7)), (b"ab", (1, 7))])
def test_text_is_utf_8_with_a_null_behind_it(lu, fails, data, at):
    given = {"information_type": 2, "parameter_list_length": 2, "data_out": data}
    fails(lu, SET, sense.INVALID_FIELD_IN_PARAMETER_LIST, at=at, **given)


def test_more_than_there_is_room_for_is_refused(lu, fails):
    fails(lu, SET, sense.INVALID_FIELD_IN_CDB, parameter_list_length=65, data_out=bytes(65), at=(6, 7))


def test_what_cannot_be_kept_is_not_promised(lu, fails, monkeypatch):
    async def put(name, data):
        raise SavedStateError("no room")

    monkeypatch.setattr(lu.unit.saved, "put", put)
    fails(lu, SET, sense.INTERNAL_TARGET_FAILURE, parameter_list_length=1, data_out=b"x")


# ---- the time --------------------------------------------------------------------------------------------------------


def test_the_time_is_the_host_s_until_it_is_set(lu, ok, fails):
    data = ok(lu, "REPORT TIMESTAMP")
    assert len(data) == 12
    assert data[:3] == bytes([0, 10, 0b011])
    assert abs(int.from_bytes(data[4:10]) - time.time() * 1000) < 10_000
    other = lu.attach()
    other.take()
    ok(lu, "SET TIMESTAMP", parameter_list_length=12, data_out=bytes(4) + (5000).to_bytes(6) + bytes(2))
    data = ok(lu, "REPORT TIMESTAMP")
    assert data[2] == 0b010
    assert 5000 <= int.from_bytes(data[4:10]) < 60_000
    assert other.take() is sense.TIMESTAMP_CHANGED
    ok(lu, "SET TIMESTAMP")
    fails(lu, "SET TIMESTAMP", sense.PARAMETER_LIST_LENGTH_ERROR, parameter_list_length=11, data_out=bytes(11))


# ---- buffers ---------------------------------------------------------------------------------------------------------


def test_the_echo_buffer_is_each_nexus_s_own(lu, ok, fails):
    other = lu.attach()
    other.take()
    fails(lu, "READ BUFFER(10)", sense.COMMAND_SEQUENCE_ERROR, mode=0x0A)
    ok(lu, "WRITE BUFFER", mode=0x0A, parameter_list_length=4, data_out=b"echo")
    assert ok(lu, "READ BUFFER(10)", mode=0x0A) == b"echo"
    fails(lu, "READ BUFFER(10)", sense.COMMAND_SEQUENCE_ERROR, mode=0x0A, itl=other)
    assert ok(lu, "READ BUFFER(10)", mode=0x0B) == bytes([1, 0, 0x10, 0])
    long = {"parameter_list_length": 4097, "data_out": bytes(4097)}
    fails(lu, "WRITE BUFFER", sense.INVALID_FIELD_IN_CDB, mode=0x0A, at=(6, 7), **long)


def test_the_buffer_is_everybody_s(lu, ok, fails):
    other = lu.attach()
    other.take()
    assert ok(lu, "READ BUFFER(10)", mode=2) == b""
    ok(lu, "WRITE BUFFER", mode=2, buffer_offset=3, parameter_list_length=4, data_out=b"data")
    assert ok(lu, "READ BUFFER(10)", mode=2, itl=other)[:8] == b"\0\0\0data\0"
    assert ok(lu, "READ BUFFER(10)", mode=2, buffer_offset=4)[:3] == b"ata"
    assert ok(lu, "READ BUFFER(10)", mode=3) == bytes([0, 0, 0xFC, 0])
    assert ok(lu, "READ BUFFER(10)", mode=3, buffer_id=1) == bytes(4)
    fails(lu, "READ BUFFER(10)", sense.INVALID_FIELD_IN_CDB, mode=2, buffer_id=1, at=(2, 7))
    fails(lu, "READ BUFFER(10)", sense.INVALID_FIELD_IN_CDB, mode=2, buffer_offset=0xFC01, at=(3, 7))
    at_end = {"buffer_offset": 0xFBFF, "parameter_list_length": 2, "data_out": b"xx"}
    fails(lu, "WRITE BUFFER", sense.INVALID_FIELD_IN_CDB, mode=2, at=(6, 7), **at_end)


@pytest.mark.parametrize("name", ["READ BUFFER(10)", "WRITE BUFFER"])
def test_microcode_and_other_modes_are_refused(lu, fails, name):
    fails(lu, name, sense.INVALID_FIELD_IN_CDB, mode=0x05, at=(1, 4))


# ---- diagnostics -----------------------------------------------------------------------------------------------------


def test_the_default_self_test_reads_the_medium(lu, ok):
    ok(lu, "SEND DIAGNOSTIC", selftest=1)
    last = lu.medium.num_blocks - 1
    assert lu.medium.log == [("read", 0, 1), ("read", lu.medium.num_blocks // 2, 1), ("read", last, 1)]
    assert lu.unit.self_tests.results[0].result == 0


def test_an_extended_one_reads_all_of_it(make_lu, ok):
    lu = make_lu(num_blocks=5000)
    ok(lu, "SEND DIAGNOSTIC", self_test_code=6)
    assert lu.medium.log == [("read", 0, 2048), ("read", 2048, 2048), ("read", 4096, 904)]


def test_a_self_test_that_fails_says_so(lu, ok, fails):
    lu.medium.fails_with = sense.UNRECOVERED_READ_ERROR
    fails(lu, "SEND DIAGNOSTIC", sense.LOGICAL_UNIT_FAILED_SELF_TEST, self_test_code=5)
    assert lu.unit.self_tests.results[0].result == 6
    assert lu.unit.self_tests.results[0].sense is sense.UNRECOVERED_READ_ERROR
    lu.medium.fails_with = None
    lu.medium.bad.add(0)
    fails(lu, "SEND DIAGNOSTIC", sense.LOGICAL_UNIT_FAILED_SELF_TEST, selftest=1)
    assert lu.unit.self_tests.results[0].address == 0


def test_a_background_test_runs_beside_commands_and_can_be_aborted(lu, ok, fails, executes):
    fails(lu, "SEND DIAGNOSTIC", sense.INVALID_FIELD_IN_CDB, self_test_code=4, at=(1, 7))
    lu.medium.may_go.clear()
    ok(lu, "SEND DIAGNOSTIC", self_test_code=1)
    lu.settle()
    executes(lu, "READ(10)")
    fails(lu, "SEND DIAGNOSTIC", sense.LOGICAL_UNIT_NOT_READY_SELF_TEST_IN_PROGRESS, self_test_code=2)
    assert lu.unit.self_tests.results[0].result == 0xF
    ok(lu, "SEND DIAGNOSTIC", self_test_code=4)
    lu.settle()
    assert lu.unit.self_tests.results[0].result == 1
    assert lu.unit.self_tests.running is None
    lu.medium.may_go.set()
    ok(lu, "SEND DIAGNOSTIC", self_test_code=2)
    lu.run(lu.unit.close())


def test_a_foreground_test_ends_with_its_command(lu):
    lu.medium.may_go.clear()
    outcomes = lu.begin(lu.task("SEND DIAGNOSTIC", selftest=1))
    lu.settle()
    lu.run(lu.unit.abort_task_set(lu.itl))
    assert outcomes == [Aborted()]
    assert lu.unit.self_tests.results[0].result == 1


def test_nobody_has_the_unit_alone_while_a_handler_moves_data(lu, ok):
    lu.medium.may_go.clear()
    test = lu.begin(lu.task("SEND DIAGNOSTIC", selftest=1))
    lu.settle()
    stop = lu.begin(lu.task("START STOP UNIT"))
    lu.settle()
    assert not stop
    lu.medium.may_go.set()
    for _ in range(10):
        lu.settle()
    assert stop == test == [Complete(Status.GOOD)]


def test_diagnostic_pages(lu, ok, fails):
    assert ok(lu, "RECEIVE DIAGNOSTIC RESULTS") == bytes([0, 0, 0, 1, 0])
    fails(lu, "RECEIVE DIAGNOSTIC RESULTS", sense.INVALID_FIELD_IN_CDB, pcv=1, page_code=0x40, at=(2, 7))
    ok(lu, "SEND DIAGNOSTIC")
    ok(lu, "SEND DIAGNOSTIC", pf=1, parameter_list_length=4, data_out=bytes(4))
    wrong = {"parameter_list_length": 4}
    fails(lu, "SEND DIAGNOSTIC", sense.INVALID_FIELD_IN_CDB, data_out=bytes(4), at=(1, 4), **wrong)
    fails(lu, "SEND DIAGNOSTIC", sense.INVALID_FIELD_IN_PARAMETER_LIST, pf=1, data_out=b"\x40\0\0\0", **wrong)
    fails(lu, "SEND DIAGNOSTIC", sense.INVALID_FIELD_IN_PARAMETER_LIST, pf=1, data_out=b"\0\0\0\1", **wrong)
    fails(lu, "SEND DIAGNOSTIC", sense.PARAMETER_LIST_LENGTH_ERROR, pf=1, parameter_list_length=3, data_out=bytes(3))
    fails(lu, "SEND DIAGNOSTIC", sense.INVALID_FIELD_IN_CDB, self_test_code=3, at=(1, 7))
    fails(lu, "SEND DIAGNOSTIC", sense.INVALID_FIELD_IN_CDB, self_test_code=5, selftest=1, at=(1, 7))
    fails(lu, "SEND DIAGNOSTIC", sense.INVALID_FIELD_IN_CDB, self_test_code=5, data_out=bytes(4), at=(3, 7), **wrong)


# ---- task management -------------------------------------------------------------------------------------------------


def test_every_function_is_there(lu, ok):
    assert ok(lu, "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS") == bytes([0b11111100, 0b011, 0, 0])
    data = ok(lu, "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", repd=1)
    assert data[3] == 12
    assert data[4:] == bytes([1, 0, 0, 0]) + (300).to_bytes(4) * 2, "TMFTMOV; half a minute for every function"
