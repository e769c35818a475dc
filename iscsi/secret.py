# SPDX-License-Identifier: Apache-2.0
"""A secret: bytes that come from a file or the environment, and that no log, traceback or dump of state ever shows.

There is no way to give one on a command line, where every process of the machine could read it.
"""

from __future__ import annotations

import hmac
import os
import stat
from collections.abc import Mapping
from typing import Final, NoReturn

from vhost_scsi.errors import ConfigError

MIN_BYTES: Final = 12  # RFC 7143, 9.2.1: 96 bits, where no IPsec protects the connection
MAX_BYTES: Final = 256


class Secret:
    """Compared in constant time; `reveal` is for the hash that needs it."""

    __slots__ = ("_value", "source")

    def __init__(self, value: bytes, source: str = "a program") -> None:
        """`source` is where it came from, for messages. Raises ConfigError for an empty or oversize one."""
        if not value:
            raise ConfigError(f"the secret of {source} is empty")
        if len(value) > MAX_BYTES:
            raise ConfigError(f"the secret of {source} has more than {MAX_BYTES} bytes")
        self._value = value
        self.source = source

    @classmethod
    def from_file(cls, path: str) -> Secret:
        """The file's bytes without the line end. Raises ConfigError where others may read or replace the file."""
        try:
            # Not to wait for the writer of a pipe; what is not a regular file is refused below.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}: is not a regular file")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise ConfigError(f"{path}: mode {mode:04o} lets others at the secret; chmod 0600 it")
            if status.st_uid not in (0, os.geteuid()):
                raise ConfigError(f"{path}: belongs to another user")
            value = os.read(fd, MAX_BYTES + 3)
        finally:
            os.close(fd)
        return cls(value.removesuffix(b"\n").removesuffix(b"\r"), path)

    @classmethod
    def from_environment(cls, name: str, environment: Mapping[str, str] = os.environ) -> Secret:
        if name not in environment:
            raise ConfigError(f"environment variable {name} is not set")
        return cls(os.fsencode(environment[name]), f"environment variable {name}")

    @property
    def is_short(self) -> bool:
        return len(self._value) < MIN_BYTES

    def reveal(self) -> bytes:
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(Secret)  # of nothing that could tell one from another

    def __repr__(self) -> str:
        return f"<secret of {self.source}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written anywhere")
