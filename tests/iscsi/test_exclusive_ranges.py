# SPDX-License-Identifier: Apache-2.0
"""COMPARE AND WRITE and ORWRITE from two workers and two transports at once, against plain writers and readers:
whatever was sent together, there is an order in which it ended as it did (exclusive_model.py).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.iscsi.exclusive_model import BLOCK, GOOD, Blocks, Kind, Operation, apart, in_some_order
from tests.iscsi.scsi_host import ScsiHost
from tests.iscsi.served import served
from tests.live import Host
from tests.scsi.conftest import cdb_of
from vhost_scsi.scsi import sense, sense_data

SIZE = 12  # blocks that they fight for
QUEUES, SESSIONS = 4, 3
SLOW = "delay(read=1ms,write=1ms):memory:1M"
STORES = [pytest.param("memory:1M", id="memory"), pytest.param(SLOW, id="delayed")]
NAMES = {
    Kind.WRITE: "WRITE(16)",
    Kind.READ: "READ(16)",
    Kind.COMPARE_AND_WRITE: "COMPARE AND WRITE",
    Kind.ORWRITE: "ORWRITE(16)",
}


def filled(blocks: Blocks) -> bytes:
    return b"".join(bytes([each]) * BLOCK for each in blocks)


def emptied(data: bytes) -> Blocks:
    """The value of each block; one that was torn has several."""
    pieces = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    torn = [number for number, piece in enumerate(pieces) if len(set(piece)) > 1]
    assert not torn, f"blocks {torn} are of more than one write"
    return tuple(piece[0] for piece in pieces)


@dataclass(frozen=True)
class Place:
    """Where a command goes in: a queue of the virtual machine, or a session. One command at a time each."""

    transport: str
    send: Callable[[bytes, bytes, int], int]
    wait: Callable[[int], Any]

    def submit(self, operation: Operation) -> int:
        data = {
            Kind.READ: b"",
            Kind.COMPARE_AND_WRITE: filled(operation.given + operation.new),
        }.get(operation.kind, filled(operation.new))
        cdb = cdb_of(NAMES[operation.kind], lba=operation.lba, blocks=len(operation.new))
        return self.send(cdb, data, BLOCK * len(operation.new) if operation.kind is Kind.READ else 0)

    def ended(self, operation: Operation, tag: int) -> object:
        """As Operation.run says it."""
        result = self.wait(tag)
        if result.status == 0:
            return emptied(result.data) if operation.kind is Kind.READ else GOOD
        told = sense_data.parse(result.sense)
        assert (result.status, told.code) == (2, sense.MISCOMPARE_DURING_VERIFY_OPERATION)
        assert told.information is not None
        assert told.information % BLOCK == 0
        return told.information // BLOCK


@contextmanager
def places(directory: Path, store: str) -> Iterator[list[Place]]:
    """Queues and sessions in turn; two workers have half of each."""
    with served(directory, store, workers=2) as node, ExitStack() as stack:
        end = node.live.end((0, 0, node.live.units["disk0"]), request_queues=QUEUES)
        vm = stack.enter_context(end.connect())
        vm.ready()
        made = [_queue(vm, number) for number in range(QUEUES)]
        for number in range(SESSIONS):
            isid = b"\x80\x12\x34\x56\x01" + bytes([number])
            made.append(_session(stack.enter_context(node.connect(isid=isid))))
        yield made


def _queue(vm: Host, number: int) -> Place:
    return Place("virtio", lambda cdb, data, length: vm.send(cdb, data, length, queue=number), vm.wait)


def _session(host: ScsiHost) -> Place:
    return Place("iSCSI", host.send, host.wait)


# ---- against the model ----------------------------------------------------------------------------------------------

VALUES = st.sampled_from([1, 2, 4, 8, 64, 255])


@st.composite
def operations(draw: st.DrawFn) -> tuple[Kind, int, int, int, int]:
    """Kind, first block, number, value, and which guess a comparison makes."""
    kind = draw(st.sampled_from([*Kind, Kind.COMPARE_AND_WRITE, Kind.COMPARE_AND_WRITE]))
    lba = draw(st.integers(0, SIZE - 1))
    return kind, lba, draw(st.integers(1, min(4, SIZE - lba))), draw(VALUES), draw(st.integers(0, 3))


class Fighting(RuleBasedStateMachine):
    """`places` and `steps` are given to a subclass."""

    places: list[Place]
    steps: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.state: Blocks = (0,) * SIZE

    @initialize()
    def begin(self) -> None:
        """Each way in once with nobody else about, so that every run has some of it."""
        self.alone(0, (Kind.WRITE, 0, SIZE, 0, 0))
        self.state = self.read()
        for index in range(len(self.places)):
            for guess in (0, 1):
                self.alone(index, (Kind.COMPARE_AND_WRITE, index, 2, 1 << index, guess))
            self.alone(index, (Kind.ORWRITE, index, 3, 128, 0))

    def read(self) -> Blocks:
        operation = Operation(Kind.READ, 0, (0,) * SIZE)
        found = self.places[0].ended(operation, self.places[0].submit(operation))
        assert isinstance(found, tuple)
        return found

    def operation(self, drawn: tuple[Kind, int, int, int, int], others: list[Operation]) -> Operation:
        """A comparison guesses what is there, what another command of the burst will have left, or something else."""
        kind, lba, blocks, value, guess = drawn
        new = (value,) * blocks
        if kind is not Kind.COMPARE_AND_WRITE:
            return Operation(kind, lba, new)
        here = self.state[lba : lba + blocks]
        if guess == 1:
            here = (*here[:-1], here[-1] ^ 1)
        elif guess > 1 and others:
            here = others[guess % len(others)].run(self.state)[1][lba : lba + blocks]
        return Operation(kind, lba, new, here)

    def carry_out(self, wanted: list[tuple[Place, Operation]]) -> None:
        before = self.state
        tags = [(place, operation, place.submit(operation)) for place, operation in wanted]
        history = [(operation, place.ended(operation, tag)) for place, operation, tag in tags]
        self.state = self.read()
        for (place, operation), (_, ended) in zip(wanted, history, strict=True):
            told = "MISCOMPARE" if isinstance(ended, int) else GOOD
            self.steps[f"{operation.kind.value} over {place.transport}: {told}"] += 1
        assert in_some_order(before, history, self.state), f"{before} -> {history} -> {self.state}"

    @rule(index=st.integers(0, QUEUES + SESSIONS - 1), drawn=operations())
    def alone(self, index: int, drawn: tuple[Kind, int, int, int, int]) -> None:
        self.carry_out([(self.places[index], self.operation(drawn, []))])

    @rule(order=st.permutations(range(QUEUES + SESSIONS)), drawn=st.lists(operations(), min_size=2, max_size=6))
    def at_once(self, order: list[int], drawn: list[tuple[Kind, int, int, int, int]]) -> None:
        made: list[Operation] = []
        for each in drawn:
            made.append(self.operation(each, list(made)))
        self.carry_out(list(zip((self.places[index] for index in order), apart(made), strict=False)))
        self.steps["burst"] += 1

    @invariant()
    def nothing_changes_by_itself(self) -> None:
        assert self.read() == self.state


def fight(directory: Path, store: str, examples: int, length: int, capsys: pytest.CaptureFixture[str]) -> Counter[str]:
    steps: Counter[str] = Counter()
    with places(directory, store) as made:
        run_state_machine_as_test(
            type("Made", (Fighting,), {"places": made, "steps": steps}),
            settings=settings(
                max_examples=examples,
                stateful_step_count=length,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )
    with capsys.disabled():
        print("\nexclusive ranges, steps: " + ", ".join(f"{name} {count}" for name, count in sorted(steps.items())))
    return steps


@pytest.mark.parametrize("store", STORES)
def test_what_is_sent_at_once_has_an_order(tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]) -> None:
    steps = fight(tmp_path, store, 5, 12, capsys)
    for transport in ("virtio", "iSCSI"):
        for told in (GOOD, "MISCOMPARE"):
            assert steps[f"compare and write over {transport}: {told}"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("store", STORES)
def test_what_is_sent_at_once_has_an_order_for_long(
    tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fight(tmp_path, store, 400, 50, capsys)


def test_a_unit_that_loses_an_update_is_noticed(tmp_path: Path) -> None:
    """Negative twin: what one of two COMPARE AND WRITE left is taken back behind the model's back."""
    with places(tmp_path, "memory:1M") as made:

        class Losing(Fighting):
            def carry_out(self, wanted: list[tuple[Place, Operation]]) -> None:
                exclusive = [each for each in wanted if each[1].kind is Kind.COMPARE_AND_WRITE]
                if len(wanted) > 1 and exclusive:
                    place, operation = exclusive[0]
                    undone = Operation(Kind.WRITE, operation.lba, tuple(each ^ 3 for each in operation.new))
                    place.ended(undone, place.submit(undone))
                super().carry_out(wanted)

        with pytest.raises(AssertionError):
            run_state_machine_as_test(
                type("Made", (Losing,), {"places": made, "steps": Counter()}),
                settings=settings(max_examples=50, stateful_step_count=20, database=None, phases=[Phase.generate]),
            )


def test_the_model_knows_what_no_order_explains() -> None:
    def caw(given: int, new: int) -> Operation:
        return Operation(Kind.COMPARE_AND_WRITE, 0, (new,), (given,))

    assert in_some_order((0,), [(caw(0, 1), GOOD), (caw(1, 2), GOOD)], (2,))
    assert in_some_order((0,), [(caw(1, 2), 0), (caw(0, 1), GOOD)], (1,))
    assert not in_some_order((0,), [(caw(0, 1), GOOD), (caw(0, 2), GOOD)], (2,)), "both found what one of them changed"
    assert not in_some_order((0,), [(caw(0, 1), GOOD)], (0,)), "an update was lost"
    assert not in_some_order((0,), [(Operation(Kind.READ, 0, (0,)), (7,))], (0,)), "nobody wrote that"
    assert [each.kind for each in apart([Operation(Kind.WRITE, 0, (1,)), Operation(Kind.READ, 0, (0, 0))])] == [
        Kind.WRITE
    ]


# ---- a counter ------------------------------------------------------------------------------------------------------


def count_up(made: list[Place], rounds: int) -> tuple[int, int]:
    """Everybody adds one to the same block by COMPARE AND WRITE until each has done so `rounds` times, beside writers
    of the next block; what was added, and what is there."""
    added = [0] * len(made)
    errors: list[BaseException] = []

    def adds(place: Place, index: int) -> None:
        try:
            while added[index] < rounds:
                read = Operation(Kind.READ, 0, (0,))
                tag = place.submit(read)
                result = place.wait(tag)
                now = int.from_bytes(result.data[:8])
                cdb = cdb_of("COMPARE AND WRITE", lba=0, blocks=1)
                tag = place.send(cdb, result.data + (now + 1).to_bytes(8) + bytes(BLOCK - 8), 0)
                added[index] += place.wait(tag).status == 0
                beside = Operation(Kind.WRITE, 1, (index,))
                assert place.ended(beside, place.submit(beside)) == GOOD
        except BaseException as error:
            errors.append(error)

    # A driver belongs to one thread: the queues share one virtual machine.
    threads = [threading.Thread(target=adds, args=(place, index)) for index, place in enumerate(made)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    last = made[0].wait(made[0].submit(Operation(Kind.READ, 0, (0,))))
    return sum(added), int.from_bytes(last.data[:8])


@pytest.mark.parametrize("store", STORES)
def test_no_increment_is_lost(tmp_path: Path, store: str) -> None:
    with places(tmp_path, store) as made:
        added, there = count_up([made[0], *made[QUEUES:]], 25)
    assert added == there == 25 * (1 + SESSIONS)
