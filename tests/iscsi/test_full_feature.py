# SPDX-License-Identifier: Apache-2.0
"""What comes up from full-feature phase and how it is answered: text, logout, task management, rejects, events."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.iscsi import client
from tests.iscsi.client import NO_TAG, REJECT, TARGET, Client, Response
from tests.iscsi.rig import Live, make_node
from vhost_scsi.iscsi import async_messages, pdu
from vhost_scsi.iscsi.codes import RejectReason, TaskFunction, TaskResponse
from vhost_scsi.iscsi.full_feature import ConnectionEvent, EventKind, RemoveReason
from vhost_scsi.iscsi.keys import Offer
from vhost_scsi.iscsi.negotiation import Negotiation
from vhost_scsi.iscsi.pdu import TextRequest
from vhost_scsi.iscsi.ping import PingAction, Pinger, PingPolicy
from vhost_scsi.iscsi.portals import Portal
from vhost_scsi.iscsi.targets import AclEntry, IscsiTarget
from vhost_scsi.iscsi.text_exchange import TextExchange, TextRejected

MORE: client.Pairs = [("MaxConnections", "4")]


@pytest.fixture
def initiator(live: Live) -> Iterator[Client]:
    """Logged in."""
    with live.connect() as connected:
        assert connected.login(extra=MORE).status == (0, 0)
        live.wait_for(lambda: live.node.sessions.connections == 1, "the hand-over")
        yield connected


def rejected(response: Response, reason: RejectReason) -> Response:
    assert response.opcode == REJECT
    assert response.bhs[2] == reason
    assert len(response.data) == 48, "the header that was rejected"
    return response


# ---- text ------------------------------------------------------------------------------------------------------------


def test_text_is_answered(initiator: Client) -> None:
    answer = initiator.text_request([("X-com.example.a", "1"), ("InitiatorAlias", "new")])
    assert (answer.opcode, answer.final, answer.more, answer.ttt, answer.itt) == (0x24, True, False, NO_TAG, 0x77)
    assert answer.pairs == [("X-com.example.a", "NotUnderstood")]


def test_max_recv_data_segment_length_is_told_to_the_data_plane(live: Live, initiator: Client) -> None:
    assert initiator.text_request([("MaxRecvDataSegmentLength", "1024")]).pairs == []
    live.wait_for(lambda: live.plane.connections[0].max_send == 1024, "the new length")
    assert initiator.text_request([("MaxRecvDataSegmentLength", "1")]).keys == {"MaxRecvDataSegmentLength": "Reject"}
    assert live.plane.connections[0].max_send == 1024
    assert "MaxRecvDataSegmentLength=1" in str(live.refusals()[-1])


@pytest.mark.parametrize(
    "pairs",
    [[("HeaderDigest", "None")], [("MaxBurstLength", "512")], [("AuthMethod", "None")], [("TargetAlias", "x")],
     [("X-a", "1"), ("X-a", "2")], [("X-a", "Reject")], b"no terminator", b"\0\xff=\0"],
)  # fmt: skip
def test_text_that_is_rejected(initiator: Client, pairs: Any) -> None:
    rejected(initiator.text_request(pairs), RejectReason.PROTOCOL_ERROR)
    assert initiator.text_request([("SendTargets", "")]).final, "the connection goes on"


def test_text_in_pieces(initiator: Client) -> None:
    whole = client.text([("X-com.example.a", "1"), ("X-com.example.b", "2")])
    first = initiator.text_request(whole[:20], final=False, more=True)
    assert (first.final, first.data) == (False, b"")
    assert first.ttt != NO_TAG
    last = initiator.text_request(whole[20:], ttt=first.ttt)
    assert last.final
    assert last.pairs == [("X-com.example.a", "NotUnderstood"), ("X-com.example.b", "NotUnderstood")]


def test_a_negotiation_over_several_requests(initiator: Client) -> None:
    first = initiator.text_request([("X-a", "1")], final=False)
    assert (first.final, first.keys) == (False, {"X-a": "NotUnderstood"})
    rejected(initiator.text_request([("X-a", "1")], ttt=first.ttt), RejectReason.PROTOCOL_ERROR)
    # The Reject has reset the negotiation: its tag means nothing any more, and the key may be said again.
    rejected(initiator.text_request([("X-b", "1")], ttt=first.ttt), RejectReason.INVALID_PDU_FIELD)
    assert initiator.text_request([("X-a", "1")]).final


def test_a_new_negotiation_resets_the_old(initiator: Client) -> None:
    old = initiator.text_request([("X-a", "1")], final=False)
    assert initiator.text_request([("X-a", "1")]).final
    rejected(initiator.text_request([], ttt=old.ttt), RejectReason.INVALID_PDU_FIELD)


@pytest.mark.parametrize(("ttt", "itt"), [(5, 0x77), (1, 0x78)])
def test_tags_of_nothing(initiator: Client, ttt: int, itt: int) -> None:
    initiator.text_request([], final=False)
    rejected(initiator.text_request([], ttt=ttt, itt=itt), RejectReason.INVALID_PDU_FIELD)


def test_f_and_c_are_not_set_both(initiator: Client) -> None:
    rejected(initiator.text_request(b"", final=True, more=True), RejectReason.PROTOCOL_ERROR)


def test_a_negotiation_without_end(initiator: Client) -> None:
    answer = initiator.text_request([], final=False)
    for _ in range(63):
        answer = initiator.text_request([], final=False, ttt=answer.ttt)
        assert answer.opcode == 0x24
    rejected(initiator.text_request([], final=False, ttt=answer.ttt), RejectReason.OUT_OF_RESOURCES)


_REQUESTS = st.builds(
    TextRequest,
    final=st.booleans(),
    more_to_come=st.booleans(),
    initiator_task_tag=st.integers(1, 2),
    target_transfer_tag=st.sampled_from([NO_TAG, 1, 2, 3]),
)
_TEXT = st.one_of(
    st.binary(max_size=60),
    st.lists(st.tuples(st.sampled_from(["SendTargets", "MaxRecvDataSegmentLength", "X-a", "HeaderDigest"]),
                       st.sampled_from(["All", "", "512", "Reject"])), max_size=3).map(client.text),
)  # fmt: skip


@given(st.lists(st.tuples(_REQUESTS, _TEXT), max_size=12))
def test_noise_in_text_requests(requests: list[tuple[TextRequest, bytes]]) -> None:
    told = [client.text([("TargetName", "iqn.x")])] * 100

    def send_targets(wanted: str) -> Any:
        return [] if wanted != "All" else [("TargetName", "iqn.x")] * len(told)

    exchange = TextExchange(Negotiation(Offer()), send_targets, lambda: 512)
    for request, data in requests:
        try:
            reply = exchange.receive(request, data)
        except TextRejected:
            continue
        assert len(reply.data) == reply.header.data_segment_length <= 512
        assert not (reply.header.final and reply.header.more_to_come)
        assert not reply.header.final or request.final
        assert (reply.header.target_transfer_tag == NO_TAG) == reply.header.final


# ---- discovery -------------------------------------------------------------------------------------------------------


def discovery(live: Live, number: int = 0) -> Client:
    connected = live.connect(number)
    assert connected.login(None).status == (0, 0)
    return connected


def test_discovery_tells_each_target_with_its_addresses(serve: Callable[..., Live]) -> None:
    first = IscsiTarget(TARGET)
    second = IscsiTarget(TARGET + "2", portal_groups=frozenset((1, 2)))
    live = serve(make_node(first, second), Portal("127.0.0.1", 0, 1), Portal("127.0.0.1", 0, 2))
    one, two = (portal.port for portal in live.node.portals)
    with discovery(live, 1) as asking:
        assert asking.send_targets("All") == [
            ("TargetName", TARGET),
            ("TargetAddress", f"127.0.0.1:{one},1"),
            ("TargetName", TARGET + "2"),
            ("TargetAddress", f"127.0.0.1:{two},2"),
            ("TargetAddress", f"127.0.0.1:{one},1"),
        ]
        assert [key for key, _ in asking.send_targets(TARGET + "2")] == ["TargetName", "TargetAddress", "TargetAddress"]
        assert asking.send_targets("iqn.2024-01.org.example:unknown") == []
        assert asking.send_targets("") == [("SendTargets", "Reject")]


def test_discovery_tells_only_what_may_be_had(serve: Callable[..., Live]) -> None:
    closed = IscsiTarget(TARGET, acl=(AclEntry(("iqn.other",)),))
    off = IscsiTarget(TARGET + "2", enabled=False)
    live = serve(make_node(closed, off, IscsiTarget(TARGET + "3")))
    with discovery(live) as asking:
        assert {value for key, value in asking.send_targets("All") if key == "TargetName"} == {TARGET + "3"}
        assert asking.send_targets(TARGET) == []


def test_a_long_list_of_targets_comes_in_pieces(serve: Callable[..., Live]) -> None:
    targets = [IscsiTarget(f"{TARGET}:{'x' * 150}.{number}") for number in range(60)]
    live = serve(make_node(*targets))
    with discovery(live) as asking:
        answer = asking.text_request([("SendTargets", "All")])
        assert answer.more
        assert len(answer.data) == 8192
        rejected(asking.text_request([("X-a", "1")], ttt=answer.ttt), RejectReason.PROTOCOL_ERROR)
        assert len(asking.send_targets("All")) == 120


def test_a_normal_session_asks_for_its_own_target(initiator: Client) -> None:
    assert initiator.send_targets("")[0] == ("TargetName", TARGET)
    assert initiator.send_targets(TARGET.upper())[0] == ("TargetName", TARGET)
    assert initiator.send_targets("iqn.2024-01.org.example:other") == []
    assert initiator.send_targets("All") == [("SendTargets", "Reject")]


def test_a_normal_session_hears_nothing_of_other_targets(serve: Callable[..., Live]) -> None:
    live = serve(make_node(IscsiTarget(TARGET), IscsiTarget(TARGET + "2")))
    with live.connect() as connected:
        connected.login()
        assert connected.send_targets(TARGET + "2") == []
        assert [value for key, value in connected.send_targets("") if key == "TargetName"] == [TARGET]


@pytest.mark.parametrize("opcode", [0x01, 0x02, 0x10])
def test_a_discovery_session_has_no_commands(live: Live, opcode: int) -> None:
    with discovery(live) as asking:
        asking.request(opcode, 0x81, bytes(4))
        rejected(asking.receive(), RejectReason.PROTOCOL_ERROR)


# ---- logout ----------------------------------------------------------------------------------------------------------


def test_logout_of_a_session(live: Live, initiator: Client) -> None:
    with live.connect() as second:
        second.login(tsih=initiator.tsih, cid=2)
        live.wait_for(lambda: live.node.sessions.connections == 2, "the hand-over")
        answer = initiator.logout(0)
        assert (answer.opcode, answer.bhs[2], answer.itt) == (0x26, 0, 0x99)
        assert initiator.closed()
        assert second.closed()
    live.wait_for(lambda: not live.plane.open_sessions, "the end of the session")
    assert {each.removed for each in live.plane.connections} == {RemoveReason.LOGOUT}


def test_logout_of_one_connection(live: Live, initiator: Client) -> None:
    with live.connect() as second:
        second.login(tsih=initiator.tsih, cid=2)
        live.wait_for(lambda: live.node.sessions.connections == 2, "the hand-over")
        assert second.logout(1, 2).bhs[2] == 0
        assert second.closed()
        assert initiator.text_request([]).final
        assert len(live.plane.open_sessions) == 1


def test_logout_of_another_connection(live: Live, initiator: Client) -> None:
    with live.connect() as second:
        second.login(tsih=initiator.tsih, cid=2)
        live.wait_for(lambda: live.node.sessions.connections == 2, "the hand-over")
        assert initiator.logout(1, 2).bhs[2] == 0
        assert second.closed()
        assert initiator.text_request([]).final


@pytest.mark.parametrize(("reason", "cid", "response"), [(1, 9, 1), (2, 1, 2), (2, 9, 2)])
def test_logouts_that_are_not_possible(initiator: Client, reason: int, cid: int, response: int) -> None:
    assert initiator.logout(reason, cid).bhs[2] == response
    assert initiator.text_request([]).final


def test_a_logout_reason_of_nothing(initiator: Client) -> None:
    rejected(initiator.logout(3), RejectReason.INVALID_PDU_FIELD)


def test_a_session_may_come_again_after_logout(live: Live, initiator: Client) -> None:
    initiator.logout()
    with live.connect() as again:
        assert again.login().status == (0, 0)


# ---- task management -------------------------------------------------------------------------------------------------


def manage(initiator: Client, function: int, itt: int = 0x55) -> Response:
    initiator.request(0x42, 0x80 | function, bytes(4), itt=itt)
    answer = initiator.receive()
    assert (answer.opcode, answer.itt) == (0x22, itt)
    return answer


@pytest.mark.parametrize("function", [*range(1, 7)])
def test_functions_are_carried_out(live: Live, initiator: Client, function: int) -> None:
    assert manage(initiator, function).bhs[2] == 0
    assert live.scsi.functions == [(initiator.tsih, function)]


@pytest.mark.parametrize("response", TaskResponse)
def test_responses_are_passed_on(live: Live, initiator: Client, response: TaskResponse) -> None:
    live.scsi.answer = response
    assert manage(initiator, 1).bhs[2] == response


@pytest.mark.parametrize(
    ("function", "response"), [(8, 4), *((function, 5) for function in (0, 9, 10, 11, 12, 13, 127))]
)
def test_functions_that_are_not_there(live: Live, initiator: Client, function: int, response: int) -> None:
    assert manage(initiator, function).bhs[2] == response
    assert live.scsi.functions == []


def test_functions_of_protocol_level_2(serve: Callable[..., Live]) -> None:
    live = serve(make_node(IscsiTarget(TARGET, offer=Offer(iscsi_protocol_level=2))))
    with live.connect() as initiator:
        assert initiator.login(extra=[("iSCSIProtocolLevel", "2")]).keys["iSCSIProtocolLevel"] == "2"
        live.scsi.answer = TaskResponse.SUCCEEDED
        assert manage(initiator, TaskFunction.QUERY_TASK).bhs[2] == 7


def test_an_error_of_ours_is_a_response(live: Live, initiator: Client, caplog: pytest.LogCaptureFixture) -> None:
    live.scsi.fail = ValueError("a bug")
    assert manage(initiator, 5).bhs[2] == TaskResponse.REJECTED
    assert "a bug" in caplog.text


def test_a_cold_reset_ends_all_sessions_of_the_target(serve: Callable[..., Live]) -> None:
    live = serve(make_node(IscsiTarget(TARGET), IscsiTarget(TARGET + "2")))
    with live.connect() as one, live.connect() as two, live.connect() as elsewhere:
        one.login()
        two.login(isid=b"\x80\0\0\0\0\2")
        elsewhere.login(TARGET + "2")
        assert manage(one, 7).bhs[2] == 0
        assert one.closed()
        assert two.closed()
        assert elsewhere.text_request([]).final


def test_who_comes_back_after_a_cold_reset_stays(live: Live, initiator: Client) -> None:
    live.plane.hold_close = live.thread.run(asyncio.Event)
    assert manage(initiator, 7).bhs[2] == 0
    with live.connect() as again:
        assert again.login(isid=b"\x80\0\0\0\0\2").status == (0, 0)
        live.wait_for(lambda: live.node.sessions.connections == 1, "the one that came back")
        live.thread.run(live.plane.hold_close.set)
        assert initiator.closed()
        live.wait_for(lambda: len(live.node.sessions) == 1, "the end of the old session")
        assert again.text_request([]).final


def test_task_management_is_bounded(live: Live, initiator: Client) -> None:
    live.scsi.hold = live.thread.run(asyncio.Event)
    for number in range(33):
        initiator.request(0x42, 0x85, bytes(4), itt=number)
    rejected(initiator.receive(), RejectReason.IMMEDIATE_COMMAND_REJECT)
    live.thread.run(live.scsi.hold.set)
    assert {initiator.receive().itt for _ in range(32)} == set(range(32))


# ---- the rest --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "reason"),
    [(0x10, RejectReason.SNACK_REJECT), (0x43, RejectReason.PROTOCOL_ERROR), (0x1C, RejectReason.COMMAND_NOT_SUPPORTED),
     (0x1F, RejectReason.COMMAND_NOT_SUPPORTED), (0x21, RejectReason.COMMAND_NOT_SUPPORTED),
     (0x05, RejectReason.COMMAND_NOT_SUPPORTED), (0x3F, RejectReason.COMMAND_NOT_SUPPORTED)],
)  # fmt: skip
def test_opcodes_that_are_rejected(live: Live, initiator: Client, opcode: int, reason: RejectReason) -> None:
    initiator.request(opcode, 0x80, bytes(4))
    answer = rejected(initiator.receive(), reason)
    assert answer.data[0] == opcode
    assert answer.bhs[16:20] == b"\xff" * 4
    assert "refused" in str(live.refusals()[-1])
    assert initiator.text_request([]).final


def test_a_ping_is_answered_with_its_data(initiator: Client) -> None:
    initiator.request(0x40, 0x80, b"\xff" * 4, b"hello", itt=0x99)
    answer = initiator.receive()
    assert (answer.opcode, answer.itt, answer.ttt, answer.data) == (0x20, 0x99, NO_TAG, b"hello")


def test_a_ping_that_wants_no_answer(initiator: Client) -> None:
    initiator.request(0x40, 0x80, b"\0\0\0\1", itt=NO_TAG)
    assert initiator.text_request([]).opcode == 0x24


def test_a_command_with_a_long_cdb(live: Live, initiator: Client) -> None:
    ahs = b"\0\x11\1\0" + bytes(range(16))
    initiator.send(struct.pack(">BBHB", 0x01, 0x81, 0, len(ahs) // 4) + bytes(27) + b"\x7f" + bytes(15) + ahs)
    live.wait_for(lambda: live.scsi.commands == [b"\x7f" + bytes(15) + bytes(range(16))], "the command")


@pytest.mark.parametrize(("opcode", "ahs"), [(0x01, b"\xff\xff\1\0"), (0x04, b"\0\1\1\0")])
def test_additional_headers_that_are_wrong(initiator: Client, opcode: int, ahs: bytes) -> None:
    initiator.send(struct.pack(">BBHB", opcode, 0x80, 0, len(ahs) // 4) + bytes(43) + ahs)
    rejected(initiator.receive(), RejectReason.INVALID_PDU_FIELD)


def test_a_wrong_data_digest_costs_the_pdu_only(live: Live, initiator: Client) -> None:
    bhs = pdu.ScsiCommand(initiator_task_tag=3).to_bytes()
    event = ConnectionEvent(EventKind.DATA_DIGEST_ERROR, bhs=bhs)
    live.thread.run(lambda: live.server.rare.on_event(live.plane.connections[0], event))
    assert rejected(initiator.receive(), RejectReason.DATA_DIGEST_ERROR).data == bhs
    assert initiator.text_request([]).final


@pytest.mark.parametrize("kind", [each for each in EventKind if each is not EventKind.DATA_DIGEST_ERROR])
def test_other_events_end_the_connection(live: Live, initiator: Client, kind: EventKind) -> None:
    event = ConnectionEvent(kind, "DATA_SN")
    for _ in range(2):  # the second is of a connection that is on its way out
        live.thread.run(lambda: live.server.rare.on_event(live.plane.connections[0], event))
    assert initiator.closed()
    live.wait_for(lambda: not live.plane.open_sessions, "the end of the session")
    told = [str(refusal) for refusal in live.refusals()]
    assert told == [] if kind is EventKind.CLOSED_BY_PEER else "DATA_SN" in told[0]


# ---- what we say by ourselves ----------------------------------------------------------------------------------------


def test_messages_to_a_session(live: Live, initiator: Client) -> None:
    def notify(message: Any, data: bytes = b"") -> Response:
        live.thread.run(lambda: live.server.rare.notify(next(iter(live.node.sessions)), message, data))
        answer = initiator.receive()
        assert answer.opcode == client.ASYNC_MESSAGE
        assert answer.bhs[16:20] == b"\xff" * 4
        return answer

    sense = bytes(range(18))
    event = notify(*async_messages.scsi_event(0x0001 << 48, sense))
    assert (event.bhs[36], event.bhs[8:16], event.data) == (0, b"\0\1" + bytes(6), b"\0\x12" + sense)
    assert notify(async_messages.logout_requested(9)).bhs[36:44] == b"\1\0\0\0\0\0\0\x09"
    assert notify(async_messages.connection_drop(7, 2, 3)).bhs[36:44] == b"\2\0\0\7\0\2\0\3"
    assert notify(async_messages.session_drop(2, 3)).bhs[36:44] == b"\3\0\0\0\0\2\0\3"
    assert notify(async_messages.negotiation_requested(5)).bhs[36:44] == b"\4\0\0\0\0\0\0\5"
    assert notify(async_messages.tasks_terminated(0)).bhs[36] == 5


def test_a_target_that_is_removed_tells_its_sessions(live: Live, initiator: Client) -> None:
    live.thread.call(live.server.remove_target(TARGET))
    answer = initiator.receive()
    assert (answer.opcode, answer.bhs[36]) == (client.ASYNC_MESSAGE, 3)
    assert initiator.closed()
    assert live.plane.open_sessions == []
    with live.connect() as again:
        assert again.login().status == (2, 4)


def test_ping_policy() -> None:
    pinger = Pinger(PingPolicy(idle=10, timeout=5), 100.0)
    assert (pinger.look(109), pinger.next_look) == (PingAction.NOTHING, 110)
    assert (pinger.look(110), pinger.next_look) == (PingAction.PING, 115)
    assert pinger.look(114) is PingAction.NOTHING
    pinger.heard(114)
    assert (pinger.look(116), pinger.next_look) == (PingAction.NOTHING, 124)
    assert pinger.look(125) is PingAction.PING
    assert pinger.look(130) is PingAction.GIVE_UP


def test_no_ping_at_all() -> None:
    pinger = Pinger(PingPolicy(idle=0), 0.0)
    assert pinger.look(1e9) is PingAction.NOTHING
    assert pinger.next_look is None
