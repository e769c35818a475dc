# SPDX-License-Identifier: Apache-2.0
"""Feature bits by name, and what may be set without having been offered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.vhost_user.features import HARMLESS_UNOFFERED, LAYOUTS, Feature, feature_names, unserved


def test_names_come_lowest_first() -> None:
    assert feature_names(int(Feature.RING_PACKED | Feature.SCSI_T10_PI)) == ["SCSI_T10_PI", "RING_PACKED"]


def test_a_bit_without_a_name_has_its_number() -> None:
    assert feature_names(1 << 63) == ["BIT_63"]


@pytest.mark.parametrize(
    ("name", "bit"), [("VERSION_1", 32), ("RING_PACKED", 34), ("EVENT_IDX", 29), ("SCSI_CHANGE", 2), ("RING_RESET", 40)]
)
def test_bits_have_the_numbers_of_the_standard(name: str, bit: int) -> None:
    assert Feature[name] == 1 << bit


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_unserved_is_exactly_what_is_not_offered_nor_harmless_nor_modern(accepted: int, offered: int) -> None:
    for bit in range(64):
        allowed = offered >> bit & 1 or int(HARMLESS_UNOFFERED) >> bit & 1
        if not accepted & Feature.VERSION_1 and int(LAYOUTS) >> bit & 1:
            allowed = False
        assert (unserved(accepted, offered) >> bit & 1) == (1 if accepted >> bit & 1 and not allowed else 0)
