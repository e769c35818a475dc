# SPDX-License-Identifier: Apache-2.0
"""Many at once over the real data plane: 300 logins, 256 connections that all read and write, 1000 LUNs."""

from __future__ import annotations

import selectors
import socket
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.iscsi import client
from tests.iscsi.client import FULL_FEATURE, OPERATIONAL, Client
from tests.iscsi.libiscsi import tool
from tests.iscsi.scsi_host import ScsiHost, command_pdu
from tests.iscsi.served import Served, served
from tests.live import read10, write10
from vhost_scsi.iscsi import Target
from vhost_scsi.iscsi.data_plane import CoreSession, DataPlane
from vhost_scsi.iscsi.targets import Limits

BYTES, BLOCKS = 4096, 8
DEPTH = 8
DATA_IN = 48 + BYTES  # of a read, with its status
RESPONSE = 48


def isid(number: int) -> bytes:
    return b"\x80" + number.to_bytes(5, "big")


def test_300_logins_at_once_and_a_command_of_each(tmp_path: Path) -> None:
    limits = Limits(sessions=300, connections=300, logins_in_progress=64)
    with served(tmp_path, "memory:16M", limits=limits) as target:
        clients = [Client(target.address, 60) for _ in range(300)]
        for number, each in enumerate(clients):
            each.send(client.login_request(each.names(), isid=isid(number)))
        for number, each in enumerate(clients):
            assert each.receive().status == (0, 0)
            each.send(client.login_request([], isid=isid(number), csg=OPERATIONAL, nsg=FULL_FEATURE))
        for each in clients:
            assert each.receive().status == (0, 0)
            each.send(command_pdu(bytes(6), 1, 100) + command_pdu(read10(0, BLOCKS), 2, 101, in_len=BYTES))
        for each in clients:
            assert [(answer.itt, answer.bhs[3]) for answer in (each.receive(), each.receive())] == [(1, 2), (2, 0)]
        assert len(target.sessions()) == 300
        for each in clients:
            each.close()
        target.live.wait_for(lambda: not target.sessions(), "the end of all sessions", 60)


# ---- 256 connections -----------------------------------------------------------------------------------------------


@dataclass
class Numbers:
    """Of one session: the next CmdSN, which is the task tag too."""

    cmd_sn: int


class Loader:
    """A connection that always has DEPTH commands under way: reads, or writes with immediate data."""

    def __init__(self, host: ScsiHost, numbers: Numbers, *, writes: bool) -> None:
        self.sock: socket.socket = host.client.sock
        self._numbers = numbers
        self._writes = writes
        self._bytes = 0
        self.sent = self.served = 0
        self.last = 0.0
        self.longest = 0.0

    def more(self, count: int) -> None:
        pdus = []
        for _ in range(count):
            number, self._numbers.cmd_sn = self._numbers.cmd_sn, (self._numbers.cmd_sn + 1) & 0xFFFFFFFF
            if self._writes:
                pdus.append(command_pdu(write10(0, BLOCKS), number, number, bytes(BYTES)))
            else:
                pdus.append(command_pdu(read10(0, BLOCKS), number, number, in_len=BYTES))
        self.sock.sendall(b"".join(pdus))
        self.sent += count

    def readable(self) -> int:
        """How many commands ended. What comes has one size, and is not looked into: that would make us the slow one."""
        piece = self.sock.recv(1 << 17)
        assert piece, "the target closed the connection"
        self._bytes += len(piece)
        served = self._bytes // (RESPONSE if self._writes else DATA_IN)
        new, self.served = served - self.served, served
        if new:
            now = time.monotonic()
            self.longest = max(self.longest, now - self.last)
            self.last = now
        return new


def load(loaders: list[Loader], seconds: float) -> None:
    """All at once, for so long; then what is under way ends."""
    selector = selectors.DefaultSelector()
    for each in loaders:
        selector.register(each.sock, selectors.EVENT_READ, each)
        each.last = time.monotonic()
        each.more(DEPTH)
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        for key, _ in selector.select(1):
            each = key.data
            new = each.readable()
            if new:
                each.more(new)
    counted = [each.served for each in loaders]
    while any(each.served < each.sent for each in loaders):
        events = selector.select(30)
        assert events, "what was sent is not answered"
        for key, _ in events:
            key.data.readable()
    for each, count in zip(loaders, counted, strict=True):
        each.served = count


def connected(target: Served, sessions: int, connections: int) -> list[tuple[ScsiHost, Numbers]]:
    made = []
    for number in range(sessions):
        first = target.connect(isid=isid(number), extra=[("MaxConnections", "8"), ("ImmediateData", "Yes")])
        numbers = Numbers(first.client.cmd_sn)
        made.append((first, numbers))
        for cid in range(2, connections + 1):
            made.append((target.connect(isid=isid(number), tsih=first.client.tsih, cid=cid), numbers))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("writes", [False, True], ids=["reads", "writes"])
@pytest.mark.parametrize(("sessions", "connections"), [(256, 1), (32, 8)], ids=["256-sessions", "32-of-8"])
def test_256_connections_with_io_and_none_starves(
    tmp_path: Path, sessions: int, connections: int, writes: bool, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = Limits(sessions=sessions, connections=256)
    with served(tmp_path, "memory:16M", limits=limits, workers=workers) as target:
        hosts = connected(target, sessions, connections)
        target.live.wait_for(lambda: target.node.sessions.connections == 256, "256 connections")
        loaders = [Loader(host, numbers, writes=writes) for host, numbers in hosts]
        load(loaders, 10.0)
        counts = [each.served for each in loaders]
        ratio = max(counts) / max(min(counts), 1)
        # Sessions are dealt out to the workers in turn.
        shares: list[list[int]] = [[] for _ in range(workers)]
        for place, count in enumerate(counts):
            shares[place // connections % workers].append(count)
        silence = max(each.longest for each in loaders)
        kind = "writes" if writes else "reads"
        with capsys.disabled():
            print(
                f"\n256 connections, {sessions} sessions, {workers} workers, {kind} of {BYTES} bytes for 10 s:", end=" "
            )
            print(f"{sum(counts)} served, {min(counts)} to {max(counts)} each (ratio {ratio:.2f},", end=" ")
            print(f"median {statistics.median(counts):.0f}), longest silence {silence:.3f} s")
            for worker, own in enumerate(shares):
                print(f"    worker {worker}: {sum(own)} served, {min(own)} to {max(own)} each")
        # What the kernel gives one worker and not the other, on a machine that has more to do, is no doing of ours.
        for own in shares:
            assert max(own) < 3 * min(own)
        for host, _ in hosts:
            host.client.close()
        target.live.wait_for(lambda: not target.sessions(), "the end of all sessions", 60)


def test_a_thousand_luns_are_published_once() -> None:
    published: list[int] = []
    publish = DataPlane._publish

    async def counting(self: DataPlane, session: CoreSession) -> None:
        published.append(len(session.port.luns))
        await publish(self, session)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DataPlane, "_publish", counting)
        with Target(dict.fromkeys(range(1000), "null:1M")) as target:
            assert "DIRECT_ACCESS" in tool("iscsi-inq", target.url_of(200)).stdout
            target.drop_sessions()
    assert published == [1000, 0]
