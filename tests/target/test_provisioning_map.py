# SPDX-License-Identifier: Apache-2.0
"""Thin provisioning against a model: after any sequence of writes and unmaps GET LBA STATUS tells of each block what a
map in Python says, log page 0Ch tells whether there is any, and what is not there reads as zeroes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.live import Host, Live, unmap_blocks, write_same16
from tests.scsi.conftest import cdb_of
from vhost_scsi.virtqueue.virtio_scsi import TaskManagement

BLOCK, BLOCKS = 512, 256
WORDS = {"memory": "memory:128K", "overlay": "overlay(block=2K):memory:128K"}
MAPPED, DEALLOCATED = 0, 1
RANGES = st.tuples(
    st.one_of(st.integers(0, BLOCKS - 1), st.sampled_from([0, 7, 8, 9, BLOCKS - 8, BLOCKS - 1])),
    st.one_of(st.integers(1, 24), st.sampled_from([8, 16, BLOCKS])),
).map(lambda found: (found[0], min(found[1], BLOCKS - found[0])))
BYTES = st.integers(1, 255)


class Model:
    """`there` are blocks that must be mapped, `touched` pieces of the store's granularity in which more may be."""

    def __init__(self, piece: int) -> None:
        self.piece = piece
        self.data = bytearray(BLOCK * BLOCKS)
        self.there: set[int] = set()
        self.touched: set[int] = set()

    def write(self, lba: int, blocks: int, byte: int) -> None:
        self.data[lba * BLOCK : (lba + blocks) * BLOCK] = bytes([byte]) * (blocks * BLOCK)
        if byte:
            self.there |= set(range(lba, lba + blocks))
        else:
            # Zeroes may be written, or the store may know that it has none.
            self.there -= set(range(lba, lba + blocks))
        self.touched |= {each // self.piece for each in range(lba, lba + blocks)}

    def unmap(self, lba: int, blocks: int) -> None:
        self.data[lba * BLOCK : (lba + blocks) * BLOCK] = bytes(blocks * BLOCK)
        gone = set(range(lba, lba + blocks))
        self.there -= gone
        for piece in {each // self.piece for each in gone}:
            if set(range(piece * self.piece, min((piece + 1) * self.piece, BLOCKS))) <= gone:
                self.touched.discard(piece)

    def may_be(self, block: int) -> set[int]:
        if block in self.there:
            return {MAPPED}
        return {MAPPED, DEALLOCATED} if block // self.piece in self.touched else {DEALLOCATED}


class Provisioning(RuleBasedStateMachine):
    """`host` and `piece` are given to a subclass."""

    host: Host
    piece: int
    steps: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(self.piece)

    @initialize(byte=BYTES)
    def begin(self, byte: int) -> None:
        """From an empty map; then a little of everything, so that every run has it."""
        self.unmap([(0, BLOCKS)])
        self.write((5, 20), byte)
        self.unmap([(7, 10)])
        for unmap in (False, True):
            self.write_same((30, 9), byte, False, unmap)
            self.write_same((32, 16), 0, not unmap, unmap)
        for same in (True, False):
            self.compare_and_write((20, 3), same, byte)
        self.reset()
        self.look(3, 24)

    @rule(where=RANGES, byte=BYTES)
    def write(self, where: tuple[int, int], byte: int) -> None:
        lba, blocks = where
        self.host.ok(cdb_of("WRITE(16)", lba=lba, blocks=blocks), bytes([byte]) * (blocks * BLOCK))
        self.model.write(lba, blocks, byte)
        self.steps["write"] += 1

    @rule(ranges=st.lists(RANGES, min_size=1, max_size=3))
    def unmap(self, ranges: list[tuple[int, int]]) -> None:
        cdb, data = unmap_blocks(*ranges)
        self.host.ok(cdb, data)
        for lba, blocks in ranges:
            self.model.unmap(lba, blocks)
        self.steps["unmap"] += 1

    @rule(where=RANGES, byte=st.one_of(st.just(0), BYTES), ndob=st.booleans(), unmap=st.booleans())
    def write_same(self, where: tuple[int, int], byte: int, ndob: bool, unmap: bool) -> None:
        lba, blocks = where
        byte = 0 if ndob else byte
        self.host.ok(write_same16(lba, blocks, unmap=unmap, ndob=ndob), b"" if ndob else bytes([byte]) * BLOCK)
        if unmap and not byte:
            self.model.unmap(lba, blocks)
        else:
            self.model.write(lba, blocks, byte)
        self.steps[f"write same{', unmap' if unmap else ''}{', zeroes' if not byte else ''}"] += 1

    @rule(where=RANGES, same=st.booleans(), byte=BYTES)
    def compare_and_write(self, where: tuple[int, int], same: bool, byte: int) -> None:
        lba, blocks = where[0], min(where[1], 4)
        stored = bytes(self.model.data[lba * BLOCK : (lba + blocks) * BLOCK])
        given = stored if same else bytes(each ^ 1 for each in stored)
        data = given + bytes([byte]) * (blocks * BLOCK)
        result = self.host.command(cdb_of("COMPARE AND WRITE", lba=lba, blocks=blocks), data)
        assert result.status == (0 if same else 2)
        if same:
            self.model.write(lba, blocks, byte)
        self.steps[f"compare and write{'' if same else ', miscompare'}"] += 1

    @rule()
    def reset(self) -> None:
        self.host.manage(TaskManagement.LOGICAL_UNIT_RESET)
        self.host.ready()
        self.steps["reset"] += 1

    @rule(lba=st.integers(0, BLOCKS - 1), length=st.integers(0, 64))
    def look(self, lba: int, length: int) -> None:
        """From anywhere, and as much of the answer as there is room for."""
        found = self.status(lba)
        cdb = cdb_of("GET LBA STATUS(16)", lba=lba, allocation_length=length)
        whole = self.host.ok(cdb_of("GET LBA STATUS(16)", lba=lba), in_len=8192)
        assert self.host.ok(cdb, in_len=length) == whole[:length]
        assert found == self.status(0)[lba:]
        self.steps["look"] += 1

    def status(self, lba: int) -> list[int]:
        """The state of each block from there to the end; descriptors are in order, without gaps, and merged."""
        data = self.host.ok(cdb_of("GET LBA STATUS(16)", lba=lba), in_len=8192)
        assert int.from_bytes(data[:4]) == len(data) - 4
        found: list[int] = []
        last = None
        for at in range(8, len(data), 16):
            start, blocks = int.from_bytes(data[at : at + 8]), int.from_bytes(data[at + 8 : at + 12])
            state = data[at + 12]
            assert (start, state != last, blocks > 0) == (lba + len(found), True, True)
            found += [state] * blocks
            last = state
        assert len(found) == BLOCKS - lba
        return found

    @invariant()
    def each_block_is_what_the_map_says(self) -> None:
        found = self.status(0)
        wrong = {block: state for block, state in enumerate(found) if state not in self.model.may_be(block)}
        assert not wrong
        page = self.host.ok(cdb_of("LOG SENSE", pc=1, page_code=0x0C, parameter_pointer=2), in_len=256)
        assert page[4:6] == bytes([0, 2]), "used LBA mapping resource count"
        # In threshold sets, which are larger than this disk.
        assert int.from_bytes(page[8:12]) in ({1} if self.model.there else {0, 1})

    @invariant()
    def data_are_the_same(self) -> None:
        assert self.host.ok(cdb_of("READ(16)", blocks=BLOCKS), in_len=BLOCK * BLOCKS) == self.model.data


CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much]


@contextmanager
def machine(live: Live, host: Host, steps: Counter[str]) -> Iterator[type[Provisioning]]:
    """Hypothesis keeps the class; the initiator, with its memory, must not be kept along."""
    piece = live.units["disk"].logical_unit.medium.unmap_granularity
    assert piece > 1, "a store whose pieces are single blocks leaves nothing open"
    made = type("Made", (Provisioning,), {"host": host, "piece": piece, "steps": steps})
    try:
        yield made
    finally:
        del made.host


def agree(live: Live, store: str, examples: int, length: int, capsys: pytest.CaptureFixture[str]) -> None:
    steps: Counter[str] = Counter()
    wanted = settings(max_examples=examples, stateful_step_count=length, deadline=None, suppress_health_check=CHECKS)
    with live.end((0, 0, live.unit(store))).connect() as host, machine(live, host, steps) as made:
        host.ready()
        run_state_machine_as_test(made, settings=wanted)
    with capsys.disabled():
        print("\nprovisioning map, steps: " + ", ".join(f"{name} {count}" for name, count in sorted(steps.items())))
    assert {"write", "unmap", "compare and write", "look", "reset"} <= steps.keys()


@pytest.fixture(params=["memory", "overlay", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param != "file":
        return WORDS[request.param]
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(BLOCK * BLOCKS)
    return str(path)


def test_any_sequence_leaves_the_map_that_the_model_has(
    make_live: Callable[[str, int], Live], store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    agree(make_live("auto", 1), store, 3, 10, capsys)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_any_sequence_leaves_the_map_that_the_model_has_for_long(
    make_live: Callable[[str, int], Live], store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    agree(make_live("auto", 2), store, 400, 60, capsys)


def test_a_map_that_is_wrong_is_noticed(make_live: Callable[[str, int], Live]) -> None:
    """Negative twin: a unit that says of unmapped blocks that they are there."""
    live = make_live("auto", 1)
    steps: Counter[str] = Counter()
    unit = live.unit(WORDS["memory"])
    with live.end((0, 0, unit)).connect() as host, machine(live, host, steps) as made:
        host.ready()
        true = made.status
        made.status = lambda self, lba: [MAPPED] * len(true(self, lba))  # type: ignore[method-assign]
        wanted = settings(max_examples=5, stateful_step_count=5, database=None, phases=[Phase.generate])
        with pytest.raises(AssertionError) as raised:
            run_state_machine_as_test(made, settings=wanted)
        raised.value.__traceback__ = None  # its frames know the initiator
