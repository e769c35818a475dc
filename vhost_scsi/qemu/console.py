# SPDX-License-Identifier: Apache-2.0
"""The text of a serial console as one bounded stream that can be waited on.

Bytes go in from a reader thread; text comes out without terminal escapes and carriage returns, so that a test
matches words and not cursor movements. What was matched is consumed. It knows nothing of QEMU.
"""

from __future__ import annotations

import codecs
import re
import threading
import time

LIMIT = 1 << 20  # characters kept; a guest may print for ever
TAIL = 8192  # characters shown when something goes wrong
# ECMA-48 5.4 control sequences, OSC strings, and the two-character escapes.
ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,256}(?:\x07|\x1b\\)|[ -/]*[0-OQ-Z\\^-~])|[\r\x00\x07]"
)
UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]{0,256}\x1b?|[ -/]*)$")


class Console:
    """A stream of text with one reader's position in it."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._changed = threading.Condition()
        self._pending = ""  # the beginning of an escape sequence whose end has not arrived
        self._text = ""
        self._position = 0  # consumed characters of _text
        self._closed = False
        self.lost = 0  # characters dropped unread because nobody consumed them in time

    def feed(self, data: bytes) -> str:
        """Take bytes from the line; returns the clean text that they add."""
        with self._changed:
            text = self._pending + self._decoder.decode(data)
            unfinished = UNFINISHED.search(text)
            self._pending = unfinished[0] if unfinished else ""
            text = ESCAPES.sub("", text[: len(text) - len(self._pending)])
            self._text += text
            excess = len(self._text) - self._limit
            if excess > 0:
                self._text = self._text[excess:]
                self.lost += max(0, excess - self._position)
                self._position = max(0, self._position - excess)
            self._changed.notify_all()
            return text

    def close(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether the line is gone."""
        return self._closed

    def tail(self) -> str:
        """The end of everything that was written, read or not."""
        with self._changed:
            return self._text[-TAIL:]

    def expect(self, wanted: str | re.Pattern[str], timeout: float) -> tuple[str, re.Match[str]] | None:
        """Wait for a text or a pattern; (what came before it, the match), or None at the timeout or the line's end."""
        pattern = re.compile(re.escape(wanted)) if isinstance(wanted, str) else wanted
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                match = pattern.search(self._text, self._position)
                if match is not None:
                    before = self._text[self._position : match.start()]
                    keep = max(0, match.end() - TAIL)  # for tail(); appending to a long text costs its length
                    self._text, self._position = self._text[keep:], match.end() - keep
                    return before, match
                remaining = deadline - time.monotonic()
                if self._closed or remaining <= 0:
                    return None
                self._changed.wait(remaining)
