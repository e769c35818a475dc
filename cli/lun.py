# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi lun list|resize|access`: the logical units of a running daemon: places, size, target port groups."""

from __future__ import annotations

from typing import Any

import click

from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import print_json, print_table, say, size
from vhost_scsi.errors import ConfigError
from vhost_scsi.stores import values


@click.group("lun")
def command() -> None:
    """The logical units of a running daemon."""


@command.command("list")
@which_daemon
def list_(name: str, control: str | None, as_json: bool) -> None:
    """List logical units and where they are mapped."""
    with connect(name, control) as daemon:
        answer = daemon.call("lun.list")
    if as_json:
        print_json(answer)
        return
    print_table(
        ["unit", "at", ">size", ">block", "mode", "store", ">reads", ">writes", ">failed", "uuid"],
        [_row(unit) for unit in answer["logical_units"]],
    )


@command.command("resize")
@click.argument("lu", metavar="NAME")
@click.argument("new_size", metavar="[SIZE]", default="", required=False)
@which_daemon
def resize(lu: str, new_size: str, name: str, control: str | None, as_json: bool) -> None:
    """Give a logical unit another size, such as 20G, and tell everybody who uses it.

    Without SIZE it gets the size that its file or device has by now. What is cut off is lost.
    """
    try:
        wanted = values.size(new_size) if new_size else 0
        if new_size and not wanted:
            raise ValueError("not zero")
    except ValueError as error:
        raise ConfigError(f"size {new_size!r}: {error}") from None
    with connect(name, control) as daemon:
        answer = daemon.call("lun.resize", lu=lu, size=wanted)
    if as_json:
        print_json(answer)
        return
    say(f"{answer['name']}: {answer['size_bytes']} bytes, {answer['size_bytes_before']} before")


@command.command("access")
@click.argument("lu", metavar="NAME")
@click.argument("change", metavar="[GROUP STATE]", nargs=-1)
@which_daemon
def access(lu: str, change: tuple[str, ...], name: str, control: str | None, as_json: bool) -> None:
    """Show through which target port groups a logical unit is reached, or change the state of one.

    STATE is active-optimized, active-non-optimized, standby, unavailable or offline. Everybody who uses the unit is
    told.
    """
    if len(change) not in (0, 2) or (change and not change[0].isdigit()):
        raise ConfigError("lun access: NAME alone, or NAME GROUP STATE, such as: disk 2 standby")
    asked: dict[str, Any] = {"group": int(change[0][:9]), "state": change[1]} if change else {}
    with connect(name, control) as daemon:
        answer = daemon.call("lun.access", lu=lu, **asked)
    if as_json:
        print_json(answer)
        return
    rows = [(each["group"], each["state"], ",".join(map(str, each["ports"]))) for each in answer["groups"]]
    print_table([">group", "state", "ports"], rows)


def _row(unit: dict[str, Any]) -> tuple[Any, ...]:
    places = ",".join(
        [f"{place['port']}:{place['target']}:{place['lun']}" for place in unit["mapped"]]
        + [f"{place['target']}:{place['lun']}" for place in unit["iscsi"]]
    )
    return (
        unit["name"],
        places or None,
        size(unit["size_bytes"]),
        unit["block_size"],
        "ro" if unit["read_only"] else "rw",
        unit["store"]["kind"],
        unit["stats"]["reads"],
        unit["stats"]["writes"],
        unit["stats"]["failed"],
        unit["uuid"],
    )
