# SPDX-License-Identifier: Apache-2.0
"""Headers: each field where the RFC has it, nothing lost on the way there and back, nothing but PduError for noise."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.iscsi.client import login_bhs
from vhost_scsi.iscsi import pdu
from vhost_scsi.iscsi.codes import LoginStatus, Opcode
from vhost_scsi.iscsi.pdu import PDUS, Ahs, PduError

CORPUS = Path(__file__).parents[1] / "corpus" / "iscsi_pdu"


def header(opcode: int, flags: int, **words: int) -> bytes:
    """A header with the given 32-bit words: w8=..., w20=..."""
    raw = bytearray(48)
    raw[0], raw[1] = opcode, flags
    for name, value in words.items():
        struct.pack_into(">I", raw, int(name[1:]), value)
    return bytes(raw)


@pytest.mark.parametrize("opcode", Opcode, ids=lambda opcode: opcode.name)
def test_every_opcode_has_a_header_of_48_bytes(opcode: Opcode) -> None:
    assert len(PDUS[opcode]().to_bytes()) == 48
    assert PDUS[opcode]().to_bytes()[0] == opcode


@pytest.mark.parametrize("opcode", Opcode, ids=lambda opcode: opcode.name)
def test_every_field_survives_with_all_its_bits_and_touches_no_other(opcode: Opcode) -> None:
    cls = PDUS[opcode]
    cleared = {each.name: type(each.default)() for each in dataclasses.fields(cls) if each.type != "bytes"}
    for each in dataclasses.fields(cls):
        if each.type == "bytes":
            continue
        full = True if each.type == "bool" else (1 << each.metadata["width"]) - 1
        made = cls(**{**cleared, each.name: full})
        assert cls.from_bytes(made.to_bytes()) == made
        ones = sum(byte.bit_count() for byte in made.to_bytes()) - int(opcode).bit_count()
        assert ones == each.metadata["width"]


def test_a_login_request_written_by_hand_reads_as_meant() -> None:
    raw = login_bhs(
        300, transit=True, csg=1, nsg=3, version_max=2, version_min=1, isid=b"\x01\x02\x03\x04\x05\x06",
        tsih=0x1234, itt=0x55667788, cid=0x99AA, cmd_sn=0xBBCCDDEE, exp_stat_sn=0x0F0E0D0C,
    )  # fmt: skip
    parsed = pdu.parse(raw)
    assert parsed == pdu.LoginRequest(
        immediate=True, data_segment_length=300, transit=True, current_stage=1, next_stage=3, version_max=2,
        version_min=1, isid=0x010203040506, tsih=0x1234, initiator_task_tag=0x55667788, cid=0x99AA,
        cmd_sn=0xBBCCDDEE, exp_stat_sn=0x0F0E0D0C,
    )  # fmt: skip
    assert parsed.to_bytes() == raw


# Places checked against the RFC's pictures by hand, not against our own table.
@pytest.mark.parametrize(
    ("raw", "name", "value"),
    [
        (header(0x01, 0xE3, w20=4096), "attribute", 3),
        (header(0x01, 0x40), "read", True),
        (header(0x01, 0x20), "write", True),
        (header(0x01, 0x80, w20=4096), "expected_data_transfer_length", 4096),
        (header(0x02, 0x86), "function", 6),
        (header(0x02, 0x81, w32=7), "ref_cmd_sn", 7),
        (header(0x05, 0x80, w36=3), "data_sn", 3),
        (header(0x05, 0x80, w40=512), "buffer_offset", 512),
        (header(0x06, 0x82), "reason", 2),
        (header(0x06, 0x80, w20=0x00070000), "cid", 7),
        (header(0x10, 0x83), "type", 3),
        (header(0x10, 0x80, w40=5), "beg_run", 5),
        (header(0x10, 0x80, w44=6), "run_length", 6),
        (header(0x21, 0x84, w44=9), "residual_count", 9),
        (header(0x21, 0x84), "overflow", True),
        (header(0x21, 0x82), "underflow", True),
        (header(0x21, 0x90), "bidirectional_overflow", True),
        (header(0x21, 0x80, w36=2), "exp_data_sn", 2),
        (header(0x23, 0x87, w36=0x020B0000), "status_detail", 0x0B),
        (header(0x23, 0x87, w36=0x02000000), "status_class", 2),
        (header(0x25, 0x81), "has_status", True),
        (header(0x25, 0xC0), "acknowledge", True),
        (header(0x26, 0x80, w40=0x00030004), "time2wait", 3),
        (header(0x26, 0x80, w40=0x00030004), "time2retain", 4),
        (header(0x31, 0x80, w36=1), "r2t_sn", 1),
        (header(0x31, 0x80, w44=8192), "desired_data_transfer_length", 8192),
        (header(0x32, 0x80, w36=0x01000000), "event", 1),
        (header(0x32, 0x80, w40=0x00010002), "parameter3", 2),
        (header(0x32, 0x80, w36=0x00000005), "parameter1", 5),
        (header(0x3F, 0x80, w36=5), "data_sn", 5),
    ],
)
def test_fields_stand_where_the_rfc_draws_them(raw: bytes, name: str, value: int) -> None:
    assert getattr(pdu.parse(raw), name) == value


def test_reserved_bits_are_ignored_and_not_repeated() -> None:
    raw = bytearray(login_bhs(0))
    raw[22:24] = b"\xff\xff"
    raw[32:48] = b"\xff" * 16
    assert pdu.parse(bytes(raw)).to_bytes() == login_bhs(0)


def test_an_opcode_of_nobody_is_refused() -> None:
    with pytest.raises(PduError, match="0x1f"):
        pdu.parse(bytes([0x1F]) + bytes(47))


def test_a_header_of_another_opcode_is_refused() -> None:
    with pytest.raises(PduError, match="LOGIN_REQUEST"):
        pdu.LoginRequest.from_bytes(bytes(48))


@pytest.mark.parametrize("length", [0, 47, 49])
def test_a_header_has_48_bytes(length: int) -> None:
    with pytest.raises(PduError):
        pdu.parse(bytes(length))
    with pytest.raises(PduError):
        pdu.NopOut.from_bytes(bytes(length))


def test_sizes_are_read_from_any_header() -> None:
    raw = login_bhs(0x010203, ahs_words=3)
    assert pdu.sizes(raw) == pdu.SegmentSizes(12, 0x010203, 1)


@given(st.binary(min_size=48, max_size=48))
def test_noise_is_parsed_or_refused_and_built_again(raw: bytes) -> None:
    replay_header(raw)


def replay_header(raw: bytes) -> None:
    try:
        parsed = pdu.parse(raw)
    except PduError:
        return
    assert type(parsed).from_bytes(parsed.to_bytes()) == parsed


@given(st.binary(max_size=1020))
def test_noise_of_additional_headers_is_parsed_or_refused(raw: bytes) -> None:
    replay_ahs(raw)


def replay_ahs(raw: bytes) -> None:
    try:
        segments = pdu.parse_ahs(raw)
    except PduError:
        return
    assert sum(len(each.specific) for each in segments) <= len(raw)
    assert pdu.parse_ahs(pdu.build_ahs(segments)) == segments


@pytest.mark.parametrize("seed", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_the_corpus(seed: Path) -> None:
    raw = seed.read_bytes()
    replay_header(raw[:48])
    replay_ahs(raw[48:])


def test_an_extended_cdb_is_joined() -> None:
    command = pdu.ScsiCommand(cdb=bytes(range(16)))
    raw = pdu.build_ahs([Ahs(1, b"\0" + bytes(range(16, 32))), Ahs(2, b"\0\0\0\x10\0")])
    assert len(raw) % 4 == 0
    assert pdu.full_cdb(command, pdu.parse_ahs(raw)) == bytes(range(32))


@pytest.mark.parametrize("segments", [[Ahs(1, b"\0")], [Ahs(1, b"\0abc"), Ahs(1, b"\0abc")]])
def test_an_empty_or_a_second_extended_cdb_is_refused(segments: list[Ahs]) -> None:
    with pytest.raises(PduError):
        pdu.full_cdb(pdu.ScsiCommand(), segments)


@pytest.mark.parametrize("raw", [b"\0", b"\0\x05\x01", b"\0\x00\x01\0", b"\0\x06\x01\0\0\0\0\0", b"\xff\xff\x01\0"])
def test_additional_headers_that_do_not_fit_are_refused(raw: bytes) -> None:
    with pytest.raises(PduError):
        pdu.parse_ahs(raw)


def test_login_statuses_are_told_apart() -> None:
    assert len({status.code for status in LoginStatus}) == len(LoginStatus) == 18
