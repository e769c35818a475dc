# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi lun list|add|remove|replace|resize|access|eject|insert`: the logical units of a running daemon: places,
size, target port groups, and what is in their drives."""

from __future__ import annotations

from typing import Any

import click

from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import print_json, print_table, say, size
from vhost_scsi.daemon import grammar
from vhost_scsi.daemon.hot_plug import MAX_PATIENCE
from vhost_scsi.errors import ConfigError
from vhost_scsi.stores import absolute, parse_store, values


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
        ["unit", "at", ">size", ">block", "mode", "medium", "store", ">reads", ">writes", ">failed", "uuid"],
        [_row(unit) for unit in answer["logical_units"]],
    )


_patience = click.option(
    "--patience",
    type=float,
    default=None,
    metavar="SECONDS",
    help="How long its users have to let go of it (5); 0 takes it away at once.",
)


@command.command("add")
@click.argument("what", metavar="PLACE=URL[,option=value...]")
@click.option("--unit-name", default=None, help="What the logical unit is called; else it is made up of the place.")
@which_daemon
def add(what: str, unit_name: str | None, name: str, control: str | None, as_json: bool) -> None:
    """Add a logical unit to a running daemon, such as 0:1=disk.img or iqn.2026-11.example:disks:1=disk.img.

    PLACE is PORT:TARGET:LUN or TARGET:LUN on a port, IQN:LUN or LUN in an iSCSI target. Guests and initiators that are
    there are told.
    """
    place, equals, text = what.partition("=")
    if not equals or not place or not text:
        raise ConfigError(f"lun add {what}: not PLACE=URL, such as 0:1=disk.img")
    asked = {"name": unit_name} if unit_name else {}
    with connect(name, control) as daemon:
        answer = daemon.call("lun.add", place=place, unit=_unit(f"lun add {what}", text), **asked)
    if as_json:
        print_json(answer)
        return
    say(f"{answer['name']}: {answer['size_bytes']} bytes at {place}")


@command.command("remove")
@click.argument("what", metavar="NAME|PLACE")
@_patience
@which_daemon
def remove(what: str, patience: float | None, name: str, control: str | None, as_json: bool) -> None:
    """Take a logical unit away, everywhere or from one place of several.

    Guests and initiators are told, and may end what they have begun; what is in flight when their time is over is ended
    with an error. A unit that stands nowhere any more is closed, and its image free for others.
    """
    with connect(name, control) as daemon:
        answer = daemon.call("lun.remove", what=what, **_milliseconds(patience))
    if as_json:
        print_json(answer)
        return
    say(f"{answer['removed'][0]}: removed" if answer["removed"] else f"{what}: nothing there any more")


@command.command("replace")
@click.argument("lu", metavar="NAME")
@click.argument("text", metavar="URL[,option=value...]")
@_patience
@which_daemon
def replace(lu: str, text: str, patience: float | None, name: str, control: str | None, as_json: bool) -> None:
    """Put another logical unit in all the places of one.

    The new one is opened first. Guests and initiators see the old one go and the new one come.
    """
    with connect(name, control) as daemon:
        answer = daemon.call("lun.replace", lu=lu, unit=_unit(f"lun replace {lu}", text), **_milliseconds(patience))
    if as_json:
        print_json(answer)
        return
    say(f"{answer['name']}: {answer['size_bytes']} bytes, uuid {answer['uuid']}")


def _unit(said: str, text: str) -> dict[str, Any]:
    """The table of a unit. The daemon opens its file, from a directory of its own."""
    table = grammar.logical_unit(said, text)
    return {**table, "url": str(absolute(parse_store(table["url"])[0]))} if "url" in table else table


def _milliseconds(patience: float | None) -> dict[str, int]:
    if patience is None:
        return {}
    if not 0 <= patience <= MAX_PATIENCE:
        raise ConfigError(f"--patience {patience:g}: it goes from 0 to {MAX_PATIENCE:g} seconds")
    return {"patience_ms": int(patience * 1000)}


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


@command.command("eject")
@click.argument("lu", metavar="NAME")
@click.option("--force", is_flag=True, help="Even while an initiator prevents it.")
@which_daemon
def eject(lu: str, force: bool, name: str, control: str | None, as_json: bool) -> None:
    """Open the drive of a removable logical unit and take the medium out.

    Its image is closed then, and free for others. While an initiator has locked the drive it is only told that somebody
    wants the medium.
    """
    with connect(name, control) as daemon:
        answer = daemon.call("lun.eject", lu=lu, force=force)
    if as_json:
        print_json(answer)
        return
    say(f"{answer['name']}: {'taken out' if answer['taken_out'] else 'open, and empty as before'}")


@command.command("insert")
@click.argument("lu", metavar="NAME")
@click.argument("url", metavar="[URL]", default="", required=False)
@which_daemon
def insert(lu: str, url: str, name: str, control: str | None, as_json: bool) -> None:
    """Put a medium into the drive of a removable logical unit, such as another.iso, and close it.

    Without URL the drive is closed with what lies in it, such as what a guest has ejected.
    """
    # The daemon opens the file, from a directory of its own.
    medium = {"url": str(absolute(parse_store(url)[0]))} if url else {}
    with connect(name, control) as daemon:
        answer = daemon.call("lun.insert", lu=lu, **medium)
    if as_json:
        print_json(answer)
        return
    what = f"{answer['size_bytes']} bytes" if answer["medium"]["present"] else "closed, and empty"
    say(f"{answer['name']}: {what}")


def _medium(medium: dict[str, Any] | None) -> str | None:
    """None for what cannot be taken out."""
    if medium is None:
        return None
    words = ["in" if medium["present"] else "ejected" if medium["filled"] else "none"]
    return " ".join(words + ["open"] * medium["open"] + ["locked"] * medium["locked"])


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
        _medium(unit["medium"]),
        unit["store"]["kind"] if unit["medium"] is None or unit["medium"]["filled"] else None,
        unit["stats"]["reads"],
        unit["stats"]["writes"],
        unit["stats"]["failed"],
        unit["uuid"],
    )
