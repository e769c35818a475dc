# SPDX-License-Identifier: Apache-2.0
"""Framing: pieces, descriptors, limits; and that every descriptor of a message that fails is closed."""

from __future__ import annotations

import array
import asyncio
import os
import resource
import socket
import struct
from collections.abc import Iterator, Sequence

import pytest

from vhost_scsi.vhost_user.channel import Channel, EndOfStream, Frame, FrameReader
from vhost_scsi.vhost_user.messages import MAX_FDS, MAX_PAYLOAD, pack_header
from vhost_scsi.vhost_user.rules import ProtocolError, Rule


class Line:
    """A socket pair: raw bytes and descriptors on one end, a FrameReader on the other."""

    def __init__(self) -> None:
        self.peer, self.ours = socket.socketpair()
        self.ours.setblocking(False)
        self.reader = FrameReader(self.ours)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        assert self.peer.sendmsg([data], ancillary) == len(data)

    def fails(self, rule: Rule) -> None:
        with pytest.raises(ProtocolError) as caught:
            self.reader.read()
        assert caught.value.rule is rule

    def close(self) -> None:
        self.reader.close()
        self.peer.close()
        self.ours.close()


def fd_count() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def line() -> Iterator[Line]:
    before = fd_count()
    each = Line()
    yield each
    assert fd_count() == before + 2, "descriptors of a message were left open"
    each.close()
    assert fd_count() == before


def many(count: int) -> list[int]:
    return [0] * count


def test_a_message_comes_out_as_it_went_in(line: Line) -> None:
    line.send(pack_header(7, 1, 3) + b"abc")
    frame = line.reader.read()
    assert (frame.request, frame.flags, frame.payload, len(frame.fds)) == (7, 1, b"abc", 0)


def test_a_message_may_come_byte_by_byte(line: Line) -> None:
    data = pack_header(7, 1, 3) + b"abc"
    for each in data[:-1]:
        line.send(bytes((each,)))
        with pytest.raises(BlockingIOError):
            line.reader.read()
    line.send(data[-1:])
    assert line.reader.read().payload == b"abc"


def test_two_messages_in_one_write_are_two_messages(line: Line) -> None:
    line.send(pack_header(1, 1, 0) + pack_header(2, 1, 1) + b"x")
    assert [line.reader.read().request for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("count", [1, MAX_FDS])
def test_descriptors_come_with_their_message(line: Line, count: int) -> None:
    line.send(pack_header(1, 1, 0))
    line.send(pack_header(2, 1, 0), many(count))
    line.send(pack_header(3, 1, 0))
    assert [len(take(line.reader.read())) for _ in range(3)] == [0, count, 0]


def take(frame: Frame) -> list[int]:
    with frame.fds:
        return list(frame.fds)


def test_descriptors_may_come_with_any_byte(line: Line) -> None:
    data = pack_header(7, 1, 3) + b"abc"
    line.send(data[:5], many(1))
    line.send(data[5:13], many(1))
    line.send(data[13:], many(1))
    assert len(take(line.reader.read())) == 3


def test_descriptors_are_close_on_exec(line: Line) -> None:
    line.send(pack_header(1, 1, 0), many(2))
    with line.reader.read().fds as fds:
        assert not any(os.get_inheritable(fd) for fd in fds)


@pytest.mark.parametrize("count", [MAX_FDS + 1, 253])
def test_more_descriptors_in_one_go_than_there_is_room_for(line: Line, count: int) -> None:
    line.send(pack_header(1, 1, 0), many(count))
    line.fails(Rule.FDS_TRUNCATED)


def test_too_many_descriptors_in_several_goes(line: Line) -> None:
    data = pack_header(1, 1, 0)
    line.send(data[:4], many(MAX_FDS))
    line.send(data[4:], many(1))
    line.fails(Rule.TOO_MANY_FDS)


def test_descriptors_lost_because_our_table_is_full(line: Line) -> None:
    line.send(pack_header(1, 1, 0), many(4))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(each) for each in os.listdir("/proc/self/fd")), limits[1]))
    holes = fill_holes()
    try:
        line.fails(Rule.FDS_TRUNCATED)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in holes:
            os.close(fd)


def fill_holes() -> list[int]:
    """Takes every descriptor number below the limit."""
    taken = []
    while True:
        try:
            taken.append(os.dup(0))
        except OSError:
            return taken


@pytest.mark.parametrize("flags", [0, 2, 3, 0xFFFF_FFFC])
def test_another_version_is_refused(line: Line, flags: int) -> None:
    line.send(pack_header(1, flags, 0), many(1))
    line.fails(Rule.VERSION)


@pytest.mark.parametrize("size", [MAX_PAYLOAD + 1, 0xFFFF_FFFF])
def test_a_payload_that_is_too_large_is_refused_before_it_comes(line: Line, size: int) -> None:
    line.send(pack_header(1, 1, size), many(1))
    line.fails(Rule.PAYLOAD_TOO_LARGE)


def test_the_largest_payload_is_read(line: Line) -> None:
    line.send(pack_header(1, 1, MAX_PAYLOAD) + bytes(MAX_PAYLOAD))
    assert len(line.reader.read().payload) == MAX_PAYLOAD


def test_the_end_between_messages_is_the_end(line: Line) -> None:
    line.peer.shutdown(socket.SHUT_WR)
    with pytest.raises(EndOfStream):
        line.reader.read()


@pytest.mark.parametrize("length", [1, 11, 12, 14])
def test_the_end_in_a_message_is_an_error(line: Line, length: int) -> None:
    line.send((pack_header(1, 1, 3) + b"abc")[:length], many(1))
    line.peer.shutdown(socket.SHUT_WR)
    line.fails(Rule.TRUNCATED_MESSAGE)


def test_closing_the_reader_closes_descriptors_of_half_a_message(line: Line) -> None:
    line.send(b"\x01", many(3))
    with pytest.raises(BlockingIOError):
        line.reader.read()
    line.reader.close()  # the fixture counts


def test_the_header_is_native_32_bit_words() -> None:
    assert pack_header(0x01020304, 5, 6) == struct.pack("=III", 0x01020304, 5, 6)


def test_a_channel_waits_for_the_rest_of_a_message() -> None:
    async def scenario() -> Frame:
        peer, ours = socket.socketpair()
        channel = Channel(ours)
        receiving = asyncio.create_task(channel.receive())
        for each in pack_header(7, 1, 1) + b"x":
            await asyncio.sleep(0)
            peer.send(bytes((each,)))
        frame = await receiving
        peer.close()
        channel.close()
        return frame

    assert asyncio.run(scenario()).payload == b"x"


def test_a_peer_that_does_not_read_keeps_nobody_else_waiting() -> None:
    async def scenario() -> int:
        peer, ours = socket.socketpair()
        channel = Channel(ours)

        async def flood() -> None:
            while True:
                await channel.send_reply(1, bytes(4096))

        flooding = asyncio.create_task(flood())
        beats = 0
        while beats < 50:  # the loop goes on
            await asyncio.sleep(0.001)
            beats += 1
        assert not flooding.done()
        flooding.cancel()
        await asyncio.wait((flooding,))
        peer.close()
        channel.close()
        return beats

    assert asyncio.run(scenario()) == 50


def test_a_reply_is_sent_whole_to_a_slow_reader() -> None:
    async def scenario() -> bytes:
        peer, ours = socket.socketpair()
        peer.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        channel = Channel(ours)
        payload = os.urandom(1 << 20)
        sending = asyncio.create_task(channel.send_reply(1, payload))
        received = b""
        while len(received) < len(payload) + 12:
            received += await asyncio.get_running_loop().sock_recv(peer, 5000)
        await sending
        peer.close()
        channel.close()
        assert received[12:] == payload
        return received[:12]

    assert asyncio.run(scenario()) == pack_header(1, 5, 1 << 20)
