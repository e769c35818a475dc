# SPDX-License-Identifier: Apache-2.0
"""Floods of connections that do not log in, and logins beside them: who waits, who goes, who gets in."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable

import pytest

from tests.iscsi import client
from tests.iscsi.client import Client
from tests.iscsi.rig import PATIENCE, Live, make_node
from vhost_scsi.iscsi import login_places, server
from vhost_scsi.iscsi.targets import Limits

HERE, THERE, ELSEWHERE = "127.0.0.1", "127.0.0.2", "127.0.0.3"
NEVER = 1e9  # seconds
LOGIN_TIMEOUT = 120.0


@pytest.fixture
def narrow(serve: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> Live:
    """Four places that nobody loses by age, and room for 16 without one."""
    monkeypatch.setattr(login_places, "GRACE", NEVER)
    monkeypatch.setattr(login_places, "ROOM", 16)
    return serve(make_node(limits=Limits(logins_in_progress=4, login_timeout=LOGIN_TIMEOUT)))


def connect(live: Live, source: str = HERE) -> Client:
    return Client(live.address, PATIENCE, source)


def is_open(each: Client) -> bool:
    each.sock.setblocking(False)
    try:
        return each.sock.recv(1) != b""
    except BlockingIOError:
        return True
    finally:
        each.sock.settimeout(PATIENCE)


def half(live: Live, source: str = HERE) -> Client:
    """A login that has its place and stays there."""
    slow = connect(live, source)
    assert slow.exchange(slow.names(), transit=False).status == (0, 0)
    return slow


def begun(live: Live, source: str = HERE) -> Client:
    """A login that has sent its first request."""
    slow = connect(live, source)
    slow.send(client.login_request(slow.names(), transit=False))
    return slow


def close(*clients: Client) -> None:
    for each in clients:
        each.close()


def waiting(live: Live) -> int:
    return sum(attempt.waits is not None and attempt.since is None for attempt in live.server._places.all)


@pytest.mark.parametrize("source", [HERE, THERE, ELSEWHERE], ids=["of-the-flood", "of-some-silent", "of-nobody"])
def test_a_flood_of_silence_keeps_nobody_out(narrow: Live, source: str, caplog: pytest.LogCaptureFixture) -> None:
    few = [connect(narrow, THERE) for _ in range(3)]
    silent = [connect(narrow) for _ in range(40)]
    assert all(each.closed() for each in silent[:27]), "the oldest go at once, so that new ones get in"
    for _ in range(10):
        silent.append(connect(narrow))
        with connect(narrow, source) as initiator:
            assert initiator.login(None).status == (0, 0)
        silent.append(connect(narrow))
    narrow.wait_for(lambda: narrow.server.logins_in_progress == 16, "the logins to have ended")
    assert all(is_open(each) for each in few), "who has fewest keeps them"
    assert all(is_open(each) for each in silent[-10:])
    assert len([record for record in caplog.records if "not begun to log in" in record.message]) < 20
    assert {refusal.kind for refusal in narrow.refusals()} == {"login: evicted"}
    close(*few, *silent)


def test_part_of_a_request_is_silence_too(narrow: Live) -> None:
    silent = [connect(narrow) for _ in range(16)]
    for each in silent:
        each.send(client.login_request(each.names())[:50])
    with connect(narrow) as initiator:
        assert initiator.login().status == (0, 0)
    assert silent[0].closed()
    assert all(is_open(each) for each in silent[1:])
    close(*silent)


def test_one_address_leaves_places_to_others(narrow: Live) -> None:
    slow = [half(narrow) for _ in range(3)]
    more = [begun(narrow) for _ in range(5)]
    narrow.wait_for(lambda: waiting(narrow) == 5, "five that wait")
    for _ in range(3):
        with connect(narrow, THERE) as initiator:
            assert initiator.login().status == (0, 0)
    assert waiting(narrow) == 5
    assert all(is_open(each) for each in slow)
    slow[1].close()
    assert more[0].receive().status == (0, 0), "who waits longest has what becomes free"
    assert all(is_open(each) for each in more[1:])
    close(*slow, *more)


def test_who_waits_is_the_last_to_go(narrow: Live) -> None:
    slow = [half(narrow) for _ in range(3)]
    queue = [begun(narrow) for _ in range(8)]
    narrow.wait_for(lambda: waiting(narrow) == 8, "eight that wait")
    silent = [connect(narrow) for _ in range(8)]
    queue += [begun(narrow) for _ in range(8)]
    assert all(each.closed() for each in silent)
    narrow.wait_for(lambda: waiting(narrow) == 16, "a room full of them")
    queue.append(begun(narrow))
    assert queue[0].closed()
    narrow.wait_for(lambda: waiting(narrow) == 16, "the new one to wait")
    assert all(is_open(each) for each in (*slow, *queue[1:]))
    close(*slow, *silent, *queue)


def test_the_oldest_login_gives_its_place_to_one_that_waits(
    serve: Callable[..., Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_places, "GRACE", 0.2)
    live = serve(make_node(limits=Limits(logins_in_progress=4, login_timeout=LOGIN_TIMEOUT)))
    slow = [half(live) for _ in range(3)]
    with connect(live) as initiator:
        assert initiator.login().status == (0, 0)
    assert slow[0].closed()
    assert all(is_open(each) for each in slow[1:]), "one place was wanted, and one was taken"
    assert "too many logins were in progress" in str(live.refusals()[0])
    close(*slow)


def test_closing_while_some_wait(narrow: Live) -> None:
    slow = [half(narrow) for _ in range(3)]
    queue = [begun(narrow) for _ in range(4)]
    narrow.wait_for(lambda: waiting(narrow) == 4, "four that wait")
    narrow.thread.call(narrow.server.close())
    assert narrow.server.logins_in_progress == 0
    assert all(each.closed() for each in (*slow, *queue))
    close(*slow, *queue)


@pytest.mark.parametrize("number", [errno.EPROTO, errno.EPERM, errno.EMFILE], ids=errno.errorcode.get)
def test_a_portal_goes_on_after_any_error_of_accept(
    live: Live, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "_ACCEPT_PAUSE", 0.01)
    failures = 0
    accept = live.thread.loop.sock_accept

    async def failing(sock: socket.socket) -> tuple[socket.socket, tuple[str, int]]:
        nonlocal failures
        if failures < 5:
            failures += 1
            raise OSError(number, "as the test wants it")
        return await accept(sock)

    monkeypatch.setattr(live.thread.loop, "sock_accept", failing)
    silent = live.connect()  # by the call of accept that is under way
    live.wait_for(lambda: failures == 5, "five failures")
    if number == errno.EMFILE:
        assert silent.closed(), "its descriptor is wanted"
    with live.connect() as initiator:
        assert initiator.login().status == (0, 0)
    said = [record for record in caplog.records if "cannot accept" in record.message]
    assert [record.levelno for record in said] == [logging.ERROR]
    assert f"{HERE}:{live.address[1]}" in said[0].message
    silent.close()
