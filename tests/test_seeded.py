# SPDX-License-Identifier: Apache-2.0
"""The bugs of tests/seeded can still be planted: code that moves takes its bugs along. That each is caught takes far
longer to show: `make seeded`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATCHES = ROOT / "tests" / "seeded"


def check(patches: Path, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PATCHES / "run.py", "--check", "--patches", patches, *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_every_patch_applies_and_names_tests_that_exist() -> None:
    result = check(PATCHES)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("vs_core *c", "vs_core *elsewhere", "does not apply"),
        ("core/core.c", "core/absent.c", "does not apply"),
        ("core test_gate_windows", "core test_absent", "there is no core/test/test_absent.c"),
        ("core test_gate_windows", "pytest tests/absent.py::test_it", "there is no tests/absent.py"),
        ("Caught-by", "Seen-by", "no line says Caught-by"),
    ],
)
def test_a_patch_that_went_stale_is_named(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    patch = (PATCHES / "29-epoch-of-one-worker.patch").read_text()
    assert old in patch
    (tmp_path / "29-stale.patch").write_text(patch.replace(old, new))
    result = check(tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("29-stale")
    assert complaint in result.stderr


def test_a_name_that_no_patch_has_is_refused(tmp_path: Path) -> None:
    assert check(tmp_path).returncode == 2
    assert check(PATCHES, "29-epoch-of-one-worker").returncode == 0
    assert check(PATCHES, "29-epoch-of-one-worker", "absent").returncode == 2
