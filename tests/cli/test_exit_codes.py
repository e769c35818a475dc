# SPDX-License-Identifier: Apache-2.0
"""docs/exit-codes.md says what the classes say, and every class of ours is covered by it."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vhost_scsi
from vhost_scsi.cli.output import OutputError
from vhost_scsi.daemon import rpc
from vhost_scsi.errors import VhostScsiError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "exit-codes.md"


def table() -> dict[int, str]:
    rows = re.findall(r"^\| (\d+) \| (?:`(\w+)`)? ?\|", PAGE.read_text(), re.MULTILINE)
    return {int(code): name for code, name in rows}


def classes(root: type[VhostScsiError] = VhostScsiError) -> Iterator[type[VhostScsiError]]:
    yield root
    for child in root.__subclasses__():
        yield from classes(child)


def load_everything() -> None:
    for module in pkgutil.walk_packages(vhost_scsi.__path__, "vhost_scsi."):
        if not module.name.endswith((".__main__", ".build")):
            importlib.import_module(module.name)


def test_each_code_is_in_the_table_with_the_class_that_brings_it() -> None:
    load_everything()
    named = {name: code for code, name in table().items() if name}
    found = {cls.__name__: cls.exit_code for cls in classes() if cls.__module__.startswith("vhost_scsi.")}
    for name, code in named.items():
        assert found.get(name) == code, name
    assert set(found.values()) <= set(table())


def test_no_code_is_told_twice() -> None:
    codes = re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert len(codes) == len(set(codes))


def test_what_no_class_says_alone() -> None:
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith("| 7 |"))
    assert str(rpc.TOO_MANY) in row
    assert OutputError.exit_code == 1


@pytest.mark.parametrize("kind", ["full", "closed", "a pipe that nobody reads"])
def test_an_answer_that_cannot_be_written(tmp_path: Path, kind: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    script = 'exec "$0" -m vhost_scsi.cli boot --json "$1"' + (" >&-" if kind == "closed" else "")
    with open("/dev/full", "wb") as full:
        ran = subprocess.run(
            [
                "/bin/sh",
                "-c",
                script,
                sys.executable,
                tmp_path / "no",
            ],
            stdout=full if kind == "full" else writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    os.close(writer)
    assert ran.returncode == 1
    if kind.startswith("a pipe"):
        assert ran.stderr == ""
    else:
        assert re.fullmatch(r"vhost-scsi: standard output.*\n", ran.stderr)
