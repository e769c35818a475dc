# SPDX-License-Identifier: Apache-2.0
"""A power cut at any moment, and a kill at any call, of every writer of what a daemon keeps: the old content is there
afterwards or the new one, never neither, and what was promised by a return is there.

Blobs of units are cut in `test_state_dir.py` as well, in the ways that belong to them.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from tests.daemon.power_cut import Content, Directory, Disk, Inode, lay_out
from vhost_scsi.daemon import config_save
from vhost_scsi.daemon.state import FILE, State
from vhost_scsi.daemon.state_dir import BlobDirectory, pack, unpack
from vhost_scsi.errors import ConfigError

UNIT = UUID("6f0a1d52-93c5-4c7e-8f5b-3d1f0b6a7e11")
NEW_TEXT = "# the file\n" + 'log_level = "debug"\n' * 30


@dataclass(frozen=True)
class Writer:
    """What is kept in one way. `before` makes the old content in a directory, `change` makes it the new one, `look`
    says which it is; it raises where it is neither."""

    before: Callable[[Path], object]
    change: Callable[[Path], object]
    look: Callable[[Path], object]
    old: object
    new: object


def identities(directory: Path) -> tuple[list[str], list[str]]:
    """Which units and which ports have kept theirs. What a reader says of the file is tried, too."""
    path = directory / "s" / FILE
    if not path.exists():
        return [], []
    State(directory / "s").uuids_of({})
    State(directory / "s").ids_of([])
    values = json.loads(path.read_text())
    return sorted(values.get("units", {})), sorted(values.get("ports", {}))


def nothing(directory: Path) -> None:
    pass


def one_unit(directory: Path) -> None:
    State(directory / "s").uuid_of("a", "file:/a")


def two_more(directory: Path) -> None:
    State(directory / "s").uuids_of({"a": "file:/a", "b": "file:/b", "c": "file:/c"})


def ports(directory: Path) -> None:
    State(directory / "s").ids_of(["vm:0", "vm:1"])


def blob(data: bytes) -> Callable[[Path], object]:
    def put(directory: Path) -> None:
        blobs = BlobDirectory(directory / "s" / "units" / str(UNIT))
        assert blobs.claim()
        blobs.write("mode", pack("mode", data))
        blobs.close()

    return put


def the_blob(directory: Path) -> bytes | None:
    raw = BlobDirectory(directory / "s" / "units" / str(UNIT)).read("mode")
    return None if raw is None else unpack("mode", raw)


def text(value: str) -> Callable[[Path], object]:
    return lambda directory: config_save.write(str(directory / "d.toml"), value)


def the_text(directory: Path) -> str | None:
    path = directory / "d.toml"
    return path.read_text() if path.exists() else None


WRITERS = {
    "first unit": Writer(nothing, one_unit, identities, ([], []), (["a"], [])),
    "more units": Writer(one_unit, two_more, identities, (["a"], []), (["a", "b", "c"], [])),
    "ports": Writer(one_unit, ports, identities, (["a"], []), (["a"], ["vm:0", "vm:1"])),
    "first blob": Writer(one_unit, blob(b"new " * 50), the_blob, None, b"new " * 50),
    "blob": Writer(blob(b"old " * 90), blob(b"new " * 50), the_blob, b"old " * 90, b"new " * 50),
    "first configuration": Writer(nothing, text(NEW_TEXT), the_text, None, NEW_TEXT),
    "configuration": Writer(text("# was\n"), text(NEW_TEXT), the_text, "# was\n", NEW_TEXT),
}
by_name = pytest.mark.parametrize("name", WRITERS)


def cut(writer: Writer, tmp_path: Path) -> tuple[Disk, list[object]]:
    """What may be left, whenever the power fails; the last is what is left for sure."""
    root, after = tmp_path / "root", tmp_path / "after"
    root.mkdir()
    writer.before(root)
    disk = Disk(root)
    with pytest.MonkeyPatch.context() as patch:
        disk.watch(patch)
        writer.change(root)
    found: list[object] = []
    seen: set[Content] = set()
    for state in disk.states:
        for content in sorted(state - seen, key=repr):
            seen.add(content)
            lay_out(after, content)
            found.append(writer.look(after))
    for content in disk.states[-1]:
        lay_out(after, content)
        assert writer.look(after) == writer.new, f"lost behind the return: {disk.calls}"
    return disk, found


@by_name
def test_a_power_cut_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path, name: str) -> None:
    writer = WRITERS[name]
    disk, found = cut(writer, tmp_path)
    assert [each for each in found if each not in (writer.old, writer.new)] == []
    assert writer.old in found
    assert writer.new in found
    assert {"write", "fsync file", "rename", "fsync directory"} <= set(disk.calls)


@by_name
@pytest.mark.parametrize("kind", [Inode, Directory], ids=["file", "directory"])
def test_a_careless_writer_is_found_out(tmp_path: Path, name: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative twin: for the disk it is as if nobody had made the file durable, or its name."""
    synced = Disk.synced
    monkeypatch.setattr(
        Disk, "synced", lambda disk, fd: None if isinstance(disk.open.get(fd), kind) else synced(disk, fd)
    )
    writer = WRITERS[name]
    with pytest.raises((AssertionError, ValueError, ConfigError)):
        assert {repr(each) for each in cut(writer, tmp_path)[1]} <= {repr(writer.old), repr(writer.new)}


# ---- kill -9 at every call ------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from tests.daemon.test_power_cut import WRITERS

at, count, real_write = int(sys.argv[4]), 0, os.write

def deadly(name):
    call = getattr(os, name)
    def run(*words, **more):
        global count
        count += 1
        if count == at:
            if name == "write":
                real_write(words[0], bytes(words[1])[: len(words[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*words, **more)
    return run

for name in ("open", "write", "fsync", "rename", "close", "mkdir", "unlink", "fchmod"):
    setattr(os, name, deadly(name))
WRITERS[sys.argv[3]].change(Path(sys.argv[2]))
os._exit(0)
"""


@pytest.mark.slow
@by_name
def test_killed_at_every_call(tmp_path: Path, name: str) -> None:
    writer, tree = WRITERS[name], Path(__file__).resolve().parents[2]
    ends: list[int] = []
    found: list[object] = []
    while not ends or ends[-1]:
        root = tmp_path / "root"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        writer.before(root)
        words = [sys.executable, "-c", KILLED, str(tree), str(root), name, str(len(ends) + 1)]
        ends.append(subprocess.run(words, check=False, timeout=60).returncode)
        found.append(writer.look(root))
        assert ends[-1] in (0, -signal.SIGKILL)
        assert found[-1] in (writer.old, writer.new), f"killed at call {len(ends)}"
        # What was left half-way is in nobody's way.
        writer.change(root)
        assert writer.look(root) == writer.new
    assert found[0] == writer.old
    assert found[-1] == writer.new
    assert len(ends) >= 8
    print(f"\n{name}: killed at {len(ends) - 1} calls")
