# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi portal list`: where the initiators of a running daemon may log in."""

from __future__ import annotations

import click

from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import print_json, print_table, say


@click.group("portal")
def command() -> None:
    """The iSCSI portals of a running daemon."""


@command.command("list")
@which_daemon
def list_(name: str, control: str | None, as_json: bool) -> None:
    """List portals, and the addresses that a wildcard portal has at this moment."""
    with connect(name, control) as daemon:
        answer = daemon.call("portal.list")
    if as_json:
        print_json(answer)
        return
    print_table(
        ["portal", ">group", ">targets", "addresses"],
        [
            (
                f"[{portal['host']}]:{portal['port']}"
                if ":" in portal["host"]
                else f"{portal['host']}:{portal['port']}",
                portal["group"],
                portal["targets"],
                " ".join(portal["announced"] or portal["addresses"]) or None,
            )
            for portal in answer["portals"]
        ],
    )
    if answer["addresses_why_not"]:
        say(f"addresses of this machine are not known: {answer['addresses_why_not']}")
