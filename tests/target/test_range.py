# SPDX-License-Identifier: Apache-2.0
"""The last block and the one behind it, for every command that names blocks."""

from __future__ import annotations

import pytest

from tests.live import (
    Live,
    compare_and_write,
    read10,
    read16,
    unmap_blocks,
    verify10,
    write10,
    write16,
    write_same16,
)
from vhost_scsi.scsi import sense

BLOCKS = 2048
COMMANDS = {
    "READ(10)": lambda lba, n: (read10(lba, n), b"", 512 * n),
    "READ(16)": lambda lba, n: (read16(lba, n), b"", 512 * n),
    "WRITE(10)": lambda lba, n: (write10(lba, n), bytes(512 * n), 0),
    "WRITE(16)": lambda lba, n: (write16(lba, n), bytes(512 * n), 0),
    "VERIFY(10)": lambda lba, n: (verify10(lba, n), b"", 0),
    "WRITE SAME(16)": lambda lba, n: (write_same16(lba, n), bytes(512), 0),
    "COMPARE AND WRITE": lambda lba, n: (compare_and_write(lba, n), bytes(1024 * n), 0),
    "UNMAP": lambda lba, n: (*unmap_blocks((lba, n)), 0),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_blocks_behind_the_end_are_refused(live: Live, name: str) -> None:
    command = COMMANDS[name]
    with live.end((0, 0, live.unit("memory:1M"))).connect() as host:
        host.ready()
        host.ok(*command(BLOCKS - 1, 1))
        host.ok(*command(BLOCKS - 8, 8))
        for lba, n in ((BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS - 7, 8), (1 << 31, 1), ((1 << 32) - 1, 1)):
            found = host.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, *command(lba, n))
            # INFORMATION is the first block that is not there.
            assert found.information == max(lba, BLOCKS)
