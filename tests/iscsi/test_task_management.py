# SPDX-License-Identifier: Apache-2.0
"""Task management over the real data plane: which commands a function ends, by their CmdSN and not by their arrival
(RFC 7143 4.2.3, 11.5, 11.6), and what removing a logical unit does to what waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.iscsi.client import ASYNC_MESSAGE, TARGET, Client
from tests.iscsi.scsi_host import SCSI_RESPONSE, ScsiHost, command_pdu, manage_pdu
from tests.iscsi.served import Served, served
from tests.live import TEST_UNIT_READY, read10, write10
from tests.waiting import wait_for
from vhost_scsi.iscsi import task_management
from vhost_scsi.iscsi.data_plane import CoreConnection, CoreSession
from vhost_scsi.iscsi.task_management import is_lower
from vhost_scsi.scsi import sense, sense_data

BLOCK = 512
A, B = b"\xaa" * BLOCK, b"\xbb" * BLOCK
ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET, WARM_RESET, COLD_RESET, REASSIGN = 1, 2, 4, 5, 6, 7, 8
COMPLETE, NO_TASK, NO_LUN, NO_REASSIGN, REJECTED = 0, 1, 2, 4, 255
MORE = [("MaxConnections", "4")]
ORDERED = 2
R2T = 0x31
WAITING = 16  # PDUs of a connection that may wait for Python
SLOW, LATER = 0x51, 0x52  # task tags


@pytest.fixture(params=[1, 2], ids=["one-worker", "two-workers"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, "delay(write=700ms):memory:16M", workers=request.param) as running:
        yield running


@pytest.fixture
def host(target: Served) -> Iterator[ScsiHost]:
    with target.connect(extra=MORE) as connected:
        yield connected


def joined(target: Served, host: ScsiHost, cid: int = 2) -> ScsiHost:
    """One more connection of the session."""
    second = target.connect(tsih=host.client.tsih, cid=cid)
    target.live.wait_for(lambda: target.node.sessions.connections == cid, "the second connection")
    return second


def pinged(client: Client, itt: int = 0x99) -> None:
    """The next thing that comes is the answer to a ping that is sent now."""
    client.request(0x40, 0x80, b"\xff" * 4, b"ping", itt=itt)
    answer = client.receive()
    assert (answer.opcode, answer.itt) == (0x20, itt), (
        f"{answer.opcode:#x} of {answer.itt:#x}: {answer.bhs.hex()} {answer.data.hex()}"
    )


# ---- what was sent later -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET, WARM_RESET])
def test_commands_sent_after_an_immediate_function_are_not_ended(host: ScsiHost, function: int) -> None:
    number = host.client.cmd_sn
    host.client.send(
        command_pdu(write10(1, 1), SLOW, number, A)
        + manage_pdu(function, number + 1)
        + command_pdu(TEST_UNIT_READY, 0x60, number + 1)
        + command_pdu(write10(2, 1), LATER, number + 2, B)
    )
    host.client.cmd_sn += 3
    # The answer to what was sent later may overtake that of the function: it is no business of it.
    found = {}
    for _ in range(3):
        answer = host.client.receive()
        found[answer.itt] = answer
    assert set(found) == {0x55, 0x60, LATER}, "and no response to what was ended"
    assert found[0x55].bhs[2] == COMPLETE
    if function in (ABORT_TASK_SET, CLEAR_TASK_SET):
        assert (found[0x60].bhs[3], found[LATER].bhs[3]) == (0, 0)
    host.ready()
    host.ok(write10(2, 1), B)
    assert host.ok(read10(2, 1), in_len=BLOCK) == B


def test_an_immediate_command_that_came_before_is_ended(host: ScsiHost) -> None:
    number = host.client.cmd_sn
    host.client.send(
        command_pdu(write10(1, 1), SLOW, number, A, immediate=True)
        + manage_pdu(ABORT_TASK_SET, number)
        + command_pdu(write10(2, 1), LATER, number, B, immediate=True)
    )
    first, second = host.client.receive(), host.client.receive()
    assert {first.itt, second.itt} == {0x55, LATER}


def test_a_numbered_function_ends_what_came_before_it(host: ScsiHost) -> None:
    number = host.client.cmd_sn
    host.client.send(
        command_pdu(write10(1, 1), SLOW, number, A)
        + manage_pdu(ABORT_TASK_SET, number + 1, immediate=False)
        + command_pdu(write10(2, 1), LATER, number + 2, B)
    )
    host.client.cmd_sn += 3
    assert {host.client.receive().itt, host.client.receive().itt} == {0x55, LATER}


def test_a_tag_that_is_used_again_after_its_abort_is_another_task(host: ScsiHost) -> None:
    number = host.client.cmd_sn
    host.client.send(
        manage_pdu(ABORT_TASK, number, tag=SLOW, ref_cmd_sn=number - 1) + command_pdu(write10(1, 1), SLOW, number, A)
    )
    host.client.cmd_sn += 1
    answers = {}
    for _ in range(2):
        answer = host.client.receive()
        answers[answer.itt] = answer.bhs[2] if answer.opcode != SCSI_RESPONSE else answer.bhs[3]
    assert answers == {0x55: NO_TASK, SLOW: 0}


# ---- what comes late -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET])
def test_a_function_waits_for_what_another_connection_is_to_bring(
    target: Served, host: ScsiHost, function: int
) -> None:
    with joined(target, host) as second:
        number = host.client.cmd_sn
        host.client.send(manage_pdu(function, number + 1))
        pinged(host.client)  # no answer to the function has gone out before this
        second.client.send(command_pdu(write10(1, 1), SLOW, number, A))
        assert host.managed() == COMPLETE
        pinged(second.client)  # and not a word of the command
        host.client.cmd_sn = number + 1
        host.ready()
        assert host.ok(read10(1, 1), in_len=BLOCK) == bytes(BLOCK)


def test_a_function_gives_up_what_never_comes_and_ends_nothing(host: ScsiHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_management, "EARLIER_TIMEOUT", 0.02)
    number = host.client.cmd_sn
    host.client.send(command_pdu(write10(1, 1), SLOW, number, A) + manage_pdu(ABORT_TASK_SET, number + 2))
    assert host.managed() == REJECTED
    host.client.cmd_sn += 1
    assert host.wait(SLOW).status == 0


def test_a_function_does_not_wait_for_a_session_that_ends(target: Served, host: ScsiHost) -> None:
    host.client.send(manage_pdu(ABORT_TASK_SET, host.client.cmd_sn + 1))
    pinged(host.client)
    host.client.close()
    target.wait_for_sessions(0)


def test_a_reset_of_the_target_waits_for_nothing_and_takes_the_gap_as_received(target: Served, host: ScsiHost) -> None:
    number = host.client.cmd_sn
    host.client.send(command_pdu(write10(1, 1), SLOW, number, A) + manage_pdu(WARM_RESET, number + 3))
    answer = host.client.receive()
    assert (answer.itt, answer.bhs[2]) == (0x55, COMPLETE)
    host.client.cmd_sn = number + 3
    host.fails(sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED, TEST_UNIT_READY)
    # What comes after all with a number of the gap is dropped.
    host.client.send(command_pdu(write10(2, 1), LATER, number + 1, B))
    pinged(host.client)
    assert host.ok(read10(1, 2), in_len=2 * BLOCK) == bytes(2 * BLOCK)


# ---- one task ------------------------------------------------------------------------------------------------------


def test_abort_of_a_task_is_answered_when_the_medium_is_safe(target: Served, host: ScsiHost) -> None:
    tag = host.send(write10(1, 1), A)
    target.live.wait_for(lambda: target.live.in_flight() > 0, "the write to be on its way")
    assert host.manage(ABORT_TASK, tag=tag, ref_cmd_sn=host.client.cmd_sn - 1) == COMPLETE
    assert target.live.in_flight() == 0
    host.ok(write10(1, 1), B)
    assert host.ok(read10(1, 1), in_len=BLOCK) == B


def test_abort_of_a_command_that_has_not_come(target: Served, host: ScsiHost) -> None:
    with joined(target, host) as second:
        number = host.client.cmd_sn
        host.client.send(manage_pdu(ABORT_TASK, number + 2, tag=SLOW, ref_cmd_sn=number))
        assert host.managed() == COMPLETE
        second.client.send(command_pdu(write10(1, 1), SLOW, number, A))  # dropped: it counts as received
        host.client.cmd_sn = number + 1
        assert host.ok(read10(1, 1), in_len=BLOCK) == bytes(BLOCK)
        pinged(second.client)


def test_abort_of_a_command_behind_one_that_has_not_come(host: ScsiHost) -> None:
    number = host.client.cmd_sn
    host.client.send(manage_pdu(ABORT_TASK, number + 2, tag=LATER, ref_cmd_sn=number + 1))
    assert host.managed() == COMPLETE
    host.client.send(command_pdu(write10(2, 1), LATER, number + 1, B) + command_pdu(TEST_UNIT_READY, 0x60, number))
    assert host.wait(0x60).status == 0
    host.client.cmd_sn = number + 2
    assert host.ok(read10(2, 1), in_len=BLOCK) == bytes(BLOCK)


def test_abort_of_a_command_that_is_held(host: ScsiHost) -> None:
    number = host.client.cmd_sn
    host.client.send(command_pdu(write10(2, 1), LATER, number + 1, B))
    host.client.send(manage_pdu(ABORT_TASK, number + 2, tag=LATER, ref_cmd_sn=number + 1))
    assert host.managed() == COMPLETE
    host.ok(TEST_UNIT_READY)
    host.client.cmd_sn = number + 2
    assert host.ok(read10(2, 1), in_len=BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("offset", [-1, -1000, 0, 1, 128])
def test_abort_of_a_task_that_does_not_exist(host: ScsiHost, offset: int) -> None:
    """The numbers are behind the window, not below the function's own, or beyond the window."""
    assert host.manage(ABORT_TASK, tag=SLOW, ref_cmd_sn=(host.client.cmd_sn + offset) & 0xFFFFFFFF) == NO_TASK
    host.ok(TEST_UNIT_READY)


def test_abort_of_a_write_that_waits_for_its_data(host: ScsiHost) -> None:
    number = host.client.cmd_sn
    host.client.send(command_pdu(write10(1, 8), SLOW, number, out_len=8 * BLOCK))
    host.client.cmd_sn += 1
    r2t = host.client.receive()
    assert (r2t.opcode, r2t.itt) == (0x31, SLOW)
    assert host.manage(ABORT_TASK, tag=SLOW, ref_cmd_sn=number) == COMPLETE
    # Its data may come all the same, and belong to nobody (4.2.3.3).
    head = bytes([0x05, 0x80, 0, 0, 0]) + (8 * BLOCK).to_bytes(3, "big") + bytes(8)
    host.client.send(head + SLOW.to_bytes(4, "big") + r2t.ttt.to_bytes(4, "big") + bytes(24) + A * 8)
    assert host.ok(read10(1, 8), in_len=8 * BLOCK) == bytes(8 * BLOCK)


# ---- answers -------------------------------------------------------------------------------------------------------


def test_reassignment_is_refused(host: ScsiHost) -> None:
    assert host.manage(REASSIGN, tag=SLOW) == NO_REASSIGN


@pytest.mark.parametrize("function", [ABORT_TASK, ABORT_TASK_SET, CLEAR_TASK_SET, LUN_RESET, 3])
def test_functions_at_a_lun_that_is_not_there(host: ScsiHost, function: int) -> None:
    assert host.manage(function, lun=7) == NO_LUN


def test_clear_task_set_ends_the_tasks_of_others_and_tells_them(target: Served, host: ScsiHost) -> None:
    with target.connect(isid=b"\x80\0\0\0\0\2") as other:
        other.send(write10(1, 1), A)
        target.live.wait_for(lambda: target.live.in_flight() > 0, "the write to be on its way")
        assert host.manage(CLEAR_TASK_SET) == COMPLETE
        other.fails(sense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR, TEST_UNIT_READY)
        host.ok(TEST_UNIT_READY)


def test_a_warm_reset_is_told_to_everybody(target: Served, host: ScsiHost) -> None:
    with target.connect(isid=b"\x80\0\0\0\0\2") as other:
        assert host.manage(WARM_RESET) == COMPLETE
        for each in (host, other):
            each.fails(sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED, TEST_UNIT_READY)
            each.ok(TEST_UNIT_READY)


def test_a_cold_reset_ends_every_session(target: Served, host: ScsiHost) -> None:
    with target.connect(isid=b"\x80\0\0\0\0\2") as other:
        other.send(write10(1, 1), A)
        target.live.wait_for(lambda: target.live.in_flight() > 0, "the write to be on its way")
        assert host.manage(COLD_RESET) == COMPLETE
        assert host.client.closed()
        assert other.client.closed()
    target.wait_for_sessions(0)
    with target.connect() as again:
        assert again.ok(read10(1, 1), in_len=BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize(
    ("one", "other", "lower"),
    [(1, 2, True), (2, 1, False), (5, 5, False), (0xFFFFFFFF, 0, True), (0, 0xFFFFFFFF, False), (0xFFFFFFF0, 5, True)],
)
def test_numbers_wrap(one: int, other: int, lower: bool) -> None:
    assert is_lower(one, other) is lower


def test_functions_where_numbers_wrap(target: Served) -> None:
    with target.connect(cmd_sn=0xFFFFFFF0) as host:
        while host.client.cmd_sn != 0xFFFFFFFE:
            host.ok(TEST_UNIT_READY)
        host.client.send(
            command_pdu(write10(1, 1), SLOW, 0xFFFFFFFE, A)
            + command_pdu(write10(2, 1), SLOW + 0x100, 0xFFFFFFFF, A)
            + command_pdu(write10(3, 1), SLOW + 0x200, 0, A)
            + manage_pdu(ABORT_TASK_SET, 1)
            + command_pdu(write10(4, 1), LATER, 1, B)
        )
        assert {host.client.receive().itt, host.client.receive().itt} == {0x55, LATER}
        host.client.cmd_sn = 2
        assert host.ok(read10(1, 4), in_len=4 * BLOCK) == bytes(3 * BLOCK) + B


# ---- what is taken away --------------------------------------------------------------------------------------------


def unmap(target: Served, lun: int) -> None:
    (session,) = target.sessions()
    handle = session.handle
    assert isinstance(handle, CoreSession)
    target.live.call(handle.port.unmap(0, lun))


def test_commands_of_a_unit_that_is_taken_away_are_answered(target: Served, host: ScsiHost) -> None:
    """One runs, one waits for its data, one waits for its number, one stands behind an ORDERED one in Python."""
    number = host.client.cmd_sn
    host.client.send(
        command_pdu(write10(1, 1), 0x61, number, A)
        + command_pdu(write10(2, 1), 0x62, number + 1, out_len=BLOCK)
        + command_pdu(TEST_UNIT_READY, 0x63, number + 2, attribute=ORDERED)
        + command_pdu(bytes([0x12, 0, 0, 0, 36]), 0x64, number + 3, in_len=36)
        + command_pdu(TEST_UNIT_READY, 0x65, number + 5)
    )
    r2t = host.client.receive()
    assert (r2t.opcode, r2t.itt) == (0x31, 0x62)
    target.live.wait_for(lambda: target.live.in_flight() == 5, "all five")
    unmap(target, 0)
    answers = [host.client.receive() for _ in range(5)]
    assert {answer.itt for answer in answers} == {0x61, 0x62, 0x63, 0x64, 0x65}
    for answer in answers:
        assert (answer.opcode, answer.bhs[2], answer.bhs[3]) == (SCSI_RESPONSE, 0, 2)
        assert sense_data.parse(answer.data[2:]).code == sense.LOGICAL_UNIT_NOT_SUPPORTED
    host.client.cmd_sn = number + 4
    host.fails(sense.LOGICAL_UNIT_NOT_SUPPORTED, TEST_UNIT_READY)
    host.client.cmd_sn += 1
    host.fails(sense.LOGICAL_UNIT_NOT_SUPPORTED, TEST_UNIT_READY)


def test_a_target_that_is_removed_ends_what_runs(target: Served, host: ScsiHost) -> None:
    host.client.send(command_pdu(write10(1, 1), 0x61, host.client.cmd_sn, A))
    target.live.wait_for(lambda: target.live.in_flight() == 1, "the write to be on its way")
    target.live.call(target.server.remove_target(TARGET))
    answer = host.client.receive()
    assert (answer.opcode, answer.bhs[36]) == (ASYNC_MESSAGE, 3)
    assert host.client.closed()
    assert target.live.in_flight() == 0
    assert target.sessions() == []


# ---- PDUs in Python's hands ----------------------------------------------------------------------------------------


def test_no_more_is_read_while_pdus_wait_for_python(
    target: Served, host: ScsiHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_pdu, go_on = target.server.rare.on_pdu, threading.Event()

    def slow(*values: Any) -> None:
        go_on.wait(30)
        on_pdu(*values)

    (session,) = target.sessions()
    (handle,) = (connection.handle for connection in session.connections.values())
    assert isinstance(handle, CoreConnection)
    monkeypatch.setattr(target.server.rare, "on_pdu", slow)
    before = handle.info().rx_pdus
    try:
        for itt in range(40):
            host.client.request(0x44, 0x80, b"\xff" * 4, b"X-a=1\0", itt=itt)
        wait_for(lambda: handle.info().rx_pdus >= before + WAITING, "as many as may wait")
        time.sleep(0.05)  # for what should not come
        assert handle.info().rx_pdus == before + WAITING
    finally:
        go_on.set()
    assert [host.client.receive().itt for _ in range(40)] == list(range(40))


# ---- overlapped commands (SAM-5 5.11) ------------------------------------------------------------------------------


def test_a_task_tag_that_is_in_use_ends_all_that_the_nexus_has(host: ScsiHost) -> None:
    """One command is in the store, one waits for its data: neither is answered, and the one that came too soon is."""
    number = host.client.cmd_sn
    host.client.send(
        command_pdu(write10(1, 1), SLOW, number, A) + command_pdu(write10(2, 1), LATER, number + 1, out_len=BLOCK)
    )
    r2t = host.client.receive()
    assert (r2t.opcode, r2t.itt) == (R2T, LATER)
    host.client.send(command_pdu(TEST_UNIT_READY, SLOW, number + 2))
    answer = host.client.receive()
    assert (answer.opcode, answer.itt, answer.bhs[3]) == (SCSI_RESPONSE, SLOW, 2)
    assert sense_data.parse(answer.data[2:]).code is sense.OVERLAPPED_COMMANDS_ATTEMPTED
    host.client.cmd_sn = number + 3
    pinged(host.client)
    host.ok(TEST_UNIT_READY)
    assert host.ok(read10(2, 1), in_len=BLOCK) == bytes(BLOCK)
