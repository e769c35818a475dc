# SPDX-License-Identifier: Apache-2.0
"""Waiting for what another thread or process does. Tests share two cores with whatever else runs, so patience is long:
it is spent only by a test that fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 40.0  # seconds


def wait_for(condition: Callable[[], object], what: str, patience: float = PATIENCE, every: float = 0.002) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(every)
