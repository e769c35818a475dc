# SPDX-License-Identifier: Apache-2.0
"""Bytes of virtio 1.3, 5.6: built as the standard draws them, and parsed back."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.virtqueue import virtio_scsi as wire
from vhost_scsi.virtqueue.virtio_scsi import LunAddress, LunFormat, WellKnownAddress, WireError, decode_lun


@pytest.mark.parametrize(
    ("address", "data"),
    [
        (LunAddress(0, 0), "0100400000000000"),
        (LunAddress(255, 16383), "01ff7fff00000000"),
        (LunAddress(3, 0x123), "0103412300000000"),
        (LunAddress(3, 5, LunFormat.PERIPHERAL), "0103000500000000"),
        (wire.REPORT_LUNS, "c101000000000000"),
        (WellKnownAddress(1, 7), "0107c10100000000"),
    ],
)
def test_lun_fields(address, data):
    assert address.encode().hex() == data
    assert decode_lun(bytes.fromhex(data)) == address


@pytest.mark.parametrize(
    "data",
    [
        "0000400000000000",  # first byte
        "0200400000000000",
        "c102000000000000",  # no such well-known LUN of the device
        "c101000000000001",
        "0100400000000001",  # a second level
        "0100010500000000",  # peripheral addressing with a bus
        "0100800500000000",  # logical unit addressing
        "0100d20000000000",  # extended flat space
        "01004000",
        "",
    ],
)
def test_lun_fields_that_are_not_served(data):
    with pytest.raises(WireError):
        decode_lun(bytes.fromhex(data))


@pytest.mark.parametrize(
    "address",
    [
        LunAddress(256, 0),
        LunAddress(-1, 0),
        LunAddress(0, 16384),
        LunAddress(0, 256, LunFormat.PERIPHERAL),
        WellKnownAddress(2),
        WellKnownAddress(256, 0),
        WellKnownAddress(1, 256),
    ],
)
def test_addresses_that_cannot_be_encoded(address):
    with pytest.raises(ValueError, match=r"cannot be addressed|flat space"):
        address.encode()


@given(st.binary(min_size=8, max_size=8))
def test_any_lun_field_is_an_address_or_a_wire_error(data):
    try:
        address = decode_lun(data)
    except WireError:
        return
    assert address.encode() == data


def test_a_request_header_is_51_bytes_by_default():
    header = wire.RequestHeader(b"\x01\x02\x40\x03\0\0\0\0", 0x1122334455667788, b"\x28\0", 1, 2, 3)
    expected = (
        b"\x01\x02\x40\x03\0\0\0\0" + struct.pack("<QBBB", 0x1122334455667788, 1, 2, 3) + b"\x28".ljust(32, b"\0")
    )
    assert header.build() == expected
    assert wire.request_header_bytes() == len(expected) == 51
    parsed = wire.RequestHeader.parse(expected + b"dataout")
    assert (parsed.tag, parsed.cdb, parsed.crn) == (0x1122334455667788, b"\x28".ljust(32, b"\0"), 3)


def test_other_cdb_sizes():
    header = wire.RequestHeader(bytes(8), 1, b"\x12" * 16)
    assert len(header.build(16)) == wire.request_header_bytes(16) == 35
    assert wire.RequestHeader.parse(header.build(16), 16) == header
    with pytest.raises(ValueError, match="does not fit"):
        header.build(8)


def test_a_response_header_is_108_bytes_by_default():
    expected = struct.pack("<IIHBB", 3, 7, 9, 2, 1) + b"abc".ljust(96, b"\0")
    response = wire.ResponseHeader(1, 2, b"abc", 7, 9)
    assert response.build() == expected
    assert wire.response_header_bytes() == len(expected) == 108
    assert wire.ResponseHeader.parse(expected + b"datain") == response


def test_other_sense_sizes():
    response = wire.ResponseHeader(sense=b"s" * 18)
    assert wire.ResponseHeader.parse(response.build(18), 18) == response
    with pytest.raises(ValueError, match="do not fit"):
        response.build(17)


def test_a_response_that_claims_more_sense_than_fits_is_refused():
    with pytest.raises(WireError, match="sense_len 97"):
        wire.ResponseHeader.parse(struct.pack("<IIHBB", 97, 0, 0, 0, 0) + bytes(96))


def test_task_management_functions():
    request = wire.TmfRequest(wire.TaskManagement.LOGICAL_UNIT_RESET, b"\x01\0\x40\0\0\0\0\0", 5)
    assert request.build() == struct.pack("<II8sQ", 0, 5, b"\x01\0\x40\0\0\0\0\0", 5)
    assert wire.TMF_BYTES == 24
    assert wire.TmfRequest.parse(request.build()) == request
    with pytest.raises(WireError):
        wire.TmfRequest.parse(struct.pack("<II8sQ", 1, 5, bytes(8), 5))


def test_notification_requests():
    request = wire.AnRequest(wire.ControlType.AN_SUBSCRIBE, bytes(8), wire.AsyncEvent.MEDIA_CHANGE)
    assert request.build() == struct.pack("<I8sI", 2, bytes(8), 16)
    assert wire.AnRequest.parse(request.build()) == request
    response = wire.AnResponse(16, 9)
    assert response.build() == struct.pack("<IB", 16, 9)
    assert wire.AnResponse.parse(response.build()) == response
    assert (wire.AN_BYTES, wire.AN_RESPONSE_BYTES) == (16, 5)


def test_events():
    event = wire.Event(wire.EventType.PARAM_CHANGE, b"\x01\0\x40\x02\0\0\0\0", 0x092A, missed=True)
    assert event.build() == struct.pack("<I8sI", 0x80000003, b"\x01\0\x40\x02\0\0\0\0", 0x092A)
    assert wire.EVENT_BYTES == 16
    assert wire.Event.parse(event.build()) == event
    assert event.sense_code == (0x2A, 0x09)
    assert not wire.Event.parse(bytes(16)).missed


def test_configuration():
    config = wire.Config(*range(1, 11))
    assert config.build() == struct.pack("<7I2HI", *range(1, 11))
    assert wire.CONFIG_BYTES == 36
    assert wire.Config.parse(config.build()) == config


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (wire.RequestHeader, 51),
        (wire.ResponseHeader, 108),
        (wire.TmfRequest, 24),
        (wire.AnRequest, 16),
        (wire.AnResponse, 5),
        (wire.Event, 16),
        (wire.Config, 36),
    ],
)
def test_short_bytes_are_a_wire_error(kind, size):
    kind.parse(bytes(size))
    with pytest.raises(WireError):
        kind.parse(bytes(size - 1))


@pytest.mark.parametrize("value", [wire.RequestHeader(bytes(8), -1, b""), wire.TmfRequest(1 << 32, bytes(8))])
def test_values_that_do_not_fit_are_refused(value):
    with pytest.raises(ValueError, match="cannot carry"):
        value.build()
