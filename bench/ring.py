# SPDX-License-Identifier: Apache-2.0
"""Builds bench/ring.c with the data plane and runs it: one process, one case, one sample.

It does not decide which cases there are, and shows nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.cases import Case

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "build" / "core-test" / "plain" / "bench" / "ring"


class BenchError(Exception):
    """The program could not be built, or said that something is wrong."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. `iops` is of all of it, `clean_iops` the median of the windows in which both threads had their CPU."""

    iops: float
    clean_iops: float
    top_iops: float  # nine tenths of those windows were slower
    clean: float  # share of such windows
    seconds: float
    submitted: int
    completed: int
    checked: int
    served: int  # by the worker, as it counts
    batch: float  # requests that it found at once
    driver_on_cpu: float
    worker_on_cpu: float
    engine: str


def program_of(tree: Path) -> Path:
    return tree / PROGRAM.relative_to(ROOT)


def build(tree: Path = ROOT) -> Path:
    """The program, with the data plane of that tree."""
    command = ["make", "--no-print-directory", "-s", "-C", str(tree / "core"), f"PYTHON={sys.executable}", "bench"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"the data plane of {tree} does not compile:\n{result.stdout}{result.stderr}")
    return program_of(tree)


def cpus() -> tuple[int, int]:
    """(driver, worker): two CPUs that this process may use."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise BenchError("two CPUs are needed: one for the worker, one for the driver that polls")
    return usable[0], usable[1]


def run(case: Case, *options: str, tree: Path = ROOT) -> Sample:
    """One sample of what `build` made; more options of the C program may follow."""
    result = subprocess.run(
        [str(program_of(tree)), *case.options(), *options], capture_output=True, text=True, timeout=120, check=False
    )
    if result.returncode:
        raise BenchError(f"{case.name}: {result.stderr.strip() or f'exit code {result.returncode}'}")
    return Sample(**json.loads(result.stdout))
