# SPDX-License-Identifier: Apache-2.0
"""CDBs in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.scsi.commands import COMMANDS
from vhost_scsi.scsi.decode import decode


@pytest.mark.parametrize(
    ("cdb", "words"),
    [
        ("28000000080000000800", "READ(10) lba 2048 blocks 8"),
        ("2a080000000000000100", "WRITE(10) lba 0 blocks 1 fua"),
        ("080000000000", "READ(6) lba 0 blocks 256"),
        ("08e1ffff0500", "READ(6) lba 131071 blocks 5"),
        ("88000000000100000000000000100000", "READ(16) lba 4294967296 blocks 16"),
        ("12018300ff00", "INQUIRY evpd page code 83h allocation length 255"),
        ("1a083f00c000", "MODE SENSE(6) dbd page code 3Fh allocation length 192"),
        ("000000000000", "TEST UNIT READY"),
        ("9e10" + "00" * 8 + "000000200000", "READ CAPACITY(16) allocation length 32"),
        ("c101", "operation code C1h (c1 01)"),
        ("c1", "operation code C1h"),
        ("", "empty CDB"),
        ("2800", "READ(10) (cut short: 2 of 10 bytes)"),
    ],
)
def test_in_words(cdb, words):
    assert decode(bytes.fromhex(cdb)) == words


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_every_row_decodes_to_its_name(row):
    assert decode(row.usage).startswith(row.name)


@given(st.binary(max_size=40))
def test_any_bytes_decode(cdb):
    assert decode(cdb)
