# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.inspect`: what it costs to look into a back end that works.

A real `vhost-scsi serve` with one worker serves random reads to a driver in a process of its own; in each pair of runs
one is looked at ten times a second (`queue.list`, `queue.show`, `request.list`) and one is not, in turns the first. The
figure is the median of the pairs' quotients, with the interval in which it lies with 95 % certainty. On a machine that
is in use that interval is wide; what the back end's other threads took of a CPU for it is told beside, which is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path

import click

from bench import ring
from vhost_scsi.daemon.client import ControlClient
from vhost_scsi.vhost_user.frontend import Frontend
from vhost_scsi.vhost_user.messages import MemoryRegion, VringAddr

PROGRAM = ring.PROGRAM.parent / "guest"
USER_BASE = 0x7F00_0000_0000
STORE = 64 << 20
QUEUE = 2
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Requests a second, how often was looked, and what share of a CPU the back end beside its worker used for that."""

    plain: float
    inspected: float
    looks: int
    cpu: float = 0.0

    @property
    def cost(self) -> float:
        """What looking took away, as a share; negative where the inspected run was the faster one."""
        return 1 - self.inspected / self.plain


class Guest:
    """The driver's process, connected to a back end."""

    def __init__(self, socket: Path, depth: int, cpu: int) -> None:
        words = [str(PROGRAM), str(depth), str(STORE // 512), str(cpu)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        place = self._line()
        fd = os.open(f"/proc/{self._process.pid}/fd/{place['fd']}", os.O_RDWR)
        base = int(place["guest_addr"])
        self._frontend = Frontend(socket, PATIENCE)
        self._frontend.negotiate(None)
        self._frontend.set_mem_table([MemoryRegion(base, int(place["size"]), USER_BASE + base, 0, fd)])
        desc, avail, used = (USER_BASE + int(place[name]) for name in ("desc", "avail", "used"))
        vring = self._frontend.setup_vring(QUEUE, int(place["ring"]), VringAddr(0, desc, used, avail))
        os.close(fd)
        vring.kick()

    def _line(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ring.BenchError(f"{PROGRAM.name} ended with {self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def run(self, seconds: float) -> float:
        """Requests a second."""
        assert self._process.stdin is not None
        print(seconds, file=self._process.stdin, flush=True)
        return self._line()["iops"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._frontend.close()


class Looker:
    """Looks `rate` times a second while it is entered."""

    def __init__(self, control: Path, rate: float) -> None:
        self._daemon = ControlClient(control)
        self._rate = rate
        self.looks = 0
        self._over = threading.Event()

    def look(self) -> None:
        self._daemon.call("queue.list")
        self._daemon.call("queue.show", index=QUEUE)
        self._daemon.call("request.list")
        self.looks += 1

    def _run(self) -> None:
        following = time.monotonic()
        while not self._over.is_set():
            self.look()
            following += 1 / self._rate
            self._over.wait(max(0.0, following - time.monotonic()))

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        self._over.clear()
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def close(self) -> None:
        self._daemon.close()


@dataclass(frozen=True, slots=True)
class BackEnd:
    socket: Path
    control: Path
    pid: int
    worker: int
    """the worker's thread id"""

    def control_seconds(self) -> float:
        """CPU seconds of all threads but the worker."""
        tasks = Path(f"/proc/{self.pid}/task")
        others = (each for each in tasks.iterdir() if each.name != str(self.worker))
        return sum(int((each / "schedstat").read_text().split()[0]) for each in others) / 1e9


@contextlib.contextmanager
def back_end(folder: Path, cpu: int) -> Iterator[BackEnd]:
    """Its worker polls, on a CPU of its own."""
    socket, control = folder / "s", folder / "c"
    words = ["--socket-path", socket, "--control", control, "--state-dir", folder / "state", "--poll", "always"]
    command = [sys.executable, "-m", "vhost_scsi.cli", "serve", "--json", *map(str, words), "--lun", "0:0=null:64M"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        if '"ready"' not in process.stdout.readline():
            raise ring.BenchError("the back end does not start")
        with ControlClient(control) as daemon:
            thread = int(daemon.call("status")["workers"][0]["thread_id"])
        os.sched_setaffinity(thread, {cpu})
        yield BackEnd(socket, control, process.pid, thread)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def measure(pairs: int, seconds: float, rate: float, depth: int) -> list[Pair]:
    ring.build()
    driver_cpu, worker_cpu = ring.cpus()
    found = []
    with tempfile.TemporaryDirectory(prefix="vs") as folder, back_end(Path(folder), worker_cpu) as served:
        guest, looker = Guest(served.socket, depth, driver_cpu), Looker(served.control, rate)
        guest.run(seconds)
        looker.look()
        for number in range(pairs):
            speeds, took = {}, {}
            before = looker.looks
            for inspected in (False, True) if number % 2 else (True, False):
                start, used = time.monotonic(), served.control_seconds()
                with looker.looking() if inspected else contextlib.nullcontext():
                    speeds[inspected] = guest.run(seconds)
                took[inspected] = (served.control_seconds() - used) / (time.monotonic() - start)
            found.append(Pair(speeds[False], speeds[True], looker.looks - before, took[True] - took[False]))
        looker.close()
        guest.close()
    return found


def interval(values: Sequence[float], certainty: float = 0.95) -> tuple[float, float]:
    """Where the median of what was sampled lies, by the signs of a coin: it assumes nothing of how values spread."""
    ordered, n = sorted(values), len(values)
    outside = 0.0
    for rank in range(n // 2):
        outside += 2 * comb(n, rank) / 2**n
        if outside > 1 - certainty:
            return ordered[max(0, rank - 1)], ordered[min(n - 1, n - rank)]
    return ordered[0], ordered[-1]


@click.command()
@click.option("--pairs", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.05, 60), default=1.0, show_default=True, help="Length of a run.")
@click.option("--rate", type=click.FloatRange(0.1, 1000), default=10.0, show_default=True, help="Looks a second.")
@click.option("--depth", type=click.IntRange(1, 256), default=32, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Everything, each pair included.")
def main(pairs: int, seconds: float, rate: float, depth: int, as_json: bool) -> None:
    """Measure what looking into a working back end costs."""
    try:
        found = measure(pairs, seconds, rate, depth)
    except ring.BenchError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(1)
    costs = [pair.cost for pair in found]
    median, (low, high) = statistics.median(costs), interval(costs)
    cpu = statistics.median(pair.cpu for pair in found)
    if as_json:
        rows = [asdict(pair) for pair in found]
        told = {"median_cost": median, "interval": [low, high], "median_cpu": cpu}
        click.echo(json.dumps({"schema": 1, "pairs": rows, **told}, indent=2))
        return
    for pair in found:
        click.echo(f"{pair.plain:>10.0f} {pair.inspected:>10.0f} requests/s, {pair.looks} looks: {pair.cost:+.1%}")
    click.echo(f"cost of {rate:g} looks a second: median {median:+.1%}, 95 % interval {low:+.1%} to {high:+.1%}")
    click.echo(f"the back end beside its worker: {cpu:.1%} of a CPU for it")


if __name__ == "__main__":
    main()
