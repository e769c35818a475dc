# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi request list|show`: every request, from the ring to the completion, with who holds it and since when."""

from __future__ import annotations

from typing import Any, Final

import click

from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import duration, print_json, print_table, say, size
from vhost_scsi.cli.queue_show import REQUEST_COLUMNS, common, where
from vhost_scsi.errors import ConfigError

LAYERS: Final = {
    "ring": "posted by the driver, not taken by the device",
    "gate": "taken, and waits until those before it have gone on",
    "core": "in the data plane",
    "python": "in the control plane, which decides commands that are not media access",
    "store": "in the store, which has not answered yet",
    "completion": "answered; the driver has not looked at it",
}


@click.group("request")
def command() -> None:
    """The requests of a running daemon, wherever they are. Nothing is stopped or woken by looking."""


@command.command("list")
@which_daemon
def list_(name: str, control: str | None, as_json: bool) -> None:
    """List requests, oldest first.

    WHERE is who holds it: ring (posted, not taken), gate, core, python (and the bits of the gate that sent it there),
    store, completion (answered, not seen by the driver); THERE is since when. Of what lies in a ring nobody knows that.
    """
    with connect(name, control) as daemon:
        answer = daemon.call("request.list")
    if as_json:
        print_json(answer)
        return
    print_table(
        REQUEST_COLUMNS,
        [
            (
                row["id"],
                *common(row),
                row["direction"],
                row["segments"],
                duration(row["age_us"]),
                where(row),
                duration(row["layer_us"]),
            )
            for row in answer["requests"]
        ],
    )
    if not answer["complete"]:
        say("there are more: rings that are long or many are not all read for a list")


@command.command("show")
@click.argument("request", metavar="[PORT:]QUEUE:HEAD")
@which_daemon
def show(request: str, name: str, control: str | None, as_json: bool) -> None:
    """Show one request: its CDB in words, where its data goes, who holds it and since when."""
    words = request.rsplit(":", 2)
    if len(words) < 2 or not all(word.isascii() and word.isdigit() and len(word) <= 5 for word in words[-2:]):
        raise ConfigError(f"{request!r} is not [PORT:]QUEUE:HEAD, such as 2:17")
    port = {"port": words[0]} if len(words) == 3 else {}
    with connect(name, control) as daemon:
        answer = daemon.call("request.show", index=int(words[-2]), head=int(words[-1]), **port)
    if as_json:
        print_json(answer)
        return
    _print(answer["request"])


def _print(row: dict[str, Any]) -> None:
    say(f"request      {row['id']}, tag {_known(row['tag'])}, attribute {_known(row['attribute'])}")
    say(f"command      {row['command']}")
    say(f"cdb          {_known(row['cdb'])}")
    place = f"target {row['target']}, LUN {_known(row['lun'])}" if row["target"] is not None else "nowhere"
    say(f"unit         {row['unit'] or 'none'}, at {place}")
    if row["lba"] is not None:
        say(f"medium       LBA {row['lba']}, {_known(row['blocks'])} blocks, {size(row['length_bytes'])}")
    say(f"buffers      {size(row['in_bytes'])} in, {size(row['out_bytes'])} out")
    since = f", for {duration(row['layer_us'])}" if row["layer_us"] is not None else ""
    say(f"where        {where(row)}{since}: {LAYERS.get(row['layer'], '')}")
    if row["age_us"] is not None:
        say(f"age          {duration(row['age_us'])}, on worker {row['worker']}")
    if row["from_guest_memory"]:
        say("             all of this stands in the guest's memory, and may be anything")
    data = row["data"]
    if data is None:
        say("segments     it ended meanwhile")
        return
    if data["segments"]:
        say()
        print_table(
            ["direction", "guest address", ">bytes"],
            [
                (
                    "to the guest" if each["writable"] else "from the guest",
                    None if each["address"] is None else f"{each['address']:#x}",
                    each["length_bytes"],
                )
                for each in data["segments"]
            ],
        )
    if data["count"] > len(data["segments"]):
        say(f"and {data['count'] - len(data['segments'])} more")


def _known(value: object) -> object:
    return "unknown" if value is None else value
