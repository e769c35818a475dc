# SPDX-License-Identifier: Apache-2.0
"""Files that are replaced as a whole and are durable when the call returns: after a crash or a power cut at any moment
there is the old content or the new one. What is in them, and who may write, is the callers' affair.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PRIVATE_FILE, PRIVATE_DIRECTORY = 0o600, 0o700


def replace(path: Path, data: bytes, *, fresh: Path, mode: int = PRIVATE_FILE) -> None:
    """`path` gets `data`, by way of `fresh` in the same directory. Raises OSError; up to the rename nothing has changed
    then, and `fresh` is gone."""
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            # A disk that fills up takes a part, and says so only when the rest comes.
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(fresh, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh)
        raise
    sync_directory(path.parent)


def make_directory(directory: Path) -> None:
    """With its parents; each is durable in its own parent before anything is put into it."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, PRIVATE_DIRECTORY)
    sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """The names in it are durable on return."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
