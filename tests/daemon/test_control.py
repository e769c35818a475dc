# SPDX-License-Identifier: Apache-2.0
"""The management socket over a real path: who may connect, what hostile clients can take, what is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from vhost_scsi.daemon import client, control, rpc
from vhost_scsi.daemon.client import ControlClient
from vhost_scsi.daemon.control import ControlServer
from vhost_scsi.daemon.errors import NoDaemon, RequestFailed
from vhost_scsi.daemon.rpc import Method, Param
from vhost_scsi.errors import ConfigError, SocketInUse

HELLO = b'{"jsonrpc":"2.0","id":0,"method":"hello","params":{"protocol":1}}\n'


def echo(text: str) -> dict[str, Any]:
    return {"text": text}


def broken() -> dict[str, Any]:
    raise ZeroDivisionError("a bug")


async def slow() -> dict[str, Any]:
    await asyncio.sleep(60)
    return {}


def big() -> dict[str, Any]:
    return {"text": "x" * (4 << 20)}


TABLE = {
    row.name: row
    for row in (
        Method("echo", "", echo, (Param("text", "string", "", required=True),)),
        Method("broken", "", broken),
        Method("slow", "", slow),
        Method("big", "", big),
    )
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "c.sock"


@contextmanager
def serving(path: Path) -> Iterator[ControlServer]:
    """A server on a loop in a thread; closed in the end."""
    loop = asyncio.new_event_loop()
    server = ControlServer(path, TABLE, lambda: {"name": "test", "pid": os.getpid()})
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(call: Callable[[], Awaitable[None]]) -> None:
        asyncio.run_coroutine_threadsafe(_await(call), loop).result(20)

    try:
        server.claim()
        run(server.serve)
        yield server
    finally:
        run(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _await(call: Callable[[], Awaitable[None]]) -> None:
    await call()


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(15)
    sock.connect(str(path))
    return sock


def works(path: Path) -> None:
    """The check after each attack: somebody else is served."""
    for patience in range(100):
        try:
            with ControlClient(path) as fresh:
                assert fresh.call("echo", text="still here")["text"] == "still here"
            return
        except (NoDaemon, RequestFailed):
            # The places of those who have just gone come free in the next turns of the loop.
            assert patience < 99
            time.sleep(0.05)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    try:
        while part := sock.recv(65536):
            data += part
    except ConnectionError:
        pass
    return data


def test_a_client_is_greeted_and_answered(path: Path) -> None:
    with serving(path), ControlClient(path) as asker:
        assert asker.daemon["name"] == "test"
        assert asker.call("echo", text="ä\n")["text"] == "ä\n"


def test_the_path_is_ours_alone_and_gone_in_the_end(path: Path) -> None:
    with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == []


def test_a_second_daemon_of_that_name_is_refused_and_the_first_goes_on(path: Path) -> None:
    with serving(path):
        with pytest.raises(SocketInUse):
            ControlServer(path, TABLE, dict).claim()
        works(path)


def test_a_stale_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(path):
        works(path)


def test_a_file_in_the_way_is_not_removed(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        ControlServer(path, TABLE, dict).claim()
    assert path.read_text() == "precious"


def test_a_path_that_is_somebody_elses_by_now_is_left_alone(path: Path) -> None:
    with serving(path):
        path.unlink()
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


def test_a_path_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"longer than 107 bytes"):
        ControlServer(tmp_path / ("x" * 120), TABLE, dict).claim()


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(ConfigError, match="belongs to somebody else"):
        control.check_directory(tmp_path)


def test_a_directory_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(ConfigError, match=r"is open to others \(mode 0755\)"):
        control.check_directory(tmp_path)


def test_a_link_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is not a directory"):
        control.check_directory(tmp_path / "link")


def test_the_default_directory_is_made_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv(client.ENVIRONMENT, raising=False)
    with serving(client.socket_path("vm")):
        assert stat.S_IMODE((tmp_path / "vhost-scsi").stat().st_mode) == 0o700


def test_where_the_socket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(client.ENVIRONMENT, raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert client.socket_path("vm") == Path(f"/tmp/vhost-scsi-{os.geteuid()}/vm.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert client.socket_path("vm") == Path("/run/user/7/vhost-scsi/vm.sock")
    monkeypatch.setenv(client.ENVIRONMENT, "/x")
    assert client.socket_path("vm") == Path("/x")
    assert client.socket_path("vm", "/y") == Path("/y")


# ---- hostile clients ------------------------------------------------------------------------------------------------


def test_an_endless_line_is_refused_and_hung_up_on(path: Path) -> None:
    with serving(path):
        with connect(path) as sock:
            with suppress(ConnectionError):
                sock.sendall(b"x" * (rpc.MAX_REQUEST * 4))
            answer = read_all(sock)
            assert b"longer than" in answer or answer == b""
        works(path)


def test_a_line_in_single_bytes_is_understood(path: Path) -> None:
    with serving(path), connect(path) as sock:
        for byte in HELLO:
            sock.sendall(bytes([byte]))
        assert json.loads(sock.makefile().readline())["result"]["protocol"] == 1


def test_half_a_line_and_gone(path: Path) -> None:
    with serving(path):
        for _ in range(50):
            with connect(path) as sock:
                sock.sendall(HELLO[:20])
        works(path)


def test_gone_before_the_answer(path: Path) -> None:
    with serving(path):
        for _ in range(50):
            with connect(path) as sock:
                sock.sendall(HELLO + b'{"jsonrpc":"2.0","id":1,"method":"big"}\n' * 3)
        works(path)


def test_who_says_nothing_is_hung_up_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "HELLO_TIMEOUT", 0.2)
    with serving(path), connect(path) as sock:
        assert read_all(sock) == b""


def test_who_never_reads_is_hung_up_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "HELLO_TIMEOUT", 0.2)
    with serving(path) as server:
        with connect(path) as sock:
            sock.sendall(HELLO + b'{"jsonrpc":"2.0","id":1,"method":"big"}\n')
            for _ in range(100):
                if not server._clients:
                    break
                time.sleep(0.05)
            assert not server._clients
        works(path)


def test_places_are_limited_and_come_free(path: Path) -> None:
    with serving(path):
        crowd = [connect(path) for _ in range(control.MAX_CLIENTS)]
        for sock in crowd:
            sock.sendall(HELLO)
            sock.recv(4096)
        with connect(path) as one_more:
            assert json.loads(read_all(one_more))["error"]["code"] == rpc.TOO_MANY
        with pytest.raises(RequestFailed, match="too many clients: 32 are connected"):
            ControlClient(path)
        for sock in crowd:
            sock.close()
        works(path)


def test_somebody_elses_process_is_not_served(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(path):
        monkeypatch.setattr(control, "_is_ours", lambda sock: False)
        with connect(path) as sock:
            assert read_all(sock) == b""


def test_a_mistake_of_ours_is_an_error_and_not_the_end(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(path):
        with connect(path) as sock:
            sock.sendall(HELLO + b'{"jsonrpc":"2.0","id":1,"method":"broken"}\n')
            lines = sock.makefile()
            lines.readline()
            assert json.loads(lines.readline())["error"]["code"] == rpc.INTERNAL_ERROR
        works(path)


def test_requests_that_never_end_do_not_keep_it_from_closing(path: Path) -> None:
    with serving(path):
        sock = connect(path)
        sock.sendall(HELLO + b'{"jsonrpc":"2.0","id":1,"method":"slow"}\n')
        sock.recv(4096)
    sock.close()
    assert not path.exists()


def test_after_all_that_no_descriptor_is_left(path: Path) -> None:
    with serving(path):
        works(path)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(200):
            works(path)
        for _ in range(100):
            if len(os.listdir("/proc/self/fd")) <= before:
                break
            time.sleep(0.02)
        assert len(os.listdir("/proc/self/fd")) <= before


# ---- the client's side ----------------------------------------------------------------------------------------------


def test_no_daemon_is_one_line(path: Path) -> None:
    with pytest.raises(NoDaemon, match=r"no daemon answers on .*c\.sock: No such file or directory"):
        ControlClient(path)


def test_a_refusal_carries_its_code(path: Path) -> None:
    with serving(path), ControlClient(path) as asker, pytest.raises(RequestFailed) as caught:
        asker.call("nothing")
    assert caught.value.code == rpc.METHOD_NOT_FOUND


@pytest.mark.parametrize(
    "answer",
    [b"", b"hello\n", b"[]\n", b"null\n", b'{"result": 5}\n', b'{"jsonrpc": "2.0"}\n', b"\xff\n", b'{"error": {}}\n'],
)
def test_something_else_behind_the_path_is_said(path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def respond() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = threading.Thread(target=respond)
        thread.start()
        with pytest.raises((NoDaemon, RequestFailed)):
            ControlClient(path, timeout=5)
        thread.join()
