# SPDX-License-Identifier: Apache-2.0
"""Turns samples into minimum, median and maximum, and quotients within a round; shows them as tables or JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from bench.cases import Case, Ratio
from bench.ring import Sample

SCHEMA = 1
Samples = Mapping[str, Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Spread:
    minimum: float
    median: float
    maximum: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), statistics.median(values), max(values))


def undisturbed(samples: Sequence[Sample]) -> list[float]:
    """Requests a second of the undisturbed windows; a run without one has nothing to say."""
    return [sample.clean_iops for sample in samples if sample.clean_iops]


def quotients(ratio: Ratio, samples: Samples) -> list[float]:
    """Round by round: what slows the machine for a while slows both."""
    pairs = zip(samples.get(ratio.case, ()), samples.get(ratio.base, ()), strict=False)
    return [case.clean_iops / base.clean_iops for case, base in pairs if case.clean_iops and base.clean_iops]


def as_json(cases: Sequence[Case], ratios: Sequence[Ratio], samples: Samples, machine: Mapping[str, object]) -> object:
    rows = []
    for case in cases:
        clean = undisturbed(samples[case.name])
        rows.append(
            {
                "case": asdict(case),
                "iops": asdict(spread([sample.iops for sample in samples[case.name]])),
                "undisturbed_iops": asdict(spread(clean)) if clean else None,
                "samples": [asdict(sample) for sample in samples[case.name]],
            }
        )
    found = [(ratio, quotients(ratio, samples)) for ratio in ratios]
    quotient_rows = [{**asdict(ratio), "quotient": asdict(spread(values))} for ratio, values in found if values]
    return {"schema": SCHEMA, "machine": machine, "cases": rows, "ratios": quotient_rows}


def millions(value: float) -> str:
    return f"{value / 1e6:.2f}"


def verdict(case: Case, samples: Sequence[Sample]) -> str:
    """The median against the target. What holds only while nobody else runs is called that."""
    if case.target is None:
        return ""
    clean = undisturbed(samples)
    if statistics.median(sample.iops for sample in samples) >= case.target:
        word = "reached"
    elif clean and statistics.median(clean) >= case.target:
        word = "reached undisturbed, not over the whole run"
    else:
        word = "not reached"
    return f"{millions(case.target)} {word}"


def show(console: Console, cases: Sequence[Case], ratios: Sequence[Ratio], samples: Samples) -> None:
    title = "random reads of 4096 bytes, million requests a second: min, median, max of what runs reach undisturbed"
    table = Table(title=title)
    for column in ("case", "min", "median", "max", "of the run", "whole run", "batch", "target"):
        table.add_column(column, justify="left" if column in ("case", "target") else "right")
    for case in cases:
        runs = samples[case.name]
        clean = undisturbed(runs)
        at = spread(clean) if clean else None
        table.add_row(
            case.name,
            *([millions(at.minimum), millions(at.median), millions(at.maximum)] if at else ["-", "-", "-"]),
            f"{statistics.mean(run.clean for run in runs):.0%}",
            millions(statistics.median(run.iops for run in runs)),
            f"{statistics.median(run.batch for run in runs):.1f}",
            verdict(case, runs),
        )
    console.print(table)
    table = Table(title="quotients within a round")
    for column in ("case", "of", "min", "median", "max", "what it says"):
        table.add_column(column, justify="right" if column in ("min", "median", "max") else "left")
    for ratio in ratios:
        values = quotients(ratio, samples)
        if values:
            at = spread(values)
            row = [f"{value:.2f}" for value in (at.minimum, at.median, at.maximum)]
            table.add_row(ratio.case, ratio.base, *row, ratio.says)
    console.print(table)
