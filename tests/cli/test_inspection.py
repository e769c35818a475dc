# SPDX-License-Identifier: Apache-2.0
"""`queue` and `request` as a user types them, against a daemon of its own; and dumps that somebody else has made."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, Serve
from vhost_scsi.cli import queue_show, queue_watch, ring_picture
from vhost_scsi.daemon.dump import parse_dump
from vhost_scsi.errors import ConfigError
from vhost_scsi.vhost_user.initiator import Initiator
from vhost_scsi.virtqueue.virtio_scsi import LunAddress

READ = bytes.fromhex("28000000000000000100")
WRITE = bytes.fromhex("2a000000001000000800")


def test_a_queue_from_list_to_picture(serve: Serve, quick: Run, tmp_path: Path) -> None:
    # A worker of its own for what waits: a delay wakes it now and then, and then it finds what nobody told it of.
    luns = ("--lun", "0:0=memory:16M", "--lun", "0:1=delay(write=60s):memory:16M")
    served = serve(*luns, "--workers", "2", "--num-queues", "2")
    with Initiator(served.socket, request_queues=2) as initiator:
        driver = initiator.driver
        for lun in (0, 1):
            driver.command(0, lun, bytes(6))
        driver.submit(LunAddress(0, 1), WRITE, bytes(4096), queue=1)
        wait_for(lambda: "store" in quick("request", "list").stdout)
        wait_for(lambda: "asleep" in quick("queue", "show", "2").stdout)
        assert quick("queue", "check").returncode == 0
        # Posted, and nobody is told.
        driver.submit(LunAddress(0, 0), READ, in_len=512, publish=False)
        driver.requests[0].queue.publish()

        checked = quick("queue", "check", "2", "--settle", "10")
        assert (checked.returncode, "LOST_KICK" in checked.stdout) == (9, True)
        assert checked.stderr == "vhost-scsi: 1 thing is wrong\n"
        listed = quick("request", "list").stdout
        assert [re.search(word, listed) is not None for word in (r"WRITE\(10\).* store ", r"READ\(10\).* ring ")]
        ident = re.search(r"default:(3:\d+) .*WRITE", listed)
        assert ident is not None
        request = quick("request", "show", ident[1]).stdout
        assert "LBA 16, 8 blocks, 4 KiB" in request
        assert "from the guest" in request
        assert "in the guest's memory" in quick("request", "show", posted(listed)).stdout
        shown = quick("queue", "show", "2", "--tables").stdout
        assert "1 posted, 0 in flight, 0 unseen" in shown
        assert "next kick    DUE NOW" in shown
        assert "INDIRECT" in shown
        looks = [
            json.loads(line)
            for line in quick(*words("queue watch --count 2 --interval 0.1 --json")).stdout.splitlines()
        ]
        assert [look["queues"][2]["requests_per_s"] for look in looks] == [None, 0.0]
        assert "request 0" in quick(*words("queue watch --count 1")).stdout

        files = {name: tmp_path / f"dump.{name}" for name in ("json", "svg", "png")}
        options = [
            part
            for name, option in (("json", "out"), ("svg", "svg"), ("png", "png"))
            for part in (f"--{option}", files[name])
        ]
        assert quick("queue", "dump", "2", *options).returncode == 0
        for name, begin in (("json", b"{"), ("svg", b"<svg"), ("png", b"\x89PNG")):
            assert files[name].read_bytes().startswith(begin)
        again = quick("queue", "show", "--from", files["json"])
        assert (again.returncode, "LOST_KICK" in again.stdout) == (0, True), again.stderr
        assert quick("queue", "check", "--from", files["json"]).returncode == 9
        assert quick("queue", "dump", "--from", files["json"], "--svg", tmp_path / "x.svg").returncode == 0
        assert (tmp_path / "x.svg").read_bytes() == files["svg"].read_bytes()
    hostile(files["json"].read_text(), quick, tmp_path)


def posted(listed: str) -> str:
    found = re.search(r"default:(2:\d+) .*READ", listed)
    assert found is not None
    return found[1]


def words(text: str) -> list[str]:
    return text.split()


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def hostile(text: str, quick: Run, tmp_path: Path) -> None:
    """What somebody else wrote is shown or refused with one line, whatever it is."""
    for broken in (
        "",
        "{}",
        "[1]",
        text.replace("queue dump", "other"),
        text.replace('"dump_version": 1', '"dump_version": 9'),
    ):
        path = tmp_path / "broken.json"
        path.write_text(broken)
        refused = quick("queue", "show", "--from", path)
        assert (refused.returncode, refused.stderr.count("\n")) == (3, 1), refused.stderr
    shown = 0
    refusals: list[int] = []
    chance = random.Random(3)
    for _ in range(60):
        dump = json.loads(text)
        for _ in range(chance.randrange(1, 4)):
            mutate(dump, chance)
        try:
            answer = parse_dump(json.dumps(dump).encode(), "x")
        except ConfigError as error:
            refused_lines = str(error).count("\n") + 1
            refusals.append(refused_lines)
            continue
        queue_show.print_queue(answer, tables=True)
        queue_show.print_findings([{**answer["queue"], **answer["check"]}])
        ring_picture.svg(answer)
        shown += 1
    assert shown > 5
    assert set(refusals) == {1}, "lines of an error"


def mutate(value: Any, chance: random.Random) -> None:
    """Changes one thing somewhere in it."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return
    key = chance.choice(keys)
    if isinstance(value[key], dict | list) and value[key] and chance.random() < 0.8:
        mutate(value[key], chance)
    elif isinstance(value, dict) and chance.random() < 0.3:
        del value[key]
    else:
        value[key] = chance.choice([None, 0, 1, (1 << 64) - 1, -1, "", "\x1b[2J\n", "x" * 500, [], {}, True, 1.5])


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("queue show", 2, "either [PORT:]INDEX or --from DUMP"),
        ("queue show 2 --from x", 2, "either [PORT:]INDEX or --from DUMP"),
        ("queue show --from none.json", 3, "none.json: No such file"),
        ("queue show two", 3, "'two' is not [PORT:]INDEX"),
        ("request show 2", 3, "'2' is not [PORT:]QUEUE:HEAD"),
        ("queue watch --interval 0", 2, "interval"),
    ],
)
def test_words_that_make_no_sense(quick: Run, line: str, code: int, said: str) -> None:
    result = quick(*words(line))
    assert (result.returncode, said in result.stderr) == (code, True), result.stderr


def look(requests: int, at: float) -> dict[str, Any]:
    buckets = [0] * 32
    buckets[3] = requests
    queue = {
        "port": "p",
        "index": 2,
        "name": "request 0",
        "in_flight": 1,
        "broken": False,
        "error": None,
        "started": True,
        "enabled": True,
        "requests": requests,
        "batches": requests // 2,
        "kicks": 0,
        "interrupts": requests,
        "interrupts_suppressed": 0,
        "latency": {"count": requests, "log2_ns": buckets, "first_limit_ns": 256},
    }
    return {"queues": [queue], "taken_at": at}


def test_rates_are_differences_and_a_line_tells_their_history() -> None:
    watcher = queue_watch.Watcher()
    assert watcher.rows(look(0, 10.0))[0]["requests_per_s"] is None
    (row,) = watcher.rows(look(100, 12.0))
    assert (row["requests_per_s"], row["a_batch"], row["p99_ns"]) == (50.0, 2.0, 2048)
    (row,) = watcher.rows(look(300, 13.0))
    assert queue_watch.sparkline(row["history"]) == "▃█"
    assert queue_watch.cells(row)[3] == "200"
    # The device was reset: its counters begin anew.
    assert watcher.rows(look(5, 14.0))[0]["requests_per_s"] is None
    assert queue_watch.below([0] * 32, 0.5, 256) is None
    assert queue_watch.table([row]).row_count == 1
