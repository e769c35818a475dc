# SPDX-License-Identifier: Apache-2.0
"""Where a container's seccomp profile forbids io_uring the same suite must pass, on the other engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DENY = [sys.executable, str(ROOT / "tests/ci/deny_io_uring.py"), sys.executable]
SUITE = [
    "tests/target",
    "tests/vhost_user/test_device_orders.py",
    "tests/vhost_user/test_device_broken.py",
    "tests/integration/test_data.py",
]

LOOK = """
import asyncio
from vhost_scsi.dataplane import Core, CoreOptions
from vhost_scsi.errors import ConfigError
core = Core(CoreOptions(engine="auto"))
print(core.engine_name)
print(core.engine_why_not)
try:
    Core(CoreOptions(engine="io_uring"))
except ConfigError as error:
    print(type(error).__name__, error, error.exit_code)
async def turn():
    await core.start()
    await core.close()
asyncio.run(turn())
"""


def run(*arguments: str, deny: bool = True) -> subprocess.CompletedProcess[str]:
    prefix = DENY if deny else [sys.executable]
    return subprocess.run([*prefix, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280)


def test_auto_falls_back_and_says_why() -> None:
    done = run("-c", LOOK)
    assert done.stdout.splitlines() == [
        "epoll",
        "io_uring_setup: Operation not permitted",
        "EngineUnavailable engine io_uring: io_uring_setup: Operation not permitted; use --engine epoll 3",
    ], done.stderr


def test_the_filter_denies_only_what_it_says() -> None:
    """The twin: without the filter the same program gets what the kernel has."""
    name, why = run("-c", LOOK, deny=False).stdout.splitlines()[:2]
    assert name == ("io_uring" if why == "None" else "epoll")


@pytest.mark.slow
def test_the_suite_passes_without_io_uring() -> None:
    done = run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", "-k", "auto", *SUITE)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
