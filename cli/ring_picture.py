# SPDX-License-Identifier: Apache-2.0
"""A virtqueue as a picture, for a bug report: who has each descriptor, where both sides stand, what is wrong, and the
oldest requests. Drawn once, as a list of rectangles and words; SVG and PNG are two ways to write that list down.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from typing import Any, Final
from xml.sax.saxutils import escape, quoteattr

from vhost_scsi.cli.output import duration
from vhost_scsi.cli.printable import printable
from vhost_scsi.cli.queue_show import TELLING, bound_ns, common, finding_line, state, where

WIDTH: Final = 1180
MARGIN: Final = 30
INNER: Final = WIDTH - 2 * MARGIN
COLUMNS: Final = 64
MAX_CELLS: Final = 512
CELL: Final = 16
PITCH: Final = 17
MAX_REQUESTS: Final = 8
MAX_FINDINGS: Final = 6
WRAP: Final = 140
MAX_TEXT: Final = 400

INK, PALE, LINE, RED, PAPER = "#1c2430", "#697386", "#c9d0da", "#c62828", "#ffffff"
# Told apart by brightness too, for who does not see colours.
FILLS: Final = {".": "#edf0f4", "p": "#f5b800", "f": "#1f7a4d", "o": "#4aa3c7", "u": "#b4218f"}
SHORT: Final = {".": "free", "p": "posted", "f": "in flight", "o": "posted or in flight", "u": "used, not seen"}


@dataclass(frozen=True, slots=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    fill: str


@dataclass(frozen=True, slots=True)
class Words:
    """`y` is the base line."""

    x: float
    y: float
    text: str
    points: int = 14
    fill: str = INK
    bold: bool = False
    anchor: str = "start"


@dataclass(slots=True)
class Drawing:
    items: list[Box | Words]
    height: float = MARGIN

    def write(self, text: str, *, points: int = 14, fill: str = INK, bold: bool = False, wrap: int = WRAP) -> None:
        """A paragraph below what is there."""
        for line in textwrap.wrap(printable(text)[:MAX_TEXT], wrap) or [""]:
            self.height += points * 1.45
            self.items.append(Words(MARGIN, self.height, line, points, fill, bold))

    def gap(self, height: float = 16) -> None:
        self.height += height


def draw(answer: dict[str, Any]) -> Drawing:
    queue, ring = answer["queue"], answer["ring"]
    drawing = Drawing([])
    latency = queue["latency"]
    drawing.write(
        f"port {queue['port']}, queue {queue['index']} ({queue['name']}): {state(queue)}, "
        f"{queue['layout']} ring of {queue['size']}",
        points=22,
        bold=True,
    )
    told = f"{answer['taken_at']}, {answer['why']}: " if "taken_at" in answer else ""
    times = f", half {bound_ns(latency, 'p50_ns')}, 99 % {bound_ns(latency, 'p99_ns')}" if latency["count"] else ""
    worker = f"worker {queue['worker']} {'asleep' if answer['worker']['sleeping'] else 'awake'}"
    drawing.write(
        f"{told}{queue['requests']} requests, {queue['in_flight']} in flight{times}, {queue['kicks']} kicks, "
        f"{queue['interrupts']} interrupts, {worker}",
        fill=PALE,
    )
    if ring is None:
        drawing.write("the ring does not run")
    else:
        _draw_cells(drawing, ring)
        _draw_standing(drawing, ring)
    _draw_findings(drawing, answer.get("check", {}).get("findings", []))
    _draw_requests(drawing, answer["tasks"] + answer["lying"])
    drawing.gap(MARGIN)
    return drawing


def _draw_cells(drawing: Drawing, ring: dict[str, Any]) -> None:
    owners: str = ring["owners"]
    per_cell = max(1, -(-len(owners) // MAX_CELLS))
    groups = [owners[start : start + per_cell] for start in range(0, len(owners), per_cell)]
    left = MARGIN + INNER - COLUMNS * PITCH
    drawing.gap()
    top = drawing.height
    for number, group in enumerate(groups):
        row, column = divmod(number, COLUMNS)
        y = top + row * (PITCH + 3)
        mark = min(group, key=TELLING.index)
        drawing.items.append(Box(left + column * PITCH, y, CELL, CELL, FILLS[mark]))
        if column == 0:
            label = str(number * per_cell)
            drawing.items.append(Words(left - 6, y + CELL - 4, label, 11, PALE, anchor="end"))
    drawing.height = top + -(-len(groups) // COLUMNS) * (PITCH + 3)
    if per_cell > 1:
        drawing.write(
            f"{per_cell} descriptors a cell; a cell has the colour of the most telling one", points=12, fill=PALE
        )
    drawing.gap(10)
    x: float = left
    for mark, word in SHORT.items():
        if mark == "o" and "o" not in owners:
            continue
        text = f"{word} ({owners.count(mark)})"
        drawing.items.append(Box(x, drawing.height, CELL, CELL, FILLS[mark]))
        drawing.items.append(Words(x + CELL + 6, drawing.height + CELL - 3, text, 13))
        x += 60 + 8.0 * len(text)
    drawing.height += CELL


def _draw_standing(drawing: Drawing, ring: dict[str, Any]) -> None:
    standing = ring["standing"]
    if standing is None:
        drawing.write("the ring cannot be read", fill=RED)
        return
    drawing.gap()
    if ring["layout"] == "split":
        _draw_indices(drawing, ring, standing)
    drawing.gap(6)
    for word, key in (("next kick", "next_kick"), ("next interrupt", "next_interrupt")):
        decision = standing[key]
        answer = "DUE NOW" if decision["due"] else {True: "yes", False: "no", None: "unknown"}[decision["wanted"]]
        drawing.write(f"{word}: {answer}. {decision['why']}", fill=RED if decision["due"] else INK)


def _draw_indices(drawing: Drawing, ring: dict[str, Any], standing: dict[str, Any]) -> None:
    """The way of an entry from right to left: made available, taken, used, seen; and where each side stands on it."""
    parts = (
        ("u", "unseen", "driver has seen up to", ring["used_event"] if standing["unseen"] is not None else None),
        ("f", "in_flight", "used.idx", ring["used_idx"]),
        ("p", "posted", "device has taken up to", ring["last_avail"]),
    )
    width = INNER / 3
    y = drawing.height + 18
    for place, (mark, key, label, index) in enumerate(parts):
        x = MARGIN + place * width
        count = standing[key]
        drawing.items.append(Box(x, y, width, 34, FILLS[mark] if count else FILLS["."]))
        text = f"{'?' if count is None else count} {SHORT[mark]}"
        on_dark = bool(count) and mark in "fu"
        drawing.items.append(Words(x + width / 2, y + 23, text, 16, PAPER if on_dark else INK, True, "middle"))
        known = "unknown" if index is None else str(index)
        drawing.items.append(Words(x, y - 6, f"{label} {known}", 13, PALE))
    drawing.items.append(Words(MARGIN + INNER, y - 6, f"avail.idx {ring['avail_idx']}", 13, PALE, anchor="end"))
    drawing.height = y + 34


def _draw_findings(drawing: Drawing, findings: list[dict[str, Any]]) -> None:
    if not findings:
        return
    drawing.gap()
    drawing.write("What is wrong", points=16, bold=True, fill=RED)
    for finding in findings[:MAX_FINDINGS]:
        drawing.write(finding_line(finding), fill=RED if finding["forbidden"] else INK)
    if len(findings) > MAX_FINDINGS:
        drawing.write(f"and {len(findings) - MAX_FINDINGS} more")


def _draw_requests(drawing: Drawing, requests: list[dict[str, Any]]) -> None:
    drawing.gap()
    drawing.write("Requests, oldest first" if requests else "No request is in it", points=16, bold=True)
    if not requests:
        return
    drawing.gap(4)
    columns = (
        ("head", 0),
        ("age", 60),
        ("where", 150),
        ("for", 420),
        ("at", 510),
        ("command", 640),
        ("LBA", 860),
        ("length", 1010),
    )
    rows = [[name for name, _ in columns]]
    for request in requests[:MAX_REQUESTS]:
        unit, place, command, lba, length = common(request)
        at = " ".join(str(word) for word in (unit, place) if word is not None)
        rows.append([
            str(request["head"]), duration(request["age_us"]), where(request), duration(request["layer_us"]),
            at, command, "-" if lba is None else str(lba), length,
        ])  # fmt: skip
    for number, row in enumerate(rows):
        drawing.height += 20
        for text, (_, x), (_, following) in zip(row, columns, (*columns[1:], ("", INNER)), strict=True):
            room = max(1, int((following - x) / 7.6))
            words = printable(text)
            words = words if len(words) <= room else f"{words[: room - 1]}~"
            drawing.items.append(Words(MARGIN + x, drawing.height, words, 13, INK if number else PALE))
    if len(requests) > MAX_REQUESTS:
        drawing.write(f"and {len(requests) - MAX_REQUESTS} more", points=13, fill=PALE)


def svg(answer: dict[str, Any]) -> str:
    drawing = draw(answer)
    height = round(drawing.height)
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "width": WIDTH,
        "height": height,
        "viewBox": f"0 0 {WIDTH} {height}",
        "font-family": "DejaVu Sans, Verdana, Helvetica, sans-serif",
    }
    lines = [
        f"<svg {' '.join(f'{name}={quoteattr(str(value))}' for name, value in attributes.items())}>",
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
    ]
    for item in drawing.items:
        if isinstance(item, Box):
            lines.append(
                f'<rect x="{item.x:.1f}" y="{item.y:.1f}" width="{item.width:.1f}" height="{item.height:.1f}" '
                f'fill="{item.fill}"/>'
            )
        else:
            weight = ' font-weight="bold"' if item.bold else ""
            lines.append(
                f'<text x="{item.x:.1f}" y="{item.y:.1f}" font-size="{item.points}" fill="{item.fill}" '
                f"text-anchor={quoteattr(item.anchor)}{weight}>{escape(item.text)}</text>"
            )
    return "\n".join([*lines, "</svg>", ""])


def png(answer: dict[str, Any], scale: int = 2) -> bytes:
    from PIL import Image, ImageDraw, ImageFont

    drawing = draw(answer)
    image = Image.new("RGB", (WIDTH * scale, round(drawing.height) * scale), PAPER)
    canvas = ImageDraw.Draw(image)
    anchors = {"start": "ls", "middle": "ms", "end": "rs"}
    for item in drawing.items:
        if isinstance(item, Box):
            right, bottom = (item.x + item.width) * scale - 1, (item.y + item.height) * scale - 1
            canvas.rectangle((item.x * scale, item.y * scale, right, bottom), fill=item.fill)
        else:
            canvas.text(
                (item.x * scale, item.y * scale),
                item.text,
                fill=item.fill,
                font=ImageFont.load_default(item.points * scale),
                anchor=anchors[item.anchor],
                # The font that comes with Pillow has no bold.
                stroke_width=1 if item.bold else 0,
            )
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()
