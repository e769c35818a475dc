# SPDX-License-Identifier: Apache-2.0
"""Sense data byte for byte, in both formats, and back."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.sense import FieldPointer, Sense

both = pytest.mark.parametrize("descriptor", [False, True], ids=["fixed", "descriptor"])


def test_fixed_format_byte_for_byte():
    data = sense_data.build(Sense(sense.INVALID_FIELD_IN_CDB, field=FieldPointer(True, 2, 5)), descriptor=False)
    assert data.hex() == "70000500000000" + "0a" + "00000000" + "2400" + "00" + "cd0002"


def test_fixed_format_with_information():
    data = sense_data.build(Sense(sense.UNRECOVERED_READ_ERROR, information=0x1234), descriptor=False)
    assert data.hex() == "f0000300001234" + "0a" + "00000000" + "1100" + "00" + "000000"


def test_fixed_format_leaves_out_information_of_more_than_32_bits():
    data = sense_data.build(Sense(sense.UNRECOVERED_READ_ERROR, information=1 << 32), descriptor=False)
    assert data[0] == 0x70
    assert sense_data.parse(data).information is None


@pytest.mark.parametrize(("blocks", "code"), [(1 << 20, 0x70), (1 << 40, 0x72)])
def test_a_unit_with_blocks_beyond_32_bits_tells_of_them_in_descriptors(make_lu, fails, blocks, code):
    lu = make_lu(num_blocks=blocks)
    told = fails(lu, "GET LBA STATUS(16)", sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, lba=1 << 41)
    assert told[0] == code


@both
def test_progress_ili_and_command_specific_information(descriptor):
    going = Sense(sense.LOGICAL_UNIT_NOT_READY_FORMAT_IN_PROGRESS, progress=0x1234)
    assert sense_data.parse(sense_data.build(going, descriptor=descriptor)) == going
    wrong = Sense(sense.INVALID_FIELD_IN_CDB, 8, FieldPointer(True, 7, 7), incorrect_length=True)
    assert sense_data.parse(sense_data.build(wrong, descriptor=descriptor)) == wrong
    copy = Sense(sense.COPY_TARGET_DEVICE_NOT_REACHABLE, command_specific=3)
    assert sense_data.parse(sense_data.build(copy, descriptor=descriptor)) == copy


def test_descriptor_format_byte_for_byte():
    error = Sense(sense.INVALID_FIELD_IN_PARAMETER_LIST, 1 << 40, FieldPointer(False, 300))
    data = sense_data.build(error, descriptor=True)
    assert data.hex() == "7205260000000014" + "000a80000000010000000000" + "02060000" + "80012c" + "00"


def test_descriptor_format_without_descriptors():
    assert sense_data.build(Sense(sense.WRITE_PROTECTED), descriptor=True).hex() == "7207270000000000"


@both
@given(
    code=st.sampled_from(sense.SENSE_CODES),
    information=st.none() | st.integers(0, 0xFFFFFFFF),
    pointer=st.none() | st.builds(FieldPointer, st.booleans(), st.integers(0, 0xFFFF), st.none() | st.integers(0, 7)),
)
def test_what_is_built_parses_back(descriptor, code, information, pointer):
    if code.key in (sense.SenseKey.NOT_READY, sense.SenseKey.NO_SENSE):
        pointer = None  # the same bytes are a progress there
    error = Sense(code, information, pointer)
    assert sense_data.parse(sense_data.build(error, descriptor=descriptor)) == error


@given(st.binary(max_size=64))
def test_any_bytes_parse_or_are_refused(data):
    with contextlib.suppress(ValueError):
        sense_data.parse(data)


def test_an_unknown_code_keeps_its_numbers():
    parsed = sense_data.parse(bytes.fromhex("7205ab0000000000"))
    assert (parsed.code.asc, parsed.code.text) == (0xAB, "")
