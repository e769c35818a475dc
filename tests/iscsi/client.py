# SPDX-License-Identifier: Apache-2.0
"""A small iSCSI initiator for tests, written from RFC 7143 with struct and nothing of the target's own code, so that a
mistake of ours cannot hide behind itself. It sends whatever it is told to, right or wrong.

`Client` has a blocking socket; the functions beside it build and take apart PDUs for tests without one.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from dataclasses import dataclass
from typing import Any

LOGIN_REQUEST, TEXT_REQUEST, LOGOUT_REQUEST, NOP_OUT, TASK_MANAGEMENT, SNACK = 0x03, 0x04, 0x06, 0x00, 0x02, 0x10
LOGIN_RESPONSE, TEXT_RESPONSE, LOGOUT_RESPONSE, NOP_IN, TASK_RESPONSE = 0x23, 0x24, 0x26, 0x20, 0x22
ASYNC_MESSAGE, REJECT = 0x32, 0x3F
SECURITY, OPERATIONAL, FULL_FEATURE = 0, 1, 3
NO_TAG = 0xFFFFFFFF

INITIATOR = "iqn.2024-01.org.example:initiator"
TARGET = "iqn.2024-01.org.example:disk"

Pairs = list[tuple[str, str]]


def text(pairs: Pairs) -> bytes:
    return b"".join(key.encode() + b"=" + value.encode() + b"\0" for key, value in pairs)


def login_bhs(
    length: int,
    *,
    opcode: int = 0x43,
    transit: bool = True,
    more: bool = False,
    csg: int = SECURITY,
    nsg: int = OPERATIONAL,
    version_max: int = 0,
    version_min: int = 0,
    ahs_words: int = 0,
    isid: bytes = b"\x80\x12\x34\x56\x00\x01",
    tsih: int = 0,
    itt: int = 0x11,
    cid: int = 1,
    cmd_sn: int = 100,
    exp_stat_sn: int = 0,
) -> bytes:
    flags = (0x80 if transit else 0) | (0x40 if more else 0) | csg << 2 | nsg
    head = struct.pack(">BBBBB", opcode, flags, version_max, version_min, ahs_words) + length.to_bytes(3, "big")
    head += isid + struct.pack(">HIHHII", tsih, itt, cid, 0, cmd_sn, exp_stat_sn)
    return head + bytes(16)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def login_request(pairs: Pairs | bytes, **fields: Any) -> bytes:
    data = pairs if isinstance(pairs, bytes) else text(pairs)
    return login_bhs(len(data), **fields) + padded(data)


@dataclass
class Response:
    """Any PDU of the target; `flags` and what follows as they stand in the header."""

    bhs: bytes
    data: bytes

    @property
    def opcode(self) -> int:
        return self.bhs[0] & 0x3F

    @property
    def flags(self) -> int:
        return self.bhs[1]

    @property
    def transit(self) -> bool:
        return bool(self.flags & 0x80)

    final = transit

    @property
    def more(self) -> bool:
        return bool(self.flags & 0x40)

    @property
    def csg(self) -> int:
        return self.flags >> 2 & 3

    @property
    def nsg(self) -> int:
        return self.flags & 3

    @property
    def tsih(self) -> int:
        return int.from_bytes(self.bhs[14:16], "big")

    @property
    def itt(self) -> int:
        return int.from_bytes(self.bhs[16:20], "big")

    @property
    def ttt(self) -> int:
        return int.from_bytes(self.bhs[20:24], "big")

    @property
    def stat_sn(self) -> int:
        return int.from_bytes(self.bhs[24:28], "big")

    @property
    def exp_cmd_sn(self) -> int:
        return int.from_bytes(self.bhs[28:32], "big")

    @property
    def max_cmd_sn(self) -> int:
        return int.from_bytes(self.bhs[32:36], "big")

    @property
    def status(self) -> tuple[int, int]:
        return self.bhs[36], self.bhs[37]

    @property
    def pairs(self) -> Pairs:
        items = self.data.split(b"\0")
        assert items[-1] == b"", "text without its zero byte"
        found = []
        for item in items[:-1]:
            key, equals, value = item.decode().partition("=")
            assert equals, f"no equals sign in {item!r}"
            found.append((key, value))
        return found

    @property
    def keys(self) -> dict[str, str]:
        return dict(self.pairs)


def split(raw: bytes) -> Response:
    """One PDU without digests, which must be whole."""
    assert len(raw) >= 48
    length = int.from_bytes(raw[5:8], "big")
    assert raw[4] == 0
    assert len(raw) == 48 + length + -length % 4
    return Response(raw[:48], raw[48 : 48 + length])


def chap_response(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    function = {5: hashlib.md5, 6: hashlib.sha1, 7: hashlib.sha256, 8: hashlib.sha3_256}[algorithm]
    return function(bytes([identifier]) + secret + challenge).digest()


class Client:
    """One connection. `login` does what an ordinary initiator does; everything else is sent as told."""

    def __init__(self, address: tuple[str, int], timeout: float = 20.0, source: str = "") -> None:
        self.sock = socket.create_connection(address, timeout, (source, 0) if source else None)
        self.tsih = 0
        self.cmd_sn = 100

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, raw: bytes) -> None:
        self.sock.sendall(raw)

    def _read(self, length: int) -> bytes:
        got = b""
        while len(got) < length:
            piece = self.sock.recv(length - len(got))
            if not piece:
                raise EOFError(f"the target closed the connection after {len(got)} of {length} bytes")
            got += piece
        return got

    def receive(self) -> Response:
        bhs = self._read(48)
        length = int.from_bytes(bhs[5:8], "big")
        return Response(bhs, self._read(length + -length % 4)[:length])

    def closed(self) -> bool:
        """Waits for the target to close; False if it sends something instead."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def exchange(self, pairs: Pairs | bytes, **fields: Any) -> Response:
        self.send(login_request(pairs, **fields))
        return self.receive()

    def names(self, target: str | None = TARGET, initiator: str = INITIATOR) -> Pairs:
        if target is None:
            return [("InitiatorName", initiator), ("SessionType", "Discovery")]
        return [("InitiatorName", initiator), ("TargetName", target), ("SessionType", "Normal")]

    def login(
        self, target: str | None = TARGET, initiator: str = INITIATOR, extra: Pairs | None = None, **fields: Any
    ) -> Response:
        """Without authentication, to the end; the last response, whatever it says."""
        first = self.exchange([*self.names(target, initiator), ("AuthMethod", "None")], **fields)
        if first.status != (0, 0):
            return first
        last = self.exchange(extra or [], **fields, csg=OPERATIONAL, nsg=FULL_FEATURE)
        self.tsih = last.tsih
        return last

    def chap(
        self,
        name: str,
        secret: bytes,
        algorithms: str = "8,7,6,5",
        target: str | None = TARGET,
        mutual: tuple[int, bytes] | None = None,
        **fields: Any,
    ) -> Response:
        """The security stage with CHAP; the response that ends it, or refuses it."""
        answer = self.exchange([*self.names(target), ("AuthMethod", "CHAP,None")], transit=True, **fields)
        if answer.status != (0, 0) or answer.keys.get("AuthMethod") != "CHAP":
            return answer
        assert not answer.transit
        answer = self.exchange([("CHAP_A", algorithms)], transit=False, **fields)
        if answer.status != (0, 0):
            return answer
        keys = answer.keys
        challenge = bytes.fromhex(keys["CHAP_C"][2:])
        response = chap_response(int(keys["CHAP_A"]), int(keys["CHAP_I"]), secret, challenge)
        pairs = [("CHAP_N", name), ("CHAP_R", "0x" + response.hex())]
        if mutual is not None:
            pairs += [("CHAP_I", str(mutual[0])), ("CHAP_C", "0x" + mutual[1].hex())]
        return self.exchange(pairs, transit=True, **fields)

    # ---- full-feature phase ----------------------------------------------------------------------------------------

    def request(self, opcode: int, flags: int, specific: bytes, data: bytes = b"", *, itt: int = 0x77) -> None:
        """`specific` are bytes 20 to 23."""
        head = struct.pack(">BBHB", opcode, flags, 0, 0) + len(data).to_bytes(3, "big") + bytes(8)
        head += struct.pack(">I", itt) + specific + struct.pack(">II", self.cmd_sn, 0) + bytes(16)
        self.send(head + padded(data))
        if not opcode & 0x40:
            self.cmd_sn += 1

    def text_request(
        self, pairs: Pairs | bytes, *, final: bool = True, more: bool = False, ttt: int = NO_TAG, itt: int = 0x77
    ) -> Response:
        data = pairs if isinstance(pairs, bytes) else text(pairs)
        flags = (0x80 if final else 0) | (0x40 if more else 0)
        self.request(TEXT_REQUEST, flags, struct.pack(">I", ttt), data, itt=itt)
        return self.receive()

    def send_targets(self, wanted: str) -> Pairs:
        """All pieces of the answer."""
        answer = self.text_request([("SendTargets", wanted)])
        data = answer.data
        while answer.more:
            answer = self.text_request(b"", ttt=answer.ttt)
            data += answer.data
        return Response(answer.bhs, data).pairs

    def logout(self, reason: int = 0, cid: int = 1) -> Response:
        self.request(LOGOUT_REQUEST, 0x80 | reason, struct.pack(">HH", cid, 0), itt=0x99)
        return self.receive()
