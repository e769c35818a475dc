# SPDX-License-Identifier: Apache-2.0
"""The table of messages: complete, unambiguous, and laid out byte for byte as the specification draws it."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.vhost_user import messages
from vhost_scsi.vhost_user.messages import (
    BACKEND_MESSAGES,
    MAX_FDS,
    MAX_PAYLOAD,
    MESSAGES,
    BackendRequest,
    Config,
    DeviceStateTransfer,
    IndexedVringAddr,
    Inflight,
    Iotlb,
    LogArea,
    MemoryRegion,
    Payload,
    ProtocolFeature,
    Request,
    SharedMemoryMap,
    VringAddr,
    VringArea,
    VringState,
    protocol_feature_names,
    request_name,
)
from vhost_scsi.vhost_user.rules import Closes, ProtocolError, Rule

REGION = MemoryRegion(1, 2, 3, 4)
# name of the payload: value, and its bytes as struct spells them
LAYOUTS: list[tuple[str, Any, bytes]] = [
    ("EMPTY", None, b""),
    ("U64", 7, struct.pack("=Q", 7)),
    ("VRING_STATE", VringState(1, 2), struct.pack("=II", 1, 2)),
    ("VRING_ADDR", IndexedVringAddr(1, VringAddr(2, 3, 4, 5, 6)), struct.pack("=IIQQQQ", 1, 2, 3, 4, 5, 6)),
    ("MEMORY_TABLE", [REGION, REGION], struct.pack("=II", 2, 0) + 2 * struct.pack("=QQQQ", 1, 2, 3, 4)),
    ("SINGLE_REGION", REGION, struct.pack("=QQQQQ", 0, 1, 2, 3, 4)),
    ("LOG_AREA", LogArea(1, 2), struct.pack("=QQ", 1, 2)),
    ("IOTLB", Iotlb(1, 2, 3, 1, 2), struct.pack("=QQQBB6x", 1, 2, 3, 1, 2)),
    ("CONFIG", Config(1, 3, 1, b"abc"), struct.pack("=III", 1, 3, 1) + b"abc"),
    ("VRING_AREA", VringArea(1, 2, 3), struct.pack("=QQQ", 1, 2, 3)),
    ("INFLIGHT", Inflight(1, 2, 3, 4), struct.pack("=QQHH", 1, 2, 3, 4)),
    ("UUID", bytes(range(16)), bytes(range(16))),
    ("DEVICE_STATE", DeviceStateTransfer(1, 0), struct.pack("=II", 1, 0)),
    ("SHMEM_MAP", SharedMemoryMap(1, 2, 3, 4, 1), struct.pack("=B7xQQQQ", 1, 2, 3, 4, 1)),
    ("SHMEM_CONFIG", [1, 2], struct.pack("=IIQQ", 2, 0, 1, 2)),
    ("OPAQUE", b"anything", b"anything"),
]


def test_every_request_has_one_row() -> None:
    assert set(MESSAGES) == set(Request)
    assert set(BACKEND_MESSAGES) == set(BackendRequest)
    assert sorted(Request) == list(range(1, 45))
    assert sorted(BackendRequest) == list(range(1, 11))


def test_protocol_features_are_numbered_without_holes() -> None:
    assert [int(each) for each in ProtocolFeature] == [1 << number for number in range(23)]


@pytest.mark.parametrize(("name", "value", "data"), LAYOUTS, ids=[each[0] for each in LAYOUTS])
def test_a_payload_is_laid_out_as_specified(name: str, value: Any, data: bytes) -> None:
    payload: Payload[Any] = getattr(messages, name)
    assert payload.build(value) == data
    assert payload.parse(data) == value


def test_every_layout_is_in_the_list_above() -> None:
    declared = {name for name, value in vars(messages).items() if isinstance(value, Payload)}
    assert declared - {"RESULT"} == {each[0] for each in LAYOUTS}


def test_the_padded_inflight_description_is_read() -> None:
    assert messages.INFLIGHT.parse(struct.pack("=QQHH4x", 1, 2, 3, 4)) == Inflight(1, 2, 3, 4)


@pytest.mark.parametrize("row", [*MESSAGES.values(), *BACKEND_MESSAGES.values()], ids=lambda row: repr(row.request))
def test_every_row_stays_within_the_limits(row: Any) -> None:
    assert 0 <= row.min_fds <= row.max_fds <= MAX_FDS
    assert max(row.payload.sizes or {0}) <= MAX_PAYLOAD


@given(st.sampled_from(sorted(MESSAGES)), st.binary(max_size=400))
def test_no_bytes_raise_anything_but_the_payloads_own_rules(number: int, data: bytes) -> None:
    rule = None
    try:
        MESSAGES[number].payload.parse(data)
    except ProtocolError as error:
        rule = error.rule
    assert rule in (None, Rule.PAYLOAD_SIZE, Rule.REGION_COUNT)


def test_every_error_code_is_a_non_zero_byte() -> None:
    assert all(0 < rule < 256 for rule in Rule)


@pytest.mark.parametrize(
    ("rule", "closes"),
    [
        (Rule.VERSION, Closes.ALWAYS),
        (Rule.TRUNCATED_MESSAGE, Closes.ALWAYS),
        (Rule.QUEUE_INDEX, Closes.NEVER),
        (Rule.UNKNOWN_REQUEST, Closes.NEVER),
        (Rule.REGION_EMPTY, Closes.UNANSWERED),
    ],
)
def test_what_breaking_a_rule_costs(rule: Rule, closes: Closes) -> None:
    assert rule.closes is closes


def test_an_error_is_the_result_of_a_message_that_has_one() -> None:
    assert MESSAGES[Request.IOTLB_MSG].error_reply(Rule.FD_COUNT, False) == struct.pack("=Q", Rule.FD_COUNT)


def test_an_error_in_place_of_values_is_empty() -> None:
    assert MESSAGES[Request.GET_VRING_BASE].error_reply(Rule.QUEUE_INDEX, True) == b""


def test_an_error_without_a_place_for_it_is_silence() -> None:
    assert MESSAGES[Request.SET_OWNER].error_reply(Rule.FD_COUNT, False) is None


def test_requests_and_protocol_features_have_names() -> None:
    assert request_name(5) == "SET_MEM_TABLE"
    assert request_name(4711) == "request 4711"
    assert protocol_feature_names(1 | 1 << 40) == ["MQ", "BIT_40"]
