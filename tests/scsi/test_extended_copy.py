# SPDX-License-Identifier: Apache-2.0
"""EXTENDED COPY: what is copied, from where a unit is found, and what is refused; RECEIVE COPY RESULTS."""

from uuid import UUID

import pytest

from tests.scsi.conftest import FakeMedium, RecordingGate
from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.logical_unit import LogicalUnit, LuDefinition
from vhost_scsi.scsi.task import Aborted
from vhost_scsi.scsi.vpd import logical_unit_designators

COPY = "EXTENDED COPY(LID1)"
STATUS = "RECEIVE COPY RESULTS, COPY STATUS"
BLOCKS = 100


@pytest.fixture
def small(make_lu):
    lu = make_lu(num_blocks=BLOCKS)
    lu.medium.content = {lba: bytes([lba + 1]) * 512 for lba in range(50)}
    return lu


def target(unit, which=0, block_size=512, **changed):
    code_set, kind, value = logical_unit_designators(unit)[which]
    value = changed.get("value", value)
    head = bytes([changed.get("code", 0xE4), 0, 0, 0, code_set, changed.get("association", 0) | kind, 0, len(value)])
    return head + value.ljust(20, b"\0") + bytes([0]) + block_size.to_bytes(3)


def segment(source, destination, count, *, indexes=(0, 0), code=2):
    head = bytes([code, 0, 0, 24]) + indexes[0].to_bytes(2) + indexes[1].to_bytes(2)
    return head + bytes(2) + count.to_bytes(2) + source.to_bytes(8) + destination.to_bytes(8)


def with_offset(source, destination, size, *, offsets=(0, 0)):
    head = bytes([0x0A, 0, 0, 28]) + bytes(4) + size.to_bytes(4) + source.to_bytes(8) + destination.to_bytes(8)
    return head + offsets[0].to_bytes(2) + offsets[1].to_bytes(2)


def a_list(targets, segments, *, list_id=1, usage=0, inline=0):
    first, second = b"".join(targets), b"".join(segments)
    head = bytes([list_id, usage << 3]) + len(first).to_bytes(2) + bytes(4)
    return head + len(second).to_bytes(4) + inline.to_bytes(4) + first + second


def given(data):
    return {"parameter_list_length": len(data), "data_out": data}


def copied(rig, source, destination, count):
    return all(rig.medium.content[destination + i] == bytes([source + i + 1]) * 512 for i in range(count))


@pytest.mark.parametrize("which", [0, 1])
def test_blocks_are_copied_within_a_unit(small, ok, which):
    ok(small, COPY, **given(a_list([target(small.unit, which)], [segment(3, 60, 20), segment(0, 90, 5)])))
    assert copied(small, 3, 60, 20)
    assert copied(small, 0, 90, 5)


def test_bytes_are_copied_in_whole_blocks(small, ok, fails):
    ok(small, COPY, **given(a_list([target(small.unit)], [with_offset(1, 70, 10 * 512)])))
    assert copied(small, 1, 70, 10)
    wrong = a_list([target(small.unit)], [with_offset(1, 70, 512, offsets=(1, 0))])
    fails(small, COPY, sense.INVALID_FIELD_IN_PARAMETER_LIST, **given(wrong))
    wrong = a_list([target(small.unit)], [with_offset(1, 70, (1 << 30) + 512)])
    fails(small, COPY, sense.INVALID_FIELD_IN_PARAMETER_LIST, **given(wrong))


def other_unit(rig, **medium):
    return LogicalUnit(LuDefinition("other", UUID(int=9)), FakeMedium(**medium), RecordingGate())


def test_blocks_are_copied_to_another_unit_of_the_nexus(small, ok, fails):
    other = other_unit(small)
    copy = a_list([target(small.unit), target(other)], [segment(0, 7, 4, indexes=(0, 1))])
    told = fails(small, COPY, sense.COPY_TARGET_DEVICE_NOT_REACHABLE, **given(copy))
    assert sense_data.parse(told).command_specific is None  # segment 0
    other.attach(small.itl.nexus, RecordingGate())
    ok(small, COPY, **given(copy))
    assert [other.medium.content[7 + i][0] for i in range(4)] == [1, 2, 3, 4]


def test_a_unit_that_only_another_nexus_sees_cannot_be_named(small, fails):
    other = other_unit(small)
    other.attach(small.attach().nexus, RecordingGate())
    copy = a_list([target(small.unit), target(other)], [segment(0, 7, 4, indexes=(1, 0))])
    fails(small, COPY, sense.COPY_TARGET_DEVICE_NOT_REACHABLE, **given(copy))


def test_a_protected_or_stopped_unit_is_not_copied_to(small, ok, fails):
    other = other_unit(small, read_only=True)
    other.attach(small.itl.nexus, RecordingGate())
    copy = a_list([target(small.unit), target(other)], [segment(0, 7, 4, indexes=(0, 1))])
    fails(small, COPY, sense.THIRD_PARTY_DEVICE_FAILURE, **given(copy))
    other.medium.read_only = False
    other.readiness.set_stopped(True)
    fails(small, COPY, sense.THIRD_PARTY_DEVICE_FAILURE, **given(copy))


def test_units_with_other_blocks_are_not_copied_to(small, fails):
    other = other_unit(small, block_size=4096)
    other.attach(small.itl.nexus, RecordingGate())
    wrong = a_list([target(small.unit), target(other)], [segment(0, 7, 4, indexes=(0, 1))])
    fails(small, COPY, sense.INVALID_FIELD_IN_PARAMETER_LIST, **given(wrong))
    copy = a_list([target(small.unit), target(other, block_size=4096)], [segment(0, 7, 4, indexes=(0, 1))])
    fails(small, COPY, sense.COPY_ABORTED, **given(copy))


def test_segments_that_lie_outside_are_refused(small, fails):
    for wrong in (segment(0, BLOCKS - 1, 2), segment(BLOCKS - 1, 0, 2)):
        fails(small, COPY, sense.COPY_ABORTED, **given(a_list([target(small.unit)], [wrong])))
    wrong = a_list([target(small.unit)], [segment(0, 9, 2, indexes=(0, 1))])
    fails(small, COPY, sense.COPY_TARGET_DEVICE_NOT_REACHABLE, **given(wrong))


def test_a_bad_block_is_not_copied(small, fails):
    small.medium.bad.add(5)
    fails(small, COPY, sense.THIRD_PARTY_DEVICE_FAILURE, **given(a_list([target(small.unit)], [segment(0, 60, 9)])))


def test_overlapping_ranges_come_out_as_they_were(make_lu, ok):
    lu = make_lu(num_blocks=40000)
    lu.medium.content = {lba: lba.to_bytes(4) * 128 for lba in range(20000)}
    ok(lu, COPY, **given(a_list([target(lu.unit)], [segment(0, 5, 20000)])))
    assert all(lu.medium.content[5 + lba] == lba.to_bytes(4) * 128 for lba in range(0, 20000, 7))


def test_without_a_write_cache_a_copy_is_durable(make_lu, ok):
    lu = make_lu(num_blocks=BLOCKS, write_cache=False)
    ok(lu, COPY, **given(a_list([target(lu.unit)], [segment(0, 60, 1)])))
    assert lu.medium.log[-1] == "flush"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda unit: a_list([target(unit, code=0xE0)], []), sense.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE),
        (
            lambda unit: a_list([target(unit)], [segment(0, 1, 1, code=3)]),
            sense.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE,
        ),
        (lambda unit: a_list([target(unit)] * 17, [])[:-1], sense.PARAMETER_LIST_LENGTH_ERROR),
        (lambda unit: a_list([], [segment(0, 1, 1)] * 17), sense.TOO_MANY_SEGMENT_DESCRIPTORS),
        (lambda unit: a_list([target(unit)], [], inline=1), sense.INLINE_DATA_LENGTH_EXCEEDED),
        (lambda unit: a_list([target(unit)], [], usage=1), sense.INVALID_FIELD_IN_PARAMETER_LIST),
        (lambda unit: a_list([target(unit)], [], usage=3), sense.INVALID_FIELD_IN_PARAMETER_LIST),
        (lambda unit: a_list([target(unit, association=0x10)], []), sense.INVALID_FIELD_IN_PARAMETER_LIST),
        (lambda unit: a_list([target(unit, value=bytes(21))[:32]], []), sense.INVALID_FIELD_IN_PARAMETER_LIST),
        (lambda unit: a_list([target(unit)[:31]], []), sense.PARAMETER_LIST_LENGTH_ERROR),
        (lambda unit: a_list([target(unit)], [segment(0, 1, 1)[:27]]), sense.PARAMETER_LIST_LENGTH_ERROR),
        (lambda unit: bytes(15), sense.PARAMETER_LIST_LENGTH_ERROR),
    ],
)
def test_wrong_lists_are_refused(small, fails, change, code):
    small.medium.log.clear()
    fails(small, COPY, code, **given(change(small.unit)))
    assert not small.medium.log


def test_a_list_longer_than_the_bound_is_refused(small, fails):
    wrong = a_list([target(small.unit)] * 16, [segment(0, 1, 1)] * 24)
    fails(small, COPY, sense.PARAMETER_LIST_LENGTH_ERROR, **given(wrong))


def test_more_targets_than_the_limit(small, fails):
    wrong = a_list([target(small.unit)] * 17, [segment(0, 1, 1)])
    fails(small, COPY, sense.TOO_MANY_TARGET_DESCRIPTORS, **given(wrong))


def test_nothing_to_copy_is_no_error(small, ok):
    ok(small, COPY)
    ok(small, COPY, **given(a_list([target(small.unit)], [], list_id=0, usage=3)))
    assert not small.itl.copies


# ---- results ---------------------------------------------------------------------------------------------------------


def test_a_result_is_told_once(small, ok, fails):
    fails(small, STATUS, sense.INVALID_FIELD_IN_CDB, list_identifier=1, at=(2, 7))
    ok(small, COPY, **given(a_list([target(small.unit)], [segment(0, 60, 20)])))
    assert ok(small, STATUS, list_identifier=1) == bytes([0, 0, 0, 8, 0x81, 0, 1, 1, 0, 0, 0, 10])
    fails(small, STATUS, sense.INVALID_FIELD_IN_CDB, list_identifier=1, at=(2, 7))


def test_a_failed_copy_is_told_too(small, ok, fails):
    bad = a_list([target(small.unit)], [segment(0, 60, 20), segment(0, 99, 2)])
    told = fails(small, COPY, sense.COPY_ABORTED, **given(bad))
    assert sense_data.parse(told).command_specific == 1
    assert ok(small, "RECEIVE COPY RESULTS, FAILED SEGMENT DETAILS", list_identifier=1)[:4] == bytes([0, 0, 0, 56])
    assert ok(small, STATUS, list_identifier=1)[4:7] == bytes([0x82, 0, 1])


def test_a_copy_under_way_and_its_abort(small, ok, fails):
    small.medium.may_go.clear()
    copy = a_list([target(small.unit)], [segment(0, 60, 20)])
    outcomes = small.begin(small.task(COPY, **given(copy)))
    small.settle()
    assert ok(small, STATUS, list_identifier=1)[4] == 0x80
    fails(small, COPY, sense.INVALID_FIELD_IN_PARAMETER_LIST, at=(0, 7), **given(copy))
    name = "RECEIVE COPY RESULTS, FAILED SEGMENT DETAILS"
    fails(small, name, sense.INVALID_FIELD_IN_CDB, list_identifier=1, at=(2, 7))
    small.run(small.unit.abort_task_set(small.itl))
    assert outcomes == [Aborted()]
    assert not [entry for entry in small.medium.log if entry[0] == "write"]
    assert ok(small, STATUS, list_identifier=1)[4] == 0x82


def test_results_are_kept_for_so_many_copies(small, ok, fails):
    for list_id in range(20):
        ok(small, COPY, **given(a_list([target(small.unit)], [], list_id=list_id)))
    assert list(small.itl.copies) == list(range(4, 20))
    for copy in small.itl.copies.values():
        copy.status = 0
    fails(small, COPY, sense.SYSTEM_RESOURCE_FAILURE, **given(a_list([target(small.unit)], [], list_id=30)))


def test_operating_parameters_are_the_bounds(small, ok):
    data = ok(small, "RECEIVE COPY RESULTS, OPERATING PARAMETERS")
    assert int.from_bytes(data[:4]) == len(data) - 4
    assert data[4] == 1
    assert int.from_bytes(data[8:10]) == int.from_bytes(data[10:12]) == 16
    assert data[43:] == bytes([3, 0x02, 0x0A, 0xE4])
