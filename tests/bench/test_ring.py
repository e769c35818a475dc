# SPDX-License-Identifier: Apache-2.0
"""Each measurement of bench/ runs and counts correctly. Nothing here looks at a speed: the machine is shared."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import pairs, ring, summary
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


def held(pid: int) -> tuple[int, int]:
    """(KiB resident, descriptors) of another process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return resident, len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory-32", "null-32-indirect", "null-32-event", "null-1"])
def test_ten_million_requests_leave_nothing_behind(name: str) -> None:
    """In the data plane; what Python answers is counted in tests/vhost_user, some tens of thousands of it."""
    case = next(each for each in CASES if each.name == name)
    driver, worker = ring.cpus()
    cpus = ["--driver-cpu", str(driver), "--worker-cpu", str(worker)]
    options = ["--requests", str(10_000_000), "--size", str(16 << 20), *cpus]
    command = [str(ring.PROGRAM), *case.options(), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        seen = []
        while process.poll() is None:
            with contextlib.suppress(OSError, StopIteration):  # it may end at any time
                seen.append(held(process.pid))
            time.sleep(0.02)
        assert process.stdout
        sample = ring.Sample(**json.loads(process.stdout.read()))
    assert process.returncode == 0
    assert sample.completed >= 10_000_000
    assert sample.submitted == sample.completed == sample.served
    # The first half warms it up; the last samples are of a process that puts its things away.
    middle, late = seen[len(seen) // 2], seen[-3]
    print(f"{name}: {sample.completed} requests; (KiB, descriptors) at half time {middle}, late {late}")
    assert late[0] <= middle[0] + 64
    assert late[1] <= middle[1]


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


def test_the_interval_of_a_median_is_made_of_order_statistics() -> None:
    """The table of the sign test: of 20 values the 6th to the 15th, of fewer than six all."""
    found = pairs.interval([float(number) for number in range(20, 0, -1)])
    assert (found.low, found.median, found.high, found.pairs) == (6, 10.5, 15, 20)
    assert pairs.interval([3.0, 1.0, 2.0]) == pairs.Interval(1.0, 2.0, 3.0, 3)


def test_pairs_take_turns_and_a_tree_is_as_fast_as_itself() -> None:
    found = pairs.measure(CASES[0], ring.ROOT, 2, [*SMALL, "--inline"])
    assert len(found) == 2
    for one, other in found:
        counts_add_up(one, CASES[0])
        counts_add_up(other, CASES[0])


def test_a_pair_that_was_disturbed_is_left_out() -> None:
    assert pairs.quotients([(sample_of(10), sample_of(5)), (sample_of(0), sample_of(5))]) == [2.0]
    assert "no pair" in pairs.line("a", None, 2)
    assert "2.000 of the other tree, 1.000 to 3.000 (5 of 7 pairs)" in pairs.line("a", pairs.Interval(1, 2, 3, 5), 7)


def test_pairs_of_a_tree_that_is_no_tree(tmp_path: Path) -> None:
    result = CliRunner().invoke(pairs.main, [str(tmp_path)])
    assert result.exit_code == 1
    assert "does not compile" in result.stderr
