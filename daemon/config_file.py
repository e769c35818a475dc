# SPDX-License-Identifier: Apache-2.0
"""The configuration file: TOML, with the line and column of what is wrong in it.

TOML's own parser finds the places too: the line of a key is where the beginning of the file first has it. What the
values mean is `config.py`'s business.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from typing import Any, Final

from vhost_scsi.daemon.config import Locate, at_path, words_of
from vhost_scsi.daemon.errors import ConfigFileError
from vhost_scsi.errors import ConfigError

MAX_BYTES: Final = 1 << 20
_POSITION: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


class ConfigText:
    """The text of a file and its values."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self._lines = text.splitlines(keepends=True)
        try:
            self.values: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise self._syntax_error(str(error)) from None
        except RecursionError:
            raise ConfigFileError(path, "tables or lists are nested too deeply") from None

    @classmethod
    def read(cls, path: str) -> ConfigText:
        """Reads a file; ConfigFileError for one that cannot be read or is no TOML."""
        try:
            with open(path, "rb") as handle:
                data = handle.read(MAX_BYTES + 1)
        except OSError as error:
            raise ConfigFileError(path, str(error.strerror)) from error
        if len(data) > MAX_BYTES:
            raise ConfigFileError(path, f"larger than {MAX_BYTES} bytes")
        try:
            return cls(path, data.decode())
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
            raise ConfigFileError(path, "not UTF-8", line, column) from None

    def locate(self, path: tuple[str | int, ...], message: str) -> ConfigFileError:
        """The error for a path into the values, with the place of the deepest part of it that is in the file."""
        words = words_of(path)
        # The last word is in the message where it is an unknown key; the table's name always helps.
        table = ".".join(words[:-1]) if message.startswith("unknown key") else ".".join(words)
        said = f"{table}: {message}" if table else message
        for depth in range(len(path), 0, -1):
            if (line := self._line_of(path[:depth])) is not None:
                start = self._lines[line - 1]
                return ConfigFileError(self.path, said, line, len(start) - len(start.lstrip()) + 1)
        return ConfigFileError(self.path, said)

    def _line_of(self, path: Sequence[str | int]) -> int | None:
        """The line in which `path` comes to be: the first that has its last word and makes the text have the path."""
        word = next((part for part in reversed(path) if isinstance(part, str)), None)
        for index, line in enumerate(self._lines):
            if word is not None and word in line and _has(self._values_up_to(index), path):
                return index + 1
        return None

    def _values_up_to(self, index: int) -> dict[str, Any]:
        """The values of the beginning of the file, line `index` and the value that may begin there included."""
        for end in range(index + 1, len(self._lines) + 1):
            values = self._values_of(end)
            if values is not None:
                return values
        return {}

    def _values_of(self, lines: int) -> dict[str, Any] | None:
        try:
            return tomllib.loads("".join(self._lines[:lines]))
        except (tomllib.TOMLDecodeError, RecursionError):
            return None

    def _syntax_error(self, message: str) -> ConfigFileError:
        match = _POSITION.search(message)
        line = column = None
        if match is not None:
            message = message[: match.start()]
            if match[1] is not None:
                line, column = int(match[1]), int(match[2])
            else:
                line, column = max(1, len(self._lines)), len(self._lines[-1].rstrip("\n")) + 1 if self._lines else 1
        return ConfigFileError(self.path, message[:1].lower() + message[1:], line, column)


def _has(values: Any, path: Sequence[str | int]) -> bool:
    for part in path:
        match values, part:
            case dict(), str() if part in values:
                values = values[part]
            case list(), int() if part < len(values):
                values = values[part]
            case _:
                return False
    return True


def locator(text: ConfigText | None) -> Locate:
    """Places in the file for what is in the file; what came from the command line is its own place."""

    def locate(path: tuple[str | int, ...], message: str) -> ConfigError:
        # Of the items of a list some may stand in the file and some on the command line.
        depth = 3 if len(path) > 2 and isinstance(path[2], int) else 2
        if text is not None and path and _has(text.values, path[:depth]):
            return text.locate(path, message)
        return at_path(path, message)

    return locate
