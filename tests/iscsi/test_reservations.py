# SPDX-License-Identifier: Apache-2.0
"""Persistent reservations against the model of tests/scsi, over wires: two iSCSI sessions and two virtual machines at
one unit, with everything of both transports and of the data plane between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from tests.iscsi.scsi_host import ScsiHost
from tests.iscsi.served import Served, served
from tests.live import Host, Live, read10, write10
from tests.scsi.conftest import cdb_of
from tests.scsi.reservation_machine import STEPS, Reserving
from tests.scsi.reserving import basic
from vhost_scsi.scsi import sense_data
from vhost_scsi.scsi.nexus import ITL
from vhost_scsi.scsi.reservations import NexusId
from vhost_scsi.scsi.sense import SenseCode
from vhost_scsi.scsi.task import Complete, Status
from vhost_scsi.virtqueue.virtio_scsi import TaskManagement

RESERVATION_CONFLICT = 0x18
REQUEST_SENSE = bytes([0x03, 0, 0, 0, 252, 0])


class Wires:
    """What `reserving.Cluster` is, for initiators that are somewhere else: `a` and `b` are sessions, `c` and `d`
    virtual machines at ports of their own."""

    def __init__(self, live: Live, initiators: dict[str, Host | ScsiHost], itls: dict[str, ITL]) -> None:
        self.live = live
        self.initiators = initiators
        self._unit = live.units["disk0"].logical_unit
        self._ids = {name: itl.nexus.id for name, itl in itls.items()}

    def command(self, name: str, cdb: bytes, data: bytes = b"", in_len: int = 0) -> Any:
        return self.initiators[name].command(cdb, data, in_len)

    def outcome(self, name: str, command: str, *, data_out: bytes = b"", **values: int) -> Complete:
        result = self.command(name, cdb_of(command, **values), data_out)
        return Complete(Status(result.status), sense=bytes(result.sense) if result.status == 2 else b"")

    def out(self, name: str, action: str, data: bytes, kind: int = 0) -> Complete:
        command = f"PERSISTENT RESERVE OUT, {action}"
        return self.outcome(name, command, type=kind, parameter_list_length=len(data), data_out=data)

    def attentions(self, name: str) -> list[SenseCode]:
        """Takes what the nexus is told, by REQUEST SENSE: nothing keeps that out."""
        found = []
        while True:
            result = self.command(name, REQUEST_SENSE, in_len=252)
            assert result.status == 0
            told = sense_data.parse(result.data)
            if told.code.key == 0:
                return found
            found.append(told.code)

    def id(self, name: str) -> NexusId:
        return self._ids[name]

    @property
    def state(self) -> Any:
        return self.live.run(lambda: self._unit.reservations.state)

    def reset(self) -> None:
        machine = self.initiators["c"]
        assert isinstance(machine, Host)
        machine.manage(TaskManagement.LOGICAL_UNIT_RESET)

    def start_anew(self) -> int:
        """No reservation, no registration, nothing to be told; the generation."""
        self.reset()
        for action, data in (("REGISTER AND IGNORE EXISTING KEY", basic(0, 9)), ("CLEAR", basic(9))):
            self.attentions("a")
            assert self.out("a", action, data).status is Status.GOOD
        for name in self.initiators:
            self.attentions(name)
        generation: int = self.state.generation
        return generation

    def close(self) -> None:
        """They stay for the next example."""


@contextmanager
def wires(directory: Path) -> Iterator[Wires]:
    with served(directory, "memory:1M", workers=2) as node, ExitStack() as stack:
        unit = node.live.units["disk0"]
        initiators: dict[str, Host | ScsiHost] = {}
        itls: dict[str, ITL] = {}

        def keep(name: str, initiator: Host | ScsiHost) -> None:
            initiators[name] = initiator
            itls[name] = _new(node, itls)

        ends = [node.live.end((0, 0, unit), name=name) for name in ("one", "two")]
        for name, end in zip("cd", ends, strict=True):
            itls[name] = node.live.run(lambda end=end: end.port.luns[0].itl)
            initiators[name] = stack.enter_context(end.connect())
        for number, name in enumerate("ab"):
            keep(name, stack.enter_context(node.connect(isid=b"\x80\x12\x34\x56\x02" + bytes([number]))))
        yield Wires(node.live, dict(sorted(initiators.items())), itls)


def _new(node: Served, known: dict[str, ITL]) -> ITL:
    (found,) = node.live.run(
        lambda: [itl for itl in node.live.units["disk0"].logical_unit.itls if itl not in known.values()]
    )
    return found


class OverWires(Reserving):
    """`wires` is given to a subclass. What is allowed is tried, not read off the gates."""

    wires: Wires

    def __init__(self) -> None:
        super().__init__()
        self.model.generation = self.real.start_anew()

    def cluster(self) -> Wires:
        return self.wires

    @invariant()
    def everybody_may_do_the_same_in_both_planes(self) -> None:
        for name in "abcd":
            for what, cdb, data, in_len in (
                ("read", read10(0, 1), b"", 512),
                ("write", write10(0, 1), bytes(512), 0),
                ("ready", bytes(6), b"", 0),
            ):
                wanted = 0 if self.model.may(name, what) else RESERVATION_CONFLICT
                assert self.real.command(name, cdb, data, in_len).status == wanted, (name, what)


@contextmanager
def machine(found: Wires) -> Iterator[type[OverWires]]:
    """Hypothesis keeps the class; the initiators, with their memory, must not be kept along."""
    made = type("Made", (OverWires,), {"wires": found})
    try:
        yield made
    finally:
        del made.wires


def agree(directory: Path, examples: int, length: int, capsys: pytest.CaptureFixture[str]) -> Counter[str]:
    STEPS.clear()
    wanted = settings(
        max_examples=examples,
        stateful_step_count=length,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    with wires(directory) as found, machine(found) as made:
        run_state_machine_as_test(made, settings=wanted)
    with capsys.disabled():
        told = ", ".join(f"{name} {count}" for name, count in sorted(STEPS.items()))
        print(f"\nreservations over virtio and iSCSI, steps: {told}")
    for each in ("register", "reserve", "release", "preempt", "move", "reserve_6", "release_6"):
        assert STEPS[f"{each}: GOOD"], each
    return STEPS


def test_any_sequence_over_two_transports_ends_as_in_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agree(tmp_path, 3, 8, capsys)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_any_sequence_over_two_transports_ends_as_in_the_model_for_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agree(tmp_path, 150, 40, capsys)


def test_a_unit_that_forgets_whom_to_tell_is_noticed(tmp_path: Path) -> None:
    """Negative twin: unit attentions of one nexus are lost."""
    with wires(tmp_path) as found, machine(found) as made:
        true = found.attentions
        found.attentions = lambda name: [] if name == "d" and true(name) else true(name)  # type: ignore[method-assign]
        wanted = settings(max_examples=50, stateful_step_count=20, database=None, phases=[Phase.generate])
        with pytest.raises(AssertionError) as raised:
            run_state_machine_as_test(made, settings=wanted)
        raised.value.__traceback__ = None  # its frames know the initiators
