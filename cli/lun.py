# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi lun list`: the logical units of a running daemon, and where they are mapped."""

from __future__ import annotations

from typing import Any

import click

from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import print_json, print_table, size


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
