# SPDX-License-Identifier: Apache-2.0
"""Words that somebody else chose, made fit for a terminal. It decides nothing about what is said."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` as one line without control characters, which could move the cursor, change colours, or forge a line.
    A path, an initiator's name and a remote answer may hold anything."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
