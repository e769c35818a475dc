# SPDX-License-Identifier: Apache-2.0
"""A client that keeps to the protocol: version, device, regions, memory with and without descriptors, interrupts,
reset, and going and coming back."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

import pytest

from tests.hba.client import QEMU_CAPABILITIES, Client, RefusedByServer, SharedMemory
from tests.hba.conftest import (
    CONFIG,
    CONTROL,
    DONE,
    ENABLE,
    FAULT,
    ID,
    LOWER,
    MEMORY,
    MOVED,
    RAISE,
    REGISTERS,
    STATUS,
    WORD,
    Bench,
    copy,
    status_after,
)
from tests.waiting import wait_for
from vhost_scsi.hba import messages as wire
from vhost_scsi.hba.messages import Command, HeaderFlag, Irq, IrqSetFlag, RegionFlag

PAGE = 4096
BASE = 1 << 32


def eventfd() -> int:
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def rung(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_the_version_and_no_more_than_was_proposed_is_agreed_upon(stranger: Client) -> None:
    assert stranger.negotiate() == {
        "max_msg_fds": 8,
        "max_data_xfer_size": 65536,
        "max_dma_maps": 1024,
        "pgsizes": 4096,
        "write_multiple": True,
    }


@pytest.mark.parametrize(
    ("proposed", "agreed"),
    [
        ({}, {}),
        ({"max_dma_maps": 7}, {"max_dma_maps": 7}),
        ({"write_multiple": False, "twin_socket": {"supported": True}}, {"write_multiple": False}),
    ],
)
def test_the_answer_is_a_subset(stranger: Client, proposed: dict[str, Any], agreed: dict[str, Any]) -> None:
    assert stranger.negotiate(proposed, version=(0, 0)) == agreed


def test_the_device_is_a_pci_function_that_can_be_reset(client: Client) -> None:
    assert client.device_info() == wire.DeviceInfo(16, 3, 9, 5)


def test_regions_are_described_and_one_can_be_mapped(client: Client) -> None:
    sizes = [client.region_info(index)[0].size for index in (REGISTERS, 1, CONFIG, 8)]
    assert sizes == [256, 0, 256, 0]
    info, fds = client.region_info(MEMORY)
    assert info == wire.RegionInfo(32, RegionFlag.READ | RegionFlag.WRITE | RegionFlag.MMAP, MEMORY, 0, 8192, 0)
    (fd,) = fds
    client.write(MEMORY, 5, b"seen through the map")
    assert os.pread(fd, 20, 5) == b"seen through the map"
    os.pwrite(fd, b"and the other way", 4096)
    assert client.read(MEMORY, 4096, 17) == b"and the other way"
    os.close(fd)


def test_a_client_that_takes_no_descriptors_maps_nothing(stranger: Client) -> None:
    stranger.negotiate({**QEMU_CAPABILITIES, "max_msg_fds": 0})
    info, fds = stranger.region_info(MEMORY)
    assert (info.flags, fds) == (RegionFlag.READ | RegionFlag.WRITE, [])


def test_interrupts_are_described(client: Client) -> None:
    assert client.irq_info(Irq.INTX) == wire.IrqInfo(16, 7, 0, 1)
    assert [client.irq_info(index).count for index in (Irq.MSI, Irq.MSIX, Irq.ERR, Irq.REQ)] == [0, 0, 0, 0]


def test_intx_is_told_by_the_eventfd_and_again_after_unmask(client: Client) -> None:
    fd = eventfd()
    client.set_intx(fd)
    client.write32(REGISTERS, CONTROL, RAISE)
    assert rung(fd) == 1
    assert int.from_bytes(client.read(CONFIG, 6, 2), "little") & 1 << 3
    client.unmask_intx()
    assert rung(fd) == 1
    client.write32(REGISTERS, CONTROL, LOWER)
    client.unmask_intx()
    assert rung(fd) == 0
    client.set_intx()  # without descriptors: taken away
    client.write32(REGISTERS, CONTROL, RAISE)
    client.unmask_intx()
    assert rung(fd) == 0
    client.set_intx(fd)
    assert rung(fd) == 1
    for index in (Irq.INTX, Irq.MSI):
        client.set_irqs(IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER, index, count=0)
    client.unmask_intx()
    assert rung(fd) == 0
    os.close(fd)


def test_the_function_copies_mapped_memory_in_place(client: Client, memory: SharedMemory) -> None:
    client.dma_map(BASE, 2 * PAGE, fd=memory.fd)
    client.dma_map(BASE + 2 * PAGE, PAGE, fd=memory.fd, offset=8 * PAGE)
    memory.map[100:105] = b"hello"
    copy(client, BASE + 100, BASE + 2 * PAGE + 7, 5)
    assert status_after(client) == DONE
    assert memory.map[8 * PAGE + 7 : 8 * PAGE + 12] == b"hello"
    copy(client, BASE + 2 * PAGE - 2, BASE, 4)  # across the border of two windows
    assert status_after(client) == DONE
    client.dma_unmap(BASE + 2 * PAGE, PAGE)
    copy(client, BASE + 100, BASE + 2 * PAGE + 7, 5)
    assert status_after(client) == FAULT
    assert client.read32(REGISTERS, MOVED) == 0
    assert not client.dma_seen


def test_memory_without_a_descriptor_is_asked_for(bench: Bench, client: Client) -> None:
    client.dma_map(0x10000, PAGE)
    client.memory.update(enumerate(b"in the client", 0x10010))
    copy(client, 0x10010, 0x10800, 13)
    assert status_after(client) == DONE
    assert bytes(client.memory[0x10800 + i] for i in range(13)) == b"in the client"
    assert client.dma_seen == [(Command.DMA_READ, 0x10010, 13), (Command.DMA_WRITE, 0x10800, 13)]
    assert bench.stats().dma_messages == 2


def test_a_file_that_cannot_be_written_is_asked_for_as_well(client: Client, tmp_path: Path) -> None:
    (tmp_path / "rom").write_bytes(bytes(PAGE))
    fd = os.open(tmp_path / "rom", os.O_RDONLY | os.O_CLOEXEC)
    client.dma_map(0x10000, PAGE, fd=fd, flags=1)
    os.close(fd)
    client.dma_map(0x20000, PAGE)
    copy(client, 0x10000, 0x20000, 4)
    assert status_after(client) == DONE
    assert client.dma_seen[0][0] == Command.DMA_READ
    copy(client, 0x20000, 0x10000, 4)  # and is not written
    assert status_after(client) == FAULT


def test_unmap_is_answered_after_the_last_use(bench: Bench, client: Client) -> None:
    client.deaf = True
    client.dma_map(0x10000, PAGE)
    copy(client, 0x10000, 0x10100, 8)
    ((number, asked),) = client.unanswered
    before = bench.stats().messages
    unmap = client.send(Command.DMA_UNMAP, wire.DMA_UNMAP.build(wire.DmaUnmap(24, 0, 0x10000, PAGE)))
    wait_for(lambda: bench.stats().messages > before, "the message")
    for _ in range(20):  # so often the planes have talked, and the answer would have come
        bench.thread.call(bench.core.delivered())
    assert select.select([client.sock], [], [], 0)[0] == []
    client.send(Command.DMA_READ, asked.data + bytes(8), flags=HeaderFlag.REPLY, number=number)
    client.await_answer(unmap)
    # The second half found no window any more.
    assert status_after(client) == FAULT
    assert bench.stats().dma_messages == 1


def test_all_windows_go_at_once(client: Client, memory: SharedMemory) -> None:
    client.dma_map(BASE, PAGE, fd=memory.fd)
    client.dma_map(0, PAGE)
    client.dma_unmap(0, 0, flags=2)
    client.dma_map(BASE, PAGE, fd=memory.fd)
    with pytest.raises(RefusedByServer):
        client.dma_unmap(0, PAGE)


def test_reset_gives_a_fresh_function(client: Client) -> None:
    client.write32(REGISTERS, WORD, 5)
    client.write32(CONFIG, 0x3C, 11)
    client.reset()
    assert client.read32(REGISTERS, WORD) == 0
    assert client.read(CONFIG, 0x3C, 1) == b"\0"
    assert client.read32(REGISTERS, ID) == 0x72657845


def test_a_client_that_comes_back_finds_the_function_and_none_of_its_own(
    bench: Bench, client: Client, memory: SharedMemory
) -> None:
    fd = eventfd()
    client.dma_map(BASE, PAGE, fd=memory.fd)
    client.set_intx(fd)
    client.write32(REGISTERS, WORD, 77)
    client.write32(REGISTERS, ENABLE, 1)
    client.close()
    second = bench.connect()
    second.negotiate()
    assert second.read32(REGISTERS, WORD) == 77
    copy(second, BASE, BASE + 8, 8)
    assert status_after(second) == FAULT
    assert second.read32(REGISTERS, STATUS) == FAULT
    assert rung(fd) == 0
    second.close()
    os.close(fd)
