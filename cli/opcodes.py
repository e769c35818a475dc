# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi opcodes`: the SCSI commands that are served, from the rows themselves."""

from __future__ import annotations

import click

from vhost_scsi.cli.output import print_json, print_table
from vhost_scsi.scsi.commands import COMMANDS
from vhost_scsi.scsi.conformance import NEEDS, code_of


@click.command("opcodes")
@click.option("--json", "as_json", is_flag=True, help="answer as JSON, with a schema_version")
def command(as_json: bool) -> None:
    """List the SCSI commands that are served: code, CDB length and usage bits, and what a unit needs for them."""
    if as_json:
        rows = [
            {
                "name": row.name,
                "opcode": row.opcode,
                "service_action": row.service_action,
                "cdb_length": row.cdb_length,
                "usage": row.usage.hex(),
                "direction": row.direction.name.lower(),
                "needs": NEEDS.get(row.requires, row.requires.name.lower()) or None,
                "timeout_s": row.timeout,
            }
            for row in COMMANDS
        ]
        print_json({"schema_version": 1, "opcodes": rows})
        return
    print_table(
        ["code", "command", ">bytes", "usage", "needs"],
        [
            (
                code_of(row),
                row.name,
                row.cdb_length,
                row.usage.hex(" "),
                NEEDS.get(row.requires, row.requires.name.lower()) or None,
            )
            for row in COMMANDS
        ],
    )
