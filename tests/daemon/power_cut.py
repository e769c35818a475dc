# SPDX-License-Identifier: Apache-2.0
"""A disk that may lose whatever was not made durable: it watches the calls that a writer makes below a directory, and
gives every content that the directory may have after the power failed behind any one of them.

What counts as lost is as bad as POSIX lets it be: each name and each file has its new content for sure only after an
fsync of the directory or the file; before, either may be there or not, in any combination, and bytes in part or zero.
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
    """Names to inodes, as a reader sees them; and for each name what it may be after a crash."""

    now: dict[str, Inode] = field(default_factory=dict)
    may: dict[str, list[Inode | None]] = field(default_factory=dict)

    def set(self, name: str, inode: Inode | None) -> None:
        self.may.setdefault(name, [self.now.get(name)]).append(inode)
        if inode is None:
            self.now.pop(name, None)
        else:
            self.now[name] = inode

    def sync(self) -> None:
        self.may.clear()


class Disk:
    """Watches the directory `root`, which the writer's files lie in directly."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = Directory()
        self.open: dict[int, Inode | Directory] = {}
        self.calls: list[str] = []
        self.states: list[set[tuple[tuple[str, bytes], ...]]] = []
        for path in root.iterdir():
            data = path.read_bytes()
            self.directory.now[path.name] = Inode(data, data)

    def note(self, call: str) -> None:
        self.calls.append(call)
        self.states.append(set(self._contents()))

    def _contents(self) -> Iterator[tuple[tuple[str, bytes], ...]]:
        names = sorted({*self.directory.now, *self.directory.may})
        choices = []
        for name in names:
            inodes = self.directory.may.get(name) or [self.directory.now.get(name)]
            one: set[bytes | None] = set()
            for inode in inodes:
                one |= {None} if inode is None else inode.may_be()
            choices.append(one)
        for combination in itertools.product(*choices):
            yield tuple((name, data) for name, data in zip(names, combination, strict=True) if data is not None)

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        real: dict[str, Any] = {
            name: getattr(os, name) for name in ("open", "close", "write", "fsync", "rename", "unlink")
        }

        def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            fd: int = real["open"](path, flags, *rest, **more)
            found = Path(path)
            if found == self.root:
                self.open[fd] = self.directory
            elif found.parent == self.root and flags & (os.O_WRONLY | os.O_RDWR):
                inode = self.directory.now.get(found.name)
                if inode is None:
                    inode = Inode()
                    self.directory.set(found.name, inode)
                if flags & os.O_TRUNC:
                    inode.now = b""
                self.open[fd] = inode
                self.note(f"open {found.name}")
            return fd

        def closed(fd: int) -> None:
            self.open.pop(fd, None)
            real["close"](fd)

        def wrote(fd: int, data: Any) -> int:
            # Never all at once: what comes between two writes is a moment of its own.
            part = bytes(data)[: max(1, (len(data) + 1) // 2)]
            count: int = real["write"](fd, part)
            inode = self.open.get(fd)
            if isinstance(inode, Inode):
                inode.now += part[:count]
                self.note("write")
            return count

        def synced(fd: int) -> None:
            real["fsync"](fd)
            found = self.open.get(fd)
            if isinstance(found, Inode):
                found.sure = found.now
                self.note("fsync file")
            elif isinstance(found, Directory):
                found.sync()
                self.note("fsync directory")

        def renamed(source: Any, target: Any) -> None:
            real["rename"](source, target)
            inode = self.directory.now[Path(source).name]
            self.directory.set(Path(target).name, inode)
            self.directory.set(Path(source).name, None)
            self.note("rename")

        def removed(path: Any) -> None:
            real["unlink"](path)
            self.directory.set(Path(path).name, None)
            self.note("unlink")

        for name, fake in (
            ("open", opened),
            ("close", closed),
            ("write", wrote),
            ("fsync", synced),
            ("rename", renamed),
            ("unlink", removed),
        ):
            patch.setattr(os, name, fake)


def lay_out(directory: Path, content: tuple[tuple[str, bytes], ...]) -> None:
    """Makes the directory have that content and nothing else."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, data in content:
        (directory / name).write_bytes(data)
