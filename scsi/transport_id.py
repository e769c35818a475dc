# SPDX-License-Identifier: Apache-2.0
"""TransportIDs (SPC-5 7.6.4): the names of initiator ports, as reservations know them.

iSCSI ports are named as they name themselves. A virtio or emulated adapter has no protocol of its own in SPC's list; it
is named like a SAS port, by a 64-bit address that is configured or made from the port's name.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Final

from construct import Bytes, Const, ConstructError, GreedyBytes, Int16ub, Padding, Prefixed, Struct


class Protocol(IntEnum):
    """SPC-5 7.6.1, PROTOCOL IDENTIFIER; those that our ports have."""

    ISCSI = 0x5
    SAS = 0x6


FORMAT: Final = 0xC0
PROTOCOL: Final = 0x0F
WITH_ISID: Final = 0x40
"""TPID FORMAT 01b: an initiator port, name and ISID; 00b is the initiator device with all its ports"""
SEPARATOR: Final = b",i,0x"

# SPC-5 7.6.4.6
ISCSI: Final = Struct("head" / Bytes(1), Padding(1), "name" / Prefixed(Int16ub, GreedyBytes))
# SPC-5 7.6.4.7
SAS: Final = Struct("head" / Const(bytes([Protocol.SAS])), Padding(3), "address" / Bytes(8), Padding(12))
SAS_BYTES: Final = 24
ISCSI_MIN, ISCSI_MAX = 24, 4 + 244
"""bytes of the whole; a name has at most 223, and a port's ISID 18 more"""


class BadTransportId(ValueError):
    """`at` is the first byte that is wrong."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(why)
        self.at = at


def iscsi(name: str, isid: int | None) -> bytes:
    """An initiator port; without `isid` the device with all its ports. Names are compared in lower case (RFC 7143)."""
    text = name.lower().encode()
    if isid is not None:
        text += SEPARATOR + f"{isid:012x}".encode()
    # NUL-terminated, padded to four bytes, and at least 20 of them.
    text += b"\0"
    text = text.ljust(max(20, (len(text) + 3) & ~3), b"\0")
    built: bytes = ISCSI.build({"head": bytes([Protocol.ISCSI | (0 if isid is None else WITH_ISID)]), "name": text})
    return built


def sas(address: int) -> bytes:
    built: bytes = SAS.build({"address": address.to_bytes(8, "big")})
    return built


def made_up_address(name: str) -> int:
    """NAA 3h, locally assigned, and 60 bits of a digest: the same for a name in every process."""
    return 3 << 60 | int.from_bytes(hashlib.sha256(b"initiator port " + name.encode()).digest()[:8]) >> 4


def protocol_of(transport_id: bytes) -> int:
    return transport_id[0] & PROTOCOL if transport_id else Protocol.SAS


def is_device(transport_id: bytes) -> bool:
    """An iSCSI initiator device, which stands for all of its ports."""
    return protocol_of(transport_id) == Protocol.ISCSI and not transport_id[0] & FORMAT


def of_device(transport_id: bytes) -> bytes:
    """The device of an iSCSI port; anything else is its own."""
    if protocol_of(transport_id) != Protocol.ISCSI or is_device(transport_id):
        return transport_id
    return iscsi(_text(ISCSI.parse(transport_id).name).split(SEPARATOR)[0].decode(), None)


def take(data: bytes) -> tuple[bytes, int]:
    """The TransportID that `data` begins with, in the one way in which we write it, and its length there. Raises
    BadTransportId."""
    if not data:
        raise BadTransportId(0, "there is none")
    protocol = data[0] & PROTOCOL
    if protocol == Protocol.SAS:
        if data[0] & FORMAT:
            raise BadTransportId(0, "SAS has format 00b only")
        if len(data) < SAS_BYTES:
            raise BadTransportId(len(data), "it is too short")
        return sas(int.from_bytes(SAS.parse(data[:SAS_BYTES]).address)), SAS_BYTES
    if protocol == Protocol.ISCSI:
        return _take_iscsi(data)
    raise BadTransportId(0, f"no port of ours has protocol {protocol:#x}")


def _take_iscsi(data: bytes) -> tuple[bytes, int]:
    try:
        parsed = ISCSI.parse(data)
    except ConstructError:
        raise BadTransportId(len(data), "it is too short") from None
    length = 4 + len(parsed.name)
    if length % 4 or not ISCSI_MIN <= length <= ISCSI_MAX:
        raise BadTransportId(2, "ADDITIONAL LENGTH is wrong")
    text = _text(parsed.name)
    if not text or len(text) == len(parsed.name):
        raise BadTransportId(4, "the name is empty or not terminated")
    try:
        name = text.decode("utf-8")
    except UnicodeDecodeError:
        raise BadTransportId(4, "the name is no UTF-8") from None
    kind = data[0] & FORMAT
    if kind not in (0, WITH_ISID):
        raise BadTransportId(0, "TPID FORMAT is 00b or 01b")
    if not kind:
        return iscsi(name, None), length
    device, separator, isid = name.rpartition(SEPARATOR.decode())
    if not separator or not device or len(isid) != 12 or set(isid.lower()) - set("0123456789abcdef"):
        raise BadTransportId(4, "a port's name ends in ,i,0x and twelve digits")
    return iscsi(device, int(isid, 16)), length


def _text(padded: bytes) -> bytes:
    return padded.split(b"\0", 1)[0]
