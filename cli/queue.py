# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi queue list|watch|show|check|dump`: the virtqueues of a running daemon, from outside and while they work.

How one queue is shown stands in `queue_show.py`, how the live view works in `queue_watch.py`, how the picture is drawn
in `ring_picture.py`.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, Final

import click

from vhost_scsi.cli import queue_show
from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import print_json, print_table, say
from vhost_scsi.cli.queue_show import bound_ns, place, state
from vhost_scsi.errors import ConfigError

QUEUE_COLUMNS: Final = (
    *("port", ">queue", "kind", "state", "layout", ">size", ">worker", ">avail", ">used", ">in flight"),
    *(">requests", ">a batch", ">kicks", ">interrupts", ">suppressed", ">p50", ">p99"),
)
QUEUE_METAVAR: Final = "[PORT:]INDEX"
# RPC takes a number, and a hostile one costs it nothing, but a line of it would be no help to anybody.
MAX_DIGITS: Final = 5


@click.group("queue")
def command() -> None:
    """Look into the virtqueues of a running daemon. Nothing is stopped or woken by it."""


def parse_queue(text: str) -> dict[str, Any]:
    """The parameters of a method that takes one queue."""
    port, _, index = text.rpartition(":")
    if not re.fullmatch(rf"[0-9]{{1,{MAX_DIGITS}}}", index):
        raise ConfigError(f"{text!r} is not {QUEUE_METAVAR}")
    return {"index": int(index), **({"port": port} if port else {})}


@command.command("list")
@which_daemon
def list_(name: str, control: str | None, as_json: bool) -> None:
    """List every virtqueue of every port.

    AVAIL and USED are the device's own indices, A BATCH is how many requests it finds at once on average, P50 and P99
    are what half and 99 % of the requests stayed below, from being taken to being answered.
    """
    with connect(name, control) as daemon:
        answer = daemon.call("queue.list")
    if as_json:
        print_json(answer)
        return
    print_table(QUEUE_COLUMNS, [_row(queue) for queue in answer["queues"]])


def _row(queue: dict[str, Any]) -> tuple[Any, ...]:
    return (
        *(queue["port"], queue["index"], queue["name"], state(queue), queue["layout"], queue["size"] or None),
        queue["worker"],
        place(queue["last_avail"], queue["avail_wrap"]),
        place(queue["used_idx"], queue["used_wrap"]),
        *(queue["in_flight"], queue["requests"]),
        f"{queue['requests'] / queue['batches']:.1f}" if queue["batches"] else None,
        *(queue["kicks"], queue["interrupts"], queue["interrupts_suppressed"]),
        *(bound_ns(queue["latency"], which) for which in ("p50_ns", "p99_ns")),
    )


@command.command("watch")
@click.option(
    "--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, metavar="S", help="between two looks"
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="end after so many looks")
@which_daemon
def watch(interval: float, count: int | None, name: str, control: str | None, as_json: bool) -> None:
    """Show the virtqueues live, with a line of history each, until Ctrl-C.

    On a terminal one table that changes; elsewhere, and with --json, one look after another.
    """
    from vhost_scsi.cli import queue_watch

    with connect(name, control) as daemon:
        queue_watch.watch(lambda: daemon.call("queue.list"), interval, count, as_json)


@command.command("show")
@click.argument("queue", metavar=QUEUE_METAVAR, required=False)
@click.option("--from", "source", metavar="DUMP", help="a file that `queue dump` or the stall watchdog wrote")
@click.option("--tables", is_flag=True, help="every descriptor of every chain, indirect tables included")
@which_daemon
def show(queue: str | None, source: str | None, tables: bool, name: str, control: str | None, as_json: bool) -> None:
    """Show one virtqueue: where driver and device stand and who is to be notified next, the ring, every request in it.

    INDEX is 0 for the control queue, 1 for the event queue, and from 2 on for request queues. With --from no daemon is
    asked, and the file may come from another machine.
    """
    answer = obtain("queue.show", queue, source, name, control, tables=tables)
    if as_json:
        print_json(answer)
        return
    queue_show.print_queue(answer, tables=tables)


def obtain(
    method: str, queue: str | None, source: str | None, name: str, control: str | None, **more: Any
) -> dict[str, Any]:
    """What a daemon says of a queue, or what a dump says."""
    if (queue is None) == (source is None):
        raise click.UsageError(f"either {QUEUE_METAVAR} or --from DUMP is wanted")
    if source is not None:
        from vhost_scsi.daemon.dump import read_dump

        return read_dump(source)
    assert queue is not None
    parameters = parse_queue(queue)
    with connect(name, control) as daemon:
        return daemon.call(method, **parameters, **more)


@command.command("check")
@click.argument("queue", metavar=QUEUE_METAVAR, required=False)
@click.option(
    "--settle", "settle_ms", type=click.IntRange(0, 10_000), default=100, show_default=True, metavar="MS",
    help="how long a kick or interrupt must have been missing",
)  # fmt: skip
@click.option("--from", "source", metavar="DUMP", help="what a dump says, instead of asking a daemon")
@which_daemon
def check(queue: str | None, settle_ms: int, source: str | None, name: str, control: str | None, as_json: bool) -> None:
    """Name every rule that the driver's ring breaks, and every kick or interrupt that is missing; of all queues, if
    none is given. Ends with exit code 9 if there is anything."""
    from vhost_scsi.daemon.errors import QueueBroken

    if source is not None:
        dump = obtain("queue.show", queue, source, name, control)
        answer = {"schema_version": dump["schema_version"], "queues": [{**dump["queue"], **dump["check"]}]}
    else:
        parameters = parse_queue(queue) if queue is not None else {}
        with connect(name, control) as daemon:
            answer = daemon.call("queue.check", settle_ms=settle_ms, **parameters)
    broken = sum(finding["forbidden"] for each in answer["queues"] for finding in each["findings"])
    if as_json:
        print_json(answer)
    else:
        queue_show.print_findings(answer["queues"])
    if broken:
        raise QueueBroken(f"{broken} thing{'s are' if broken > 1 else ' is'} wrong")


@command.command("dump")
@click.argument("queue", metavar=QUEUE_METAVAR, required=False)
@click.option("--from", "source", metavar="DUMP", help="draw a dump, instead of asking a daemon")
@click.option("--out", metavar="FILE", help="the dump, as `queue show --from` reads it [default: standard output]")
@click.option("--svg", metavar="FILE", help="a picture of the ring")
@click.option("--png", metavar="FILE", help="a picture of the ring")
@which_daemon
def dump(
    queue: str | None,
    source: str | None,
    out: str | None,
    svg: str | None,
    png: str | None,
    name: str,
    control: str | None,
    as_json: bool,
) -> None:
    """Write all that is known of one virtqueue into one file, for a bug report; or draw it.

    A dump holds the ring, the CDBs and the addresses of requests, and what the check found; no data of anybody.
    """
    from vhost_scsi.cli import ring_picture

    answer = obtain("queue.dump", queue, source, name, control)
    if svg is not None:
        write_file(svg, ring_picture.svg(answer).encode())
    if png is not None:
        write_file(png, ring_picture.png(answer))
    text = json.dumps(answer, indent=2)
    if out is not None:
        write_file(out, text.encode() + b"\n")
    elif as_json or (svg is None and png is None):
        print_json(answer)


def write_file(path: str, data: bytes) -> None:
    """Whole or not at all."""
    draft = f"{path}.{os.getpid()}.new"
    try:
        try:
            with open(draft, "wb") as handle:
                handle.write(data)
            os.replace(draft, path)
        except BaseException:
            if os.path.exists(draft):
                os.unlink(draft)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    say(f"wrote {path}")
