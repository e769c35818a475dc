# SPDX-License-Identifier: Apache-2.0
"""Parameter lists through real rings, of commands that do not call their length PARAMETER LIST LENGTH."""

from __future__ import annotations

import pytest

from tests.live import Live, read10
from tests.scsi.conftest import cdb_of
from vhost_scsi.scsi import sense

BLOCK = 512
PATTERN = b"\xa5\x5a" * 32
IMMED = 0x02


def initialization(pattern: bytes) -> bytes:
    """SBC-4 5.4.2: short header with FOV and IP, then the pattern."""
    return bytes([0, 0x88, 0, 0]) + bytes([0, 1]) + len(pattern).to_bytes(2) + pattern


def test_the_list_of_format_unit_says_its_own_length(live: Live) -> None:
    with live.end((0, 0, live.unit("memory:64K"))).connect() as host:
        host.ready()
        format_unit = cdb_of("FORMAT UNIT", fmtdata=1)
        host.ok(format_unit, initialization(PATTERN))
        assert host.ok(read10(127, 1), in_len=BLOCK) == PATTERN * (BLOCK // len(PATTERN))
        # The list that sg_format sends; and without one the header is missing.
        host.ok(cdb_of("FORMAT UNIT", fmtdata=1, cmplst=1), bytes(4))
        assert host.ok(read10(127, 1), in_len=BLOCK) == bytes(BLOCK)
        host.fails(sense.PARAMETER_LIST_LENGTH_ERROR, format_unit, bytes(3))
        host.fails(sense.PARAMETER_LIST_LENGTH_ERROR, format_unit)


def test_format_unit_may_answer_at_once(live: Live) -> None:
    with live.end((0, 0, live.unit("memory:64K", overwrite_rate=1 << 30))).connect() as host:
        host.ready()
        host.ok(cdb_of("FORMAT UNIT", fmtdata=1), bytes([0, IMMED, 0, 0]))
        live.wait_for(lambda: host.command(bytes(6)).status == 0, "the end of the format")


@pytest.mark.parametrize("name", ["WRITE LONG(10)", "WRITE LONG(16)"])
def test_write_long_brings_a_block(live: Live, name: str) -> None:
    data = bytes(range(256)) * 2
    with live.end((0, 0, live.unit("memory:64K"))).connect() as host:
        host.ready()
        host.ok(cdb_of(name, lba=7, byte_transfer_length=BLOCK), data)
        assert host.ok(read10(7, 1), in_len=BLOCK) == data
        host.ok(cdb_of(name, lba=7, wr_uncor=1))
        host.fails(sense.READ_ERROR_LBA_MARKED_BAD_BY_APPLICATION_CLIENT, read10(7, 1), in_len=BLOCK)
        host.ok(cdb_of(name, lba=7, byte_transfer_length=BLOCK), data)
        assert host.ok(read10(7, 1), in_len=BLOCK) == data, "what is written is good again"
        assert host.ok(cdb_of("READ LONG(10)", lba=8, byte_transfer_length=BLOCK), in_len=BLOCK) == bytes(BLOCK)
