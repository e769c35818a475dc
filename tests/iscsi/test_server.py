# SPDX-License-Identifier: Apache-2.0
"""Logins over sockets: many at once, slow ones, broken ones, sessions and connections that take each other's place."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest

from tests.iscsi import client
from tests.iscsi.client import FULL_FEATURE, INITIATOR, OPERATIONAL, TARGET, Client
from tests.iscsi.data_plane import FakeDataPlane, FakeScsi
from tests.iscsi.rig import Live, make_node
from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import session_keeper
from vhost_scsi.iscsi.auth import AuthPolicy, ChapUser
from vhost_scsi.iscsi.chap import Algorithm
from vhost_scsi.iscsi.full_feature import ConnectionEvent, EventKind, RemoveReason
from vhost_scsi.iscsi.portals import Portal
from vhost_scsi.iscsi.secret import Secret
from vhost_scsi.iscsi.server import IscsiServer
from vhost_scsi.iscsi.targets import AclEntry, IscsiTarget, Limits

MORE: client.Pairs = [("MaxConnections", "4")]
SECRET = Secret(b"secret-of-initiator")


def isid(number: int) -> bytes:
    return b"\x80" + number.to_bytes(5, "big")


def test_a_login_hands_over_what_was_agreed(live: Live) -> None:
    with live.connect() as initiator:
        extra = [
            ("HeaderDigest", "CRC32C"),
            ("MaxRecvDataSegmentLength", "65536"),
            ("InitialR2T", "No"),
            ("InitiatorAlias", "machine"),
        ]
        last = initiator.login(extra=extra, cmd_sn=500, isid=isid(7), cid=9)
        assert last.status == (0, 0)
        (session,) = live.plane.open_sessions
        params = session.params
        assert (params.tsih, params.isid, params.cmd_sn) == (last.tsih, 0x800000000007, 500)
        assert (params.initiator_name, params.initiator_alias, params.target) == (INITIATOR, "machine", TARGET)
        assert params.luns == {0: "disk"}
        assert not params.keys.initial_r2t
        live.wait_for(lambda: bool(live.plane.connections), "the hand-over")
        agreed = live.plane.connections[0].params
        assert (agreed.cid, agreed.header_digest, agreed.data_digest) == (9, True, False)
        assert (agreed.max_send, agreed.max_recv) == (65536, 262144)
        assert agreed.stat_sn == last.stat_sn + 1
        assert initiator.logout(cid=9).data == b""


def test_chap_over_a_socket(serve: Callable[..., Live]) -> None:
    mutual = ChapUser("target", Secret(b"secret-of-the-target"))
    auth = AuthPolicy((ChapUser("host", SECRET),), mutual, tuple(Algorithm))
    live = serve(make_node(IscsiTarget(TARGET, auth=auth)))
    for algorithm in (8, 7, 6, 5):
        with live.connect() as initiator:
            last = initiator.chap("host", SECRET.reveal(), str(algorithm), mutual=(7, b"challenge"))
            expected = client.chap_response(algorithm, 7, b"secret-of-the-target", b"challenge")
            assert last.keys["CHAP_R"] == "0x" + expected.hex()
            assert initiator.exchange([], csg=OPERATIONAL, nsg=FULL_FEATURE).status == (0, 0)
    sessions = live.thread.run(lambda: [session.user for session in live.node.sessions])
    assert set(sessions) <= {"host"}


def test_an_initiator_that_does_not_believe_the_target_is_told_of(serve: Callable[..., Live]) -> None:
    mutual = ChapUser("target", Secret(b"secret-of-the-target"))
    auth = AuthPolicy((ChapUser("host", SECRET),), mutual)
    live = serve(make_node(IscsiTarget(TARGET, auth=auth)))
    with live.connect() as believes:
        believes.chap("host", SECRET.reveal(), "7", mutual=(7, b"challenge"))
        # It goes on with the next stage, and goes away only then.
        assert believes.exchange([("MaxBurstLength", "65536")], csg=OPERATIONAL, transit=False).status == (0, 0)
    with live.connect() as doubts:
        doubts.chap("host", SECRET.reveal(), "7", mutual=(8, b"challenge"))
    live.wait_for(lambda: bool(live.node.refused.all()), "the refusal")
    live.wait_for(lambda: not live.server.logins_in_progress, "the end of both")
    (refusal,) = live.node.refused.all()
    assert "proved itself as 'target', and may know another secret" in str(refusal)
    assert str(refusal).startswith(INITIATOR)


def test_refusals_in_plain_words(serve: Callable[..., Live], caplog: pytest.LogCaptureFixture) -> None:
    auth = AuthPolicy((ChapUser("host", SECRET),))
    live = serve(make_node(IscsiTarget(TARGET, auth=auth)))
    with live.connect() as initiator:
        assert initiator.chap("host", SECRET.reveal(), "5").status == (2, 1)
        assert initiator.closed()
    with live.connect() as initiator:
        assert initiator.chap("host", b"a wrong secret").status == (2, 1)
    with live.connect() as initiator:
        assert initiator.login("iqn.2024-01.org.example:nothing").status == (2, 3)
    live.wait_for(lambda: len(live.node.refused.all()) == 3, "three refusals")
    told = [str(refusal) for refusal in live.refusals()]
    assert "MD5 would allow it" in told[0]
    assert "wrong CHAP secret for 'host'" in told[1]
    assert "of iqn.2024-01.org.example:nothing: refused, there is no such target" in told[2]
    assert SECRET.reveal().decode() not in caplog.text + "".join(told)


def test_a_rejected_key_is_told(live: Live) -> None:
    with live.connect() as initiator:
        assert initiator.login(extra=[("MaxBurstLength", "3")]).keys["MaxBurstLength"] == "Reject"
        live.wait_for(lambda: bool(live.node.refused.all()), "the refusal")
        assert "asked for key MaxBurstLength=3" in str(live.refusals()[0])


# ---- many, slow, broken ----------------------------------------------------------------------------------------------


def test_300_logins_at_once(serve: Callable[..., Live]) -> None:
    limits = Limits(sessions=300, connections=300, logins_in_progress=16)
    live = serve(make_node(limits=limits))
    clients = [Client(live.address, 60) for _ in range(300)]
    # The backlog holds what is not accepted yet; every first request is on its way before the first answer is read.
    for number, each in enumerate(clients):
        each.send(client.login_request(each.names(), isid=isid(number)))
    for number, each in enumerate(clients):
        assert each.receive().status == (0, 0)
        each.send(client.login_request([], isid=isid(number), csg=OPERATIONAL, nsg=FULL_FEATURE))
    handles = set()
    for each in clients:
        last = each.receive()
        assert last.status == (0, 0)
        handles.add(last.tsih)
    assert len(handles) == 300
    live.wait_for(lambda: live.server.logins_in_progress == 0, "the last hand-over")
    for each in clients:
        each.close()
    live.wait_for(lambda: len(live.node.sessions) == 0, "the end of all sessions")


def test_what_never_says_anything_ends_with_the_time_limit(serve: Callable[..., Live]) -> None:
    live = serve(make_node(limits=Limits(login_timeout=0.3)))
    with live.connect() as silent:
        started = time.monotonic()
        assert silent.closed()
        assert time.monotonic() - started < 10
    assert "did not end within 0.3 seconds" in str(live.refusals()[0])


GONE = (EOFError, BrokenPipeError, ConnectionResetError)


def test_what_trickles_in_ends_with_the_time_limit(serve: Callable[..., Live]) -> None:
    live = serve(make_node(limits=Limits(login_timeout=0.5)))

    def trickle(slow: Client) -> None:
        for byte in client.login_request(slow.names()) * 10:
            slow.send(bytes([byte]))
            time.sleep(0.02)

    with live.connect() as slow, pytest.raises(GONE):
        trickle(slow)
    assert "did not end" in str(live.refusals()[0])


def test_what_goes_on_and_on_ends_with_the_time_limit(serve: Callable[..., Live]) -> None:
    live = serve(make_node(limits=Limits(login_timeout=0.5)))

    def talk(talker: Client) -> None:
        assert talker.exchange(talker.names(), transit=False).status == (0, 0)
        for _ in range(60):
            time.sleep(0.1)
            assert talker.exchange([], transit=False).status == (0, 0)

    with live.connect() as talker, pytest.raises(GONE):
        talk(talker)
    assert "did not end" in str(live.refusals()[0])


@pytest.mark.parametrize("stage", [0, 1])
def test_a_connection_that_drops_at_each_byte(live: Live, stage: int) -> None:
    requests = [
        client.login_request([("InitiatorName", INITIATOR), ("TargetName", TARGET)]),
        client.login_request([], csg=OPERATIONAL, nsg=FULL_FEATURE),
    ]
    for length in range(0, len(requests[stage]), 3):
        with live.connect() as initiator:
            if stage:
                initiator.send(requests[0])
                initiator.receive()
            initiator.send(requests[stage][:length])
    live.wait_for(lambda: live.server.logins_in_progress == 0, "the end of all logins")
    assert live.plane.sessions == []
    with live.connect() as initiator:
        assert initiator.login().status == (0, 0)


def test_a_reset_right_after_the_last_request(live: Live) -> None:
    for _ in range(20):
        initiator = live.connect()
        initiator.exchange(initiator.names())
        initiator.send(client.login_request([], csg=OPERATIONAL, nsg=FULL_FEATURE))
        initiator.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        initiator.close()
    live.wait_for(lambda: len(live.node.sessions) == 0 and not live.plane.open_sessions, "the end of all sessions")


@pytest.mark.parametrize("length", [8193, 0xFFFFFF])
def test_an_oversize_data_segment_is_answered_though_it_keeps_coming(live: Live, length: int) -> None:
    with live.connect() as initiator:
        initiator.send(client.login_bhs(length) + bytes(min(length, 500_000)))
        assert initiator.receive().status == (2, 0)


def test_what_is_not_iscsi_is_not_answered(live: Live) -> None:
    with live.connect() as stranger:
        stranger.send(b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: everything\r\n\r\n")
        assert stranger.closed()


# ---- sessions --------------------------------------------------------------------------------------------------------


def test_a_second_connection_joins_the_session(live: Live) -> None:
    with live.connect() as first, live.connect() as second:
        tsih = first.login(extra=[*MORE, ("MaxBurstLength", "4096")]).tsih
        last = second.login(tsih=tsih, cid=2)
        assert (last.status, last.tsih) == ((0, 0), tsih)
        assert "MaxConnections" not in last.keys
        (session,) = live.plane.open_sessions
        live.wait_for(lambda: len(session.connections) == 2, "the hand-over")
        assert [connection.params.cid for connection in session.connections] == [1, 2]
        assert (last.exp_cmd_sn, last.max_cmd_sn) == session.window
        assert second.text_request([("SendTargets", "")]).keys["TargetName"] == TARGET


def test_more_connections_than_were_agreed(live: Live) -> None:
    with live.connect() as first, live.connect() as second:
        tsih = first.login().tsih
        assert second.login(tsih=tsih, cid=2).status == (2, 6)


def test_a_session_of_somebody_else_cannot_be_joined(live: Live) -> None:
    with live.connect() as first:
        tsih = first.login(extra=MORE).tsih
        for fields in ({"isid": isid(9)}, {"initiator": INITIATOR + "2"}, {"target": None}):
            with live.connect() as second:
                refused = second.login(**fields, tsih=tsih, cid=2)
                assert (refused.status, refused.csg) == ((2, 10), 0), "the first request is refused"


@pytest.mark.parametrize("tsih", [0, None])
def test_a_session_that_was_proven_is_not_for_who_proves_less(serve: Callable[..., Live], tsih: int | None) -> None:
    host, guest = (ChapUser(name, Secret(name.encode() * 4)) for name in ("host", "guest"))
    near = AclEntry(networks=(ipaddress.ip_network("127.0.0.1"),), luns={0: "a"}, auth=AuthPolicy((host, guest)))
    live = serve(make_node(IscsiTarget(TARGET, acl=(near, AclEntry(luns={0: "b"})))))
    with live.connect() as first, live.connect() as same, live.connect() as other:
        first.chap("host", b"host" * 4)
        last = first.exchange(MORE, csg=OPERATIONAL, nsg=FULL_FEATURE)
        fields = {"tsih": last.tsih if tsih is None else tsih, "cid": 2}
        with Client(live.address, source="127.0.0.2") as far:
            assert far.login(**fields).status in ((2, 1), (2, 2)), "by an entry without authentication"
        for client, name, status in ((other, "guest", (2, 1)), (same, "host", (0, 0))):
            client.chap(name, name.encode() * 4, **fields)
            assert client.exchange([], csg=OPERATIONAL, nsg=FULL_FEATURE, **fields).status == status


def test_another_entry_of_the_access_list_is_no_way_into_a_session(serve: Callable[..., Live]) -> None:
    near = AclEntry(networks=(ipaddress.ip_network("127.0.0.1"),), luns={0: "a"})
    live = serve(make_node(IscsiTarget(TARGET, acl=(near, AclEntry(luns={0: "b"})))))
    with live.connect() as first, live.connect() as second, Client(live.address, source="127.0.0.2") as far:
        tsih = first.login(extra=MORE).tsih
        assert far.login(tsih=tsih, cid=2).status == (2, 2)
        assert second.login(tsih=tsih, cid=2).status == (0, 0)


def test_a_session_that_ends_while_a_connection_is_on_its_way(live: Live) -> None:
    with live.connect() as first, live.connect() as other, live.connect() as second:
        tsih = first.login(extra=MORE).tsih
        assert second.exchange(second.names(), tsih=tsih, cid=2).status == (0, 0)
        first.logout()
        assert first.closed()
        live.wait_for(lambda: len(live.node.sessions) == 0, "the end of the session")
        # Somebody else has the handle now.
        live.thread.run(lambda: setattr(live.node.sessions, "_last", tsih - 1))
        assert other.login(isid=isid(9)).tsih == tsih
        assert second.exchange([], tsih=tsih, cid=2, csg=OPERATIONAL, nsg=FULL_FEATURE).status == (2, 10)
        assert len(live.plane.open_sessions) == 1


def test_session_keys_on_an_added_connection(live: Live) -> None:
    with live.connect() as first, live.connect() as second:
        tsih = first.login(extra=MORE).tsih
        assert second.login(tsih=tsih, cid=2, extra=[("InitialR2T", "No")]).status == (2, 0)
        live.wait_for(lambda: len(live.plane.connections) == 1, "the one connection")


def test_another_portal_group_is_another_port(serve: Callable[..., Live]) -> None:
    target = IscsiTarget(TARGET, portal_groups=frozenset((1, 2)))
    live = serve(make_node(target), Portal("127.0.0.1", 0, 1), Portal("127.0.0.1", 0, 2))
    with live.connect(0) as first, live.connect(1) as second, live.connect(1) as third:
        tsih = first.login(extra=MORE).tsih
        assert second.login(tsih=tsih, cid=2).status == (2, 8)
        # The same initiator name and ISID at another portal group are another I_T nexus: no reinstatement.
        assert third.login().status == (0, 0)
        assert len(live.plane.open_sessions) == 2


def test_logins_do_not_fill_the_log(
    serve: Callable[..., Live], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_keeper, "LOG_INTERVAL", 3600.0)
    live = serve(make_node())
    caplog.set_level("INFO")
    for _ in range(40):
        with live.connect() as initiator:
            initiator.login(None)
    lines = [record.getMessage() for record in caplog.records]
    assert sum("logged in" in line for line in lines) == session_keeper.LOG_BURST


def test_session_reinstatement(live: Live) -> None:
    with live.connect() as first, live.connect() as second:
        old = first.login().tsih
        new = second.login(initiator=INITIATOR.upper()).tsih
        assert new != old
        assert first.closed()
        assert [session.params.tsih for session in live.plane.open_sessions] == [new]
        assert second.text_request([("SendTargets", "")]).final


def test_the_old_session_has_ended_before_the_new_one_is_told(live: Live) -> None:
    with live.connect() as first, live.connect() as second:
        first.login()
        live.plane.hold_close = live.thread.run(asyncio.Event)
        second.exchange(second.names())
        second.send(client.login_request([], csg=OPERATIONAL, nsg=FULL_FEATURE))
        second.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            second.receive()
        second.sock.settimeout(20)
        live.thread.run(live.plane.hold_close.set)
        assert second.receive().status == (0, 0)
        assert len(live.plane.open_sessions) == 1


def test_another_isid_is_another_session(live: Live) -> None:
    with live.connect() as first, live.connect() as second:
        assert first.login().tsih != second.login(isid=isid(5)).tsih
        assert len(live.plane.open_sessions) == 2


def test_connection_reinstatement(live: Live) -> None:
    with live.connect() as first, live.connect() as second:
        tsih = first.login().tsih
        assert second.login(tsih=tsih, cid=1).status == (0, 0)
        assert first.closed()
        assert live.plane.connections[0].removed is RemoveReason.REINSTATED
        assert len(live.plane.open_sessions) == 1
        assert second.text_request([("SendTargets", "")]).final


def test_no_handle_is_given_twice(live: Live) -> None:
    with live.connect() as first, live.connect() as second:
        taken = first.login(isid=isid(1)).tsih

        def hand_out_all() -> list[int]:
            return [live.node.sessions.reserve_tsih() for _ in range(65534)]

        handles = live.thread.run(hand_out_all)
        assert sorted([*handles, taken]) == list(range(1, 65536)), "each but the one that is in use, and never zero"
        live.thread.run(lambda: [live.node.sessions.release_tsih(each) for each in handles])
        assert second.login(isid=isid(2)).tsih not in (0, taken)


def test_many_reinstatements_of_one_session_at_once(live: Live) -> None:
    results: list[tuple[int, int]] = []

    def one() -> None:
        with live.connect() as initiator:
            results.append(initiator.login().status)

    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [(0, 0)] * 12
    live.wait_for(lambda: len(live.node.sessions) == 0, "the end of all sessions")
    assert len({session.params.tsih for session in live.plane.sessions}) == len(live.plane.sessions)


def test_the_limit_of_sessions(serve: Callable[..., Live]) -> None:
    live = serve(make_node(limits=Limits(sessions=2)))
    with live.connect() as first, live.connect() as second, live.connect() as third, live.connect() as again:
        assert first.login(isid=isid(1)).status == (0, 0)
        assert second.login(isid=isid(2)).status == (0, 0)
        assert third.login(isid=isid(3)).status == (3, 2)
        assert again.login(isid=isid(2)).status == (0, 0), "it takes its own place"
    assert "2 sessions, the limit" in str(live.refusals()[0])


def test_the_limit_of_connections(serve: Callable[..., Live]) -> None:
    live = serve(make_node(limits=Limits(connections=1)))
    with live.connect() as first, live.connect() as second:
        assert first.login(isid=isid(1)).status == (0, 0)
        assert second.login(isid=isid(2)).status == (3, 2)


def test_a_session_ends_with_its_last_connection(live: Live) -> None:
    first, second = live.connect(), live.connect()
    tsih = first.login(extra=MORE).tsih
    second.login(tsih=tsih, cid=2)
    first.close()
    live.wait_for(lambda: live.plane.connections[0].removed is not None, "the end of the first connection")
    assert len(live.plane.open_sessions) == 1
    second.close()
    live.wait_for(lambda: not live.plane.open_sessions, "the end of the session")


# ---- errors of ours --------------------------------------------------------------------------------------------------


def test_a_session_that_cannot_be_opened(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    live.plane.fail_open = MemoryError("none left")
    with live.connect() as initiator:
        assert initiator.login().status == (3, 0)
    assert "none left" in caplog.text
    live.plane.fail_open = None
    with live.connect() as initiator:
        assert initiator.login().status == (0, 0)


def test_a_connection_that_cannot_be_handed_over(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    live.plane.fail_add = MemoryError("none left")
    with live.connect() as initiator:
        initiator.login()
        assert initiator.closed()
    live.wait_for(lambda: not live.plane.open_sessions, "the end of the session")
    assert "none left" in caplog.text


def test_an_event_that_overtakes_the_hand_over(live: Live) -> None:
    live.plane.early_event = ConnectionEvent(EventKind.SOCKET_ERROR, "reset")
    with live.connect() as initiator:
        initiator.login()
        assert initiator.closed()
    live.wait_for(lambda: len(live.node.sessions) == 0 and not live.plane.open_sessions, "the end of the session")


def test_closing_with_everything_in_flight(serve: Callable[..., Live]) -> None:
    live = serve()
    with live.connect() as logged_in, live.connect() as half, live.connect() as silent:
        logged_in.login()
        half.exchange(half.names())
        live.thread.call(live.server.close())
        for each in (logged_in, half, silent):
            assert each.closed()


def test_a_port_that_is_taken(serve: Callable[..., Live]) -> None:
    live = serve()
    portals = (Portal("127.0.0.1", 0), Portal(*live.address))
    other = live.thread.run(lambda: IscsiServer(make_node(), FakeDataPlane(), FakeScsi(), portals))
    with pytest.raises(ConfigError, match="cannot listen"):
        live.thread.call(other.start())


def test_no_portal_at_all(live: Live) -> None:
    with pytest.raises(ConfigError, match="no portal"):
        live.thread.run(lambda: IscsiServer(make_node(), FakeDataPlane(), FakeScsi(), ()))


def test_ipv6(serve: Callable[..., Live]) -> None:
    live = serve(make_node(), Portal("::1", 0))
    with live.connect() as initiator:
        initiator.login(None)
        (_, address) = initiator.send_targets("All")
        assert address == ("TargetAddress", f"[::1]:{live.node.portals[0].port},1")
        assert live.thread.run(lambda: next(iter(live.node.sessions)).address) == "::1"
