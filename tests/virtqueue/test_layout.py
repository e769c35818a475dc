# SPDX-License-Identifier: Apache-2.0
"""Sizes, offsets and views of the split ring are those of virtio 1.3, 2.7."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.virtqueue.layout import SplitLayout, is_queue_size, need_event

SIZES = [1 << n for n in range(16)]


@pytest.mark.parametrize("size", SIZES)
def test_parts_have_the_sizes_of_the_table_in_2_7(size):
    layout = SplitLayout(size)
    assert (layout.desc_bytes, layout.avail_bytes, layout.used_bytes) == (16 * size, 6 + 2 * size, 6 + 8 * size)
    assert layout.used_event_offset == layout.avail_bytes - 2
    assert layout.avail_event_offset == layout.used_bytes - 2


@pytest.mark.parametrize("size", [-8, 0, 3, 24, 32767, 32769, 65536])
def test_other_sizes_are_refused(size):
    assert not is_queue_size(size)
    with pytest.raises(ValueError, match="power of two"):
        SplitLayout(size)


@pytest.mark.parametrize("size", SIZES)
def test_placed_parts_are_aligned_and_do_not_overlap(size):
    layout = SplitLayout(size)
    at = layout.place(0x12340)
    assert at.desc % 16 == at.avail % 2 == at.used % 4 == 0
    assert at.desc + layout.desc_bytes <= at.avail
    assert at.avail + layout.avail_bytes <= at.used
    assert layout.total_bytes == at.used + layout.used_bytes - at.desc


def test_a_base_that_is_not_aligned_is_refused():
    with pytest.raises(ValueError, match="aligned"):
        SplitLayout(4).place(8)


def test_views_write_little_endian_fields_where_the_standard_puts_them():
    layout = SplitLayout(2)
    desc, avail, used = bytearray(layout.desc_bytes), bytearray(layout.avail_bytes), bytearray(layout.used_bytes)
    layout.desc_view(desc)[1] = (0x1122334455667788, 0x99AABBCC, 3, 5)
    view = layout.avail_view(avail)
    view["flags"], view["idx"], view["used_event"] = 1, 2, 0x0708
    view["ring"][1] = 0x0506
    view = layout.used_view(used)
    view["flags"], view["idx"], view["avail_event"] = 1, 2, 0x0708
    view["ring"][1] = (3, 4)
    assert desc[16:] == struct.pack("<QIHH", 0x1122334455667788, 0x99AABBCC, 3, 5)
    assert avail == struct.pack("<HHHHH", 1, 2, 0, 0x0506, 0x0708)
    assert used == struct.pack("<HHIIIIH", 1, 2, 0, 0, 3, 4, 0x0708)


def test_views_over_readonly_memory_cannot_be_written():
    view = SplitLayout(2).avail_view(bytes(10))
    with pytest.raises(ValueError, match="read-only"):
        view["idx"] = 1


@given(old=st.integers(0, 65535), count=st.integers(0, 300), event=st.integers(-400, 400))
def test_an_event_is_needed_when_its_index_was_passed(old, count, event):
    named = (old + event) % 65536
    passed = {(old + n) % 65536 for n in range(count)}
    assert need_event(named, (old + count) % 65536, old) == (named in passed)
