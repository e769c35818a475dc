# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.iscsi`: our target, tgtd and a bare sendmsg loop in turns, each case and client once a round.

Like bench it judges nothing: the exit code tells whether the measurements ran, not how fast they were.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys

import click
from rich.console import Console

from bench.__main__ import machine
from bench.iscsi import clients, summary, targets
from bench.iscsi.cases import CASES, CLIENTS, RATIOS, Case


def measure(
    cases: tuple[Case, ...], names: tuple[str, ...], size: int, rounds: int, seconds: float, priority: bool
) -> tuple[dict[tuple[str, str, str], list[clients.Sample]], bool]:
    """The samples, and whether clients and targets ran before other programs."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise targets.BenchError("two CPUs are needed: one for the client, one for the target")
    cpus = (usable[0], usable[1])
    samples: dict[tuple[str, str, str], list[clients.Sample]] = {}
    with contextlib.ExitStack() as stack:
        served = [stack.enter_context(start(cpus[1], size)) for start in (targets.ours, targets.tgtd, targets.bare)]
        preferences = [targets.prefer(target) for target in served] if priority else [False]
        preferred = all(preferences)
        for number in range(rounds):
            # Back and forth: what gets slower or faster meanwhile does so for each of them.
            order = served if number % 2 == 0 else served[::-1]
            for case in cases:
                for client in names:
                    for target in order:
                        sample = clients.run(client, case, target, cpus, seconds, preferred)
                        samples.setdefault((client, case.name, target.name), []).append(sample)
    return samples, preferred


@click.command()
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Samples of each kind.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.01, 60),
    default=0.5,
    show_default=True,
    help="Length of a sample; iscsi-perf rounds it up.",
)
@click.option("--size", type=click.IntRange(8), default=1024, show_default=True, help="MiB of a unit.")
@click.option("--case", "names", multiple=True, type=click.Choice([case.name for case in CASES]), help="Only these.")
@click.option("--client", "chosen", multiple=True, type=click.Choice(CLIENTS), help="Only these.")
@click.option(
    "--priority/--no-priority",
    default=True,
    show_default=True,
    help="Run clients and targets before other programs, where that is allowed.",
)
@click.option("--json", "as_json", is_flag=True, help="Everything, each sample included.")
def main(
    rounds: int,
    seconds: float,
    size: int,
    names: tuple[str, ...],
    chosen: tuple[str, ...],
    priority: bool,
    as_json: bool,
) -> None:
    """Measure our iSCSI target beside tgtd and beside the least that a server can do."""
    cases = tuple(case for case in CASES if not names or case.name in names)
    try:
        targets.build()
        samples, preferred = measure(cases, chosen or CLIENTS, size << 20, rounds, seconds, priority)
    except targets.BenchError as error:
        click.echo(f"bench: {error}", err=True)
        sys.exit(1)
    about = {**machine(), "real-time": preferred, "size": size << 20}
    if as_json:
        click.echo(json.dumps(summary.as_json(cases, RATIOS, samples, about), indent=2))
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    kind = "before other programs" if preferred else "among other programs"
    console.print(f"{about['cpu']}, {about['cpus']} CPUs, Linux {about['kernel']}, units of {size} MiB, {kind}")
    summary.show(console, cases, RATIOS, samples)


if __name__ == "__main__":
    main()
