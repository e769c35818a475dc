# SPDX-License-Identifier: Apache-2.0
"""The command as a whole: help, versions, how quickly it starts, and how values are shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.cli.conftest import Run
from vhost_scsi import __version__
from vhost_scsi.cli import COMMANDS, INTERNAL_ERROR, INTERRUPTED, main
from vhost_scsi.cli.output import duration, print_table, size, uptime
from vhost_scsi.cli.queue_show import state, strip
from vhost_scsi.daemon import client

HEAVY = {"asyncio", "numpy", "pydantic", "construct", "rich", "vhost_scsi._core", "vhost_scsi.daemon"}


def test_the_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"vhost-scsi {__version__}\n"


def test_every_command_has_help() -> None:
    listed = CliRunner().invoke(main, ["--help"]).output
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", listed, re.MULTILINE)
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0
        assert "Usage:" in result.output


def test_versions_of_what_takes_part(run: Run) -> None:
    said = json.loads(run("version", "--json").stdout)
    assert (said["schema_version"], said["version"], said["qemu"]["version"]) == (1, __version__, "10.0.2")
    assert "QEMU 10.0.2" in run("version").stdout
    assert "no QEMU: " in run("version", env={"VHOST_SCSI_QEMU": "/nowhere"}).stdout


@pytest.mark.parametrize("words", ["--version", "--help"])
def test_a_question_to_the_command_itself_loads_nothing_heavy(words: str) -> None:
    """What makes it answer at once; a limit in seconds would be about the machine."""
    program = (
        "import atexit, runpy, sys; sys.argv[1:] = [sys.argv[-1]]; "
        "atexit.register(lambda: print('loaded', *sys.modules)); "
        "runpy.run_module('vhost_scsi.cli', run_name='__main__')"
    )
    said = subprocess.run([sys.executable, "-c", program, words], capture_output=True, text=True, check=True).stdout
    loaded = set(said[said.index("loaded") :].split())
    assert "vhost_scsi.cli" in loaded
    assert not (HEAVY | {"PIL", "tomlkit", "pyroute2"}) & loaded


def test_a_mistake_of_ours_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> Path:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(client, "socket_path", bug)
    result = CliRunner().invoke(main, ["status"])
    assert result.exit_code == INTERNAL_ERROR
    assert result.stderr == (
        "vhost-scsi: internal error, please report it: ZeroDivisionError: a bug (--debug shows where)\n"
    )


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "socket_path", interrupt)
    result = CliRunner().invoke(main, ["status"])
    assert (result.exit_code, result.stderr.strip()) == (INTERRUPTED, "vhost-scsi: interrupted")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (512, "512 B"),
        (4096, "4 KiB"),
        (1536, "1.5 KiB"),
        (1 << 30, "1 GiB"),
        (3 << 60, "3072 PiB"),
    ],
)
def test_sizes_for_people(count: int | None, text: str) -> None:
    assert size(count) == text


def test_times_for_people() -> None:
    assert [duration(value) for value in (None, 85, 1200, 3_000_000)] == ["-", "85 us", "1.2 ms", "3.0 s"]
    assert [uptime(value) for value in (61.9, 90061)] == ["00:01:01", "1 d 01:01:01"]


def test_a_table_without_a_terminal_is_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", ">count"], [("a", 5), ("long", None)])
    assert capsys.readouterr().out == "NAME  COUNT\na         5\nlong      -\n"


def test_a_table_on_a_terminal_is_a_frame(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(["name"], [("[red]a",)])
    output = capsys.readouterr().out
    assert "[red]a" in output, "what a guest or a path says is no markup"
    assert "name" in output


def test_a_long_ring_is_shortened_to_what_tells_most() -> None:
    assert strip("..pf") == ["[..pf]"]
    assert strip("." * 64 + "ffff") == ["[" + "." * 64 + "]", "[ffff]"]
    rows = strip("." * 256 + ".f" + "p." * 127)
    assert rows == ["[" + "." * 64 + "] 2 a cell", "[" + "." * 64 + "]", "[f" + "p" * 63 + "]", "[" + "p" * 64 + "]"]


def test_the_state_of_a_queue_is_one_word() -> None:
    queue = {"broken": False, "started": True, "enabled": True, "stalled": False, "error": None}
    assert state(queue) == "running"
    assert state({**queue, "stalled": True}) == "stalled"
    assert state({**queue, "enabled": False}) == "disabled"
    assert state({**queue, "started": False}) == "stopped"
    assert state({**queue, "broken": True, "error": "CHAIN_LOOP"}) == "broken (CHAIN_LOOP)"
