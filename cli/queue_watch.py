# SPDX-License-Identifier: Apache-2.0
"""The live view of `queue watch`: rates between two looks, and a line of history for each queue.

One connection, one question an interval. It measures nothing by itself: rates are differences of the daemon's counters.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi.cli.output import nanoseconds, on_terminal, print_table, say
from vhost_scsi.cli.printable import printable
from vhost_scsi.cli.queue_show import state

if TYPE_CHECKING:
    from rich.table import Table

HISTORY: Final = 40
BARS: Final = "▁▂▃▄▅▆▇█"
COLUMNS: Final = (
    *("queue", "kind", "state", ">requests/s", ">in flight", ">a batch", ">kicks/s", ">interrupts/s", ">suppressed"),
    *(">p50", ">p99", "requests/s so far"),
)

Key = tuple[str, int]


@dataclass(slots=True)
class History:
    """Of one queue."""

    rates: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    last: dict[str, Any] | None = None
    at: float = 0.0


class Watcher:
    """Turns one answer of queue.list after another into rows."""

    def __init__(self) -> None:
        self._queues: dict[Key, History] = {}

    def rows(self, answer: dict[str, Any]) -> list[dict[str, Any]]:
        """With rates for queues that were seen before; None else."""
        return [self._row(queue, answer["taken_at"]) for queue in answer["queues"]]

    def _row(self, queue: dict[str, Any], now: float) -> dict[str, Any]:
        history = self._queues.setdefault((queue["port"], queue["index"]), History())
        before, seconds = history.last, now - history.at
        history.last, history.at = queue, now
        row: dict[str, Any] = {
            **{name: queue[name] for name in ("port", "index", "name", "in_flight")},
            "state": state(queue),
            **dict.fromkeys(RATES),
            "a_batch": None,
            "p50_ns": None,
            "p99_ns": None,
        }
        if before is not None and seconds > 0 and queue["requests"] >= before["requests"]:
            row |= {name: (queue[counter] - before[counter]) / seconds for name, counter in RATES.items()}
            batches = queue["batches"] - before["batches"]
            row["a_batch"] = (queue["requests"] - before["requests"]) / batches if batches > 0 else None
            latency = queue["latency"]
            new = [now - then for now, then in zip(latency["log2_ns"], before["latency"]["log2_ns"], strict=True)]
            row |= {name: below(new, part, latency["first_limit_ns"]) for name, part in PARTS.items()}
            history.rates.append(row["requests_per_s"])
        row["history"] = list(history.rates)
        return row


RATES: Final = {
    "requests_per_s": "requests",
    "kicks_per_s": "kicks",
    "interrupts_per_s": "interrupts",
    "suppressed_per_s": "interrupts_suppressed",
}
PARTS: Final = {"p50_ns": 0.5, "p99_ns": 0.99}


def below(counts: list[int], part: float, first: int) -> int | None:
    """The lowest limit that this part stayed below; limits double from `first` on, and the last has none."""
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if count and seen >= part * sum(counts):
            return first << bucket if bucket < len(counts) - 1 else None
    return None


def sparkline(rates: list[float]) -> str:
    """The highest is a full bar."""
    top = max(rates, default=0.0)
    if top <= 0:
        return BARS[0] * len(rates)
    return "".join(BARS[min(len(BARS) - 1, int(rate / top * len(BARS)))] for rate in rates)


def cells(row: dict[str, Any]) -> tuple[Any, ...]:
    def number(value: float | None) -> str | None:
        return None if value is None else f"{value:.0f}"

    return (
        f"{row['port']}:{row['index']}",
        *(row["name"], row["state"], number(row["requests_per_s"]), row["in_flight"]),
        None if row["a_batch"] is None else f"{row['a_batch']:.1f}",
        *(number(row[name]) for name in ("kicks_per_s", "interrupts_per_s", "suppressed_per_s")),
        *(None if row[name] is None else f"<{nanoseconds(row[name])}" for name in PARTS),
        sparkline(row["history"]),
    )


def watch(look: Callable[[], dict[str, Any]], interval: float, count: int | None, as_json: bool) -> None:
    """Until Ctrl-C, or `count` looks."""
    watcher = Watcher()
    looks = range(count) if count is not None else iter(int, 1)
    if as_json or not on_terminal():
        for number, _ in enumerate(looks):
            if number:
                time.sleep(interval)
            rows = watcher.rows(look())
            if as_json:
                say(json.dumps({"schema_version": 1, "queues": rows}), painted=True)
            else:
                print_table(COLUMNS, [cells(row) for row in rows])
        return
    from rich.live import Live

    with Live(table([]), auto_refresh=False, screen=False) as live:
        for number, _ in enumerate(looks):
            if number:
                time.sleep(interval)
            live.update(table(watcher.rows(look())), refresh=True)


def table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    found = Table(header_style="bold")
    for name in COLUMNS:
        found.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", no_wrap=True)
    for row in rows:
        texts = ["-" if cell is None else printable(str(cell)) for cell in cells(row)]
        styles = ["", "", "" if row["state"] == "running" else "red", *[""] * (len(texts) - 4), "green"]
        found.add_row(*(Text(text, style) for text, style in zip(texts, styles, strict=True)))
    return found
