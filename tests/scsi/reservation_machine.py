# SPDX-License-Identifier: Apache-2.0
"""Four initiators that send any sequence of reservation commands, and the model that must agree after each of them. How
they reach the unit is the cluster's affair: `reserving.Cluster` calls its handlers, others have real transports.
"""

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.scsi.reservation_model import CONFLICT, Model, Refused
from tests.scsi.reserving import Cluster, basic, moving
from vhost_scsi.scsi import sense_data
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.reservation_data import keep, recall
from vhost_scsi.scsi.task import Execute, Status

NAMES = st.sampled_from("abcd")
KEYS = st.sampled_from([0, 1, 2, 0xFFFF_FFFF_FFFF_FFFF])
TYPES = st.sampled_from([1, 3, 5, 6, 7, 8])
MINE = st.sampled_from([True, True, True, False])
BOOT = bytes(range(16))
STEPS = Counter()


def said(outcome):
    """GOOD, CONFLICT or a sense code."""
    if outcome.status is Status.RESERVATION_CONFLICT:
        assert not outcome.sense
        return CONFLICT
    if outcome.status is Status.CHECK_CONDITION:
        return sense_data.parse(outcome.sense).code
    assert outcome.status is Status.GOOD
    return "GOOD"


class Reserving(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.real = self.cluster()
        self.model = Model("abcd")
        self.looks = 0

    def cluster(self):
        """Another one may reach the unit in another way."""
        return Cluster()

    def teardown(self):
        self.real.close()

    def same(self, outcome, expected, *words):
        """`expected(*words)` on the model ends as `outcome` did."""
        try:
            expected(*words)
            model = "GOOD"
        except Refused as refused:
            model = refused.args[0]
        STEPS[f"{expected.__name__}: {model if isinstance(model, str) else model.name}"] += 1
        assert said(outcome) == model
        self.everybody_is_told_the_same()

    def key_of(self, name, key, mine):
        """Mostly the right one: what is refused for its key never gets to the interesting part."""
        return self.model.keys[name] or 0 if mine else key

    @initialize(
        story=st.tuples(TYPES, TYPES, st.permutations("abcd")),
        keys=st.lists(st.sampled_from([0, 1, 2, 2]), min_size=4, max_size=4),
    )
    def begin(self, story, keys):
        self.story(*story)
        for name, key in zip("abcd", keys, strict=True):
            self.register_surely(name, key)

    @rule(kind=TYPES, other=TYPES, names=st.permutations("abcd"))
    def story(self, kind, other, names):
        """What clusters do, so that every run has some of it: register, reserve, hand over, preempt, give back."""
        first, second = names[:2]
        if self.model.legacy:
            self.release_10(self.model.legacy)
        for each in self.model.registered():
            self.register(each, 0, 0, True, True)
        self.reserve_6(first, 0)
        self.release_10(first)
        for number, each in enumerate(names, 1):
            self.register(each, 0, number, False, False)
        self.reserve(first, 0, True, kind)
        self.move(first, 0, True, 7, names[2], False, True)
        holder = self.model.holders()[0]
        self.preempt(second, 0, True, holder if kind < 7 else 0, other, True)
        self.release(second, 0, True, other, False)
        if kind % 2:
            self.clear(second, 0, True)

    @rule(name=NAMES, key=KEYS, new=KEYS, mine=MINE, ignore=st.booleans())
    def register(self, name, key, new, mine, ignore):
        key = self.key_of(name, key, mine)
        action = "REGISTER AND IGNORE EXISTING KEY" if ignore else "REGISTER"
        outcome = self.real.out(name, action, basic(key, new))
        self.same(outcome, self.model.register, name, key, new, ignore)

    @rule(name=NAMES, new=st.sampled_from([1, 2]))
    def register_surely(self, name, new):
        if self.model.legacy:
            self.release_10(self.model.legacy)
        outcome = self.real.out(name, "REGISTER AND IGNORE EXISTING KEY", basic(0, new))
        self.same(outcome, self.model.register, name, 0, new, True)

    @rule(name=NAMES, key=KEYS, mine=MINE, kind=TYPES)
    def reserve(self, name, key, mine, kind):
        key = self.key_of(name, key, mine)
        self.same(self.real.out(name, "RESERVE", basic(key), kind), self.model.reserve, name, key, kind)

    @rule(name=NAMES, key=KEYS, mine=MINE, kind=TYPES, right=st.booleans())
    def release(self, name, key, mine, kind, right):
        key = self.key_of(name, key, mine)
        if right and self.model.reservation:
            kind = self.model.reservation[0]
        self.same(self.real.out(name, "RELEASE", basic(key), kind), self.model.release, name, key, kind)

    @rule(name=NAMES, key=KEYS, mine=st.booleans())
    def clear(self, name, key, mine):
        key = self.key_of(name, key, mine)
        self.same(self.real.out(name, "CLEAR", basic(key)), self.model.clear, name, key)

    @rule(name=NAMES, key=KEYS, mine=MINE, victim=st.one_of(KEYS, NAMES), kind=TYPES, abort=st.booleans())
    def preempt(self, name, key, mine, victim, kind, abort):
        if isinstance(victim, str):
            victim = self.model.keys[victim] or 0
        key = self.key_of(name, key, mine)
        action = "PREEMPT AND ABORT" if abort else "PREEMPT"
        outcome = self.real.out(name, action, basic(key, victim), kind)
        self.same(outcome, self.model.preempt, name, key, victim, kind)

    @rule(name=NAMES, key=KEYS, mine=MINE, new=KEYS, to=NAMES, unregister=st.booleans(), holder=st.booleans())
    def move(self, name, key, mine, new, to, unregister, holder):
        if holder and self.model.holders():
            [name, *_] = self.model.holders()
            to = {"a": "b", "b": "a", "c": "d", "d": "c"}[name]
        if to == name or (to in "ab") != (name in "ab"):
            return
        key, where = self.key_of(name, key, mine), self.real.id(to)
        data = moving(key, new, where.port, where.initiator, unregister=unregister)
        outcome = self.real.out(name, "REGISTER AND MOVE", data)
        self.same(outcome, self.model.move, name, key, new, to, unregister)

    @rule(name=NAMES, seldom=st.integers(0, 3))
    def reserve_6(self, name, seldom):
        if seldom:
            return
        self.same(self.real.outcome(name, "RESERVE(6)"), self.model.reserve_6, name)

    @rule(name=NAMES)
    def release_10(self, name):
        self.same(self.real.outcome(name, "RELEASE(10)"), self.model.release_6, name)

    @rule()
    def reset(self):
        """SPC-5 5.14.1: no reset touches persistent reservations; a RESERVE ends (SPC-2)."""
        self.real.reset()
        for name in "abcd":
            self.real.attentions(name)
            self.model.attentions[name] = []
        self.model.legacy = None
        STEPS["reset"] += 1

    @invariant()
    def everybody_is_told_the_same(self):
        for name in "abcd":
            assert self.real.attentions(name) == self.model.attentions[name]
            self.model.attentions[name] = []

    @invariant()
    def everybody_may_do_the_same_in_both_planes(self):
        self.looks += 1
        for index, name in enumerate("abcd"):
            bits = self.real.itls[name].gate.bits
            for what, command, mask in (
                ("read", "READ(10)", GateBit.RESERVED_READ),
                ("write", "WRITE(10)", GateBit.RESERVED_WRITE),
                ("ready", "TEST UNIT READY", GateBit.RESERVED),
            ):
                may = self.model.may(name, what)
                assert bool(bits & mask) != may
                if index != self.looks % 4:
                    continue
                outcome = self.real.outcome(name, command)
                assert isinstance(outcome, Execute) if may else said(outcome) == CONFLICT

    @invariant()
    def what_is_read_is_the_same(self):
        state = self.real.state
        keys = {self.real.id(name): key for name, key in self.model.keys.items() if key}
        assert dict(state.registered) == keys
        assert state.generation == self.model.generation
        holders = {name for name in "abcd" if state.holds(self.real.id(name))}
        assert holders == set(self.model.holders())
        assert state.type == (self.model.reservation[0] if self.model.reservation else None)

    @invariant()
    def it_comes_back_from_what_is_kept(self):
        state = self.real.state
        assert recall(keep(state, BOOT), BOOT) == state
