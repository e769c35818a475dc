# SPDX-License-Identifier: Apache-2.0
"""What the virtqueue tests share: plain accessors, and a reference device written from the standard alone.

The reference device shares no code with the package: it reads and writes the ring with struct, so that a wrong offset
in the package is not wrong twice. It is slow, single-threaded and checks only what keeps a test from hanging.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from vhost_scsi.virtqueue.memory import GuestMemory
from vhost_scsi.virtqueue.split_driver import SplitDriver


class PlainWord:
    """A 16-bit word without ordering: enough where driver and device are one thread."""

    def __init__(self, view: memoryview, offset: int) -> None:
        self._view, self._offset = view, offset

    def load(self) -> int:
        return struct.unpack_from("<H", self._view, self._offset)[0]

    def store(self, value: int) -> None:
        struct.pack_into("<H", self._view, self._offset, value & 0xFFFF)


class PlainAccessors:
    """Counts barriers, so that a test can see that there was one."""

    def __init__(self) -> None:
        self.barriers = 0

    def word(self, buffer: memoryview, offset: int) -> PlainWord:
        return PlainWord(buffer, offset)

    def full_barrier(self) -> None:
        self.barriers += 1


class ReferenceDevice:
    """The device side of a split ring (virtio 1.3, 2.7), by the book."""

    def __init__(self, driver: SplitDriver) -> None:
        self.memory = driver.memory
        self.at = driver.addresses
        self.size = driver.size
        self.event_idx = driver.event_idx
        self.last_avail = 0
        self.used_idx = 0
        self.interrupts = 0

    def _u16(self, address: int) -> int:
        return struct.unpack("<H", self.memory.read(address, 2))[0]

    def _put_u16(self, address: int, value: int) -> None:
        self.memory.write(address, struct.pack("<H", value & 0xFFFF))

    @property
    def available(self) -> int:
        return (self._u16(self.at.avail + 2) - self.last_avail) & 0xFFFF

    def take(self) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]] | None:
        """The next head with its readable and writable (address, length); None when there is none."""
        if not self.available:
            return None
        head = self._u16(self.at.avail + 4 + 2 * (self.last_avail % self.size))
        self.last_avail = (self.last_avail + 1) & 0xFFFF
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        table, index = self.at.desc, head
        for _ in range(2 * self.size + 2):
            address, length, flags, following = struct.unpack("<QIHH", self.memory.read(table + 16 * index, 16))
            if flags & 4:
                table, index = address, 0
                continue
            (writable if flags & 2 else readable).append((address, length))
            if not flags & 1:
                return head, readable, writable
            index = following
        raise AssertionError("chain does not end")

    def use(self, head: int, written: int = 0) -> bool:
        """Return a chain; whether the driver is to be notified (2.7.7.2)."""
        self.memory.write(self.at.used + 4 + 8 * (self.used_idx % self.size), struct.pack("<II", head, written))
        old, self.used_idx = self.used_idx, (self.used_idx + 1) & 0xFFFF
        self._put_u16(self.at.used + 2, self.used_idx)
        if self.event_idx:
            wanted = self._u16(self.at.avail + 4 + 2 * self.size) == old
        else:
            wanted = not self._u16(self.at.avail) & 1
        self.interrupts += wanted
        return wanted

    def want_kick(self) -> None:
        if self.event_idx:
            self._put_u16(self.at.used + 4 + 8 * self.size, self.last_avail)
        else:
            self._put_u16(self.at.used, 0)

    def no_kick(self) -> None:
        if self.event_idx:
            self._put_u16(self.at.used + 4 + 8 * self.size, self.last_avail - 1)
        else:
            self._put_u16(self.at.used, 1)

    def read(self, pieces: list[tuple[int, int]]) -> bytes:
        return b"".join(self.memory.read(address, length) for address, length in pieces)

    def write(self, pieces: list[tuple[int, int]], data: bytes) -> int:
        """Scatter `data` over the pieces; how much of it fitted."""
        written = 0
        for address, length in pieces:
            part = data[written : written + length]
            self.memory.write(address, part)
            written += len(part)
        return written


@pytest.fixture(scope="session")
def plain_accessors() -> type[PlainAccessors]:
    return PlainAccessors


@pytest.fixture(scope="session")
def reference_device() -> type[ReferenceDevice]:
    return ReferenceDevice


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory.create(1 << 20)
    yield made
    made.close()


@pytest.fixture
def make_driver(memory):
    """make_driver(size=8, **options): a driver in `memory` with plain accessors."""

    def make(size: int = 8, **options) -> SplitDriver:
        return SplitDriver(memory, size, accessors=PlainAccessors(), **options)

    return make
