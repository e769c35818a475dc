# SPDX-License-Identifier: Apache-2.0
"""READ CAPACITY(10) and (16)."""

import pytest

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.medium import Capabilities


def test_read_capacity_10(make_lu, ok):
    assert ok(make_lu(num_blocks=1000, block_size=4096), "READ CAPACITY(10)").hex() == "000003e700001000"


@pytest.mark.parametrize(("blocks", "last"), [(0xFFFFFFFF, 0xFFFFFFFE), (1 << 32, 0xFFFFFFFF), (1 << 33, 0xFFFFFFFF)])
def test_read_capacity_10_of_a_large_medium(make_lu, ok, blocks, last):
    assert int.from_bytes(ok(make_lu(num_blocks=blocks), "READ CAPACITY(10)")[:4]) == last


def test_read_capacity_16(make_lu, ok):
    data = ok(make_lu(num_blocks=1 << 33), "READ CAPACITY(16)")
    assert data.hex() == "00000001ffffffff" + "00000200" + "0003c000" + "00" * 16


def test_read_capacity_16_of_a_fully_provisioned_medium(make_lu, ok):
    assert ok(make_lu(capabilities=Capabilities()), "READ CAPACITY(16)")[14] == 0


def test_read_capacity_16_ends_at_the_allocation_length(lu, ok):
    assert len(ok(lu, "READ CAPACITY(16)", allocation_length=12)) == 12


def test_a_resized_medium_shows_at_once(lu, ok):
    lu.medium.num_blocks = 77
    assert int.from_bytes(ok(lu, "READ CAPACITY(10)")[:4]) == 76


def test_pmi_is_refused(lu, fails):
    fails(lu, bytes.fromhex("25000000000000000100"), sense.INVALID_FIELD_IN_CDB, at=(8, 0))


@pytest.mark.parametrize("command", ["READ CAPACITY(10)", "READ CAPACITY(16)"])
def test_a_medium_without_blocks_is_not_ready(make_lu, fails, command):
    fails(make_lu(num_blocks=0), command, sense.LOGICAL_UNIT_NOT_READY_CAUSE_NOT_REPORTABLE)


def test_capacity_is_told_of_a_stopped_unit(lu, ok):
    ok(lu, "START STOP UNIT", start=0)
    ok(lu, "READ CAPACITY(10)")
