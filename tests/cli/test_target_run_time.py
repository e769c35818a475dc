# SPDX-License-Identifier: Apache-2.0
"""Targets that come and go while a daemon runs, what `status` says of it, and what `config save` keeps."""

from __future__ import annotations

import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.conftest import Run, Serve, Served
from tests.cli.test_bad_input import one_line
from tests.cli.test_iscsi import IQN, OTHER, Ask, address_of, ask, login, served
from tests.iscsi.client import ASYNC_MESSAGE, Client
from tests.iscsi.libiscsi import tool
from tests.iscsi.scsi_host import ScsiHost

__all__ = ["ask", "served"]  # fixtures

SECRET = "a secret of enough bytes"
FILE = """# Disks of the lab.
[lu.root]    # the old one
url = "memory:4M"

[map]
"0" = "root"

[[iscsi.portal]]
listen = "127.0.0.1:0"

[[iscsi.target]]
name = "iqn.2026-11.org.example:disk"    # stays
"""


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def from_file(serve: Serve, tmp_path: Path) -> Served:
    (tmp_path / "d.toml").write_text(FILE)
    return serve("--config", "d.toml", socket_path=False)


def size_of(served: Served, lun: str, user: str = "") -> str:
    host, port = address_of(served)
    return tool("iscsi-readcapacity16", f"iscsi://{user}{host}:{port}/{lun}").stdout


def test_a_target_with_everything(served: Served, run: Run, ask: Ask, secret: Path, disk: Path) -> None:
    words = ["target", "add", OTHER, "--lun", f"0={disk.name}", "--lun", "1=lun-0"]
    words += ["--lun", "2=memory:1M,block_size=4096"]
    words += ["--chap", f"bob={secret.name}", "--chap-algorithms", "SHA-256,MD5"]
    words += ["--allow", "*:iscsi-inq,from=127.0.0.0/8,lun=7=lun-0", "--allow", "*:iscsi-readcapacity16"]
    said = run(*words)
    assert said.returncode == 0, said.stderr
    assert [line.rpartition("/")[2] for line in said.stdout.splitlines()] == ["0", "1", "2"]
    user = f"bob%{SECRET}@"
    assert "Total size:4194304" in size_of(served, f"{OTHER}/0", user), "a path is the caller's, not the daemon's"
    assert "LENGTH IN BYTES:4096" in size_of(served, f"{OTHER}/2", user)
    assert "Authentication failure" in size_of(served, f"{OTHER}/0")
    host, port = address_of(served)
    assert "DIRECT_ACCESS" in tool("iscsi-inq", f"iscsi://{user}{host}:{port}/{OTHER}/7").stdout
    assert "DIRECT_ACCESS" not in tool("iscsi-inq", f"iscsi://{user}{host}:{port}/{OTHER}/0").stdout, "its own LUNs"
    assert "Authorization" in tool("iscsi-swp", f"iscsi://{user}{host}:{port}/{OTHER}/0").stdout
    shown = run("target", "show", OTHER).stdout
    assert "let in          *:iscsi-inq from 127.0.0.0/8, LUNs 7=lun-0" in shown
    assert {unit["name"] for unit in ask("lun", "list")["logical_units"]} == {"lun-0", "other-0", "other-2"}
    assert "not saved: target iqn.2026-11.org.example:other: here, and not configured" in run("status").stdout
    gone = ask("target", "remove", OTHER)
    assert (gone["sessions_ended"], gone["units_removed"]) == (0, ["other-0", "other-2"])
    assert [unit["name"] for unit in ask("lun", "list")["logical_units"]] == ["lun-0"]
    assert ask("status")["drift"] == []
    assert SECRET not in served.log()


def test_a_target_over_one_portal_group(serve: Serve, run: Run, ask: Ask) -> None:
    words = ("--iscsi", "127.0.0.1:0", "--iscsi", "127.0.0.1:0,2", "--target", IQN, "--lun", "0=memory:1M", "--json")
    serve(*words, socket_path=False)
    ask("target", "add", OTHER, "--lun", "0=lun-0", "--group", "2")
    assert ask("target", "show", OTHER)["portals"][0].endswith(",2")
    one_line(run("target", "add", f"{OTHER}2", "--lun", "0=lun-0", "--group", "3"), 7, "no portal is in any")


def test_a_target_with_sessions_goes_with_force(served: Served, run: Run, ask: Ask) -> None:
    ask("target", "add", OTHER, "--lun", "0=memory:1M")
    with login(served, OTHER) as client:
        one_line(run("target", "remove", OTHER), 7, f"target {OTHER} has 1 session; --force ends them")
        client.request(0x40, 0x80, b"\xff\xff\xff\xff", b"still here")
        assert client.receive().data == b"still here"
        assert ask("target", "remove", OTHER, "--force")["sessions_ended"] == 1
        message = client.receive()
        assert (message.opcode, message.bhs[36]) == (ASYNC_MESSAGE, 1), "it is asked to log out"
        assert client.closed()
    with Client(address_of(served)) as late:
        assert late.login(OTHER).status == (2, 4), "removed"


@pytest.mark.parametrize(("delay", "answered"), [("1500ms", True), ("6s", False)])
def test_a_target_goes_with_force_while_a_command_runs(
    served: Served, run: Run, ask: Ask, delay: str, answered: bool
) -> None:
    """What ends while the initiator may log out is answered; what takes longer ends with its connection."""
    ask("target", "add", OTHER, "--lun", f"0=delay(read={delay}):memory:1M")
    with ScsiHost(address_of(served), OTHER) as host, ThreadPoolExecutor(1) as pool:
        client = host.client
        host.ready()
        tag = host.send(bytes.fromhex("28000000000000000100"), in_len=512)
        removal = pool.submit(run, "target", "remove", OTHER, "--force")
        message = client.receive()
        assert (message.opcode, message.bhs[36]) == (ASYNC_MESSAGE, 1), "it is asked to log out"
        if answered:
            assert host.wait(tag).data == bytes(512)
            assert client.logout().bhs[2] == 0
        assert client.closed()
        said = removal.result(60)
        assert said.returncode == 0, said.stderr
    assert [row["name"] for row in ask("target", "list")["targets"]] == [IQN]
    assert {row["name"] for row in ask("lun", "list")["logical_units"]} == {"lun-0"}
    assert served.stop() == 0
    assert "Traceback" not in served.log()


WRONG: list[tuple[list[str], int, str]] = [
    (["--lun", "0=lun-0", "--lun", "0=memory:1M"], 3, "LUN 0 is given twice"),
    (["--lun", "0=memroy:1M"], 3, "did you mean memory?"),
    (["--lun", "0=odd.img"], 7, "size 1000 is not a multiple of the block size 512"),
    (["--lun", "99999=lun-0"], 7, "'99999' is not a LUN"),
    (["--lun", "0=lun-0", "--chap", "bob"], 3, "not NAME=FILE or NAME=env:VARIABLE"),
    (["--lun", "0=lun-0", "--chap", "bob=missing"], 7, "missing: No such file"),
    (["--lun", "0=lun-0", "--chap", "bob=open"], 7, "mode 0644 lets others at the secret"),
    (["--lun", "0=lun-0", "--chap", "bob=short"], 7, "fewer than 96 bits"),
    (["--lun", "0=lun-0", "--chap", "bob=env:NOT_THERE"], 7, "environment variable NOT_THERE is not set"),
    (["--lun", "0=lun-0", "--chap-algorithms", "SHA-3"], 7, "SHA-3 is no CHAP algorithm"),
    (["--lun", "0=lun-0", "--require-mutual-chap"], 7, "mutual CHAP needs a CHAP name"),
    (["--lun", "0=lun-0", "--allow", "host1"], 7, "'host1' is no initiator name"),
    (["--lun", "0=lun-0", "--allow", "iqm.*"], 7, "'iqm.*' is no pattern of initiator names"),
    (["--lun", "0=lun-0", "--allow", "from=nowhere"], 7, "'nowhere' is not an address or a network"),
    (["--lun", "0=lun-0", "--allow", "lun=0"], 3, "'lun=0' is not lun=LUN=NAME"),
    (["--lun", "0=lun-0", "--allow", "lun=0=x"], 7, "there is no logical unit 'x'"),
    ([], 7, f"target {OTHER} has no logical unit"),
]


def test_a_wrong_word_changes_nothing(served: Served, quick: Run, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "odd.img").write_bytes(bytes(1000))
    for name, text, mode in (("open", SECRET, 0o644), ("short", "secret", 0o600)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    for words, code, said in WRONG:
        one_line(quick("target", "add", OTHER, *words), code, said)
    assert ask("status")["drift"] == []
    assert [unit["name"] for unit in ask("lun", "list")["logical_units"]] == ["lun-0"]


def test_what_was_added_is_kept_where_the_file_is(
    from_file: Served, serve: Serve, run: Run, ask: Ask, tmp_path: Path
) -> None:
    ask("target", "add", OTHER, "--lun", "0=memory:1M", "--lun", "3=root", "--allow", "iqn.1993-08.org.debian:*")
    assert len(ask("status")["drift"]) == 2
    assert "# target iqn.2026-11.org.example:other: here, and not configured" in run("config", "show").stdout
    assert run("config", "save").stdout == "saved to d.toml\n"
    assert ask("config", "show")["drift"] == []
    text = (tmp_path / "d.toml").read_text()
    for comment in ("# Disks of the lab.", "# the old one", "# stays"):
        assert comment in text
    assert "# stays\n\n[[iscsi.target]]" in text
    from_file.stop()
    again = serve("--config", "d.toml", socket_path=False)
    assert {target["name"]: target["luns"] for target in ask("target", "list")["targets"]} == {IQN: 1, OTHER: 2}
    # What was taken away at run time is not there after the next start either; a unit that was configured stays.
    ask("target", "remove", IQN)
    ask("target", "remove", OTHER)
    one_line(run("config", "save"), 7, "there is no target")
    assert (tmp_path / "d.toml").read_text() == text, "what no daemon starts with is not written"
    ask("target", "add", OTHER, "--lun", "0=root")
    assert run("config", "save").returncode == 0
    values = tomllib.loads((tmp_path / "d.toml").read_text())
    assert [target["name"] for target in values["iscsi"]["target"]] == [OTHER]
    assert values["lu"]["root"] == {"url": "memory:4M", "spare": True}
    assert values["map"] == {}
    again.stop()
    serve("--config", "d.toml", socket_path=False)
    assert [unit["name"] for unit in ask("lun", "list")["logical_units"]] == ["root", "other-0"]


def test_all_of_it_can_be_written_to_a_file(served: Served, serve: Serve, run: Run, ask: Ask, tmp_path: Path) -> None:
    one_line(run("config", "save"), 7, "started without a configuration file: name the one to write")
    one_line(run("config", "save", "no/where.toml"), 7, "no/where.toml: cannot be written: No such file")
    one_line(run("config", "reload"), 7, "there is no configuration file")
    ask("target", "add", OTHER, "--lun", "0=memory:1M", "--alias", 'a "quoted" one')
    assert run("config", "save", "all.toml").stdout == f"saved to {tmp_path}/all.toml\n"
    assert (tmp_path / "all.toml").stat().st_mode & 0o777 == 0o600
    assert tomllib.loads(run("config", "show").stdout) == tomllib.loads((tmp_path / "all.toml").read_text())
    served.stop()
    serve("--config", "all.toml", socket_path=False)
    targets = {target["name"]: (target["alias"], target["luns"]) for target in ask("target", "list")["targets"]}
    assert targets == {IQN: ("", 1), OTHER: ('a "quoted" one', 1)}


def test_what_the_command_line_says_cannot_be_saved_away(serve: Serve, run: Run, ask: Ask, tmp_path: Path) -> None:
    text = FILE.replace('"0" =', f'"{IQN}:0" =')
    (tmp_path / "d.toml").write_text(text)
    words = ("--target", OTHER, "--lu", "x=memory:1M", "--map", f"{OTHER}:0=x")
    serve("--config", "d.toml", *words, socket_path=False)
    ask("target", "remove", OTHER)
    said = run("config", "save").stdout
    assert f"not saved: target {OTHER}: configured, and not here" in said
    assert (tmp_path / "d.toml").read_text() == text
