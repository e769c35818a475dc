# SPDX-License-Identifier: Apache-2.0
"""Plants bugs, one at a time, and demands that the suite catches each: `make seeded`, or `run.py [NAME ...]` for some.

A bug is a patch in this folder. Text before its diff says what it breaks, and each line `Caught-by: COMMAND` there
names tests that must fail with it and pass without it:

    core TEST            a C test of core/test, compiled plainly
    asan TEST, tsan TEST the same under sanitizers
    pytest ARGUMENT ...  Python tests

They run in one copy of the tree, in which little is compiled for each patch. It prints a table, and ends with 1 when a
bug survives, a patch no longer applies or compiles, or its tests fail without it. Which tests catch a bug is written
down, not searched for: that it is caught by accident elsewhere is worth nothing to the next reader.

`run.py --check [NAME ...]` only looks whether each patch still applies and the files of its tests exist, which takes a
second and no copy. It is for whoever has moved the code around a bug: the ordinary tests run it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TREE = ROOT / "build" / "seeded-tree"
PYTHON = ROOT / ".venv" / "bin" / "python"
LOG = ROOT / "build" / "seeded.log"
SLACK = 60.0  # seconds that a test may take beyond five times what it takes without a bug
BASELINE = 900.0
VARIANTS = {"core": "plain", "asan": "asan", "tsan": "tsan"}
PYTEST_FAILED = 1
# A line less of context than usual: code around a bug may change without touching it.
APPLY = ["git", "apply", "-C2"]
PYTEST = [str(PYTHON), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout=60"]


class BrokenSeed(Exception):
    """The patch itself is wrong: it does not apply or compile, or names tests that cannot run."""


@dataclass(frozen=True, slots=True)
class Seed:
    name: str
    path: Path
    what: str
    commands: list[str]

    @classmethod
    def read(cls, path: Path) -> Seed:
        head = path.read_text().partition("\n--- ")[0].splitlines()
        commands = [line.removeprefix("Caught-by:").strip() for line in head if line.startswith("Caught-by:")]
        if not commands:
            raise BrokenSeed(f"{path.name}: no line says Caught-by")
        return cls(path.stem, path, head[0], commands)

    def check(self, tree: Path) -> None:
        """Raises BrokenSeed when the patch does not apply to the tree, or a file of its tests is not there."""
        # Inside of another repository, git would take the paths for that one's and pass over them.
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
        command = [*APPLY, "--check", str(self.path.resolve())]
        applied = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        if applied.returncode:
            raise BrokenSeed(f"the patch does not apply: {applied.stderr.strip()}")
        for caught in self.commands:
            kind, test, *_ = shlex.split(caught)
            path = tree / (test.partition("::")[0] if kind == "pytest" else f"core/test/{test}.c")
            if not path.is_file():
                raise BrokenSeed(f"{caught}: there is no {path.relative_to(tree)}")


@dataclass(slots=True)
class Runner:
    log: object
    seconds: dict[str, float] = field(default_factory=dict)
    """how long each command takes when nothing is broken"""

    def call(self, arguments: list[str], patience: float = BASELINE) -> int | None:
        """The exit code, None when it did not end. All that it started ends with it."""
        environment = {
            **os.environ,
            # Two versions of a file within a second would look alike to the byte code's check.
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(TREE),
            # The copy is inside of our own repository, which git must not notice.
            "GIT_CEILING_DIRECTORIES": str(TREE.parent),
        }
        print(f"$ {shlex.join(arguments)}", file=self.log, flush=True)  # type: ignore[call-overload]
        process = subprocess.Popen(
            arguments,
            cwd=TREE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,  # type: ignore[arg-type]
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def build(self, command: str) -> None:
        """Compiles what the command runs."""
        kind, *rest = shlex.split(command)
        if kind in VARIANTS:
            target = f"../build/core-test/{VARIANTS[kind]}/{rest[0]}"
            arguments = ["make", "-s", "-j2", "-C", "core", f"VARIANT={VARIANTS[kind]}", f"PYTHON={PYTHON}", target]
        elif kind == "pytest":
            arguments = [str(PYTHON), "tests/ci/compile_module.py", "build/objects"]
        else:
            raise BrokenSeed(f"no such command: {command}")
        if self.call(arguments):
            raise BrokenSeed("it does not compile")

    def fails(self, command: str, patience: float) -> str:
        """How the tests fail, "" when they pass."""
        kind, *rest = shlex.split(command)
        if kind == "pytest":
            code = self.call([*PYTEST, *rest], patience)
            if code is not None and code > PYTEST_FAILED:
                raise BrokenSeed(f"pytest ended with {code}: does {command!r} name tests?")
        else:
            code = self.call([f"build/core-test/{VARIANTS[kind]}/{rest[0]}", *rest[1:]], patience)
        if code is None:
            return "hang"
        return "" if code == 0 else signal.Signals(-code).name if code < 0 else "fail"

    def measure(self, command: str) -> None:
        """Runs it without any patch, once."""
        if command in self.seconds:
            return
        self.build(command)
        started = time.monotonic()
        failed = self.fails(command, BASELINE)
        if failed:
            raise BrokenSeed(f"{command}: {failed} without any bug")
        self.seconds[command] = time.monotonic() - started

    def apply(self, seed: Seed, *options: str) -> None:
        if self.call([*APPLY, *options, str(seed.path)]):
            raise BrokenSeed("the patch does not apply")

    def try_seed(self, seed: Seed) -> str:
        """How each command failed. Raises BrokenSeed; a bug that survives is in the answer as SURVIVED."""
        for command in seed.commands:
            self.measure(command)
        self.apply(seed)
        try:
            said = []
            for command in seed.commands:
                self.build(command)
                said.append(self.fails(command, 5 * self.seconds[command] + SLACK) or "SURVIVED")
            return ", ".join(said)
        finally:
            self.apply(seed, "--reverse")


def check(seeds: list[Seed], tree: Path) -> int:
    bad = 0
    for seed in seeds:
        try:
            seed.check(tree)
        except BrokenSeed as error:
            print(f"{seed.name}: {error}", file=sys.stderr)
            bad += 1
    print(f"{len(seeds) - bad} of {len(seeds)} bugs can be planted")
    return 1 if bad else 0


def plant(seeds: list[Seed]) -> int:
    subprocess.run([ROOT / "tests" / "ci" / "copy-tree", TREE], cwd=ROOT, check=True)
    width = max(len(seed.name) for seed in seeds)
    bad = 0
    with LOG.open("w") as log:
        runner = Runner(log)
        for seed in seeds:
            print(f"=== {seed.name}", file=log, flush=True)
            started = time.monotonic()
            try:
                result = runner.try_seed(seed)
            except BrokenSeed as error:
                result = f"BROKEN: {error}"
            bad += "SURVIVED" in result or "BROKEN" in result
            print(f"{seed.name:{width}}  {time.monotonic() - started:5.1f} s  {result:10}  {seed.what}", flush=True)
    print(f"{len(seeds) - bad} of {len(seeds)} bugs caught" + (f"; see {LOG}" if bad else ""))
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Plants bugs, one at a time, and demands that the suite catches each.")
    parser.add_argument("--check", action="store_true", help="only look whether the patches still apply")
    parser.add_argument("--patches", type=Path, default=HERE, help="where they are (default: beside this file)")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a patch without its suffix (default: all)")
    given = parser.parse_args()
    paths = sorted(path for path in given.patches.glob("*.patch") if not given.names or path.stem in given.names)
    if len(paths) < max(len(given.names), 1):
        print("no such patch", file=sys.stderr)
        return 2
    try:
        seeds = [Seed.read(path) for path in paths]
    except BrokenSeed as error:
        print(error, file=sys.stderr)
        return 1
    return check(seeds, ROOT) if given.check else plant(seeds)


if __name__ == "__main__":
    sys.exit(main())
