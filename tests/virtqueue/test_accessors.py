# SPDX-License-Identifier: Apache-2.0
"""CoreAccessors hands the right addresses to the C functions. The functions themselves are tested in C."""

import sys
import types

import cffi
import pytest

from vhost_scsi.virtqueue.accessors import CoreAccessors, core_accessors

ffi = cffi.FFI()


class RecordingLib:
    """Stands for the extension: same names, plain loads and stores."""

    def __init__(self):
        self.calls = []

    def vs_load_acquire_u16(self, pointer):
        self.calls.append("load")
        return ffi.cast("uint16_t *", pointer)[0]

    def vs_store_release_u16(self, pointer, value):
        self.calls.append("store")
        ffi.cast("uint16_t *", pointer)[0] = value

    def vs_mb(self):
        self.calls.append("mb")


@pytest.fixture
def lib():
    return RecordingLib()


def test_a_word_is_loaded_and_stored_where_it_stands(lib):
    buffer = bytearray(b"\x01\x00\x02\x00\x03\x00")
    word = CoreAccessors(ffi, lib).word(memoryview(buffer), 2)
    assert word.load() == 2
    word.store(0x1234)
    assert buffer == b"\x01\x00\x34\x12\x03\x00"
    assert lib.calls == ["load", "store"]


def test_stored_values_wrap_as_indices_do(lib):
    buffer = bytearray(2)
    word = CoreAccessors(ffi, lib).word(buffer, 0)
    word.store(-1)
    assert word.load() == 0xFFFF


def test_the_barrier_is_the_cores(lib):
    CoreAccessors(ffi, lib).full_barrier()
    assert lib.calls == ["mb"]


@pytest.mark.parametrize("offset", [-2, 5, 6])
def test_words_outside_the_buffer_are_refused(lib, offset):
    with pytest.raises(ValueError, match="no 16-bit word"):
        CoreAccessors(ffi, lib).word(bytearray(6), offset)


def test_a_word_that_is_not_aligned_is_refused(lib):
    with pytest.raises(ValueError, match="aligned"):
        CoreAccessors(ffi, lib).word(bytearray(6), 1)


def test_core_accessors_are_those_of_the_extension(lib, monkeypatch):
    import vhost_scsi

    module = types.SimpleNamespace(ffi=ffi, lib=lib)
    monkeypatch.setitem(sys.modules, "vhost_scsi._core", module)
    monkeypatch.setattr(vhost_scsi, "_core", module, raising=False)
    core_accessors().full_barrier()
    assert lib.calls == ["mb"]
