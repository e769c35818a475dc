# SPDX-License-Identifier: Apache-2.0
"""The programs of Debian's libiscsi-bin as tests run them, and what `iscsi-test-cu` says, taken apart."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

TIMEOUT = 240.0
KNOWN = Path(__file__).with_name("known-failures.txt")
_TEST = re.compile(r"^  Test: (?P<name>\S+) \.\.\.", re.MULTILINE)
# What a test prints comes between its name and its verdict, and may speak of [FAILED] commands that were meant to fail.
_VERDICT = re.compile(r"(?<!\[)(?P<word>passed|FAILED)(?!\])")
_TOTALS = re.compile(r"^ +tests +(?P<total>\d+) +(?P<ran>\d+) +(?P<passed>\d+) +(?P<failed>\d+)", re.MULTILINE)


class Outcome(Enum):
    PASSED = "passed"
    SKIPPED = "skipped"  # it found that something is not there, said so, and counts as passed for the program
    FAILED = "failed"


@dataclass(frozen=True)
class Known:
    """A line of the list of what does not pass. `test` is a pattern; `store`: over this kind only."""

    outcome: Outcome
    test: str
    reason: str
    store: str = ""


def tool(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end. Sanitizers that watch over us have no business in it."""
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    return subprocess.run(
        words,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        stdin=subprocess.DEVNULL,
    )


def suites() -> dict[str, list[str]]:
    """FAMILY.SUITE, and the names of its tests, of the families that each test is in once."""
    found: dict[str, list[str]] = {}
    for line in tool("iscsi-test-cu", "--list").stdout.split():
        words = line.split(".")
        if words[0] in ("SCSI", "iSCSI") and len(words) == 3:
            found.setdefault(".".join(words[:2]), []).append(words[2])
    return found


def run_suite(suite: str, urls: list[str], directory: Path) -> tuple[dict[str, Outcome], str]:
    """One process. `directory` is empty: a file of the suite's name would be read as a list of tests."""
    return run_tests(suite, urls, directory)


def run_tests(which: str, urls: list[str], directory: Path) -> tuple[dict[str, Outcome], str]:
    """As above; `which` may be FAMILY.SUITE.TEST too."""
    result = tool("iscsi-test-cu", "-d", "-S", f"--test={which}", *urls, cwd=directory)
    return outcomes(result.stdout), f"exit status {result.returncode}\n{result.stdout}"


def outcomes(output: str) -> dict[str, Outcome]:
    """By test. Raises AssertionError where the details and the program's own totals differ."""
    found: dict[str, Outcome] = {}
    starts = [*_TEST.finditer(output)]
    ends = [*(following.start() for following in starts[1:]), len(output)]
    for start, end in zip(starts, ends[: len(starts)], strict=True):
        text = output[start.end() : end]
        verdict = _VERDICT.search(text)
        assert verdict is not None, f"{start['name']} has no verdict:\n{output}"
        if verdict["word"] == "FAILED":
            found[start["name"]] = Outcome.FAILED
        else:
            skipped = "[SKIPPED]" in text[: verdict.start()]
            found[start["name"]] = Outcome.SKIPPED if skipped else Outcome.PASSED
    totals = _TOTALS.search(output)
    assert totals is not None, f"no totals: the program did not come to its end\n{output}"
    failed = sum(outcome is Outcome.FAILED for outcome in found.values())
    assert (int(totals["ran"]), int(totals["failed"])) == (len(found), failed), output
    return found


def known() -> list[Known]:
    """The list."""
    lines = [line for line in KNOWN.read_text().splitlines() if line.strip() and not line.startswith("#")]
    found = []
    for line in lines:
        word, test, reason = line.split(maxsplit=2)
        outcome, _, store = word.partition("@")
        found.append(Known(Outcome(outcome), test, reason, store))
    return found


def surprises(suite: str, found: dict[str, Outcome], expected: list[Known], store: str = "") -> list[str]:
    """What differs from the list, a line each."""
    told = []
    for test, outcome in found.items():
        name = f"{suite}.{test}"
        lines = [line for line in expected if fnmatch.fnmatchcase(name, line.test) and line.store in ("", store)]
        wanted = lines[0].outcome if lines else Outcome.PASSED
        if len(lines) > 1:
            told.append(f"{name} stands in {KNOWN.name} {len(lines)} times")
        elif outcome is not wanted:
            told.append(f"{name} {outcome.value}, and {KNOWN.name} has it as {wanted.value}")
    return told
