# SPDX-License-Identifier: Apache-2.0
"""How answers are shown: JSON where asked for, tables with rich on a terminal, plain columns elsewhere.

Plain columns have no frames and no colours, so that a pipe gets what awk can read.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from vhost_scsi.cli.printable import printable
from vhost_scsi.errors import VhostScsiError

RIGHT: Final = ">"


class OutputError(VhostScsiError):
    """What was to be said could not be written."""


def say(text: str = "", *, painted: bool = False) -> None:
    """One line on stdout, without control characters; OutputError when it cannot be written. A pipe that nobody reads
    is not ours to explain. `painted`: it has been through `paint`, and is made of our own words."""
    _write(text if painted else printable(text))


def on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def paint(text: str, style: str) -> str:
    """`text` in a style of rich's on a terminal, as it is elsewhere."""
    if not style or not on_terminal() or "NO_COLOR" in os.environ:
        return printable(text)
    codes = {"dim": "2", "bold": "1", "yellow": "33", "green": "32", "cyan": "36", "magenta": "35", "red": "31"}
    return f"\x1b[{';'.join(codes[word] for word in style.split())}m{printable(text)}\x1b[0m"


def _write(text: str) -> None:
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is left in the buffer would fail once more, with words of Python's own, when the process ends.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise OutputError(f"standard output: {error.strerror}") from None


def print_json(value: dict[str, Any]) -> None:
    """One object, indented; `schema_version` first."""
    ordered = {"schema_version": value.get("schema_version"), **value}
    _write(json.dumps(ordered, indent=2))  # of ASCII alone


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "") -> None:
    """A table. A column whose name starts with '>' stands to the right; None is shown as '-'."""
    names = [name.removeprefix(RIGHT) for name in columns]
    right = [name.startswith(RIGHT) for name in columns]
    cells = [["-" if value is None else printable(str(value)) for value in row] for row in rows]
    if on_terminal():
        _print_rich(names, right, cells, title)
        return
    widths = [max(len(row[index]) for row in [names, *cells]) for index in range(len(names))]
    for row in [[name.upper() for name in names], *cells]:
        fields = (
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right, strict=True)
        )
        say("  ".join(fields).rstrip())


def _print_rich(names: Sequence[str], right: Sequence[bool], cells: Sequence[Sequence[str]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", header_style="bold")
    for name, to_right in zip(names, right, strict=True):
        table.add_column(name, justify="right" if to_right else "left")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def size(count: int | None) -> str:
    """Bytes for people: 4 KiB, 1.5 GiB."""
    if count is None:
        return "-"
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"


def duration(microseconds: int | None) -> str:
    """A time span for people: 85 us, 1.2 ms, 3.0 s."""
    if microseconds is None:
        return "-"
    if microseconds < 1000:
        return f"{microseconds} us"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.1f} ms"
    return f"{microseconds / 1e6:.1f} s"


def nanoseconds(count: int) -> str:
    """As `duration`, and below a microsecond."""
    return f"{count} ns" if count < 1000 else duration(count // 1000)


def uptime(seconds: float) -> str:
    """1 d 02:03:04."""
    whole = int(seconds)
    days, rest = divmod(whole, 86400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days} d {clock}" if days else clock
