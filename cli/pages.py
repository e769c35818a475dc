# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi pages`: the vital product data, mode and log pages that are served."""

from __future__ import annotations

import click

from vhost_scsi.cli.output import print_json, print_table
from vhost_scsi.scsi import log_pages, mode_pages, vpd


def _pages() -> list[tuple[str, int, int, str, list[str]]]:
    """Kind, code, subpage, name, and what MODE SELECT changes."""
    found: list[tuple[str, int, int, str, list[str]]] = []
    found += [("vpd", each.code, 0, each.name, []) for each in vpd.PAGES]
    found += [("mode", each.code, each.subpage, each.name, list(each.changeable)) for each in mode_pages.PAGES]
    found += [("log", each.code, each.subpage, each.name, []) for each in log_pages.PAGES]
    return found


@click.command("pages")
@click.option("--json", "as_json", is_flag=True, help="answer as JSON, with a schema_version")
def command(as_json: bool) -> None:
    """List the pages that are served: INQUIRY's, MODE SENSE's and LOG SENSE's."""
    pages = _pages()
    if as_json:
        rows = [
            {"kind": kind, "code": code, "subpage": subpage, "name": name, "changeable": changeable}
            for kind, code, subpage, name, changeable in pages
        ]
        print_json({"schema_version": 1, "pages": rows})
        return
    print_table(
        ["kind", "page", "name", "can be changed"],
        [
            (kind, f"{code:02X}/{subpage:02X}" if subpage else f"{code:02X}", name, " ".join(changeable) or None)
            for kind, code, subpage, name, changeable in pages
        ],
    )
