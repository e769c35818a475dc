# SPDX-License-Identifier: Apache-2.0
"""docs/exit-codes.md says what the classes say, and every class of ours is covered by it."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import vhost_scsi
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
