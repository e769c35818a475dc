# SPDX-License-Identifier: Apache-2.0
"""Bad input, each with one clear line and an exit code, and never a traceback."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, Run, Serve


def one_line(result: subprocess.CompletedProcess[str], code: int, words: str) -> None:
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("vhost-scsi: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def served(run: Run, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return run("serve", "--socket-path", "s", *words)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--lun", "0:0=missing.img"], 3, "missing.img: no such file"),
        (["--lun", "0:0=."], 3, "is a directory"),
        (["--lun", "0:0=/dev/null"], 3, "is not a file or block device"),
        (["--lun", "0:0=empty.img"], 3, "is empty"),
        (["--lun", "0:0=odd.img"], 3, "size 1000 is not a multiple of the block size 512"),
        (["--lun", "0:0=good.img,block_size=4096"], 3, "size 5120 is not a multiple of the block size 4096"),
        (["--lun", "0:0=good.img,block_size=1000"], 3, "1000 is not a power of two"),
        (["--lun", "0:0=memroy:1G"], 3, "did you mean memory?"),
        (["--lun", "0:0=good.img,cashe=direct"], 3, "did you mean cache?"),
        (["--lun", "0:0=good.img", "--lun", "0:0=good.img"], 3, "LUN 0:0 is given twice"),
        (["--lun", "0:0=good.img", "--lun", "0:1=./good.img"], 3, "are both on"),
        (["--lun", "0:0=memory:1M", "--engine", "uring"], 2, "'uring' is not one of"),
        (["--lun", "0:0=memory:1M", "--workers", "0"], 3, "workers"),
        (["--lun", "0:0=memory:1M", "--workers", "many"], 2, "'many' is not a valid integer"),
        (["--lun", "999:0=memory:1M"], 3, "targets go to 255"),
        (["--lu", "a=memory:1M", "--map", "default:0:0=b"], 3, "there is no logical unit 'b'"),
        (["--config", "none.toml"], 3, "none.toml: No such file"),
        (["--config", "typo.toml"], 3, "typo.toml:2:7: "),
        (
            ["--config", "unknown.toml"],
            3,
            "unknown.toml:2:1: lu.a: unknown key 'blok_size', did you mean 'block_size'?",
        ),
        ([], 3, "port default has no logical unit"),
        (["--lnu", "0:0=x"], 2, "No such option"),
        (["--control", "./s", "--lun", "0:0=memory:1M"], 3, "s is the management socket's path (control) too"),
        (["--config", "shape.toml"], 3, "shape.toml:1:1: lu: "),
        (["--lun", "0:0=delay(read=1ms:memory:1M"], 3, "delay: the parenthesis in 'delay(read=1ms:memory:1M' is not"),
    ],
)
def test_bad_words(run: Run, tmp_path: Path, words: list[str], code: int, said: str) -> None:
    (tmp_path / "good.img").write_bytes(bytes(5120))
    (tmp_path / "odd.img").write_bytes(bytes(1000))
    (tmp_path / "empty.img").write_bytes(b"")
    (tmp_path / "shape.toml").write_text("lu = 5\n")
    (tmp_path / "typo.toml").write_text("[lu.a]\nurl = x\n")
    (tmp_path / "unknown.toml").write_text("[lu.a]\nblok_size = 512\n")
    one_line(served(run, *words), code, said)
    assert not (tmp_path / "s").exists()


def test_an_unreadable_image(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "x.img").write_bytes(bytes(512))
    (tmp_path / "x.img").chmod(0)
    words = [*COMMAND, "serve", "--socket-path", "s", "--lun", "0:0=x.img"]
    if os.geteuid() == 0:
        # Root may read everything because of these capabilities only.
        words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *words]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    one_line(result, 3, "x.img: permission denied")


def test_no_port(run: Run) -> None:
    one_line(run("serve", "--lun", "0:0=memory:1M"), 3, "names no port, and there is none: give --socket-path")


def test_a_file_of_another_shape_is_told_before_what_is_missing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "shape.toml").write_text("lu = 5\n")
    one_line(run("serve", "--config", "shape.toml"), 3, "shape.toml:1:1: lu: ")


def test_a_socket_path_that_cannot_be(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    one_line(run("serve", "--socket-path", "file", "--lun", "0:0=memory:1M"), 3, "exists and is not a socket")
    one_line(run("serve", "--socket-path", "no/such/s", "--lun", "0:0=memory:1M"), 3, "No such file or directory")
    one_line(run("serve", "--fd", "77", "--lun", "0:0=memory:1M"), 3, "descriptor 77: Bad file descriptor")
    assert (tmp_path / "file").read_text() == "precious"


def test_no_qemu(run: Run, disk: Path) -> None:
    one_line(run("boot", disk, env={"VHOST_SCSI_QEMU": "/nowhere/qemu"}), 11, "is no program")


def test_what_is_no_qemu(run: Run, disk: Path) -> None:
    one_line(run("boot", disk, env={"VHOST_SCSI_QEMU": "/bin/false"}), 11, "/bin/false --version ended with status 1")


def test_qemu_dies_at_once(run: Run, disk: Path) -> None:
    one_line(run("boot", disk, env={"FAKE_QEMU": "dies"}), 12, "fake: Failed to connect to '/nowhere'")


def test_the_time_is_up(run: Run, disk: Path) -> None:
    result = run("boot", disk, "--expect", "never", "--timeout", "0.5", "--quiet", env={"FAKE_QEMU": "login"})
    one_line(result, 13, "no 'never' within 0.5 s")


def test_a_serial_log_that_cannot_be(run: Run, disk: Path) -> None:
    one_line(run("boot", disk, "--serial-log", "/nodir/x"), 3, "serial log: /nodir/x: No such file or directory")


@pytest.mark.parametrize("words", [["--append", "quiet"], ["--initrd", "good.img"]])
def test_what_belongs_to_a_kernel_without_one(run: Run, disk: Path, words: list[str]) -> None:
    words = [str(disk) if word == "good.img" else word for word in words]
    one_line(run("boot", disk, *words), 3, "give --kernel")


@pytest.mark.parametrize("options", [[], ["--snapshot"]])
def test_a_serial_log_that_is_the_disk_costs_nobody_the_disk(run: Run, disk: Path, options: list[str]) -> None:
    before = disk.read_bytes()
    result = run("boot", disk, *options, "--serial-log", disk)
    one_line(result, 3, f"serial log: {disk}: in use, as a disk or as another log")
    assert disk.read_bytes() == before


def to(stdout: str, environment: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command with a stdout that a shell made."""
    script = ["sh", "-c", f'exec "$@" {stdout}', "sh", *COMMAND, *words]
    return subprocess.run(script, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, timeout=60)


def test_answers_that_cannot_be_written(serve: Serve, environment: dict[str, str], tmp_path: Path) -> None:
    serve("--lun", "0:0=memory:1M")
    for words in (["status"], ["status", "--json"], ["queue", "list"]):
        one_line(to("> /dev/full", environment, tmp_path, *words), 1, "standard output: No space left on device")
        one_line(to(">&-", environment, tmp_path, *words), 1, "standard output is closed")


def test_a_ready_line_that_cannot_be_written_leaves_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    words = ["serve", "--socket-path", "e.sock", "--control", "c.sock", "--lun", "0:0=memory:1M"]
    result = to("> /dev/full", environment, tmp_path, *words, "--log-level", "error")
    one_line(result, 1, "standard output: No space left on device")
    assert list(tmp_path.glob("*.sock*")) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--expect", ""], "an empty text is always seen"),
        (["--timeout", "nan"], "nan is no time"),
        (["--timeout", "inf"], "inf is not in the range"),
        (["--timeout", "0"], "0.0 is not in the range"),
    ],
)
def test_an_end_that_makes_no_sense(run: Run, disk: Path, words: list[str], said: str) -> None:
    one_line(run("boot", disk, *words, env={"FAKE_QEMU": "login"}), 2, said)


def test_no_daemon(run: Run) -> None:
    for words in (["status"], ["lun", "list"], ["queue", "list"], ["queue", "show", "2"]):
        one_line(run(*words), 6, "no daemon answers on")


def test_words_nobody_knows(run: Run) -> None:
    one_line(run("sevre"), 2, "No such command 'sevre'")
    one_line(run("queue", "show"), 2, "either [PORT:]INDEX or --from DUMP is wanted")
    one_line(run("queue", "show", "two"), 3, "is not [PORT:]INDEX")


def test_a_line_break_in_a_path_forges_no_line(run: Run) -> None:
    one_line(served(run, "--config", "a\nvhost-scsi: all is well"), 3, "a\\nvhost-scsi: all is well: No such file")


def test_with_debug_there_is_a_traceback(run: Run) -> None:
    result = run("--debug", "serve", "--socket-path", "s", "--lun", "0:0=missing.img")
    assert result.returncode != 0
    assert "Traceback" in result.stderr
