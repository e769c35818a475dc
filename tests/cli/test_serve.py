# SPDX-License-Identifier: Apache-2.0
"""`serve` as a process: ready, served, asked, drained, killed, started again."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import COMMAND, TIMEOUT, Run, Serve
from tests.waiting import wait_for
from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.vhost_user.initiator import Initiator

READ_10 = bytes.fromhex("28000000000000000100")
WRITE_10 = bytes.fromhex("2a000000000000000100")
TEST_UNIT_READY = bytes(6)


def ready(initiator: Initiator, lun: int = 0) -> None:
    """Takes the unit attention of a new nexus away."""
    initiator.driver.command(0, lun, TEST_UNIT_READY)


def write_block(initiator: Initiator, data: bytes, lun: int = 0) -> int:
    return initiator.driver.command(0, lun, WRITE_10, data).status


def eventually_gone(path: Path) -> None:
    wait_for(lambda: not path.exists(), f"the end of {path}", every=0.05)


def test_it_says_how_qemu_is_attached_and_serves(serve: Serve, disk: Path) -> None:
    served = serve("--lun", f"0:0={disk}")
    assert f"READY default {served.socket}" in served.output
    assert f"path={served.socket}" in served.output
    assert "share=on" in served.output
    with Initiator(served.socket) as initiator:
        ready(initiator)
        assert write_block(initiator, b"\x5a" * 512) == 0
    assert served.stop() == 0
    assert disk.read_bytes()[:1024] == b"\x5a" * 512 + bytes(512)


def test_ready_as_json(serve: Serve, disk: Path) -> None:
    said = json.loads(serve("--lun", f"0:0={disk}", "--json").output)
    assert (said["schema_version"], said["ready"]) == (1, True)
    assert "vhost-user-scsi-pci" in " ".join(said["qemu_options"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_cleans_up(serve: Serve, disk: Path, tmp_path: Path, number: int) -> None:
    served = serve("--lun", f"0:0={disk}")
    with Initiator(served.socket) as initiator:
        ready(initiator)
        assert served.stop(number) == 0
    assert not served.socket.exists()
    assert list((tmp_path / "run" / "vhost-scsi").iterdir()) == []
    assert "Traceback" not in served.log()


def test_a_signal_during_the_start_cleans_up_too(environment: dict[str, str], disk: Path, tmp_path: Path) -> None:
    # A lock of somebody else's keeps it starting.
    with disk.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [*COMMAND, "serve", "--socket-path", tmp_path / "s", "--lun", "0:0=memory:1M", "--lun", f"0:1={disk}"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        control = tmp_path / "run" / "vhost-scsi" / "default.sock"
        while not control.exists() and process.poll() is None:
            time.sleep(0.01)
        process.terminate()
        output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    assert "READY" not in output
    assert "stopped" in errors
    assert not (tmp_path / "s").exists()
    assert list(control.parent.iterdir()) == []


def test_a_drain_waits_for_requests_in_flight(serve: Serve, disk: Path) -> None:
    served = serve("--lun", f"0:0=delay(write=1s):{disk}")
    with Initiator(served.socket) as initiator:
        ready(initiator)
        initiator.driver.submit(_lun0(), WRITE_10, b"\xa5" * 512)
        time.sleep(0.2)
        assert served.stop() == 0
    assert disk.read_bytes()[:512] == b"\xa5" * 512


def test_a_second_signal_ends_it_at_once(serve: Serve, disk: Path) -> None:
    served = serve("--lun", f"0:0=delay(write=30s):{disk}")
    with Initiator(served.socket) as initiator:
        ready(initiator)
        initiator.driver.submit(_lun0(), WRITE_10, b"\xa5" * 512)
        time.sleep(0.2)
        served.process.terminate()
        time.sleep(0.5)
        assert served.process.poll() is None, "the first signal waits for the write"
        started = time.monotonic()
        assert served.stop() == -signal.SIGTERM
        assert time.monotonic() - started < 20, "nobody waits for the write"


@pytest.mark.slow
def test_a_drain_is_bounded(serve: Serve, disk: Path, tmp_path: Path) -> None:
    served = serve("--lun", f"0:0=delay(write=60s):{disk}")
    with Initiator(served.socket) as initiator:
        ready(initiator)
        initiator.driver.submit(_lun0(), WRITE_10, b"\xa5" * 512)
        time.sleep(0.2)
        started = time.monotonic()
        assert served.stop() == 8
        assert 8 < time.monotonic() - started < 20
    assert "still not drained after 10 s" in served.log()
    assert not served.socket.exists()
    assert list((tmp_path / "run" / "vhost-scsi").iterdir()) == []


def test_after_kill_9_a_new_one_takes_over(serve: Serve, disk: Path) -> None:
    first = serve("--lun", f"0:0={disk},cache=direct")
    with Initiator(first.socket) as initiator:
        ready(initiator)
        assert write_block(initiator, b"\x11" * 512) == 0
        first.stop(signal.SIGKILL)
    assert first.socket.exists(), "a killed process cleans nothing up"
    second = serve("--lun", f"0:0={disk},cache=direct")
    with Initiator(second.socket) as initiator:
        ready(initiator)
        assert initiator.driver.command(0, 0, READ_10, in_len=512).data == b"\x11" * 512
    assert second.stop() == 0


def test_it_is_the_same_disk_after_a_restart(serve: Serve, run: Run, disk: Path) -> None:
    uuids = []
    for _ in range(2):
        served = serve("--lun", f"0:0={disk}", "--lun", "0:1=memory:1M")
        uuids.append([unit["uuid"] for unit in json.loads(run("lun", "list", "--json").stdout)["logical_units"]])
        assert served.stop() == 0
    assert uuids[0] == uuids[1]
    assert len(set(uuids[0])) == 2


def test_a_second_server_on_a_live_socket_is_refused(serve: Serve, run: Run, disk: Path) -> None:
    served = serve("--lun", f"0:0={disk}")
    second = run("serve", "--socket-path", served.socket, "--lun", "0:0=memory:1M", "--name", "other")
    assert second.returncode == 4
    assert second.stderr.count("\n") == 1
    assert "another server is listening" in second.stderr
    with Initiator(served.socket) as initiator:
        ready(initiator)
        assert write_block(initiator, bytes(512)) == 0


def test_a_second_daemon_of_that_name_is_refused(serve: Serve, run: Run, disk: Path, tmp_path: Path) -> None:
    serve("--lun", f"0:0={disk}")
    second = run("serve", "--socket-path", tmp_path / "s2", "--lun", "0:0=memory:1M")
    assert second.returncode == 4
    assert not (tmp_path / "s2").exists()


def test_an_image_that_somebody_else_has_is_waited_for_and_then_refused(serve: Serve, run: Run, disk: Path) -> None:
    serve("--lun", f"0:0={disk}")
    started = time.monotonic()
    second = run("serve", "--socket-path", disk.parent / "s2", "--lun", f"0:0={disk}", "--name", "other")
    assert time.monotonic() - started > 2
    assert second.returncode == 3
    waiting, refusal = second.stderr.splitlines()
    assert " info control: logical unit lun-0-0: " in waiting, "what it waits for is told once"
    assert "in use: another process holds a lock on it" in refusal


def test_several_ports_units_and_daemons(serve: Serve, run: Run, tmp_path: Path) -> None:
    config = tmp_path / "daemon.toml"
    config.write_text(
        f"""
        name = "big"
        workers = 2
        [lu.a]
        url = "memory:1M"
        [lu.b]
        store = {{ type = "delay", read = "1ms", lower = {{ type = "memory", size = "2M" }} }}
        block_size = 4096
        [port.one]
        socket = "{tmp_path}/one"
        num_queues = 2
        [port.two]
        socket = "{tmp_path}/two"
        workers = [1]
        [map]
        "one:0:0" = "a"
        "one:0:5" = "b"
        "two:3:0" = "a"
        """
    )
    serve("--config", config, socket_path=False)
    serve("--lun", "0:0=memory:1M", "--name", "small")
    units = json.loads(run("lun", "list", "--name", "big", "--json").stdout)["logical_units"]
    assert [(unit["name"], unit["block_size"], unit["size_bytes"]) for unit in units] == [
        ("a", 512, 1 << 20),
        ("b", 4096, 2 << 20),
    ]
    assert units[0]["mapped"] == [{"port": "one", "target": 0, "lun": 0}, {"port": "two", "target": 3, "lun": 0}]
    assert json.loads(run("status", "--name", "small", "--json").stdout)["name"] == "small"
    several = run("queue", "show", "2", "--name", "big")
    assert (several.returncode, "name one of one, two" in several.stderr) == (7, True)
    assert "port two, queue 2" in run("queue", "show", "two:2", "--name", "big").stdout


def test_queues_and_requests_are_seen_from_outside(serve: Serve, run: Run, disk: Path) -> None:
    served = serve("--lun", f"0:0=delay(write=15s):{disk}")
    with Initiator(served.socket) as initiator:
        ready(initiator)
        initiator.driver.submit(_lun0(), bytes.fromhex("2a000000001000000800"), bytes(4096))
        time.sleep(0.5)
        shown = json.loads(run("queue", "show", "2", "--json").stdout)
        (task,) = shown["tasks"]
        assert (task["command"].split()[0], task["lba"], task["blocks"]) == ("WRITE(10)", 16, 8)
        assert (task["length_bytes"], task["layer"], task["unit"]) == (4096, "store", "lun-0-0")
        assert task["age_us"] > 100_000
        assert shown["ring"]["strip"].count("F") == 1
        assert shown["ring"]["violations"] == []
        assert all(chain["violations"] == [] for chain in shown["ring"]["chains"])
        text = run("queue", "show", "2").stdout
        assert "WRITE(10)" in text
        assert "running, split ring of 128" in text
        assert [row["started"] for row in json.loads(run("queue", "list", "--json").stdout)["queues"]] == [True] * 3
        assert "request 0" in run("queue", "list").stdout
        assert "connected" in run("status").stdout
        assert len(json.loads(run("status", "--json").stdout)["workers"]) == 1
    # The initiator has gone, so its write is aborted instead of waited for.
    assert served.stop() == 0


def test_a_packed_ring_used_in_order_is_seen_from_outside(serve: Serve, run: Run) -> None:
    """Wrap counters and events are shown, and which descriptors the device holds."""
    served = serve("--lun", "0:0=delay(write=20s):memory:1M", "--in-order")
    features = Feature.VERSION_1 | Feature.RING_PACKED | Feature.IN_ORDER | Feature.EVENT_IDX
    with Initiator(served.socket, features=int(features), queue_size=100) as initiator:
        ready(initiator)
        initiator.driver.submit(_lun0(), bytes.fromhex("2a000000001000000800"), bytes(4096))
        wait_for(lambda: json.loads(run("queue", "show", "2", "--json").stdout)["tasks"], "the write")
        shown = json.loads(run("queue", "show", "2", "--json").stdout)
        queue, ring = shown["queue"], shown["ring"]
        assert (queue["layout"], queue["size"], queue["avail_wrap"]) == ("packed", 100, True)
        assert {"RING_PACKED", "IN_ORDER"} <= set(queue["features"])
        # Header, data and response; how many went before depends on the unit attentions there were.
        used = ring["next_used"]["index"]
        assert ring["held"] == 3
        assert ring["next_avail"] == {"index": used + 3, "wrap": True}
        assert ring["strip"][used : used + 3] == "FFF"
        assert ring["strip"].count("F") == 3
        assert ring["in_flight_ids"] == [shown["tasks"][0]["head"]]
        assert ring["driver_event"]["mode"] == "DESC"
        assert ring["violations"] == []
        text = run("queue", "show", "2").stdout
        assert "running, packed ring of 100" in text
        assert f"next {used}/1, 3 descriptors held" in text
        assert f"{used + 3}/1" in run("queue", "list").stdout
    assert served.stop() == 0


def test_sighup_reloads_what_can_be_and_names_the_rest(serve: Serve, disk: Path, tmp_path: Path) -> None:
    config = tmp_path / "d.toml"
    text = f'log_level = "info"\nworkers = 1\n[lu.a]\nurl = "{disk}"\n[map]\n"0:0" = "a"\n'
    config.write_text(text)
    served = serve("--config", config)
    for change, said in (
        ('log_level = "debug"', "log level debug"),
        ("workers = 2", "needs a restart, so not changed: workers"),
        ("wrkers = 2", "nothing changed"),
    ):
        line = text.splitlines()[1 if "w" in change[:1] else 0]
        config.write_text(text.replace(line, change))
        served.process.send_signal(signal.SIGHUP)
        for _ in range(100):
            if said in served.log():
                break
            time.sleep(0.05)
        assert said in served.log()
    assert served.stop() == 0


def test_shutdown_is_asked_for_on_the_management_socket(serve: Serve, environment: dict[str, str], disk: Path) -> None:
    from vhost_scsi.daemon.client import ControlClient

    served = serve("--lun", f"0:0={disk}")
    with ControlClient(Path(environment["XDG_RUNTIME_DIR"]) / "vhost-scsi" / "default.sock") as daemon:
        assert daemon.call("log.level", level="error")["level"] == "error"
        assert {"status", "lun.list", "queue.list", "queue.show", "shutdown", "log.level"} <= {
            method["name"] for method in daemon.call("help")["methods"]
        }
        assert daemon.call("task.list")["tasks"] == []
        assert daemon.call("shutdown")["stopping"] is True
    assert served.process.wait(30) == 0
    assert not served.socket.exists()


def test_systemd_is_told_and_its_socket_is_taken(serve: Serve, disk: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, socket.socket(socket.AF_UNIX) as listener:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        listener.bind(str(tmp_path / "activated"))
        listener.listen()
        # The variables name the pid of the process that is to take the sockets, so the shell becomes it.
        words = [sys.executable, "-m", "vhost_scsi.cli", "serve", "--lun", f"0:0={disk}"]
        script = f"exec 3<&{listener.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec {shlex.join(words)}"
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "XDG_RUNTIME_DIR": str(tmp_path / "run"),
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }
        with subprocess.Popen(
            ["bash", "-c", script],
            env=environment,
            pass_fds=(listener.fileno(),),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert manager.recv(4096).startswith(b"READY=1")
            with Initiator(tmp_path / "activated") as initiator:
                ready(initiator)
                assert write_block(initiator, bytes(512)) == 0
            process.terminate()
            assert manager.recv(4096) == b"STOPPING=1"
            assert process.wait(30) == 0
    assert stat.S_ISSOCK((tmp_path / "activated").stat().st_mode), "the manager's socket is the manager's to unlink"


def test_a_connected_descriptor_is_served_until_its_peer_goes(serve: Serve, disk: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        served = serve(
            "--fd", str(theirs.fileno()), "--lun", f"0:0={disk}", socket_path=False, pass_fds=(theirs.fileno(),)
        )
    ours.close()
    assert served.process.wait(30) == 0


def test_logs_as_json_are_one_object_a_line(serve: Serve, disk: Path) -> None:
    served = serve("--lun", f"0:0={disk}", "--log-format", "json")
    assert served.stop() == 0
    entries = [json.loads(line) for line in served.log().splitlines()]
    assert {"time", "level", "logger", "message"} <= set(entries[0])
    assert entries[-1]["message"] == "stopped"


def _lun0() -> bytes:
    return bytes.fromhex("0100400000000000")
