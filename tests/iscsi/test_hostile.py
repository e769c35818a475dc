# SPDX-License-Identifier: Apache-2.0
"""What no initiator does, to the real data plane: digests wrong at each place, connections that end at each byte of a
PDU, PDUs out of order and twice, half a PDU and then nothing. Others notice nothing of it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.iscsi.client import NO_TAG, REJECT
from tests.iscsi.digests import DigestHost, crc32c
from tests.iscsi.scsi_host import SCSI_RESPONSE, ScsiHost, command_pdu
from tests.iscsi.served import Served, served
from tests.live import TEST_UNIT_READY, read10, write10

BLOCK = 512
A, B = b"\xaa" * BLOCK, b"\xbb" * BLOCK
R2T, NOP_IN = 0x31, 0x20
DATA_DIGEST_ERROR = 0x02
OTHER_ISID = b"\x80\0\0\0\0\2"


@pytest.fixture(params=["io_uring", "epoll"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, "memory:16M", engine=request.param) as running:
        yield running


def data_out(itt: int, ttt: int, data: bytes, offset: int = 0, data_sn: int = 0, *, final: bool = True) -> bytes:
    head = bytes([0x05, 0x80 if final else 0, 0, 0, 0]) + len(data).to_bytes(3, "big") + bytes(8)
    return head + struct.pack(">IIIIIII", itt, ttt, 0, 0, 0, data_sn, offset) + bytes(4) + data


def ping(itt: int, cmd_sn: int, data: bytes = b"ping", *, immediate: bool = True) -> bytes:
    head = bytes([0x40 if immediate else 0, 0x80, 0, 0, 0]) + len(data).to_bytes(3, "big") + bytes(8)
    return head + struct.pack(">IIII", itt, NO_TAG, cmd_sn, 0) + bytes(16) + data


def text(itt: int, cmd_sn: int, data: bytes = b"X-a=1\0\0\0") -> bytes:
    head = bytes([0x44, 0x80, 0, 0, 0]) + len(data).to_bytes(3, "big") + bytes(8)
    return head + struct.pack(">IIII", itt, NO_TAG, cmd_sn, 0) + bytes(16) + data


# ---- digests -------------------------------------------------------------------------------------------------------


def test_the_crc_is_the_one_of_the_rfc() -> None:
    assert crc32c(bytes(32)).hex() == "aa36918a"
    assert crc32c(bytes(range(32))).hex() == "4e79dd46"


def test_digests_both_ways(target: Served) -> None:
    with DigestHost(target.address) as host:
        host.ready()
        host.ok(write10(1, 1), A)
        assert host.ok(read10(1, 1), in_len=BLOCK) == A
        host.client.send(ping(9, host.client.cmd_sn, b"12345"[:5].ljust(8, b"\0")))
        assert host.client.receive().itt == 9


@pytest.mark.parametrize("place", ["command", "immediate data", "data-out", "ping", "text"])
def test_a_wrong_header_digest_ends_the_connection_and_nothing_else(target: Served, place: str) -> None:
    with target.connect(isid=OTHER_ISID) as other, DigestHost(target.address) as host:
        host.ready()
        number, client = host.client.cmd_sn, host.digest_client
        if place == "data-out":
            client.send(command_pdu(write10(1, 1), 7, number, out_len=BLOCK))
            r2t = client.receive()
            assert r2t.opcode == R2T
        client.break_header = True
        client.send(
            {
                "command": lambda: command_pdu(TEST_UNIT_READY, 7, number),
                "immediate data": lambda: command_pdu(write10(1, 1), 7, number, A),
                "data-out": lambda: data_out(7, r2t.ttt, A),
                "ping": lambda: ping(7, number),
                "text": lambda: text(7, number),
            }[place]()
        )
        assert client.closed()
        target.wait_for_sessions(1)
        assert other.ok(read10(1, 1), in_len=BLOCK) == bytes(BLOCK)
        assert any("header digest error" in str(each) for each in target.live.run(target.node.refused.all))


@pytest.mark.parametrize("place", ["immediate data", "data-out", "ping", "text"])
def test_a_wrong_data_digest_costs_the_pdu_and_its_command(target: Served, place: str) -> None:
    with DigestHost(target.address) as host:
        host.ready()
        number, client = host.client.cmd_sn, host.digest_client
        if place == "data-out":
            client.send(command_pdu(write10(1, 1), 7, number, out_len=BLOCK))
            r2t = client.receive()
            assert r2t.opcode == R2T
        client.break_data = True
        client.send(
            {
                "immediate data": lambda: command_pdu(write10(1, 1), 7, number, A),
                "data-out": lambda: data_out(7, r2t.ttt, A),
                "ping": lambda: ping(7, number),
                "text": lambda: text(7, number),
            }[place]()
        )
        client.break_data = False
        answer = client.receive()
        assert (answer.opcode, answer.bhs[2], len(answer.data)) == (REJECT, DATA_DIGEST_ERROR, 48)
        if place in ("immediate data", "data-out"):
            answer = client.receive()
            assert (answer.opcode, answer.itt, answer.bhs[3]) == (SCSI_RESPONSE, 7, 2)
            told = answer.data[2:]
            assert (told[2], told[12:14]) == (0x0B, b"\x47\x05"), "PROTOCOL SERVICE CRC ERROR, 11.4.7.2"
            client.cmd_sn += 1
        assert host.ok(read10(1, 1), in_len=BLOCK) == bytes(BLOCK)
        host.ok(write10(1, 1), B)
        assert host.ok(read10(1, 1), in_len=BLOCK) == B


# ---- connections that end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_connection_that_ends_at_each_byte(target: Served, how: str) -> None:
    """Of a write with immediate data, and of data-out that was asked for."""
    with target.connect(isid=OTHER_ISID) as other:
        whole = command_pdu(write10(1, 2), 7, 100, A, out_len=2 * BLOCK)
        # Every byte of the headers, and some of the data.
        lengths = [*range(50), 300, 48 + BLOCK - 1, 48 + BLOCK]
        for length in lengths:
            host = ScsiHost(target.address)
            host.client.send(whole[:length])
            if how == "reset":
                host.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            host.client.close()
        for length in range(0, 49, 3):
            with target.connect() as host:
                number = host.client.cmd_sn
                host.client.send(command_pdu(write10(1, 1), 7, number, out_len=BLOCK))
                r2t = host.client.receive()
                host.client.send(data_out(7, r2t.ttt, A)[:length] if length < 48 else data_out(7, r2t.ttt, A)[:-1])
        target.wait_for_sessions(1)
        assert target.live.in_flight() == 0
        other.ok(TEST_UNIT_READY)


def test_half_a_pdu_and_then_nothing_keeps_nobody_waiting(target: Served) -> None:
    slow = [target.connect(isid=b"\x80\0\0\0\1" + bytes([number])) for number in range(8)]
    for number, host in enumerate(slow):
        host.client.send(command_pdu(write10(1, 1), 7, host.client.cmd_sn, A)[: 1 + number * 60])
    with target.connect(isid=OTHER_ISID) as other:
        for _ in range(20):
            other.ok(write10(1, 1), B)
        assert other.ok(read10(1, 1), in_len=BLOCK) == B
    for number, host in enumerate(slow):
        # The rest may come byte by byte.
        for byte in command_pdu(write10(2, 1), 7, host.client.cmd_sn, A)[1 + number * 60 :]:
            host.client.send(bytes([byte]))
        assert host.client.receive().itt == 7
        host.client.close()


# ---- order ---------------------------------------------------------------------------------------------------------


def test_commands_in_another_order_are_carried_out_in_theirs(target: Served) -> None:
    with target.connect() as host:
        number = host.client.cmd_sn
        pdus = [command_pdu(write10(1, 1), 0x100 + n, number + n, bytes([n]) * BLOCK) for n in range(8)]
        for place in (7, 3, 5, 1, 6, 2, 4):
            host.client.send(pdus[place])
        host.client.send(ping(0x99, number))
        assert host.client.receive().opcode == NOP_IN, "nothing runs before the first"
        host.client.send(pdus[0])
        assert [host.client.receive().itt for _ in range(8)] == [0x100 + n for n in range(8)]
        host.client.cmd_sn += 8
        assert host.ok(read10(1, 1), in_len=BLOCK) == bytes([7]) * BLOCK


def test_what_comes_twice_or_outside_the_window_is_dropped_in_silence(target: Served) -> None:
    with target.connect() as host:
        number = host.client.cmd_sn
        once = command_pdu(write10(1, 1), 0x100, number, A)
        host.client.send(once)
        assert host.client.receive().itt == 0x100
        host.client.send(once)
        host.client.send(command_pdu(write10(1, 1), 0x101, number + 1 + 128, B))
        host.client.send(command_pdu(write10(1, 1), 0x102, (number + (1 << 31)) & NO_TAG, B))
        host.client.send(ping(0x98, number - 5, immediate=False))
        # The same number twice while it waits: the first counts.
        host.client.send(command_pdu(write10(2, 1), 0x103, number + 2, A))
        host.client.send(command_pdu(write10(2, 1), 0x104, number + 2, B))
        host.client.send(command_pdu(TEST_UNIT_READY, 0x105, number + 1))
        assert [host.client.receive().itt for _ in range(2)] == [0x105, 0x103]
        host.client.cmd_sn = number + 3
        assert host.ok(read10(1, 2), in_len=2 * BLOCK) == A + A


@pytest.mark.parametrize(
    ("offset", "data_sn", "length", "ends"),
    [(0, 1, BLOCK, False), (BLOCK, 0, BLOCK, False), (0, 0, 3 * BLOCK, True), (0, 0, BLOCK - 4, True)],
)
def test_data_out_of_sequence_ends_its_command_and_too_much_the_connection(
    target: Served, offset: int, data_sn: int, length: int, ends: bool
) -> None:
    with target.connect() as host:
        host.client.send(command_pdu(write10(1, 2), 7, host.client.cmd_sn, out_len=2 * BLOCK))
        host.client.cmd_sn += 1
        r2t = host.client.receive()
        assert r2t.opcode == R2T
        host.client.send(data_out(7, r2t.ttt, bytes(length), offset, data_sn))
        if ends:
            assert host.client.closed()
            target.wait_for_sessions(0)
        else:
            answer = host.client.receive()
            assert (answer.opcode, answer.itt, answer.bhs[3]) == (SCSI_RESPONSE, 7, 2)
            assert host.ok(read10(1, 2), in_len=2 * BLOCK) == bytes(2 * BLOCK)


@pytest.mark.parametrize(("itt", "ttt"), [(8, None), (7, 0xFFFFFF), (7, 0), (NO_TAG, NO_TAG)])
def test_data_of_nobody_hurts_nobody(target: Served, itt: int, ttt: int | None) -> None:
    with target.connect(isid=OTHER_ISID) as other, target.connect() as host:
        host.client.send(command_pdu(write10(1, 1), 7, host.client.cmd_sn, out_len=BLOCK))
        r2t = host.client.receive()
        host.client.send(data_out(itt, r2t.ttt if ttt is None else ttt, B))
        host.client.close()
        target.wait_for_sessions(1)
        assert other.ok(read10(1, 1), in_len=BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("length", [262145, 0xFFFFFF])
def test_a_data_segment_beyond_what_was_declared_ends_the_connection(target: Served, length: int) -> None:
    with target.connect() as host:
        pdu = bytearray(command_pdu(write10(1, 1), 7, host.client.cmd_sn, A, out_len=0xFFFFFF))
        pdu[5:8] = length.to_bytes(3, "big")
        host.client.send(bytes(pdu))
        assert host.client.closed()
    target.wait_for_sessions(0)
