# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi queue list|show`: the virtqueues of a running daemon, from outside and while they work."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import duration, print_json, print_table, say, size
from vhost_scsi.errors import ConfigError

STRIP_WIDTH: Final = 64
QUEUE_COLUMNS: Final = (
    *("port", ">queue", "kind", "state", ">size", ">worker", ">avail", ">used", ">in flight"),
    *(">requests", ">kicks", ">interrupts", ">suppressed"),
)
# In a strip that is shortened a cell shows the most telling of its descriptors.
TELLING: Final = "FoPu-."


@click.group("queue")
def command() -> None:
    """Look into the virtqueues of a running daemon."""


@command.command("list")
@which_daemon
def list_(name: str, control: str | None, as_json: bool) -> None:
    """List every virtqueue of every port."""
    with connect(name, control) as daemon:
        answer = daemon.call("queue.list")
    if as_json:
        print_json(answer)
        return
    print_table(
        QUEUE_COLUMNS,
        [
            (
                queue["port"],
                queue["index"],
                queue["name"],
                state(queue),
                queue["size"] or None,
                queue["worker"],
                _place(queue["last_avail"], queue.get("avail_wrap")),
                _place(queue["used_idx"], queue.get("used_wrap")),
                queue["in_flight"],
                queue["requests"],
                queue["kicks"],
                queue["interrupts"],
                queue["interrupts_suppressed"],
            )
            for queue in answer["queues"]
        ],
    )


@command.command("show")
@click.argument("queue", metavar="[PORT:]INDEX")
@which_daemon
def show(queue: str, name: str, control: str | None, as_json: bool) -> None:
    """Show one virtqueue: indices, flags, event index, the ring, and every request in flight.

    INDEX is 0 for the control queue, 1 for the event queue, and from 2 on for request queues.
    """
    port, _, index = queue.rpartition(":")
    if not (index.isascii() and index.isdigit()) or len(index) > 5:
        raise ConfigError(f"{queue!r} is not [PORT:]INDEX")
    with connect(name, control) as daemon:
        answer = daemon.call("queue.show", index=int(index), **({"port": port} if port else {}))
    if as_json:
        print_json(answer)
        return
    _print_queue(answer["queue"])
    if answer["ring"] is None:
        say("the ring does not run: the driver has not set it up")
    else:
        _print_ring(answer["ring"])
    _print_tasks(answer["tasks"])


def state(queue: dict[str, Any]) -> str:
    """One word."""
    if queue["broken"]:
        return f"broken ({queue['error']})"
    if not queue["started"]:
        return "stopped"
    if not queue["enabled"]:
        return "disabled"
    return "stalled" if queue.get("stalled") else "running"


def _print_queue(queue: dict[str, Any]) -> None:
    say(
        f"port {queue['port']}, queue {queue['index']} ({queue['name']}): {state(queue)}, "
        f"{queue['layout']} ring of {queue['size']}, worker {queue['worker']}"
    )
    say(f"features     {' '.join(queue['features']) or 'none'}")
    say(
        f"requests     {queue['requests']} in {queue['batches']} batches (at most {queue['max_batch']}), "
        f"{queue['in_flight']} in flight"
    )
    say(
        f"notices      {queue['kicks']} kicks, {queue['interrupts']} interrupts, "
        f"{queue['interrupts_suppressed']} suppressed"
    )


def _place(index: int, wrap: bool | None) -> str:
    """An index; of a packed ring a descriptor and the wrap counter there."""
    return str(index) if wrap is None else f"{index}/{wrap:d}"


def _event(event: dict[str, Any] | None) -> str:
    """What one side of a packed ring wants to be told of."""
    if event is None:
        return "unreadable"
    words = {"ENABLE": "always", "DISABLE": "never", "DESC": f"at descriptor {_place(event['index'], event['wrap'])}"}
    return words.get(event["mode"], f"reserved {event['mode']}")


def _print_packed_indices(ring: dict[str, Any]) -> None:
    def told(place: dict[str, Any] | None) -> str:
        return "unknown" if place is None else _place(place["index"], place["wrap"])

    say(
        f"available    taken to {told(ring['next_avail'])} ({len(ring['chains'])} chains waiting), "
        f"kick {_event(ring['device_event'])}"
    )
    say(
        f"used         next {told(ring['next_used'])}, {ring['held'] or 0} descriptors held, "
        f"interrupt {_event(ring['driver_event'])}"
    )


def _print_ring(ring: dict[str, Any]) -> None:
    if ring["layout"] == "packed":
        _print_packed_indices(ring)
    else:
        _print_split_indices(ring)
    say(f"descriptors  {shorten(ring['strip'])}")
    say(f"             {', '.join(f'{mark} {text}' for mark, text in ring['legend'].items())}")
    if ring["moved"]:
        say("             the ring moved while it was read: what is shown may be of two moments")
    for violation in ring["violations"] + [item for chain in ring["chains"] for item in chain["violations"]]:
        say(f"{'broken rule' if violation['forbidden'] else 'remark'}: {violation['text']}")


def _print_split_indices(ring: dict[str, Any]) -> None:
    unread = "?" if ring["avail_idx"] is None else (ring["avail_idx"] - ring["last_avail"]) % 65536
    say(
        f"available    idx {_value(ring['avail_idx'])}, taken to {ring['last_avail']} ({unread} waiting), "
        f"flags {_flags(ring['avail_flags'])}, used_event {_value(ring['used_event'])}"
    )
    say(
        f"used         idx {_value(ring['used_idx'])}, flags {_flags(ring['used_flags'])}, "
        f"avail_event {_value(ring['avail_event'])}"
    )


def _print_tasks(tasks: list[dict[str, Any]]) -> None:
    if not tasks:
        say("in flight    nothing")
        return
    say()
    print_table(
        [">head", "unit", "at", "command", ">lba", ">length", ">segments", ">age", "where", ">there", "cdb"],
        [
            (
                task["head"],
                task["unit"],
                f"{task['target']}:{task['lun']}",
                re.sub(r" (?:lba|blocks) \d+", "", task["command"]),  # they have columns of their own
                task["lba"],
                size(task["length_bytes"]),
                task["segments"],
                duration(task["age_us"]),
                f"{task['layer']}, aborted" if task["aborted"] else task["layer"],
                duration(task["layer_us"]),
                task["cdb"],
            )
            for task in tasks
        ],
    )


def shorten(strip: str, width: int = STRIP_WIDTH) -> str:
    """At most `width` cells; each stands for as many descriptors as it must."""
    per_cell = -(-len(strip) // width)
    if per_cell <= 1:
        return f"[{strip}]"
    cells = (strip[start : start + per_cell] for start in range(0, len(strip), per_cell))
    shown = "".join(min(cell, key=TELLING.index) for cell in cells)
    return f"[{shown}] {per_cell} a cell"


def _value(value: int | None) -> str:
    return "unreadable" if value is None else str(value)


def _flags(flags: list[str] | None) -> str:
    return "unreadable" if flags is None else (" ".join(flags) or "0")
