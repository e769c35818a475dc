# SPDX-License-Identifier: Apache-2.0
"""One virtqueue in words, colours and a strip: what `queue show` and `queue check` print, of a daemon or of a dump."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from vhost_scsi.cli.output import duration, nanoseconds, paint, print_table, say, size
from vhost_scsi.cli.printable import printable

STRIP_WIDTH: Final = 64
STRIP_ROWS: Final = 4
# In a strip that is shortened a cell shows the most telling of its descriptors.
TELLING: Final = "fopu."
COLOURS: Final = {".": "dim", "p": "yellow", "f": "bold green", "o": "cyan", "u": "bold magenta"}


def state(queue: dict[str, Any]) -> str:
    """One word."""
    if queue["broken"]:
        return f"broken ({queue['error']})"
    if not queue["started"]:
        return "stopped"
    if not queue["enabled"]:
        return "disabled"
    return "stalled" if queue.get("stalled") else "running"


def bound_ns(latency: dict[str, Any], which: str) -> str | None:
    """What so many requests stayed below."""
    if not latency["count"]:
        return None
    limit = latency[which]
    return "long" if limit is None else f"<{nanoseconds(limit)}"


def print_queue(answer: dict[str, Any], *, tables: bool = False) -> None:
    queue, ring = answer["queue"], answer["ring"]
    if "taken_at" in answer:
        say(f"dump         of {answer['taken_at']}, {answer['why']}")
    _print_numbers(queue, answer["worker"])
    if ring is None:
        say("the ring does not run: the driver has not set it up")
    else:
        _print_ring(ring, queue)
        if tables:
            _print_chains(ring["chains"])
    for each in answer.get("check", {}).get("findings", ()):
        say(finding_line(each))
    print_requests(answer["tasks"] + answer["lying"])


def _print_numbers(queue: dict[str, Any], worker: dict[str, Any]) -> None:
    say(
        f"port {queue['port']}, queue {queue['index']} ({queue['name']}): {state(queue)}, "
        f"{queue['layout']} ring of {queue['size']}, worker {queue['worker']} "
        f"({'asleep' if worker['sleeping'] else 'awake'})"
    )
    say(f"features     {' '.join(queue['features']) or 'none'}")
    say(
        f"requests     {queue['requests']} in {queue['batches']} batches (at most {queue['max_batch']}), "
        f"{queue['in_flight']} in flight"
    )
    sizes = [f"{1 << place}+: {count}" for place, count in enumerate(queue["batch_sizes"]) if count]
    if sizes:
        say(f"batches      of {', '.join(sizes)}")
    latency = queue["latency"]
    if latency["count"]:
        words = ((part, bound_ns(latency, name)) for part, name in PARTS.items())
        say(f"latency      {', '.join(f'{part} {bound}' for part, bound in words)}")
    pending = (("kick", queue["kick_pending"]), ("call", queue["call_pending"]))
    unread = "".join(f", {count} unread in the {which} descriptor" for which, count in pending if count)
    say(
        f"notices      {queue['kicks']} kicks, {queue['interrupts']} interrupts, "
        f"{queue['interrupts_suppressed']} suppressed{unread}"
    )


PARTS: Final = {"50 %": "p50_ns", "90 %": "p90_ns", "99 %": "p99_ns", "99.9 %": "p999_ns"}


def _print_ring(ring: dict[str, Any], queue: dict[str, Any]) -> None:
    if ring["layout"] == "packed":
        _print_packed(ring)
    else:
        _print_split(ring)
    standing = ring["standing"]
    if standing is not None:
        counts = ((standing["posted"], "posted"), (standing["in_flight"], "in flight"), (standing["unseen"], "unseen"))
        say(f"between      {', '.join(f'{_value(count)} {word}' for count, word in counts)}")
        say(f"next kick    {_decision(standing['next_kick'])}")
        say(f"interrupt    {_decision(standing['next_interrupt'])}")
    for number, row in enumerate(strip(ring["owners"])):
        say(f"{'' if number else 'descriptors':<13}{row}", painted=True)
    words = ring["owner_words"]
    legend = (
        f"{paint(mark, COLOURS.get(mark, ''))} {printable(words[mark])}" for mark in words if mark in ring["owners"]
    )
    say(f"             {', '.join(legend)}", painted=True)
    if ring["moved"]:
        say("             the ring moved while it was read: what is shown may be of two moments")
    for violation in ring["violations"] + [item for chain in ring["chains"] for item in chain["violations"]]:
        say(f"{'broken rule' if violation['forbidden'] else 'remark'}: {violation['text']}")


def _decision(decision: dict[str, Any]) -> str:
    word = {True: "yes", False: "no", None: "unknown"}[decision["wanted"]]
    return f"{'DUE NOW' if decision['due'] else word}: {decision['why']}"


def _print_split(ring: dict[str, Any]) -> None:
    unread = "?" if ring["avail_idx"] is None else (ring["avail_idx"] - ring["last_avail"]) % 65536
    say(
        f"available    idx {_value(ring['avail_idx'])}, taken to {ring['last_avail']} ({unread} waiting), "
        f"flags {_flags(ring['avail_flags'])}, used_event {_value(ring['used_event'])}"
    )
    say(
        f"used         idx {_value(ring['used_idx'])}, flags {_flags(ring['used_flags'])}, "
        f"avail_event {_value(ring['avail_event'])}"
    )


def _print_packed(ring: dict[str, Any]) -> None:
    say(
        f"available    taken to {_told(ring['next_avail'])} ({len(ring['chains'])} chains waiting), "
        f"kick {_event(ring['device_event'])}"
    )
    say(
        f"used         next {_told(ring['next_used'])}, {ring['held'] or 0} descriptors held, "
        f"interrupt {_event(ring['driver_event'])}"
    )


def place(index: int, wrap: bool | None) -> str:
    """An index; of a packed ring a descriptor and the wrap counter there."""
    return str(index) if wrap is None else f"{index}/{wrap:d}"


def _told(at: dict[str, Any] | None) -> str:
    return "unknown" if at is None else place(at["index"], at["wrap"])


def _event(event: dict[str, Any] | None) -> str:
    """What one side of a packed ring wants to be told of."""
    if event is None:
        return "unreadable"
    words = {"ENABLE": "always", "DISABLE": "never", "DESC": f"at descriptor {_told(event)}"}
    return words.get(event["mode"], f"reserved {event['mode']}")


def _print_chains(chains: Iterable[dict[str, Any]]) -> None:
    rows = []
    for chain in chains:
        for each in chain["table"]:
            rows.append(
                (
                    chain["head"],
                    chain["state"],
                    f"{'  ' if each['indirect'] else ''}{each['index']}",
                    f"{each['address']:#x}",
                    each["length_bytes"],
                    " ".join(each["flags"]) or None,
                    each["next"] if "NEXT" in each["flags"] else None,
                )
            )
    if rows:
        say()
        print_table([">head", "state", "descriptor", "address", ">bytes", "flags", ">next"], rows)


def strip(owners: str, width: int = STRIP_WIDTH, colour: Callable[[str, str], str] = paint) -> list[str]:
    """Rows of at most `width` cells in colours, at most STRIP_ROWS; each cell stands for as many descriptors as it
    must."""
    per_cell = max(1, -(-len(owners) // (width * STRIP_ROWS)))
    cells = [owners[start : start + per_cell] for start in range(0, len(owners), per_cell)]
    shown = [min(cell, key=TELLING.index) for cell in cells]
    rows = [shown[start : start + width] for start in range(0, len(shown), width)]
    texts = ["".join(colour(mark, COLOURS.get(mark, "")) for mark in row) for row in rows]
    return [
        f"[{text}]{f' {per_cell} a cell' if per_cell > 1 and not number else ''}" for number, text in enumerate(texts)
    ]


REQUEST_COLUMNS: Final = (
    *("request", "unit", "at", "command", ">lba", ">length", "data", ">segments", ">age", "where", ">there"),
)


def print_requests(requests: list[dict[str, Any]]) -> None:
    if not requests:
        say("requests     none in it")
        return
    say()
    print_table(
        [">head", "unit", "at", "command", ">lba", ">length", ">segments", ">age", "where", ">there", "cdb"],
        [
            (
                task["head"],
                *common(task),
                task["segments"],
                duration(task["age_us"]),
                where(task),
                duration(task["layer_us"]),
                task["cdb"],
            )
            for task in requests
        ],
    )


def common(request: dict[str, Any]) -> tuple[Any, ...]:
    """Unit, place, command, LBA, length."""
    known = request["target"] is not None
    lun = "-" if request["lun"] is None else request["lun"]
    return (
        request["unit"],
        f"{request['target']}:{lun}" if known else None,
        re.sub(r" (?:lba|blocks) \d+", "", request["command"]),  # they have columns of their own
        request["lba"],
        size(request["length_bytes"]),
    )


def where(request: dict[str, Any]) -> str:
    gate = f" ({', '.join(request['gate']).lower()})" if request["gate"] else ""
    return f"{request['layer']}{gate}{', aborted' if request['aborted'] else ''}"


def print_findings(queues: Iterable[dict[str, Any]]) -> None:
    for queue in queues:
        head = f"port {queue['port']}, queue {queue['index']} ({queue['name']})"
        if not queue["findings"]:
            say(f"{head}: {'nothing is wrong' if queue['looked_at'] else 'does not run'}")
        for each in queue["findings"]:
            say(f"{head}: {finding_line(each)}")


def finding_line(finding: dict[str, Any]) -> str:
    clause = f" ({finding['clause']})" if finding["clause"] else ""
    place = f", at {finding['address']:#x}" if finding["address"] is not None else ""
    data = f": {finding['bytes']}" if finding["bytes"] else ""
    return f"{'' if finding['forbidden'] else 'remark: '}{finding['rule']}: {finding['text']}{clause}{place}{data}"


def _value(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _flags(flags: list[str] | None) -> str:
    return "unreadable" if flags is None else (" ".join(flags) or "0")
