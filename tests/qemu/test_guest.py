# SPDX-License-Identifier: Apache-2.0
"""The guest around a fake QEMU: start, shell, monitor, and every way to end."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vhost_scsi.qemu import Accel, Guest, GuestConfig, GuestTimeout, Qemu, QemuDied, QemuError


@pytest.fixture
def config(fake: Qemu) -> GuestConfig:
    return GuestConfig(fake, Accel("tcg", "max"))


def test_a_command_tells_status_and_output(config: GuestConfig) -> None:
    with Guest(config) as guest:
        assert guest.run("echo out; echo err >&2; exit 5").output == "out\nerr\n"
        assert guest.run("exit 5").status == 5
        assert guest.run("printf x").output == "x"
        assert guest.run("cat").output == ""
        assert guest.check("echo 1\necho 2 # a comment") == "1\n2\n"
        with pytest.raises(QemuError, match="status 1: why"):
            guest.check("echo why; false")


def test_a_login_becomes_a_quiet_shell(config: GuestConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_QEMU", "login")
    with Guest(config) as guest:
        guest.login(30)
        assert guest.check("echo in") == "in\n"


def test_the_console_is_streamed_and_logged(config: GuestConfig, tmp_path: Path) -> None:
    seen: list[str] = []
    log = tmp_path / "serial.log"
    with Guest(dataclasses.replace(config, serial_log=log, stream=seen.append)) as guest:
        guest.send(r"printf 'raw\033[1mbold\n'")
        guest.expect("rawbold", 30)
    assert "rawbold" in "".join(seen)
    assert b"raw\x1b[1mbold" in log.read_bytes()


def test_the_monitor_answers_and_keeps_events(config: GuestConfig) -> None:
    with Guest(config) as guest:
        assert guest.qmp.execute("query-status") == {}
        assert guest.qmp.wait_event("RESUME", 5)["event"] == "RESUME"
        with pytest.raises(QemuError, match="it is unknown"):
            guest.qmp.execute("no-such-command")
        with pytest.raises(QemuError, match="no event NEVER"):
            guest.qmp.wait_event("NEVER", 0.05)
        assert guest.quit() == 0
        assert not guest.running


def test_dying_at_once_is_one_clear_line_with_qemus_last_words(
    config: GuestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QEMU", "dies")
    with pytest.raises(QemuDied, match=r"status 1 .* Failed to connect to '/nowhere'") as caught:
        Guest(config).start()
    assert caught.value.exit_code == 12
    assert "\n" not in str(caught.value)


def test_dying_later_names_what_was_waited_for(config: GuestConfig) -> None:
    with Guest(config) as guest:
        guest.send("exit 9")
        with pytest.raises(QemuDied, match="status 9 while we waited for 'login'"):
            guest.expect("login", 30)
        with pytest.raises(QemuDied, match="input to its console"):
            guest.send("hello")


def test_being_killed_is_told_from_an_exit_status(config: GuestConfig) -> None:
    with Guest(config) as guest:
        os.kill(guest.pid, signal.SIGKILL)
        assert guest.wait(30) == -signal.SIGKILL


def test_silence_is_a_timeout_with_the_last_line(config: GuestConfig) -> None:
    with Guest(config) as guest:
        guest.check("echo before")
        with pytest.raises(GuestTimeout, match=r"no 'login' within 0\.1 s") as caught:
            guest.expect("login", 0.1)
        assert "before" in caught.value.console
        with pytest.raises(GuestTimeout):
            guest.wait(0.05)


def test_a_qemu_that_never_answers_is_not_waited_for_for_ever(
    config: GuestConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QEMU", "mute")
    guest = Guest(config)
    with pytest.raises(QemuError, match="no answer to qmp_capabilities"):
        guest.start(timeout=1)
    assert not guest.running


def test_a_program_that_is_gone_cannot_be_started(config: GuestConfig) -> None:
    gone = dataclasses.replace(config, qemu=Qemu(("/no/such/qemu",), (7, 2, 0)))
    with pytest.raises(QemuError, match="/no/such/qemu cannot be started"):
        Guest(gone).start()


def test_shutdown_waits_for_the_end(config: GuestConfig) -> None:
    with Guest(config) as guest:
        # The real command ends the machine; here it ends the shell that stands for it.
        guest.send("poweroff() { exit 77; }")
        assert guest.shutdown(30) == 0
        assert not guest.running


def test_a_line_too_long_for_a_terminal_is_refused(config: GuestConfig) -> None:
    with Guest(config) as guest, pytest.raises(QemuError, match="4000"):
        guest.run("x" * 4001)


def test_nothing_works_before_the_start_and_no_second_start(config: GuestConfig) -> None:
    guest = Guest(config)
    for act in (lambda: guest.pid, lambda: guest.qmp, lambda: guest.send("x")):
        with pytest.raises(QemuError, match="not started"):
            act()
    with guest, pytest.raises(QemuError, match="started before"):
        guest.start()


def test_no_descriptor_or_thread_is_left(config: GuestConfig) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with Guest(config):
        pass
    before = descriptors()
    for _ in range(3):
        with Guest(config) as guest:
            guest.check("true")
    assert descriptors() == before


def test_qemu_dies_with_us_even_when_we_are_killed(fake_program: Path) -> None:
    program = textwrap.dedent("""
        import sys, time, threading
        from vhost_scsi.qemu import Accel, Guest, GuestConfig, Qemu
        guest = Guest(GuestConfig(Qemu((sys.argv[1],), (10, 0, 2)), Accel("tcg", "max")))
        starter = threading.Thread(target=guest.start)   # a thread that ends long before QEMU does
        starter.start(); starter.join(); time.sleep(0.3)
        assert guest.running
        print(guest.pid, flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", program, str(fake_program)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        owner.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline, "QEMU outlived its owner"
        time.sleep(0.02)
