# SPDX-License-Identifier: Apache-2.0
"""Whatever bytes and descriptors a peer sends, in any pieces: nothing crashes or leaks, and the next one is served."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vhost_scsi.errors import VhostScsiError
from vhost_scsi.vhost_user.frontend import Frontend
from vhost_scsi.vhost_user.messages import (
    MEMORY_TABLE,
    MESSAGES,
    SINGLE_REGION,
    U64,
    VRING_ADDR,
    VRING_NOFD,
    VRING_STATE,
    IndexedVringAddr,
    MemoryRegion,
    ProtocolFeature,
    Request,
    VringAddr,
    VringState,
    pack_header,
)
from vhost_scsi.vhost_user.session import OFFERED

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
EDGES = [0, 1, 2, 5, 6, 7, 64, 0xFF, 0x100, 0x101, 0x1000, 0x8000, 1 << 20, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1]
words = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**64 - 1), st.just(0x7F00_0000_0000))
fd_choices = st.one_of(
    st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 4, 5]), max_size=3), st.lists(st.just(0), max_size=9)
)


@pytest.fixture
def assorted_fds() -> Iterator[list[int]]:
    """A memfd, an eventfd, both ends of a pipe, a socket, an empty file."""
    memory = os.memfd_create("fuzz")
    os.ftruncate(memory, 1 << 20)
    reader, writer = os.pipe()
    pair = socket.socketpair()
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, with the rest
    event = os.eventfd(0, os.EFD_NONBLOCK)
    yield [memory, event, reader, writer, pair[0].fileno(), file.fileno()]
    file.close()
    for each in pair:
        each.close()
    for fd in (memory, event, reader, writer):
        os.close(fd)


pages = st.sampled_from([0, 1, 2, 3, 255, 256]).map(lambda number: number << 12)
regions = st.builds(MemoryRegion, guest_addr=pages, size=pages, user_addr=pages, mmap_offset=pages)
ring_parts = st.tuples(pages, st.sampled_from([0, 0, 0, 2, 4, 16])).map(sum)
ring_addrs = st.builds(
    IndexedVringAddr,
    index=st.sampled_from([0, 1, 5, 6]),
    addr=st.builds(VringAddr, st.sampled_from([0, 0, 0, 1]), ring_parts, ring_parts, ring_parts),
)


MEMFD, EVENTFD, PIPE, SOCKET = 0, 1, 2, 4  # places in `assorted_fds`
NOTIFIERS = (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR)
rings = st.sampled_from([0, 1, 5, 6, 255])
Content = tuple[bytes, list[int]]


def likely(number: int) -> st.SearchStrategy[Content]:
    """A payload and descriptors that hold together, so that they get past the first checks."""
    if number == Request.SET_MEM_TABLE:
        return st.lists(regions, max_size=3).map(lambda table: (MEMORY_TABLE.build(table), [MEMFD] * len(table)))
    if number in (Request.ADD_MEM_REG, Request.REM_MEM_REG):
        fds = [MEMFD] * MESSAGES[number].min_fds
        return regions.map(lambda region: (SINGLE_REGION.build(region), fds))
    if number == Request.SET_VRING_ADDR:
        return ring_addrs.map(lambda addr: (VRING_ADDR.build(addr), []))
    if number in NOTIFIERS:
        ends = st.sampled_from([(0, [EVENTFD]), (0, [PIPE]), (VRING_NOFD, []), (0, []), (0, [MEMFD])])
        return st.tuples(rings, ends).map(lambda pair: (U64.build(pair[0] | pair[1][0]), pair[1][1]))
    if number == Request.SET_BACKEND_REQ_FD:
        return st.sampled_from([(b"", [SOCKET]), (b"", [EVENTFD])])
    if number in MESSAGES and MESSAGES[number].payload is VRING_STATE:
        values = st.sampled_from([0, 1, 3, 64, 1 << 15, 1 << 31])
        return st.tuples(rings, values).map(lambda pair: (VRING_STATE.build(VringState(*pair)), []))
    if number in MESSAGES and MESSAGES[number].payload is U64:
        return words.map(lambda word: (U64.build(word), []))
    return st.just((b"", []))


def unlikely(number: int) -> st.SearchStrategy[Content]:
    """A payload of a size that the message may have, or not, and any descriptors."""
    sizes = sorted(MESSAGES[number].payload.sizes or {0}) if number in MESSAGES else [0]
    shaped = st.tuples(st.sampled_from(sizes), st.lists(words, max_size=34)).map(
        lambda pair: b"".join(each.to_bytes(8, "little") for each in pair[1]).ljust(pair[0], b"\0")[: pair[0]]
    )
    return st.tuples(st.one_of(shaped, st.binary(max_size=64)), fd_choices)


Framed = tuple[int, int, Content]


def framed(number: int) -> st.SearchStrategy[Framed]:
    return st.tuples(st.just(number), st.sampled_from([1, 9, 9, 9, 5]), st.one_of(likely(number), unlikely(number)))


# One of them each, and not flatmap: hypothesis would repeat itself.
any_message = st.one_of([framed(number) for number in range(50)])
likely_message = st.one_of(
    [
        st.tuples(st.just(int(each)), st.just(9), likely(each))
        for each in Request
        if not MESSAGES[each].requires & ~OFFERED and each not in (Request.IOTLB_MSG, Request.SET_PROTOCOL_FEATURES)
    ]
)


def served(backend: Any, ended: int) -> None:
    """The connection before has ended with nothing left over, and a new one is served in full."""
    backend.wait_for_end(ended)
    with backend.connect() as frontend:
        frontend.negotiate()
        assert frontend.get_queue_num() == 6
    backend.wait_for_end(ended + 1)


def fd_count() -> int:
    return len(os.listdir("/proc/self/fd"))


@given(chunks=st.lists(st.tuples(st.binary(min_size=1, max_size=60), fd_choices), max_size=12))
@FUZZ
def test_random_bytes_with_random_descriptors(
    backend: Any, assorted_fds: list[int], chunks: list[tuple[bytes, list[int]]]
) -> None:
    before, ended = fd_count(), backend.device.connections_ended
    with backend.connect() as frontend:
        for data, fds in chunks:
            send(frontend, data, [assorted_fds[each] for each in fds])
        drain(frontend)
    served(backend, ended + 1)
    assert fd_count() == before


@given(messages=st.lists(any_message, max_size=14), acks=st.booleans(), cut=st.integers(0, 40))
@FUZZ
def test_random_messages_with_random_descriptors(
    backend: Any, assorted_fds: list[int], messages: list[Framed], acks: bool, cut: int
) -> None:
    before, ended = fd_count(), backend.device.connections_ended
    with backend.connect() as frontend:
        if acks:
            frontend.negotiate()
        else:
            frontend.negotiate(protocol_features=int(ProtocolFeature.MQ))
        for number, flags, (payload, fds) in messages:
            data = pack_header(number, flags, len(payload)) + payload
            send(frontend, data, [assorted_fds[each] for each in fds])
        send(frontend, pack_header(1, 1, 0)[:cut], [])
        drain(frontend)
    served(backend, ended + 1)
    assert fd_count() == before


def send(frontend: Frontend, data: bytes, fds: list[int]) -> None:
    """The back end may have closed the connection before: that is one of its answers."""
    try:
        if data:
            frontend.send_bytes(data, fds)
    except VhostScsiError:
        pass


def drain(frontend: Frontend) -> None:
    """Reads answers until the back end closes: so all that was sent has been looked at."""
    try:
        frontend.sock.shutdown(socket.SHUT_WR)
        while frontend.sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass


def test_the_fuzzed_messages_reach_every_call_of_the_device(backend: Any, assorted_fds: list[int]) -> None:
    """If they did not, the two tests above would prove little."""

    @given(messages=st.lists(likely_message, min_size=10, max_size=30))
    @settings(FUZZ, max_examples=100, database=None, derandomize=True)
    def run(messages: list[Framed]) -> None:
        ended = backend.device.connections_ended
        with backend.connect() as frontend:
            frontend.negotiate()
            for number, flags, (payload, fds) in messages:
                send(frontend, pack_header(number, flags, len(payload)) + payload, [assorted_fds[each] for each in fds])
            drain(frontend)
        backend.wait_for_end(ended + 1)

    run()
    reached = set(backend.device.names())
    wanted = {"set_features", "set_vring_num", "set_vring_addr", "set_vring_base", "set_vring_kick", "set_vring_call"}
    wanted |= {"set_vring_err", "set_vring_enable", "get_vring_base", "set_mem_table", "reset_device", "status"}
    wanted |= {"add_mem_region", "set_backend_channel"}
    assert wanted <= reached
