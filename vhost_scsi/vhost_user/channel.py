# SPDX-License-Identifier: Apache-2.0
"""Framing: whole vhost-user messages with their descriptors, out of and into an AF_UNIX stream socket.

`FrameReader` never reads past the end of a message, so a descriptor belongs to the message with whose bytes it came. It
keeps at most one message of at most MAX_PAYLOAD bytes and MAX_FDS descriptors, whatever a peer claims. `Channel` waits
for the socket in an asyncio loop. Neither knows what a message means.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from vhost_scsi.vhost_user.messages import (
    HEADER,
    HEADER_SIZE,
    MAX_FDS,
    MAX_PAYLOAD,
    VERSION,
    VERSION_MASK,
    HeaderFlag,
    pack_header,
)
from vhost_scsi.vhost_user.rules import ProtocolError, Rule

_FD_SIZE = array.array("i").itemsize
# Room for exactly MAX_FDS: the kernel installs no more than fit, drops the rest and says MSG_CTRUNC.
_ANCILLARY_SPACE = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE)


class ReceivedFds:
    """Descriptors that came with a message. They are ours to close until somebody takes them; leaving `with` closes."""

    __slots__ = ("_fds",)

    def __init__(self) -> None:
        self._fds: list[int] = []

    def __len__(self) -> int:
        return len(self._fds)

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._fds))

    def __getitem__(self, index: int) -> int:
        return self._fds[index]

    def __enter__(self) -> ReceivedFds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, fds: Sequence[int]) -> None:
        self._fds.extend(fds)

    def taken(self) -> None:
        """The descriptors have a new owner: they are no longer ours to close."""
        self._fds.clear()

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


@dataclass(frozen=True, slots=True)
class Frame:
    """One message; whoever receives it closes or takes `fds`."""

    request: int
    flags: int
    payload: bytes
    fds: ReceivedFds

    @property
    def is_reply(self) -> bool:
        return bool(self.flags & HeaderFlag.REPLY)

    @property
    def needs_reply(self) -> bool:
        return bool(self.flags & HeaderFlag.NEED_REPLY)


class EndOfStream(Exception):
    """The peer closed the connection between two messages."""


class FrameReader:
    """Gathers one message at a time from a stream socket, blocking or not, in whatever pieces it arrives."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._fds = ReceivedFds()
        self._wanted = HEADER_SIZE

    def read(self) -> Frame:
        """The next whole message. BlockingIOError or TimeoutError: call again when there is more; what came is kept.

        Raises EndOfStream, ProtocolError (framing is lost: every descriptor received so far is closed), or OSError.
        """
        try:
            while len(self._buffer) < self._wanted:
                self._receive(self._wanted - len(self._buffer))
                if len(self._buffer) == HEADER_SIZE:
                    self._wanted = HEADER_SIZE + self._payload_size()
        except (BlockingIOError, TimeoutError):
            raise
        except BaseException:
            self.close()
            raise
        header = HEADER.parse(self._buffer)
        frame = Frame(header.request, header.flags, bytes(self._buffer[HEADER_SIZE:]), self._fds)
        self._buffer = bytearray()
        self._fds = ReceivedFds()
        self._wanted = HEADER_SIZE
        return frame

    def close(self) -> None:
        """Closes the descriptors of a message that has arrived only in part."""
        self._fds.close()
        self._buffer.clear()
        self._wanted = HEADER_SIZE

    def _receive(self, size: int) -> None:
        data, ancillary, flags, _ = self._sock.recvmsg(size, _ANCILLARY_SPACE, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds.add(fds)
        if flags & socket.MSG_CTRUNC:
            raise ProtocolError(Rule.FDS_TRUNCATED, "descriptors were lost on the way (too many, or no room for them)")
        if len(self._fds) > MAX_FDS:
            raise ProtocolError(Rule.TOO_MANY_FDS, f"{len(self._fds)} descriptors with one message")
        if not data:
            if self._buffer or self._fds:
                raise ProtocolError(Rule.TRUNCATED_MESSAGE, f"the stream ends after {len(self._buffer)} bytes of one")
            raise EndOfStream
        self._buffer += data

    def _payload_size(self) -> int:
        header = HEADER.parse(self._buffer)
        if header.flags & VERSION_MASK != VERSION:
            raise ProtocolError(Rule.VERSION, f"version {header.flags & VERSION_MASK} in flags {header.flags:#x}")
        if header.size > MAX_PAYLOAD:
            raise ProtocolError(Rule.PAYLOAD_TOO_LARGE, f"{header.size} bytes")
        return int(header.size)


class Channel:
    """A connection in an asyncio loop. It owns the socket from now on."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = FrameReader(sock)

    async def receive(self) -> Frame:
        """The next message; raises as `FrameReader.read`, never BlockingIOError."""
        while True:
            try:
                return self._reader.read()
            except BlockingIOError:
                await self._ready(reading=True)

    async def send_reply(self, request: int, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Sends one reply, the descriptors with its first byte. A peer that does not read keeps only its own
        connection waiting."""
        data = memoryview(pack_header(request, VERSION | HeaderFlag.REPLY, len(payload)) + payload)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while data:
            try:
                data = data[self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL) :]
                ancillary = []
            except BlockingIOError:
                await self._ready(reading=False)

    def close(self) -> None:
        self._reader.close()
        self._sock.close()

    async def _ready(self, *, reading: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        add, remove = (loop.add_reader, loop.remove_reader) if reading else (loop.add_writer, loop.remove_writer)
        add(self._sock, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            remove(self._sock)
