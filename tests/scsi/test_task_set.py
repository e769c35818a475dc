# SPDX-License-Identifier: Apache-2.0
"""The order of tasks, holds, and task management."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.task import Aborted, Complete, Execute, Status, TaskAttribute

SIMPLE, ORDERED, HEAD, ACA = TaskAttribute
DATA = bytes.fromhex("00000000" + "0812000000000000000000000000000000000000")


class Script:
    """Submits tasks by name and notes the outcomes in the order in which they come."""

    def __init__(self, lu):
        self.lu = lu
        self.log = []
        self.tasks = {}

    def submit(self, name, attribute=SIMPLE, command="READ(10)", **given):
        task = self.lu.task(command, attribute=attribute, **given)
        self.tasks[name] = task

        async def submit():
            self.lu.unit.submit(task, lambda outcome: self.log.append((name, outcome)))

        self.lu.run(submit())
        self.lu.settle()

    def mode_select(self, name, **given):
        self.submit(name, command="MODE SELECT(6)", pf=1, parameter_list_length=len(DATA), data_out=DATA, **given)

    def finish(self, name):

        async def finish():
            self.lu.unit.finished(self.tasks[name])

        self.lu.run(finish())
        self.lu.settle()

    @property
    def started(self):
        return [name for name, _ in self.log]

    def outcome(self, name):
        return dict(self.log)[name]


@pytest.fixture
def script(lu):
    return Script(lu)


# ---- attributes (SAM-5 8.6) ----


def test_simple_tasks_run_at_once_without_notice(script, lu):
    script.submit("a")
    script.submit("b")
    assert script.log == [("a", Execute()), ("b", Execute())]
    assert not lu.unit.tasks()


def test_an_ordered_task_waits_for_commands_in_flight(script, lu):
    lu.gate.in_flight_ended.clear()
    script.submit("ordered", ORDERED)
    assert not script.log
    assert lu.gate.bits & GateBit.ORDERED
    lu.gate.in_flight_ended.set()
    lu.settle()
    assert script.log == [("ordered", Execute(notify=True))]


def test_simple_tasks_wait_for_an_older_ordered_task(script, lu):
    script.submit("ordered", ORDERED)
    script.submit("later")
    assert script.started == ["ordered"]
    script.finish("ordered")
    assert script.started == ["ordered", "later"]


def test_the_ordered_gate_opens_after_the_tasks_that_waited_were_handed_back(script, lu):
    opened_at = []
    script.submit("ordered", ORDERED)
    script.submit("later")
    real_open = lu.gate.open

    def noting_open(bits):
        if bits & GateBit.ORDERED:
            opened_at.append(list(script.started))
        real_open(bits)

    lu.gate.open = noting_open
    script.finish("ordered")
    assert opened_at == [["ordered", "later"]]
    assert not lu.gate.bits & GateBit.ORDERED


def test_ordered_tasks_run_one_after_the_other(script):
    script.submit("first", ORDERED)
    script.submit("between")
    script.submit("second", ORDERED)
    script.submit("after")
    assert script.started == ["first"]
    script.finish("first")
    assert script.started == ["first", "between", "second"]
    script.finish("second")
    assert script.started == ["first", "between", "second", "after"]


def test_head_of_queue_overtakes(script):
    script.submit("ordered", ORDERED)
    script.submit("simple")
    script.submit("head", HEAD)
    assert script.started == ["ordered", "head"]
    script.finish("ordered")
    assert script.started == ["ordered", "head", "simple"]


def test_simple_tasks_wait_for_an_older_head_of_queue_task(script, lu):
    script.submit("head", HEAD)
    script.submit("simple")
    assert script.log == [("head", Execute(notify=True))]
    script.finish("head")
    assert script.started == ["head", "simple"]
    assert not lu.unit.tasks()


def test_an_ordered_task_that_python_answers_ends_at_once(script, lu):
    script.submit("inquiry", ORDERED, command="INQUIRY")
    script.submit("later")
    assert script.started == ["inquiry", "later"]
    assert lu.gate.history[-1] == ("open", GateBit.ORDERED)


def test_the_aca_attribute_is_refused_and_the_gate_opens(script, lu):
    script.submit("aca", ACA)
    told = sense_data.parse(script.outcome("aca").sense).code
    assert told is sense.INVALID_MESSAGE_ERROR
    assert ("open", GateBit.ORDERED) in lu.gate.history


@pytest.mark.parametrize("cdb", ["000000000004", "28000000000000000004", "7f04", "", "28", "c1" + "04" * 15])
def test_naca_does_not_touch_the_ordered_gate(lu, cdb):
    lu.outcome(bytes.fromhex(cdb))
    assert ("open", GateBit.ORDERED) not in lu.gate.history


def test_an_end_or_a_fence_of_a_task_that_is_gone_changes_nothing(script, lu):
    script.submit("ordered", ORDERED)
    script.submit("simple")
    script.submit("mode", command="INQUIRY")
    lu.unit.finished(script.tasks["simple"])
    assert script.started == ["ordered"]
    assert len(lu.unit.tasks()) == 3


def test_order_holds_across_nexuses(script, lu):
    other = lu.attach()
    other.take()
    script.submit("ordered", ORDERED)
    script.submit("other", itl=other)
    assert script.started == ["ordered"]


def test_a_task_arrives_once(script, lu):
    script.submit("ordered", ORDERED)
    with pytest.raises(ValueError, match="once"):
        lu.unit.submit(script.tasks["ordered"], print)


def test_an_end_that_nobody_waits_for_is_ignored(script, lu):
    script.submit("simple")
    script.finish("simple")
    assert not lu.unit.tasks()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(attributes=st.lists(st.sampled_from([SIMPLE, ORDERED, HEAD]), max_size=12), random=st.randoms())
def test_any_mix_ends_in_the_order_that_sam_allows(make_lu, attributes, random):
    script = Script(make_lu())
    for name, attribute in enumerate(attributes):
        script.submit(name, attribute)
        if random.random() < 0.4:
            finish_one(script, random)
    while finish_one(script, random):
        pass
    assert sorted(script.started) == list(range(len(attributes)))
    assert not script.lu.unit.tasks()
    place = {name: at for at, name in enumerate(script.started)}
    for older, first in enumerate(attributes):
        for younger in range(older + 1, len(attributes)):
            if attributes[younger] is HEAD:
                continue
            if first is ORDERED or attributes[younger] is ORDERED:
                assert place[older] < place[younger]


def finish_one(script, random):
    waiting = [name for name, outcome in script.log if outcome == Execute(notify=True)]
    known = [name for name in waiting if script.tasks[name] in script.lu.unit.tasks()]
    if known:
        script.finish(random.choice(known))
    return bool(known)


# ---- holds ----


def test_everything_waits_while_the_unit_is_held(script, lu):
    async def hold():
        async with lu.unit.held():
            assert lu.gate.bits & GateBit.HOLD
            lu.unit.submit(lu.task("INQUIRY"), lambda outcome: script.log.append(("inquiry", outcome)))
            lu.unit.submit(lu.task("READ(10)"), lambda outcome: script.log.append(("read", outcome)))
            assert not script.log
            assert len(lu.unit.tasks()) == 2

    lu.run(hold())
    assert script.started == ["inquiry", "read"]
    assert not lu.gate.bits & GateBit.HOLD


def test_a_hold_waits_for_a_handler_at_work(script, lu):
    order = []

    async def flush():
        order.append("flush begins")
        await asyncio.sleep(0.01)
        order.append("flush ends")

    lu.medium.flush = flush

    async def both():
        data = {"pf": 1, "parameter_list_length": len(DATA), "data_out": DATA}
        lu.unit.submit(lu.task("MODE SELECT(6)", **data), lambda outcome: None)
        await asyncio.sleep(0)
        async with lu.unit.held():
            order.append("held")

    lu.run(both())
    assert order == ["flush begins", "flush ends", "held"]


def test_a_nexus_whose_handler_waits_can_be_detached_from_a_held_unit(script, lu):
    lu.gate.in_flight_ended.clear()

    async def remove():
        async with lu.unit.held():
            await lu.unit.detach(lu.itl)

    removing = lu.loop.create_task(remove())
    lu.settle()
    task = lu.task("START STOP UNIT")
    outcomes = lu.submit(task)
    lu.gate.in_flight_ended.set()
    lu.run(removing)
    lu.settle()
    assert outcomes == [Aborted()]
    assert not lu.unit.stopped
    assert not lu.gate.bits & GateBit.HOLD


def test_a_handler_that_waits_for_a_hold_is_aborted_without_waiting_for_it(script, lu):
    lu.gate.in_flight_ended.clear()
    script.mode_select("select")

    async def remove():
        async with lu.unit.held():
            await lu.unit.detach(lu.itl)

    removing = lu.loop.create_task(remove())
    lu.settle()
    lu.run(lu.unit.abort_task_set(lu.itl))
    assert script.log == [("select", Aborted())]
    lu.gate.in_flight_ended.set()
    lu.run(removing)
    lu.settle()
    assert not lu.gate.bits & GateBit.HOLD


def test_a_handler_at_work_is_waited_for_and_ends_as_aborted(script, lu):
    async def flush():
        await asyncio.sleep(0.01)
        lu.medium.log.append("flushed")

    lu.medium.flush = flush
    script.mode_select("select")
    assert not script.log
    lu.run(lu.unit.abort_task_set(lu.itl))
    assert "flushed" in lu.medium.log
    assert script.log == [("select", Aborted())]


def test_a_change_of_read_only_shows_in_the_gate(lu):
    lu.medium.read_only = True
    lu.unit.read_only_changed()
    assert lu.gate.bits & GateBit.WRITE_PROTECTED


# ---- task management (SAM-5 7) ----


def blocked(script, lu):
    """An ORDERED task in flight, and behind it two tasks of this nexus and one of another."""
    other = lu.attach()
    other.take()
    script.submit("running", ORDERED)
    script.submit("a", tag=100)
    script.submit("b", tag=101)
    script.submit("c", itl=other, tag=100)
    assert script.started == ["running"]
    return other


def test_abort_task_ends_one_task_of_this_nexus(script, lu):
    blocked(script, lu)
    assert lu.run(lu.unit.abort_task(lu.itl, 100))
    assert script.outcome("a") == Aborted()
    script.finish("running")
    assert script.started == ["running", "a", "b", "c"]
    assert not lu.itl.gate.bits & GateBit.TMF


def test_abort_task_of_an_unknown_tag_ends_nothing(script, lu):
    blocked(script, lu)
    assert not lu.run(lu.unit.abort_task(lu.itl, 999))
    assert script.started == ["running"]


def test_query_finds_only_tasks_of_this_nexus(script, lu):
    other = blocked(script, lu)
    assert lu.unit.query_task(lu.itl, 101)
    assert not lu.unit.query_task(other, 101)
    assert lu.unit.query_task_set(other)
    assert not lu.unit.query_task_set(lu.attach())


def test_abort_task_set_leaves_other_nexuses_alone(script, lu):
    blocked(script, lu)

    async def abort():
        script.lu.loop.call_later(0.01, lu.unit.finished, script.tasks["running"])
        return await lu.unit.abort_task_set(lu.itl)

    assert len(lu.run(abort())) == 3
    assert script.outcome("a") == script.outcome("b") == Aborted()
    assert script.outcome("c") == Execute()


def test_task_management_waits_for_a_task_that_c_runs(script, lu):
    blocked(script, lu)
    ended = []

    async def abort():
        ended.append(await lu.unit.abort_task_set(lu.itl))

    task = lu.loop.create_task(abort())
    lu.settle()
    assert not ended
    script.finish("running")
    lu.run(task)
    assert ended


def test_clear_task_set_tells_those_who_lost_tasks(script, lu):
    other = blocked(script, lu)
    idle = lu.attach()
    idle.take()

    async def clear():
        script.lu.loop.call_later(0.01, lu.unit.finished, script.tasks["running"])
        await lu.unit.clear_task_set(lu.itl)

    lu.run(clear())
    assert other.attentions.pending() == (sense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR,)
    assert not lu.itl.attentions
    assert not idle.attentions


def test_c_is_asked_to_abort_before_the_fence_waits(lu):
    lu.gate.in_flight_ended.clear()

    async def cancel():
        lu.gate.in_flight_ended.set()

    lu.run(lu.unit.clear_task_set(lu.itl, cancel))


@pytest.mark.parametrize("of_nexus", [True, False], ids=["abort task set", "clear task set"])
def test_task_management_is_answered_when_nothing_is_in_flight(lu, of_nexus):
    gate = lu.itl.gate if of_nexus else lu.gate
    function = lu.unit.abort_task_set if of_nexus else lu.unit.clear_task_set
    gate.in_flight_ended.clear()
    answer = lu.loop.create_task(function(lu.itl))
    lu.settle()
    assert gate.bits & GateBit.TMF
    assert not answer.done()
    gate.in_flight_ended.set()
    lu.run(answer)
    assert not gate.bits & GateBit.TMF


def test_tasks_that_arrive_while_c_empties_its_rings_are_aborted_too(script, lu):
    """The initiator placed them before the function (SAM-5 7.1), only we had not seen them."""

    async def cancel():
        lu.unit.submit(lu.task("INQUIRY"), lambda outcome: script.log.append(("late", outcome)))
        assert not script.log

    (late,) = lu.run(lu.unit.clear_task_set(lu.itl, cancel))
    assert late.cdb[0] == 0x12
    assert isinstance(script.outcome("late"), Aborted)


def test_tasks_that_arrive_during_task_management_wait(script, lu):
    lu.gate.in_flight_ended.clear()
    clearing = lu.loop.create_task(lu.unit.clear_task_set(lu.itl))
    lu.settle()
    lu.unit.submit(lu.task("INQUIRY"), lambda outcome: script.log.append(("late", outcome)))
    assert not script.log
    lu.gate.in_flight_ended.set()
    lu.run(clearing)
    assert script.outcome("late").status is Status.GOOD


def test_task_management_on_one_nexus_does_not_hold_another(script, lu):
    other = lu.attach()
    other.take()

    async def cancel():
        lu.unit.submit(lu.task("INQUIRY", itl=other), lambda outcome: script.log.append(("other", outcome)))
        assert script.started == ["other"]

    lu.run(lu.unit.abort_task_set(lu.itl, cancel))


def test_a_handler_at_work_ends_as_aborted_and_changes_nothing(script, lu):
    lu.gate.in_flight_ended.clear()
    script.mode_select("select")
    assert not script.log

    async def cancel():
        lu.gate.in_flight_ended.set()

    lu.run(lu.unit.abort_task_set(lu.itl, cancel))
    lu.settle()
    assert script.log == [("select", Aborted())]
    assert lu.unit.write_cache
    assert not lu.gate.bits & GateBit.HOLD


def test_logical_unit_reset(script, lu, fails):
    other = blocked(script, lu)
    lu.unit.finished(script.tasks["running"])
    lu.settle()
    script.mode_select("select")
    assert not lu.unit.write_cache
    lu.run(lu.unit.logical_unit_reset())
    assert lu.unit.write_cache
    fails(lu, "TEST UNIT READY", sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED)
    fails(lu, "TEST UNIT READY", sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED, itl=other)
    assert not lu.gate.bits & GateBit.TMF


def test_a_reset_keeps_the_write_cache_when_the_flush_fails(make_lu, caplog):
    lu = make_lu(write_cache=False)
    script = Script(lu)
    on = bytes.fromhex("00000000" + "0812040000000000000000000000000000000000")
    script.submit("on", command="MODE SELECT(6)", pf=1, parameter_list_length=len(on), data_out=on)
    lu.medium.flush_failed = True
    lu.run(lu.unit.logical_unit_reset(lu.itl))
    assert lu.unit.write_cache
    assert "reset by guest" in caplog.text
    assert "flush failed" in caplog.text


def test_a_lost_nexus_learns_of_it_and_nobody_else(script, lu, fails, executes):
    other = blocked(script, lu)
    lu.run(lu.unit.nexus_lost(other))
    assert script.outcome("c") == Aborted()
    assert script.started == ["running", "c"]
    script.finish("running")
    fails(lu, "TEST UNIT READY", sense.I_T_NEXUS_LOSS_OCCURRED, itl=other)
    executes(lu, "TEST UNIT READY")


def test_detach_ends_the_tasks_of_the_nexus(script, lu):
    other = blocked(script, lu)
    lu.run(lu.unit.detach(other))
    assert script.outcome("c") == Aborted()
    assert lu.unit.itls == [lu.itl]


def test_an_ordered_task_aborted_at_its_fence_never_runs(script, lu):
    lu.gate.in_flight_ended.clear()
    script.submit("ordered", ORDERED)

    async def cancel():
        lu.gate.in_flight_ended.set()

    lu.run(lu.unit.clear_task_set(lu.itl, cancel))
    lu.settle()
    assert script.log == [("ordered", Aborted())]
    assert not lu.gate.bits & GateBit.ORDERED


# ---- faults of our own ----


def test_a_handler_that_fails_is_an_internal_target_failure_logged_once_a_second(lu, fails, monkeypatch, caplog):
    monkeypatch.setattr(lu, "luns", None)
    for _ in range(3):
        fails(lu, "REPORT LUNS", sense.INTERNAL_TARGET_FAILURE)
    assert len(caplog.records) == 1
    assert "disk0" in caplog.text


def test_a_handler_that_fails_while_it_waits_leaves_the_unit_usable(lu, fails, ok, monkeypatch):
    async def broken():
        raise RuntimeError("no flush today")

    monkeypatch.setattr(lu.medium, "flush", broken)
    fails(lu, "START STOP UNIT", sense.INTERNAL_TARGET_FAILURE)
    assert not lu.gate.bits & GateBit.HOLD
    ok(lu, "INQUIRY")


def test_a_failed_flush_refuses_every_promise_of_durability(lu, fails, executes):
    lu.medium.flush_failed = True
    fails(lu, "SYNCHRONIZE CACHE(10)", sense.WRITE_ERROR)
    fails(lu, "SYNCHRONIZE CACHE(16)", sense.WRITE_ERROR)
    fails(lu, "WRITE(10)", sense.WRITE_ERROR, fua=1, blocks=1)
    executes(lu, "WRITE(10)", blocks=1)
    executes(lu, "READ(10)", fua=1, blocks=1)


def test_without_a_write_cache_every_write_is_such_a_promise(make_lu, fails):
    fails(make_lu(write_cache=False, flush_failed=True), "WRITE(10)", sense.WRITE_ERROR, blocks=1)


@pytest.mark.parametrize(
    "command",
    [
        "WRITE(6)",
        "WRITE(10)",
        "WRITE(12)",
        "WRITE(16)",
        "WRITE SAME(10)",
        "WRITE SAME(16)",
        "UNMAP",
        "COMPARE AND WRITE",
    ],
)
def test_a_read_only_medium_refuses_what_would_change_it(make_lu, fails, command):
    lu = make_lu(read_only=True)
    assert lu.gate.bits & GateBit.WRITE_PROTECTED
    fails(lu, command, sense.WRITE_PROTECTED)


@pytest.mark.parametrize("command", ["READ(10)", "VERIFY(16)", "SYNCHRONIZE CACHE(10)", "TEST UNIT READY"])
def test_a_read_only_medium_serves_the_rest(make_lu, executes, command):
    executes(make_lu(read_only=True), command)


def test_outcomes_compare_by_value():
    assert Complete(Status.GOOD) == Complete(Status.GOOD)
