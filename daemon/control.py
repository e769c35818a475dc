# SPDX-License-Identifier: Apache-2.0
"""The management socket: where it is, who may connect, and how much they may take.

It is the user's own (mode 0600, in a directory of mode 0700, and the peer's user is asked of the kernel). What can be
asked stands in `methods.py`, how it is said in `rpc.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from vhost_scsi.daemon.client import directory
from vhost_scsi.daemon.rpc import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    MAX_REQUEST,
    TOO_MANY,
    Dispatcher,
    Method,
    encode,
    error_answer,
)
from vhost_scsi.errors import ConfigError, SocketInUse

MAX_CLIENTS: Final = 32
HELLO_TIMEOUT: Final = 10.0  # seconds for the first request, and for taking an answer
BACKLOG: Final = 16
MAX_PATH: Final = 107  # bytes of sun_path, without the final zero
_LOG: Final = logging.getLogger("vhost_scsi.control")


def check_directory(path: Path) -> None:
    """The directory must be ours alone; in /tmp anybody could have made it first."""
    try:
        status = os.lstat(path)
    except OSError as error:
        raise ConfigError(f"management socket: {path}: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"management socket: {path} is not a directory")
    if status.st_uid != os.geteuid():
        raise ConfigError(f"management socket: {path} belongs to somebody else (uid {status.st_uid})")
    if status.st_mode & 0o077:
        raise ConfigError(f"management socket: {path} is open to others (mode {stat.S_IMODE(status.st_mode):04o})")


class ControlServer:
    """Serves the method table on one socket."""

    def __init__(self, path: Path, methods: Mapping[str, Method], hello: Callable[[], dict[str, Any]]) -> None:
        self.path = path
        self._methods = methods
        self._hello = hello
        self._sock: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._lock: int | None = None
        self._inode: tuple[int, int] | None = None
        self._clients: set[asyncio.Task[None]] = set()

    def claim(self) -> None:
        """Takes the path, and answers nobody yet; SocketInUse when a daemon of that name is alive."""
        if len(os.fsencode(self.path)) > MAX_PATH:
            raise ConfigError(
                f"management socket: {self.path}: longer than {MAX_PATH} bytes; choose one with --control"
            )
        if self.path.parent == directory():
            try:
                self.path.parent.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"management socket: {self.path.parent}: {error.strerror}") from error
            check_directory(self.path.parent)
        self._sock = self._bind()

    async def serve(self) -> None:
        """Answers, from now on; who has connected since `claim` waits no longer."""
        self._server = await asyncio.start_unix_server(self._accept, sock=self._sock, limit=MAX_REQUEST)

    async def hang_up(self) -> None:
        """Answers nobody any more; when it returns no method is running. The path stays taken."""
        if self._server is not None:
            self._server.close()
        for client in list(self._clients):
            client.cancel()
        if self._clients:
            await asyncio.wait(self._clients)

    def _bind(self) -> socket.socket:
        # The lock says who lives at this path. Unlike a probing connect it cannot be mistaken when a backlog is full,
        # and the kernel lets go of it when the process dies.
        lock_path = f"{self.path}.lock"
        try:
            self._lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._unlock()
            raise SocketInUse(str(self.path)) from None
        except OSError as error:
            self._unlock()
            raise ConfigError(f"management socket: {lock_path}: {error.strerror}") from error
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                    raise ConfigError(f"management socket: {self.path} exists and is not a socket")
                os.unlink(self.path)
            os.fchmod(sock.fileno(), 0o600)  # before bind: the path is never open to others, not for a moment
            sock.bind(str(self.path))
            self._inode = _inode(self.path)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            self._unlock()
            raise ConfigError(f"management socket: {self.path}: {error.strerror or error}") from error
        except ConfigError:
            sock.close()
            self._unlock()
            raise
        return sock

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def close(self) -> None:
        """Hangs up on everybody and removes the path if it is still ours."""
        await self.hang_up()
        if self._sock is not None:
            self._sock.close()
        self.unlink()
        self._unlock()

    def unlink(self) -> None:
        """Removes the path if it is still ours."""
        if self._inode is not None and _inode(self.path) == self._inode:
            os.unlink(self.path)
            with contextlib.suppress(OSError):
                os.unlink(f"{self.path}.lock")
        self._inode = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if not _is_ours(writer.get_extra_info("socket")):
            writer.transport.abort()
            return
        if len(self._clients) >= MAX_CLIENTS:
            # Fits into the empty socket at once; nothing of it waits here.
            writer.write(encode(error_answer(None, TOO_MANY, f"too many clients: {MAX_CLIENTS} are connected")))
            writer.transport.abort()
            return
        self._clients.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            # Gone, too slow, or we are closing: there is nobody to answer.
            pass
        except Exception:
            _LOG.exception("management socket: a request failed")
        finally:
            self._clients.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dispatcher = Dispatcher(self._methods, self._hello)
        first = True
        while True:
            try:
                # A client that has greeted may be silent as long as it likes; one that has not takes up a place.
                # Not wait_for(): before Python 3.12 it loses a cancellation that comes together with the line.
                async with asyncio.timeout(HELLO_TIMEOUT if first else None):
                    line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                await _send(writer, encode(error_answer(None, INVALID_REQUEST, f"longer than {MAX_REQUEST} bytes")))
                return
            first = False
            try:
                answer = await dispatcher.answer(line)
            except Exception:
                _LOG.exception("management socket: a request failed")
                answer = encode(error_answer(None, INTERNAL_ERROR, "the request failed; the daemon's log says why"))
            if answer is not None:
                await _send(writer, answer)


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    # drain() waits while too much is unread; a client that never reads is hung up on.
    async with asyncio.timeout(HELLO_TIMEOUT):
        await writer.drain()


def _is_ours(sock: Any) -> bool:
    """Whether the peer runs as our user, or as root."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return uid in (os.geteuid(), 0)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return status.st_dev, status.st_ino
