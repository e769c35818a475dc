# SPDX-License-Identifier: Apache-2.0
"""An initiator with header and data digests, which it can get wrong on purpose. The CRC is its own."""

from __future__ import annotations

from tests.iscsi.client import Client, Response, padded
from tests.iscsi.scsi_host import ScsiHost

BOTH = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")]


def _table() -> list[int]:
    rows = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return rows


_TABLE = _table()


def crc32c(data: bytes) -> bytes:
    """As it stands on the wire (RFC 7143 13.1)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "little")


def wrong(digest: bytes) -> bytes:
    return bytes([digest[0] ^ 1]) + digest[1:]


def with_digests(pdu: bytes, *, break_header: bool = False, break_data: bool = False) -> bytes:
    """`pdu` is one, or several, as they are without digests."""
    sent = b""
    while pdu:
        header_length, data_length = 48 + pdu[4] * 4, int.from_bytes(pdu[5:8], "big")
        header, data = pdu[:header_length], padded(pdu[header_length : header_length + data_length])
        pdu = pdu[header_length + len(data) :]
        digest = crc32c(header)
        sent += header + (wrong(digest) if break_header else digest) + data
        if data:
            digest = crc32c(data)
            sent += wrong(digest) if break_data else digest
    return sent


class DigestClient(Client):
    """After login; `switch_on` begins. Both digests of whatever comes are checked."""

    digests = False
    break_header = False
    break_data = False

    def send(self, raw: bytes) -> None:
        if self.digests:
            raw = with_digests(raw, break_header=self.break_header, break_data=self.break_data)
        super().send(raw)

    def receive(self) -> Response:
        if not self.digests:
            return super().receive()
        bhs = self._read(48)
        assert self._read(4) == crc32c(bhs)
        length = int.from_bytes(bhs[5:8], "big")
        if not length:
            return Response(bhs, b"")
        data = self._read(length + -length % 4)
        assert self._read(4) == crc32c(data)
        return Response(bhs, data[:length])


class DigestHost(ScsiHost):
    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, extra=BOTH, client=DigestClient(address))
        assert isinstance(self.client, DigestClient)
        self.digest_client = self.client
        self.client.digests = True
