# SPDX-License-Identifier: Apache-2.0
"""What is told of commands and PDUs that were refused below: the words, and that they arrive, once each and bounded."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase as fnmatch
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.iscsi.client import NO_TAG, REJECT, TARGET, Client
from tests.iscsi.libiscsi import run_suite, tool
from tests.iscsi.scsi_host import command_pdu
from tests.iscsi.served import Served, served
from vhost_scsi.iscsi import Target, refused_words
from vhost_scsi.iscsi.full_feature import RefusedBelow
from vhost_scsi.iscsi.refusals import KEPT, KEPT_EACH, Refusal, RefusedLog
from vhost_scsi.scsi import lun, sense, sense_data
from vhost_scsi.scsi.sense import FieldPointer, Sense, SenseCode

CDB, OPCODE = sense.INVALID_FIELD_IN_CDB, sense.INVALID_COMMAND_OPERATION_CODE
LIST = sense.INVALID_FIELD_IN_PARAMETER_LIST


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path, "memory:1M", "memory:1M") as up:
        yield up


def refusals(target: Served) -> list[Refusal]:
    return target.live.run(target.node.refused.all)


def told(target: Served) -> list[tuple[int | None, str, int]]:
    return [(each.lun, each.asked, each.times) for each in refusals(target)]


# ---- words -----------------------------------------------------------------------------------------------------------


def words(code: SenseCode, cdb: str, byte: int | None = None, bit: int | None = 7, *, in_cdb: bool = True) -> str:
    field = None if byte is None else FieldPointer(in_cdb, byte, bit)
    both = {
        refused_words.command(bytes.fromhex(cdb), sense_data.build(Sense(code, field=field), descriptor=descriptor))
        for descriptor in (False, True)
    }
    [(asked, why)] = both
    return f"{asked}: {why}"


def test_each_kind_of_refusal_has_its_words() -> None:
    invalid = "(INVALID FIELD IN CDB, 24h/00h)"
    absent = "there is no such command (INVALID COMMAND OPERATION CODE, 20h/00h)"
    assert words(OPCODE, "c100") == f"operation code C1h: {absent}"
    assert words(CDB, "1201c8ff0000", 2) == f"INQUIRY, VPD page C8h: there is no such page {invalid}"
    assert words(CDB, "1201b000ff00", 2).startswith("INQUIRY, VPD page B0h (Block Limits): ")
    assert words(CDB, "120083002400", 2) == (
        f"INQUIRY, page code 83h without EVPD: standard data have no pages {invalid}"
    )
    assert words(CDB, "1a0021001800", 2, 5) == f"MODE SENSE(6), mode page 21h: there is no such page {invalid}"
    assert words(CDB, "5a000a01000000001800", 3).startswith("MODE SENSE(10), mode page 0Ah, subpage 01h: ")
    assert words(CDB, "4d007100000000002000", 2, 5) == f"LOG SENSE, log page 31h: there is no such page {invalid}"
    assert words(CDB, "a31f" + "00" * 10, 1, 4) == (
        f"MAINTENANCE IN (A3h), service action 1Fh: there is no such service action {invalid}"
    )
    assert words(CDB, "7f" + "00" * 8 + "aa" + "00" * 6, 8).startswith(
        "variable-length CDB (7Fh), service action AAh: "
    )
    assert words(CDB, "28020000000000000100", 1, 1) == f"READ(10): bit 1 of byte 1 of its CDB has to be zero {invalid}"
    assert words(CDB, "2a00", 2) == f"WRITE(10): its CDB ends after 2 of 10 bytes {invalid}"
    assert words(CDB, "28000000000000000100") == f"READ(10): its lengths do not fit together {invalid}"
    assert words(LIST, "151000000c00", 4, in_cdb=False) == (
        "MODE SELECT(6), parameter list: byte 4 of it has a value that is not supported "
        "(INVALID FIELD IN PARAMETER LIST, 26h/00h)"
    )
    assert words(CDB, "9e10" + "00" * 14, 1, 4).startswith("READ CAPACITY(16): the unit does not have this service")


def test_the_value_of_a_long_field_makes_no_refusal_of_its_own() -> None:
    """WRITE SAME(10) of so many blocks: each number would be another line."""
    assert words(CDB, "4100000000000000ff00", 7).startswith("WRITE SAME(10) with blocks: the value")
    assert words(CDB, "5f00fe00000000000018", 2, 3).startswith(
        "PERSISTENT RESERVE OUT, REGISTER with type 14: the value"
    )


def test_rejected_pdus_have_words() -> None:
    read = command_pdu(bytes.fromhex("28000000000000000100"), 1, 1)[:48]
    known = refused_words.tell(RefusedBelow(bhs=read, reject=9))
    assert (known.kind, known.asked) == ("pdu", "SCSI_COMMAND (READ(10))")
    assert known.why == "a field of it is wrong, such as a task tag that is in use (reject: invalid pdu field)"
    unknown = refused_words.tell(RefusedBelow(bhs=bytes([0x1C]) + bytes(47), reject=0xEE))
    assert (unknown.asked, unknown.why) == ("opcode 0x1c", "reject: reason EEh")
    assert refused_words.pdu_name(b"") == "a PDU"


@given(st.binary(max_size=32), st.binary(max_size=32), st.binary(min_size=8, max_size=8))
@example(b"", b"", lun.REPORT_LUNS)
@example(bytes.fromhex("7f"), sense_data.build(Sense(CDB, field=FieldPointer(True, 8, 7)), descriptor=False), bytes(8))
@example(
    bytes.fromhex("12ff"), sense_data.build(Sense(CDB, field=FieldPointer(True, 1, 1)), descriptor=True), b"\xff" * 8
)
def test_whatever_comes_has_words(cdb: bytes, raw: bytes, place: bytes) -> None:
    found = refused_words.tell(RefusedBelow(lun=place, cdb=cdb, sense=raw))
    assert found.asked.isprintable()
    assert found.why.isprintable()
    assert len(found.asked) + len(found.why) < 300


@given(st.binary(min_size=6, max_size=32), st.integers(0, 40), st.sampled_from([None, *range(8)]), st.booleans())
def test_every_field_has_words(cdb: bytes, byte: int, bit: int | None, in_cdb: bool) -> None:
    asked, why = refused_words.command(
        cdb, sense_data.build(Sense(CDB, field=FieldPointer(in_cdb, byte, bit)), descriptor=False)
    )
    assert asked.isprintable()
    assert "24h/00h" in why


# ---- the list --------------------------------------------------------------------------------------------------------


def test_one_initiator_that_asks_for_everything_leaves_others_their_places() -> None:
    log = RefusedLog(lambda: 1.0)
    log.add("192.0.2.9:1", "iqn.quiet", TARGET, "command", "INQUIRY, VPD page C8h", "no", lun=3)
    for number in range(KEPT * 2):
        log.add("192.0.2.1:1", "iqn.loud", TARGET, "command", f"operation code {number}", "no", lun=0)
    first, *loud = log.all()
    assert str(first) == f"iqn.quiet at 192.0.2.9:1 asked for INQUIRY, VPD page C8h of LUN 3 of {TARGET}: refused, no"
    assert [each.asked for each in loud] == [f"operation code {n}" for n in range(KEPT * 2 - KEPT_EACH, KEPT * 2)]
    log.add("192.0.2.1:7", "iqn.loud", TARGET, "command", f"operation code {KEPT * 2 - 1}", "no", lun=0, times=5)
    assert log.all()[-1].times == 6
    for number in range(KEPT):
        log.add("192.0.2.2:1", f"iqn.{number}", "", "login", "login", "no")
    assert len(log.all()) == KEPT
    assert {each.initiator for each in log.all()} == {f"iqn.{number}" for number in range(KEPT)}, "the oldest went"


# ---- over a real target ----------------------------------------------------------------------------------------------


def test_commands_refused_in_either_plane_are_told(target: Served) -> None:
    with target.connect() as host:
        host.ready(1)
        for _ in range(3):
            host.fails(CDB, bytes.fromhex("1201c8002400"), in_len=36)
        host.fails(OPCODE, bytes.fromhex("c1000000000000004000"), in_len=64, lun=1)
        host.fails(CDB, bytes.fromhex("1a0021001800"), in_len=24)
        host.fails(CDB, bytes.fromhex("4d007100000000002000"), in_len=32)
        host.fails(LIST, bytes.fromhex("151000001000"), bytes(4) + bytes.fromhex("0a0a") + b"\xff" * 10)
        host.fails(CDB, bytes.fromhex("2f060000000000000100"))  # C: VERIFY with BYTCHK 3 and no data
        host.fails(CDB, bytes.fromhex("28020000000000000100"), in_len=512)  # C: a reserved bit
        host.fails(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, bytes.fromhex("28007000000000000100"), in_len=512)
        host.fails(sense.LOGICAL_UNIT_NOT_SUPPORTED, bytes(6), lun=7)
    found = told(target)
    assert found == [
        (0, "INQUIRY, VPD page C8h", 3),
        (1, "operation code C1h", 1),
        (0, "MODE SENSE(6), mode page 21h", 1),
        (0, "LOG SENSE, log page 31h", 1),
        (0, "MODE SELECT(6), parameter list", 1),
        (0, "VERIFY(10)", 1),
        (0, "READ(10)", 1),
    ]
    assert {each.kind for each in refusals(target)} == {"command"}
    assert {each.target for each in refusals(target)} == {TARGET}


def test_a_rejected_pdu_is_told(target: Served) -> None:
    with target.connect() as host:
        both_ways = bytearray(command_pdu(bytes.fromhex("28000000000000000100"), 9, host.client.cmd_sn, in_len=512))
        both_ways[1] |= 0x60
        host.client.send(bytes(both_ways))
        assert host.client.receive().opcode == REJECT
        target.live.wait_for(lambda: bool(refusals(target)), "the refusal")
    [refusal] = refusals(target)
    assert (refusal.kind, refusal.asked) == ("pdu", "SCSI_COMMAND (READ(10))")
    assert "command not supported" in refusal.why


def test_a_flood_is_counted_and_nobody_is_held_up(target: Served) -> None:
    count = 2000
    with target.connect() as loud, target.connect(isid=b"\x80\0\0\0\0\7") as quiet:
        cdb = bytes.fromhex("28020000000000000100")
        for piece in range(0, count, 100):
            start = loud.client.cmd_sn
            loud.client.send(
                b"".join(command_pdu(cdb, 0x9000 + piece + n, (start + n) & NO_TAG, in_len=512) for n in range(100))
            )
            loud.client.cmd_sn = (start + 100) & NO_TAG
            for _ in range(100):
                assert loud.client.receive().bhs[3] == 2
        quiet.fails(CDB, bytes.fromhex("1201c8002400"), in_len=36)
        # What was not told before comes with the next.
        loud.fails(CDB, cdb, in_len=512)
        target.live.wait_for(lambda: sum(times for _, _, times in told(target)) == count + 2, "all of them")
    assert (0, "INQUIRY, VPD page C8h", 1) in told(target)
    assert {asked for _, asked, _ in told(target)} <= {
        "READ(10)",
        "INQUIRY, VPD page C8h",
        "commands faster than they could be told apart",
    }


def test_names_that_would_move_a_cursor_do_not(target: Served) -> None:
    with Client(target.address) as client:
        assert client.login(initiator="iqn.2001-04.example:\u202ehost").status != (0, 0)
    target.live.wait_for(lambda: bool(refusals(target)), "the refusal")
    [refusal] = refusals(target)
    assert "iqn.2001-04.example:?host" in str(refusal)
    assert str(refusal).isprintable()


def test_what_others_programs_ask_for_in_vain(tmp_path: Path) -> None:
    with Target("memory:64M") as target:
        assert tool("iscsi-inq", "-e", "1", "-c", "200", target.url).returncode != 0
        run_suite("SCSI.Read10", [target.url], tmp_path)
        lines = target.refused()
    for expected in (
        "iscsi-inq at 127.0.0.1:* asked for INQUIRY, VPD page C8h of LUN 0 of *: refused, there is no such page (*)",
        "iscsi-test at * asked for READ(10) *: refused, bit 7 of byte 1 of its CDB has to be zero (*)",
    ):
        assert any(fnmatch(line, f"*:{expected}") for line in lines), lines
