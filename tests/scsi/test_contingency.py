# SPDX-License-Identifier: Apache-2.0
"""QERR and auto contingent allegiance (SAM-5 5.9): each rule by itself, and any mix of commands, faults and task
management against a model."""

import asyncio
from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.scsi.conftest import Rig
from tests.scsi.reserving import Cluster, basic
from tests.scsi.test_control_page import with_control
from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.nexus import InitiatorPort, Nexus
from vhost_scsi.scsi.task import Aborted, Complete, Execute, Status, TaskAttribute, Tell

SIMPLE, ORDERED, HEAD, ACA = TaskAttribute
NEXUSES = 3
PHASES = (Phase.explicit, Phase.generate)
"""the choices are printed; to shrink them takes minutes"""
READ, READ_NACA = bytes.fromhex("28000000000000000100"), bytes.fromhex("28000000000000000104")
ENDED_BY_OTHERS = (Aborted(), Complete(Status.TASK_ABORTED))


class Sent:
    """A command as its initiator and C see it. `position`: where it stands in Python's task set."""

    def __init__(self, number, nexus, task, naca):
        self.number, self.nexus, self.task, self.naca = number, nexus, task, naca
        self.attribute = task.attribute
        self.state = "waiting"
        self.position = number
        self.doomed = False
        self.outcome = None


COMMANDS = st.tuples(
    st.integers(0, NEXUSES - 1), st.sampled_from([SIMPLE, SIMPLE, SIMPLE, ORDERED, HEAD, ACA]), st.booleans()
)


class TaskSets(RuleBasedStateMachine):
    """The model: what SAM says of every start and every end, with C played by `running`."""

    STEPS: ClassVar = Counter()

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.rig = Rig(self.loop)
        self.sent = []
        self.aca = set()
        self.positions = 10**6
        self.quiet_until = 15

    @initialize(qerr=st.sampled_from([0, 1, 3]), tst=st.integers(0, 1), tas=st.integers(0, 1))
    def begin(self, qerr, tst, tas):
        self.qerr, self.tst, self.tas = qerr, tst, tas
        unit = self.rig.unit
        names = [f"guest{n}" for n in range(1, NEXUSES)]
        self.itls = [self.rig.itl, *(self.rig.attach(Nexus(InitiatorPort(name), self.rig.port)) for name in names)]
        assert with_control(self.rig, qerr=qerr, tst=tst, tas=tas).status is Status.GOOD
        self.rig.settle()
        unit.gate.busy = self.in_c
        for n, itl in enumerate(self.itls):
            itl.gate.busy = lambda n=n: self.in_c(n)
            itl.cancel = lambda told, n=n: self.cancel(n, told)

    def step(self, name):
        self.STEPS[name] += 1
        self.rig.settle()
        self.check()
        self.take_attentions()

    def take_attentions(self):
        for itl in self.itls:
            while itl.take():
                pass

    # ---- the data plane ----

    def in_c(self, nexus=None):
        return [each for each in self.sent if each.state == "running" and nexus in (None, each.nexus)]

    async def cancel(self, nexus, told):
        lost = self.in_c(nexus)
        for each in lost:
            self.ends(each, Complete(Status.TASK_ABORTED) if told and self.tas else Aborted())
            self.rig.unit.finished(each.task)
        return [self.itls[nexus]] if lost else []

    def pick(self, data, commands):
        return data.draw(st.sampled_from(commands), label="command")

    # ---- what SAM says ----

    def stopped(self, nexus):
        return nexus in self.aca if self.tst else bool(self.aca)

    def shares(self, one, other):
        return not self.tst or one.nexus == other.nexus

    def may_start(self, each):
        older = [o for o in self.sent if o.number < each.number and self.shares(o, each) and o.state != "ended"]
        if each.attribute in (HEAD, ACA):
            return True
        if each.attribute is ORDERED:
            return not [o for o in older if o.state in ("waiting", "running")]
        return not [o for o in older if o.attribute in (ORDERED, HEAD) and o.state in ("waiting", "running")]

    def arrival(self, nexus, attribute, naca):
        """SAM-5 5.9.3: the status of a new command, None where it enters the task set."""
        if nexus in self.aca:
            mine = [e for e in self.sent if e.nexus == nexus and e.attribute is ACA and e.state != "ended"]
            return None if attribute is ACA and not mine else Status.ACA_ACTIVE
        if not self.stopped(nexus):
            return None
        return Status.ACA_ACTIVE if naca else Status.BUSY

    def victims(self, each):
        if not self.qerr:
            return []
        own = self.tst or self.qerr == 3
        return [o for o in self.sent if o is not each and o.state != "ended" and (not own or o.nexus == each.nexus)]

    def failed(self, each):
        """The command has failed: what that begins at once."""
        if self.stopped(each.nexus) and not (each.attribute is ACA and each.nexus in self.aca):
            each.state = "parked"
            return
        each.state = "settling"
        if each.naca:
            self.aca.add(each.nexus)
        for victim in self.victims(each):
            victim.doomed = True

    def cleared(self, nexus):
        """What an ACA condition held and that has run ends now; the first fault may begin another condition."""
        if nexus not in self.aca:
            return
        self.aca.discard(nexus)
        for each in sorted(self.sent, key=lambda one: one.position):
            if each.state == "parked":
                self.failed(each)

    def ends(self, each, outcome):
        assert each.state != "ended", "it ends once"
        if outcome in ENDED_BY_OTHERS:
            # A fault that waits for its turn takes with it what came before its CHECK CONDITION is told.
            faults = [other for other in self.sent if other.state == "settling"]
            assert each.doomed or any(each in self.victims(one) for one in faults), (
                each.number,
                "nobody wanted it to end",
            )
        each.state, each.outcome = "ended", outcome

    def heard(self, each, outcome):
        if isinstance(outcome, Execute):
            assert self.may_start(each), (each.number, "starts out of turn")
            assert not self.stopped(each.nexus) or each.attribute is ACA, "an ACA condition is in effect"
            each.state = "running"
            return
        fault = isinstance(outcome, Tell)
        if fault and each.state == "settling":
            others = [o for o in self.in_c() if self.shares(o, each)]
            assert not each.naca or not others, "nothing ends between the CHECK CONDITION and the end of the condition"
            assert not [v for v in self.victims(each) if v.doomed and v.number < each.number and v.state == "running"]
            self.ends(each, outcome)
            if each.attribute is ACA and not each.naca:
                self.cleared(each.nexus)
            return
        self.ends(each, outcome)

    def check(self):
        unit = self.rig.unit
        assert {n for n, itl in enumerate(self.itls) if unit.contingencies.faulted(itl)} == self.aca
        for n, itl in enumerate(self.itls):
            closed = (itl.gate.bits | unit.gate.bits) & GateBit.ACA
            assert not self.stopped(n) or closed, "the data plane lets commands through"

    # ---- rules ----

    @rule(commands=st.lists(COMMANDS, min_size=1, max_size=4))
    def submit(self, commands):
        for command in commands:
            self.submit_one(*command)

    def submit_one(self, nexus, attribute, naca):
        if attribute is ACA and nexus not in self.aca:
            attribute = SIMPLE  # refused there, which test_task_set shows
        task = self.rig.task(READ_NACA if naca else READ, itl=self.itls[nexus], attribute=attribute)
        each = Sent(len(self.sent), nexus, task, naca)
        expected = self.arrival(nexus, attribute, naca)
        self.sent.append(each)
        self.rig.within(lambda: self.rig.unit.submit(task, lambda outcome: self.heard(each, outcome)))
        if expected is not None:
            assert each.outcome == Complete(expected)
        self.step(f"submit {attribute.name}" if expected is None else f"turned away {expected.name}")

    @precondition(lambda self: self.in_c())
    @rule(data=st.data())
    def finish(self, data):
        self.finish_one(self.pick(data, self.in_c()))
        self.step("finish")

    def finish_one(self, each):
        def finished():
            if each.state != "running":
                return
            self.ends(each, "in C")
            self.rig.unit.finished(each.task)

        self.rig.within(finished)

    def may_fault(self):
        """Of other CHECK CONDITIONs C tells without asking."""
        return [each for each in self.in_c() if each.naca or self.qerr or each.attribute is ACA]

    @precondition(may_fault)
    @rule(data=st.data())
    def fault(self, data):
        each = self.pick(data, self.may_fault())
        if each.task not in self.rig.unit.tasks():
            self.positions += 1
            each.position = self.positions

        def come_back():
            if each.state != "running":
                return  # ended by a fault that was being settled
            self.failed(each)
            self.rig.unit.came_back(each.task, lambda outcome: self.heard(each, outcome))

        self.rig.within(come_back)
        parked = each.state == "parked"
        self.step("fault, parked" if parked else "fault with NACA" if each.naca else "fault")

    @precondition(lambda self: self.aca)
    @rule(data=st.data())
    def clear_aca(self, data):
        nexus = self.pick(data, sorted(self.aca))
        for each in self.sent:
            each.doomed |= each.state != "ended" and each.nexus == nexus and each.attribute is ACA
        self.finish_all()  # a fault that is not told yet waits for those
        self.cleared_by(nexus, self.rig.unit.clear_aca(self.itls[nexus], lambda: self.cancel(nexus, False)))
        self.step("clear ACA")

    def cleared_by(self, nexus, function):
        """The model first: what the function lets go on is heard while it runs."""
        self.cleared(nexus)
        self.rig.run(function)

    def finish_all(self):
        for each in [e for e in self.in_c() if e.attribute is not ACA]:
            self.finish_one(each)
            self.rig.settle()

    @precondition(lambda self: len([each for each in self.sent if each.state != "ended"]) > 4)
    @rule(nexus=st.integers(0, NEXUSES - 1), whole=st.booleans())
    def end_tasks(self, nexus, whole):
        whole = whole and not self.tst
        for each in self.sent:
            each.doomed |= each.state != "ended" and (whole or each.nexus == nexus)
        undone = {each.nexus for each in self.sent if each.state == "settling" and each.doomed and each.naca}

        async def cancel():
            return [
                itl
                for n, itl in enumerate(self.itls)
                if (whole or n == nexus) and await self.cancel(n, whole and n != nexus)
            ]

        unit = self.rig.unit
        for each in undone:  # nobody was told of the CHECK CONDITION: there is no condition
            self.cleared_quietly(each)
        self.rig.run((unit.clear_task_set if whole else unit.abort_task_set)(self.itls[nexus], cancel))
        self.step("clear task set" if whole else "abort task set")

    def cleared_quietly(self, nexus):
        self.aca.discard(nexus)
        for each in sorted(self.sent, key=lambda one: one.position):
            if each.state == "parked" and not each.doomed:
                self.failed(each)

    @precondition(lambda self: len(self.sent) >= self.quiet_until)
    @rule(nexus=st.integers(0, NEXUSES - 1))
    def reset(self, nexus):
        self.quiet_until = len(self.sent) + 15
        for each in self.sent:
            each.doomed |= each.state != "ended"
        self.aca.clear()

        async def cancel():
            return [itl for n, itl in enumerate(self.itls) if await self.cancel(n, n != nexus)]

        self.rig.run(self.rig.unit.logical_unit_reset(self.itls[nexus], cancel))
        self.take_attentions()
        assert with_control(self.rig, qerr=self.qerr, tst=self.tst, tas=self.tas).status is Status.GOOD
        self.step("logical unit reset")

    def teardown(self):
        try:
            if hasattr(self, "itls"):
                self.drain()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            asyncio.set_event_loop(None)
            self.loop.close()

    def drain(self):
        """Whatever was sent ends, and the gates open."""
        for _ in range(4 * len(self.sent) + 4):
            for each in self.in_c():
                self.finish_one(each)
                self.rig.settle()
            for nexus in list(self.aca):
                self.cleared_by(nexus, self.rig.unit.clear_aca(self.itls[nexus]))
            self.rig.settle()
        assert not [each.number for each in self.sent if each.state != "ended"]
        assert not self.rig.unit.tasks()
        assert not self.rig.unit.gate.bits & (GateBit.ACA | GateBit.ORDERED | GateBit.TMF)


def test_any_mix_of_commands_faults_and_task_management(capsys):
    TaskSets.STEPS.clear()
    run_state_machine_as_test(
        TaskSets,
        settings=settings(max_examples=25, stateful_step_count=25, deadline=None, phases=PHASES, derandomize=True),
    )
    with capsys.disabled():
        print("\ntask sets and ACA, steps: " + ", ".join(f"{name} {n}" for name, n in sorted(TaskSets.STEPS.items())))
    for name in ("submit SIMPLE", "submit ORDERED", "finish", "fault with NACA", "clear ACA"):
        assert TaskSets.STEPS[name], name


# ---- single rules ----


@pytest.fixture
def other(lu):
    itl = lu.attach(Nexus(InitiatorPort("other"), lu.port))
    itl.take()
    return itl


def establish(lu, itl=None):
    """An ACA condition for the nexus."""
    outcome = lu.outcome(bytes.fromhex("12ff00000004"), itl=itl)
    assert outcome.status is Status.CHECK_CONDITION
    lu.settle()


def test_a_fault_that_python_finds_establishes_the_condition_too(lu, other):
    establish(lu)
    assert lu.outcome("TEST UNIT READY").status is Status.ACA_ACTIVE
    assert lu.outcome("TEST UNIT READY", itl=other).status is Status.BUSY
    assert isinstance(lu.outcome("TEST UNIT READY", attribute=ACA), Execute)


def test_a_handler_that_ends_meanwhile_is_told_afterwards(lu, other):
    turn = lu.unit.reservations.turn
    lu.run(turn.acquire())
    begun = lu.begin(lu.task("RESERVE(6)", itl=other))
    establish(lu)
    lu.within(turn.release)
    lu.settle()
    assert not begun
    lu.run(lu.unit.clear_aca(lu.itl))
    assert begun == [Complete(Status.GOOD)]


def test_an_ordered_command_that_is_turned_away_leaves_the_gate_open(lu):
    establish(lu)
    lu.gate.close(GateBit.ORDERED)
    assert lu.outcome("TEST UNIT READY", attribute=ORDERED).status is Status.ACA_ACTIVE
    assert not lu.gate.bits & GateBit.ORDERED


def test_a_fault_that_is_aborted_before_anybody_heard_of_it_was_none(lu):
    lu.gate.in_flight_ended.clear()
    outcomes = []
    lu.within(lambda: lu.unit.came_back(lu.task(READ_NACA), outcomes.append))
    lu.settle()
    assert not outcomes
    lu.run(lu.unit.abort_task_set(lu.itl))
    lu.gate.in_flight_ended.set()
    lu.settle()
    assert outcomes == [Aborted()]
    assert not lu.unit.contingencies.faulted(lu.itl)
    assert not lu.gate.bits & GateBit.ACA


def test_a_nexus_that_goes_takes_its_condition_along(lu, other):
    establish(lu, other)
    assert lu.outcome("TEST UNIT READY").status is Status.BUSY
    lu.run(lu.unit.detach(other))
    assert isinstance(lu.outcome("TEST UNIT READY"), Execute)
    assert not lu.gate.bits & GateBit.ACA


def registered(*names):
    """The names have registered the keys 1, 2 ..., and the first holds a reservation for registrants only."""
    cluster = Cluster()
    for key, name in enumerate(names, 1):
        assert cluster.out(name, "REGISTER", basic(0, key)).status is Status.GOOD
    assert cluster.out(names[0], "RESERVE", basic(1), kind=5).status is Status.GOOD
    return cluster


def test_preempt_and_abort_ends_the_condition_of_whom_it_preempts():
    cluster = registered("a", "c")
    establish(cluster.rig, cluster.itls["a"])
    assert cluster.outcome("c", "TEST UNIT READY").status is Status.BUSY
    assert cluster.out("c", "PREEMPT AND ABORT", basic(2, 1), kind=5).status is Status.GOOD
    assert isinstance(cluster.outcome("c", "TEST UNIT READY"), Execute)
    cluster.close()


def test_preempt_and_abort_does_nothing_while_another_nexus_s_condition_is_in_effect():
    cluster = registered("a", "b", "c")
    establish(cluster.rig, cluster.itls["b"])
    before = cluster.rig.unit.reservations.state
    assert cluster.out("c", "PREEMPT AND ABORT", basic(3, 1), kind=5).status is Status.BUSY
    assert cluster.rig.unit.reservations.state == before
    cluster.close()


def test_an_overlapped_command_ends_what_its_nexus_has(lu, other):
    """SAM-5 5.11: and it ends with CHECK CONDITION; another nexus notices nothing."""
    outcomes = {name: [] for name in ("ordered", "behind", "theirs", "overlapped")}

    def arrive():
        unit, task = lu.unit, lu.task
        unit.submit(task("READ(10)", attribute=ORDERED, itl=other), outcomes["theirs"].append)
        unit.submit(task("READ(10)", attribute=ORDERED), outcomes["ordered"].append)
        unit.submit(task("INQUIRY", tag=5), outcomes["behind"].append)
        unit.overlapped(task("INQUIRY", tag=5), outcomes["overlapped"].append)

    lu.within(arrive)
    lu.settle()
    assert outcomes["ordered"] == outcomes["behind"] == [Aborted()]
    assert outcomes["theirs"] == [Execute(notify=True)]
    (ended,) = outcomes["overlapped"]
    assert sense_data.parse(ended.sense).code is sense.OVERLAPPED_COMMANDS_ATTEMPTED
    assert not lu.itl.gate.bits & GateBit.TMF
    assert not other.attentions
