# SPDX-License-Identifier: Apache-2.0
"""Blobs in the state directory: after a crash or a power cut at any moment the old one is there or the new one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from tests.daemon.power_cut import Disk, lay_out
from vhost_scsi.daemon.state_dir import LOCK, VERSION, BlobDirectory, StateDirectory, UnitState, pack, unpack
from vhost_scsi.errors import ConfigError
from vhost_scsi.scsi.saved_state import NotKept, SavedStateDamaged, SavedStateError

UUID_1 = UUID("6f0a1d52-93c5-4c7e-8f5b-3d1f0b6a7e11")
OLD, NEW = b"old " * 50, b"new, and longer " * 40


def kept(directory: Path, work: Callable[[UnitState], object]) -> object:
    """What `work` gives, done with a unit's state that is opened and closed around it."""

    async def run() -> object:
        owner = StateDirectory(directory)
        try:
            found = work(await owner.unit(UUID_1))
            return await found if asyncio.iscoroutine(found) else found
        finally:
            await owner.close()

    return asyncio.run(run())


def put(name: str, data: bytes | None) -> Callable[[UnitState], object]:
    return lambda state: state.put(name, data)


def get(name: str) -> Callable[[UnitState], object]:
    return lambda state: state.get(name)


# ---- what it is ----------------------------------------------------------------------------------------------------


def test_a_blob_comes_back_and_can_be_replaced_and_removed(tmp_path: Path) -> None:
    assert kept(tmp_path, get("mode")) is None
    kept(tmp_path, put("mode", OLD))
    assert kept(tmp_path, get("mode")) == OLD
    kept(tmp_path, put("mode", b""))
    assert kept(tmp_path, get("mode")) == b""
    kept(tmp_path, put("mode", None))
    kept(tmp_path, put("mode", None))
    assert kept(tmp_path, get("mode")) is None


def test_nothing_is_made_before_there_is_something_to_keep(tmp_path: Path) -> None:
    kept(tmp_path / "s", get("mode"))
    assert not (tmp_path / "s").exists()


def test_it_is_nobody_elses(tmp_path: Path) -> None:
    kept(tmp_path / "s", put("mode", OLD))
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "s").rglob("*")}
    assert modes == {"units": 0o700, str(UUID_1): 0o700, "mode": 0o600, LOCK: 0o600}


@pytest.mark.parametrize("name", ["", "Mode", "../mode", "lock", "mode.new", "a" * 64])
def test_a_name_is_a_word(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        kept(tmp_path, put(name, OLD))


def test_a_blob_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(SavedStateError, match="too many"):
        kept(tmp_path, put("mode", bytes(9 << 20)))


def test_the_one_in_memory_does_the_same() -> None:
    async def run() -> None:
        state = NotKept()
        await state.put("mode", OLD)
        assert state.get("mode") == OLD
        await state.put("mode", None)
        await state.put("mode", None)
        assert state.get("mode") is None

    asyncio.run(run())


# ---- what a disk may do to it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "no state file"),
        (b"something else", "no state file"),
        (pack("mode", OLD)[:-1], "checksum"),
        (pack("mode", OLD) + b"x", "checksum"),
        (pack("mode", OLD).replace(b"old", b"odd", 1), "checksum"),
        (pack("reservations", OLD), "checksum"),
        (pack("mode", OLD).replace(VERSION.to_bytes(2), (VERSION + 1).to_bytes(2), 1), "version is 2"),
    ],
)
def test_damage_is_found_and_told_with_the_file(tmp_path: Path, raw: bytes, why: str) -> None:
    kept(tmp_path, put("mode", OLD))
    path = tmp_path / "units" / str(UUID_1) / "mode"
    path.write_bytes(raw)
    with pytest.raises(SavedStateDamaged, match=rf"{path}: .*{why}"):
        kept(tmp_path, get("mode"))
    kept(tmp_path, put("mode", NEW))
    assert kept(tmp_path, get("mode")) == NEW


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_a_write_that_fails_leaves_the_old_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    kept(tmp_path, put("mode", OLD))

    async def fails(state: UnitState) -> bytes | None:
        await state.put("other", b"")  # the lock is there
        with monkeypatch.context() as patch:

            def refuse(*_: object, **__: object) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(os, call, refuse)
            with pytest.raises(SavedStateError, match="mode: No space left"):
                await state.put("mode", NEW)
        return state.get("mode")

    assert kept(tmp_path, fails) == OLD
    assert kept(tmp_path, get("mode")) == OLD


def test_a_directory_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "units").write_text("")
    with pytest.raises(ConfigError, match=r"state directory: .*Not a directory"):
        kept(tmp_path, get("mode"))


# ---- one writer ----------------------------------------------------------------------------------------------------


def test_there_is_one_writer_and_the_next_one_knows_what_it_wrote(tmp_path: Path) -> None:
    async def run() -> None:
        one, two, late = StateDirectory(tmp_path), StateDirectory(tmp_path), StateDirectory(tmp_path)
        first, second, stale = await one.unit(UUID_1), await two.unit(UUID_1), await late.unit(UUID_1)
        await first.put("mode", OLD)
        with pytest.raises(SavedStateError, match="another process keeps"):
            await second.put("mode", NEW)
        await one.close()
        with pytest.raises(SavedStateError, match="changed it meanwhile"):
            await stale.put("mode", NEW)
        again = await two.unit(UUID_1)
        await again.put("mode", NEW)
        assert again.get("mode") == NEW
        await two.close()
        await late.close()

    asyncio.run(run())


# ---- crashes -------------------------------------------------------------------------------------------------------


def prepared(tmp_path: Path, before: bytes | None) -> BlobDirectory:
    blobs = BlobDirectory(tmp_path / "unit")
    assert blobs.claim()
    if before is not None:
        blobs.write("mode", pack("mode", before))
    return blobs


def after_any_cut(
    tmp_path: Path, before: bytes | None, work: Callable[[BlobDirectory], object]
) -> tuple[int, set[bytes | None]]:
    """How many different contents were found, and which blobs; `work` is behind the last of them."""
    blobs = prepared(tmp_path, before)
    disk = Disk(blobs.directory)
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        work(blobs)
    found: set[bytes | None] = set()
    contents = set().union(*disk.states)
    for content in contents:
        lay_out(tmp_path / "after", content)
        raw = BlobDirectory(tmp_path / "after").read("mode")
        found.add(None if raw is None else unpack("mode", raw))
    last = {dict(content).get("mode") for content in disk.states[-1]}
    assert len(last) == 1, "durable when the call returned"
    blobs.close()
    return len(contents), found


@pytest.mark.parametrize("before", [None, OLD], ids=["first", "replaced"])
def test_a_power_cut_at_any_moment_leaves_the_old_blob_or_the_new_one(tmp_path: Path, before: bytes | None) -> None:
    contents, found = after_any_cut(tmp_path, before, lambda blobs: blobs.write("mode", pack("mode", NEW)))
    assert found == {before, NEW}
    assert contents > 10


def test_a_power_cut_while_it_is_removed(tmp_path: Path) -> None:
    assert after_any_cut(tmp_path, OLD, lambda blobs: blobs.remove("mode"))[1] == {OLD, None}


@pytest.mark.parametrize("left_out", ["fsync", "rename"])
def test_the_power_cut_finds_a_careless_writer(tmp_path: Path, left_out: str) -> None:
    """Negative twin: without fsync, or in place, a cut leaves neither."""

    def careless(blobs: BlobDirectory) -> None:
        path = blobs.directory / ("mode.new" if left_out == "fsync" else "mode")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        raw = pack("mode", NEW)
        while raw:
            raw = raw[os.write(fd, raw) :]
        if left_out == "fsync":
            os.rename(path, blobs.directory / "mode")
        else:
            os.fsync(fd)
        os.close(fd)

    with pytest.raises((ValueError, AssertionError)):
        after_any_cut(tmp_path, OLD, careless)


KILLED = """
import os, signal, sys
from pathlib import Path
from vhost_scsi.daemon.state_dir import BlobDirectory, pack

directory, at, data = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()
blobs = BlobDirectory(directory)
assert blobs.claim()
count = 0

def deadly(call):
    def run(*words, **more):
        global count
        count += 1
        if count == at:
            if call is write:
                write(words[0], bytes(words[1])[: len(words[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*words, **more)
    return run

write = os.write
for name in ("open", "write", "fsync", "rename", "close"):
    setattr(os, name, deadly(getattr(os, name)))
blobs.write("mode", pack("mode", data))
os._exit(0)
"""


def test_killed_at_every_call_of_a_write(tmp_path: Path) -> None:
    blobs = prepared(tmp_path, OLD)
    blobs.close()
    ends, found = [], []
    for at in range(1, 50):
        words = [sys.executable, "-c", KILLED, str(blobs.directory), str(at), f"new {at}"]
        ends.append(subprocess.run(words, check=False, timeout=60).returncode)
        raw = blobs.read("mode")
        assert raw is not None
        found.append(unpack("mode", raw).decode())
        assert found[-1] in (f"new {at}", found[-2] if at > 1 else OLD.decode())
        if ends[-1] == 0:
            break
    assert ends[:-1] == [-signal.SIGKILL] * (len(ends) - 1)
    assert ends[-1] == 0
    assert len(ends) >= 8
    assert found[0] == OLD.decode()
    assert found[-1] == f"new {len(ends)}"
