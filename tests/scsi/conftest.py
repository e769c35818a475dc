# SPDX-License-Identifier: Apache-2.0
"""A logical unit on a medium and gates that only remember, and the sentences in which these tests speak.

    data = ok(lu, "INQUIRY", evpd=1, page_code=0x80)
    fails(lu, "READ(10)", sense.WRITE_PROTECTED)
    executes(lu, "READ(10)", lba=1, blocks=1)

A command is raw CDB bytes, or a row's name with values for its fields (an
allocation length is the largest unless given).
"""

import asyncio
from dataclasses import dataclass, field, fields
from uuid import UUID

import pytest

from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.commands import COMMANDS, VARIABLE_LENGTH, Command, DeviceType, Feature
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.logical_unit import LogicalUnit, LuDefinition
from vhost_scsi.scsi.medium import Capabilities, Counts, Extent, Support, Usage
from vhost_scsi.scsi.nexus import InitiatorPort, Nexus, TargetPort
from vhost_scsi.scsi.task import Aborted, Complete, Execute, Status, Task, TaskAttribute

ROWS = {row.name: row for row in COMMANDS}
ALL_NATIVE = Capabilities(Support.NATIVE, Support.NATIVE, Support.NATIVE)
UNIT_UUID = UUID("6f0a1d52-93c5-4c7e-8f5b-3d1f0b6a7e11")
PORT_UUID = UUID("0b8f3c6e-5d0c-4b0e-9a43-7f5a3c1e2d44")


class RecordingGate:
    """A gate word. `in_flight` cleared makes a fence wait, as commands in flight do, and so does `busy`."""

    def __init__(self):
        self.bits = GateBit(0)
        self.history = []
        self.in_flight_ended = asyncio.Event()
        self.in_flight_ended.set()
        self.busy = lambda: False

    def close(self, bits):
        self.bits |= bits
        self.history.append(("close", bits))

    async def fence(self, bits):
        self.bits |= bits
        self.history.append(("fence", bits))
        await self.in_flight_ended.wait()
        while self.busy():
            await asyncio.sleep(0)

    def open(self, bits):
        self.bits &= ~bits
        self.history.append(("open", bits))


@dataclass
class FakeMedium:
    block_size: int = 512
    num_blocks: int = 1 << 20
    read_only: bool = False
    rotational: bool = False
    capabilities: Capabilities = ALL_NATIVE
    lbprz: bool = True
    physical_block_exponent: int = 3
    unmap_granularity: int = 8
    atomic_blocks: int = 2048
    flush_failed: bool = False
    log: list = field(default_factory=list)
    content: dict = field(default_factory=dict)
    """blocks that are not zeroes, by address"""
    knows_map: bool = True
    used: Usage | None = field(default_factory=lambda: Usage(0, 1 << 20))
    bad: set = field(default_factory=set)
    counted: Counts = field(default_factory=Counts)
    fails_with: sense.SenseCode | None = None
    may_go: asyncio.Event = field(default_factory=asyncio.Event)
    """cleared, reads and writes wait"""

    def __post_init__(self):
        self.may_go.set()

    async def flush(self):
        self.log.append("flush")
        await asyncio.sleep(0)
        if self.flush_failed:
            raise sense.CheckCondition(sense.WRITE_ERROR)

    async def read(self, lba, blocks):
        await self._turn("read", lba, blocks)
        return b"".join(self.content.get(each, bytes(self.block_size)) for each in range(lba, lba + blocks))

    async def write(self, lba, data):
        blocks = len(data) // self.block_size
        await self._turn("write", lba, blocks)
        for each in range(blocks):
            self.content[lba + each] = data[each * self.block_size : (each + 1) * self.block_size]
            self.bad.discard(lba + each)

    async def zero(self, lba, blocks, *, may_unmap):
        await self._turn("zero", lba, blocks)
        self._drop(lba, blocks)

    async def unmap(self, lba, blocks):
        await self._turn("unmap", lba, blocks)
        self._drop(lba, blocks)

    async def _turn(self, *what):
        self.log.append(what)
        await self.may_go.wait()
        await asyncio.sleep(0)
        if self.fails_with is not None:
            raise sense.CheckCondition(self.fails_with)

    def _drop(self, lba, blocks):
        for each in [each for each in self.content if lba <= each < lba + blocks]:
            del self.content[each]

    def map(self, lba, blocks):
        if not self.knows_map:
            return None
        mapped = lba in self.content
        run = next((n for n in range(blocks) if ((lba + n) in self.content) != mapped), blocks)
        return Extent(mapped, run)

    def usage(self):
        return self.used

    def mark_bad(self, lba):
        self.bad.add(lba)
        return len(self.bad) <= 4

    def bad_blocks(self):
        return sorted(self.bad)

    def clear_bad(self, lba, blocks):
        self.bad = {each for each in self.bad if not lba <= each < lba + blocks}

    def counts(self):
        return self.counted

    def set_write_cache(self, enabled):
        self.log.append(("write_cache", enabled))

    def set_descriptor_sense(self, enabled):
        self.log.append(("descriptor_sense", enabled))

    def set_queue_error(self, enabled):
        self.log.append(("queue_error", enabled))

    def set_tell_full(self, enabled):
        self.log.append(("tell_full", enabled))


class Rig:
    """One logical unit, any number of initiators; `itl` is the first one's, without a pending unit attention."""

    def __init__(self, loop, **medium):
        saved = medium.pop("saved", None)
        names = {field.name for field in fields(LuDefinition)} & set(medium)
        definition = {"cdb32": True} | {key: medium.pop(key) for key in names}
        self.loop = loop
        self.medium = FakeMedium(**medium)
        self.gate = RecordingGate()
        self.unit = LogicalUnit(LuDefinition("disk0", UNIT_UUID, **definition), self.medium, self.gate, saved)
        self.luns = [0, 1]
        self.port = TargetPort("port0", PORT_UUID, 1, lambda: self.luns)
        self.itl = self.attach()
        self.itl.take()
        self.medium.log.clear()
        self.tags = 0

    def attach(self, nexus=None):
        nexus = nexus or Nexus(InitiatorPort("guest"), self.port)
        return self.unit.attach(nexus, RecordingGate())

    def task(self, command, *, itl=None, attribute=TaskAttribute.SIMPLE, data_out=b"", tag=None, **values):
        self.tags += 1
        cdb = command if isinstance(command, bytes) else cdb_of(command, **values)
        return Task(
            itl or self.itl, self.tags if tag is None else tag, attribute, cdb, data_out, 1 << 20, len(data_out)
        )

    def submit(self, task):
        """Submits without waiting; the returned list gets the outcome."""
        outcomes = []
        self.unit.submit(task, outcomes.append)
        return outcomes

    def begin(self, task):
        """As `submit`, for a handler that goes on by itself."""
        outcomes = []
        self.within(lambda: self.unit.submit(task, outcomes.append))
        return outcomes

    def within(self, call):
        """Calls it while the loop runs."""

        async def called():
            call()

        self.run(called())

    def run(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, 5))

    def settle(self):
        """Lets everything run that can."""

        async def turns():
            for _ in range(20):
                await asyncio.sleep(0)

        self.run(turns())

    def outcome(self, command, **given):
        """The outcome of one task, waited for."""
        task = self.task(command, **given)

        async def submitted():
            future = self.loop.create_future()
            self.unit.submit(task, future.set_result)
            return await future

        return self.run(submitted())


def cdb_of(name, **values):
    """A CDB of the row with that name."""
    row = ROWS[name]
    cdb = bytearray(row.cdb_length)
    cdb[0] = row.opcode
    if row.opcode == VARIABLE_LENGTH:
        cdb[7], cdb[8:10] = row.cdb_length - 8, row.service_action.to_bytes(2)
    else:
        cdb[1] |= row.service_action or 0
    allocation = row.field("allocation_length")
    if allocation and "allocation_length" not in values:
        values["allocation_length"] = (1 << 8 * allocation.length) - 1
    for key, value in values.items():
        place = row.field(key)
        assert place, f"{name} has no field {key}"
        if place.mask and place.length == 1:
            cdb[place.byte] |= value * (place.mask & -place.mask)
        else:
            part = value.to_bytes(place.length)
            for index, byte in enumerate(part):
                cdb[place.byte + index] |= byte
        assert row.value(place, cdb) == value or not value
    return bytes(cdb)


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    leftover = asyncio.all_tasks(loop)
    for task in leftover:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*leftover, return_exceptions=True))
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def make_lu(loop):
    return lambda **medium: Rig(loop, **medium)


DRIVE = {"device_type": DeviceType.CD_DVD, "removable": True, "read_only": True, "block_size": 2048}


@pytest.fixture
def lu(make_lu, request):
    """A disk; for a test with a `row` of its own that a fixed disk does not have, a unit that has it."""
    callspec = getattr(request.node, "callspec", None)
    row = callspec.params.get("row") if callspec else None
    if not isinstance(row, Command) or DeviceType.DISK in row.device_types:
        features = {row.requires, *(each.requires for each in row.fields)} if isinstance(row, Command) else set()
        return make_lu(removable=Feature.REMOVABLE in features)
    return make_lu(**DRIVE)


@pytest.fixture(scope="session")
def cdb():
    return cdb_of


@pytest.fixture(scope="session")
def ok():
    def ok(rig, command, **given):
        outcome = rig.outcome(command, **given)
        assert isinstance(outcome, Complete)
        detail = sense_data.parse(outcome.sense) if outcome.sense else ""
        assert outcome.status is Status.GOOD, detail
        assert not outcome.sense
        return outcome.data_in

    return ok


@pytest.fixture(scope="session")
def fails():
    def fails(rig, command, code, *, at=None, **given):
        """`at`: the (byte, bit) that the field pointer must name, in the CDB or the list as the code says."""
        outcome = rig.outcome(command, **given)
        assert isinstance(outcome, Complete), outcome
        assert outcome.status is Status.CHECK_CONDITION
        assert not outcome.data_in
        told = sense_data.parse(outcome.sense)
        assert told.code == code
        if at is not None:
            assert (told.field.byte, told.field.bit) == at
            assert told.field.in_cdb == (code is not sense.INVALID_FIELD_IN_PARAMETER_LIST)
        return outcome.sense

    return fails


@pytest.fixture(scope="session")
def executes():
    def executes(rig, command, **given):
        outcome = rig.outcome(command, **given)
        assert isinstance(outcome, Execute), outcome
        return outcome

    return executes


@pytest.fixture(scope="session")
def is_proper():
    """Whether an outcome is one that a transport can send."""

    def is_proper(outcome):
        if isinstance(outcome, Execute | Aborted):
            return True
        assert isinstance(outcome, Complete)
        if outcome.status is Status.CHECK_CONDITION:
            assert sense_data.parse(outcome.sense).code is not sense.INTERNAL_TARGET_FAILURE
            return not outcome.data_in
        if outcome.status in (Status.RESERVATION_CONFLICT, Status.ACA_ACTIVE, Status.BUSY):
            return not outcome.sense and not outcome.data_in
        return outcome.status is Status.GOOD and not outcome.sense

    return is_proper
