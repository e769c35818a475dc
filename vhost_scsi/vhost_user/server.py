# SPDX-License-Identifier: Apache-2.0
"""Where connections come from: a socket path, a listening descriptor (socket activation), or one connected descriptor.

One device serves one front end at a time. A second front end is not turned away: it waits in the listen backlog and is
served when the first has gone, so that a QEMU that is restarted meets a device that is still ending the old one's
requests, and simply waits for it. What a connection does is `session.py`'s business.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import socket
import stat

from vhost_scsi.errors import ConfigError, SocketInUse
from vhost_scsi.log_limit import LimitedLog
from vhost_scsi.vhost_user.session import Device, Session

BACKLOG = 16
_LOCK_WAIT = 2.0  # seconds; starting servers hold the directory's lock for less than a millisecond
_ACCEPT_PAUSE = 0.5  # seconds to wait when there is no descriptor left for a new connection


class Server:
    """Serves one device. `start`, then `wait_closed` or `close`; made by `at_path` or `from_fd`."""

    def __init__(self, device: Device, sock: socket.socket | None, path: str | None) -> None:
        self._device = device
        self._sock = sock
        self._path = path
        self._inode: tuple[int, int] | None = None
        self._task: asyncio.Task[None] | None = None
        self._log = LimitedLog(logging.getLogger("vhost_scsi.control"))

    @classmethod
    def at_path(cls, device: Device, path: str) -> Server:
        """Will create and listen on the socket `path`, replacing a stale one."""
        return cls(device, None, path)

    @classmethod
    def from_fd(cls, device: Device, fd: int) -> Server:
        """Will serve `fd`, which it owns from now on: an AF_UNIX stream socket that listens, or one that is connected.

        A listening socket is the caller's to unlink. A connected one is served until its peer goes, and that is all.
        """
        try:
            is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError as error:
            raise ConfigError(f"descriptor {fd}: {error.strerror}") from error
        if not is_socket:
            raise ConfigError(f"descriptor {fd} is not a socket")
        sock = socket.socket(fileno=fd)
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            sock.detach()
            raise ConfigError(f"descriptor {fd} is not an AF_UNIX stream socket")
        sock.set_inheritable(False)
        return cls(device, sock, None)

    async def start(self) -> None:
        """Listens and serves in the background; raises SocketInUse or ConfigError with one line that says why not."""
        if self._path is not None:
            self._sock = await self._listen(self._path)
        assert self._sock is not None
        self._sock.setblocking(False)
        listens = bool(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        self._task = asyncio.create_task(self._accept_all(self._sock) if listens else self._serve(self._sock))

    async def wait_closed(self) -> None:
        """Returns when serving has ended: by `close`, or because the one connected descriptor's peer has gone.

        Raises the OSError with which listening itself failed.
        """
        if self._task is not None:
            await asyncio.wait((self._task,))
            if not self._task.cancelled():
                self._task.result()

    async def close(self) -> None:
        """Ends the connection (the device is told), stops listening, and removes the path if it is still ours."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._sock is not None:
            self._sock.close()
        self.unlink()

    def unlink(self) -> None:
        """Removes the path if it is still ours; who is connected stays."""
        if self._path is not None and self._inode is not None and _inode_of(self._path) == self._inode:
            os.unlink(self._path)
        self._inode = None

    async def _accept_all(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED):
                    raise
                self._log.say(logging.ERROR, "accept", f"cannot accept a connection: {error.strerror}")
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            await self._serve(connection)

    async def _serve(self, connection: socket.socket) -> None:
        self._log.say(logging.INFO, "connected", "vhost-user: front end connected")
        try:
            await Session(self._device, self._log).run(connection)
        except Exception:
            # A bug of ours or the device's: it must not take the next connection with it.
            self._log.say(logging.ERROR, "session failed", "vhost-user: connection ended by an error", trace=True)
        self._log.say(logging.INFO, "disconnected", "vhost-user: front end disconnected")

    async def _listen(self, path: str) -> socket.socket:
        directory = os.path.dirname(path) or "."
        try:
            lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"{path}: directory {directory}: {error.strerror}") from error
        try:
            # Two servers that start at once must not both find the path stale and unlink each other's socket.
            await _lock_directory(lock, path)
            _remove_stale(path)
            return self._bind(path)
        finally:
            os.close(lock)

    def _bind(self, path: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # On Linux bind() gives the path the mode of the unbound socket, so it is never open to others for a moment.
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(path)
            self._inode = _inode_of(path)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise ConfigError(f"{path}: cannot listen: {error.strerror or error}") from error
        return sock


async def _lock_directory(lock: int, path: str) -> None:
    deadline = asyncio.get_running_loop().time() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if asyncio.get_running_loop().time() > deadline:
                raise ConfigError(f"{path}: its directory is locked by another process") from None
            await asyncio.sleep(0.01)


def _remove_stale(path: str) -> None:
    """Unlinks a socket that nobody listens on; raises where something is alive or is not a socket at all."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(f"{path}: exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except BlockingIOError:  # alive, and its backlog is full
            raise SocketInUse(path) from None
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:  # somebody lives there, with a socket of another type
                raise SocketInUse(path) from None
            raise ConfigError(f"{path}: {error.strerror or error}") from error
        else:
            raise SocketInUse(path)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"{path}: cannot replace a stale socket: {error.strerror}") from error


def _inode_of(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
