# SPDX-License-Identifier: Apache-2.0
"""What sessions leave behind in the heap goes back to the system: counted, because how much it is depends on luck."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.iscsi.served import served
from vhost_scsi.iscsi import heap


def test_the_pass_waits_for_others_that_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "PAUSE", 3600.0)
    with served(tmp_path, "memory:1M") as target:
        for _ in range(3):
            target.connect().client.close()
            target.wait_for_sessions(0)
        assert target.plane._heap.times == 0


def test_every_burst_of_ends_is_followed_by_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "PAUSE", 0.01)
    with served(tmp_path, "memory:1M") as target:
        for times in (1, 2):
            target.connect().client.close()
            target.live.wait_for(lambda times=times: target.plane._heap.times == times, "the pass", 30)


def test_a_library_without_it_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_trim", None)
    monkeypatch.setattr(heap, "PAUSE", 0.0)
    with served(tmp_path, "memory:1M") as target:
        target.connect().client.close()
        target.wait_for_sessions(0)
        target.connect().client.close()
    assert target.plane._heap.times == 0
