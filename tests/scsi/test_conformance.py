# SPDX-License-Identifier: Apache-2.0
"""docs/conformance.md is what the tables say, and the facts about others are read as they are meant."""

from pathlib import Path

from vhost_scsi.scsi import conformance
from vhost_scsi.scsi.commands import COMMANDS

DOCS = Path(__file__).resolve().parents[2] / "docs"
FACTS = (DOCS / "peers.tsv").read_text()


def test_the_page_is_up_to_date():
    assert (DOCS / "conformance.md").read_text() == conformance.page(FACTS), "run make docs"


def test_every_command_stands_in_it_with_every_peer():
    names, _ = conformance.peers_of(FACTS)
    lines = (DOCS / "conformance.md").read_text().splitlines()
    for row in COMMANDS:
        line = next(each for each in lines if each.startswith(f"| {conformance.code_of(row)} | {row.name} |"))
        assert line.count("|") == 3 + len(names) + 1


def test_facts_are_marks_by_code():
    names, marks = conformance.peers_of("# said\nopcode\taction\tone\ttwo\n28\t-\tY\t.\n9E\t10\t~\tY\n")
    assert names == ["one", "two"]
    assert marks == {(0x28, None): ["Y", "."], (0x9E, 0x10): ["~", "Y"]}


def test_it_is_written_where_it_is_told_to(tmp_path, capsys):
    out = tmp_path / "page.md"
    assert conformance.main([str(DOCS / "peers.tsv"), str(out)]) == 0
    assert out.read_text() == conformance.page(FACTS)
    assert conformance.main([]) == 2
    assert "usage" in capsys.readouterr().err
