# SPDX-License-Identifier: Apache-2.0
"""A medium that can be taken out, of a disk and of a drive with a tray: ejected, loaded, changed, locked, and who hears
of it."""

import asyncio

import pytest

from tests.scsi.reserving import basic
from vhost_scsi.scsi import removable, sense, sense_data, transport_id
from vhost_scsi.scsi.commands import COMMANDS, Conflict, DeviceType
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.nexus import InitiatorPort, Nexus
from vhost_scsi.scsi.saved_state import NotKept, SavedStateError
from vhost_scsi.scsi.task import Aborted

EJECT, LOAD = {"loej": 1}, {"loej": 1, "start": 1}
CHANGED = sense.NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED
NEEDS_MEDIUM = [row for row in COMMANDS if row.gate_mask & GateBit.NO_MEDIUM and DeviceType.DISK in row.device_types]


@pytest.fixture
def disk(make_lu):
    return make_lu(removable=True)


@pytest.fixture
def drive(make_lu):
    return make_lu(removable=True, device_type=DeviceType.CD_DVD, block_size=2048, read_only=True)


def told(rig, ok, itl=None):
    return sense_data.parse(ok(rig, "REQUEST SENSE", itl=itl)).code


@pytest.mark.parametrize("which", ["disk", "drive"])
def test_inquiry_says_that_the_medium_is_removable(which, ok, request, lu):
    assert ok(request.getfixturevalue(which), "INQUIRY")[1] == 0x80
    assert ok(lu, "INQUIRY")[1] == 0


@pytest.mark.parametrize("row", NEEDS_MEDIUM, ids=lambda row: row.name)
def test_an_ejected_disk_refuses_what_needs_the_medium_until_it_is_loaded(disk, ok, fails, row):
    ok(disk, "START STOP UNIT", **EJECT)
    assert disk.gate.bits & GateBit.NO_MEDIUM
    fails(disk, plain(row), sense.MEDIUM_NOT_PRESENT)
    ok(disk, "START STOP UNIT", **LOAD)
    assert not disk.gate.bits & (GateBit.NO_MEDIUM | GateBit.HOLD)


def plain(row):
    """A CDB without any field."""
    cdb = bytearray(row.cdb_length)
    cdb[0] = row.opcode
    if row.opcode == 0x7F:
        cdb[7], cdb[8:10] = row.cdb_length - 8, row.service_action.to_bytes(2)
    else:
        cdb[1] |= row.service_action or 0
    return bytes(cdb)


def test_ejecting_makes_durable_first(disk, ok, fails, executes):
    ok(disk, "START STOP UNIT", **EJECT)
    assert disk.medium.log == ["flush"]
    ok(disk, "START STOP UNIT", **LOAD)
    disk.medium.flush_failed = True
    fails(disk, "START STOP UNIT", sense.WRITE_ERROR, **EJECT)
    executes(disk, "READ(10)", lba=0, blocks=1)
    ok(disk, "START STOP UNIT", no_flush=1, **EJECT)
    fails(disk, "READ(10)", sense.MEDIUM_NOT_PRESENT)


def test_a_drive_that_only_reads_has_nothing_to_flush(drive, ok):
    ok(drive, "START STOP UNIT", **EJECT)
    assert drive.medium.log == []


def test_ejecting_and_loading_twice_is_no_error(disk, ok):
    for values in (LOAD, EJECT, EJECT, LOAD, LOAD):
        ok(disk, "START STOP UNIT", **values)
    assert disk.unit.drive.present


def test_a_stop_makes_durable_and_is_no_obstacle(disk, ok, fails, executes):
    ok(disk, "START STOP UNIT")
    assert disk.medium.log == ["flush"]
    executes(disk, "READ(10)", lba=0, blocks=1)
    ok(disk, "START STOP UNIT", no_flush=1)
    ok(disk, "START STOP UNIT", start=1)
    assert disk.medium.log == ["flush"]
    disk.medium.flush_failed = True
    fails(disk, "START STOP UNIT", sense.WRITE_ERROR)


def test_with_a_power_condition_nothing_is_ejected(make_lu, ok, executes):
    rig = make_lu(removable=True, strict=False)
    ok(rig, bytes([0x1B, 0, 0, 0, 0x32, 0]))
    executes(rig, "READ(10)", lba=0, blocks=1)


def test_where_the_medium_is_matters_to_a_drive_with_a_tray(drive, ok, fails):
    ok(drive, "START STOP UNIT", **EJECT)
    fails(drive, "TEST UNIT READY", sense.MEDIUM_NOT_PRESENT_TRAY_OPEN)
    assert told(drive, ok) is sense.MEDIUM_NOT_PRESENT_TRAY_OPEN
    drive.unit.drive.take_out()
    fails(drive, "TEST UNIT READY", sense.MEDIUM_NOT_PRESENT_TRAY_OPEN)
    ok(drive, "START STOP UNIT", **LOAD)
    fails(drive, "TEST UNIT READY", sense.MEDIUM_NOT_PRESENT_TRAY_CLOSED)
    drive.unit.drive.put_in()
    fails(drive, "TEST UNIT READY", CHANGED)
    ok(drive, "READ CAPACITY(10)")


def test_a_unit_may_begin_without_a_medium(make_lu, ok, fails, executes):
    rig = make_lu(removable=True, filled=False)
    fails(rig, "TEST UNIT READY", sense.MEDIUM_NOT_PRESENT)
    ok(rig, "INQUIRY")
    rig.unit.drive.take_out()
    fails(rig, "START STOP UNIT", sense.MEDIUM_NOT_PRESENT, **LOAD)
    rig.unit.drive.put_in()
    fails(rig, "READ(10)", CHANGED)
    executes(rig, "READ(10)", lba=0, blocks=1)


def test_everybody_learns_of_a_medium_but_who_loaded_it(disk, ok, fails):
    other = disk.attach()
    other.take()
    ok(disk, "START STOP UNIT", **EJECT)
    ok(disk, "START STOP UNIT", **LOAD)
    assert told(disk, ok) is sense.NO_ADDITIONAL_SENSE_INFORMATION
    fails(disk, "READ(10)", CHANGED, itl=other)
    disk.unit.drive.take_out()
    disk.unit.drive.put_in()
    fails(disk, "READ(10)", CHANGED)
    fails(disk, "READ(10)", CHANGED, itl=other)


def test_a_unit_that_is_not_removable_has_neither_loej_nor_a_lock(lu, ok, fails):
    fails(lu, "START STOP UNIT", sense.INVALID_FIELD_IN_CDB, at=(4, 1), **EJECT)
    fails(lu, "PREVENT ALLOW MEDIUM REMOVAL", sense.INVALID_COMMAND_OPERATION_CODE)
    usage = ok(lu, "REPORT SUPPORTED OPERATION CODES", reporting_options=1, requested_operation_code=0x1B)
    assert usage[4:10] == bytes.fromhex("1B01000FF504")


def test_report_supported_operation_codes_of_a_removable_unit(disk, ok):
    usage = ok(disk, "REPORT SUPPORTED OPERATION CODES", reporting_options=1, requested_operation_code=0x1B)
    assert usage[4:10] == bytes.fromhex("1B01000FF704")
    usage = ok(disk, "REPORT SUPPORTED OPERATION CODES", reporting_options=1, requested_operation_code=0x1E)
    assert usage[4:10] == bytes.fromhex("1E0000000104")


# ---- the lock ----------------------------------------------------------------------------------------------------


def prevent(rig, ok, prevented=1, itl=None):
    ok(rig, "PREVENT ALLOW MEDIUM REMOVAL", prevent=prevented, itl=itl)


def test_who_prevents_keeps_everybody_from_ejecting(disk, ok, fails, executes):
    other = disk.attach()
    other.take()
    prevent(disk, ok)
    fails(disk, "START STOP UNIT", sense.MEDIUM_REMOVAL_PREVENTED, **EJECT)
    fails(disk, "START STOP UNIT", sense.MEDIUM_REMOVAL_PREVENTED, itl=other, **EJECT)
    executes(disk, "READ(10)", lba=0, blocks=1)
    prevent(disk, ok, 0, itl=other)  # it is not his to allow
    fails(disk, "START STOP UNIT", sense.MEDIUM_REMOVAL_PREVENTED, **EJECT)
    prevent(disk, ok, 0)
    ok(disk, "START STOP UNIT", **EJECT)


@pytest.mark.parametrize("aborted", [False, True])
def test_a_lock_whose_nexus_is_about_to_be_lost_does_not_keep_its_initiator_out(disk, ok, aborted):
    back = disk.attach()
    back.take()
    prevent(disk, ok)

    async def sequence():
        found = disk.submit(disk.task("START STOP UNIT", itl=back, **EJECT))
        await asyncio.sleep(0)
        assert not found
        if aborted:
            await disk.unit.abort_task_set(back)
        await disk.unit.nexus_lost(disk.itl)
        while not found:
            await asyncio.sleep(0)
        return found

    outcome = disk.run(sequence())
    disk.settle()
    assert isinstance(outcome[0], Aborted) == aborted
    assert disk.unit.drive.open == (not aborted)
    assert not disk.unit.tasks()
    assert not disk.gate.bits & GateBit.HOLD


def test_all_who_prevented_must_allow(disk, ok, fails):
    other = disk.attach()
    other.take()
    prevent(disk, ok)
    prevent(disk, ok, itl=other)
    prevent(disk, ok, 0)
    fails(disk, "START STOP UNIT", sense.MEDIUM_REMOVAL_PREVENTED, **EJECT)
    prevent(disk, ok, 0, itl=other)
    ok(disk, "START STOP UNIT", **EJECT)


def test_a_locked_drive_that_is_open_stays_open(disk, ok, fails):
    ok(disk, "START STOP UNIT", **EJECT)
    prevent(disk, ok)
    fails(disk, "START STOP UNIT", sense.MEDIUM_REMOVAL_PREVENTED, **LOAD)
    ok(disk, "START STOP UNIT", **EJECT)
    prevent(disk, ok, 0)
    ok(disk, "START STOP UNIT", **LOAD)


def test_allowing_meets_no_reservation():
    row = next(row for row in COMMANDS if row.opcode == 0x1E)
    assert row.conflict_of(bytes.fromhex("1E0000000104")) is Conflict.WRITE
    assert row.conflict_of(bytes.fromhex("1E0000000000")) is Conflict.ALLOWED


def test_persistent_prevention_is_refused(disk, fails):
    fails(disk, bytes([0x1E, 0, 0, 0, 2, 0]), sense.INVALID_FIELD_IN_CDB, at=(4, 1))


@pytest.mark.parametrize("end", ["nexus", "unit", "detached", "taken out"])
def test_prevention_ends_with_its_nexus_a_reset_and_brute_force(disk, ok, end):
    other = disk.attach()
    other.take()
    prevent(disk, ok, itl=other)
    assert disk.unit.drive.locked
    if end == "nexus":
        disk.run(disk.unit.nexus_lost(other))
    elif end == "unit":
        disk.run(disk.unit.logical_unit_reset(disk.itl))
    elif end == "detached":
        disk.run(disk.unit.detach(other))
    else:
        disk.unit.drive.take_out()
    assert not disk.unit.drive.locked


def test_a_reset_moves_no_tray(drive, ok):
    ok(drive, "START STOP UNIT", **EJECT)
    drive.run(drive.unit.logical_unit_reset(drive.itl))
    assert drive.unit.drive.open


# ---- over a restart ----


def restarted(make_lu, saved, **given):
    return make_lu(removable=True, device_type=DeviceType.CD_DVD, block_size=2048, read_only=True, saved=saved, **given)


def test_a_lock_and_an_open_tray_are_there_again(make_lu, ok, fails):
    saved = NotKept()
    before = restarted(make_lu, saved)
    ok(before, "PREVENT ALLOW MEDIUM REMOVAL", prevent=1)
    again = restarted(make_lu, saved)
    assert again.unit.drive.locked
    fails(again, "START STOP UNIT", sense.MEDIUM_REMOVAL_PREVENTED, **EJECT)
    ok(again, "PREVENT ALLOW MEDIUM REMOVAL")
    ok(again, "START STOP UNIT", **EJECT)
    opened = restarted(make_lu, saved)
    assert opened.unit.drive.open
    assert opened.gate.bits & GateBit.NO_MEDIUM
    fails(opened, "READ(10)", sense.MEDIUM_NOT_PRESENT_TRAY_OPEN)
    ok(opened, "START STOP UNIT", **LOAD)
    assert restarted(make_lu, saved).unit.drive.present


def test_a_lost_nexus_has_no_lock_after_a_restart_unless_it_was_lost_by_that(make_lu, ok):
    saved = NotKept()
    first = restarted(make_lu, saved)
    ok(first, "PREVENT ALLOW MEDIUM REMOVAL", prevent=1)
    first.unit.leave()  # our process ends, and the guest goes on
    first.run(first.unit.nexus_lost(first.itl))
    first.settle()
    second = restarted(make_lu, saved)
    assert second.unit.drive.locked
    second.run(second.unit.nexus_lost(second.itl))
    second.settle()
    assert not second.unit.drive.locked
    assert not restarted(make_lu, saved).unit.drive.locked


def test_a_reset_ends_a_kept_lock(make_lu, ok):
    saved = NotKept()
    first = restarted(make_lu, saved)
    ok(first, "PREVENT ALLOW MEDIUM REMOVAL", prevent=1)
    first.run(first.unit.logical_unit_reset(first.itl))
    assert not restarted(make_lu, saved).unit.drive.locked


def test_preempt_and_abort_ends_a_lock_and_preempt_does_not(disk, ok):
    other = disk.attach(Nexus(InitiatorPort("other"), disk.port))
    other.take()
    reserve = "PERSISTENT RESERVE OUT, {}".format
    for action, locked in (("PREEMPT", True), ("PREEMPT AND ABORT", False)):
        given = {"parameter_list_length": 24}
        ok(disk, reserve("REGISTER AND IGNORE EXISTING KEY"), data_out=basic(0, 1), **given)
        ok(disk, reserve("REGISTER AND IGNORE EXISTING KEY"), itl=other, data_out=basic(0, 2), **given)
        ok(disk, "PREVENT ALLOW MEDIUM REMOVAL", itl=other, prevent=1)
        ok(disk, reserve(action), data_out=basic(1, 2), type=1, **given)
        assert disk.unit.drive.locked is locked
        other.take()


def test_locks_end_with_the_machine_and_with_an_iscsi_session(make_lu, ok, monkeypatch):
    saved = NotKept()
    first = restarted(make_lu, saved)
    initiator = InitiatorPort("iqn.2024-01.org.example:a", transport_id.iscsi("iqn.2024-01.org.example:a", 1))
    ok(first, "PREVENT ALLOW MEDIUM REMOVAL", prevent=1)
    remote = first.attach(Nexus(initiator, first.port))
    remote.take()
    ok(first, "PREVENT ALLOW MEDIUM REMOVAL", itl=remote, prevent=1)
    again = restarted(make_lu, saved)
    assert again.itl.prevents_removal
    assert not again.attach(Nexus(initiator, again.port)).prevents_removal
    monkeypatch.setattr(removable, "this_boot", lambda: b"another boot....")
    assert not restarted(make_lu, saved).unit.drive.locked


def test_a_drive_whose_state_cannot_be_read_or_kept(make_lu, ok, caplog):
    class Broken(NotKept):
        def get(self, name):
            return b"no state" if name == removable.BLOB else None

        async def put(self, name, data):
            raise SavedStateError("No space left on device")

    drive = restarted(make_lu, Broken())
    assert "the drive's state cannot be read" in caplog.text
    ok(drive, "PREVENT ALLOW MEDIUM REMOVAL", prevent=1)
    assert drive.unit.drive.locked
    assert "the drive's state cannot be kept" in caplog.text
