# SPDX-License-Identifier: Apache-2.0
"""The state directory: what is kept, for whom, and what is left of it after a crash at any moment."""

from __future__ import annotations

import json
import os
import resource
import stat
import threading
import uuid
from pathlib import Path

import pytest

from vhost_scsi.daemon import state
from vhost_scsi.daemon.state import State
from vhost_scsi.errors import ConfigError


def test_a_uuid_is_made_once_and_kept(tmp_path: Path) -> None:
    first = State(tmp_path / "s").uuid_of("root", "file:/x")
    assert State(tmp_path / "s").uuid_of("root", "file:/x") == first
    assert first.version == 4


def test_many_units_are_one_write_and_then_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renames: list[Path] = []
    reads: list[Path] = []
    rename, read_text = os.rename, Path.read_text

    def noted_rename(source: Path, target: Path) -> None:
        renames.append(target)
        rename(source, target)

    def noted_read(path: Path) -> str:
        reads.append(path)
        return read_text(path)

    monkeypatch.setattr(os, "rename", noted_rename)
    monkeypatch.setattr(Path, "read_text", noted_read)
    identities = {f"u{number}": "null:1M" for number in range(300)}
    old = State(tmp_path).uuid_of("u7", "null:1M")
    made = State(tmp_path).uuids_of(identities)
    assert (len(set(made.values())), made["u7"]) == (300, old)
    assert len(renames) == 2, "one for u7, one for all the others"
    reads.clear()
    assert State(tmp_path).uuids_of(identities) == made
    assert (len(renames), len(reads)) == (2, 1)
    assert State(tmp_path).uuids_of({}) == {}


def test_another_name_or_another_store_is_another_disk(tmp_path: Path) -> None:
    kept = State(tmp_path)
    made = {kept.uuid_of("root", "file:/x"), kept.uuid_of("data", "file:/x"), kept.uuid_of("root", "file:/y")}
    assert len(made) == 3


def test_nothing_is_made_before_there_is_something_to_keep(tmp_path: Path) -> None:
    State(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_it_is_nobody_elses(tmp_path: Path) -> None:
    State(tmp_path / "s").uuid_of("root", "file:/x")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "s" / state.FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("crash_at", ["fsync", "rename"])
def test_after_a_crash_there_is_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: str) -> None:
    kept = State(tmp_path)
    first = kept.uuid_of("root", "file:/x")

    def crash(*_: object) -> None:
        raise OSError(5, "power cut")

    with monkeypatch.context() as patch:
        patch.setattr(os, crash_at, crash)
        with pytest.raises(ConfigError, match=r"power cut|Input/output error"):
            kept.uuid_of("data", "file:/y")
    assert json.loads((tmp_path / state.FILE).read_text())["units"].keys() == {"root"}
    assert State(tmp_path).uuid_of("root", "file:/x") == first


def test_a_disk_that_takes_a_part_only_leaves_the_old_content(tmp_path: Path) -> None:
    first = State(tmp_path).uuid_of("root", "file:/x")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / state.FILE).stat().st_size + 16, hard))
    try:
        with pytest.raises(ConfigError, match="File too large"):
            State(tmp_path).uuid_of("data", "file:/y")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert State(tmp_path).uuid_of("root", "file:/x") == first


def test_file_and_directory_are_durable_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diary: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(fd: int) -> None:
        diary.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        fsync(fd)

    def noted_rename(source: Path, target: Path) -> None:
        diary.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    State(tmp_path).uuid_of("root", "file:/x")
    assert diary == ["file", "rename", "directory"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, '{"units": 1, "schema_version": 1}', '{"schema_version": 9}']
)
def test_a_damaged_file_is_said_and_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / state.FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"damaged|schema_version 9"):
        State(tmp_path).uuid_of("root", "file:/x")
    assert (tmp_path / state.FILE).read_text() == text


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    with pytest.raises(ConfigError, match=r"state directory: .*/s"):
        State(tmp_path / "s").uuid_of("root", "file:/x")


def test_daemons_that_share_a_directory_do_not_lose_each_others_units(tmp_path: Path) -> None:
    made: dict[str, uuid.UUID] = {}

    def many(prefix: str) -> None:
        kept = State(tmp_path)
        for number in range(20):
            made[f"{prefix}{number}"] = kept.uuid_of(f"{prefix}{number}", "memory:")

    threads = [threading.Thread(target=many, args=(prefix,)) for prefix in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: State(tmp_path).uuid_of(name, "memory:") for name in made} == made


def test_the_directory_is_systemds_or_the_users_or_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state.default_directory("vm") == Path("/var/lib/vhost-scsi/vm")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/u")
    assert state.default_directory("vm") == Path("/home/u/.local/state/vhost-scsi/vm")
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert state.default_directory("vm") == Path("/s/vhost-scsi/vm")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/x:/var/lib/y")
    assert state.default_directory("vm") == Path("/var/lib/x/vm")


# ---- relative target port identifiers ------------------------------------------------------------------------------


def test_a_port_has_its_number_for_good(tmp_path: Path) -> None:
    first = State(tmp_path).ids_of(["a:0", "b:0", "a:0"])
    assert first == [1, 2, 1]
    assert State(tmp_path).ids_of(["c:0", "b:0"]) == [3, 2]


def test_ports_and_units_are_in_one_file(tmp_path: Path) -> None:
    made = State(tmp_path).uuid_of("root", "file:/x")
    State(tmp_path).ids_of(["a:0"])
    assert State(tmp_path).uuid_of("root", "file:/x") == made
    assert State(tmp_path).ids_of(["b:0", "a:0"]) == [2, 1]


@pytest.mark.parametrize("ports", ['{"a": 0}', '{"a": 65536}', '{"a": "1"}', '{"a": true}', '{"a": 1, "b": 1}', "[]"])
def test_numbers_that_cannot_be_are_damage(tmp_path: Path, ports: str) -> None:
    (tmp_path / state.FILE).write_text(f'{{"schema_version": 1, "ports": {ports}}}')
    with pytest.raises(ConfigError, match="damaged"):
        State(tmp_path).ids_of(["a"])


def test_numbers_end(tmp_path: Path) -> None:
    known = State(tmp_path)
    known.ids_of(str(number) for number in range(0xFFFF))
    with pytest.raises(ConfigError, match="all 65535"):
        known.ids_of(["one more"])
