# SPDX-License-Identifier: Apache-2.0
"""The two ends in bench/iscsi talk to each other and to our target, and count correctly. No speed is looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bench.iscsi import clients, summary, targets
from bench.iscsi.cases import CASES, CLIENTS, RATIOS, Case, Ratio
from bench.iscsi.clients import Sample
from bench.iscsi.targets import IQN, PROGRAMS, BenchError, Target

SIZE = 8 << 20
REQUESTS = 300
CPU = max(os.sched_getaffinity(0))


@pytest.fixture(scope="module", autouse=True)
def programs() -> None:
    targets.build()


@pytest.fixture(scope="module")
def ours() -> Iterator[Target]:
    with targets.ours(CPU, SIZE) as target:
        yield target


@pytest.fixture(scope="module")
def bare() -> Iterator[Target]:
    with targets.bare(CPU, SIZE) as target:
        yield target


def initiator(target: Target, *options: str) -> subprocess.CompletedProcess[str]:
    where = ["--port", str(target.port), "--target", IQN, "--lun", str(target.lun)]
    command = [str(PROGRAMS / "initiator"), *where, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", ["ours", "bare"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_read_ends_once_with_the_data_of_its_blocks(
    name: str, case: Case, request: pytest.FixtureRequest
) -> None:
    target: Target = request.getfixturevalue(name)
    options = ["--depth", str(case.depth), "--length", str(case.length), *(["--random"] if case.random else [])]
    result = initiator(target, *options, "--requests", str(REQUESTS), "--check-all")
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert REQUESTS <= counts["completed"] <= REQUESTS + 2 * case.depth
    assert counts["submitted"] == counts["checked"] >= counts["completed"]


def test_other_data_than_those_of_the_block_are_seen(ours: Target) -> None:
    subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write -P 7 0 4096", ours.url], check=True, capture_output=True, timeout=60
    )
    result = initiator(ours, "--requests", "10", "--check-all")
    assert result.returncode == 1
    assert "other data than those of that block" in result.stderr
    assert initiator(ours, "--fill").returncode == 0


def test_iscsi_perf_is_understood_and_the_cpus_are_looked_at(bare: Target) -> None:
    sample = clients.run("iscsi-perf", CASES[0], bare, (CPU, CPU), 1.0, priority=False)
    assert sample.iops > 0
    assert 0 <= sample.foreign < 1
    assert 0 < sample.target_on_cpu < 1.1


def test_what_is_no_average_is_an_error() -> None:
    with pytest.raises(BenchError, match="no average"):
        clients.iops_of("iscsi-perf", "connection refused")


def runs(*iops: float, foreign: float = 0.0) -> list[Sample]:
    return [Sample(value, foreign, 1.0, 1.0) for value in iops]


def test_quotients_are_taken_round_by_round_and_without_disturbed_ones() -> None:
    ratio = Ratio("4k-1", "ours", "tgtd", 2.0)
    disturbed = Sample(100, 2 * summary.DISTURBED, 1.0, 1.0)
    samples = {
        ("polled", "4k-1", "ours"): [*runs(10, 40), disturbed],
        ("polled", "4k-1", "tgtd"): runs(5, 80, 10),
    }
    assert summary.quotients(ratio, "polled", samples, clean=False) == [2.0, 0.5, 10.0]
    assert summary.quotients(ratio, "polled", samples, clean=True) == [2.0, 0.5]


@pytest.mark.parametrize(("median", "says"), [(2.0, "2 reached"), (1.9, "2 not reached")])
def test_a_promise_is_about_iscsi_perf(median: float, says: str) -> None:
    ratio = Ratio("4k-1", "ours", "tgtd", 2.0)
    at = summary.spread([median])
    assert summary.verdict(ratio, "iscsi-perf", at) == says
    assert summary.verdict(ratio, "polled", at) == ""


def test_ratios_name_cases() -> None:
    names = {case.name for case in CASES}
    assert len(names) == len(CASES)
    assert {ratio.case for ratio in RATIOS} <= names


@pytest.mark.slow
def test_the_command_measures_tgtd_beside_ours() -> None:
    options = ["--json", "--rounds", "1", "--seconds", "0.05", "--size", "8", "--case", "4k-32", "--client", "polled"]
    command = [sys.executable, "-m", "bench.iscsi", *options, "--no-priority"]
    result = subprocess.run(command, cwd=targets.ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["schema"] == summary.SCHEMA
    assert {run["target"] for run in found["runs"]} == {"ours", "tgtd", "bare"}
    assert {run["client"] for run in found["runs"]} == {"polled"} <= set(CLIENTS)
    assert all(run["samples"][0]["iops"] > 0 for run in found["runs"])
