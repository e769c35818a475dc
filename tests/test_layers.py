# SPDX-License-Identifier: Apache-2.0
"""The arrows of ARCHITECTURE.md, enforced: each import in the package is read from the source and must point downwards.

Nothing is imported to check it; imports inside functions and under TYPE_CHECKING count as well, because a layer that
needs another one only for its types still knows it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vhost_scsi"

# What each part may import, itself aside. The exception tree, the limited log, sliced loops and the version are
# everybody's.
EVERYBODY = {"errors", "log_limit", "slices", "__version__"}
# `_core` is the compiled module: its calls are the data plane's interface, and `dataplane` what all callers share.
BASE = {"dataplane", "scsi", "_core"}
UP_TO_VIRTQUEUE = BASE | {"stores", "virtqueue"}
UP_TO_TARGET = UP_TO_VIRTQUEUE | {"target"}
TRANSPORTS = {"vhost_user", "iscsi", "hba"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "log_limit": set(),
    "slices": set(),
    "dataplane": {"_core"},
    "scsi": set(),
    "stores": BASE,
    "virtqueue": BASE | {"stores"},
    "target": UP_TO_VIRTQUEUE,
    # The transports never import each other.
    **dict.fromkeys(TRANSPORTS, UP_TO_TARGET),
    # Running QEMU is no part of being a target.
    "qemu": set(),
    "daemon": UP_TO_TARGET | TRANSPORTS | {"qemu"},
    "cli": UP_TO_TARGET | TRANSPORTS | {"qemu", "daemon"},
}


def part_of(module: str) -> str:
    """`vhost_scsi.scsi.sense` belongs to `scsi`; the package itself is `__init__`."""
    words = module.split(".")
    return words[1] if len(words) > 1 else "__init__"


def from_targets(node: ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
    """The absolute names that a `from ... import ...` in `module` may mean."""
    base = node.module or ""
    if node.level:
        words = module.split(".") if is_package else module.split(".")[:-1]
        words = words[: len(words) - (node.level - 1)]
        base = ".".join([*words, base] if base else words)
    # `from vhost_scsi import scsi` names the part only after the `import`.
    yield from (f"{base}.{alias.name}" for alias in node.names)


def imported(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and absolute name of all that `source`, the text of `module`, imports."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                yield from ((node.lineno, name) for name in from_targets(node, module, is_package))
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What `source` imports against the arrows."""
    own = part_of(module)
    if own not in MAY_IMPORT:
        return [f"{module}: {own} has no place in the layers; give it one here and in ARCHITECTURE.md"]
    allowed = MAY_IMPORT[own] | EVERYBODY | {own}
    return [
        f"{module}:{line}: {own} must not import {name}"
        for line, name in imported(source, module, is_package)
        if name.split(".")[0] == "vhost_scsi" and part_of(name) not in allowed
    ]


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package, through the links, with its import name."""
    for path in [*PACKAGE.glob("*.py"), *PACKAGE.glob("*/**/*.py")]:
        words = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(words[:-1] if words[-1] == "__init__" else words), path


MODULES = sorted(modules())


def test_every_part_of_the_package_is_seen() -> None:
    parts = {part_of(name) for name, _ in MODULES}
    assert {"dataplane", "scsi", "stores", "virtqueue", "vhost_user", "daemon", "cli"} <= parts


@pytest.mark.parametrize(("module", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_imports_point_downwards(module: str, path: Path) -> None:
    assert violations(path.read_text(), module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vhost_scsi.scsi.inquiry", "import vhost_scsi.dataplane"),
        ("vhost_scsi.scsi.inquiry", "from vhost_scsi import dataplane"),
        ("vhost_scsi.scsi.inquiry", "from vhost_scsi._core import lib"),
        ("vhost_scsi.scsi.inquiry", "from ..dataplane import lib"),
        ("vhost_scsi.scsi.inquiry", "from .. import target"),
        ("vhost_scsi.dataplane.binding", "from vhost_scsi.scsi.gate import GateBit"),
        ("vhost_scsi.stores.file", "def f():\n    import vhost_scsi.daemon.config"),
        (
            "vhost_scsi.target.unit",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import vhost_scsi.vhost_user",
        ),
        ("vhost_scsi.vhost_user.device", "from vhost_scsi.iscsi import login"),
        ("vhost_scsi.daemon.main", "import importlib\nimportlib.import_module('vhost_scsi.cli.serve')"),
        ("vhost_scsi.surprise.thing", ""),
    ],
)
def test_an_upward_import_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "vhost_scsi.scsi.inquiry",
            "import struct\nfrom .sense import X\nfrom vhost_scsi.errors import VhostScsiError",
        ),
        ("vhost_scsi.cli.serve", "from vhost_scsi import __version__\nfrom vhost_scsi.daemon import run"),
        ("vhost_scsi.target.unit", "from ..scsi.gate import GateBit\nfrom vhost_scsi.dataplane import lib"),
    ],
)
def test_a_downward_import_is_let_through(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_relative_imports_of_a_package_are_its_own() -> None:
    assert violations("from . import sense\nfrom .sense import X", "vhost_scsi.scsi", is_package=True) == []
    assert len(violations("from .. import target", "vhost_scsi.scsi", is_package=True)) == 1


def test_the_package_alone_loads_nothing_else() -> None:
    program = "import sys; before = set(sys.modules); import vhost_scsi; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["vhost_scsi"]


def test_the_data_plane_knows_no_python() -> None:
    sources = [path for path in (ROOT / "core").rglob("*.[ch]") if "gen" not in path.parts]
    assert sources
    guilty = [str(path) for path in sources if re.search(r'#\s*include\s*[<"]Python\.h', path.read_text())]
    assert guilty == []
