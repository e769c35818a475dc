# SPDX-License-Identifier: Apache-2.0
"""Log lines: text for people, objects for machines, and a line that stays a line."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from vhost_scsi.daemon import logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    handlers, level, propagate = logs.ROOT.handlers[:], logs.ROOT.level, logs.ROOT.propagate
    yield
    logs.ROOT.handlers[:], logs.ROOT.propagate = handlers, propagate
    logs.ROOT.setLevel(level)


def lines(form: str, level: str = "info") -> tuple[io.StringIO, logging.Logger, logging.Logger]:
    stream = io.StringIO()
    logs.configure(level, form, stream)
    return stream, logging.getLogger("vhost_scsi.control"), logging.getLogger("vhost_scsi.data")


def test_text_names_level_and_plane() -> None:
    stream, control, data = lines("text")
    control.info("one")
    data.error("two")
    first, second = stream.getvalue().splitlines()
    assert first.endswith(" info control: one")
    assert second.endswith(" error data: two")


def test_json_is_one_object_a_line() -> None:
    stream, control, _ = lines("json")
    control.warning("a\nb")
    try:
        raise ValueError("why")
    except ValueError:
        control.exception("failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("warning", "vhost_scsi.control", "a\nb")
    assert "ValueError: why" in second["error"]


def test_what_a_guest_says_forges_no_line() -> None:
    stream, control, _ = lines("text")
    control.info("name %s", "x\n2026 error control: forged\x1b[2J")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_the_level_can_be_changed_and_asked() -> None:
    stream, control, _ = lines("text", "error")
    control.info("not said")
    assert logs.get_level() == "error"
    logs.set_level("debug")
    control.debug("said")
    assert logs.get_level() == "debug"
    assert stream.getvalue().count("\n") == 1


def test_configured_again_there_is_still_one_line_each() -> None:
    lines("text")
    stream, control, _ = lines("json")
    control.info("once")
    assert stream.getvalue().count("\n") == 1
