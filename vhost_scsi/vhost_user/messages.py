# SPDX-License-Identifier: Apache-2.0
"""Every vhost-user message, declared once: numbers, payload layouts, descriptors and replies.

The facts are those of QEMU's docs/interop/vhost-user.rst. Both sides build and parse from these declarations: the back
end's session, and the front end used by tests and benches. Nothing here reads a socket or keeps state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from typing import Any, Generic, TypeVar

from construct import (
    Array,
    Bytes,
    Construct,
    ConstructError,
    GreedyBytes,
    Int8un,
    Int16un,
    Int32un,
    Int64un,
    Padding,
    Struct,
    this,
)

from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.vhost_user.rules import ProtocolError, Rule

T = TypeVar("T")

MAX_FDS = 8  # "at most 8 descriptors in each message"
MAX_TABLE_REGIONS = 8  # SET_MEM_TABLE: region0 ... region7
# The largest payload any message has (a memory table with the Xen fields: 328, a 256-byte config space: 268) fits many
# times over; what is larger is not vhost-user.
MAX_PAYLOAD = 4096
VERSION = 1
VERSION_MASK = 0x3

# "All numbers are in the machine native byte order."
HEADER = Struct("request" / Int32un, "flags" / Int32un, "size" / Int32un)
HEADER_SIZE: int = HEADER.sizeof()


class HeaderFlag(IntFlag):
    VERSION_1 = 1 << 0
    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


class ProtocolFeature(IntFlag):
    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    SHMEM_MAP = 1 << 22


class Request(IntEnum):
    """What a front end sends."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(IntEnum):
    """What a back end sends over the channel of SET_BACKEND_REQ_FD."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """One shared piece of guest memory; all numbers are bytes. `fd` travels beside the payload, -1 if there is none."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int
    fd: int = -1


@dataclass(frozen=True, slots=True)
class VringState:
    index: int
    num: int


@dataclass(frozen=True, slots=True)
class VringAddr:
    """Where the parts of a split ring are, as user addresses; `log` is a guest address."""

    flags: int
    desc: int
    used: int
    avail: int
    log: int = 0


@dataclass(frozen=True, slots=True)
class IndexedVringAddr:
    index: int
    addr: VringAddr


@dataclass(frozen=True, slots=True)
class LogArea:
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Iotlb:
    iova: int
    size: int
    user_addr: int
    permissions: int
    type: int


@dataclass(frozen=True, slots=True)
class Config:
    offset: int
    size: int
    flags: int
    data: bytes


@dataclass(frozen=True, slots=True)
class VringArea:
    index: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Inflight:
    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int


@dataclass(frozen=True, slots=True)
class DeviceStateTransfer:
    direction: int
    phase: int


@dataclass(frozen=True, slots=True)
class SharedMemoryMap:
    shmid: int
    fd_offset: int
    shm_offset: int
    length: int
    flags: int


@dataclass(frozen=True, slots=True)
class Payload(Generic[T]):
    """A payload layout with the value it stands for. `sizes` None: the layout itself says whether a size is right."""

    name: str
    layout: Construct
    decode: Callable[[Any], T]
    encode: Callable[[T], Any]
    sizes: frozenset[int] | None

    def parse(self, data: bytes) -> T:
        """The value in `data`, or ProtocolError(PAYLOAD_SIZE)."""
        if self.sizes is not None and len(data) not in self.sizes:
            raise ProtocolError(Rule.PAYLOAD_SIZE, f"{self.name} payload of {len(data)} bytes")
        try:
            return self.decode(self.layout.parse(data))
        except ConstructError as error:
            raise ProtocolError(Rule.PAYLOAD_SIZE, f"{self.name} payload of {len(data)} bytes") from error

    def build(self, value: T) -> bytes:
        return bytes(self.layout.build(self.encode(value)))


def _record(name: str, cls: type[T], layout: Construct, sizes: frozenset[int] | None = None) -> Payload[T]:
    """A payload whose layout's field names are those of the dataclass `cls`."""
    names = [field.name for field in fields(cls) if field.name in {part.name for part in layout.subcons}]  # type: ignore[arg-type]

    def decode(container: Any) -> T:
        return cls(**{each: container[each] for each in names})

    def encode(value: T) -> dict[str, Any]:
        return {each: getattr(value, each) for each in names}

    return Payload(name, layout, decode, encode, frozenset((layout.sizeof(),)) if sizes is None else sizes)


def _identity(value: Any) -> Any:
    return value


_REGION_FIELDS = ("guest_addr" / Int64un, "size" / Int64un, "user_addr" / Int64un, "mmap_offset" / Int64un)
_REGION = Struct(*_REGION_FIELDS)
_TABLE = Struct(
    *("count" / Int32un, Padding(4), "regions" / Array(lambda context: _table_count(context.count), _REGION)),
    "unused" / GreedyBytes,
)
_VRING_ADDR = Struct(
    # struct vhost_vring_addr of linux/vhost_types.h: the "size" column of the specification's picture is no field.
    *("index" / Int32un, "flags" / Int32un, "desc" / Int64un),
    *("used" / Int64un, "avail" / Int64un, "log" / Int64un),
)
_CONFIG = Struct("offset" / Int32un, "size" / Int32un, "flags" / Int32un, "data" / Bytes(this.size))


def _table_count(count: int) -> int:
    if count > MAX_TABLE_REGIONS:
        raise ProtocolError(Rule.REGION_COUNT, f"a memory table of {count} regions, {MAX_TABLE_REGIONS} are possible")
    return count


def _decode_table(wire: Any) -> list[MemoryRegion]:
    # Front ends send the regions they have; the picture (region0 ... region7) also allows all eight, the rest unused.
    if len(wire.unused) not in (0, (MAX_TABLE_REGIONS - wire.count) * _REGION.sizeof()):
        raise ProtocolError(Rule.PAYLOAD_SIZE, f"a memory table of {wire.count} regions and {len(wire.unused)} bytes")
    return [_decode_region(each) for each in wire.regions]


def _decode_region(container: Any) -> MemoryRegion:
    return MemoryRegion(container.guest_addr, container.size, container.user_addr, container.mmap_offset)


def _encode_region(region: MemoryRegion) -> dict[str, int]:
    return {name: getattr(region, name) for name in ("guest_addr", "size", "user_addr", "mmap_offset")}


def _decode_vring_addr(wire: Any) -> IndexedVringAddr:
    return IndexedVringAddr(wire.index, VringAddr(wire.flags, wire.desc, wire.used, wire.avail, wire.log))


def _encode_vring_addr(value: IndexedVringAddr) -> dict[str, int]:
    return {"index": value.index, **{each.name: getattr(value.addr, each.name) for each in fields(VringAddr)}}


EMPTY: Payload[None] = Payload("empty", Struct(), lambda _: None, lambda _: {}, frozenset((0,)))
U64: Payload[int] = Payload("u64", Int64un, _identity, _identity, frozenset((8,)))
# The same eight bytes where zero means success, so that a refusal can be said in them.
RESULT: Payload[int] = Payload("result", Int64un, _identity, _identity, frozenset((8,)))
VRING_STATE = _record("vring state", VringState, Struct("index" / Int32un, "num" / Int32un))
VRING_ADDR = Payload(
    "vring address", _VRING_ADDR, _decode_vring_addr, _encode_vring_addr, frozenset((_VRING_ADDR.sizeof(),))
)
MEMORY_TABLE: Payload[list[MemoryRegion]] = Payload(
    "memory table",
    _TABLE,
    _decode_table,
    lambda regions: {"count": len(regions), "regions": [_encode_region(each) for each in regions], "unused": b""},
    frozenset(8 + count * _REGION.sizeof() for count in range(MAX_TABLE_REGIONS + 1)),
)
SINGLE_REGION = _record("memory region", MemoryRegion, Struct(Padding(8), *_REGION_FIELDS))
LOG_AREA = _record("log", LogArea, Struct("size" / Int64un, "offset" / Int64un))
IOTLB = _record(
    "IOTLB",
    Iotlb,
    Struct(
        *("iova" / Int64un, "size" / Int64un, "user_addr" / Int64un),
        *("permissions" / Int8un, "type" / Int8un, Padding(6)),
    ),
)
CONFIG = _record("config", Config, _CONFIG, frozenset(range(12, 12 + 256 + 1)))
VRING_AREA = _record("vring area", VringArea, Struct("index" / Int64un, "size" / Int64un, "offset" / Int64un))
# 20 bytes as specified; QEMU's C structure is padded to 24.
INFLIGHT = _record(
    "inflight",
    Inflight,
    Struct("mmap_size" / Int64un, "mmap_offset" / Int64un, "num_queues" / Int16un, "queue_size" / Int16un),
    frozenset((20, 24)),
)
UUID: Payload[bytes] = Payload("UUID", Bytes(16), bytes, _identity, frozenset((16,)))
DEVICE_STATE = _record("device state", DeviceStateTransfer, Struct("direction" / Int32un, "phase" / Int32un))
SHMEM_MAP = _record(
    "shared memory map",
    SharedMemoryMap,
    Struct(
        *("shmid" / Int8un, Padding(7), "fd_offset" / Int64un, "shm_offset" / Int64un),
        *("length" / Int64un, "flags" / Int64un),
    ),
)
SHMEM_CONFIG: Payload[list[int]] = Payload(
    "shared memory config",
    Struct("count" / Int32un, Padding(4), "sizes" / Array(this.count, Int64un)),
    lambda wire: list(wire.sizes),
    lambda sizes: {"count": len(sizes), "sizes": sizes},
    frozenset(8 + 8 * count for count in range(257)),
)
# Messages of other device types, whose inside is no business of a SCSI device.
OPAQUE: Payload[bytes] = Payload("opaque", GreedyBytes, bytes, _identity, None)


_NOTHING, _NOTHING_VIRTIO = ProtocolFeature(0), Feature(0)


@dataclass(frozen=True, slots=True)
class Message:
    """One row: what a message carries, what answers it, and what must have been negotiated before it is legal."""

    request: IntEnum
    payload: Payload[Any] = EMPTY
    reply: Payload[Any] | None = None  # None: answered only where NEED_REPLY asks (REPLY_ACK)
    min_fds: int = 0
    max_fds: int = 0
    reply_fds: int = 0  # the most that the reply carries
    requires: ProtocolFeature = _NOTHING
    requires_virtio: Feature = _NOTHING_VIRTIO
    # True: it changes memory or rings, so an error that cannot be answered must not be passed over (Closes.UNANSWERED).
    changes_state: bool = False
    error_bits: int = 0  # what an error reply must say beside the error

    def error_reply(self, rule: Rule, ack_wanted: bool) -> bytes | None:
        """The payload that says `rule` was broken, None where the protocol has no place for an answer.

        A reply that has values instead of a result says the error by being empty, as GET_CONFIG's does: the front end
        waits for an answer, and cannot take an empty one for a value.
        """
        if self.reply is RESULT or (self.reply is None and ack_wanted):
            return U64.build(rule | self.error_bits)
        return None if self.reply is None else b""


def _rows(*rows: Message) -> dict[int, Message]:
    return {int(row.request): row for row in rows}


_R, _F = Request, ProtocolFeature

# GET_QUEUE_NUM, SET_BACKEND_REQ_FD and RESET_DEVICE need their feature bit in what we offer, not in what was accepted,
# and we offer it; so they have no `requires`.
MESSAGES: dict[int, Message] = _rows(
    Message(_R.GET_FEATURES, reply=U64),
    Message(_R.SET_FEATURES, U64, changes_state=True),
    Message(_R.SET_OWNER),
    Message(_R.RESET_OWNER),
    Message(_R.SET_MEM_TABLE, MEMORY_TABLE, max_fds=MAX_TABLE_REGIONS, changes_state=True),
    # Answered (by an empty reply) only with LOG_SHMFD; without it the payload was one u64 and nothing answered.
    Message(_R.SET_LOG_BASE, LOG_AREA, reply=EMPTY, max_fds=1, requires=_F.LOG_SHMFD),
    Message(_R.SET_LOG_FD, min_fds=1, max_fds=1, requires=_F.LOG_SHMFD),
    Message(_R.SET_VRING_NUM, VRING_STATE, changes_state=True),
    Message(_R.SET_VRING_ADDR, VRING_ADDR, changes_state=True),
    Message(_R.SET_VRING_BASE, VRING_STATE, changes_state=True),
    Message(_R.GET_VRING_BASE, VRING_STATE, reply=VRING_STATE, changes_state=True),
    Message(_R.SET_VRING_KICK, U64, max_fds=1, changes_state=True),
    Message(_R.SET_VRING_CALL, U64, max_fds=1, changes_state=True),
    Message(_R.SET_VRING_ERR, U64, max_fds=1),
    Message(_R.GET_PROTOCOL_FEATURES, reply=U64),
    Message(_R.SET_PROTOCOL_FEATURES, U64, changes_state=True),
    Message(_R.GET_QUEUE_NUM, reply=U64),
    Message(_R.SET_VRING_ENABLE, VRING_STATE, requires_virtio=Feature.VHOST_USER_PROTOCOL_FEATURES, changes_state=True),
    Message(_R.SEND_RARP, U64, requires=_F.RARP),
    Message(_R.NET_SET_MTU, U64, requires=_F.MTU),
    Message(_R.SET_BACKEND_REQ_FD, min_fds=1, max_fds=1),
    Message(_R.IOTLB_MSG, IOTLB, reply=RESULT, requires_virtio=Feature.ACCESS_PLATFORM, changes_state=True),
    Message(_R.SET_VRING_ENDIAN, VRING_STATE, requires=_F.CROSS_ENDIAN, changes_state=True),
    Message(_R.GET_CONFIG, CONFIG, reply=CONFIG, requires=_F.CONFIG),
    Message(_R.SET_CONFIG, CONFIG, requires=_F.CONFIG),
    Message(_R.CREATE_CRYPTO_SESSION, OPAQUE, reply=OPAQUE, requires=_F.CRYPTO_SESSION),
    Message(_R.CLOSE_CRYPTO_SESSION, U64, requires=_F.CRYPTO_SESSION),
    Message(_R.POSTCOPY_ADVISE, reply=EMPTY, reply_fds=1, requires=_F.PAGEFAULT),
    Message(_R.POSTCOPY_LISTEN, requires=_F.PAGEFAULT),
    Message(_R.POSTCOPY_END, reply=RESULT, requires=_F.PAGEFAULT),
    Message(_R.GET_INFLIGHT_FD, INFLIGHT, reply=INFLIGHT, reply_fds=1, requires=_F.INFLIGHT_SHMFD),
    Message(_R.SET_INFLIGHT_FD, INFLIGHT, min_fds=1, max_fds=1, requires=_F.INFLIGHT_SHMFD, changes_state=True),
    Message(_R.GPU_SET_SOCKET, min_fds=1, max_fds=1),
    Message(_R.RESET_DEVICE, changes_state=True),
    Message(_R.VRING_KICK, VRING_STATE, requires=_F.INBAND_NOTIFICATIONS),
    Message(_R.GET_MAX_MEM_SLOTS, reply=U64, requires=_F.CONFIGURE_MEM_SLOTS),
    Message(_R.ADD_MEM_REG, SINGLE_REGION, min_fds=1, max_fds=1, requires=_F.CONFIGURE_MEM_SLOTS, changes_state=True),
    # "the back-end MAY accept messages with one file descriptor [...] MUST close it without using it otherwise"
    Message(_R.REM_MEM_REG, SINGLE_REGION, max_fds=1, requires=_F.CONFIGURE_MEM_SLOTS, changes_state=True),
    Message(_R.SET_STATUS, U64, requires=_F.STATUS),
    Message(_R.GET_STATUS, reply=U64, requires=_F.STATUS),
    Message(_R.GET_SHARED_OBJECT, UUID, reply=EMPTY, reply_fds=1, requires=_F.SHARED_OBJECT),
    Message(
        _R.SET_DEVICE_STATE_FD,
        DEVICE_STATE,
        reply=RESULT,
        min_fds=1,
        max_fds=1,
        reply_fds=1,
        requires=_F.DEVICE_STATE,
        error_bits=1 << 8,  # bits 0-7 are the error, bit 8 says that no descriptor comes back
    ),
    Message(_R.CHECK_DEVICE_STATE, reply=RESULT, requires=_F.DEVICE_STATE),
    Message(_R.GET_SHMEM_CONFIG, reply=SHMEM_CONFIG, requires=_F.SHMEM_MAP),
)

_B = BackendRequest

BACKEND_MESSAGES: dict[int, Message] = _rows(
    Message(_B.IOTLB_MSG, IOTLB, requires_virtio=Feature.ACCESS_PLATFORM),
    Message(_B.CONFIG_CHANGE_MSG, requires=_F.CONFIG),
    Message(_B.VRING_HOST_NOTIFIER_MSG, VRING_AREA, max_fds=1, requires=_F.HOST_NOTIFIER),
    Message(_B.VRING_CALL, VRING_STATE, requires=_F.INBAND_NOTIFICATIONS),
    Message(_B.VRING_ERR, VRING_STATE, requires=_F.INBAND_NOTIFICATIONS),
    Message(_B.SHARED_OBJECT_ADD, UUID, requires=_F.SHARED_OBJECT),
    Message(_B.SHARED_OBJECT_REMOVE, UUID, requires=_F.SHARED_OBJECT),
    Message(_B.SHARED_OBJECT_LOOKUP, UUID, reply=RESULT, reply_fds=1, requires=_F.SHARED_OBJECT),
    Message(_B.SHMEM_MAP, SHMEM_MAP, max_fds=1, requires=_F.SHMEM_MAP),
    Message(_B.SHMEM_UNMAP, SHMEM_MAP, requires=_F.SHMEM_MAP),
)

# SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR: bits 0-7 the ring, bit 8 "there is no descriptor", the rest reserved.
VRING_INDEX_MASK = 0xFF
VRING_NOFD = 1 << 8


def pack_header(request: int, flags: int, size: int) -> bytes:
    return bytes(HEADER.build({"request": request, "flags": flags, "size": size}))


def request_name(request: int) -> str:
    """The specification's name of a front end's request, or `request n`."""
    row = MESSAGES.get(request)
    return row.request.name if row is not None else f"request {request}"


def protocol_feature_names(bits: int) -> list[str]:
    return [
        ProtocolFeature(1 << number).name or f"BIT_{number}"
        for number in range(bits.bit_length())
        if bits >> number & 1
    ]
