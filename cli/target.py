# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi target add|remove|list|show`: the iSCSI targets of a running daemon."""

from __future__ import annotations

from typing import Any

import click

from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import print_json, print_table, say


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
@click.option("--lun", "luns", multiple=True, metavar="LUN=NAME|URL[,OPTION=VALUE...]", help="a logical unit at a LUN")
@click.option("--alias", metavar="TEXT", help="what initiators show")
@click.option("--group", "groups", multiple=True, type=int, metavar="TAG", help="only over portals of this group")
@click.option(
    "--allow",
    "entries",
    multiple=True,
    metavar="WHO",
    help="who may log in: INITIATOR[,INITIATOR...][,from=NETWORK...][,lun=LUN=NAME...]; may be given more than once",
)
@click.option("--chap", "users", multiple=True, metavar="NAME=FILE|env:VAR", help="initiators prove that they know it")
@click.option("--mutual-chap", metavar="NAME=FILE|env:VAR", help="the target proves it to initiators that ask")
@click.option("--require-mutual-chap", is_flag=True, help="initiators have to ask")
@click.option("--chap-algorithms", metavar="A,B,...", help="best first: SHA3-256, SHA-256, SHA-1, MD5")
@which_daemon
def add(target: str, name: str, control: str | None, as_json: bool, **options: Any) -> None:
    """Add a target. It is there until the daemon ends, or stays if `config save` keeps it.

    A LUN shows a logical unit that the daemon has, by its name, or one that is made for it from a URL as in `serve`.
    Without --allow everybody may log in, over every portal. A secret is read by the daemon, from a file (mode 0600) or
    from a variable of its environment; it is never on a command line.
    """
    from vhost_scsi.cli import target_words

    with connect(name, control) as daemon:
        known = [unit["name"] for unit in daemon.call("lun.list")["logical_units"]]
        luns, units = target_words.luns(options["luns"], known)
        settings = target_words.settings(options)
        alias = {"alias": options["alias"]} if options["alias"] else {}
        answer = daemon.call("target.add", target=target, luns=luns, units=units, settings=settings, **alias)
    if as_json:
        print_json(answer)
        return
    for url in answer["urls"]:
        say(url)


@command.command("remove")
@click.argument("target", metavar="IQN")
@click.option("--force", is_flag=True, help="end its sessions; without, a target that has some stays")
@which_daemon
def remove(target: str, force: bool, name: str, control: str | None, as_json: bool) -> None:
    """Remove a target. Initiators that are logged in are asked to log out, and have three seconds for that.

    Logical units stay, but for those that `target add` made for it.
    """
    with connect(name, control) as daemon:
        answer = daemon.call("target.remove", target=target, force=force)
    if as_json:
        print_json(answer)


def _state(target: dict[str, Any]) -> str:
    if target["redirect"]:
        return f"moved to {target['redirect']}"
    return "enabled" if target["enabled"] else "disabled"
