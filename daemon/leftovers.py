# SPDX-License-Identifier: Apache-2.0
"""What a `boot` that was killed leaves behind, its folder in /tmp and its management socket, and the sweep that the
next one makes.

Whose process lives is known by locks, which the kernel lets go of, and by the process id in the name; only where both
say that nobody is there is something removed. A daemon with a name of its own takes its path over by itself
(`control.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vhost_scsi.daemon.client import directory
from vhost_scsi.daemon.control import check_directory
from vhost_scsi.errors import ConfigError

PREFIX: Final = "vhost-scsi-boot."
LOCK: Final = "lock"
_FOLDER: Final = re.compile(re.escape(PREFIX) + r"([0-9]{1,10})\..+")
_LOCK: Final = re.compile(r"boot-([0-9]{1,10})\.sock\.lock")


@contextlib.contextmanager
def folder() -> Iterator[str]:
    """A folder for the sockets of this process; gone at the end, or with the next `sweep` after a kill -9."""
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}.") as path:
        # Not the folder itself: a vhost-user server locks that while it binds.
        lock = Path(path) / LOCK
        lock.touch(0o600)
        with _locked(lock):
            yield path


def sweep() -> None:
    """Removes what dead processes of this user left. What cannot be removed is left alone: it is in nobody's way."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        match = _FOLDER.fullmatch(path.name)
        if match is None or _lives(match[1]):
            continue
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.geteuid():
                continue
            with _locked(path / LOCK):
                shutil.rmtree(path)
    with contextlib.suppress(ConfigError):
        # In a directory that others can write to, names prove nothing.
        check_directory(directory())
        for lock in directory().iterdir():
            match = _LOCK.fullmatch(lock.name)
            if match is None or _lives(match[1]):
                continue
            with contextlib.suppress(OSError), _locked(lock):
                lock.with_suffix("").unlink(missing_ok=True)
                lock.unlink()


def _lives(pid: str) -> bool:
    return os.path.exists(f"/proc/{pid}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file; BlockingIOError when somebody else does."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)
