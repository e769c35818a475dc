# SPDX-License-Identifier: Apache-2.0
"""Target port groups: what is reported, what a state lets through, how it changes and who is told."""

import asyncio
from dataclasses import replace

import pytest

from tests.scsi.reserving import Cluster, basic
from tests.scsi.test_reserve import Kept, conflicted, good, refused
from vhost_scsi.scsi import alua, sense
from vhost_scsi.scsi.alua import AccessState
from vhost_scsi.scsi.command import Access
from vhost_scsi.scsi.commands import COMMANDS
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.saved_state import SavedStateError

OPTIMIZED, NON_OPTIMIZED, STANDBY, UNAVAILABLE = range(4)
CLOSED = {
    AccessState.STANDBY: sense.LOGICAL_UNIT_NOT_ACCESSIBLE_TARGET_PORT_IN_STANDBY_STATE,
    AccessState.UNAVAILABLE: sense.LOGICAL_UNIT_NOT_ACCESSIBLE_TARGET_PORT_IN_UNAVAILABLE_STATE,
    AccessState.OFFLINE: sense.LOGICAL_UNIT_NOT_READY_OFFLINE,
}


class Groups(Cluster):
    """The iSCSI portal group is in group 1, the two machines in group 2."""

    def __init__(self, loop, saved):
        super().__init__(loop, saved)
        for name, itl in self.itls.items():
            port = itl.nexus.target_port
            itl.nexus.target_port = replace(port, group=1 if name in "ab" else 2)
        ports = [self.itls[name].nexus.target_port for name in "acd"]
        self.rig.unit.target_ports = lambda: ports

    def set(self, name, *pairs, tail=b""):
        data = bytes(4) + b"".join(bytes([state, 0]) + group.to_bytes(2) for group, state in pairs) + tail
        return self.outcome(name, "SET TARGET PORT GROUPS", parameter_list_length=len(data), data_out=data)

    def report(self, name="a", **fields):
        return good(self.outcome(name, "REPORT TARGET PORT GROUPS", **fields))

    def states(self):
        self.attentions("a")
        data, found = self.report()[4:], {}
        while data:
            one = alua.GROUP.parse(data)
            found[one.group] = (one.first.state, one.status, [port.id for port in one.ports])
            data = data[8 + 4 * one.count :]
        return found


@pytest.fixture
def saved():
    return Kept()


@pytest.fixture
def groups(loop, saved):
    return Groups(loop, saved)


def test_all_groups_and_ports_are_reported(groups):
    assert groups.report() == bytes.fromhex("0000001c 00cf0001 00000001 00000001 00cf0002 00000002 00000002 00000003")
    assert groups.report(parameter_data_format=1)[:12] == bytes.fromhex("00000020 100a0000 00cf0001")
    refused(groups.outcome("a", "REPORT TARGET PORT GROUPS", parameter_data_format=2), sense.INVALID_FIELD_IN_CDB, 1)


def test_inquiry_and_vpd_say_so(groups):
    assert good(groups.outcome("a", "INQUIRY"))[5] & 0x30 == 0x30
    page = good(groups.outcome("c", "INQUIRY", evpd=1, page_code=0x83))
    assert bytes.fromhex("01150004 00000002") in page


def test_a_change_is_told_to_everybody_else(groups):
    good(groups.set("a", (2, STANDBY)))
    assert groups.states() == {1: (0, 0, [1]), 2: (STANDBY, 1, [2, 3])}
    told = {name: groups.attentions(name) for name in "abcd"}
    assert told == {"a": []} | {name: [sense.ASYMMETRIC_ACCESS_STATE_CHANGED] for name in "bcd"}
    good(groups.set("a", (2, STANDBY)))
    assert groups.attentions("b") == []


@pytest.mark.parametrize("state", CLOSED)
def test_a_closed_group_lets_little_through(groups, state):
    groups.run(groups.rig.unit.port_groups.change_implicitly({2: state}))
    for name in "abcd":
        groups.attentions(name)
    assert groups.itls["c"].gate.bits == GateBit.ACCESS
    assert not groups.itls["a"].gate.bits
    for command in ("READ(10)", "WRITE(16)", "TEST UNIT READY", "SYNCHRONIZE CACHE(10)", "READ CAPACITY(10)"):
        refused(groups.outcome("c", command), CLOSED[state])
    for command in ("INQUIRY", "REPORT LUNS", "REQUEST SENSE"):
        good(groups.outcome("c", command))
    assert groups.states()[2][:2] == (state, 2)
    if state is AccessState.STANDBY:
        good(groups.outcome("c", "MODE SENSE(6)", page_code=0x3F))
        good(groups.out("c", "REGISTER", basic(0, 1)))
    else:
        refused(groups.outcome("c", "MODE SENSE(6)", page_code=0x3F), CLOSED[state])
        refused(groups.out("c", "REGISTER", basic(0, 1)), CLOSED[state])
    good(groups.set("c", (2, NON_OPTIMIZED)))
    assert not groups.itls["c"].gate.bits & GateBit.ACCESS
    assert groups.states()[2][:2] == (NON_OPTIMIZED, 1)


def test_commands_wait_for_nothing_while_a_group_changes(groups):
    """Between two states: what is in flight is waited for, and what comes is refused."""
    gate = groups.itls["c"].gate
    gate.in_flight_ended.clear()

    async def changing():
        change = asyncio.ensure_future(groups.rig.unit.port_groups.change_implicitly({2: AccessState.STANDBY}))
        await asyncio.sleep(0)
        return change

    change = groups.run(changing())
    code = sense.LOGICAL_UNIT_NOT_ACCESSIBLE_ASYMMETRIC_ACCESS_STATE_TRANSITION
    refused(groups.outcome("c", "TEST UNIT READY"), code)
    refused(groups.outcome("d", "MODE SENSE(6)"), code)
    refused(groups.set("d", (2, OPTIMIZED)), code)
    assert groups.states()[2][0] == AccessState.TRANSITIONING
    gate.in_flight_ended.set()
    groups.run(change)
    assert groups.states()[2][0] == STANDBY


def test_a_reservation_is_asked_after_the_port(groups):
    good(groups.out("a", "REGISTER", basic(0, 1)))
    good(groups.out("a", "RESERVE", basic(1), 3))
    conflicted(groups.outcome("c", "READ(10)"))
    good(groups.set("a", (2, STANDBY)))
    groups.attentions("c")
    refused(groups.outcome("c", "READ(10)"), CLOSED[AccessState.STANDBY])
    conflicted(groups.set("c", (2, OPTIMIZED)))


@pytest.mark.parametrize(
    ("pairs", "at"),
    [([(3, 0)], 6), ([(2, 4)], 4), ([(2, 0xE)], 4), ([(2, 0xF)], 4), ([(1, 0), (2, 7)], 8), ([(1, 0), (1, 1)], 10)],
)
def test_what_cannot_be_set_changes_nothing(groups, pairs, at):
    before = groups.states()
    refused(groups.set("a", *pairs), sense.INVALID_FIELD_IN_PARAMETER_LIST, at)
    assert groups.states() == before


def test_lists_of_odd_lengths(groups):
    good(groups.outcome("a", "SET TARGET PORT GROUPS"))
    good(groups.set("a"))
    refused(groups.set("a", (1, 0), tail=b"x"), sense.PARAMETER_LIST_LENGTH_ERROR)


def test_states_are_kept(groups, saved, loop, caplog):
    good(groups.set("a", (1, NON_OPTIMIZED), (2, UNAVAILABLE)))
    kept = Groups(loop, saved)
    assert kept.states() == groups.states()
    saved._blobs[alua.BLOB] = b"\0\1\0\1nonsense"
    assert Groups(loop, saved).states()[2][0] == OPTIMIZED
    assert "active again" in caplog.text


def test_a_state_that_cannot_be_kept_has_not_come(groups, saved):
    saved.fails = True
    refused(groups.set("a", (2, STANDBY)), sense.SET_TARGET_PORT_GROUPS_COMMAND_FAILED)
    assert groups.states()[2][0] == OPTIMIZED
    assert not groups.itls["c"].gate.bits
    with pytest.raises(SavedStateError):
        groups.run(groups.rig.unit.port_groups.change_implicitly({2: AccessState.OFFLINE}))
    told = [groups.attentions(name) for name in "abcd"]
    assert told == [[sense.IMPLICIT_ASYMMETRIC_ACCESS_STATE_TRANSITION_FAILED]] * 4


def test_who_comes_to_a_closed_group_finds_it_closed(groups):
    good(groups.set("a", (2, STANDBY)))
    late = groups.rig.attach(groups.itls["c"].nexus)
    assert late.gate.bits & GateBit.ACCESS


def test_a_row_that_c_runs_is_stopped_by_the_gate():
    for row in COMMANDS:
        if row.media:
            assert row.access is Access.ACTIVE
            assert row.gate_mask & GateBit.ACCESS, row.name
