# SPDX-License-Identifier: Apache-2.0
"""A daemon's life, in this process: what its start is made of, and how it ends where it cannot end."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest

from vhost_scsi.daemon import service, state
from vhost_scsi.daemon.config import DaemonConfig, build
from vhost_scsi.daemon.errors import DrainTimeout
from vhost_scsi.daemon.service import Service, drain_limit
from vhost_scsi.errors import ConfigError


def configured(tmp_path: Path, units: dict[str, str]) -> DaemonConfig:
    return build(
        {
            "control": str(tmp_path / "c"),
            "state_dir": str(tmp_path / "state"),
            "port": {"p": {"socket": str(tmp_path / "s")}},
            "lu": {name: {"url": url} for name, url in units.items()},
            "map": {f"p:0:{lun}": name for lun, name in enumerate(units)},
        }
    )


def test_many_new_units_are_one_write_of_the_state_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    rename = os.rename

    def noted(source: Path, target: Path) -> None:
        written.append(target)
        rename(source, target)

    async def start_and_close() -> set[object]:
        daemon = Service(configured(tmp_path, {f"u{number}": "null:1M" for number in range(100)}))
        await daemon.start()
        try:
            return {unit.uuid for unit in daemon.target.units.values()}
        finally:
            await daemon.close()

    monkeypatch.setattr(os, "rename", noted)
    made = asyncio.run(start_and_close())
    assert len(made) == 100
    assert written == [tmp_path / "state" / state.FILE] * 2, "once for the units, once for the port's number"
    written.clear()
    assert asyncio.run(start_and_close()) == made
    assert written == []


def test_a_unit_that_cannot_be_opened_leaves_nothing_behind(tmp_path: Path) -> None:
    daemon = Service(configured(tmp_path, {"one": "null:1M", "two": str(tmp_path / "missing")}))
    with pytest.raises(ConfigError, match="logical unit two"):
        asyncio.run(daemon.start())
    assert list(tmp_path.iterdir()) == []
    assert not daemon.target.units


def test_who_cannot_drain_tidies_up_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    done: list[object] = []

    def tidy() -> None:
        done.append("tidy")
        raise PermissionError(13, "the directory is not ours any more")

    def exits(code: int) -> None:
        done.append(code)
        ended.set()

    monkeypatch.setattr(service.os, "_exit", exits)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    with drain_limit(0.01, tidy):
        assert ended.wait(30)
    assert done == ["tidy", DrainTimeout.exit_code]
