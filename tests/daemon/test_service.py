# SPDX-License-Identifier: Apache-2.0
"""A daemon's life, in this process: what its start is made of, and how it ends where it cannot end."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from vhost_scsi.daemon import config_save, methods, service, state, takeover, units
from vhost_scsi.daemon.config import DaemonConfig, build
from vhost_scsi.daemon.errors import DrainTimeout
from vhost_scsi.daemon.service import Service, drain_limit
from vhost_scsi.errors import ConfigError
from vhost_scsi.scsi.logical_unit import LogicalUnit
from vhost_scsi.scsi.nexus import ITL
from vhost_scsi.scsi.reserve import ReservationKeeper
from vhost_scsi.slices import SLICE
from vhost_scsi.target import Port, Unit


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


def test_no_loop_over_units_goes_on_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: what is done for one unit after the other, and the turns that others have in between."""
    noted: list[str] = []

    def note(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def noting(self: Any, *given: Any, **named: Any) -> Any:
            noted.append(name)
            return real(self, *given, **named)

        monkeypatch.setattr(owner, name, noting)

    async def turns() -> None:
        while True:
            noted.append("turn")
            await asyncio.sleep(0)

    async def main() -> None:
        daemon = Service(configured(tmp_path, {f"u{number}": "null:1M" for number in range(100)}))
        beside = asyncio.ensure_future(turns())
        await daemon.start()
        found = await methods.table(daemon)["lun.list"].call()  # type: ignore[misc]
        assert [unit["mapped"] for unit in found["logical_units"][:2]] == [
            [{"port": "p", "target": 0, "lun": lun}] for lun in range(2)
        ]
        await daemon.ports["p"].port.nexus_lost()
        await daemon.close()
        beside.cancel()

    for owner, name in (
        *((Port, "_map"), (Unit, "stats"), (ITL, "lost"), (ReservationKeeper, "forget_legacy")),
        *((LogicalUnit, "nexuses_held"), (LogicalUnit, "initiators_gone"), (LogicalUnit, "detach_quiet")),
    ):
        note(owner, name)
    asyncio.run(main())
    longest = {
        name: max(len(list(run)) for each, run in groupby(noted) if each == name) for name in {*noted} - {"turn"}
    }
    assert longest.pop("stats") == methods.UNIT_SLICE
    assert len(longest) == 6
    assert set(longest.values()) == {SLICE}, longest


def test_configurations_are_read_compared_and_written_beside_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, int] = {}

    def note(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def noting(*given: Any) -> Any:
            threads[name] = threading.get_ident()
            return real(*given)

        monkeypatch.setattr(owner, name, noting)

    config = configured(tmp_path, {"one": "null:1M"})

    def read_anew(text: str | None) -> DaemonConfig:
        threads["read_anew"] = threading.get_ident()
        return config

    async def main() -> None:
        daemon = Service(config, reload=read_anew)
        await daemon.start()
        for each in ((config_save, "whole_text"), (methods, "differences"), (takeover, "possible")):
            note(*each)
        note(units, "check_shared")
        calls = methods.table(daemon)
        shown = await calls["config.show"].call()  # type: ignore[misc]
        assert "null:1M" in shown["toml"]
        assert await daemon.reload() == ()
        await calls["config.save"].call(path=str(tmp_path / "saved.toml"))  # type: ignore[misc]
        assert (tmp_path / "saved.toml").read_text().endswith(shown["toml"])
        await daemon.close()

    asyncio.run(main())
    assert threads.keys() == {"whole_text", "differences", "possible", "check_shared", "read_anew"}
    assert threading.get_ident() not in threads.values()


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
