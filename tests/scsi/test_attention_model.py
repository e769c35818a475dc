# SPDX-License-Identifier: Apache-2.0
"""Unit attention conditions of three nexuses against a model: who is told what, in which order, and by what it ends."""

import asyncio
from collections import Counter
from typing import ClassVar

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.scsi.conftest import Rig
from tests.scsi.test_control_page import with_control
from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.mode_pages import CACHING
from vhost_scsi.scsi.nexus import InitiatorPort, Nexus
from vhost_scsi.scsi.task import Complete, Execute, Status

NEXUSES = st.integers(0, 2)
RESETS = (
    sense.POWER_ON_OCCURRED,
    sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED,
    sense.I_T_NEXUS_LOSS_OCCURRED,
)
"""SAM-5 5.14.5: the first says all that the others say"""
PREVIOUS = {Status.BUSY: sense.PREVIOUS_BUSY_STATUS, Status.TASK_SET_FULL: sense.PREVIOUS_TASK_SET_FULL_STATUS}


class Pending:
    """What a nexus is still to be told: one reset at most, then the others by age; each once."""

    def __init__(self):
        self.reset, self.others = None, []

    def add(self, code):
        if code not in RESETS:
            if code not in self.others:
                self.others.append(code)
        elif self.reset is None or RESETS.index(code) < RESETS.index(self.reset):
            self.reset = code

    def first(self):
        return self.reset or next(iter(self.others), None)

    def take(self):
        code = self.first()
        if self.reset is not None:
            self.reset = None
        elif self.others:
            self.others.pop(0)
        return code


class Attentions(RuleBasedStateMachine):
    STEPS: ClassVar = Counter()

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.rig = Rig(self.loop)
        names = ("guest1", "guest2")
        self.itls = [self.rig.itl, *(self.rig.attach(Nexus(InitiatorPort(name), self.rig.port)) for name in names)]
        self.wce = True

    @initialize(interlock=st.sampled_from([0, 2, 3]))
    def begin(self, interlock):
        self.interlock = interlock
        assert with_control(self.rig, ua_intlck_ctrl=interlock).status is Status.GOOD
        self.pending = [Pending() for _ in self.itls]
        # It outlives a reset.
        self.rig.run(self.rig.unit.save_mode())

    def told(self, code, besides=None):
        for n, pending in enumerate(self.pending):
            if n != besides:
                pending.add(code)

    def step(self, name):
        self.STEPS[name] += 1
        for itl, pending in zip(self.itls, self.pending, strict=True):
            assert itl.peek() == pending.first()
            assert bool(itl.gate.bits & GateBit.UNIT_ATTENTION) == (pending.first() is not None)

    def command(self, nexus, name, **given):
        return self.rig.outcome(name, itl=self.itls[nexus], **given)

    def is_refused(self, nexus, outcome):
        """SPC-5 7.5.10: a command tells the first condition, and ends it unless they are interlocked."""
        code = self.pending[nexus].first() if self.interlock else self.pending[nexus].take()
        if code is None:
            return False
        assert outcome.status is Status.CHECK_CONDITION
        assert sense_data.parse(outcome.sense).code is code
        return True

    @rule(nexus=NEXUSES)
    def test_unit_ready(self, nexus):
        outcome = self.command(nexus, "TEST UNIT READY")
        if not self.is_refused(nexus, outcome):
            assert isinstance(outcome, Execute)
        self.step("test unit ready")

    @rule(nexus=NEXUSES)
    def request_sense(self, nexus):
        code = self.pending[nexus].take() or sense.NO_ADDITIONAL_SENSE_INFORMATION
        assert sense_data.parse(self.command(nexus, "REQUEST SENSE").data_in).code is code
        self.step("request sense")

    @rule(nexus=NEXUSES, command=st.sampled_from(["INQUIRY", "REPORT LUNS"]))
    def pass_by(self, nexus, command):
        assert self.command(nexus, command).status is Status.GOOD
        self.step("inquiry")

    @rule()
    def resize(self):
        self.rig.unit.capacity_changed()
        self.told(sense.CAPACITY_DATA_HAS_CHANGED)
        self.step("resize")

    @rule(nexus=NEXUSES)
    def mode_select(self, nexus):
        data = bytes(4) + CACHING.build({"wce": int(not self.wce)})
        given = {"pf": 1, "parameter_list_length": len(data), "data_out": data}
        outcome = self.command(nexus, "MODE SELECT(6)", **given)
        if not self.is_refused(nexus, outcome):
            assert outcome.status is Status.GOOD
            self.wce = not self.wce
            self.told(sense.MODE_PARAMETERS_CHANGED, besides=nexus)
        self.step("mode select")

    @rule(nexus=NEXUSES)
    def reset(self, nexus):
        self.rig.run(self.rig.unit.logical_unit_reset(self.itls[nexus]))
        self.wce = True
        self.told(sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED)
        self.step("reset")

    @rule(nexus=NEXUSES)
    def lose(self, nexus):
        self.rig.run(self.rig.unit.nexus_lost(self.itls[nexus]))
        self.pending[nexus].add(sense.I_T_NEXUS_LOSS_OCCURRED)
        self.step("nexus loss")

    @rule(nexus=NEXUSES)
    def power_on(self, nexus):
        self.itls[nexus].establish(sense.POWER_ON_OCCURRED)
        self.pending[nexus] = Pending()
        self.pending[nexus].add(sense.POWER_ON_OCCURRED)
        self.step("power on")

    @rule(nexus=NEXUSES, status=st.sampled_from(sorted(PREVIOUS)))
    def full(self, nexus, status):
        """C found one command too many."""
        outcomes = []
        task = self.rig.task("TEST UNIT READY", itl=self.itls[nexus])
        self.rig.within(lambda: self.rig.unit.came_back(task, outcomes.append, status))
        assert len(outcomes) == 1
        assert not isinstance(outcomes[0], Complete), "C tells it"
        if self.interlock == 3:
            self.pending[nexus].add(PREVIOUS[status])
        self.step(status.name)

    def teardown(self):
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        asyncio.set_event_loop(None)
        self.loop.close()


def test_any_mix_of_events_and_commands(capsys):
    Attentions.STEPS.clear()
    phases = (Phase.explicit, Phase.generate)
    short = settings(max_examples=25, stateful_step_count=30, deadline=None, phases=phases, derandomize=True)
    run_state_machine_as_test(Attentions, settings=short)
    with capsys.disabled():
        print("\nunit attentions, steps: " + ", ".join(f"{name} {n}" for name, n in sorted(Attentions.STEPS.items())))
    assert {"test unit ready", "resize", "mode select", "BUSY"} <= set(Attentions.STEPS)
