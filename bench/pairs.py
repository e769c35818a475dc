# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.pairs OTHER_TREE`: is this tree slower than another one? Both are measured in turns, and the
quotients of the pairs are shown with the interval that the median lies in with a probability of 95 %.

It judges nothing: the exit code tells whether the measurements ran, not how they came out.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from bench import ring
from bench.cases import CASES, Case

CONFIDENCE = 0.95
DEFAULT = ("memory-32", "memory-1", "null-32", "null-1")


@dataclass(frozen=True, slots=True)
class Interval:
    """Of the median, free of any assumption about how the quotients are distributed."""

    low: float
    median: float
    high: float
    pairs: int


def interval(quotients: Sequence[float]) -> Interval:
    """The narrowest pair of order statistics that has the confidence; minimum and maximum where none has."""
    values = sorted(quotients)
    count = len(values)
    rank, tail = 0, 0.0
    while rank < count // 2:
        tail += math.comb(count, rank) / 2**count
        if 2 * tail > 1 - CONFIDENCE:
            break
        rank += 1
    rank = max(rank, 1)
    middle = (values[(count - 1) // 2] + values[count // 2]) / 2
    return Interval(values[rank - 1], middle, values[count - rank], count)


def measure(case: Case, other: Path, rounds: int, options: Sequence[str]) -> list[tuple[ring.Sample, ring.Sample]]:
    """Pairs of (this tree, the other one); every second pair begins with the other one."""
    found = []
    for number in range(rounds):
        first, second = (ring.ROOT, other) if number % 2 else (other, ring.ROOT)
        samples = ring.run(case, *options, tree=first), ring.run(case, *options, tree=second)
        found.append(samples if number % 2 else samples[::-1])
    return found


def quotients(pairs: Sequence[tuple[ring.Sample, ring.Sample]]) -> list[float]:
    """Of what the runs reached undisturbed; a pair in which one never was says nothing."""
    return [ours.clean_iops / theirs.clean_iops for ours, theirs in pairs if ours.clean_iops and theirs.clean_iops]


@click.command()
@click.argument("other", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--rounds", type=click.IntRange(2, 1000), default=20, show_default=True, help="Pairs of each case.")
@click.option("--seconds", type=click.FloatRange(0.01, 60), default=0.4, show_default=True, help="Length of a sample.")
@click.option("--case", "names", multiple=True, type=click.Choice([case.name for case in CASES]), help="Only these.")
@click.option("--json", "as_json", is_flag=True, help="Everything, each sample included.")
def main(other: Path, rounds: int, seconds: float, names: tuple[str, ...], as_json: bool) -> None:
    """Compare the fast path of this tree with that of OTHER, a checkout of another commit."""
    other = other.resolve()
    wanted = [case for case in CASES if case.name in (names or DEFAULT)]
    rows = []
    try:
        for tree in (other, ring.ROOT):
            ring.build(tree)
        driver, worker = ring.cpus()
        options = ["--seconds", str(seconds), "--driver-cpu", str(driver), "--worker-cpu", str(worker)]
        for case in wanted:
            pairs = measure(case, other, rounds, options)
            values = quotients(pairs)
            found = interval(values) if len(values) > 1 else None
            rows.append(
                {
                    "case": case.name,
                    "quotient": asdict(found) if found else None,
                    "pairs": [[asdict(ours), asdict(theirs)] for ours, theirs in pairs],
                }
            )
            if not as_json:
                click.echo(line(case.name, found, rounds))
    except ring.BenchError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps({"schema": 1, "other": str(other), "cases": rows}, indent=2))


def line(name: str, found: Interval | None, rounds: int) -> str:
    if found is None:
        return f"{name:24} no pair was undisturbed"
    said = f"{name:24} {found.median:.3f} of the other tree, {found.low:.3f} to {found.high:.3f}"
    return f"{said} ({found.pairs} of {rounds} pairs)"


if __name__ == "__main__":
    main()
