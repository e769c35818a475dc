# SPDX-License-Identifier: Apache-2.0
"""Every vfio-user message that Python answers, declared once: numbers, layouts, values.

The facts are those of QEMU's docs/interop/vfio-user.rst and of linux/vfio.h. The server builds and parses from these
declarations, and so does the client of the tests. Region accesses are here for that client: the server's are C's.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from typing import Any, Generic, TypeVar

from construct import Construct, ConstructError, Int16un, Int32un, Int64un, Struct

from vhost_scsi.errors import VhostScsiError

T = TypeVar("T")

PAGE = 4096
# "all data is in the endianness of the host system"
HEADER = Struct("id" / Int16un, "command" / Int16un, "size" / Int32un, "flags" / Int32un, "error" / Int32un)
HEADER_SIZE: int = HEADER.sizeof()


class Command(IntEnum):
    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class HeaderFlag(IntFlag):
    REPLY = 1
    NO_REPLY = 1 << 4
    ERROR = 1 << 5


class DmaFlag(IntFlag):
    READ = 1
    WRITE = 2


class UnmapFlag(IntFlag):
    # Not in vfio-user.rst: QEMU passes VFIO_DMA_UNMAP_FLAG_ALL of linux/vfio.h on, with address and size 0.
    ALL = 2


class DeviceFlag(IntFlag):
    RESET = 1
    PCI = 2


class RegionFlag(IntFlag):
    READ = 1
    WRITE = 2
    MMAP = 4
    CAPS = 8


class IrqFlag(IntFlag):
    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class IrqSetFlag(IntFlag):
    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    ACTION_MASK = 8
    ACTION_UNMASK = 16
    ACTION_TRIGGER = 32


class Irq(IntEnum):
    """VFIO_PCI_*_IRQ_INDEX."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class RegionIndex(IntEnum):
    """VFIO_PCI_*_REGION_INDEX."""

    BAR0 = 0
    BAR1 = 1
    BAR2 = 2
    BAR3 = 3
    BAR4 = 4
    BAR5 = 5
    ROM = 6
    CONFIG = 7
    VGA = 8


class Refused(VhostScsiError):
    """A message that is answered with an errno. `closes`: the client cannot be followed any further."""

    def __init__(self, code: int, why: str, *, closes: bool = False) -> None:
        super().__init__(f"{why} ({errno.errorcode.get(code, code)})")
        self.code = code
        self.closes = closes


@dataclass(frozen=True, slots=True)
class DmaMap:
    """`offset` in the file whose descriptor came with the message, if one came. All numbers are bytes."""

    argsz: int
    flags: int
    offset: int
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class DmaUnmap:
    argsz: int
    flags: int
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    argsz: int
    flags: int = 0
    num_regions: int = 0
    num_irqs: int = 0


@dataclass(frozen=True, slots=True)
class RegionInfo:
    argsz: int
    flags: int = 0
    index: int = 0
    cap_offset: int = 0
    size: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class IrqInfo:
    argsz: int
    flags: int = 0
    index: int = 0
    count: int = 0


@dataclass(frozen=True, slots=True)
class IrqSet:
    """The fixed part; booleans may follow."""

    argsz: int
    flags: int
    index: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """Data may follow."""

    offset: int
    region: int
    count: int


@dataclass(frozen=True, slots=True)
class DmaAccess:
    """Data may follow."""

    address: int
    count: int


@dataclass(frozen=True, slots=True)
class Payload(Generic[T]):
    """A layout whose fields are those of the dataclass `cls`. `tail`: bytes may follow it."""

    cls: type[T]
    layout: Construct
    tail: bool = False

    @property
    def size(self) -> int:
        return int(self.layout.sizeof())

    def parse(self, data: bytes) -> T:
        """The value in `data`, or Refused."""
        if len(data) < self.size or (len(data) > self.size and not self.tail):
            raise Refused(errno.EINVAL, f"{self.cls.__name__} of {len(data)} bytes, {self.size} are right")
        try:
            wire = self.layout.parse(data)
        except ConstructError as error:
            raise Refused(errno.EINVAL, f"{self.cls.__name__} cannot be read") from error
        return self.cls(**{each.name: wire[each.name] for each in fields(self.cls)})  # type: ignore[arg-type]

    def build(self, value: T) -> bytes:
        values: dict[str, Any] = {each.name: getattr(value, each.name) for each in fields(value)}  # type: ignore[arg-type]
        return bytes(self.layout.build(values))


VERSION = Struct("major" / Int16un, "minor" / Int16un)
DMA_MAP = Payload(
    DmaMap,
    Struct("argsz" / Int32un, "flags" / Int32un, "offset" / Int64un, "address" / Int64un, "size" / Int64un),
)
DMA_UNMAP = Payload(DmaUnmap, Struct("argsz" / Int32un, "flags" / Int32un, "address" / Int64un, "size" / Int64un))
DEVICE_INFO = Payload(
    DeviceInfo, Struct("argsz" / Int32un, "flags" / Int32un, "num_regions" / Int32un, "num_irqs" / Int32un)
)
REGION_INFO = Payload(
    RegionInfo,
    Struct(
        *("argsz" / Int32un, "flags" / Int32un, "index" / Int32un, "cap_offset" / Int32un),
        *("size" / Int64un, "offset" / Int64un),
    ),
)
IRQ_INFO = Payload(IrqInfo, Struct("argsz" / Int32un, "flags" / Int32un, "index" / Int32un, "count" / Int32un))
IRQ_SET = Payload(
    IrqSet,
    Struct("argsz" / Int32un, "flags" / Int32un, "index" / Int32un, "start" / Int32un, "count" / Int32un),
    tail=True,
)
REGION_ACCESS = Payload(RegionAccess, Struct("offset" / Int64un, "region" / Int32un, "count" / Int32un), tail=True)
DMA_ACCESS = Payload(DmaAccess, Struct("address" / Int64un, "count" / Int64un), tail=True)


def command_name(command: int) -> str:
    """The specification's name, or `command n`."""
    return Command(command).name if command in set(Command) else f"command {command}"
