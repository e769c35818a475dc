# SPDX-License-Identifier: Apache-2.0
"""Counts skipped tests and fails the run when more are skipped than tests/allowed-skips.txt allows.

It stands at the root because it watches over tests/ and qemu-tests/ alike; fixtures belong into the conftest.py of
their own folder. A skip is silent by nature: this makes it a decision that somebody wrote down. Expected failures
(xfail) are not skips.
"""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

ALLOWED_SKIPS = Path(__file__).parent / "tests" / "allowed-skips.txt"


class SkipCount:
    """The skips of one run, by test or by module that skipped itself."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.skipped: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.add(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if len(self.skipped) > self.allowed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if len(self.skipped) > self.allowed:
            terminalreporter.section("too many skipped tests", red=True)
            terminalreporter.line(f"{len(self.skipped)} skipped, {self.allowed} allowed by tests/allowed-skips.txt:")
            for nodeid in sorted(self.skipped):
                terminalreporter.line(f"  {nodeid}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipCount(int(ALLOWED_SKIPS.read_text())), "skip-count")


# No test may fail for the time that a shared machine takes: not for a slow example, and not for slow drawing.
hypothesis.settings.register_profile(
    "shared-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("shared-machine")
