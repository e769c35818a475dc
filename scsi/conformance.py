# SPDX-License-Identifier: Apache-2.0
"""Writes docs/conformance.md from the tables of this package: `python -m vhost_scsi.scsi.conformance PEERS OUTFILE`.

What others do is a file of facts (docs/peers.tsv); what we do is never written by hand.
"""

import sys
from pathlib import Path
from typing import Final

from vhost_scsi.scsi import log_pages, mode_pages, vpd
from vhost_scsi.scsi.commands import COMMANDS, Command, DeviceType, Feature
from vhost_scsi.scsi.sense import SENSE_CODES

COLUMNS: Final = 2
"""of the facts, before the first peer: operation code and service action"""
NEEDS: Final = {
    Feature.NONE: "",
    Feature.UNMAP: "a store that unmaps",
    Feature.ATOMIC: "a store with an atomic unit",
    Feature.CDB_32: "cdb32=on",
}

HEAD: Final = """# What is served

Generated from the command rows by `make docs`; do not edit. A test holds it to the tables. A command whose row needs
something is offered, and listed by REPORT SUPPORTED OPERATION CODES, by the units that have it.

Marks of others: Y yes, ~ partly or accepted and not done, . no, blank: not looked at. They were read from the sources
of the versions named.

## Commands
"""


def peers_of(facts: str) -> tuple[list[str], dict[tuple[int, int | None], list[str]]]:
    """The peers' names, and their marks by operation code and service action."""
    lines = [line.split("\t") for line in facts.splitlines() if line and not line.startswith("#")]
    marks = {
        (int(opcode, 16), None if action == "-" else int(action, 16)): found for opcode, action, *found in lines[1:]
    }
    return lines[0][COLUMNS:], marks


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return head + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def code_of(row: Command) -> str:
    """28, or 9E/10 with a service action."""
    return f"{row.opcode:02X}" if row.service_action is None else f"{row.opcode:02X}/{row.service_action:02X}"


def _commands(facts: str) -> list[str]:
    names, marks = peers_of(facts)
    rows = []
    for row in COMMANDS:
        found = marks.get((row.opcode, row.service_action)) or marks.get((row.opcode, None)) or [" "] * len(names)
        needs = NEEDS.get(row.requires, row.requires.name.lower())
        if DeviceType.DISK not in row.device_types:
            needs = "type=cdrom"
        rows.append([code_of(row), row.name, needs, *found])
    return _table(["code", "command", "needs", *names], rows)


def page(facts: str) -> str:
    """The whole page."""
    lines = [HEAD, *_commands(facts), "## Vital product data", ""]
    lines += _table(["page", "name"], [[f"{each.code:02X}", each.name] for each in vpd.PAGES])
    lines += ["## Mode pages", ""]
    lines += _table(
        ["page", "name", "can be changed and saved"],
        [
            [
                f"{each.code:02X}/{each.subpage:02X}" if each.subpage else f"{each.code:02X}",
                each.name,
                ", ".join(each.changeable) or " ",
            ]
            for each in mode_pages.PAGES
        ],
    )
    lines += ["## Log pages", ""]
    lines += _table(
        ["page", "name"],
        [
            [f"{each.code:02X}/{each.subpage:02X}" if each.subpage else f"{each.code:02X}", each.name]
            for each in log_pages.PAGES
        ],
    )
    lines += ["## Sense codes", ""]
    lines += _table(
        ["code", "key", "text"],
        [
            [f"{each.asc:02X}/{each.ascq:02X}", each.key.name.replace("_", " "), each.text]
            for each in sorted(SENSE_CODES, key=lambda each: each.word)
        ],
    )
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m vhost_scsi.scsi.conformance PEERS OUTFILE", file=sys.stderr)
        return 2
    facts = Path(arguments[0]).read_text(encoding="utf-8")
    Path(arguments[1]).write_text(page(facts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
