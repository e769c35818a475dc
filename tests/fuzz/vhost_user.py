# SPDX-License-Identifier: Apache-2.0
"""One vhost-user connection from a few bytes of fuzz input, against a real device: channel, session, virtio-scsi
device, target and the C core, nothing of them a fake.

Input is a list of steps, so that a mutation changes a message and not the framing of all that follow; `seeds.py` writes
it, `decode` reads it. What must hold after any input stands in `Rig.run`. It does not look at what is answered: that is
the business of tests/vhost_user.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from uuid import UUID

from vhost_scsi.dataplane import Core, CoreOptions
from vhost_scsi.stores import open_store
from vhost_scsi.target import LuSpec, Target
from vhost_scsi.vhost_user.device import VirtioScsiDevice
from vhost_scsi.vhost_user.messages import VERSION, HeaderFlag, Request, pack_header
from vhost_scsi.vhost_user.session import Session

PATIENCE = 20.0  # seconds; longer is a hang
MAX_STEPS = 48
PAGE = 4096
GUEST_PAGES = 256
QUEUES = 4
RING_SIZE = 8
TABLE_PAGE = 80
EDGES = [
    *(
        0xFF,
        0x100,
        0x101,
        0x102,
        0x1FF,
        0x7FFF,
        0x8000,
        0xFFFF,
        1 << 16,
        1 << 20,
        (1 << 31) - 1,
        1 << 31,
        (1 << 32) - 1,
    ),
    *(1 << 32, 1 << 47, 1 << 63, (1 << 64) - PAGE, (1 << 64) - 1, (1 << 30) | 1, 0x7F00_0000_0000, 1 << 28, 1 << 29),
    *(0x1_7000_0000, 0x1_3000_0000, 0x1_0000_0000 | 1 << 30, 0x1_8029, 0x1_A029, 1 << 62, 1 << 40),
    # RING_PACKED, and IN_ORDER with both layouts; places of packed rings with their wrap counters, for VRING_BASE.
    *(0x5_7000_0000, 0xD_7000_0000, 0x9_7000_0000, 0x8000_8000, 0x8003_8003, 0x8000_8002, 0x8003, 0x5_5000_0000),
]


class Kind(IntEnum):
    """Steps that are not a message; anything lower is the number of a request."""

    KICK = 0x80
    TRUNCATE = 0x81
    PAUSE = 0x82
    RAW = 0x83
    WRITE = 0x84
    """into guest memory, while rings run: a page, the sixteenth of it, and bytes"""


class Flag(IntEnum):
    NEED_REPLY = 1
    REPLY = 2
    RAW_PAYLOAD = 4
    VERSION = 8
    SIZE = 16


class Descriptor(IntEnum):
    """What is sent beside a message."""

    MEMORY = 0
    EVENT = 1
    PIPE_READER = 2
    PIPE_WRITER = 3
    SOCKET = 4
    NULL = 5
    SHORT_FILE = 6
    DIRECTORY = 7


@dataclass(frozen=True, slots=True)
class Step:
    """`tokens` are numbers in one byte each (see `number`), or the payload itself where RAW_PAYLOAD is set."""

    kind: int
    flags: int = Flag.NEED_REPLY
    fd: int = Descriptor.MEMORY
    fds: int = 0
    tokens: bytes = b""

    def encode(self) -> bytes:
        return bytes([self.kind, self.flags, self.fds << 4 | self.fd, len(self.tokens)]) + self.tokens


def decode(data: bytes) -> list[Step]:
    """Any bytes are some steps."""
    steps = []
    while len(data) >= 4 and len(steps) < MAX_STEPS:
        kind, flags, fds, length = data[:4]
        if kind >= 0x80:
            kind = 0x80 | kind & 7
        steps.append(Step(kind, flags & 31, fds & 7, fds >> 4, data[4 : 4 + length]))
        data = data[4 + length :]
    return steps


def number(token: int) -> int:
    """Small ones, pages, and those at which something ends."""
    if token < 0x40:
        return token
    if token < 0xC0:
        return (token - 0x40) * PAGE
    return EDGES[(token - 0xC0) % len(EDGES)]


def payload(request: int, tokens: bytes) -> bytes:
    """The numbers laid out as the message has them. Too few: zeroes; the size is then right all the same."""
    numbers = [number(token) for token in tokens]

    def words(layout: str) -> bytes:
        size = len(layout) - 1
        chosen = (numbers + [0] * size)[:size]
        limits = [(1 << 32) - 1 if code == "I" else (1 << 64) - 1 for code in layout[1:]]
        return struct.pack(layout, *(value & limit for value, limit in zip(chosen, limits, strict=True)))

    if request == Request.SET_MEM_TABLE:
        regions = [numbers[at : at + 4] for at in range(0, len(numbers) - 3, 4)][:9]
        return struct.pack("=II", len(regions), 0) + b"".join(struct.pack("=4Q", *region) for region in regions)
    if request in (Request.ADD_MEM_REG, Request.REM_MEM_REG):
        return bytes(8) + words("=QQQQ")
    if request == Request.SET_VRING_ADDR:
        return words("=IIQQQQ")
    if request in (
        *(Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.GET_VRING_BASE),
        *(Request.SET_VRING_ENABLE, Request.VRING_KICK, Request.SET_VRING_ENDIAN),
    ):
        return words("=II")
    return words("=Q") if tokens else b""


def ring_pages(queue: int) -> tuple[int, int, int]:
    """Where `guest_memory` has the parts of a ring: descriptors, available, used."""
    return 1 + 4 * queue, 2 + 4 * queue, 3 + 4 * queue


def packed_ring_page(queue: int) -> int:
    """Where `guest_memory` has the descriptors of a packed ring; the two pages behind are for event structures."""
    return 64 + 3 * queue


def descriptor(address: int, length: int, id_: int, flags: int) -> bytes:
    """Of a packed ring (virtio 1.3, 2.8.13)."""
    return struct.pack("<QIHH", address, length, id_, flags)


def packed_descriptors(header_page: int, data_page: int, cdbs: Sequence[bytes]) -> bytes:
    """A list of three descriptors for each, then one table for all of them; available in the first lap (2.8.1)."""
    available, found = 1 << 7, b""
    for index, cdb in enumerate(cdbs):
        out = cdb[0] == 0x2A
        parts = [
            (header_page * PAGE + 64 * index, 51, 0),
            (data_page * PAGE, 8 * 512 if out else 8, 0 if out else 2),
            ((data_page + 2) * PAGE, 108 + (0 if out else 4096), 2),
        ]
        for number_, (address, length, flags) in enumerate(parts):
            found += descriptor(address, length, index, flags | available | (number_ < 2))
    return found + descriptor(TABLE_PAGE * PAGE, 32, len(cdbs), 4 | available)


def guest_memory(fd: int) -> None:
    """Rings of both layouts with requests that wait: a ring that starts at the right place has work at once."""
    os.ftruncate(fd, GUEST_PAGES * PAGE)
    cdbs = [bytes([0x12, 0, 0, 0, 96]), bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 8]), bytes([0x2A, 0, 0, 0, 0, 8, 0, 0, 8])]
    header_page, data_page = 32, 40
    for queue in range(QUEUES):
        descriptors = b""
        for index, cdb in enumerate(cdbs):
            header = bytes([1, 0, 0x40]) + bytes(5) + struct.pack("<QBBB", index, 0, 0, 0) + cdb.ljust(32, b"\0")
            at = header_page * PAGE + 64 * index
            data_out = 8 * 512 if cdb[0] == 0x2A else 0
            os.pwrite(fd, header, at)
            descriptors += struct.pack("<QIHH", at, len(header), 1, 3 * index + 1)
            descriptors += struct.pack("<QIHH", data_page * PAGE, data_out or 8, 1 if data_out else 3, 3 * index + 2)
            descriptors += struct.pack("<QIHH", (data_page + 2) * PAGE, 108 + (0 if data_out else 4096), 2, 0)
        # Nine descriptors: a ring of eight has one too few, which is a broken rule, a ring of sixteen has enough.
        desc, avail, _ = ring_pages(queue)
        os.pwrite(fd, descriptors, desc * PAGE)
        os.pwrite(fd, struct.pack("<HH3H", 0, len(cdbs), 0, 3, 6), avail * PAGE)
        os.pwrite(fd, packed_descriptors(header_page, data_page, cdbs), packed_ring_page(queue) * PAGE)
    table = descriptor(header_page * PAGE, 51, 0, 0) + descriptor((data_page + 4) * PAGE, 108 + 96, 0, 2)
    os.pwrite(fd, table, TABLE_PAGE * PAGE)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


class Rig:
    """A back end with one device; `run` gives it one input. It closes when the process ends, or by `close`."""

    def __init__(self, engine: str = "epoll") -> None:
        self.loop = asyncio.new_event_loop()
        self.troubles: list[str] = []
        self.loop.set_exception_handler(lambda _, context: self.troubles.append(str(context)))
        self.loop.run_until_complete(self._start(engine))
        self.run(b"")  # what opens descriptors once and keeps them has done so

    async def _start(self, engine: str) -> None:
        options: Any = CoreOptions(workers=1, engine=engine)
        self.core = Core(options)
        await self.core.start()
        self.target = Target(self.core)
        unit = await self.target.add_lu(LuSpec("disk", UUID(int=1)), open_store("memory:1M", self.core))
        port = self.target.add_port("fuzz")
        self.device = VirtioScsiDevice(self.core, port, num_queues=QUEUES, credit=2, in_order=True)
        await port.map(0, 0, unit)

    def close(self) -> None:
        async def ended() -> None:
            await self.device.close()
            await self.target.close()
            await self.core.close()

        self.loop.run_until_complete(ended())
        self.loop.close()

    def requests(self) -> int:
        """How many chains the device has taken from rings, ever."""
        return sum(queue.requests for queue in self.device.queue_status())

    def run(self, data: bytes) -> None:
        """Nothing crashes, hangs or raises; every ring rests afterwards, nothing is left open, the next is served."""
        before = open_fds()
        self.loop.run_until_complete(self._connection(decode(data)))
        assert not any(queue.started for queue in self.device.queue_status()), "a ring runs without a front end"
        deadline = time.monotonic() + 2
        while open_fds() != before:
            assert time.monotonic() < deadline, f"{before} descriptors before, {open_fds()} after"
            self.loop.run_until_complete(asyncio.sleep(0.001))
        replies = self.loop.run_until_complete(
            self._connection([Step(Request.GET_FEATURES), Step(Request.GET_QUEUE_NUM)])
        )
        assert len(replies) == 2 * (12 + 8), "the next connection was not served"
        assert not self.troubles, self.troubles

    async def _connection(self, steps: Sequence[Step]) -> bytes:
        """Returns all that was answered."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        with ours, self._descriptors() as fds:
            feeder = asyncio.create_task(_feed(ours, steps, fds))
            await asyncio.wait_for(Session(self.device).run(theirs), PATIENCE)
            return await feeder

    @contextmanager
    def _descriptors(self) -> Iterator[list[int]]:
        with ExitStack() as stack:
            memory, short = os.memfd_create("guest"), os.memfd_create("short")
            guest_memory(memory)
            os.ftruncate(short, 100)
            reader, writer = os.pipe()
            pair = socket.socketpair()
            for end in pair:
                stack.callback(end.close)
            others = [os.eventfd(0), reader, writer, pair[0].fileno(), os.open("/dev/null", os.O_RDWR), short]
            fds = [memory, *others, os.open("/", os.O_RDONLY)]
            for kind, fd in enumerate(fds):
                if kind != Descriptor.SOCKET:
                    stack.callback(os.close, fd)
            yield fds


async def _feed(ours: socket.socket, steps: Sequence[Step], fds: Sequence[int]) -> bytes:
    """Takes the steps, reads what comes back until the back end closes."""
    replies = b""
    for step in steps:
        if step.kind == Kind.KICK:
            with suppress(BlockingIOError):
                os.eventfd_write(fds[Descriptor.EVENT], 1)
        elif step.kind == Kind.TRUNCATE:
            os.ftruncate(fds[Descriptor.MEMORY], number(step.tokens[0]) % (GUEST_PAGES * PAGE) if step.tokens else 0)
        elif step.kind == Kind.PAUSE:
            await asyncio.sleep(0.002)
        elif step.kind == Kind.WRITE:
            _write(fds[Descriptor.MEMORY], step.tokens)
        elif not await _send(ours, step, fds):
            break
        await asyncio.sleep(0)
        replies += _received(ours)
    with suppress(OSError):
        ours.shutdown(socket.SHUT_WR)
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        while data := await loop.sock_recv(ours, 1 << 16):
            replies += data
    return replies


def _write(memory: int, tokens: bytes) -> None:
    """A page that was truncated away comes back by it, which hurts nobody."""
    if len(tokens) > 2:
        os.pwrite(memory, tokens[2:], tokens[0] * PAGE + 16 * tokens[1])


async def _send(ours: socket.socket, step: Step, fds: Sequence[int]) -> bool:
    data = _framed(step)
    chosen = [fds[step.fd]] * step.fds
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", chosen))] if chosen else []
    for _ in range(1000):
        try:
            # Far less than a socket holds: never in part.
            ours.sendmsg([data], ancillary, socket.MSG_NOSIGNAL) if data else None
            return True
        except BlockingIOError:
            await asyncio.sleep(0.001)
        except OSError:
            return False
    raise TimeoutError("the back end does not read")


def _framed(step: Step) -> bytes:
    if step.kind == Kind.RAW:
        return step.tokens
    content = step.tokens if step.flags & Flag.RAW_PAYLOAD else payload(step.kind, step.tokens)
    flags = VERSION ^ (3 if step.flags & Flag.VERSION else 0)
    flags |= HeaderFlag.NEED_REPLY if step.flags & Flag.NEED_REPLY else 0
    flags |= HeaderFlag.REPLY if step.flags & Flag.REPLY else 0
    return pack_header(step.kind, flags, len(content) + (step.flags & Flag.SIZE)) + content


def _received(ours: socket.socket) -> bytes:
    with suppress(BlockingIOError, ConnectionError):
        return ours.recv(1 << 16)
    return b""
