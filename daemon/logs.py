# SPDX-License-Identifier: Apache-2.0
"""Where log lines go: stderr, as text or as one JSON object a line.

Two loggers are the daemon's: `vhost_scsi.control` (protocols, life cycle, management) and `vhost_scsi.data` (the data
plane). What is worth a line is decided where it happens.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Final, TextIO

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
ROOT: Final = logging.getLogger("vhost_scsi")
CONTROL: Final = logging.getLogger("vhost_scsi.control")
_SHORT: Final = {"vhost_scsi.control": "control", "vhost_scsi.data": "data"}


class TextFormatter(logging.Formatter):
    """`2026-11-20T14:00:00.123 warning control: text`, with local time."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        head = f"{when}.{int(record.msecs):03d} {record.levelname.lower()} {_SHORT.get(record.name, record.name)}: "
        text = head + one_line(record.getMessage())
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC, RFC 3339), level, logger, message, and error where there is a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def one_line(text: str) -> str:
    """`text` without line breaks and control characters: a path or a guest's word must not forge a line of its own."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def configure(level: str, form: str, stream: TextIO | None = None) -> None:
    """Sends our loggers to `stream` (stderr); may be called again."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for old in ROOT.handlers[:]:
        ROOT.removeHandler(old)
    ROOT.addHandler(handler)
    ROOT.propagate = False
    set_level(level)


def set_level(level: str) -> None:
    ROOT.setLevel(LEVELS[level])


def get_level() -> str:
    """The level in use, by name."""
    number = ROOT.getEffectiveLevel()
    return next((name for name, value in LEVELS.items() if value >= number), "error")
