# SPDX-License-Identifier: Apache-2.0
"""A disk that may lose whatever was not made durable: it watches the calls that a writer makes below a directory, and
gives every content that the directory may have after the power failed behind any one of them.

What counts as lost is as bad as POSIX lets it be: each name and each file has its new content for sure only after an
fsync of the directory or the file; before, either may be there or not, in any combination, and bytes in part or zero.
A directory is a name in its parent like any other: if that is lost, so is all that is in it.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Content = tuple[tuple[str, bytes | None], ...]
"""paths below the watched directory in their order, each with its bytes; None: a directory"""


@dataclass
class Inode:
    """`sure`: what a crash leaves for certain. `now`: what a reader sees."""

    now: bytes = b""
    sure: bytes = b""

    def may_be(self) -> set[bytes]:
        if self.now == self.sure:
            return {self.now}
        half = self.now[: len(self.now) // 2]
        return {self.sure, self.now, half, b"", bytes(len(self.now)), half + bytes(len(self.now) - len(half))}


@dataclass
class Directory:
    """Names to inodes and directories, as a reader sees them; and for each name what it may be after a crash."""

    now: dict[str, Inode | Directory] = field(default_factory=dict)
    may: dict[str, list[Inode | Directory | None]] = field(default_factory=dict)

    def set(self, name: str, node: Inode | Directory | None) -> None:
        self.may.setdefault(name, [self.now.get(name)]).append(node)
        if node is None:
            self.now.pop(name, None)
        else:
            self.now[name] = node

    def sync(self) -> None:
        self.may.clear()

    def contents(self, prefix: str = "") -> Iterator[Content]:
        choices: list[set[Content]] = []
        for name in sorted({*self.now, *self.may}):
            path = f"{prefix}{name}"
            one: set[Content] = set()
            for node in self.may.get(name) or [self.now.get(name)]:
                if node is None:
                    one.add(())
                elif isinstance(node, Inode):
                    one |= {((path, data),) for data in node.may_be()}
                else:
                    one |= {((path, None), *below) for below in node.contents(f"{path}/")}
            choices.append(one)
        for combination in itertools.product(*choices):
            yield tuple(itertools.chain.from_iterable(combination))


def _scan(path: Path) -> Directory:
    found = Directory()
    for each in path.iterdir():
        if each.is_dir():
            found.now[each.name] = _scan(each)
        else:
            data = each.read_bytes()
            found.now[each.name] = Inode(data, data)
    return found


class Disk:
    """Watches the directory `root` with all that is below it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = _scan(root)
        self.open: dict[int, Inode | Directory] = {}
        self.calls: list[str] = []
        self.states: list[set[Content]] = []

    def note(self, call: str) -> None:
        self.calls.append(call)
        self.states.append(set(self.directory.contents()))

    def find(self, path: Path) -> Directory | None:
        """The directory with that path; None where it is not ours."""
        if not path.is_relative_to(self.root):
            return None
        node: Inode | Directory | None = self.directory
        for name in path.relative_to(self.root).parts:
            node = node.now.get(name) if isinstance(node, Directory) else None
        return node if isinstance(node, Directory) else None

    # ---- what the writer calls -------------------------------------------------------------------------------------

    def opened(self, fd: int, path: Path, flags: int) -> None:
        if flags & os.O_DIRECTORY:
            found = self.find(path)
            if found is not None:
                self.open[fd] = found
            return
        parent = self.find(path.parent)
        if parent is None or not flags & (os.O_WRONLY | os.O_RDWR):
            return
        inode = parent.now.get(path.name)
        if not isinstance(inode, Inode):
            inode = Inode()
            parent.set(path.name, inode)
        if flags & os.O_TRUNC:
            inode.now = b""
        self.open[fd] = inode
        self.note(f"open {path.name}")

    def wrote(self, fd: int, data: bytes) -> None:
        inode = self.open.get(fd)
        if isinstance(inode, Inode):
            inode.now += data
            self.note("write")

    def synced(self, fd: int) -> None:
        found = self.open.get(fd)
        if isinstance(found, Inode):
            found.sure = found.now
            self.note("fsync file")
        elif isinstance(found, Directory):
            found.sync()
            self.note("fsync directory")

    def renamed(self, source: Path, target: Path) -> None:
        parent = self.find(source.parent)
        if parent is not None:
            assert source.parent == target.parent, "from one directory to another"
            parent.set(target.name, parent.now[source.name])
            parent.set(source.name, None)
            self.note("rename")

    def removed(self, path: Path) -> None:
        parent = self.find(path.parent)
        if parent is not None:
            parent.set(path.name, None)
            self.note("unlink")

    def made(self, path: Path) -> None:
        parent = self.find(path.parent)
        if parent is not None:
            parent.set(path.name, Directory())
            self.note(f"mkdir {path.name}")

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        real: dict[str, Any] = {
            name: getattr(os, name) for name in ("open", "close", "write", "fsync", "rename", "unlink", "mkdir")
        }

        def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            fd: int = real["open"](path, flags, *rest, **more)
            self.opened(fd, Path(path), flags)
            return fd

        def closed(fd: int) -> None:
            self.open.pop(fd, None)
            real["close"](fd)

        def wrote(fd: int, data: Any) -> int:
            # Never all at once: what comes between two writes is a moment of its own.
            part = bytes(data)[: max(1, (len(data) + 1) // 2)]
            count: int = real["write"](fd, part)
            self.wrote(fd, part[:count])
            return count

        def synced(fd: int) -> None:
            real["fsync"](fd)
            self.synced(fd)

        def renamed(source: Any, target: Any) -> None:
            real["rename"](source, target)
            self.renamed(Path(source), Path(target))

        def removed(path: Any) -> None:
            real["unlink"](path)
            self.removed(Path(path))

        def made(path: Any, *rest: Any) -> None:
            real["mkdir"](path, *rest)
            self.made(Path(path))

        for fake in (opened, closed, wrote, synced, renamed, removed, made):
            patch.setattr(os, _NAMES[fake.__name__], fake)


_NAMES = {
    "opened": "open",
    "closed": "close",
    "wrote": "write",
    "synced": "fsync",
    "renamed": "rename",
    "removed": "unlink",
    "made": "mkdir",
}


def lay_out(directory: Path, content: Content) -> None:
    """Makes the directory have that content and nothing else."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, data in content:
        if data is None:
            (directory / name).mkdir()
        else:
            (directory / name).write_bytes(data)
