# SPDX-License-Identifier: Apache-2.0
"""RESERVE, RELEASE, PERSISTENT RESERVE IN and OUT: the handlers, and what a change of reservations costs before its
status may be sent. What a service action makes of the reservations is `reservations`'s.

A change is durable first. Then it holds for every command that is decided from here on; those that the data plane began
before and that now conflict have ended (or were aborted) when the status is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from uuid import UUID

from vhost_scsi.scsi import reservation_data, reservations, sense, transport_id
from vhost_scsi.scsi.commands import Command
from vhost_scsi.scsi.dispatch import InTurn, Request, handles
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.reservation_rows import PERSISTENT_RESERVE_IN, PERSISTENT_RESERVE_OUT
from vhost_scsi.scsi.reservations import RESERVED, Change, NexusId, Reservations, Type
from vhost_scsi.scsi.saved_state import SavedStateDamaged, SavedStateError
from vhost_scsi.scsi.sense import CheckCondition
from vhost_scsi.scsi.task import Task

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit
    from vhost_scsi.scsi.nexus import ITL

LOG: Final = logging.getLogger("vhost_scsi.control")
BLOB: Final = "reservations"
BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


@lru_cache(maxsize=1)
def this_boot() -> bytes:
    """Tells one power cycle of this machine from another."""
    with open(BOOT_ID, encoding="ascii") as file:
        return UUID(file.read().strip()).bytes


class ReservationKeeper:
    """The reservations of one logical unit. All calls come from the event loop's thread."""

    def __init__(self, unit: LogicalUnit, boot: bytes | None = None) -> None:
        self._unit = unit
        self._boot = this_boot() if boot is None else boot
        self.turn: Final = asyncio.Lock()
        """held while a change is under way"""
        self.state = self._recall()
        self._applied = self._recall_applied()

    def _recall(self) -> Reservations:
        try:
            state = reservation_data.recall(self._unit.saved.get(BLOB), self._boot)
        except SavedStateDamaged as error:
            LOG.error(
                "%s: its reservations cannot be read, so it lets nobody in until PERSISTENT RESERVE OUT with REPLACE "
                "LOST RESERVATION, or until the file is removed: %s",
                self._unit.definition.name,
                error,
            )
            return Reservations(lost=True)
        if state.legacy is not None and transport_id.protocol_of(state.legacy.initiator) == transport_id.Protocol.ISCSI:
            # SPC-2 5.5.1: its nexus was lost with the process that served the session.
            state = reservations.forget_legacy(state)
        return state

    def _recall_applied(self) -> list[int]:
        with contextlib.suppress(SavedStateDamaged):
            return reservation_data.applied_by(self._unit.saved.get(BLOB))
        return []

    def has_applied(self, task: Task) -> bool:
        """The change that the command asks for was made by a process before us, which could not say so any more."""
        return bool(task.once) and task.once in self._applied

    # ---- who may do what -------------------------------------------------------------------------------------------

    def check(self, row: Command, task: Task) -> None:
        """Raises for a command that a reservation keeps out."""
        state, nexus = self.state, task.itl.nexus.id
        conflict = row.conflict_of(task.cdb)
        if state.lost and (conflict or row.gate_mask & GateBit.RESERVED):
            raise CheckCondition(sense.PERSISTENT_RESERVATION_INFORMATION_LOST)
        if state.conflicts(nexus, conflict) or (state.reserved_from(nexus) and not row.passes_reserve):
            raise reservations.conflict()

    def show(self, itl: ITL) -> GateBit:
        """Closes the nexus's gate for what conflicts; gives the bits that must not be there."""
        bits = self.state.gate_bits(itl.nexus.id)
        if bits:
            itl.gate.close(bits)
        return RESERVED & ~bits

    # ---- changes ---------------------------------------------------------------------------------------------------

    async def apply(self, change: Change, by: Task) -> None:
        """Makes the change; returns when the status may be sent. Raises, with nothing changed, if it cannot be kept.
        `turn` is held."""
        before = self.state
        if change.state != before:
            # In one piece with the change: whoever comes after us finds both or neither.
            await self._save(change.state, [*self._applied, by.once] if by.once else self._applied)
        self.state = change.state
        unit = self._unit
        stopped, free = [], []
        for itl in unit.itls:
            now = change.state.gate_bits(itl.nexus.id)
            if now & ~before.gate_bits(itl.nexus.id):
                stopped.append(itl)
            free.append((itl, self.show(itl)))
        for itl in unit.itls:
            code = change.told.get(itl.nexus.id)
            if code is not None:
                itl.establish(code)
        for itl in [each for each in unit.itls if each.nexus.id in change.aborted]:
            if itl in unit.itls:
                await unit.abort_for(itl, by)
        if change.aborted and unit.drive is not None:
            # SPC-5 5.14.11.5: as if each nexus that was preempted had allowed the removal of the medium.
            await unit.drive.unlock([itl for itl in unit.itls if itl.nexus.id in change.aborted])
        unit.contingencies.clear_preempted(change.aborted)
        await asyncio.gather(*(itl.gate.fence(change.state.gate_bits(itl.nexus.id)) for itl in stopped))
        for itl, bits in free:
            itl.gate.open(bits)

    async def _save(self, state: Reservations, applied: list[int]) -> None:
        try:
            await self._unit.saved.put(BLOB, reservation_data.keep(state, self._boot, applied))
        except SavedStateError as error:
            self._unit.complain("its reservations cannot be kept, so nothing changed: %s", error)
            raise CheckCondition(sense.INTERNAL_TARGET_FAILURE) from None
        self._applied = applied[-reservation_data.APPLIED_LIMIT :]

    async def forget_legacy(self, nexus: NexusId | None = None) -> None:
        """A reset, or the loss of the nexus that made a RESERVE, ends it (SPC-2 5.5.1)."""
        if self.state.legacy is None and not self.turn.locked():
            return
        async with self.turn:
            state = reservations.forget_legacy(self.state, nexus)
            if state == self.state:
                return
            try:
                await self._save(state, self._applied)
            except CheckCondition:
                # It ends all the same; should we die now it would be there again, and one more reset ends it.
                LOG.warning("%s: the end of a RESERVE was not kept", self._unit.definition.name)
            self.state = state
            for itl in self._unit.itls:
                itl.gate.open(self.show(itl))

    # ---- names -----------------------------------------------------------------------------------------------------

    def everywhere(self, initiator: bytes) -> list[NexusId]:
        """The nexuses of an initiator port and every target port of its protocol."""
        protocol = transport_id.protocol_of(initiator)
        return [NexusId(initiator, port.relative_id) for port in self._unit.target_ports() if port.protocol == protocol]

    def named(self, initiator: bytes, port: int) -> list[NexusId]:
        """What a TransportID of SPEC_I_PT's list stands for: a port, or the ports of an iSCSI device that are known."""
        if not transport_id.is_device(initiator):
            return [NexusId(initiator, port)]
        seen = {itl.nexus.id.initiator for itl in self._unit.itls} | {
            nexus.initiator for nexus in self.state.registered
        }
        ports = [each for each in seen if each != initiator and transport_id.of_device(each) == initiator]
        return [NexusId(each, port) for each in sorted(ports)]


# ---- handlers ------------------------------------------------------------------------------------------------------


def _keeper(request: Request) -> ReservationKeeper:
    keeper = request.logical_unit.reservations
    # SPC-5 5.14.3: while a RESERVE is in force, neither IN nor OUT, of whatever nexus.
    if keeper.state.legacy is not None and request.row.opcode in (PERSISTENT_RESERVE_IN, PERSISTENT_RESERVE_OUT):
        raise reservations.conflict()
    return keeper


def _told(request: Request) -> Reservations:
    state = _keeper(request).state
    if state.lost:
        raise CheckCondition(sense.PERSISTENT_RESERVATION_INFORMATION_LOST)
    return state


@handles("read_keys")
def read_keys(request: Request) -> bytes:
    return reservation_data.read_keys(_told(request))


@handles("read_reservation")
def read_reservation(request: Request) -> bytes:
    return reservation_data.read_reservation(_told(request))


@handles("report_capabilities")
def report_capabilities(request: Request) -> bytes:
    return reservation_data.report_capabilities(_keeper(request).state, durable=request.logical_unit.saved.durable)


@handles("read_full_status")
def read_full_status(request: Request) -> bytes:
    return reservation_data.read_full_status(_told(request))


Decide = Callable[[Reservations, NexusId], Change]


def _changes(request: Request, decide: Decide) -> InTurn:
    """The change that `decide` makes of what is there when its turn has come."""
    keeper = _keeper(request)

    async def work() -> bytes:
        await keeper.apply(decide(keeper.state, request.itl.nexus.id), request.task)
        return b""

    return InTurn(keeper.turn, work())


def _of_registrant(request: Request, key: int, decide: Decide) -> InTurn:
    def checked(state: Reservations, by: NexusId) -> Change:
        if state.legacy is not None:
            raise reservations.conflict()
        if state.lost:
            raise CheckCondition(sense.PERSISTENT_RESERVATION_INFORMATION_LOST)
        reservations.check_key(state, by, key)
        return decide(state, by)

    return _changes(request, checked)


def _register(request: Request, *, ignore: bool) -> InTurn:
    keeper, unit = _keeper(request), request.logical_unit
    by = request.itl.nexus.id
    asked = reservation_data.registering(
        request.parameter_list(),
        lambda initiator: keeper.named(initiator, by.port),
        lambda: keeper.everywhere(by.initiator),
        ignore=ignore,
        durable=unit.saved.durable,
    )

    def decide(state: Reservations, by: NexusId) -> Change:
        if state.legacy is not None:
            raise reservations.conflict()
        if state.lost:
            raise CheckCondition(sense.PERSISTENT_RESERVATION_INFORMATION_LOST)
        return reservations.register(state, by, asked, ignore=ignore)

    return _changes(request, decide)


@handles("register")
def register(request: Request) -> InTurn:
    return _register(request, ignore=False)


@handles("register_and_ignore_existing_key")
def register_and_ignore_existing_key(request: Request) -> InTurn:
    return _register(request, ignore=True)


def _scope_and_type(request: Request) -> Type:
    if request["scope"]:
        # SPC-5 6.14.3.3: LU_SCOPE is the only one left.
        raise request.refuse("scope")
    kind = reservation_data.find_type(request["type"])
    if kind is None:
        raise request.refuse("type")
    return kind


@handles("reserve")
def reserve(request: Request) -> InTurn:
    kind, parsed = _scope_and_type(request), reservation_data.basic(request.parameter_list())
    return _of_registrant(request, parsed.key, lambda state, by: reservations.reserve(state, by, kind))


@handles("release")
def release(request: Request) -> InTurn:
    kind, parsed = _scope_and_type(request), reservation_data.basic(request.parameter_list())
    return _of_registrant(request, parsed.key, lambda state, by: reservations.release(state, by, kind))


@handles("clear")
def clear(request: Request) -> InTurn:
    parsed = reservation_data.basic(request.parameter_list())
    return _of_registrant(request, parsed.key, reservations.clear)


def _preempt(request: Request, *, abort: bool) -> InTurn:
    kind, parsed = _scope_and_type(request), reservation_data.basic(request.parameter_list())

    def decide(state: Reservations, by: NexusId) -> Change:
        change = reservations.preempt(state, by, parsed.new_key, kind, abort=abort)
        if abort:
            request.logical_unit.contingencies.check_preempt(change.aborted, request.task)
        return change

    return _of_registrant(request, parsed.key, decide)


@handles("preempt")
def preempt(request: Request) -> InTurn:
    return _preempt(request, abort=False)


@handles("preempt_and_abort")
def preempt_and_abort(request: Request) -> InTurn:
    return _preempt(request, abort=True)


@handles("register_and_move")
def register_and_move(request: Request) -> InTurn:
    unit, by = request.logical_unit, request.itl.nexus
    key, asked = reservation_data.moving(
        request.parameter_list(),
        lambda: [port.relative_id for port in unit.target_ports() if port.protocol == by.target_port.protocol],
        durable=unit.saved.durable,
    )
    if asked.to == by.id or transport_id.protocol_of(asked.to.initiator) != by.target_port.protocol:
        raise sense.invalid_parameter(reservation_data.LIST_AT)
    return _of_registrant(request, key, lambda state, by: reservations.move(state, by, asked))


@handles("replace_lost_reservation")
def replace_lost_reservation(request: Request) -> InTurn:
    kind, parsed = _scope_and_type(request), reservation_data.basic(request.parameter_list())
    return _changes(request, lambda state, by: reservations.replace_lost(state, by, parsed.key, parsed.new_key, kind))


@handles("reserve_legacy")
def reserve_legacy(request: Request) -> InTurn:
    return _legacy(request, reservations.reserve_legacy)


@handles("release_legacy")
def release_legacy(request: Request) -> InTurn:
    return _legacy(request, reservations.release_legacy)


def _legacy(request: Request, decide: Decide) -> InTurn:
    def checked(state: Reservations, by: NexusId) -> Change:
        if state.lost:
            raise CheckCondition(sense.PERSISTENT_RESERVATION_INFORMATION_LOST)
        return decide(state, by)

    return _changes(request, checked)
