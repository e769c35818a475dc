# SPDX-License-Identifier: Apache-2.0
"""The skip counter of the root conftest.py really fails a run, and only for real skips."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ONE_SKIP = "import pytest\n\n\n@pytest.mark.skip(reason='wanted')\ndef test_skips():\n    pass\n"
MODULE_SKIP = "import pytest\n\npytest.skip('wanted', allow_module_level=True)\n"
ONE_XFAIL = "import pytest\n\n\n@pytest.mark.xfail(reason='known')\ndef test_fails():\n    assert False\n"


def run(folder: Path, source: str, allowed: int) -> subprocess.CompletedProcess[str]:
    """Run pytest in `folder` over one test file beside a copy of our conftest.py."""
    (folder / "tests").mkdir()
    (folder / "tests" / "allowed-skips.txt").write_text(f"{allowed}\n")
    shutil.copy(ROOT / "conftest.py", folder)
    (folder / "test_it.py").write_text(source)
    # The file beside it makes the run a passing one even when test_it.py skips as a whole (pytest: exit code 5).
    (folder / "test_other.py").write_text("def test_passes():\n    pass\n")
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("source", [ONE_SKIP, MODULE_SKIP])
def test_one_skip_too_many_fails_the_run_and_is_named(tmp_path: Path, source: str) -> None:
    result = run(tmp_path, source, allowed=0)
    assert result.returncode == 1, result.stdout
    assert "1 skipped, 0 allowed" in result.stdout
    assert "test_it.py" in result.stdout


def test_an_allowed_skip_passes(tmp_path: Path) -> None:
    assert run(tmp_path, ONE_SKIP, allowed=1).returncode == 0


def test_an_expected_failure_is_not_a_skip(tmp_path: Path) -> None:
    assert run(tmp_path, ONE_XFAIL, allowed=0).returncode == 0
