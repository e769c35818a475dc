# SPDX-License-Identifier: Apache-2.0
"""Thin provisioning thresholds: what is told when the room that is used or left reaches a count, and who has them."""

import asyncio

import pytest

from vhost_scsi.scsi import sense, thresholds
from vhost_scsi.scsi.medium import Capabilities, Support, Usage
from vhost_scsi.scsi.mode_pages import LOGICAL_BLOCK_PROVISIONING as PAGE
from vhost_scsi.scsi.mode_pages import READ_WRITE_ERROR_RECOVERY
from vhost_scsi.scsi.saved_state import NotKept

ONE = 2048
"""blocks of a threshold set"""
REACHED = sense.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(thresholds, "LOOK_EVERY", 0.001)


@pytest.fixture
def arm(ok):
    """MODE SELECT of a threshold, told (LBPERE) or not."""

    def arm(lu, *, lbpere=1, save=0, **values):
        pages = READ_WRITE_ERROR_RECOVERY.build({"lbpere": lbpere}) + PAGE.build({**PAGE.defaults, **values})
        data = bytes(4) + pages
        ok(lu, "MODE SELECT(6)", pf=1, sp=save, parameter_list_length=len(data), data_out=data)

    return arm


def waits_for(lu, itl, code):
    async def until():
        while code not in itl.attentions.pending():
            await asyncio.sleep(0.001)

    lu.loop.run_until_complete(asyncio.wait_for(until(), 15))
    assert itl.take() is code


def looks_in_vain(lu, *itls):
    """What is due is told by a look at the latest."""
    assert lu.unit.thresholds.look()
    assert not any(itl.attentions for itl in itls)


def test_the_page_has_one_threshold_of_each_resource(lu, ok):
    data = ok(lu, "MODE SENSE(6)", dbd=1, page_code=0x1C, subpage_code=2)[4:]
    assert data[:4] == bytes([0x80 | 0x40 | 0x1C, 2, 0, 28])
    assert data[4:16] == bytes(12)
    assert data[16:24] == bytes([0, 1, 0, 0, 0, 0, 0, 0])
    assert data[24:32] == bytes([1, 2, 0, 0, 0, 0, 0, 0])
    mask = ok(lu, "MODE SENSE(6)", dbd=1, page_code=0x1C, subpage_code=2, pc=1)[4:]
    assert mask[16:] == bytes([0x80, 0, 0, 0, 255, 255, 255, 255]) * 2


def test_used_room_is_told_to_everybody_once_and_again_after_it_was_left(lu, arm):
    other = lu.attach()
    other.take()
    arm(lu, used_enabled=1, used_count=10)
    assert other.take() is sense.MODE_PARAMETERS_CHANGED
    # The range is a threshold set wide, and the count its middle.
    lu.medium.used = Usage(10 * ONE - ONE // 2 - 1, ONE)
    looks_in_vain(lu, lu.itl, other)
    lu.medium.used = Usage(10 * ONE - ONE // 2, ONE)
    waits_for(lu, lu.itl, REACHED)
    assert other.take() is REACHED
    lu.medium.used = Usage(11 * ONE, 0)
    looks_in_vain(lu, lu.itl, other)
    lu.medium.used = Usage(ONE, ONE)
    looks_in_vain(lu, lu.itl, other)
    lu.medium.used = Usage(11 * ONE, 0)
    waits_for(lu, lu.itl, REACHED)


def test_room_that_is_left_falls_to_a_count(lu, arm):
    arm(lu, available_enabled=1, available_count=4)
    lu.medium.used = Usage(1 << 20, 4 * ONE + ONE // 2 + 1)
    looks_in_vain(lu, lu.itl)
    lu.medium.used = Usage(0, 4 * ONE + ONE // 2)
    waits_for(lu, lu.itl, REACHED)


def test_a_threshold_that_is_set_anew_is_told_anew(lu, arm):
    lu.medium.used = Usage(10 * ONE, ONE)
    arm(lu, used_enabled=1, used_count=10)
    waits_for(lu, lu.itl, REACHED)
    looks_in_vain(lu, lu.itl)
    arm(lu, used_enabled=1, used_count=9)
    waits_for(lu, lu.itl, REACHED)


@pytest.mark.parametrize("values", [{"lbpere": 0, "used_enabled": 1}, {"used_enabled": 0}])
def test_nothing_is_told_that_nobody_wants_told(lu, arm, values):
    lu.medium.used = Usage(10 * ONE, 0)
    arm(lu, used_count=1, **values)
    assert not lu.unit.thresholds.look()
    assert not lu.itl.attentions


def test_a_saved_threshold_holds_after_a_power_on(make_lu, arm):
    saved = NotKept()
    lu = make_lu(saved=saved)
    arm(lu, save=1, used_enabled=1, used_count=10)
    again = make_lu(saved=saved)
    again.medium.used = Usage(20 * ONE, ONE)

    async def attach():
        return again.attach()

    waits_for(again, again.run(attach()), sense.POWER_ON_OCCURRED)
    waits_for(again, again.itl, REACHED)


def test_the_counts_and_who_may_not_be_changed(lu, fails):
    for wrong, at in (({"situa": 1}, (4, 0)), ({"used_arming": 0}, (24, 0)), ({"available_resource": 2}, (17, 1))):
        data = bytes(4) + PAGE.build({**PAGE.defaults, **wrong})
        byte, bit = at
        fails(
            lu,
            "MODE SELECT(6)",
            sense.INVALID_FIELD_IN_PARAMETER_LIST,
            pf=1,
            parameter_list_length=len(data),
            data_out=data,
            at=(4 + byte, bit),
        )


@pytest.mark.parametrize(
    "medium", [{"used": None}, {"capabilities": Capabilities(Support.NONE, Support.NATIVE, Support.NATIVE)}]
)
def test_a_medium_that_cannot_tell_has_no_thresholds(make_lu, ok, fails, medium):
    lu = make_lu(**medium)
    fails(lu, "MODE SENSE(6)", sense.INVALID_FIELD_IN_CDB, page_code=0x1C, subpage_code=2, at=(3, 7))
    data = bytes(4) + PAGE.default
    given = {"pf": 1, "parameter_list_length": len(data), "data_out": data}
    fails(lu, "MODE SELECT(6)", sense.INVALID_FIELD_IN_PARAMETER_LIST, at=(4, 6), **given)
    assert PAGE.default not in ok(lu, "MODE SENSE(10)", dbd=1, page_code=0x3F, subpage_code=0xFF)
    assert ok(lu, "INQUIRY", evpd=1, page_code=0xB2)[4] == 0


@pytest.mark.parametrize(("block_size", "exponent"), [(512, 11), (4096, 8), (65536, 4), (1 << 20, 1)])
def test_a_threshold_set_is_a_mebibyte(make_lu, ok, block_size, exponent):
    assert ok(make_lu(block_size=block_size), "INQUIRY", evpd=1, page_code=0xB2)[4] == exponent
