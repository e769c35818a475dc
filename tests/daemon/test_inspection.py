# SPDX-License-Identifier: Apache-2.0
"""Looking into queues and requests of a live back end: what is seen, that nothing is changed by looking, and what is
named as wrong. The back end and its initiator are real, and the initiator breaks what has to be broken."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.live import End, Host, Live, read10, write10
from vhost_scsi.daemon.dump import parse_dump
from vhost_scsi.daemon.inspection import Inspection
from vhost_scsi.daemon.queues import task_row
from vhost_scsi.daemon.rpc import RpcError
from vhost_scsi.daemon.service import Serving
from vhost_scsi.daemon.stall import StallWatchdog
from vhost_scsi.dataplane import TaskSnapshot
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.vhost_user.queue_details import latency_below, latency_limit, pending_signals
from vhost_scsi.virtqueue.layout import DescFlag

QUEUE = 2
SLOW = "delay(write=60s):memory:16M"


class Seen:
    """A back end with one queue, an initiator, and what the daemon would answer."""

    def __init__(self, live: Live) -> None:
        self.live = live
        unit, slow = live.unit(), live.unit(SLOW, "slow")
        self.end: End = live.end((0, 0, unit), (0, 1, slow), request_queues=1)
        self.serving = Serving("port", self.end.path, 1, self.end.port, self.end.device, self.end.server)
        service: Any = SimpleNamespace(ports={"port": self.serving}, core=live.core, config=SimpleNamespace(name="d"))
        self.inspection = Inspection(service)
        self.host: Host = self.end.connect()
        self.host.ready((0, 0), (0, 1))
        self.queue = self.host.driver.requests[0].queue
        self.memory = self.host.initiator.memory

    def asleep(self) -> None:
        """Until the worker takes nothing any more without being kicked."""
        self.live.wait_for(lambda: bool(self.live.core.worker_stats(0).sleeping), "the worker's sleep")

    def post_silently(self, cdb: bytes = read10(0, 1), in_len: int = 512) -> int:
        """Posts a request that the device is not told of."""
        self.asleep()
        tag = self.host.send(cdb, in_len=in_len, publish=False)
        self.queue.publish()
        return tag

    def kick(self) -> None:
        self.host.driver.requests[0].notify()

    def check(self) -> dict[str, dict[str, Any]]:
        answer = self.live.call(self.inspection.queue_check(QUEUE, settle_ms=20))
        return {finding["rule"]: finding for finding in answer["queues"][0]["findings"]}

    def show(self) -> dict[str, Any]:
        return self.live.call(self.inspection.queue_show(QUEUE))

    def requests(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.live.call(self.inspection.request_list())["requests"]
        return found

    def status(self) -> Any:
        return self.end.queue(QUEUE)


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Seen]:
    live = Live(tmp_path, "auto", 1)
    try:
        seen = Seen(live)
        yield seen
        seen.host.close()
    finally:
        live.close()


def test_a_lost_kick_is_named_and_looking_does_not_mend_it(seen: Seen) -> None:
    assert seen.check() == {}
    tag = seen.post_silently()
    taken = seen.status().requests
    for _ in range(3):
        finding = seen.check()["LOST_KICK"]
        assert seen.show()["ring"]["standing"]["next_kick"]["due"]
        assert [row["layer"] for row in seen.requests()] == ["ring"]
        seen.live.call(seen.inspection.queue_list())
    assert seen.status().requests == taken
    assert finding["forbidden"]
    assert finding["address"] == seen.queue.addresses.avail + 2
    assert bytes.fromhex(finding["bytes"]) == seen.memory.read(finding["address"], 2)
    seen.kick()
    assert seen.host.wait(tag).status == 0
    assert seen.check() == {}


def test_a_lost_interrupt_is_named(seen: Seen) -> None:
    seen.queue.enable_notifications()
    before = seen.status().used_idx
    tag = seen.host.send(read10(0, 1), in_len=512)
    seen.live.wait_for(lambda: seen.status().used_idx != before, "the answer")
    seen.asleep()
    finding = seen.check()["LOST_INTERRUPT"]
    assert "unread in the call descriptor" in finding["text"]
    (row,) = seen.requests()
    assert (row["layer"], row["command"].split()[0], row["in_bytes"]) == ("completion", "READ(10)", 512)
    assert "u" in seen.show()["ring"]["owners"]
    seen.host.wait(tag)
    seen.queue.enable_notifications()
    assert seen.check() == {}


def test_a_bad_address_is_named_with_its_place_before_and_after_the_device_finds_it(seen: Seen) -> None:
    seen.asleep()
    seen.queue.add([(1 << 40, 64)], [(1 << 41, 128)], token=None, indirect=False)
    seen.queue.publish()
    found = seen.check()
    finding = found["ADDRESS_UNMAPPED"]
    assert bytes.fromhex(finding["bytes"]) == seen.memory.read(finding["address"], 16)
    assert "LOST_KICK" in found
    seen.kick()
    seen.live.wait_for(lambda: seen.status().broken, "the end of the ring")
    assert "UNMAPPED" in seen.check()["RING_STOPPED"]["text"]


def test_an_index_that_ran_ahead_and_a_loop_are_named(seen: Seen) -> None:
    seen.asleep()
    ring = seen.queue.addresses
    idx = int.from_bytes(seen.memory.read(ring.avail + 2, 2), "little")
    # Descriptor 100 leads to itself; entry idx of the available ring names it.
    loop = (0x2000).to_bytes(8, "little") + (16).to_bytes(4, "little") + bytes([DescFlag.NEXT, 0, 100, 0])
    seen.memory.write(ring.desc + 16 * 100, loop)
    seen.memory.write(ring.avail + 4 + 2 * (idx % ring.size), bytes([100, 0]))
    seen.memory.write(ring.avail + 2, ((idx + 1) % 65536).to_bytes(2, "little"))
    finding = seen.check()["CHAIN_LOOP"]
    assert (finding["address"], bytes.fromhex(finding["bytes"])) == (ring.desc + 1600, loop)
    seen.memory.write(ring.avail + 2, ((idx + 1000) % 65536).to_bytes(2, "little"))
    finding = seen.check()["AVAIL_IDX_JUMPED"]
    assert (finding["address"], finding["forbidden"]) == (ring.avail + 2, True)
    seen.memory.write(ring.avail + 2, idx.to_bytes(2, "little"))
    assert seen.check() == {}


def test_a_request_in_the_store_is_shown_with_its_segments(seen: Seen) -> None:
    seen.host.send(write10(16, 8), b"\x3c" * 4096, at=(0, 1))
    seen.live.wait_for(lambda: [row["layer"] for row in seen.requests()] == ["store"], "the store")
    (row,) = seen.requests()
    assert (row["unit"], row["lba"], row["blocks"], row["direction"]) == ("slow", 16, 8, "out")
    shown = seen.live.call(seen.inspection.request_show(QUEUE, row["head"]))["request"]
    (segment,) = shown["data"]["segments"]
    assert seen.memory.read(segment["address"], segment["length_bytes"]) == b"\x3c" * 4096
    assert seen.show()["ring"]["chains"][0]["table"] == []
    ring = seen.live.call(seen.inspection.queue_show(QUEUE, tables=True))["ring"]
    assert ring["standing"]["in_flight"] == 1
    assert ring["chains"][0]["table"][0]["length_bytes"] > 0
    with pytest.raises(RpcError, match="no request with head"):
        seen.live.call(seen.inspection.request_show(QUEUE, 77))


def test_what_is_counted_of_a_queue(seen: Seen) -> None:
    for _ in range(20):
        seen.host.ok(read10(0, 1), in_len=512)
    seen.asleep()
    row = seen.live.call(seen.inspection.queue_list())["queues"][QUEUE]
    assert row["latency"]["count"] == row["requests"]
    assert row["latency"]["p50_ns"] <= row["latency"]["p99_ns"]
    assert sum(row["batch_sizes"]) == row["batches"]


def test_queues_that_are_not_there(seen: Seen) -> None:
    for call in (seen.inspection.queue_show(99), seen.inspection.queue_check(-1), seen.inspection.queue_show(2, "p")):
        with pytest.raises(RpcError):
            seen.live.call(call)
    with pytest.raises(RpcError, match="settle_ms"):
        seen.live.call(seen.inspection.queue_check(QUEUE, settle_ms=99_999))


def test_the_bits_of_the_gate_have_names() -> None:
    task = TaskSnapshot(
        *(1, 1, 0, 2, 5, 0, 0, 9, 2_000_000, "python", 1_000_000, bytes(6), 0, 0, 0, 0, 0, False),
        gate=int(GateBit.UNIT_ATTENTION | GateBit.TMF),
    )
    row = task_row(task, {}, "p")
    assert (row["id"], row["gate"], row["age_us"]) == ("p:2:5", ["UNIT_ATTENTION", "TMF"], 2000)


def test_limits_of_latency() -> None:
    assert latency_below([0, 3, 1], 0.5) == latency_limit(1) == 512
    assert latency_below([0] * 31 + [1], 0.5) is None
    assert latency_below([0] * 32, 0.5) is None


def test_signals_are_seen_and_left() -> None:
    fd = os.eventfd(3)
    try:
        assert [pending_signals(fd) for _ in range(2)] == [3, 3]
    finally:
        os.close(fd)
    assert pending_signals(None) is None
    assert pending_signals(1 << 20) is None


# ---- the watchdog --------------------------------------------------------------------------------------------------


def watchdog(seen: Seen, folder: Path, limit_s: float, max_dumps: int = 4) -> StallWatchdog:
    found = StallWatchdog(
        seen.live.core, seen.inspection, [seen.serving], limit_s=limit_s, directory=folder, max_dumps=max_dumps
    )
    seen.live.run(found.start)
    return found


def dumps(folder: Path) -> list[dict[str, Any]]:
    return [parse_dump(path.read_bytes(), str(path)) for path in sorted(folder.glob("stall-*.json"))]


def test_a_request_that_is_too_old_is_dumped_once_and_an_idle_queue_is_left_alone(seen: Seen, tmp_path: Path) -> None:
    stalls = watchdog(seen, tmp_path / "stalls", 0.2)
    assert not stalls.armed
    seen.host.ok(read10(0, 1), in_len=512)
    seen.live.wait_for(lambda: not stalls.armed, "rest", 60)
    assert stalls.dumps == 0
    seen.host.send(write10(16, 8), bytes(4096), at=(0, 1))
    seen.live.wait_for(lambda: stalls.dumps > 0, "a dump", 60)
    (dump,) = dumps(tmp_path / "stalls")
    assert "WRITE(10)" in dump["why"]
    assert dump["tasks"][0]["layer"] == "store"
    assert stalls.armed
    seen.live.call(stalls.close())


def test_a_lost_kick_is_dumped(seen: Seen, tmp_path: Path) -> None:
    stalls = watchdog(seen, tmp_path / "stalls", 0.5)
    for _ in range(100):
        seen.host.ok(read10(0, 1), in_len=512)
        tag = seen.post_silently()
        if stalls.armed:
            break
        # This machine was too slow: it had gone to rest in between.
        seen.kick()
        seen.host.wait(tag)
    seen.live.wait_for(lambda: stalls.dumps > 0, "a dump", 60)
    (dump,) = dumps(tmp_path / "stalls")
    assert [finding["rule"] for finding in dump["check"]["findings"]] == ["LOST_KICK"]
    assert dump["ring"]["standing"]["posted"] == 1
    seen.live.call(stalls.close())


def test_dumps_are_bounded_and_the_oldest_go(seen: Seen, tmp_path: Path) -> None:
    stalls = watchdog(seen, tmp_path, 60.0, max_dumps=2)
    paths = [stalls._write("port", number, {"number": number}) for number in range(5)]
    assert sorted(tmp_path.glob("stall-*.json")) == sorted(paths[3:])
    assert json.loads(paths[4].read_text())["number"] == 4
    seen.live.call(stalls.close())
