# SPDX-License-Identifier: Apache-2.0
"""The measurement of what looking costs runs and counts. Nothing here looks at a speed: the machine is shared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.inspect import Pair, interval

ROOT = Path(__file__).resolve().parents[2]


def test_the_interval_of_a_median_is_that_of_a_coin() -> None:
    assert interval([float(n) for n in range(20)]) == (5.0, 14.0)
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0), "too few to leave any out"


def test_cost_is_the_share_that_is_missing() -> None:
    assert Pair(200.0, 150.0, 3).cost == 0.25


@pytest.mark.slow
def test_a_pair_is_measured() -> None:
    words = [sys.executable, "-m", "bench.inspect", "--pairs", "2", "--seconds", "0.3", "--json"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["pairs"]) == 2
    assert all(pair["plain"] > 0 and pair["inspected"] > 0 and pair["looks"] > 0 for pair in found["pairs"])
