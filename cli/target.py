# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi target add|remove|list|show`: the iSCSI targets of a running daemon."""

from __future__ import annotations

from typing import Any

import click

from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import print_json, print_table, say
from vhost_scsi.errors import ConfigError


@click.group("target")
def command() -> None:
    """The iSCSI targets of a running daemon."""


@command.command("list")
@which_daemon
def list_(name: str, control: str | None, as_json: bool) -> None:
    """List targets."""
    with connect(name, control) as daemon:
        answer = daemon.call("target.list")
    if as_json:
        print_json(answer)
        return
    print_table(
        ["target", ">luns", ">sessions", "groups", "authentication", ">acl", "state"],
        [
            (
                target["name"],
                target["luns"],
                target["sessions"],
                ",".join(map(str, target["portal_groups"])),
                ",".join(target["authentication"]) or "none",
                target["acl_entries"],
                _state(target),
            )
            for target in answer["targets"]
        ],
    )


@command.command("show")
@click.argument("target", metavar="IQN")
@which_daemon
def show(target: str, name: str, control: str | None, as_json: bool) -> None:
    """Show one target: its LUNs, portals, access list and sessions."""
    with connect(name, control) as daemon:
        answer = daemon.call("target.show", target=target)
    if as_json:
        print_json(answer)
        return
    row = answer["target"]
    say(f"{row['name']}: {_state(row)}{', ' + row['alias'] if row['alias'] else ''}")
    say(f"portals         {' '.join(answer['portals']) or 'none'}")
    say(f"authentication  {', '.join(row['authentication']) or 'none'}")
    for entry in answer["acl"]:
        who = ", ".join(entry["initiators"]) or "anybody"
        where = f" from {', '.join(entry['networks'])}" if entry["networks"] else ""
        luns = (
            ""
            if entry["luns"] is None
            else f", LUNs {' '.join(f'{lun}={unit}' for lun, unit in entry['luns'].items())}"
        )
        say(f"let in          {who}{where}{luns}")
    for lun in answer["luns"]:
        say(f"LUN {lun['lun']:<11} {lun['unit']}")
    for session in answer["sessions"]:
        say(f"session {session['session']:<7} {session['initiator']}, {session['commands']} commands")


@command.command("add")
@click.argument("target", metavar="IQN")
@click.option("--lun", "luns", multiple=True, required=True, metavar="LUN=NAME", help="a logical unit of the daemon")
@click.option("--alias", metavar="TEXT", help="what initiators show")
@which_daemon
def add(target: str, luns: tuple[str, ...], alias: str | None, name: str, control: str | None, as_json: bool) -> None:
    """Add a target that shows logical units the daemon has. Anybody may log in, over every portal.

    It is there until the daemon ends; with access control it belongs into the configuration file.
    """
    table: dict[str, str] = {}
    for text in luns:
        lun, equals, unit = text.partition("=")
        if not (lun.isascii() and lun.isdigit()) or not equals or not unit:
            raise ConfigError(f"--lun {text}: not LUN=NAME")
        if lun in table:
            raise ConfigError(f"--lun {text}: LUN {lun} is given twice")
        table[lun] = unit
    with connect(name, control) as daemon:
        answer = daemon.call("target.add", target=target, luns=table, **({"alias": alias} if alias else {}))
    if as_json:
        print_json(answer)


@command.command("remove")
@click.argument("target", metavar="IQN")
@click.option("--force", is_flag=True, help="end its sessions; without, a target that has some stays")
@which_daemon
def remove(target: str, force: bool, name: str, control: str | None, as_json: bool) -> None:
    """Remove a target. Its logical units stay."""
    with connect(name, control) as daemon:
        answer = daemon.call("target.remove", target=target, force=force)
    if as_json:
        print_json(answer)


def _state(target: dict[str, Any]) -> str:
    if target["redirect"]:
        return f"moved to {target['redirect']}"
    return "enabled" if target["enabled"] else "disabled"
