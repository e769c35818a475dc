# SPDX-License-Identifier: Apache-2.0
"""Sessions over the real data plane while commands run: logouts of every kind, connections and sessions that take each
other's place, what is negotiated in full-feature phase, and being sent elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.iscsi.client import TARGET, Client
from tests.iscsi.libiscsi import tool
from tests.iscsi.scsi_host import DATA_IN, SCSI_RESPONSE, STATUS, ScsiHost, command_pdu
from tests.iscsi.served import Served, served
from tests.live import TEST_UNIT_READY, read10, write10
from vhost_scsi.iscsi.targets import IscsiTarget, Redirect
from vhost_scsi.scsi import sense

BLOCK = 512
A, B = b"\xaa" * BLOCK, b"\xbb" * BLOCK
MORE = [("MaxConnections", "4")]
CLOSED, NO_SUCH_CID, NO_RECOVERY = 0, 1, 2
OTHER_ISID = b"\x80\0\0\0\0\2"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, "delay(write=700ms):memory:16M") as running:
        yield running


def joined(target: Served, host: ScsiHost, cid: int = 2) -> ScsiHost:
    before = target.live.run(lambda: target.node.sessions.connections)
    second = target.connect(tsih=host.client.tsih, cid=cid)
    target.live.wait_for(lambda: target.node.sessions.connections == before + 1, "the second connection")
    return second


def under_way(target: Served, host: ScsiHost, lba: int = 1) -> int:
    """A write that is in the store."""
    before = target.live.in_flight()
    tag = host.send(write10(lba, 1), A)
    target.live.wait_for(lambda: target.live.in_flight() > before, "the write to be on its way")
    return tag


# ---- logout --------------------------------------------------------------------------------------------------------


def test_a_logout_of_the_session_ends_its_commands_and_connections(target: Served) -> None:
    with target.connect(isid=OTHER_ISID) as other, target.connect(extra=MORE) as host:
        with joined(target, host) as second:
            under_way(target, host)
            kept = under_way(target, other, 2)
            answer = host.client.logout(0)
            assert (answer.opcode, answer.bhs[2]) == (0x26, CLOSED), "and no response of the write"
            assert host.client.closed()
            assert second.client.closed()
        target.wait_for_sessions(1)
        assert other.wait(kept).status == 0
        other.ok(TEST_UNIT_READY)


@pytest.mark.parametrize("by_itself", [True, False])
def test_a_logout_of_one_connection_leaves_the_other_and_its_commands(target: Served, by_itself: bool) -> None:
    with target.connect(extra=MORE) as host, joined(target, host) as second:
        number = host.client.cmd_sn
        host.client.send(command_pdu(write10(1, 1), 0x61, number, A))
        second.client.send(command_pdu(write10(2, 1), 0x62, number + 1, A))
        target.live.wait_for(lambda: target.live.in_flight() == 2, "both writes")
        asking = second if by_itself else host
        asking.client.cmd_sn = number + 2
        asking.client.request(0x46, 0x81, (2).to_bytes(2, "big") + bytes(2), itt=0x99)
        answer = asking.client.receive()
        assert (answer.opcode, answer.itt, answer.bhs[2]) == (0x26, 0x99, CLOSED)
        assert second.client.closed()
        assert host.wait(0x61).status == 0
        host.client.cmd_sn = number + 2
        host.ok(TEST_UNIT_READY)


@pytest.mark.parametrize(("reason", "cid", "response"), [(1, 9, NO_SUCH_CID), (2, 1, NO_RECOVERY), (2, 9, NO_RECOVERY)])
def test_logouts_that_are_not_possible_end_nothing(target: Served, reason: int, cid: int, response: int) -> None:
    with target.connect() as host:
        tag = under_way(target, host)
        assert host.client.logout(reason, cid).bhs[2] == response
        assert host.wait(tag).status == 0


# ---- reinstatement -------------------------------------------------------------------------------------------------


def test_a_session_that_comes_again_ends_the_old_one_with_its_commands(target: Served) -> None:
    with target.connect() as host:
        under_way(target, host)
        with ScsiHost(target.address) as again:
            assert again.client.tsih != host.client.tsih
            assert target.live.in_flight() == 0, "what the old one had under way ended before the new one began"
            assert host.client.closed()
            again.fails(sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED, TEST_UNIT_READY)
            again.ok(write10(1, 1), B)
            assert again.ok(read10(1, 1), in_len=BLOCK) == B
        target.wait_for_sessions(0)


def test_a_connection_that_comes_again_takes_the_place_of_the_old_one(target: Served) -> None:
    with target.connect(extra=MORE) as host:
        under_way(target, host)
        number = host.client.cmd_sn
        with target.connect(tsih=host.client.tsih, cid=1, cmd_sn=number) as again:
            assert again.client.tsih == host.client.tsih
            assert host.client.closed()
            again.ok(TEST_UNIT_READY)  # no unit attention: it is the same nexus
            assert again.ok(read10(1, 1), in_len=BLOCK) in (A, bytes(BLOCK))
            assert len(target.sessions()) == 1


def test_what_a_lost_connection_had_not_been_acknowledged_for_may_be_sent_again(target: Served) -> None:
    with target.connect(extra=MORE) as host, joined(target, host) as second:
        number = host.client.cmd_sn
        # Behind a number that is missing: taken, and not acknowledged.
        second.client.send(command_pdu(TEST_UNIT_READY, 0x62, number + 1))
        target.live.wait_for(lambda: target.live.in_flight() == 1, "the command")
        second.client.close()
        target.live.wait_for(lambda: target.node.sessions.connections == 1, "the end of the connection")
        host.client.send(command_pdu(TEST_UNIT_READY, 0x62, number + 1) + command_pdu(TEST_UNIT_READY, 0x61, number))
        assert [host.client.receive().itt for _ in range(2)] == [0x61, 0x62]


# ---- negotiation and redirection -----------------------------------------------------------------------------------


def test_shorter_segments_are_agreed_on_while_commands_run(target: Served) -> None:
    with target.connect() as host:
        assert host.client.text_request([("MaxRecvDataSegmentLength", "512")]).pairs == []
        tag = host.send(read10(0, 8), in_len=8 * BLOCK)
        pieces = [host.client.receive() for _ in range(8)]
        assert {(piece.opcode, piece.itt, len(piece.data)) for piece in pieces} == {(DATA_IN, tag, 512)}
        assert [piece.flags & STATUS for piece in pieces] == [0] * 7 + [STATUS]
        assert host.client.text_request([("MaxRecvDataSegmentLength", "65536")]).pairs == []
        tag = host.send(read10(0, 8), in_len=8 * BLOCK)
        assert len(host.client.receive().data) == 8 * BLOCK


def test_text_goes_on_while_a_write_waits_for_its_data(target: Served) -> None:
    with target.connect() as host:
        number = host.client.cmd_sn
        host.client.send(command_pdu(write10(1, 1), 0x61, number, out_len=BLOCK))
        r2t = host.client.receive()
        assert r2t.itt == 0x61
        host.client.cmd_sn += 1
        first = host.client.text_request(b"SendTar", final=False, more=True)
        last = host.client.text_request(b"gets=\0", ttt=first.ttt)
        assert last.keys["TargetName"] == TARGET
        head = bytes([0x05, 0x80, 0, 0, 0]) + BLOCK.to_bytes(3, "big") + bytes(8)
        host.client.send(head + (0x61).to_bytes(4, "big") + r2t.ttt.to_bytes(4, "big") + bytes(24) + A)
        answer = host.client.receive()
        assert (answer.opcode, answer.itt, answer.bhs[3]) == (SCSI_RESPONSE, 0x61, 0)


@pytest.mark.parametrize("permanent", [False, True])
def test_an_initiator_goes_where_it_is_sent(target: Served, tmp_path: Path, permanent: bool) -> None:
    host, port = target.address
    (tmp_path / "door").mkdir()
    with served(tmp_path / "door") as door:
        elsewhere = IscsiTarget(TARGET, redirect=Redirect(f"{host}:{port}", permanent))
        door.live.run(lambda: (door.node.remove_target(TARGET), door.node.add_target(elsewhere)))
        with Client(door.address) as client:
            answer = client.login()
            assert answer.status == (1, 2 if permanent else 1)
            assert answer.keys["TargetAddress"] == f"{host}:{port}"
            assert client.closed()
        said = tool("iscsi-inq", f"iscsi://{host}:{door.address[1]}/{TARGET}/0").stdout
        # libiscsi follows for the moment, and leaves it to people to write down a new address for good.
        assert ("Target moved permanently" if permanent else "DIRECT_ACCESS") in said
        assert door.sessions() == []
