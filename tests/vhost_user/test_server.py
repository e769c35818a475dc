# SPDX-License-Identifier: Apache-2.0
"""Where the server listens, what it refuses to replace, and who is served when."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vhost_scsi.errors import ConfigError, SocketInUse
from vhost_scsi.vhost_user.frontend import Disconnected, Frontend
from vhost_scsi.vhost_user.server import Server


def start(thread: Any, server: Server) -> Server:
    thread.call(server.start())
    return server


def test_the_socket_is_for_its_owner_only(backend: Any) -> None:
    assert stat.S_IMODE(os.stat(backend.path).st_mode) == 0o600


def test_a_live_server_is_not_replaced(backend: Any, thread: Any, device: Any) -> None:
    with pytest.raises(SocketInUse, match="another server is listening") as caught:
        start(thread, Server.at_path(device, backend.path))
    assert caught.value.exit_code == 4
    with backend.connect() as frontend:
        assert frontend.get_queue_num() == 6


def test_a_live_server_with_a_full_backlog_is_not_replaced(thread: Any, device: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(path)
        busy.listen(0)
        waiting.connect(path)
        with pytest.raises(SocketInUse):
            start(thread, Server.at_path(device, path))


def test_a_live_socket_of_another_type_is_not_replaced(thread: Any, device: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        with pytest.raises(SocketInUse):
            start(thread, Server.at_path(device, path))


def test_a_stale_socket_is_replaced(thread: Any, device: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    server = start(thread, Server.at_path(device, path))
    with Frontend(path) as frontend:
        assert frontend.get_queue_num() == 6
    thread.call(server.close())
    assert not os.path.exists(path)


@pytest.mark.parametrize("make", [lambda path: path.write_text("precious"), lambda path: path.mkdir()])
def test_what_is_not_a_socket_is_left_alone(
    thread: Any, device: Any, tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    path = tmp_path / "s"
    make(path)
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        start(thread, Server.at_path(device, str(path)))
    assert path.exists()


def test_a_missing_directory_is_one_clear_error(thread: Any, device: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory") as caught:
        start(thread, Server.at_path(device, str(tmp_path / "nowhere" / "s")))
    assert caught.value.exit_code == 3


def test_a_path_that_is_too_long_is_one_clear_error(thread: Any, device: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long"):
        start(thread, Server.at_path(device, str(tmp_path / ("x" * 150))))


def test_a_locked_directory_does_not_block_the_loop(
    thread: Any, device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr("vhost_scsi.vhost_user.server._LOCK_WAIT", 0.05)
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="locked by another process"):
        start(thread, Server.at_path(device, str(tmp_path / "s")))
    os.close(lock)


def test_of_two_servers_that_start_at_once_one_wins(thread: Any, device: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    servers = [Server.at_path(device, path) for _ in range(4)]

    async def start_all() -> list[BaseException | None]:
        return await asyncio.gather(*(each.start() for each in servers), return_exceptions=True)

    results = thread.call(start_all())
    assert sorted(str(type(each)) for each in results).count("<class 'NoneType'>") == 1
    assert sum(isinstance(each, SocketInUse) for each in results) == 3
    for server in servers:
        thread.call(server.close())


def test_close_unlinks_our_socket(backend: Any) -> None:
    backend.thread.call(backend.server.close())
    assert not os.path.exists(backend.path)


def test_unlink_takes_the_path_and_leaves_who_is_connected(backend: Any) -> None:
    with backend.connect() as frontend:
        backend.server.unlink()
        assert not os.path.exists(backend.path)
        Path(backend.path).touch()
        backend.server.unlink()
        assert os.path.exists(backend.path), "that one is somebody else's"
        assert frontend.get_queue_num() == 6


def test_close_leaves_a_socket_that_is_no_longer_ours(backend: Any) -> None:
    os.unlink(backend.path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(backend.path)
        backend.thread.call(backend.server.close())
        assert os.path.exists(backend.path)


def test_close_ends_a_live_connection_and_tells_the_device(backend: Any) -> None:
    with backend.connect() as frontend:
        frontend.negotiate()
        backend.thread.call(backend.server.close())
        with pytest.raises(Disconnected):
            frontend.receive()
    assert backend.device.names()[-1] == "disconnected"


def test_close_does_not_wait_for_a_device_that_never_ends(backend: Any, memory: Any) -> None:
    backend.device.wait["set_mem_table"] = backend.open_event()
    with backend.connect() as frontend:
        frontend.send_bytes(b"")
        frontend.set_mem_table([memory.region])
        backend.wait_for(lambda: "set_mem_table" in backend.device.names(), "the table")
        backend.thread.call(backend.server.close())
    assert backend.device.regions == []  # the fixture sees that its descriptor is closed


def test_a_second_front_end_waits_for_the_first_to_go(backend: Any) -> None:
    with backend.connect() as first, backend.connect() as second:
        first.negotiate()
        second.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            second.get_queue_num()
        first.close()
        second.sock.settimeout(20)
        assert second.receive().request == 17


def test_a_thousand_connections_leave_nothing_behind(backend: Any, fd_count: Callable[[], int]) -> None:
    with backend.connect() as frontend:
        frontend.negotiate()
    backend.wait_for_end(1)
    before = fd_count()
    for number in range(1000):
        with backend.connect() as frontend:
            frontend.send_bytes(b"\x01\0\0\0"[: number % 5])
    backend.wait_for_end(1001)
    assert fd_count() == before


def test_no_descriptor_for_a_connection_is_waited_out(
    backend: Any, control_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhost_scsi.vhost_user.server._ACCEPT_PAUSE", 0.01)
    with Frontend_without_connection() as waiting:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), limits[1]))
        holes = []
        try:
            while True:
                try:
                    holes.append(os.dup(0))
                except OSError:
                    break
            waiting.connect(backend.path)
            backend.wait_for(lambda: "cannot accept" in control_log.text, "the log line")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in holes:
                os.close(fd)
        with Frontend(waiting, timeout=20) as frontend:
            assert frontend.get_queue_num() == 6


def Frontend_without_connection() -> socket.socket:  # noqa: N802
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def test_a_listening_descriptor_is_served_and_its_path_left(thread: Any, device: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = start(thread, Server.from_fd(device, listener.detach()))
    for _ in range(2):
        with Frontend(path) as frontend:
            assert frontend.get_queue_num() == 6
    thread.call(server.close())
    assert os.path.exists(path)


def test_a_connected_descriptor_is_served_until_its_peer_goes(thread: Any, device: Any) -> None:
    ours, theirs = socket.socketpair()
    theirs.set_inheritable(True)
    server = start(thread, Server.from_fd(device, theirs.detach()))
    with Frontend(ours) as frontend:
        assert frontend.get_queue_num() == 6
    thread.call(server.wait_closed())
    thread.call(server.close())
    assert device.connections_ended == 1


@pytest.mark.parametrize("kind", ["closed", "file", "datagram", "inet"])
def test_a_descriptor_that_cannot_be_served_is_one_clear_error(device: Any, tmp_path: Path, kind: str) -> None:
    sockets = {"datagram": (socket.AF_UNIX, socket.SOCK_DGRAM), "inet": (socket.AF_INET, socket.SOCK_STREAM)}
    fd = socket.socket(*sockets[kind]).detach() if kind in sockets else os.open(tmp_path, os.O_RDONLY)
    if kind == "closed":
        os.close(fd)
    with pytest.raises(ConfigError, match=f"descriptor {fd}"):
        Server.from_fd(device, fd)
    if kind != "closed":
        os.close(fd)


def test_a_flood_leaves_the_loop_to_others(backend: Any) -> None:
    stop = threading.Event()

    def flood() -> None:
        with backend.connect() as frontend:
            frontend.sock.settimeout(0.05)
            while not stop.is_set():
                try:
                    frontend.send(3)
                except TimeoutError:
                    continue

    flooding = threading.Thread(target=flood)
    flooding.start()

    async def longest_stall() -> float:
        loop, longest = asyncio.get_running_loop(), 0.0
        for _ in range(50):
            before = loop.time()
            await asyncio.sleep(0.002)
            longest = max(longest, loop.time() - before)
        return longest

    stall = backend.thread.call(longest_stall())
    stop.set()
    flooding.join()
    assert stall < 1.0
