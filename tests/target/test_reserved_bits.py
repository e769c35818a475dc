# SPDX-License-Identifier: Apache-2.0
"""Each bit of each CDB that REPORT SUPPORTED OPERATION CODES does not name, sent through a real ring: whichever plane
has the command, the answer is INVALID FIELD IN CDB with a pointer to that bit.

The rows are those that the unit itself reports, and so is what each of them uses.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.live import Host, Live
from tests.scsi.conftest import ROWS, cdb_of
from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.command import VARIABLE_LENGTH, Command
from vhost_scsi.scsi.commands import find

AT_ONCE = 32  # commands
RSOC = "REPORT SUPPORTED OPERATION CODES"


def reported(host: Host) -> list[tuple[Command, bytes]]:
    """Every row that the unit lists, with the usage data that it tells of it."""
    data = host.ok(cdb_of(RSOC, allocation_length=8192), in_len=8192)
    found = []
    for at in range(4, 4 + int.from_bytes(data[:4]), 8):
        action = int.from_bytes(data[at + 2 : at + 4]) if data[at + 5] & 1 else None
        row = find(data[at], action)
        assert row is not None
        asked = cdb_of(
            RSOC,
            reporting_options=1 if action is None else 2,
            requested_operation_code=row.opcode,
            requested_service_action=action or 0,
            allocation_length=64,
        )
        answer = host.ok(asked, in_len=64)
        assert answer[1] == 3
        found.append((row, answer[4 : 4 + int.from_bytes(answer[2:4])]))
    return found


def spoilt(row: Command, usage: bytes) -> list[tuple[bytes, int, int]]:
    """The CDB with one bit too many, for each such bit; byte and bit of it."""
    base, found = cdb_of(row.name, **({"allocation_length": 0} if row.field("allocation_length") else {})), []
    wide = row.opcode == VARIABLE_LENGTH
    for byte in range(1, len(usage)):
        for bit in range(8):
            if usage[byte] >> bit & 1:
                continue
            if wide and byte in (8, 9):
                continue  # the service action: another command
            if not wide and byte == 1 and row.service_action is not None and bit < 5:
                continue
            wrong = bytearray(base)
            wrong[byte] |= 1 << bit
            found.append((bytes(wrong), byte, bit))
    return found


def test_every_bit_that_is_not_reported_is_refused(make_live: Callable[[str, int], Live]) -> None:
    live = make_live("auto", 1)
    sent = 0
    with live.end((0, 0, live.unit("memory:1M", cdb32=True, removable=True))).connect() as host:
        host.ready()
        rows = reported(host)
        assert {row.name for row, _ in rows} >= {"TEST UNIT READY", "READ(10)", "READ(32)", "FORMAT UNIT", "INQUIRY"}
        assert len(rows) > 80
        cases = [(row.name, *each) for row, usage in rows for each in spoilt(row, usage)]
        for start in range(0, len(cases), AT_ONCE):
            part = cases[start : start + AT_ONCE]
            for case, result in zip(part, host.drain([host.send(each[1]) for each in part]), strict=True):
                name, cdb, byte, bit = case
                assert result.status == 2, f"{name}: bit {bit} of byte {byte} is let through: {cdb.hex(' ')}"
                told = sense_data.parse(result.sense)
                assert told.code == sense.INVALID_FIELD_IN_CDB, f"{name}, {byte}.{bit}: {told.code.name}"
                assert told.field is not None
                where = (told.field.in_cdb, told.field.byte, told.field.bit)
                assert where == (True, byte, bit), f"{name}, {byte}.{bit}: {where}"
                sent += 1
    print(f"\n{sent} bits of {len(rows)} commands")
    assert sent > 2500


def test_who_is_not_strict_takes_them(make_live: Callable[[str, int], Live]) -> None:
    """Negative twin."""
    live = make_live("auto", 1)
    with live.end((0, 0, live.unit("memory:1M", strict=False))).connect() as host:
        host.ready()
        for name in ("TEST UNIT READY", "READ(10)", "REPORT TARGET PORT GROUPS"):
            base = cdb_of(name, **({"allocation_length": 64} if ROWS[name].field("allocation_length") else {}))
            _, byte, bit = spoilt(ROWS[name], ROWS[name].usage)[0]
            wrong = bytearray(base)
            wrong[byte] |= 1 << bit
            host.ok(bytes(wrong), in_len=64)
