# SPDX-License-Identifier: Apache-2.0
"""The bugs of tests/seeded can still be planted: code moves, and a patch that does not apply plants nothing.

Whether each is caught takes too long for here; that is `make seeded`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SEEDS = sorted((ROOT / "tests" / "seeded").glob("*.patch"))


def applies(patch: Path) -> subprocess.CompletedProcess[str]:
    """As tests/seeded/run.py applies it; in a checkout and in a tree without git alike."""
    command = ["git", "apply", "-C2", "--check", str(patch)]
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("patch", SEEDS, ids=lambda patch: str(patch.stem))
def test_a_seeded_bug_can_be_planted(patch: Path) -> None:
    result = applies(patch)
    assert result.returncode == 0, result.stderr


def test_one_that_cannot_is_noticed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.patch"
    broken.write_text(SEEDS[0].read_text().replace("\n-", "\n-not what stands there"))
    assert applies(broken).returncode != 0
    assert len(SEEDS) >= 20
