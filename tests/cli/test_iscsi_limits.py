# SPDX-License-Identifier: Apache-2.0
"""Every limit of the file, exceeded by one; names that hostile initiators choose; and the questions about sessions and
connections when there are none, or not the one that was asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, Run, Serve, Served
from tests.cli.test_bad_input import one_line
from tests.cli.test_iscsi import IQN, OTHER, Ask, address_of, ask, login, served
from tests.iscsi.client import Client, login_request
from tests.iscsi.libiscsi import tool
from tests.waiting import wait_for
from vhost_scsi.cli.output import print_json, print_table, say

__all__ = ["ask", "served"]  # fixtures


def isid(number: int) -> bytes:
    return bytes([0x80, 0, 0, 0]) + number.to_bytes(2, "big")


@pytest.fixture
def limited(serve: Serve, tmp_path: Path) -> Served:
    (tmp_path / "d.toml").write_text(
        "[iscsi.limits]\nsessions = 40\nconnections_per_session = 9\nconnections = 44\ntargets = 1\n"
        "logins_in_progress = 3\nlogin_timeout = 4\ncommands_per_session = 300\n"
    )
    words = ("--config", "d.toml", "--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", "0=memory:1M")
    return serve(*words, socket_path=False)


def test_sessions_connections_and_the_window(limited: Served, ask: Ask) -> None:
    """Above the defaults of 32 sessions, 8 connections and 128 commands."""
    with ExitStack() as stack:
        more = [("MaxConnections", "64")]
        first = stack.enter_context(login(limited, isid=isid(0), extra=more))
        for cid in range(2, 6):
            other = stack.enter_context(Client(address_of(limited)))
            assert other.login(IQN, isid=isid(0), tsih=first.tsih, cid=cid).status == (0, 0)
        assert ask("session", "show", str(first.tsih))["keys"]["MaxConnections"] == 9
        assert ask("session", "list")["sessions"][0]["window"] == 300
        for number in range(1, 40):
            stack.enter_context(login(limited, isid=isid(number)))
        assert ask("status")["iscsi"]["sessions"] == 40
        for fields in ({"isid": isid(99)}, {"isid": isid(0), "tsih": first.tsih, "cid": 7}):
            with Client(address_of(limited)) as late:
                assert late.login(IQN, **fields).status == (3, 2)  # type: ignore[arg-type]
    said = {row["why"] for row in ask("session", "refused")["refused"]}
    assert "there are 44 connections, the limit" in said


def test_a_login_has_its_time_and_its_place(limited: Served, ask: Ask) -> None:
    with ExitStack() as stack:
        silent = stack.enter_context(Client(address_of(limited)))
        slow = [stack.enter_context(Client(address_of(limited))) for _ in range(4)]
        for each in slow[:3]:
            assert each.exchange(each.names(IQN), transit=False).status == (0, 0)
        slow[3].send(login_request(slow[3].names(IQN), transit=False))
        assert slow[0].closed(), "the fourth takes the place of the oldest"
        assert slow[3].receive().status == (0, 0)
        assert silent.closed(), "time is up, and it had no place"
        assert slow[3].closed(), "time is up"
    assert {row["kind"] for row in ask("session", "refused")["refused"]} == {"login: evicted", "login: time is up"}
    with login(limited) as client:
        assert client.tsih


def test_one_target_more(limited: Served, quick: Run, tmp_path: Path) -> None:
    one_line(quick("target", "add", OTHER, "--lun", "0=lun-0"), 7, "there are 2 targets, and limits.targets is 1")


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("commands_per_session = 5000", "commands_per_session: 5000 is not from 1 to 4096"),
        ("login_timeout = 0", "login_timeout: 0 is not more than 0"),
        ("login_timeout = nan", "login_timeout: nan is not more than 0"),
        ("connections = 70000", "connections: 70000 is not from 1 to 65535"),
        ('sessions = "many"', "sessions: input should be a valid integer, not 'many'"),
    ],
)
def test_a_limit_that_is_none(quick: Run, tmp_path: Path, limit: str, said: str) -> None:
    (tmp_path / "d.toml").write_text(f"[iscsi.limits]\n{limit}\n")
    words = ("--config", "d.toml", "--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", "0=memory:1M")
    one_line(quick("serve", *words), 3, said)


def test_a_port_without_the_right(environment: dict[str, str]) -> None:
    port = 860  # what RFC 7143 gave iSCSI first
    words = [*COMMAND, "serve", "--iscsi", f"127.0.0.1:{port}", "--target", IQN, "--lun", "0=memory:1M"]
    homes = {name: f"/tmp/vhost-scsi-nobody-{os.getpid()}" for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME")}
    for home in set(homes.values()):
        os.mkdir(home, mode=0o700)
        if os.geteuid() == 0:
            os.chown(home, 65534, 65534)
    if os.geteuid() == 0:
        words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *words]
    # Nobody may not write down what was covered, and would say so.
    counting = {name for name in environment if name.startswith("COV")}
    environment = {name: value for name, value in environment.items() if name not in counting}
    environment |= {**homes, "GCOV_PREFIX": homes["XDG_RUNTIME_DIR"]}
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd="/", env=environment)
    shutil.rmtree(homes["XDG_RUNTIME_DIR"])
    one_line(result, 3, f"portal 127.0.0.1:{port},1: cannot listen: Permission denied; a port below 1024 needs")


HOSTILE = "\x1b]0;owned\x07\x1b[2J\r\nsession 7: root\x9b31m\u202e"
SLY = "\u202etoor \u2028session 7\x9b31m"


def test_what_an_initiator_calls_itself_reaches_no_terminal(served: Served, quick: Run, ask: Ask) -> None:
    with Client(address_of(served)) as client:
        assert client.login(IQN, initiator=f"iqn.2024-01.org.example:{HOSTILE}").status == (2, 0)
    with Client(address_of(served)) as client:
        assert client.login(f"iqn.2024-01.org.example:{HOSTILE}").status[0] == 2
    with Client(address_of(served)) as client:
        assert client.login(IQN, initiator="iqn.2024-01.org.example:" + "x" * 300).status[0] == 2
    with Client(address_of(served)) as client:
        assert client.login(IQN, extra=[("InitiatorAlias", HOSTILE)]).status == (2, 0)
    with Client(address_of(served)) as client:
        assert client.login(IQN, extra=[("InitiatorAlias", SLY)]).status == (2, 0)
    with Client(address_of(served)) as client:
        client.login(IQN, extra=[("X-org.example.\x1b[1m", HOSTILE)])
    long = "iqn.2024-01.org.example:" + "x" * 199
    with login(served, initiator=long) as client:
        number = str(client.tsih)
        shown = [("session", "list"), ("session", "show", number), ("session", "refused"), ("connection", "list")]
        shown += [("connection", "show", f"{number}:1"), ("target", "show", IQN), ("status",)]
        for words in shown:
            for extra in ((), ("--json",)):
                said = quick(*words, *extra).stdout
                assert all(line.isprintable() for line in said.split("\n")), (words, said)
        assert long in quick("session", "list").stdout
        assert ask("session", "list")["sessions"][0]["initiator"] == long
    assert all(line.isprintable() for line in served.log().split("\n"))


def test_empty_lists_and_unknown_numbers(served: Served, quick: Run, ask: Ask) -> None:
    assert quick("session", "list").stdout.split()[0] == "SESSION"
    assert quick("connection", "list").stdout.count("\n") == 1
    assert ask("session", "list")["sessions"] == ask("connection", "list")["connections"] == []
    for words in (("show",), ("reset",), ("remove",)):
        for number in ("7", "0", "99999999999999999999", "-1"):
            one_line(quick("session", *words, "--", number), 7, f"there is no session {number}")
    for words in (("show",), ("remove",)):
        one_line(quick("connection", *words, "7:0"), 7, "there is no session 7")
        one_line(quick("connection", *words, "7"), 3, "'7' is not SESSION:CONNECTION")
    with login(served) as client:
        one_line(quick("connection", "show", f"{client.tsih}:9"), 7, f"session {client.tsih} has no connection 9")


def test_libiscsi_and_qemu_are_seen(served: Served, ask: Ask, tmp_path: Path) -> None:
    host, port = address_of(served)
    url = f"iscsi://{host}:{port}/{IQN}/0"
    assert "DIRECT_ACCESS" in tool("iscsi-inq", url).stdout
    assert f"Target:{IQN} Portal:{host}:{port},1" in tool("iscsi-ls", f"iscsi://{host}:{port}").stdout
    said = tool("qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k", url).stdout
    assert said.count("65536/65536 bytes at offset 0") == 2
    assert ask("lun", "list")["logical_units"][0]["stats"]["writes"] >= 1
    wait_for(lambda: not ask("session", "list")["sessions"], "the end of the session", every=0.1)


def test_whatever_a_daemon_answers_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Should a word come through all the same."""
    say(f"alias {HOSTILE}")
    print_table(["initiator"], [[HOSTILE]])
    print_json({"schema_version": 1, "alias": HOSTILE})
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("alias \\x1b]0;owned\\x07")
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 1 + 2 + 4 + 1
