# SPDX-License-Identifier: Apache-2.0
"""Each kind of line at most once a second, and nothing is lost without a count."""

from __future__ import annotations

import logging

import pytest

from vhost_scsi.log_limit import LimitedLog


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock, caplog: pytest.LogCaptureFixture) -> LimitedLog:
    caplog.set_level(logging.INFO)
    return LimitedLog(logging.getLogger("limited"), clock=clock)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_kind_is_said_once_a_second(log: LimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        log.say(logging.WARNING, "a", "text")
    clock.now += 0.99
    log.say(logging.WARNING, "a", "text")
    assert said(caplog) == ["text"]


def test_what_was_kept_back_is_counted(log: LimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(4):
        log.say(logging.WARNING, "a", "text")
    clock.now += 1.0
    log.say(logging.WARNING, "a", "again")
    assert said(caplog) == ["text", "again (3 more since)"]


def test_kinds_do_not_silence_each_other(log: LimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    log.say(logging.WARNING, "a", "one")
    log.say(logging.WARNING, "b", "two")
    assert said(caplog) == ["one", "two"]


def test_a_group_of_lines(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = LimitedLog(logging.getLogger("limited"), clock=clock, burst=3)
    for number in range(5):
        log.say(logging.INFO, "a", str(number))
    clock.now += 1.0
    log.say(logging.INFO, "a", "later")
    assert said(caplog) == ["0", "1", "2", "later (2 more since)"]
