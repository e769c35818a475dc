# SPDX-License-Identifier: Apache-2.0
"""`serve --iscsi` as a process, and the commands that look into it and change it while initiators are there."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run, Serve, Served
from tests.cli.test_bad_input import one_line
from tests.iscsi.client import ASYNC_MESSAGE, NO_TAG, Client
from tests.iscsi.libiscsi import tool
from tests.iscsi.scsi_host import ScsiHost
from tests.waiting import wait_for
from vhost_scsi.scsi import sense
from vhost_scsi.vhost_user.initiator import Initiator

IQN = "iqn.2026-11.org.example:disk"
OTHER = "iqn.2026-11.org.example:other"
LOGOUT_REQUESTED = 1


def address_of(served: Served) -> tuple[str, int]:
    match = re.search(r"READY iscsi (.*):(\d+),\d+$", served.output, re.MULTILINE)
    assert match is not None, served.output
    return match[1], int(match[2])


def login(served: Served, target: str = IQN, **fields: Any) -> Client:
    client = Client(address_of(served))
    answer = client.login(target, **fields)
    assert answer.status == (0, 0)
    return client


@pytest.fixture
def served(serve: Serve) -> Served:
    """One target, one memory unit, no vhost-user socket."""
    return serve("--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", "0=memory:64M", socket_path=False)


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(quick: Run) -> Ask:
    """A command with --json; what it says."""

    def call(*words: str) -> dict[str, Any]:
        result = quick(*words, "--json")
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        assert answer["schema_version"] == 1
        return answer

    return call


def test_a_portal_a_target_and_a_unit_are_enough(served: Served, ask: Ask, run: Run) -> None:
    url = next(line for line in served.output.splitlines() if line.startswith("iscsi://"))
    assert url.endswith(f"/{IQN}/0")
    assert "Total size:67108864" in tool("iscsi-readcapacity16", url).stdout
    (unit,) = ask("lun", "list")["logical_units"]
    assert (unit["name"], unit["mapped"], unit["iscsi"]) == ("lun-0", [], [{"target": IQN, "lun": 0}])
    assert f"{IQN}:0" in run("lun", "list").stdout
    assert ask("status")["iscsi"]["targets"] == 1
    assert "1 targets" in run("status").stdout
    assert served.stop() == 0
    assert "Traceback" not in served.log()


def test_ready_as_json(serve: Serve) -> None:
    words = ("--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", "0=memory:1M", "--json")
    said = json.loads(serve(*words, socket_path=False).output)
    assert said["ports"] == said["qemu_options"] == []
    assert said["iscsi_urls"] == [f"iscsi://{said['portals'][0].partition(',')[0]}/{IQN}/0"]


def test_one_unit_over_both_transports(serve: Serve, disk: Path, tmp_path: Path) -> None:
    words = ("--lu", f"d={disk}", "--map", "0:0=d", "--iscsi", "127.0.0.1:0", "--target", IQN, "--map", f"{IQN}:7=d")
    served = serve(*words, "--json")
    where = json.loads(served.output)["iscsi_urls"][0]
    with Initiator(served.socket) as initiator:
        initiator.driver.command(0, 0, bytes(6))
        assert initiator.driver.command(0, 0, bytes.fromhex("2a000000000000000100"), b"\x5a" * 512).status == 0
        image = tmp_path / "read"
        assert tool("qemu-img", "convert", "-O", "raw", where, str(image)).returncode == 0
    assert image.read_bytes()[:1024] == b"\x5a" * 512 + bytes(512)
    assert served.stop() == 0


def test_sessions_and_connections_are_seen(served: Served, ask: Ask, run: Run) -> None:
    extra = [("HeaderDigest", "None"), ("MaxBurstLength", "65536"), ("InitiatorAlias", "tester")]
    with login(served, extra=extra) as client:
        (session,) = ask("session", "list")["sessions"]
        assert (session["session"], session["target"], session["type"]) == (client.tsih, IQN, "normal")
        assert (session["connections"], session["window"], session["alias"]) == ([1], 128, "tester")
        number = str(client.tsih)
        shown = ask("session", "show", number)
        assert shown["keys"]["MaxBurstLength"] == 65536
        assert shown["luns"] == [{"lun": 0, "unit": "lun-0"}]
        text = run("session", "show", number).stdout
        assert "MaxBurstLength=65536" in text
        assert "InitialR2T=" in text
        (row,) = ask("connection", "list")["connections"]
        assert (row["header_digest"], row["data_digest"], row["max_send_bytes"]) == ("None", "None", 8192)
        before = ask("connection", "show", f"{number}:1")["connection"]
        client.request(0x40, 0x80, b"\xff\xff\xff\xff", b"ping")  # NOP-Out
        assert client.receive().data == b"ping"
        after = ask("connection", "show", f"{number}:1")["connection"]
        assert after["received_bytes"] - before["received_bytes"] == 52
        assert after["sent_bytes"] - before["sent_bytes"] == 52
        assert after["idle_us"] < 60_000_000
        for words in (("session", "list"), ("connection", "list"), ("connection", "show", f"{number}:1")):
            assert "iqn.2024-01.org.example:initiator" in run(*words).stdout or words[:2] == ("connection", "list")
        assert ask("target", "show", IQN)["sessions"][0]["session"] == client.tsih
        assert "initiator" in run("target", "show", IQN).stdout
    assert ask("portal", "list")["portals"][0]["targets"] == 1
    assert "127.0.0.1" in run("portal", "list").stdout
    assert IQN in run("target", "list").stdout


def test_what_was_refused_is_told_in_words(served: Served, ask: Ask, run: Run, tmp_path: Path) -> None:
    host, port = address_of(served)
    assert run("session", "refused").stdout == "nothing was refused\n"
    secret = tmp_path / "secret"
    secret.write_text("a secret of enough bytes\n")
    secret.chmod(0o600)
    ask("target", "add", OTHER, "--lun", "0=memory:1M", "--allow", "*:iscsi-inq", "--chap", "bob=secret")
    for _ in range(2):
        tool("iscsi-inq", "-e", "1", "-c", "200", f"iscsi://{host}:{port}/{IQN}/0")
    tool("iscsi-inq", f"iscsi://bob%a secret of enough bytes@{host}:{port}/{OTHER}/0")
    tool("iscsi-readcapacity16", f"iscsi://{host}:{port}/{OTHER}/0")
    page, algorithm, access = ask("session", "refused")["refused"]
    assert (page["kind"], page["asked"], page["lun"], page["times"]) == ("command", "INQUIRY, VPD page C8h", 0, 2)
    assert (page["target"], page["initiator"].rpartition(":")[2]) == (IQN, "iscsi-inq")
    assert page["first"] <= page["last"]
    assert "chap_algorithms" in algorithm["why"]
    assert "MD5" in algorithm["why"]
    assert "access list" in access["why"]
    first = run("session", "refused").stdout.splitlines()[0]
    assert first.endswith("refused, there is no such page (INVALID FIELD IN CDB, 24h/00h) (2 times)")
    assert "asked for INQUIRY, VPD page C8h of LUN 0 of iqn." in first


def test_a_unit_gets_another_size(serve: Serve, ask: Ask, run: Run, disk: Path) -> None:
    before = disk.stat().st_size
    served = serve("--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", f"0={disk}", socket_path=False)
    with ScsiHost(address_of(served), IQN) as host:
        host.ready()
        answer = ask("lun", "resize", "lun-0", f"{before // 512 * 1024}")
        assert (answer["size_bytes"], answer["size_bytes_before"]) == (2 * before, before)
        assert disk.stat().st_size == 2 * before
        host.fails(sense.CAPACITY_DATA_HAS_CHANGED, bytes(6))
        os.truncate(disk, before)
        assert run("lun", "resize", "lun-0").stdout == f"lun-0: {before} bytes, {2 * before} before\n"
        host.fails(sense.CAPACITY_DATA_HAS_CHANGED, bytes(6))
    one_line(run("lun", "resize", "lun-0", "1000"), 7, "size 1000 is not a multiple of the block size 512")
    one_line(run("lun", "resize", "lun-0", "much"), 3, "size 'much': a size is a whole number")
    one_line(run("lun", "resize", "lun-0", "0"), 3, "not zero")
    one_line(run("lun", "resize", "nothing"), 7, "there is no logical unit 'nothing'")


def test_a_connection_tells_how_long_its_commands_took(served: Served, ask: Ask, run: Run) -> None:
    with ScsiHost(address_of(served), IQN) as host:
        host.ready()
        where = f"{host.client.tsih}:1"
        before = ask("connection", "show", where)["latency"]
        assert (before["read"]["commands"], before["read"]["average_us"]) == (0, None)
        assert before["no_data"]["commands"] >= 2
        for _ in range(20):
            host.ok(bytes.fromhex("28000000000000000100"), in_len=512)
        host.ok(bytes.fromhex("2a000000000000000100"), bytes(512))
        shown = ask("connection", "show", where)
        read = shown["latency"]["read"]
        assert read["commands"] == 20 == sum(row["commands"] for row in read["histogram"])
        assert shown["latency"]["write"]["commands"] == 1
        assert 0 < read["min_us"] <= read["average_us"] <= read["max_us"]
        assert read["min_us"] <= read["half_below_us"] <= read["99_percent_below_us"]
        assert shown["window"]["commands"] == 128
        assert shown["connection"]["commands"] == host.client.cmd_sn - 100 == shown["window"]["exp_cmd_sn"] - 100
        text = run("connection", "show", where).stdout
        assert re.search(
            r"^reads        20, in .* on average \(.* to .*\), half below .*, 99 % below", text, re.MULTILINE
        )
        assert "HeaderDigest=None" in text
        assert "window       128 commands" in text


def test_a_session_that_is_removed_is_asked_to_log_out(served: Served, run: Run) -> None:
    with login(served) as client:
        started = time.monotonic()
        assert run("session", "remove", str(client.tsih)).returncode == 0
        assert time.monotonic() - started > 2.5, "it has three seconds to log out"
        message = client.receive()
        assert (message.opcode, message.bhs[36]) == (ASYNC_MESSAGE, LOGOUT_REQUESTED)
        assert int.from_bytes(message.bhs[42:44], "big") == 3
        assert client.closed()


def test_reset_and_connection_remove_end_at_once(served: Served, run: Run, ask: Ask) -> None:
    for words in (("session", "reset", "{}"), ("connection", "remove", "{}:1")):
        with login(served) as client:
            assert run(*(word.format(client.tsih) for word in words)).returncode == 0
            assert client.closed()
    wait_for(lambda: not ask("session", "list")["sessions"], "the end of the session", every=0.1)


def test_targets_come_and_go(served: Served, run: Run, ask: Ask) -> None:
    assert ask("target", "add", OTHER, "--lun", "3=lun-0", "--alias", "more")["target"]["luns"] == 1
    host, port = address_of(served)
    assert "Total size:67108864" in tool("iscsi-readcapacity16", f"iscsi://{host}:{port}/{OTHER}/3").stdout
    with login(served, OTHER) as client:
        one_line(run("target", "remove", OTHER), 7, "has 1 session; --force ends them")
        assert run("target", "remove", OTHER, "--force").returncode == 0
        assert client.receive().opcode == ASYNC_MESSAGE  # the target drops the session
        assert client.closed()
    assert [target["name"] for target in ask("target", "list")["targets"]] == [IQN]
    with Client(address_of(served)) as client:
        assert client.login(OTHER).status == (2, 4), "removed, not unknown"


def test_refusals_are_told_in_plain_words(served: Served, run: Run, ask: Ask) -> None:
    assert run("session", "refused").stdout == "nothing was refused\n"
    for _ in range(2):
        with Client(address_of(served)) as client:
            assert client.login(OTHER).status == (2, 3)
    with login(served, extra=[("MaxBurstLength", "0")]):
        said = run("session", "refused").stdout
    assert f"asked for login of {OTHER}: refused, there is no such target (2 times)" in said
    assert "asked for key MaxBurstLength=0" in said
    assert {row["kind"] for row in ask("session", "refused")["refused"]} == {"login: no such target here", "key"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["session", "show", "999"], 7, "there is no session 999"),
        (["session", "remove", "x"], 2, "is not a valid integer"),
        (["connection", "show", "1"], 3, "'1' is not SESSION:CONNECTION"),
        (["connection", "remove", "9:9"], 7, "there is no session 9"),
        (["target", "show", OTHER], 7, f"there is no target '{OTHER}'"),
        (["target", "remove", OTHER], 7, f"there is no target '{OTHER}'"),
        (["target", "add", "disk", "--lun", "0=lun-0"], 7, "is no target name"),
        (["target", "add", OTHER, "--lun", "0=nothing"], 3, "no logical unit of that name, and there is no such file"),
        (["target", "add", OTHER, "--lun", "lun-0"], 3, "not LUN=NAME"),
        (["target", "add", IQN, "--lun", "0=lun-0"], 7, "is there already"),
    ],
)
def test_what_cannot_be_done_is_one_line(served: Served, run: Run, words: list[str], code: int, said: str) -> None:
    one_line(run(*words), code, said)


def test_a_daemon_without_iscsi_says_so(serve: Serve, run: Run) -> None:
    serve("--lun", "0:0=memory:1M")
    one_line(run("session", "list"), 7, "this daemon serves no iSCSI")


def test_a_signal_asks_initiators_to_log_out(served: Served) -> None:
    with login(served) as client:
        served.process.terminate()
        message = client.receive()
        assert (message.opcode, message.bhs[36]) == (ASYNC_MESSAGE, LOGOUT_REQUESTED)
        with Client(address_of(served)) as late:
            assert late.login(IQN).status == (3, 1), "service unavailable"
        assert client.logout().opcode == 0x26
        assert served.process.wait(20) == 0
    assert "were asked to log out and did not" not in served.log(), "who logs out is not waited for"


def test_a_signal_does_not_wait_for_ever(served: Served) -> None:
    with login(served) as client:
        started = time.monotonic()
        assert served.stop() == 0
        assert 2.5 < time.monotonic() - started < 30
        client.receive()
        assert client.closed()
    assert "were asked to log out and did not" in served.log()


def test_a_silent_initiator_is_asked_and_given_up(serve: Serve, run: Run, tmp_path: Path) -> None:
    config = tmp_path / "d.toml"
    config.write_text("[iscsi.ping]\nidle = 0.5\ntimeout = 1\n")
    words = ("--config", config, "--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", "0=memory:1M")
    served = serve(*words, socket_path=False)
    with login(served) as there:
        for _ in range(4):  # longer than idle and timeout together
            ping = there.receive()
            assert (ping.opcode, ping.itt) == (0x20, NO_TAG)
            assert ping.ttt != NO_TAG
            there.request(0x40, 0x80, ping.ttt.to_bytes(4, "big"), itt=NO_TAG)
        with login(served, isid=b"\x80\x12\x34\x56\x00\x02") as silent:
            first = silent.receive()
            assert (first.opcode, first.ttt) == (0x20, ping.ttt)
            assert silent.closed()
        assert "no answer to a ping within 1 seconds" in run("session", "refused").stdout


def test_a_cold_reset_ends_the_sessions_of_the_target(served: Served, ask: Ask) -> None:
    assert ask("target", "add", OTHER, "--lun", "0=lun-0")
    isid = b"\x80\x12\x34\x56\x00\x02"
    with login(served) as first, login(served, isid=isid) as second, login(served, OTHER) as other:
        first.request(0x42, 0x87, b"\xff\xff\xff\xff")  # TARGET COLD RESET, immediate
        assert first.receive().opcode == 0x22
        assert first.closed()
        assert second.closed()
        # A connection is closed a moment before its session is forgotten.
        while (left := [session["session"] for session in ask("session", "list")["sessions"]]) != [other.tsih]:
            assert set(left) <= {first.tsih, second.tsih, other.tsih}
    assert "cold reset" in served.log()


CONFIG = """
[lu.a]
url = "memory:4M"
[lu.b]
url = "memory:8M"

[iscsi]
chap_algorithms = ["SHA-256", "MD5"]

[[iscsi.portal]]
listen = "127.0.0.1:0"

[[iscsi.portal]]
listen = "127.0.0.1:0"
group = 2

[iscsi.limits]
sessions = 3

[[iscsi.target]]
name = "{iqn}"
luns = {{ 0 = "a" }}

[[iscsi.target.chap]]
name = "bob"
secret_file = "{secret}"

[[iscsi.target.acl]]
initiators = ["*:iscsi-readcapacity16"]
networks = ["127.0.0.0/8"]
luns = {{ 0 = "b" }}

[[iscsi.target.acl]]
initiators = ["*:iscsi-inq"]

[[iscsi.target]]
name = "{other}"
luns = {{ 1 = "b" }}
portal_groups = [2]

[[iscsi.target]]
name = "{other}-moved"
redirect = {{ address = "192.0.2.1:3260" }}
"""


def test_the_rest_is_toml(serve: Serve, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret of enough bytes\n")
    secret.chmod(0o600)
    config = tmp_path / "d.toml"
    config.write_text(CONFIG.format(iqn=IQN, other=OTHER, secret=secret))
    served = serve("--config", config, "--map", f"{OTHER}:5=a", "--json", socket_path=False)
    ready = json.loads(served.output)
    one, two = (portal.partition(",")[0] for portal in ready["portals"])
    assert ready["portals"] == [f"{one},1", f"{two},2"]
    user = "bob%a secret of enough bytes@"
    # The entry of the access list that matches decides what LUN 0 is.
    assert "Total size:8388608" in tool("iscsi-readcapacity16", f"iscsi://{user}{one}/{IQN}/0").stdout
    assert "DIRECT_ACCESS" in tool("iscsi-inq", f"iscsi://{user}{one}/{IQN}/0").stdout
    assert "Authentication failure" in tool("iscsi-readcapacity16", f"iscsi://{one}/{IQN}/0").stdout
    assert "Authorization failure" in tool("iscsi-swp", f"iscsi://{user}{one}/{IQN}/0").stdout
    assert "Total size:4194304" in tool("iscsi-readcapacity16", f"iscsi://{two}/{OTHER}/5").stdout
    assert "Total size:8388608" in tool("iscsi-readcapacity16", f"iscsi://{two}/{OTHER}/1").stdout
    assert "not found" in tool("iscsi-readcapacity16", f"iscsi://{one}/{OTHER}/1").stdout.lower()
    host, port = one.split(":")
    with Client((host, int(port))) as client:
        moved = client.login(f"{OTHER}-moved")
        assert (moved.status, moved.keys["TargetAddress"]) == ((1, 1), "192.0.2.1:3260")
    assert served.stop() == 0
    assert "enough bytes" not in served.log()


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ('"SHA-256"', '"SHA-512"', "8:1", "SHA-512 is no CHAP algorithm"),
        ('listen = "127.0.0.1:0"\ngroup', 'listen = "localhost:0"\ngroup', "14:1", "an IP address is wanted"),
        ("sessions = 3", "sessions = 0", "17:1", "limit sessions: 0 is not from 1"),
        ("sessions = 3", "sesions = 3", "18:1", "unknown key 'sesions', did you mean 'sessions'?"),
        (f'name = "{IQN}"', 'name = "disk"', "21:1", "is no target name"),
        ('luns = { 0 = "a" }', 'luns = { 0 = "c" }', "22:1", "there is no logical unit 'c'"),
        ('luns = { 0 = "a" }', 'luns = { x = "a" }', "22:1", "'x' is not a LUN"),
        ("secret_file", "secret", "26:1", "unknown key 'secret', did you mean 'secret_env'?"),
        ("{secret}", "/nowhere/secret", "26:1", "/nowhere/secret: No such file"),
        ("{secret}", "{open}", "26:1", "lets others at the secret"),
        ('secret_file = "{secret}"', 'secret_env = "NOT_THERE"', "26:1", "environment variable NOT_THERE is not set"),
        ("127.0.0.0/8", "somewhere", "30:1", "'somewhere' is not an address or a network"),
        ("portal_groups = [2]", "portal_groups = [3]", "39:1", "no portal is in any of its portal groups"),
        (f'name = "{OTHER}"', f'name = "{IQN}"', "37:1", "is given twice"),
        ('luns = { 1 = "b" }', "", "36:1", "has no logical unit"),
    ],
)
def test_a_mistake_is_told_with_its_place(run: Run, tmp_path: Path, old: str, new: str, place: str, said: str) -> None:
    secret, shared = tmp_path / "secret", tmp_path / "open"
    for path, mode in ((secret, 0o600), (shared, 0o644)):
        path.write_text("a secret of enough bytes\n")
        path.chmod(mode)
    text = CONFIG.replace("{{", "{").replace("}}", "}").replace("{iqn}", IQN).replace("{other}", OTHER)
    assert old in text
    text = text.replace(old, new, 1).replace("{secret}", str(secret)).replace("{open}", str(shared))
    (tmp_path / "d.toml").write_text(text)
    one_line(run("serve", "--config", "d.toml"), 3, said)
    assert run("serve", "--config", "d.toml").stderr.startswith(f"vhost-scsi: d.toml:{place}: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--iscsi", "127.0.0.1:0", "--lun", "0=memory:1M"], "names no iSCSI target, and there is none"),
        (["--iscsi", "127.0.0.1:0"], "there is no target: give --target"),
        (["--target", IQN, "--lun", "0=memory:1M"], "there is no portal to listen on: give --iscsi"),
        (["--iscsi", "127.0.0.1:0", "--target", IQN], "has no logical unit"),
        (["--iscsi", "host:0", "--target", IQN, "--lun", "0=memory:1M"], "an IP address is wanted"),
        (["--iscsi", "127.0.0.1:x", "--target", IQN, "--lun", "0=memory:1M"], "HOST[:PORT][,TAG] is wanted"),
        (["--iscsi", "127.0.0.1:0", "--target", "disk", "--lun", "0=memory:1M"], "is no target name"),
        (["--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", "0:0=memory:1M"], "names no port"),
        (["--iscsi", "127.0.0.1:0", "--target", IQN, "--lu", "a=memory:1M", "--map", "b=a"], "nor IQN:LUN or LUN"),
        (["--iscsi", "127.0.0.1:0", "--target", IQN, "--lu", "a=memory:1M", "--map", f"{OTHER}:0=a"], "did you mean"),
        (["--iscsi", "127.0.0.1:0", "--target", IQN, "--lun", "0=memory:1M", "--lun", "00=memory:1M"], "twice"),
        (["--iscsi", "127.0.0.1:0,2", "--target", IQN, "--lun", "0=memory:1M"], "no portal is in any"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(run: Run, words: list[str], said: str) -> None:
    one_line(run("serve", *words), 3, said)


def test_a_portal_that_is_taken(served: Served, run: Run) -> None:
    host, port = address_of(served)
    words = ("--iscsi", f"{host}:{port}", "--target", IQN, "--lun", "0=memory:1M", "--name", "other")
    one_line(run("serve", *words), 3, "cannot listen: Address already in use")


def test_a_wildcard_portal_tells_real_addresses(serve: Serve, ask: Ask) -> None:
    served = serve("--iscsi", "*:0", "--target", IQN, "--lun", "0=memory:1M", socket_path=False)
    _, port = address_of(served)
    (portal,) = ask("portal", "list")["portals"]
    assert (portal["host"], portal["port"]) == ("0.0.0.0", port)
    with Client(("127.0.0.1", port)) as client:
        assert client.login(target=None).status == (0, 0)
        told = [value for key, value in client.send_targets("All") if key == "TargetAddress"]
    assert told[0] == f"127.0.0.1:{port},1", "the address that the initiator came in by is known to work"
    assert told[1:] == [f"{address}:{port},1" for address in portal["addresses"]]
    assert f"iscsi://127.0.0.1:{port}/{IQN}/0" in served.output
