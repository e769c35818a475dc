# SPDX-License-Identifier: Apache-2.0
"""LOG SENSE and LOG SELECT: the pages are well formed and say what was counted."""

import pytest

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.log_pages import PAGES
from vhost_scsi.scsi.medium import Capabilities, Counts, Usage

CUMULATIVE = 1


def log(ok, rig, code, subpage=0, **given):
    given.setdefault("pc", CUMULATIVE)
    data = ok(rig, "LOG SENSE", page_code=code, subpage_code=subpage, **given)
    assert data[0] == code | 0x80 | (0x40 if subpage else 0)
    assert data[1] == subpage
    assert int.from_bytes(data[2:4]) == len(data) - 4
    return data[4:]


def parameters(data):
    found = {}
    while data:
        end = 4 + data[3]
        found[int.from_bytes(data[:2])] = data[4:end]
        data = data[end:]
    assert list(found) == sorted(found)
    return found


def numbers(data):
    return {code: int.from_bytes(value) for code, value in parameters(data).items()}


def test_the_lists_name_exactly_the_pages_that_answer(lu, ok, fails):
    assert list(log(ok, lu, 0)) == [page.code for page in PAGES if not page.subpage]
    pairs = log(ok, lu, 0, 0xFF)
    assert list(zip(pairs[::2], pairs[1::2], strict=True)) == [(page.code, page.subpage) for page in PAGES]
    for page in PAGES:
        log(ok, lu, page.code, page.subpage)
    fails(lu, "LOG SENSE", sense.INVALID_FIELD_IN_CDB, pc=1, page_code=0x01, at=(2, 5))
    fails(lu, "LOG SENSE", sense.INVALID_FIELD_IN_CDB, pc=1, page_code=0x02, subpage_code=1, at=(3, 7))
    fails(lu, "LOG SENSE", sense.INVALID_FIELD_IN_CDB, pc=0, page_code=0x02, at=(2, 7))


@pytest.mark.parametrize(("code", "kind"), [(2, "write"), (3, "read"), (5, "verify")])
def test_error_counters(lu, ok, code, kind):
    lu.medium.counted = Counts(**{f"{kind}_bytes": 4096, f"{kind}_errors": 2})
    assert numbers(log(ok, lu, code)) == {3: 0, 5: 4096, 6: 2}
    assert numbers(log(ok, lu, code, pc=3)) == {3: 0, 5: 0, 6: 0}
    assert numbers(log(ok, lu, code, parameter_pointer=4)) == {5: 4096, 6: 2}


def test_a_pointer_beyond_the_last_parameter_is_refused(lu, fails):
    fails(lu, "LOG SENSE", sense.INVALID_FIELD_IN_CDB, pc=1, page_code=2, parameter_pointer=7, at=(5, 7))


def test_statistics_and_their_reset(lu, ok):
    other = lu.attach()
    other.take()
    times = {"read_ns": 7999, "write_ns": 12345678}
    lu.medium.counted = Counts(reads=3, writes=2, read_bytes=512 * 9, write_bytes=512 * 4, **times)
    assert parameters(log(ok, lu, 0x19))[1][32:] == b"".join(n.to_bytes(8) for n in (7, 12345, 0, 0))
    # An interval is 1 times 10 to the minus sixth of a second.
    assert parameters(log(ok, lu, 0x19))[3] == bytes([0, 0, 0, 6, 0, 0, 0, 1])

    def told():
        value = parameters(log(ok, lu, 0x19))[1]
        assert len(value) == 64
        return [int.from_bytes(value[at : at + 8]) for at in range(0, 32, 8)]

    assert told() == [3, 2, 4, 9]
    lu.unit.log_began -= 10
    found = parameters(log(ok, lu, 0x19))
    assert {code: len(value) for code, value in found.items()} == {1: 64, 2: 8, 3: 8}
    assert int.from_bytes(found[2]) >= 10_000_000 - 12_352, "what commands did not take of ten seconds"
    ok(lu, "LOG SELECT")
    ok(lu, "LOG SELECT", pcr=1, page_code=0x0E)
    assert told() == [3, 2, 4, 9]
    assert other.take() is None
    ok(lu, "LOG SELECT", pcr=1, page_code=0x19)
    assert told() == [0, 0, 0, 0]
    assert other.take() is sense.LOG_PARAMETERS_CHANGED
    lu.medium.counted = Counts(reads=4, writes=2, read_bytes=512 * 9, write_bytes=512 * 4, **times)
    assert told()[0] == 1
    ok(lu, "LOG SELECT", pcr=1, subpage_code=0xFF)
    assert told()[0] == 0


def test_no_parameter_can_be_set(lu, fails):
    fails(lu, "LOG SELECT", sense.INVALID_FIELD_IN_CDB, parameter_list_length=4, data_out=bytes(4), at=(7, 7))
    fails(lu, "LOG SELECT", sense.INVALID_FIELD_IN_CDB, pcr=1, page_code=1, at=(2, 5))


def test_provisioning_counts_in_threshold_sets(make_lu, ok, fails):
    lu = make_lu()
    own, everybodys = bytes([1, 0, 0, 0]), bytes([2, 0, 0, 0])
    lu.medium.used = Usage(2048 * 3 + 1, 2048 * 7 + 2047)
    assert parameters(log(ok, lu, 0x0C)) == {1: bytes([0, 0, 0, 7]) + own, 2: bytes([0, 0, 0, 4]) + own}
    lu.medium.used = Usage(0, 2048, shared=True)
    assert parameters(log(ok, lu, 0x0C)) == {1: bytes([0, 0, 0, 1]) + everybodys, 2: bytes([0, 0, 0, 0]) + own}
    for without in (make_lu(used=None), make_lu(capabilities=Capabilities())):
        fails(without, "LOG SENSE", sense.INVALID_FIELD_IN_CDB, pc=1, page_code=0x0C, at=(2, 5))
        assert 0x0C not in log(ok, without, 0)


def test_temperature_is_not_known(lu, ok):
    assert parameters(log(ok, lu, 0x0D)) == {0: b"\x00\xff", 1: b"\x00\xff"}


def test_stops_are_counted(lu, ok):
    for _ in range(2):
        ok(lu, "START STOP UNIT")
        ok(lu, "START STOP UNIT")
        ok(lu, "START STOP UNIT", start=1)
    assert numbers(log(ok, lu, 0x0E)) == {4: 2}


def test_self_test_results_are_newest_first(lu, ok, fails):
    ok(lu, "SEND DIAGNOSTIC", selftest=1)
    lu.medium.fails_with = sense.UNRECOVERED_READ_ERROR
    fails(lu, "SEND DIAGNOSTIC", sense.LOGICAL_UNIT_FAILED_SELF_TEST, self_test_code=6)
    found = parameters(log(ok, lu, 0x10))
    assert list(found) == list(range(1, 21))
    assert found[1][0] == 6 << 5 | 6
    assert found[1][4:15] == b"\xff" * 8 + bytes([3, 0x11, 0])
    assert found[2][0] == 5 << 5
    assert found[3] == bytes(16)


def test_nothing_scans_and_nothing_is_an_exception(lu, ok):
    assert parameters(log(ok, lu, 0x15))[0][4:] == bytes(8)
    assert parameters(log(ok, lu, 0x2F)) == {0: bytes([0, 0, 0xFF, 0])}
    assert numbers(log(ok, lu, 0x06)) == {0: 0}
