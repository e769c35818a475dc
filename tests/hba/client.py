# SPDX-License-Identifier: Apache-2.0
"""A vfio-user client for tests: what QEMU does, message by message, from the test's own thread.

It says what it is told to, right or wrong. Messages that come from the function meanwhile (DMA_READ, DMA_WRITE) are
answered out of `memory` by whoever waits for something, unless `deaf`.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
from dataclasses import dataclass, field
from typing import Any

from tests.waiting import PATIENCE
from vhost_scsi.hba import messages as wire
from vhost_scsi.hba.messages import Command, HeaderFlag, IrqSetFlag

QEMU_CAPABILITIES: dict[str, Any] = {
    "max_msg_fds": 8,
    "max_data_xfer_size": 1 << 20,
    "max_dma_maps": 65535,
    "pgsizes": 4096,
    "write_multiple": True,
}


class RefusedByServer(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(os.strerror(code))
        self.code = code


@dataclass(frozen=True, slots=True)
class Answer:
    command: int
    flags: int
    error: int
    data: bytes
    fds: list[int]


class SharedMemory:
    """A memfd that is mapped here."""

    def __init__(self, size: int) -> None:
        self.fd = os.memfd_create("client", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.size = size
        self.map = mmap.mmap(self.fd, size)

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


@dataclass(slots=True)
class Client:
    sock: socket.socket
    deaf: bool = False
    memory: dict[int, int] = field(default_factory=dict)
    """what DMA_READ finds and DMA_WRITE leaves, byte by byte"""
    dma_seen: list[tuple[int, int, int]] = field(default_factory=list)
    """command, address and count of each message of the function's"""
    unanswered: list[tuple[int, Answer]] = field(default_factory=list)
    """ids and messages that a deaf client heard"""
    _id: int = 0

    @classmethod
    def connect(cls, path: str) -> Client:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE)
        sock.connect(path)
        return cls(sock)

    def close(self) -> None:
        self.sock.close()

    # ---- messages --------------------------------------------------------------------------------------------------

    def send(
        self, command: int, data: bytes = b"", *, fds: tuple[int, ...] = (), flags: int = 0, number: int = -1
    ) -> int:
        """Its id: `number`, or the next one."""
        if number < 0:
            self._id = number = (self._id + 1) & 0xFFFF
        size = wire.HEADER_SIZE + len(data)
        head = wire.HEADER.build({"id": number, "command": command, "size": size, "flags": flags, "error": 0})
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.sock.sendmsg([head + data], ancillary)
        if sent < len(head + data):  # else the server may have answered and closed already
            self.sock.sendall((head + data)[sent:])
        return number

    def _exactly(self, n: int, fds: list[int]) -> bytes:
        data = b""
        while len(data) < n:
            room = socket.CMSG_SPACE(8 * array.array("i").itemsize)
            part, ancillary, _, _ = self.sock.recvmsg(n - len(data), room, socket.MSG_CMSG_CLOEXEC)
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds += array.array("i", content)
            if not part:
                raise EOFError
            data += part
        return data

    def receive(self) -> tuple[int, Answer]:
        """The next message of any kind: its id and itself. EOFError: the server has closed."""
        fds: list[int] = []
        head = wire.HEADER.parse(self._exactly(wire.HEADER_SIZE, fds))
        data = self._exactly(head.size - wire.HEADER_SIZE, fds)
        return head.id, Answer(head.command, head.flags, head.error, data, fds)

    def await_answer(self, number: int) -> Answer:
        while True:
            got, answer = self.receive()
            if answer.flags & HeaderFlag.REPLY:
                assert got == number
                return answer
            self._dma(got, answer)

    def _dma(self, number: int, asked: Answer) -> None:
        access = wire.DMA_ACCESS.parse(asked.data[: wire.DMA_ACCESS.size])
        self.dma_seen.append((asked.command, access.address, access.count))
        if self.deaf:
            self.unanswered.append((number, asked))
            return
        span = range(access.address, access.address + access.count)
        tail = b""
        if asked.command == Command.DMA_READ:
            tail = bytes(self.memory.get(address, 0) for address in span)
        else:
            self.memory.update(zip(span, asked.data[wire.DMA_ACCESS.size :], strict=True))
        self.send(asked.command, wire.DMA_ACCESS.build(access) + tail, flags=HeaderFlag.REPLY, number=number)

    def ask(self, command: int, data: bytes = b"", fds: tuple[int, ...] = ()) -> Answer:
        """Sends, waits, and raises RefusedByServer where the answer is an error."""
        answer = self.await_answer(self.send(command, data, fds=fds))
        assert answer.command == command
        if answer.flags & HeaderFlag.ERROR:
            assert not answer.data
            raise RefusedByServer(answer.error)
        return answer

    # ---- what a client does ----------------------------------------------------------------------------------------

    def negotiate(self, capabilities: dict[str, Any] | None = None, version: tuple[int, int] = (0, 1)) -> Any:
        """The capabilities that were agreed upon."""
        proposed = json.dumps({"capabilities": QEMU_CAPABILITIES if capabilities is None else capabilities}).encode()
        head = wire.VERSION.build({"major": version[0], "minor": version[1]})
        answer = self.ask(Command.VERSION, head + proposed + b"\0")
        agreed = wire.VERSION.parse(answer.data)
        assert (agreed.major, agreed.minor) == (0, min(version[1], 1))
        assert answer.data[-1] == 0
        return json.loads(answer.data[wire.VERSION.sizeof() : -1])["capabilities"]

    def dma_map(self, address: int, size: int, *, fd: int = -1, offset: int = 0, flags: int = 3) -> None:
        wanted = wire.DmaMap(wire.DMA_MAP.size, flags, offset, address, size)
        self.ask(Command.DMA_MAP, wire.DMA_MAP.build(wanted), (fd,) if fd >= 0 else ())

    def dma_unmap(self, address: int, size: int, flags: int = 0) -> None:
        wanted = wire.DMA_UNMAP.build(wire.DmaUnmap(wire.DMA_UNMAP.size, flags, address, size))
        assert self.ask(Command.DMA_UNMAP, wanted).data == wanted

    def device_info(self) -> wire.DeviceInfo:
        wanted = wire.DEVICE_INFO.build(wire.DeviceInfo(wire.DEVICE_INFO.size))
        return wire.DEVICE_INFO.parse(self.ask(Command.DEVICE_GET_INFO, wanted).data)

    def region_info(self, index: int) -> tuple[wire.RegionInfo, list[int]]:
        wanted = wire.REGION_INFO.build(wire.RegionInfo(wire.REGION_INFO.size, index=index))
        answer = self.ask(Command.DEVICE_GET_REGION_INFO, wanted)
        return wire.REGION_INFO.parse(answer.data), answer.fds

    def irq_info(self, index: int) -> wire.IrqInfo:
        wanted = wire.IRQ_INFO.build(wire.IrqInfo(wire.IRQ_INFO.size, index=index))
        return wire.IRQ_INFO.parse(self.ask(Command.DEVICE_GET_IRQ_INFO, wanted).data)

    def set_irqs(
        self,
        flags: int,
        index: int = 0,
        start: int = 0,
        count: int = 1,
        *,
        data: bytes = b"",
        fds: tuple[int, ...] = (),
    ) -> None:
        fixed = wire.IRQ_SET.build(wire.IrqSet(wire.IRQ_SET.size + len(data), flags, index, 0, count))
        self.ask(Command.DEVICE_SET_IRQS, fixed + data, fds)

    def set_intx(self, *fds: int) -> None:
        self.set_irqs(IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER, fds=fds)

    def unmask_intx(self) -> None:
        self.set_irqs(IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_UNMASK)

    def reset(self) -> None:
        self.ask(Command.DEVICE_RESET)

    def read(self, region: int, offset: int, count: int) -> bytes:
        access = wire.REGION_ACCESS.build(wire.RegionAccess(offset, region, count))
        return self.ask(Command.REGION_READ, access).data[wire.REGION_ACCESS.size :]

    def write(self, region: int, offset: int, data: bytes) -> None:
        access = wire.REGION_ACCESS.build(wire.RegionAccess(offset, region, len(data)))
        assert self.ask(Command.REGION_WRITE, access + data).data == access

    def read32(self, region: int, offset: int) -> int:
        return int.from_bytes(self.read(region, offset, 4), "little")

    def write32(self, region: int, offset: int, value: int) -> None:
        self.write(region, offset, value.to_bytes(4, "little"))
