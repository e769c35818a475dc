# SPDX-License-Identifier: Apache-2.0
"""Guest memory from Python: regions, checked translation, and an allocator for the driver side.

Two ways to reach the same bytes. `GuestMemory` maps them: fast, writable, used by drivers that own the memory.
`FileMemory` reads them with pread: used to look at memory that belongs to somebody else, because a memfd that its owner
truncated makes a mapped read die of SIGBUS, and a pread merely come back short. Neither is the C data plane's.

    VhostScsiError
      AddressError        an address range that no region holds, or that wraps
      OutOfGuestMemoryError    the driver-side allocator has no such piece left
"""

from __future__ import annotations

import bisect
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, Self, TypeVar

from vhost_scsi.errors import VhostScsiError
from vhost_scsi.virtqueue.layout import BufferLike

ADDRESS_LIMIT: Final = 1 << 64


class AddressError(VhostScsiError):
    """A guest address range that is not wholly inside the memory map. `overflow` says that it wraps past 2**64."""

    def __init__(self, address: int, length: int, *, overflow: bool = False) -> None:
        why = "wraps past the end of the address space" if overflow else "is not in guest memory"
        super().__init__(f"range {address:#x}+{length:#x} {why}")
        self.address = address
        self.length = length
        self.overflow = overflow


class OutOfGuestMemoryError(VhostScsiError):
    """The allocator cannot give a piece of the wanted length and alignment."""


class ReadableMemory(Protocol):
    """What the walker needs of guest memory. Both methods raise AddressError and nothing else."""

    def read(self, address: int, length: int) -> bytes: ...

    def check(self, address: int, length: int) -> None: ...


def check_range(address: int, length: int) -> None:
    """Raise AddressError unless address, length and their sum fit in 64 bits."""
    if length < 0 or not 0 <= address < ADDRESS_LIMIT:
        raise AddressError(address, length)
    if address + length > ADDRESS_LIMIT:
        raise AddressError(address, length, overflow=True)


@dataclass(frozen=True, slots=True)
class Region:
    """Guest-physical [guest_addr, guest_addr + size) is `view`, which maps `fd` from `offset`; fd -1 is no file."""

    guest_addr: int
    size: int
    view: memoryview
    fd: int = -1
    offset: int = 0

    @classmethod
    def of(cls, guest_addr: int, buffer: BufferLike) -> Self:
        """A region over any buffer; read-only if the buffer is."""
        view = memoryview(buffer).cast("B")
        return cls(guest_addr=guest_addr, size=len(view), view=view)

    @classmethod
    def create(cls, size: int, guest_addr: int = 0, *, name: str = "guest") -> Self:
        """A fresh shared memfd of `size` bytes, mapped read-write. The caller owns `fd`."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            mapping = mmap.mmap(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return cls(guest_addr=guest_addr, size=size, view=memoryview(mapping), fd=fd)


@dataclass(frozen=True, slots=True)
class FileRegion:
    """Guest-physical [guest_addr, guest_addr + size) is file `fd` from `offset`."""

    guest_addr: int
    size: int
    fd: int
    offset: int = 0


AnyRegion = TypeVar("AnyRegion", Region, FileRegion)


class _RegionMap(Generic[AnyRegion]):
    """Regions sorted by address, which do not overlap; finds the one an address is in."""

    def __init__(self, regions: Iterable[AnyRegion]) -> None:
        self.regions: Sequence[AnyRegion] = tuple(sorted(regions, key=lambda region: region.guest_addr))
        end = 0
        for region in self.regions:
            if region.size <= 0:
                raise ValueError(f"region at {region.guest_addr:#x} has no bytes")
            check_range(region.guest_addr, region.size)
            if region.guest_addr < end:
                raise ValueError(f"region at {region.guest_addr:#x} overlaps the one before it")
            end = region.guest_addr + region.size
        self._starts = [region.guest_addr for region in self.regions]

    def find(self, address: int, length: int) -> tuple[AnyRegion, int, int]:
        """The region `address` is in, the offset there, and how many of `length` bytes it holds (at least one)."""
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0:
            region = self.regions[index]
            offset = address - region.guest_addr
            if offset < region.size:
                return region, offset, min(length, region.size - offset)
        raise AddressError(address, length)

    def pieces(self, address: int, length: int) -> list[tuple[AnyRegion, int, int]]:
        """The range as (region, offset, length) pieces; more than one where it crosses into an adjacent region."""
        check_range(address, length)
        found = []
        if length == 0:
            self.find(address, 1)
        while length > 0:
            region, offset, here = self.find(address, length)
            found.append((region, offset, here))
            address += here
            length -= here
        return found


class GuestMemory:
    """Mapped guest memory, with an allocator over it for whoever plays the guest."""

    def __init__(self, regions: Iterable[Region]) -> None:
        self._map = _RegionMap(regions)
        self._closed = False
        self._free: list[tuple[int, int]] = [(r.guest_addr, r.size) for r in self._map.regions if not r.view.readonly]

    @classmethod
    def create(cls, size: int, guest_addr: int = 0x1000) -> Self:
        """One shared memfd region. It does not start at zero: address 0 is a hole, as a null pointer should be."""
        return cls([Region.create(size, guest_addr)])

    @property
    def regions(self) -> Sequence[Region]:
        return self._map.regions

    def close(self) -> None:
        """Close the files of the regions. Views stay usable until the last of them is dropped."""
        closed, self._closed = self._closed, True
        for region in self._map.regions:
            if region.fd >= 0 and not closed:
                os.close(region.fd)

    def translate(self, address: int, length: int) -> memoryview:
        """One contiguous view; raises AddressError if the range is not inside a single region."""
        check_range(address, length)
        region, offset, here = self._map.find(address, max(length, 1))
        if here < length:
            raise AddressError(address, length)
        return region.view[offset : offset + length]

    def segments(self, address: int, length: int) -> list[memoryview]:
        """The range as views, one per region that it crosses."""
        return [region.view[offset : offset + here] for region, offset, here in self._map.pieces(address, length)]

    def check(self, address: int, length: int) -> None:
        self._map.pieces(address, length)

    def read(self, address: int, length: int) -> bytes:
        """A copy of the bytes."""
        return b"".join(self.segments(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        source = memoryview(data).cast("B")
        for target in self.segments(address, len(source)):
            target[:] = source[: len(target)]
            source = source[len(target) :]

    def allocate(self, length: int, align: int = 16) -> GuestBuffer:
        """A zeroed piece of writable memory; first fit."""
        if length <= 0 or align <= 0 or align & (align - 1):
            raise ValueError(f"cannot allocate {length} bytes aligned to {align}")
        for index, (start, size) in enumerate(self._free):
            address = (start + align - 1) & ~(align - 1)
            rest = start + size - address - length
            if rest < 0:
                continue
            left = [(start, address - start)] if address > start else []
            right = [(address + length, rest)] if rest else []
            self._free[index : index + 1] = left + right
            view = self.translate(address, length)
            view[:] = bytes(length)
            return GuestBuffer(address=address, length=length, view=view)
        raise OutOfGuestMemoryError(f"no {length} bytes aligned to {align} left in guest memory")

    def free(self, buffer: GuestBuffer) -> None:
        """Give an allocated piece back; pieces that touch grow together."""
        start, size = buffer.address, buffer.length
        index = bisect.bisect(self._free, (start, size))
        before = self._free[index - 1] if index else None
        after = self._free[index] if index < len(self._free) else None
        if (before and sum(before) > start) or (after and start + size > after[0]):
            raise ValueError(f"buffer at {start:#x} is free already")
        # two regions that touch must not become one piece: a buffer lies in one region
        if after and start + size == after[0] and self._same_region(start, after[0]):
            size += after[1]
            del self._free[index]
        if before and sum(before) == start and self._same_region(before[0], start):
            start, size = before[0], before[1] + size
            index -= 1
            del self._free[index]
        self._free.insert(index, (start, size))

    def _same_region(self, one: int, other: int) -> bool:
        return self._map.find(one, 1)[0] is self._map.find(other, 1)[0]

    @property
    def free_bytes(self) -> int:
        return sum(size for _, size in self._free)


class FileMemory:
    """Guest memory read with pread: no mapping, hence no SIGBUS, and nothing can be written."""

    def __init__(self, regions: Iterable[FileRegion]) -> None:
        self._map = _RegionMap(regions)

    @classmethod
    def over(cls, memory: GuestMemory) -> Self:
        """The same map as `memory`, whose regions must all be files."""
        return cls(FileRegion(r.guest_addr, r.size, r.fd, r.offset) for r in memory.regions)

    @property
    def regions(self) -> Sequence[FileRegion]:
        return self._map.regions

    def check(self, address: int, length: int) -> None:
        self._map.pieces(address, length)

    def read(self, address: int, length: int) -> bytes:
        """A copy of the bytes; AddressError as well where the file has become shorter than the map says."""
        parts = []
        for region, offset, here in self._map.pieces(address, length):
            try:
                data = os.pread(region.fd, here, region.offset + offset)
            except OSError as error:
                raise AddressError(address, length) from error
            if len(data) < here:
                raise AddressError(address, length)
            parts.append(data)
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class GuestBuffer:
    """A piece of guest memory that the driver side allocated."""

    address: int
    length: int
    view: memoryview = field(repr=False)
