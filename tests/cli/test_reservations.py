# SPDX-License-Identifier: Apache-2.0
"""Reservations and port groups of a `serve` that is killed and started again: what an initiator was told holds."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.cli.conftest import Run, Serve
from tests.live import TEST_UNIT_READY, Host, read10
from tests.scsi.reserving import basic
from vhost_scsi.scsi import sense
from vhost_scsi.scsi.task import Status
from vhost_scsi.vhost_user.initiator import Initiator

READ_FULL_STATUS = bytes([0x5E, 3, 0, 0, 0, 0, 0, 1, 0, 0])


def out(action: int, kind: int = 0) -> bytes:
    return bytes([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0])


def connect(path: Path) -> Host:
    host = Host(Initiator(str(path), request_queues=1, timeout=20))
    host.ready()
    return host


def test_kill_9_loses_no_reservation(serve: Serve, disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "t"
    words = (
        *("--lu", f"disk={disk}", "--port", "one=" + str(tmp_path / "s"), "--port", f"two={other}"),
        *("--map", "one:0:0=disk", "--map", "two:0:0=disk"),
    )
    told = []
    for number in range(2):
        served = serve(*words, socket_path=False)
        with connect(tmp_path / "s") as one, connect(other) as two:
            if number == 0:
                one.ok(out(0), basic(0, 0xA))
                two.ok(out(0), basic(0, 0xB))
                one.ok(out(1, 3), basic(0xA))
            assert two.command(read10(0, 1), in_len=512).status == Status.RESERVATION_CONFLICT
            one.ok(read10(0, 1), in_len=512)
            told.append(two.ok(READ_FULL_STATUS, in_len=256))
            served.stop(signal.SIGKILL)
    assert told[0] == told[1]
    assert told[0][7] == 2 * 48


def test_a_port_says_who_its_initiator_is(serve: Serve, disk: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        f'[lu.disk]\nurl = "{disk}"\n[port.vm]\nsocket = "{tmp_path / "s"}"\ninitiator = "naa.3000000000abcdef"\n'
        '[map]\n"vm:0:0" = "disk"\n'
    )
    serve("--config", config, socket_path=False)
    with connect(tmp_path / "s") as host:
        host.ok(out(0), basic(0, 1))
        assert bytes.fromhex("3000000000abcdef") in host.ok(READ_FULL_STATUS, in_len=256)


def test_a_port_group_stands_by_until_it_is_told_otherwise(serve: Serve, run: Run, disk: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        f'[lu.disk]\nurl = "{disk}"\n[port.one]\nsocket = "{tmp_path / "s"}"\n'
        f'[port.two]\nsocket = "{tmp_path / "t"}"\nport_group = 2\n[map]\n"one:0:0" = "disk"\n"two:0:0" = "disk"\n'
    )
    served = serve("--config", config, socket_path=False)
    with connect(tmp_path / "s") as one, connect(tmp_path / "t") as two:
        shown = run("lun", "access", "disk", "2", "standby")
        assert shown.returncode == 0, shown.stderr
        assert [line.split() for line in shown.stdout.splitlines()[-2:]] == [
            ["1", "active-optimized", "1"],
            ["2", "standby", "2"],
        ]
        one.fails(sense.ASYMMETRIC_ACCESS_STATE_CHANGED, TEST_UNIT_READY)
        two.fails(sense.ASYMMETRIC_ACCESS_STATE_CHANGED, TEST_UNIT_READY)
        two.fails(sense.LOGICAL_UNIT_NOT_ACCESSIBLE_TARGET_PORT_IN_STANDBY_STATE, read10(0, 1), in_len=512)
        one.ok(read10(0, 1), in_len=512)
        served.stop(signal.SIGKILL)
    serve("--config", config, socket_path=False)
    assert "standby" in run("lun", "access", "disk", "--json").stdout
    for words, why in (
        (("disk", "3", "standby"), "no target port is in group 3"),
        (("disk", "2", "asleep"), "one of active-optimized"),
        (("other",), "no logical unit"),
        (("disk", "standby"), "NAME GROUP STATE"),
    ):
        refused = run("lun", "access", *words)
        assert refused.returncode != 0
        assert why in refused.stderr
        assert refused.stderr.count("\n") == 1
