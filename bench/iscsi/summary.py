# SPDX-License-Identifier: Apache-2.0
"""Samples become medians, quotients within a round and verdicts; tables or JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from bench.iscsi.cases import CLIENTS, Case, Ratio
from bench.iscsi.clients import Sample

SCHEMA = 1
# A run in which others had more than this share of the two CPUs says more about them. Less than some ticks of 10 ms is
# not told apart.
DISTURBED = 0.05
# (client, case, target) -> one sample a round
Samples = Mapping[tuple[str, str, str], Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the middle half, so that one bad round does not widen it."""

    low: float
    median: float
    high: float
    rounds: int


def spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high, len(values))


def undisturbed(samples: Sequence[Sample]) -> list[float]:
    return [sample.iops for sample in samples if sample.foreign <= DISTURBED]


def quotients(ratio: Ratio, client: str, samples: Samples, *, clean: bool) -> list[float]:
    """Round by round; `clean`: only rounds in which neither run was disturbed."""
    pairs = zip(
        samples.get((client, ratio.case, ratio.of), ()), samples.get((client, ratio.case, ratio.base), ()), strict=False
    )
    return [
        of.iops / base.iops
        for of, base in pairs
        if not clean or (of.foreign <= DISTURBED and base.foreign <= DISTURBED)
    ]


def verdict(ratio: Ratio, client: str, every: Spread | None) -> str:
    """All rounds count, disturbed ones too. Promises are about iscsi-perf."""
    if ratio.target is None or client != "iscsi-perf" or every is None:
        return ""
    return f"{ratio.target:g} {'reached' if every.median >= ratio.target else 'not reached'}"


def as_json(cases: Sequence[Case], ratios: Sequence[Ratio], samples: Samples, about: Mapping[str, object]) -> object:
    rows = [
        {"client": client, "case": case, "target": target, "samples": [asdict(sample) for sample in runs]}
        for (client, case, target), runs in samples.items()
    ]
    found = []
    for ratio in ratios:
        for client in CLIENTS:
            every, clean = (spread(quotients(ratio, client, samples, clean=only)) for only in (False, True))
            if every:
                quotient = {"quotient": asdict(every), "undisturbed": asdict(clean) if clean else None}
                found.append({"ratio": asdict(ratio), "client": client, **quotient})
    return {"schema": SCHEMA, "about": about, "cases": [asdict(case) for case in cases], "runs": rows, "ratios": found}


def thousands(value: float) -> str:
    return f"{value / 1000:.1f}"


def show(console: Console, cases: Sequence[Case], ratios: Sequence[Ratio], samples: Samples) -> None:
    table = Table(
        title="reads, thousand a second: median (middle half), rounds; undisturbed: others had next to nothing"
    )
    for column in ("case", "client", "target", "all", "undisturbed", "GB/s", "target on CPU"):
        table.add_column(column, justify="left" if column in ("case", "client", "target") else "right")
    for case in cases:
        for (client, name, target), runs in samples.items():
            every, clean = spread([run.iops for run in runs]), spread(undisturbed(runs))
            if name != case.name or not every:
                continue
            on_cpu = statistics.median(run.target_on_cpu for run in runs)
            table.add_row(
                case.name,
                client,
                target,
                figures(every, thousands),
                figures(clean, thousands),
                f"{every.median * case.length / 1e9:.2f}",
                f"{on_cpu:.0%}",
            )
    console.print(table)
    table = Table(title="quotients within a round")
    for column in ("case", "client", "of what", "all", "undisturbed", "promise"):
        table.add_column(column, justify="right" if column in ("all", "undisturbed") else "left")
    for ratio in ratios:
        for client in CLIENTS:
            every, clean = (spread(quotients(ratio, client, samples, clean=only)) for only in (False, True))
            if every:
                said = verdict(ratio, client, every)
                table.add_row(ratio.case, client, ratio.name, figures(every, plain), figures(clean, plain), said)
    console.print(table)


def plain(value: float) -> str:
    return f"{value:.2f}"


def figures(at: Spread | None, text: object) -> str:
    assert callable(text)
    return f"{text(at.median)} ({text(at.low)} - {text(at.high)}), {at.rounds}" if at else "-"
