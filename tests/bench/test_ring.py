# SPDX-License-Identifier: Apache-2.0
"""Each measurement of bench/ runs and counts correctly. Nothing here looks at a speed: the machine is shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bench import ring, summary
from bench.cases import CASES, RATIOS, Case, Ratio

REQUESTS = 3000
SMALL = ["--requests", str(REQUESTS), "--size", str(16 << 20), "--check-all"]


@pytest.fixture(scope="module", autouse=True)
def program() -> None:
    ring.build()


def counts_add_up(sample: ring.Sample, case: Case) -> None:
    assert sample.completed >= REQUESTS
    # Depth bounds what was under way when the count was reached.
    assert sample.completed <= REQUESTS + 2 * case.depth
    assert sample.submitted == sample.completed == sample.checked == sample.served


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_read_ends_once_with_the_data_of_its_block(case: Case) -> None:
    counts_add_up(ring.run(case, *SMALL, "--inline"), case)


@pytest.mark.parametrize("case", [case for case in CASES if case.target], ids=lambda case: case.name)
def test_so_it_does_with_a_worker_of_its_own(case: Case) -> None:
    usable = sorted(os.sched_getaffinity(0))
    cpus = ["--driver-cpu", str(usable[0]), "--worker-cpu", str(usable[-1])]
    counts_add_up(ring.run(case, *SMALL, *cpus), case)


def test_other_data_than_those_of_the_block_are_seen() -> None:
    with pytest.raises(ring.BenchError, match="other data than those of that block"):
        ring.run(CASES[0], *SMALL, "--inline", "--misnumber")


def test_a_ring_that_is_too_small_is_an_error_and_no_result() -> None:
    with pytest.raises(ring.BenchError, match="the ring is full"):
        ring.run(Case("crowded", depth=32, ring_size=16), *SMALL, "--inline")


def sample_of(clean_iops: float, iops: float = 1.0) -> ring.Sample:
    return ring.Sample(iops, clean_iops, clean_iops, 1.0, 0.1, 1, 1, 1, 1, 1.0, 1.0, 1.0, "none")


def test_quotients_are_taken_round_by_round() -> None:
    samples = {"a": [sample_of(10), sample_of(0), sample_of(40)], "b": [sample_of(5), sample_of(5), sample_of(80)]}
    assert summary.quotients(Ratio("a", "b", ""), samples) == [2.0, 0.5]


@pytest.mark.parametrize(
    ("clean_iops", "iops", "says"),
    [
        (10.0, 10.0, "0.00 reached"),
        (10.0, 9.0, "0.00 reached undisturbed, not over the whole run"),
        (9.0, 9.0, "0.00 not reached"),
        (0.0, 9.0, "0.00 not reached"),
    ],
)
def test_a_target_is_held_against_the_whole_run_first(clean_iops: float, iops: float, says: str) -> None:
    assert summary.verdict(Case("any", 1, target=10.0), [sample_of(clean_iops, iops)]) == says


def test_ratios_name_cases() -> None:
    names = {case.name for case in CASES}
    assert len(names) == len(CASES)
    assert {name for ratio in RATIOS for name in (ratio.case, ratio.base)} <= names


def test_the_command_prints_json() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.fail("two CPUs are needed")
    command = [sys.executable, "-m", "bench", "--json", "--rounds", "1", "--seconds", "0.02", "--case", "null-32"]
    result = subprocess.run(command, cwd=ring.ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["schema"] == summary.SCHEMA
    (row,) = found["cases"]
    (sample,) = row["samples"]
    assert sample["submitted"] == sample["completed"] == sample["served"] > 0
