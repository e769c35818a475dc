# SPDX-License-Identifier: Apache-2.0
"""What the Control mode page changes about tasks (SPC-5 7.5.10): TST, TAS, UA_INTLCK_CTRL. QERR: test_contingency."""

import asyncio
from collections import Counter
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.scsi.test_reserve import conflicted
from vhost_scsi.scsi import sense
from vhost_scsi.scsi.mode_pages import CONTROL
from vhost_scsi.scsi.nexus import InitiatorPort, Nexus
from vhost_scsi.scsi.task import Aborted, Complete, Execute, Status, TaskAttribute

TASK_ABORTED = Complete(Status.TASK_ABORTED)


def with_control(rig, **values):
    """The unit with these fields of its Control page."""
    data = bytes(4) + CONTROL.build({**CONTROL.defaults, **values})
    outcome = rig.outcome("MODE SELECT(6)", pf=1, parameter_list_length=len(data), data_out=data)
    for itl in rig.unit.itls:
        while itl.take():
            pass
    return outcome


@pytest.fixture
def other(lu):
    itl = lu.attach()
    itl.take()
    return itl


def submitted(lu, *tasks):
    """The outcomes of tasks that were submitted one after the other, without waiting."""
    outcomes = [[] for _ in tasks]

    async def submit():
        for task, outcome in zip(tasks, outcomes, strict=True):
            lu.unit.submit(task, outcome.append)

    lu.run(submit())
    lu.settle()
    return outcomes


def test_what_may_be_changed_is_changed(lu, fails):
    for values in ({"tst": 1}, {"tas": 1}, {"qerr": 1}, {"qerr": 3}, {"ua_intlck_ctrl": 2}, {"ua_intlck_ctrl": 3}, {}):
        assert with_control(lu, **values).status is Status.GOOD
    for at, values in (((8, 5), {"ua_intlck_ctrl": 1}), ((6, 6), {"tst": 2}), ((7, 2), {"qerr": 2})):
        data = bytes(4) + CONTROL.build({**CONTROL.defaults, **values})
        code = sense.INVALID_FIELD_IN_PARAMETER_LIST
        fails(lu, "MODE SELECT(6)", code, at=at, pf=1, parameter_list_length=len(data), data_out=data)


@pytest.mark.parametrize("separate", [False, True])
def test_an_ordered_task_is_waited_for_within_its_task_set(lu, other, separate):
    with_control(lu, tst=int(separate))
    ordered = lu.task("READ(10)", attribute=TaskAttribute.ORDERED)
    tasks = [ordered, lu.task("READ(10)"), lu.task("READ(10)", itl=other)]
    outcomes = submitted(lu, *tasks)
    assert outcomes == [[Execute(notify=True)], [], [Execute()] if separate else []]
    lu.unit.finished(ordered)
    assert outcomes[1:] == [[Execute()], [Execute()]]


ATTRIBUTES = st.sampled_from([TaskAttribute.SIMPLE, TaskAttribute.ORDERED, TaskAttribute.HEAD_OF_QUEUE])
STEPS = Counter()


def run_mix(make_lu, tasks, tst, random):
    """SAM-5 8.6, as a model that looks at the whole list each time a task starts."""
    rig = make_lu()
    itls = [rig.itl, rig.attach(), rig.attach()]
    with_control(rig, tst=tst)
    ended, running, arrived = set(), {}, {}

    def may_start(number):
        attribute, nexus = tasks[number]
        older = [each for each in range(number) if not (tst and tasks[each][1] != nexus) and each not in ended]
        if attribute is TaskAttribute.HEAD_OF_QUEUE:
            return True
        if attribute is TaskAttribute.ORDERED:
            return not older
        return all(tasks[each][0] is TaskAttribute.SIMPLE for each in older)

    def started(number, outcome):
        assert may_start(number), (number, tasks, ended)
        STEPS[tasks[number][0].name, tst] += 1
        if outcome.notify:
            running[number] = arrived[number]
        else:
            ended.add(number)

    def finish():
        number = random.choice(sorted(running))
        task = running.pop(number)
        ended.add(number)

        async def finished():
            rig.unit.finished(task)

        rig.run(finished())
        rig.settle()

    for number, (attribute, nexus) in enumerate(tasks):
        arrived[number] = rig.task("READ(10)", itl=itls[nexus], attribute=attribute)

        async def arrive(number=number):
            rig.unit.submit(arrived[number], lambda outcome: started(number, outcome))

        rig.run(arrive())
        rig.settle()
        if running and random.random() < 0.4:
            finish()
    while running:
        finish()
    assert ended == set(range(len(tasks))), "everything has run"


def test_any_mix_of_three_nexuses_starts_in_the_order_that_sam_allows(make_lu, capsys):
    mixture = [(attribute, nexus) for attribute in TaskAttribute if attribute.name != "ACA" for nexus in (0, 1)]
    STEPS.clear()

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(ATTRIBUTES, st.integers(0, 2)), min_size=2, max_size=14), st.integers(0, 1), st.randoms())
    @example(mixture, 0, Random(0))
    @example(mixture, 1, Random(0))
    def mixes(tasks, tst, random):
        run_mix(make_lu, tasks, tst, random)

    mixes()
    with capsys.disabled():
        print("\ntask sets, starts: " + ", ".join(f"{name} TST={tst} {n}" for (name, tst), n in sorted(STEPS.items())))
    assert len(STEPS) == 6


def test_separate_task_sets_are_cleared_one_by_one(lu, other):
    with_control(lu, tst=1)

    async def cleared():
        async with lu.unit.held():
            mine, theirs = [], []
            lu.unit.submit(lu.task("INQUIRY"), mine.append)
            lu.unit.submit(lu.task("INQUIRY", itl=other), theirs.append)
            clear = asyncio.ensure_future(lu.unit.clear_task_set(lu.itl))
            await asyncio.sleep(0)
            await clear
            return mine, theirs

    mine, theirs = lu.run(cleared())
    assert mine == [Aborted()]
    assert theirs[0].status is Status.GOOD
    assert not other.attentions


@pytest.mark.parametrize("tas", [0, 1])
@pytest.mark.parametrize("function", ["clear_task_set", "logical_unit_reset"])
def test_a_task_that_another_nexus_aborts_is_told_so_if_tas_is_one(lu, other, tas, function):
    with_control(lu, tas=tas)

    async def aborted():
        async with lu.unit.held():
            mine, theirs = [], []
            lu.unit.submit(lu.task("INQUIRY"), mine.append)
            lu.unit.submit(lu.task("INQUIRY", itl=other), theirs.append)
            done = asyncio.ensure_future(getattr(lu.unit, function)(lu.itl))
            await asyncio.sleep(0)
        await done
        return mine, theirs

    mine, theirs = lu.run(aborted())
    assert mine == [Aborted()]
    assert theirs == [TASK_ABORTED if tas else Aborted()]
    cleared = sense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR
    if function == "clear_task_set":
        assert (cleared in other.attentions.pending()) == (not tas)


@pytest.mark.parametrize("interlock", [2, 3])
def test_an_interlocked_unit_attention_stays_until_it_is_asked_for(lu, fails, ok, interlock):
    with_control(lu, ua_intlck_ctrl=interlock)
    lu.unit.capacity_changed()
    for _ in range(2):
        fails(lu, "TEST UNIT READY", sense.CAPACITY_DATA_HAS_CHANGED)
    assert ok(lu, "REQUEST SENSE")[12:14] == bytes([0x2A, 0x09])
    assert isinstance(lu.outcome("TEST UNIT READY"), Execute)


@pytest.mark.parametrize("interlock", [0, 2, 3])
def test_a_conflict_may_leave_a_unit_attention(lu, interlock):
    with_control(lu, ua_intlck_ctrl=interlock)
    lu.outcome("RESERVE(6)")
    rival = lu.attach(Nexus(InitiatorPort("rival"), lu.port))
    rival.take()
    conflicted(lu.outcome("READ(10)", itl=rival))
    told = [sense.PREVIOUS_RESERVATION_CONFLICT_STATUS] if interlock == 3 else []
    assert list(rival.attentions.pending()) == told
