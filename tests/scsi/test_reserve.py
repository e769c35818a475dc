# SPDX-License-Identifier: Apache-2.0
"""PERSISTENT RESERVE IN and OUT as bytes, what is kept of them, and what is refused."""

import asyncio

import pytest

from tests.scsi.reserving import NAME, Cluster, basic, moving
from vhost_scsi.scsi import reservation_data, sense, sense_data, transport_id
from vhost_scsi.scsi.reservations import MAX_REGISTRATIONS, NexusId, Reservations, Type
from vhost_scsi.scsi.reserve import BLOB, ReservationKeeper
from vhost_scsi.scsi.saved_state import NotKept, SavedStateDamaged, SavedStateError
from vhost_scsi.scsi.task import Aborted, Status

BOOT, NEXT_BOOT = bytes(16), bytes([1] * 16)
LIST_ERROR, FIELD_ERROR = sense.PARAMETER_LIST_LENGTH_ERROR, sense.INVALID_FIELD_IN_PARAMETER_LIST


class Kept(NotKept):
    """Counts as durable; `fails` makes it a full disk."""

    durable = True
    fails = False

    async def put(self, name, data):
        await asyncio.sleep(0)
        if self.fails:
            raise SavedStateError("No space left on device")
        await super().put(name, data)


@pytest.fixture
def saved():
    return Kept()


@pytest.fixture
def cluster(saved, loop):
    return Cluster(loop, saved)


def good(outcome):
    assert outcome.status is Status.GOOD, sense_data.parse(outcome.sense) if outcome.sense else outcome.status
    return outcome.data_in


def refused(outcome, code, at=None):
    assert outcome.status is Status.CHECK_CONDITION
    told = sense_data.parse(outcome.sense)
    assert told.code is code
    if at is not None:
        assert told.field.byte == at


def conflicted(outcome):
    assert outcome.status is Status.RESERVATION_CONFLICT


def read(cluster, name, action):
    return good(cluster.outcome(name, f"PERSISTENT RESERVE IN, {action}"))


def keys(cluster):
    data = read(cluster, "d", "READ KEYS")
    return [int.from_bytes(data[at : at + 8]) for at in range(8, len(data), 8)]


def full_status(cluster):
    data = reservation_data.LISTED.parse(read(cluster, "d", "READ FULL STATUS")).data
    found = []
    while data:
        one = reservation_data.FULL_STATUS.parse(data)
        found.append((one.key, bool(one.flags.holder), one.scope_type, one.port, one.initiator))
        data = data[24 + len(one.initiator) :]
    return found


# ---- PERSISTENT RESERVE IN -----------------------------------------------------------------------------------------


def test_an_unused_unit_has_no_keys_and_no_reservation(cluster):
    assert read(cluster, "a", "READ KEYS") == bytes(8)
    assert read(cluster, "a", "READ RESERVATION") == bytes(8)


def test_capabilities(cluster):
    assert read(cluster, "a", "REPORT CAPABILITIES") == bytes([0, 8, 0x9D, 0x90, 0xEA, 0x01, 0, 0])
    good(cluster.out("a", "REGISTER", basic(0, 1, aptpl=True)))
    assert read(cluster, "a", "REPORT CAPABILITIES")[3] == 0x91


def test_what_is_reserved_is_read_with_key_and_type(cluster):
    good(cluster.out("a", "REGISTER", basic(0, 0xABCD)))
    good(cluster.out("a", "RESERVE", basic(0xABCD), Type.WRITE_EXCLUSIVE))
    data = read(cluster, "b", "READ RESERVATION")
    assert data == bytes([0, 0, 0, 1, 0, 0, 0, 16]) + (0xABCD).to_bytes(8) + bytes([0, 0, 0, 0, 0, 1, 0, 0])


def test_all_registrants_have_no_key_of_their_own(cluster):
    good(cluster.out("a", "REGISTER", basic(0, 5)))
    good(cluster.out("a", "RESERVE", basic(5), Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS))
    assert read(cluster, "b", "READ RESERVATION")[8:22] == bytes(13) + b"\x07"


def test_full_status_names_ports_as_their_protocols_do(cluster):
    good(cluster.out("a", "REGISTER", basic(0, 5)))
    good(cluster.out("c", "REGISTER", basic(0, 6)))
    good(cluster.out("c", "RESERVE", basic(6), Type.EXCLUSIVE_ACCESS))
    iscsi, sas = full_status(cluster)
    assert iscsi == (5, False, 0, 1, transport_id.iscsi(NAME, 0x80_0000_0001))
    assert iscsi[4].startswith(b"\x45\x00")
    assert f"{NAME},i,0x008000000001\0".encode() in iscsi[4]
    assert sas[:4] == (6, True, 3, 2)
    assert (len(sas[4]), sas[4][0], sas[4][4] >> 4) == (24, 6, 3)


def test_parameter_data_end_at_the_allocation_length(cluster):
    good(cluster.out("a", "REGISTER", basic(0, 5)))
    assert len(good(cluster.outcome("a", "PERSISTENT RESERVE IN, READ KEYS", allocation_length=9))) == 9


# ---- PERSISTENT RESERVE OUT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 23, 25])
def test_a_list_has_24_bytes(cluster, length):
    refused(cluster.out("a", "REGISTER", basic(0, 1).ljust(length, b"\0")[:length]), LIST_ERROR)


def test_scope_and_type_are_looked_at_where_they_mean_something(cluster):
    good(cluster.out("a", "REGISTER", basic(0, 1), 0xF))
    for action in ("RESERVE", "RELEASE", "PREEMPT", "PREEMPT AND ABORT"):
        for kind in (0, 2, 4, 9, 15):
            refused(cluster.out("a", action, basic(1, 1), kind), sense.INVALID_FIELD_IN_CDB, 2)
        refused(cluster.out("a", action, basic(1, 1), 1, scope=1), sense.INVALID_FIELD_IN_CDB, 2)
    good(cluster.out("a", "CLEAR", basic(1), 0xF))


def test_spec_i_pt_registers_others_too(cluster):
    others = [cluster.id("b").initiator, transport_id.sas(0x3123456789ABCDEF)]
    good(cluster.out("a", "REGISTER", basic(0, 9, spec_i_pt=True, initiators=others)))
    assert [(key, port) for key, _, _, port, _ in full_status(cluster)] == [(9, 1)] * 3
    good(cluster.out("b", "RESERVE", basic(9), 1))


def test_an_iscsi_device_stands_for_its_ports_that_are_known(cluster):
    device = transport_id.iscsi(NAME.replace("-a", "-b"), None)
    good(cluster.out("a", "REGISTER", basic(0, 9, spec_i_pt=True, initiators=[device])))
    assert {each[4] for each in full_status(cluster)} == {cluster.id("a").initiator, cluster.id("b").initiator}


def test_spec_i_pt_is_for_those_who_register(cluster):
    data = basic(0, 9, spec_i_pt=True, initiators=[cluster.id("b").initiator])
    refused(cluster.out("a", "REGISTER AND IGNORE EXISTING KEY", data), FIELD_ERROR, 20)
    refused(cluster.out("a", "RESERVE", data, 1), FIELD_ERROR, 20)
    refused(cluster.out("a", "REGISTER", basic(0, 0, spec_i_pt=True)), sense.INVALID_FIELD_IN_CDB, 1)
    good(cluster.out("a", "REGISTER", data))
    refused(cluster.out("a", "REGISTER", basic(9, 1, spec_i_pt=True)), sense.INVALID_FIELD_IN_CDB, 1)


SAS = transport_id.sas(1)
ISCSI = transport_id.iscsi("iqn.x", 1)


@pytest.mark.parametrize(
    ("initiators", "at"),
    [
        ([b"\x00" + bytes(23)], 28),  # Fibre Channel: no port of ours
        ([SAS, b"\x46" + bytes(23)], 52),
        ([SAS[:20]], 48),
        ([ISCSI[:-1]], 28 + len(ISCSI) - 1),
        ([b"\x85" + ISCSI[1:]], 28),
        ([b"\x45\0\0\x10" + b"iqn.x,i,0x1\0\0\0\0\0"], 30),
        ([b"\x45\0\0\x18" + b"x" * 24], 32),
        ([b"\x45\0\0\x18" + b"\xff" + bytes(23)], 32),
        ([b"\x45\0\0\x18" + b"no port".ljust(24, b"\0")], 32),
        ([b"\x45\0\0\x18" + bytes(24)], 32),
    ],
)
def test_names_that_are_none_are_refused_where_they_are_wrong(cluster, initiators, at):
    refused(cluster.out("a", "REGISTER", basic(0, 1, spec_i_pt=True, initiators=initiators)), FIELD_ERROR, at)
    assert keys(cluster) == []


@pytest.mark.parametrize(("change", "code"), [(-1, LIST_ERROR), (1, FIELD_ERROR)])
def test_the_list_of_names_is_as_long_as_it_says(cluster, change, code):
    data = basic(0, 1, spec_i_pt=True, initiators=[SAS])
    data = data[:change] if change < 0 else data + b"\0"
    refused(cluster.out("a", "REGISTER", data), code)
    refused(cluster.out("a", "REGISTER", data[:24]), LIST_ERROR)


def test_names_differ_in_spelling_only(cluster):
    spelled = cluster.id("b").initiator.replace(b"iqn", b"IQN")
    good(cluster.out("a", "REGISTER", basic(0, 9, spec_i_pt=True, initiators=[spelled])))
    good(cluster.out("b", "RESERVE", basic(9), 1))


def test_all_tg_pt_is_every_port_of_the_protocol(cluster):
    good(cluster.out("c", "REGISTER", basic(0, 4, all_tg_pt=True)))
    assert [(key, port) for key, _, _, port, _ in full_status(cluster)] == [(4, 2), (4, 3)]
    good(cluster.out("c", "REGISTER", basic(4, 0, all_tg_pt=True)))
    assert full_status(cluster) == []


def test_registrations_end(cluster):
    state = Reservations({NexusId(transport_id.sas(n), 1): 1 for n in range(MAX_REGISTRATIONS)})
    cluster.rig.unit.reservations.state = state
    refused(cluster.out("a", "REGISTER", basic(0, 1)), sense.INSUFFICIENT_REGISTRATION_RESOURCES)


def test_move_takes_the_reservation_along(cluster):
    good(cluster.out("c", "REGISTER", basic(0, 1)))
    good(cluster.out("c", "RESERVE", basic(1), 3))
    to = cluster.id("d")
    good(cluster.out("c", "REGISTER AND MOVE", moving(1, 7, to.port, to.initiator, unregister=True, aptpl=True)))
    assert [(key, holder) for key, holder, *_ in full_status(cluster)] == [(7, True)]
    conflicted(cluster.outcome("c", "READ(10)"))


def test_move_says_what_is_wrong(cluster):
    good(cluster.out("c", "REGISTER", basic(0, 1)))
    good(cluster.out("c", "RESERVE", basic(1), 3))
    to, me, other = cluster.id("d"), cluster.id("c"), cluster.id("a")
    move = "REGISTER AND MOVE"
    refused(cluster.out("c", move, moving(1, 7, 99, to.initiator)), FIELD_ERROR, 18)
    refused(cluster.out("c", move, moving(1, 7, other.port, other.initiator)), FIELD_ERROR, 18)
    refused(cluster.out("c", move, moving(1, 7, to.port, other.initiator)), FIELD_ERROR, 24)
    refused(cluster.out("c", move, moving(1, 7, me.port, me.initiator)), FIELD_ERROR, 24)
    refused(cluster.out("c", move, moving(1, 7, to.port, transport_id.iscsi("iqn.x", None))), FIELD_ERROR, 24)
    refused(cluster.out("c", move, moving(1, 7, to.port, to.initiator + to.initiator)), FIELD_ERROR, 20)
    refused(cluster.out("c", move, moving(1, 7, to.port, to.initiator)[:-1]), LIST_ERROR)
    refused(cluster.out("c", move, moving(1, 7, to.port, to.initiator) + b"\0"), FIELD_ERROR, 20)
    refused(cluster.out("c", move, bytes(23)), LIST_ERROR)
    refused(cluster.out("c", move, moving(1, 0, to.port, to.initiator)), FIELD_ERROR, 8)
    conflicted(cluster.out("d", move, moving(1, 7, me.port, me.initiator)))


def test_nothing_was_lost_that_could_be_replaced(cluster):
    refused(cluster.out("a", "REPLACE LOST RESERVATION", basic(0, 1), 1), sense.INVALID_FIELD_IN_CDB)


# ---- what passes ---------------------------------------------------------------------------------------------------


def test_a_unit_may_be_started_by_anybody_and_stopped_by_the_holder(cluster):
    good(cluster.out("a", "REGISTER", basic(0, 1)))
    good(cluster.out("a", "RESERVE", basic(1), 3))
    good(cluster.outcome("b", "START STOP UNIT", start=1))
    conflicted(cluster.outcome("b", "START STOP UNIT"))
    conflicted(cluster.outcome("b", "MODE SENSE(6)", page_code=0x3F))
    good(cluster.outcome("b", "READ CAPACITY(10)"))


def test_a_reserve_lets_little_pass(cluster):
    good(cluster.outcome("a", "RESERVE(10)"))
    for command in ("INQUIRY", "REPORT LUNS", "REQUEST SENSE", "RELEASE(6)"):
        good(cluster.outcome("b", command))
    for command in ("TEST UNIT READY", "READ(10)", "MODE SENSE(6)", "RESERVE(6)", "PERSISTENT RESERVE IN, READ KEYS"):
        conflicted(cluster.outcome("b", command))
    conflicted(cluster.out("a", "REGISTER", basic(0, 1)))
    good(cluster.outcome("a", "RESERVE(6)"))


def test_who_comes_later_meets_the_reservation(cluster):
    good(cluster.out("a", "REGISTER", basic(0, 1)))
    good(cluster.out("a", "RESERVE", basic(1), 3))
    late = cluster.rig.attach()
    late.take()
    assert late.gate.bits
    conflicted(cluster.rig.outcome("READ(10)", itl=late))


# ---- what is kept --------------------------------------------------------------------------------------------------


def again(cluster, saved, boot=None):
    """The unit in the next process."""
    return ReservationKeeper(Cluster(cluster.loop, saved).rig.unit, boot)


def test_everything_is_kept_over_a_restart(cluster, saved):
    good(cluster.out("a", "REGISTER", basic(0, 1)))
    good(cluster.out("c", "REGISTER", basic(0, 2)))
    good(cluster.out("c", "RESERVE", basic(2), 6))
    assert again(cluster, saved).state == cluster.rig.unit.reservations.state
    good(cluster.out("c", "CLEAR", basic(2)))
    assert again(cluster, saved).state.registered == {}


def test_a_power_cycle_keeps_what_was_asked_for(cluster, saved):
    good(cluster.out("a", "REGISTER", basic(0, 1, aptpl=True)))
    good(cluster.out("a", "RESERVE", basic(1), 6))
    state = again(cluster, saved, NEXT_BOOT).state
    assert (dict(state.registered), state.type, state.generation) == ({cluster.id("a"): 1}, 6, 0)
    good(cluster.out("a", "REGISTER", basic(1, 1)))
    assert again(cluster, saved, NEXT_BOOT).state == Reservations()


def test_a_reserve_of_a_machine_is_kept_and_of_a_session_is_not(cluster, saved):
    good(cluster.outcome("c", "RESERVE(6)"))
    assert again(cluster, saved).state.legacy == cluster.id("c")
    assert again(cluster, saved, NEXT_BOOT).state == Reservations()
    good(cluster.outcome("c", "RELEASE(6)"))
    good(cluster.outcome("a", "RESERVE(6)"))
    assert again(cluster, saved).state.legacy is None


def test_what_cannot_be_kept_has_not_happened(cluster, saved, caplog):
    good(cluster.out("a", "REGISTER", basic(0, 1)))
    before = cluster.rig.unit.reservations.state
    saved.fails = True
    refused(cluster.out("a", "RESERVE", basic(1), 3), sense.INTERNAL_TARGET_FAILURE)
    assert cluster.rig.unit.reservations.state == before
    assert "No space left" in caplog.text
    assert not cluster.itls["b"].gate.bits


def test_without_a_place_nothing_is_promised(loop):
    cluster = Cluster(loop)
    assert read(cluster, "a", "REPORT CAPABILITIES")[2:4] == bytes([0x9C, 0x90])
    refused(cluster.out("a", "REGISTER", basic(0, 1, aptpl=True)), FIELD_ERROR, 20)
    to = cluster.id("d")
    refused(cluster.out("c", "REGISTER AND MOVE", moving(0, 1, to.port, to.initiator, aptpl=True)), FIELD_ERROR, 17)


# ---- lost ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def lost(loop, saved, caplog):
    saved._blobs[BLOB] = b"not what it was"
    cluster = Cluster(loop, saved)
    assert "cannot be read" in caplog.text
    return cluster


def test_a_unit_that_lost_its_reservations_lets_nobody_in(lost):
    code = sense.PERSISTENT_RESERVATION_INFORMATION_LOST
    for command in ("READ(10)", "WRITE(10)", "TEST UNIT READY", "PERSISTENT RESERVE IN, READ KEYS", "RESERVE(6)"):
        refused(lost.outcome("a", command), code)
    refused(lost.out("a", "REGISTER", basic(0, 1)), code)
    refused(lost.out("a", "RESERVE", basic(1), 1), code)
    good(lost.outcome("a", "INQUIRY"))
    good(lost.outcome("a", "PERSISTENT RESERVE IN, REPORT CAPABILITIES"))


def test_who_knows_takes_it_back(lost):
    replace = "REPLACE LOST RESERVATION"
    refused(lost.out("a", replace, basic(1, 2), 3), FIELD_ERROR, 0)
    refused(lost.out("a", replace, basic(0, 0), 3), FIELD_ERROR, 8)
    good(lost.out("a", replace, basic(0, 2), 3))
    assert [(key, holder) for key, holder, *_ in full_status(lost)] == [(2, True)]
    conflicted(lost.outcome("b", "READ(10)"))


STATE = Reservations({NexusId(SAS, 1): 5, NexusId(ISCSI, 2): 6}, Type.EXCLUSIVE_ACCESS, NexusId(ISCSI, 2), 7, True)


@pytest.mark.parametrize("cut", range(1, len(reservation_data.keep(STATE, BOOT)), 7))
def test_every_part_of_a_blob_is_missed(cut):
    blob = reservation_data.keep(STATE, BOOT)
    assert reservation_data.recall(blob, BOOT) == STATE
    for wrong in (blob[:cut], blob + b"\0", b"\xff\xff" + blob[2:], blob[:24] + b"\x09" + blob[25:]):
        with pytest.raises(SavedStateDamaged):
            reservation_data.recall(wrong, BOOT)


# ---- aborts --------------------------------------------------------------------------------------------------------


def test_one_that_waits_for_its_turn_is_aborted_by_the_one_before(cluster):
    for name, key in (("a", 1), ("c", 2)):
        good(cluster.out(name, "REGISTER", basic(0, key)))
    first, second = [], []

    async def both():
        for name, data, outcomes in (("a", basic(1, 2), first), ("c", basic(2, 1), second)):
            task = cluster.rig.task(
                "PERSISTENT RESERVE OUT, PREEMPT AND ABORT",
                itl=cluster.itls[name],
                type=1,
                parameter_list_length=24,
                data_out=data,
            )
            cluster.rig.unit.submit(task, outcomes.append)
        while not (first and second):
            await asyncio.sleep(0)

    cluster.run(both())
    good(first[0])
    assert second == [Aborted()]
    assert keys(cluster) == [1]
