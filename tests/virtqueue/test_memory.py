# SPDX-License-Identifier: Apache-2.0
"""Guest memory: translation is bounded, the allocator neither overlaps nor leaks, FileMemory survives truncation."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.virtqueue.memory import (
    AddressError,
    FileMemory,
    FileRegion,
    GuestMemory,
    OutOfGuestMemoryError,
    Region,
)

LOW = bytes(range(64))
HIGH = bytes(range(64, 128))


def two_regions(gap=0):
    return GuestMemory([Region.of(0x1040 + gap, bytearray(HIGH)), Region.of(0x1000, bytearray(LOW))])


def test_what_was_written_is_read_across_adjacent_regions():
    memory = two_regions()
    memory.write(0x1030, b"x" * 32)
    assert memory.read(0x1020, 0x40) == LOW[0x20:0x30] + b"x" * 32 + HIGH[0x10:0x20]


def test_translate_gives_the_bytes_themselves():
    memory = two_regions()
    memory.translate(0x1004, 2)[:] = b"ab"
    assert memory.read(0x1003, 4) == b"\x03ab\x06"


def test_translate_does_not_cross_regions_but_segments_do():
    memory = two_regions()
    with pytest.raises(AddressError):
        memory.translate(0x103F, 2)
    assert [bytes(piece) for piece in memory.segments(0x103F, 2)] == [LOW[-1:], HIGH[:1]]


@pytest.mark.parametrize(
    ("address", "length"), [(0xFFF, 1), (0x1080, 1), (0x107F, 2), (0, 0), (0x1080, 0), (0x1000, 1 << 40), (-1, 1)]
)
def test_ranges_outside_are_address_errors(address, length):
    memory = two_regions()
    for access in (memory.translate, memory.segments, memory.check, memory.read):
        with pytest.raises(AddressError) as caught:
            access(address, length)
        assert not caught.value.overflow


def test_a_gap_between_regions_is_not_crossed():
    with pytest.raises(AddressError):
        two_regions(gap=1).read(0x1030, 0x20)


@pytest.mark.parametrize(("address", "length"), [((1 << 64) - 1, 2), (0x1000, (1 << 64) - 1)])
def test_ranges_that_wrap_say_so(address, length):
    with pytest.raises(AddressError) as caught:
        two_regions().check(address, length)
    assert caught.value.overflow


def test_the_last_byte_of_the_address_space_can_be_memory():
    memory = GuestMemory([Region.of((1 << 64) - 16, bytearray(16))])
    assert memory.read((1 << 64) - 1, 1) == b"\0"


@pytest.mark.parametrize("second", [0x1000, 0x103F, 0xFC1])
def test_overlapping_regions_are_refused(second):
    with pytest.raises(ValueError, match="overlaps"):
        GuestMemory([Region.of(0x1000, LOW), Region.of(second, HIGH)])


def test_regions_without_bytes_or_past_the_end_are_refused():
    with pytest.raises(ValueError, match="no bytes"):
        GuestMemory([Region.of(0x1000, b"")])
    with pytest.raises(AddressError):
        GuestMemory([Region.of((1 << 64) - 8, LOW)])


def test_readonly_regions_are_read_and_never_allocated_from():
    memory = GuestMemory([Region.of(0x1000, LOW)])
    assert memory.read(0x1000, 4) == LOW[:4]
    with pytest.raises(TypeError):
        memory.write(0x1000, b"x")
    with pytest.raises(OutOfGuestMemoryError):
        memory.allocate(1)


def test_allocated_buffers_are_zeroed_and_aligned(memory):
    first = memory.allocate(100)
    first.view[:] = b"x" * 100
    memory.free(first)
    again = memory.allocate(100, 4096)
    assert again.address % 4096 == 0
    assert bytes(again.view) == bytes(100)


def test_freeing_twice_is_refused(memory):
    buffer = memory.allocate(32)
    memory.free(buffer)
    with pytest.raises(ValueError, match="free already"):
        memory.free(buffer)


def test_touching_regions_do_not_grow_together_in_the_allocator():
    memory = two_regions()
    buffers = [memory.allocate(64, 1), memory.allocate(64, 1)]
    for buffer in buffers:
        memory.free(buffer)
    with pytest.raises(OutOfGuestMemoryError):
        memory.allocate(65, 1)


@pytest.mark.parametrize(("length", "align"), [(0, 16), (-1, 16), (8, 0), (8, 3)])
def test_senseless_allocations_are_refused(memory, length, align):
    with pytest.raises(ValueError, match="cannot allocate"):
        memory.allocate(length, align)


@given(st.lists(st.tuples(st.integers(1, 400), st.sampled_from([1, 2, 16, 256]), st.integers(0, 20)), max_size=60))
def test_the_allocator_neither_overlaps_nor_leaks(steps):
    memory = GuestMemory([Region.of(0x1000, bytearray(2048)), Region.of(0x1800, bytearray(1024))])
    held = []
    for length, align, victim in steps:
        try:
            new = memory.allocate(length, align)
        except OutOfGuestMemoryError:
            if held:
                memory.free(held.pop(victim % len(held)))
            continue
        assert new.address % align == 0
        assert all(new.address + length <= b.address or b.address + b.length <= new.address for b in held)
        held.append(new)
        assert memory.free_bytes == 3072 - sum(b.length for b in held)
    for buffer in held:
        memory.free(buffer)
    assert memory.free_bytes == 3072
    assert memory.allocate(2048, 1).address == 0x1000


def test_file_memory_reads_the_same_bytes(memory):
    memory.write(0x2000, LOW)
    assert FileMemory.over(memory).read(0x2000, 64) == LOW


def test_file_memory_of_a_truncated_file_is_an_address_error(memory):
    seen = FileMemory.over(memory)
    seen.check(0x3000, 16)
    os.ftruncate(memory.regions[0].fd, 0x1000)
    with pytest.raises(AddressError):
        seen.read(0x3000, 16)


def test_file_memory_of_a_closed_file_is_an_address_error():
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(AddressError):
            FileMemory([FileRegion(0, 16, read_end)]).read(0, 16)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_closing_twice_closes_no_strangers_descriptor():
    memory = GuestMemory.create(4096)
    memory.close()
    stranger = os.memfd_create("stranger")
    memory.close()
    os.fstat(stranger)
    os.close(stranger)


def test_a_region_that_cannot_be_made_leaks_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="cannot mmap an empty file"):
        Region.create(0)
    assert len(os.listdir("/proc/self/fd")) == before
