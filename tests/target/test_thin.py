# SPDX-License-Identifier: Apache-2.0
"""Disks with less room than blocks, under real initiators: full is told as full, thresholds are told before, and what
the pages say of provisioning is what the store does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live import Live, inquiry, write10
from tests.target.full_disk import MIB, ROOM, arm, full, waits_for_the_threshold
from vhost_scsi.scsi import vpd

REPOSITORY = Path(__file__).parents[2]
READ_CAPACITY_16 = bytes([0x9E, 0x10]) + bytes(11) + bytes([32, 0, 0])
LOG_SENSE_0C = bytes([0x4D, 0, 0x40 | 0x0C, 0, 0, 0, 0, 0, 252, 0])


@pytest.mark.parametrize("store", ["memory:16M,limit=8M", "overlay(limit=8M):memory:16M"])
def test_a_limited_store_is_full(make_live: Callable[..., Live], store: str) -> None:
    live = make_live()
    with live.end((0, 0, live.unit(store))).connect() as host:
        host.ready()
        full(live, host)


def test_a_file_on_a_full_file_system(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.target.full_disk", str(tmp_path)]
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    done = subprocess.run([*namespace, *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_is_used_reaches_a_threshold(make_live: Callable[..., Live]) -> None:
    live = make_live()
    with live.end((0, 0, live.unit("memory:16M"))).connect() as host:
        host.ready()
        arm(host, used_enabled=1, used_count=2)
        host.ok(write10(0, MIB), b"x" * MIB * 512)
        available, used = "0001 03 08 0000000f 01000000", "0002 03 08 00000001 01000000"
        assert host.ok(LOG_SENSE_0C, in_len=252)[4:] == bytes.fromhex(available + used)
        host.ok(write10(MIB, MIB), b"x" * MIB * 512)
        waits_for_the_threshold(live, host)


@pytest.mark.parametrize(
    ("store", "thin", "zeroes", "counts"),
    [
        ("memory:8M", True, True, True),
        ("null:8M", True, True, True),
        ("overlay:{file}", True, True, True),
        ("{file}", True, True, True),
        ("{file},readonly=on", False, False, False),
        ("delay:memory:8M", True, True, True),
        ("faulty(op=read,lba=1):{file}", True, True, True),
    ],
)
def test_provisioning_is_told_as_it_is(
    make_live: Callable[..., Live], tmp_path: Path, store: str, thin: bool, zeroes: bool, counts: bool
) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(ROOM << 20))
    live = make_live()
    with live.end((0, 0, live.unit(store.format(file=tmp_path / "disk.img")))).connect() as host:
        host.ready()
        capacity = host.ok(READ_CAPACITY_16, in_len=32)
        assert capacity[14] >> 6 == thin << 1 | zeroes
        data = host.ok(inquiry(page=0xB2), in_len=96)
        page: Any = vpd.LOGICAL_BLOCK_PROVISIONING.parse(data[4:])
        assert (page.flags.lbpu, page.flags.lbprz, page.flags.anc_sup) == (thin, zeroes, False)
        assert page.provisioning_type == (vpd.THIN_PROVISIONED if thin else vpd.FULLY_PROVISIONED)
        assert bool(page.threshold_exponent) == counts
