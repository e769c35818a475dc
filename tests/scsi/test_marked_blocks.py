# SPDX-License-Identifier: Apache-2.0
"""Blocks marked as bad over a restart: a mark is there again, and never over a block that was written since."""

import asyncio
import struct

import pytest

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.marked_blocks import BLOB
from vhost_scsi.scsi.saved_state import NotKept, SavedStateDamaged, SavedStateError
from vhost_scsi.scsi.task import Aborted, Execute


class Kept(NotKept):
    """As a state directory, which may be full."""

    durable = True

    def __init__(self):
        super().__init__()
        self.full = False

    async def put(self, name, data):
        await asyncio.sleep(0)
        if self.full:
            raise SavedStateError("No space left on device")
        await super().put(name, data)

    @property
    def marks(self):
        blob = self.get(BLOB) or b""
        return list(struct.unpack(f">{len(blob) // 8}Q", blob))


@pytest.fixture
def saved():
    return Kept()


@pytest.fixture
def lu(make_lu, saved):
    return make_lu(saved=saved, wsnz=False)


@pytest.fixture
def mark(ok):
    def mark(lu, *lbas):
        for lba in lbas:
            ok(lu, "WRITE LONG(16)", wr_uncor=1, lba=lba)

    return mark


def write(lu, command="WRITE(10)", *, fails=False, **given):
    """Runs to its end in C; returns what was kept while it ran."""
    task = lu.task(command, **given)

    async def submitted():
        future = lu.loop.create_future()
        lu.unit.submit(task, future.set_result)
        return await future

    assert lu.run(submitted()) == Execute(notify=True)
    before = lu.unit.saved.marks
    end(lu, task, fails=fails)
    return before


def end(lu, task, *, fails=False):
    async def ended():
        if not fails:
            touched = lu.unit.marked._going[task]
            lu.medium.bad -= touched
        lu.unit.finished(task)

    lu.run(ended())
    lu.settle()


def test_a_mark_is_there_again(lu, mark, make_lu, saved):
    mark(lu, 9, 7)
    assert lu.gate.bits & GateBit.MARKED
    assert saved.marks == [7, 9]
    again = make_lu(saved=saved)
    assert again.medium.bad == {7, 9}
    assert again.gate.bits & GateBit.MARKED
    assert make_lu(saved=saved, num_blocks=9).medium.bad == {7}


UNMAP_7_8 = struct.pack(">HHI", 22, 16, 0) + struct.pack(">QII", 7, 2, 0)


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("WRITE(6)", {"lba": 7, "blocks": 1}),
        ("WRITE(10)", {"lba": 0, "blocks": 8}),
        ("WRITE(32)", {"lba": 7, "blocks": 2}),
        ("WRITE AND VERIFY(16)", {"lba": 6, "blocks": 2}),
        ("WRITE SAME(16)", {"lba": 7, "blocks": 1}),
        ("WRITE ATOMIC(16)", {"lba": 7, "blocks": 1}),
        ("UNMAP", {"parameter_list_length": 24, "data_out": UNMAP_7_8}),
    ],
)
def test_a_mark_is_not_kept_any_more_when_its_block_is_written(lu, mark, saved, command, given):
    mark(lu, 7, 9)
    assert write(lu, command, **given) == [9]
    assert saved.marks == [9]
    assert lu.gate.bits & GateBit.MARKED
    assert write(lu, "WRITE SAME(16)", lba=5) == []  # of no blocks: to the end
    assert not lu.gate.bits & GateBit.MARKED
    assert saved.get(BLOB) is None


@pytest.mark.parametrize(("lba", "blocks"), [(0, 7), (8, 1), (10, 5), (7, 0)])
def test_other_writes_run_as_ever(lu, mark, saved, executes, lba, blocks):
    mark(lu, 7, 9)
    assert not executes(lu, "WRITE(16)", lba=lba, blocks=blocks).notify
    assert saved.marks == [7, 9]


def test_a_write_that_failed_leaves_the_mark(lu, mark, saved):
    mark(lu, 7)
    assert write(lu, lba=7, blocks=1, fails=True) == []
    assert saved.marks == [7]
    assert lu.gate.bits & GateBit.MARKED


def test_two_writes_at_once(lu, mark, saved):
    """What one has not ended yet is not kept because another one has."""
    mark(lu, 7, 9)
    tasks = [lu.task("WRITE(10)", lba=lba, blocks=1) for lba in (7, 9)]
    outcomes = [lu.begin(task) for task in tasks]
    lu.settle()
    assert outcomes == [[Execute(notify=True)]] * 2
    assert saved.marks == []
    end(lu, tasks[0], fails=True)
    assert saved.marks == [7]
    end(lu, tasks[1])
    assert saved.marks == [7]


def test_a_write_that_is_aborted_before_it_ran(lu, mark, saved):
    mark(lu, 7)
    lu.gate.in_flight_ended.clear()
    outcome = lu.begin(lu.task("WRITE(10)", lba=7, blocks=1, tag=77))

    async def abort():
        aborting = asyncio.ensure_future(lu.unit.abort_task(lu.itl, 77))
        await asyncio.sleep(0)
        lu.gate.in_flight_ended.set()
        await aborting

    lu.run(abort())
    lu.settle()
    assert outcome == [Aborted()]
    assert saved.marks == [7]
    assert not lu.gate.bits & GateBit.HOLD


def test_what_cannot_be_kept_is_not_promised(lu, mark, saved, fails, ok):
    mark(lu, 7)
    saved.full = True
    fails(lu, "WRITE LONG(16)", sense.INTERNAL_TARGET_FAILURE, wr_uncor=1, lba=8)
    assert lu.medium.bad == {7}
    fails(lu, "WRITE(10)", sense.INTERNAL_TARGET_FAILURE, lba=7, blocks=1)
    assert saved.marks == [7]
    saved.full = False
    assert write(lu, lba=7, blocks=1) == []


def test_too_many_marks(lu, mark, fails, saved):
    mark(lu, 1, 2, 3, 4)
    fails(lu, "WRITE LONG(16)", sense.SYSTEM_RESOURCE_FAILURE, wr_uncor=1, lba=5)
    assert saved.marks == [1, 2, 3, 4]


def test_what_handlers_write_is_not_bad_any_more(lu, mark, ok, saved):
    mark(lu, 7, 9)
    ok(lu, "WRITE LONG(16)", lba=7, byte_transfer_length=512, data_out=b"x" * 512)
    assert lu.medium.bad == {9}
    assert saved.marks == [9]
    ok(lu, "FORMAT UNIT")
    assert saved.get(BLOB) is None
    assert not lu.gate.bits & GateBit.MARKED


def test_a_state_that_cannot_be_read_marks_nothing(make_lu, caplog):
    class Damaged(NotKept):
        def get(self, name):
            if name == BLOB:
                raise SavedStateDamaged("its checksum is wrong")
            return

    assert not make_lu(saved=Damaged()).medium.bad
    assert "which blocks are marked as bad cannot be read" in caplog.text


def test_without_a_place_marks_cost_writes_nothing(make_lu, mark, executes):
    lu = make_lu()
    mark(lu, 7)
    assert not lu.gate.bits & GateBit.MARKED
    assert not executes(lu, "WRITE(10)", lba=7, blocks=1).notify
