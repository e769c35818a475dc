# SPDX-License-Identifier: Apache-2.0
"""Writes docs/test-report.md from the logs of `run-steps`: which commit, with which tools, what ran, how much passed.

It judges nothing: whether a step passed is what its exit code said, and counts are those that the tools printed.
"""

from __future__ import annotations

import datetime
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

TOOLS = {
    "gcc": ["gcc", "--version"],
    "clang": ["clang", "--version"],
    "QEMU": ["qemu-system-x86_64", "--version"],
    "kernel": ["uname", "-sr"],
}
PACKAGES = ["cffi", "click", "construct", "hypothesis", "mypy", "numpy", "pydantic", "pytest", "rich", "ruff"]

# Lines of the logs that say how much was done, by tool.
TELLING = [
    re.compile(r"^=* ?(\d+ (?:passed|failed).*?) ?=*$"),  # pytest
    re.compile(r"^(TOTAL\s.*%)"),  # coverage.py and gcovr
    re.compile(r"^(Success: no issues.*)$"),  # mypy
    re.compile(r"^(All checks passed!)$"),  # ruff
    re.compile(r"^((?:plain|asan|tsan|cover) test_\w+): passed$"),  # core/Makefile: one line per program
    re.compile(r"^((?:plain|asan|tsan|cover) (?:stress|replay)_\w+)$"),
    re.compile(r"^(fuzz_\w+ for \d+ s)$"),
    re.compile(r"^(stat::number_of_executed_units: *\d+)$"),  # libFuzzer
]


def output(*command: str) -> str:
    """The first line that `command` prints."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[0].strip() if result.stdout.strip() else ""


def telling_lines(log: str) -> list[str]:
    """Those lines of a step's log that carry its counts, without colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    return [match[1] for line in plain.splitlines() for pattern in TELLING if (match := pattern.match(line))]


def versions() -> list[tuple[str, str]]:
    from importlib.metadata import version

    found = [("Python", platform.python_version())]
    found += [(name, output(*command)) for name, command in TOOLS.items()]
    return found + [(name, version(name)) for name in PACKAGES]


def report(logs: Path) -> str:
    """The whole page. Its own change to the tree is not counted as one."""
    dirty = output("git", "status", "--porcelain", "--untracked-files=no", "--", ":!docs/test-report.md")
    lines = [
        "# Test report",
        "",
        "Written by `make test-all`; not edited by hand.",
        "",
        f"* commit: {output('git', 'rev-parse', 'HEAD')}{' with local changes' if dirty else ''}",
        f"* date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "",
        "| step | result | seconds | commit | counts |",
        "|---|---|---|---|---|",
    ]
    runs: dict[str, list[tuple[str, str, str]]] = {}
    for row in (logs / "steps").read_text().splitlines():
        step, code, seconds, commit = row.split()
        runs.setdefault(step, []).append((code, seconds, commit))
    for step, tries in runs.items():
        counts = telling_lines((logs / f"{step}.log").read_text(errors="replace"))
        code, seconds, commit = tries[-1]
        result = "passed" if code == "0" else f"**failed** ({code})"
        if len(tries) > 1:
            result += f", after {len(tries) - 1} that failed"
        lines.append(f"| {step} | {result} | {seconds} | {commit[:10]} | {'<br>'.join(counts)} |")
    lines += ["", "| tool | version |", "|---|---|"]
    lines += [f"| {name} | {version} |" for name, version in versions()]
    return "\n".join(lines) + "\n"


def main() -> None:
    logs, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.write_text(report(logs))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
