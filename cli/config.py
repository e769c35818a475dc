# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi config show|save|reload`: the configuration of a running daemon, and keeping what was changed of it."""

from __future__ import annotations

import os
from typing import Any

import click

from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import print_json, say


@click.group("config")
def command() -> None:
    """The configuration of a running daemon."""


@command.command("show")
@which_daemon
def show(name: str, control: str | None, as_json: bool) -> None:
    """Show what runs as TOML, and what of it is not in the file, as comments behind it."""
    with connect(name, control) as daemon:
        answer = daemon.call("config.show")
    if as_json:
        print_json(answer)
        return
    for line in answer["toml"].rstrip("\n").split("\n"):
        say(line)
    for line in answer["drift"]:
        say(f"# {line}")


@command.command("save")
@click.argument("file", required=False)
@which_daemon
def save(file: str | None, name: str, control: str | None, as_json: bool) -> None:
    """Keep what was changed at run time, in the file that the daemon was started with; or write all of it to FILE.

    Comments and order of the daemon's own file stay. What is on its command line cannot be changed, and is named.
    """
    with connect(name, control) as daemon:
        answer = daemon.call("config.save", **({"path": os.path.abspath(file)} if file is not None else {}))
    if as_json:
        print_json(answer)
        return
    say(f"saved to {answer['saved']}")
    if file is None:
        for line in answer["drift"]:
            say(f"not saved: {line}")


@command.command("reload")
@which_daemon
def reload(name: str, control: str | None, as_json: bool) -> None:
    """Have the file read anew, as SIGHUP does; and say what needs a restart."""
    with connect(name, control) as daemon:
        answer: dict[str, Any] = daemon.call("reload")
    if as_json:
        print_json(answer)
        return
    for each in answer["needs_restart"]:
        say(f"needs a restart: {each}")
