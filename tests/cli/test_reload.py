# SPDX-License-Identifier: Apache-2.0
"""The file of a daemon read anew, by SIGHUP and by `config reload`, while initiators are logged in."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.cli.conftest import Run, Serve, Served
from tests.cli.test_bad_input import one_line
from tests.cli.test_iscsi import IQN, OTHER, Ask, ask
from tests.iscsi.client import ASYNC_MESSAGE, INITIATOR, Client
from tests.waiting import wait_for

__all__ = ["ask"]  # a fixture

FILE = """
[lu.a]
url = "memory:4M"
[lu.b]
url = "memory:8M"
[iscsi]
chap_algorithms = ["SHA-256"]
[[iscsi.portal]]
listen = "127.0.0.1:0"
[iscsi.limits]
sessions = 2
[[iscsi.target]]
name = "iqn.2026-11.org.example:disk"
luns = { 0 = "a" }
[[iscsi.target]]
name = "iqn.2026-11.org.example:other"
luns = { 0 = "b" }
"""
READ_CAPACITY = 0x25
ISIDS = [bytes([0x80, 0, 0, 0, 0, number]) for number in range(8)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "d.toml"
    path.write_text(FILE)
    return path


@pytest.fixture
def served(serve: Serve, file: Path) -> Served:
    return serve("--config", file, socket_path=False)


def ports(served: Served, ask: Ask) -> list[int]:
    return [portal["port"] for portal in ask("portal", "list")["portals"]]


def status(port: int, target: str = IQN, **fields: object) -> tuple[int, int]:
    with Client(("127.0.0.1", port)) as client:
        return client.login(target, **fields).status  # type: ignore[arg-type]


def capacity(client: Client) -> int:
    """Blocks of LUN 0, taking the unit attentions that come first."""
    while True:
        client.sock.sendall(
            bytes([1, 0xC0, 0, 0, 0, 0, 0, 0]) + bytes(8) + (0x55).to_bytes(4, "big") + (8).to_bytes(4, "big")
            + client.cmd_sn.to_bytes(4, "big") + bytes(4) + bytes([READ_CAPACITY]).ljust(16, b"\0")
        )  # fmt: skip
        client.cmd_sn += 1
        answer = client.receive()
        if answer.opcode == 0x25:
            if not answer.flags & 1:  # the status comes by itself
                client.receive()
            return int.from_bytes(answer.data[:4], "big") + 1


def reload(served: Served, file: Path, text: str, said: str) -> None:
    """By SIGHUP; returns when the log has one line more that says so."""
    file.write_text(text)
    before = served.log().count(said)
    served.process.send_signal(signal.SIGHUP)
    wait_for(lambda: served.log().count(said) != before, f"{said!r} in the log", every=0.02)


DONE = "reload: log level"


def test_targets_come_go_and_change(served: Served, ask: Ask, file: Path) -> None:
    (port,) = ports(served, ask)
    with Client(("127.0.0.1", port)) as stays, Client(("127.0.0.1", port)) as goes:
        assert stays.login(IQN).status == goes.login(OTHER).status == (0, 0)
        text = FILE.replace('luns = { 0 = "a" }', 'luns = { 0 = "b", 1 = "a" }')
        text = text.replace(":other", ":third").replace("= 2", "= 3")
        reload(served, file, text, DONE)
        message = goes.receive()
        assert (message.opcode, message.bhs[36]) == (ASYNC_MESSAGE, 1), "asked to log out"
        assert goes.closed()
        assert capacity(stays) == 8192, "a session keeps the LUNs it logged in to"
        with Client(("127.0.0.1", port)) as late:
            assert late.login(IQN, isid=ISIDS[1]).status == (0, 0)
            assert capacity(late) == 16384
        assert status(port, OTHER) == (2, 4), "removed"
        assert status(port, f"{IQN[:-4]}third") == (0, 0)
        assert ports(served, ask) == [port], "a portal that stays is not listened on anew"
    assert ask("status")["drift"] == []


def test_access_secrets_limits_and_discovery_hold_for_new_logins(
    served: Served, ask: Ask, file: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the first secret, long enough")
    secret.chmod(0o600)
    (port,) = ports(served, ask)
    with Client(("127.0.0.1", port)) as inside:
        assert inside.login(IQN).status == (0, 0)
        chap = f'luns = {{ 0 = "a" }}\n[[iscsi.target.chap]]\nname = "bob"\nsecret_file = "{secret}"\n'
        text = FILE.replace('luns = { 0 = "a" }', chap) + '[[iscsi.target.acl]]\ninitiators = ["iqn.1999-09.x:y"]\n'
        reload(served, file, text + "[iscsi.discovery]\nenabled = false\n", DONE)
        inside.request(0x40, 0x80, b"\xff\xff\xff\xff", b"there")
        assert inside.receive().data == b"there", "who is logged in stays"
        assert status(port) == (2, 1), "CHAP is wanted now"
        assert status(port, OTHER) == (2, 2), "the access list has another initiator"
        assert status(port, OTHER, initiator="iqn.1999-09.x:y", isid=ISIDS[2]) == (0, 0)
        assert status(port, None) == (2, 9), "no discovery"
        for text_of_secret in ("the first secret, long enough", "the second secret, long enough"):
            # The file that is read anew names the same file, with another secret in it.
            secret.write_text(text_of_secret)
            reload(served, file, file.read_text(), DONE)
            with Client(("127.0.0.1", port)) as client:
                assert client.chap("bob", text_of_secret.encode(), "7", IQN).status == (0, 0)
            with Client(("127.0.0.1", port)) as client:
                assert client.chap("bob", b"another secret of some length", "7", IQN).status == (2, 1)
        reload(served, file, FILE.replace("sessions = 2", "sessions = 1"), DONE)
        assert status(port, isid=ISIDS[3]) == (3, 2), "the session that is there is the limit"
        reload(served, file, FILE.replace("sessions = 2", "sessions = 3"), DONE)
        assert status(port, isid=ISIDS[3]) == (0, 0)
    assert "secret, long enough" not in served.log()


def test_portals_come_and_go(served: Served, ask: Ask, file: Path) -> None:
    (port,) = ports(served, ask)
    more = 'listen = "127.0.0.1:0"\n[[iscsi.portal]]\nlisten = "127.0.0.2:0"\ngroup = 2'
    reload(served, file, FILE.replace('listen = "127.0.0.1:0"', more), DONE)
    first, second = ask("portal", "list")["portals"]
    assert (first["port"], second["host"], second["group"]) == (port, "127.0.0.2", 2)
    with Client(("127.0.0.2", second["port"])) as client:
        assert client.login(IQN).status == (2, 3), "no target is in that group"
    both = more.replace("group = 2", "group = 1")
    reload(served, file, FILE.replace('listen = "127.0.0.1:0"', both), DONE)
    with Client(("127.0.0.2", second["port"])) as stays:
        assert stays.login(IQN).status == (0, 0)
        reload(served, file, FILE, DONE)
        with pytest.raises(ConnectionRefusedError):
            Client(("127.0.0.2", second["port"]))
        stays.request(0x40, 0x80, b"\xff\xff\xff\xff", b"there")
        assert stays.receive().data == b"there", "a connection does not end with its portal"
    assert ports(served, ask) == [port]


def test_a_file_that_is_no_good_changes_nothing(served: Served, ask: Ask, file: Path, quick: Run) -> None:
    (port,) = ports(served, ask)
    new = '[lu.c]\nurl = "memory:1M"\n[[iscsi.target]]\nname = "iqn.2026-11.org.example:new"\nluns = { 0 = "c" }\n'
    before = (ask("target", "list"), ask("portal", "list"), ask("lun", "list"))
    with Client(("127.0.0.1", port)) as client:
        assert client.login(IQN).status == (0, 0)
        for text, said in (
            (FILE + new + "[isci]\n", "d.toml:23:1: unknown key 'isci', did you mean 'iscsi'?"),
            (FILE.replace("= 2", "= ,") + new, "d.toml:11:12: "),
            (FILE.replace(IQN, "disk") + new, "d.toml:13:1: iscsi.target.0.name: 'disk' is no target name"),
            (FILE + new.replace("memory:1M", "missing.img"), "logical unit c: missing.img: no such file"),
            (FILE + new + f'[[iscsi.portal]]\nlisten = "127.0.0.1:{port}"\n', "Address already in use"),
            (FILE + new + '[[iscsi.portal]]\nlisten = "192.0.2.1:0"\n', "Cannot assign requested address"),
        ):
            reload(served, file, text, "reload: nothing changed: ")
            line = served.log().splitlines()[-1]
            assert re.search(r" error control: reload: nothing changed: .*" + re.escape(said), line), line
            one_line(quick("config", "reload"), 7, said)
        client.request(0x40, 0x80, b"\xff\xff\xff\xff", b"there")
        assert client.receive().data == b"there"
        client.logout()
    file.write_text(FILE)
    wait_for(lambda: not ask("session", "list")["sessions"], "the end of the one that logged out", every=0.1)
    assert (ask("target", "list"), ask("portal", "list"), ask("lun", "list")) == before


def test_units_come_and_go_and_what_cannot_is_named(served: Served, ask: Ask, file: Path, quick: Run) -> None:
    (port,) = ports(served, ask)
    with Client(("127.0.0.1", port)) as client:
        assert client.login(IQN).status == (0, 0)
        assert capacity(client) == 8192
        text = FILE.replace('[lu.a]\nurl = "memory:4M"', '[lu.c]\nurl = "memory:2M"').replace('"a"', '"c"')
        file.write_text("workers = 2\n" + text.replace("memory:8M", "memory:9M"))
        said = quick("config", "reload").stdout
        assert said == "needs a restart: workers\nneeds a restart: lu b\n"
        assert client.closed(), "the unit that its session saw is gone"
    with Client(("127.0.0.1", port)) as client:
        assert client.login(IQN).status == (0, 0)
        assert capacity(client) == 4096
    sizes = {unit["name"]: unit["size_bytes"] >> 20 for unit in ask("lun", "list")["logical_units"]}
    assert sizes == {"b": 8, "c": 2}
    assert ask("status")["drift"] == ["workers is 1, configured is 2", "logical unit b: differs from the configuration"]
    assert served.stop() == 0
    assert "Traceback" not in served.log()


def test_a_daemon_of_a_vm_gets_its_first_target(serve: Serve, ask: Ask, file: Path) -> None:
    file.write_text('[lu.a]\nurl = "memory:4M"\n[map]\n"0:0" = "a"\n')
    served = serve("--config", file)
    reload(served, file, file.read_text() + FILE[FILE.index("[iscsi]") : FILE.rindex("[[iscsi.target]]")], DONE)
    (port,) = ports(served, ask)
    with Client(("127.0.0.1", port)) as client:
        assert client.login(IQN, INITIATOR).status == (0, 0)
        assert capacity(client) == 8192
    # The port's place is not taken away while it runs.
    reload(served, file, file.read_text().replace('"0:0" = "a"', ""), "nothing changed: ")
    assert served.stop() == 0
