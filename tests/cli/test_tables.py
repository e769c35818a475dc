# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi opcodes`, `sense` and `pages` print the tables."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from vhost_scsi.cli import main
from vhost_scsi.scsi import log_pages, mode_pages, vpd
from vhost_scsi.scsi.commands import COMMANDS
from vhost_scsi.scsi.sense import SENSE_CODES


def said(*words: str) -> str:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("name", "line"),
    [("opcodes", "9E/12"), ("sense", "LOGICAL BLOCK ADDRESS OUT OF RANGE"), ("pages", "Device Identification")],
)
def test_a_table_names_what_is_there(name: str, line: str) -> None:
    assert line in said(name)


def test_opcodes_as_json() -> None:
    told = json.loads(said("opcodes", "--json"))
    assert told["schema_version"] == 1
    assert [row["usage"] for row in told["opcodes"]] == [row.usage.hex() for row in COMMANDS]


def test_sense_codes_as_json() -> None:
    told = json.loads(said("sense", "--json"))["sense"]
    assert {(row["asc"] << 8 | row["ascq"]) for row in told} == {code.word for code in SENSE_CODES}


def test_pages_as_json() -> None:
    told = json.loads(said("pages", "--json"))["pages"]
    assert len(told) == len(vpd.PAGES) + len(mode_pages.PAGES) + len(log_pages.PAGES)
