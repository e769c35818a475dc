# SPDX-License-Identifier: Apache-2.0
"""Runs one client against one target for one sample, each on its CPU, and says what else used the two meanwhile.

`iscsi-perf` is Debian's, of libiscsi-bin; `polled` is initiator.c. Neither knows which target it has.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.iscsi.cases import BLOCK, Case
from bench.iscsi.targets import IQN, PRIORITY, PROGRAMS, BenchError, Target, program

TICK = 1 / os.sysconf("SC_CLK_TCK")
# What iscsi-perf prints at its end; what it prints meanwhile has more behind it.
AVERAGE = re.compile(r"iops average (\d+) \(\d+ MB/s\)\s+finished")


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. `foreign` is the share of the two CPUs that other programs, or other machines of the host, had."""

    iops: float
    foreign: float
    target_on_cpu: float
    seconds: float


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have run, one that has ended and was not waited for included."""
    tasks = Path(f"/proc/{pid}/task")
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9


def busy_seconds(cpus: Sequence[int]) -> float:
    """What somebody used of these CPUs, the hypervisor's other guests included where it tells (steal)."""
    total = 0.0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in [f"cpu{cpu}" for cpu in cpus]:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
            total += (user + nice + system + irq + softirq + steal) * TICK
    return total


def command_of(client: str, case: Case, target: Target, seconds: float) -> list[str]:
    if client == "iscsi-perf":
        # It counts in whole seconds.
        options = ["-m", str(case.depth), "-b", str(case.length // BLOCK), "-t", str(max(1, round(seconds)))]
        return [program("iscsi-perf"), *options, *(["-r"] if case.random else []), target.url]
    options = ["--port", str(target.port), "--target", IQN, "--lun", str(target.lun), "--depth", str(case.depth)]
    options += ["--length", str(case.length), "--seconds", str(seconds), *(["--random"] if case.random else [])]
    return [str(PROGRAMS / "initiator"), *options]


def iops_of(client: str, output: str) -> float:
    if client == "iscsi-perf":
        found = AVERAGE.search(output)
        if not found:
            raise BenchError(f"iscsi-perf: no average in {output[-200:]!r}")
        return float(found[1])
    return float(json.loads(output)["iops"])


def start(command: Sequence[str], cpu: int, priority: bool) -> subprocess.Popen[str]:
    """The child inherits CPU and class; this process has them back at once."""
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        if priority:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        if priority:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, usable)


def run(client: str, case: Case, target: Target, cpus: tuple[int, int], seconds: float, priority: bool) -> Sample:
    """`cpus` are the client's and the target's."""
    before, own_before, from_time = busy_seconds(cpus), cpu_seconds(target.pid), time.monotonic()
    process = start(command_of(client, case, target, seconds), cpus[0], priority)
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall = time.monotonic() - from_time
        own = cpu_seconds(target.pid) - own_before
        foreign = busy_seconds(cpus) - before - own - cpu_seconds(process.pid)
        output, errors = process.communicate()
    finally:
        process.kill()
    if process.returncode:
        raise BenchError(f"{client}, {case.name}, {target.name}: {errors.strip() or output[-200:]}")
    return Sample(iops_of(client, output), max(0.0, foreign) / (2 * wall), own / wall, wall)
