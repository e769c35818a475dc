# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi sense`: the sense codes that are told, and what one of them means."""

from __future__ import annotations

import click

from vhost_scsi.cli.output import print_json, print_table
from vhost_scsi.scsi.sense import SENSE_CODES


@click.command("sense")
@click.option("--json", "as_json", is_flag=True, help="answer as JSON, with a schema_version")
def command(as_json: bool) -> None:
    """List the sense codes that an initiator may be told: sense key, code and qualifier, and SPC's words."""
    codes = sorted(SENSE_CODES, key=lambda each: each.word)
    if as_json:
        rows = [
            {"key": each.key.value, "key_name": each.key.name, "asc": each.asc, "ascq": each.ascq, "text": each.text}
            for each in codes
        ]
        print_json({"schema_version": 1, "sense": rows})
        return
    print_table(
        ["key", "name", "code", "text"],
        [
            (f"{each.key:X}", each.key.name.replace("_", " "), f"{each.asc:02X}/{each.ascq:02X}", each.text)
            for each in codes
        ],
    )
