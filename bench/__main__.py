# SPDX-License-Identifier: Apache-2.0
"""`python -m bench`: runs the cases in rounds, each case once a round, and shows what came out.

It judges nothing: the exit code tells whether the measurements ran and counted correctly, not how fast they were.
"""

from __future__ import annotations

import json
import os
import platform
import sys

import click
from rich.console import Console

from bench import ring, summary
from bench.cases import CASES, RATIOS, Case


def machine() -> dict[str, object]:
    with open("/proc/cpuinfo", encoding="ascii") as info:
        models = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.machine(), "cpus": os.cpu_count(), "kernel": platform.release()}


def measure(cases: tuple[Case, ...], rounds: int, seconds: float) -> dict[str, list[ring.Sample]]:
    ring.build()
    driver, worker = ring.cpus()
    options = ["--seconds", str(seconds), "--driver-cpu", str(driver), "--worker-cpu", str(worker)]
    samples: dict[str, list[ring.Sample]] = {case.name: [] for case in cases}
    for _ in range(rounds):
        for case in cases:
            samples[case.name].append(ring.run(case, *options))
    return samples


@click.command()
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Samples of each case.")
@click.option("--seconds", type=click.FloatRange(0.01, 60), default=0.4, show_default=True, help="Length of a sample.")
@click.option("--case", "names", multiple=True, type=click.Choice([case.name for case in CASES]), help="Only these.")
@click.option("--json", "as_json", is_flag=True, help="Everything, each sample included.")
def main(rounds: int, seconds: float, names: tuple[str, ...], as_json: bool) -> None:
    """Measure one worker of the data plane against a polled driver."""
    cases = tuple(case for case in CASES if not names or case.name in names)
    try:
        samples = measure(cases, rounds, seconds)
    except ring.BenchError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(summary.as_json(cases, RATIOS, samples, machine()), indent=2))
        return
    about = machine()
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"{about['cpu']}, {about['cpus']} CPUs, Linux {about['kernel']}, {samples[cases[0].name][0].engine}")
    summary.show(console, cases, RATIOS, samples)


if __name__ == "__main__":
    main()
