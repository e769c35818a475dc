# SPDX-License-Identifier: Apache-2.0
"""From a unit's configuration to its store: what is the same store, and when two units may not share one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vhost_scsi.daemon.config import LuConfig, store_spec
from vhost_scsi.daemon.units import check_shared, identity
from vhost_scsi.errors import ConfigError


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(512))
    (tmp_path / "link").symlink_to(path)
    return path


def named(url: str, **more: bool) -> str:
    return identity(store_spec(LuConfig(url=url, **more)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url", ["disk.img", "./disk.img", "link", "file:disk.img,cache=direct", "delay(read=1ms):disk.img", "overlay:link"]
)
def test_a_file_is_the_same_however_it_is_written(disk: Path, url: str) -> None:
    assert named(url) == f"file:{os.path.realpath(disk)}"


def test_a_table_names_the_same_store_as_a_url(disk: Path) -> None:
    table = LuConfig(store={"type": "overlay", "lower": {"type": "file", "path": "disk.img"}})
    assert identity(store_spec(table)) == named("disk.img")


def test_other_stores_are_other_stores(disk: Path) -> None:
    assert len({named("disk.img"), named("other.img"), named("memory:1M"), named("null:1M")}) == 4


@pytest.mark.parametrize("url", ["disk.img", "delay(read=1ms):disk.img"])
def test_a_read_only_unit_opens_its_file_read_only(disk: Path, url: str) -> None:
    assert str(store_spec(LuConfig(url=url, readonly=True))).endswith("disk.img,readonly=on")
    assert "readonly" not in str(store_spec(LuConfig(url=url)))


@pytest.mark.parametrize(
    ("first", "second"),
    [("disk.img", "link"), ("disk.img", "overlay:disk.img"), ("disk.img,readonly", "disk.img,cache=direct")],
)
def test_a_file_that_one_unit_writes_is_no_other_units(disk: Path, first: str, second: str) -> None:
    with pytest.raises(ConfigError, match=r"logical units a and b are both on"):
        check_shared({"a": LuConfig(url=first), "b": LuConfig(url=second)})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("disk.img,readonly", "link,readonly"),
        ("overlay:disk.img", "overlay:disk.img"),
        ("disk.img,lock=off", "disk.img,lock=off"),
        ("memory:1M", "memory:1M"),
        ("disk.img", "other.img"),
    ],
)
def test_what_may_be_shared(disk: Path, first: str, second: str) -> None:
    check_shared({"a": LuConfig(url=first), "b": LuConfig(url=second)})
