# SPDX-License-Identifier: Apache-2.0
"""Clients that break the rules: each is refused by name or ended, and the next one is served. What the data plane
refuses by itself is in core/test/test_hba.c."""

from __future__ import annotations

import errno
import json
import logging
import os

import pytest

from tests.hba.client import Client, RefusedByServer, SharedMemory
from tests.hba.conftest import ID, REGISTERS, Bench
from tests.waiting import wait_for
from vhost_scsi.hba import messages as wire
from vhost_scsi.hba.messages import Command, HeaderFlag, IrqSetFlag
from vhost_scsi.hba.version import agree

PAGE = 4096
EVENTFD = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER


def refused(code: int, client: Client, command: int, data: bytes = b"", fds: tuple[int, ...] = ()) -> None:
    with pytest.raises(RefusedByServer) as found:
        client.ask(command, data, fds)
    assert found.value.code == code
    assert client.read32(REGISTERS, ID) == 0x72657845  # and goes on


def dma_map(address: int, size: int, *, flags: int = 3, offset: int = 0) -> bytes:
    return wire.DMA_MAP.build(wire.DmaMap(32, flags, offset, address, size))


def irqs(flags: int, *, index: int = 0, start: int = 0, count: int = 1) -> bytes:
    return wire.IRQ_SET.build(wire.IrqSet(20, flags, index, start, count))


def version(data: bytes, major: int = 0) -> bytes:
    return bytes(wire.VERSION.build({"major": major, "minor": 0})) + data


def capabilities(**values: object) -> bytes:
    return json.dumps({"capabilities": values}).encode() + b"\0"


@pytest.mark.parametrize(
    "proposal",
    [
        b"",
        b"\0\0",
        version(b"", major=1),
        version(b"{}"),
        version(b"{\0"),
        version(b"\xff\0"),
        version(b"[" * 4000 + b"\0"),
        version(b" " * 5000 + b"{}\0"),
        version(b"[]\0"),
        version(b'{"capabilities": 3}\0'),
        version(capabilities(max_msg_fds="many")),
        version(capabilities(max_msg_fds=True)),
        version(capabilities(max_msg_fds=-1)),
        version(capabilities(max_data_xfer_size=0)),
        version(capabilities(max_data_xfer_size=1 << 64)),
        version(capabilities(pgsizes=1 << 21)),
    ],
)
def test_a_version_that_cannot_be_is_refused(proposal: bytes) -> None:
    with pytest.raises(wire.Refused) as found:
        agree(proposal)
    assert found.value.closes


def test_a_version_without_json_is_one() -> None:
    agreement, answer = agree(version(b""))
    assert (agreement.max_data_xfer_size, agreement.max_msg_fds, answer[4:]) == (1 << 20, 1, b'{"capabilities": {}}\0')


@pytest.mark.parametrize("first", [Command.DEVICE_GET_INFO, Command.REGION_READ, Command.DMA_MAP, 99])
def test_nothing_comes_before_the_version(
    bench: Bench, stranger: Client, first: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RefusedByServer):
        stranger.ask(first, bytes(16))
    with pytest.raises((EOFError, ConnectionResetError)):
        stranger.receive()
    after = bench.connect()
    after.negotiate()
    assert after.read32(REGISTERS, ID) == 0x72657845
    after.close()
    assert any("before a version" in record.message for record in caplog.records)


def test_windows_that_cannot_be(client: Client, memory: SharedMemory, tmp_path: object) -> None:
    client.dma_map(0x10000, 2 * PAGE, fd=memory.fd)
    refused(errno.EEXIST, client, Command.DMA_MAP, dma_map(0x11000, PAGE), (memory.fd,))
    refused(errno.EEXIST, client, Command.DMA_MAP, dma_map(0, 1 << 63))
    refused(errno.EINVAL, client, Command.DMA_MAP, dma_map(0x20000, 0))
    refused(errno.EINVAL, client, Command.DMA_MAP, dma_map(0x20000, PAGE, flags=4))
    refused(errno.EINVAL, client, Command.DMA_MAP, dma_map(0x20800, PAGE))
    refused(errno.EINVAL, client, Command.DMA_MAP, dma_map((1 << 64) - PAGE, 2 * PAGE))
    refused(errno.EINVAL, client, Command.DMA_MAP, dma_map(0x20000, PAGE)[:-1])
    refused(errno.EINVAL, client, Command.DMA_MAP, dma_map(0x20000, PAGE), (memory.fd, memory.fd))
    refused(errno.EINVAL, client, Command.DMA_MAP, dma_map(0x20000, memory.size, offset=PAGE), (memory.fd,))
    reading, writing = os.pipe2(os.O_CLOEXEC)
    refused(errno.EINVAL, client, Command.DMA_MAP, dma_map(0x20000, PAGE, offset=1 << 63), (memory.fd,))
    os.close(reading)
    os.close(writing)
    for address, size in ((0x10000, PAGE), (0x11000, PAGE), (0x30000, PAGE)):
        unmap = wire.DMA_UNMAP.build(wire.DmaUnmap(24, 0, address, size))
        refused(errno.ENOENT, client, Command.DMA_UNMAP, unmap)
    for flags, address in ((1, 0x10000), (2, 0x10000)):
        unmap = wire.DMA_UNMAP.build(wire.DmaUnmap(24, flags, address, 2 * PAGE))
        refused(errno.EINVAL, client, Command.DMA_UNMAP, unmap)
    client.dma_unmap(0x10000, 2 * PAGE)


def test_what_is_asked_of_what_is_not_there(client: Client) -> None:
    refused(errno.EINVAL, client, Command.VERSION, version(b"{}\0"))
    refused(errno.EINVAL, client, Command.DEVICE_GET_INFO, wire.DEVICE_INFO.build(wire.DeviceInfo(15)))
    refused(errno.EINVAL, client, Command.DEVICE_GET_INFO, bytes(3))
    refused(errno.EINVAL, client, Command.DEVICE_GET_REGION_INFO, wire.REGION_INFO.build(wire.RegionInfo(32, index=9)))
    refused(errno.EINVAL, client, Command.DEVICE_GET_IRQ_INFO, wire.IRQ_INFO.build(wire.IrqInfo(16, index=5)))
    refused(errno.EINVAL, client, Command.DEVICE_RESET, b"x")
    for command in (0, 6, 14, 16, 17, 18, 99, 0xFFFF, Command.DMA_READ):
        refused(errno.ENOTSUP, client, command, bytes(8))


def test_interrupts_that_cannot_be_set_up(client: Client) -> None:
    good, other = os.eventfd(0, os.EFD_CLOEXEC), os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    refused(errno.EINVAL, client, Command.DEVICE_SET_IRQS, irqs(EVENTFD), (other,))
    refused(errno.EINVAL, client, Command.DEVICE_SET_IRQS, irqs(EVENTFD), (good, good))
    refused(errno.EINVAL, client, Command.DEVICE_SET_IRQS, irqs(EVENTFD, index=1), (good,))
    refused(errno.EINVAL, client, Command.DEVICE_SET_IRQS, irqs(EVENTFD, index=9), (good,))
    refused(errno.EINVAL, client, Command.DEVICE_SET_IRQS, irqs(EVENTFD, start=0xFFFFFFFF, count=2), (good,))
    refused(errno.EINVAL, client, Command.DEVICE_SET_IRQS, irqs(EVENTFD, count=0), (good,))
    refused(errno.EINVAL, client, Command.DEVICE_SET_IRQS, irqs(IrqSetFlag.DATA_NONE, count=0))
    unmask = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_UNMASK
    refused(errno.ENOTSUP, client, Command.DEVICE_SET_IRQS, irqs(unmask), (good,))
    refused(errno.EINVAL, client, Command.DEVICE_SET_IRQS, b"short")
    os.close(good)
    os.close(other)


def test_a_message_nobody_wants_answered_is_not(client: Client) -> None:
    for command in (99, Command.DEVICE_RESET, Command.DMA_MAP):
        client.send(command, flags=HeaderFlag.NO_REPLY)
    assert client.read32(REGISTERS, ID) == 0x72657845


def test_a_stream_that_cannot_be_followed_ends_the_client_alone(
    bench: Bench, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    client.sock.sendall(bytes(16))  # a message of 0 bytes
    with pytest.raises((EOFError, ConnectionResetError)):
        client.receive()
    wait_for(lambda: any("BAD_SIZE" in record.message for record in caplog.records), "the log")
    after = bench.connect()
    after.negotiate()
    after.close()


def test_descriptors_that_nobody_asked_for_are_closed(client: Client, memory: SharedMemory) -> None:
    """The bench counts descriptors in the end."""
    for command in (Command.REGION_READ, Command.DEVICE_GET_INFO, 99, Command.DMA_UNMAP):
        with pytest.raises(RefusedByServer):
            client.ask(command, b"", (memory.fd,) * 8)


def test_a_client_that_goes_in_the_middle_leaves_nothing(bench: Bench, memory: SharedMemory) -> None:
    for n in range(1, 40, 6):
        connected = bench.connect()
        connected.negotiate()
        connected.dma_map(0, PAGE, fd=memory.fd)
        connected.send(Command.DMA_MAP, dma_map(0x10000, PAGE), fds=(memory.fd,))
        connected.sock.sendall((wire.HEADER.build({"id": 1, "command": 2, "size": 48, "flags": 0, "error": 0}) * 3)[:n])
        connected.close()
