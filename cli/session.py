# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi session list|show|reset|remove|refused`: who is logged in to a running daemon, and who was not let."""

from __future__ import annotations

import time
from typing import Any

import click

from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import print_json, print_table, say, uptime


@click.group("session")
def command() -> None:
    """The iSCSI sessions of a running daemon."""


@command.command("list")
@which_daemon
def list_(name: str, control: str | None, as_json: bool) -> None:
    """List sessions."""
    with connect(name, control) as daemon:
        answer = daemon.call("session.list")
    if as_json:
        print_json(answer)
        return
    print_table(
        [">session", "initiator", "target", "isid", ">connections", ">commands", ">active", ">window", ">age"],
        [
            (
                session["session"],
                session["initiator"],
                session["target"] or "(discovery)",
                session["isid"],
                len(session["connections"]),
                session["commands"],
                session["active"],
                session["window"],
                age(session),
            )
            for session in answer["sessions"]
        ],
    )


@command.command("show")
@click.argument("session", type=int, metavar="SESSION")
@which_daemon
def show(session: int, name: str, control: str | None, as_json: bool) -> None:
    """Show one session: what was negotiated, its command window, LUNs and connections. SESSION is its number (TSIH)."""
    with connect(name, control) as daemon:
        answer = daemon.call("session.show", session=session)
    if as_json:
        print_json(answer)
        return
    row = answer["session"]
    say(f"session {row['session']}: {row['initiator']} at {row['target'] or 'discovery'}, for {age(row)}")
    say(f"identity     isid {row['isid']}, portal group {row['portal_group']}, CHAP name {row['user'] or '-'}")
    say(f"window       {row['window']} commands, from {row['exp_cmd_sn']} to {row['max_cmd_sn']}")
    say(f"commands     {row['commands']}, {row['active']} active")
    print_keys(answer["keys"])
    for lun in answer["luns"]:
        say(f"LUN {lun['lun']:<8} {lun['unit']}")
    for connection in answer["connections"]:
        say(f"connection   {connection['connection']}, from {connection['peer']} to {connection['local']}")


@command.command("reset")
@click.argument("session", type=int, metavar="SESSION")
@which_daemon
def reset(session: int, name: str, control: str | None, as_json: bool) -> None:
    """End a session at once, as if the network had failed.

    Its commands end without an answer, its logical units see the loss of the I_T nexus, and the initiator recovers.
    """
    _ask("session.reset", session, name, control, as_json)


@command.command("remove")
@click.argument("session", type=int, metavar="SESSION")
@which_daemon
def remove(session: int, name: str, control: str | None, as_json: bool) -> None:
    """Ask an initiator to log out; after three seconds the session is ended all the same."""
    _ask("session.remove", session, name, control, as_json)


def _ask(method: str, session: int, name: str, control: str | None, as_json: bool) -> None:
    with connect(name, control) as daemon:
        answer = daemon.call(method, session=session)
    if as_json:
        print_json(answer)


@command.command("refused")
@which_daemon
def refused(name: str, control: str | None, as_json: bool) -> None:
    """Tell what initiators asked for and did not get, and why; newest last."""
    with connect(name, control) as daemon:
        answer = daemon.call("session.refused")
    if as_json:
        print_json(answer)
        return
    if not answer["refused"]:
        say("nothing was refused")
    for refusal in answer["refused"]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(refusal["last"]))
        times = f" ({refusal['times']} times)" if refusal["times"] > 1 else ""
        say(f"{when}  {refusal['text']}{times}")


def age(row: dict[str, Any]) -> str:
    return uptime(max(0.0, time.time() - row["since"]))


def print_keys(keys: dict[str, Any]) -> None:
    """What was negotiated, as in the protocol: Yes and No."""
    for key, value in keys.items():
        said = {True: "Yes", False: "No"}[value] if isinstance(value, bool) else value
        say(f"{'keys' if key == next(iter(keys)) else '':<12} {key}={said}")
