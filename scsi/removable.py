# SPDX-License-Identifier: Apache-2.0
"""A drive whose medium can be taken out: what lies in it, whether it is locked, and what its initiators are told when
that changes. START STOP UNIT with LOEJ and PREVENT ALLOW MEDIUM REMOVAL act on it (SBC-4, MMC-6).

Whether it is open, and who locked it, outlives the process; a lock does not outlive the machine, nor an iSCSI session.
It knows no store: who puts a medium in or takes it out (the person at the host) does that while the unit is held. A
disk has no tray: one that was ejected is the same to it as an open tray with the medium in it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from construct import Bytes, Const, ConstructError, Flag, GreedyBytes, GreedyRange, Int8ub, Int16ub, Prefixed, Struct

from vhost_scsi.scsi import sense, transport_id
from vhost_scsi.scsi.commands import DeviceType
from vhost_scsi.scsi.dispatch import Alongside, Exclusive, InTurn, Request, handles
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.readiness import Power
from vhost_scsi.scsi.reservations import NexusId
from vhost_scsi.scsi.reserve import this_boot
from vhost_scsi.scsi.saved_state import SavedStateDamaged, SavedStateError
from vhost_scsi.scsi.sense import CheckCondition, SenseCode

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit
    from vhost_scsi.scsi.nexus import ITL

LOG: Final = logging.getLogger("vhost_scsi.control")
BLOB: Final = "drive"
NEXUS = Struct("port" / Int16ub, "initiator" / Prefixed(Int16ub, GreedyBytes))
KEPT = Struct("version" / Const(1, Int8ub), "boot" / Bytes(16), "open" / Flag, "locks" / GreedyRange(NEXUS))
LOOKS, LOOK_EVERY = 20, 0.01
"""how often, and in seconds, to look whether another nexus's lock goes"""


class MediaEvent(IntEnum):
    """MMC-6, table of media events."""

    NO_CHANGE = 0
    EJECT_REQUEST = 1
    NEW_MEDIA = 2
    MEDIA_REMOVAL = 3
    MEDIA_CHANGED = 4


class Drive:
    """Keeps the NO_MEDIUM bit of the unit's gate. `filled`: a medium is in the drive, or lies in its open tray."""

    def __init__(self, unit: LogicalUnit, *, filled: bool) -> None:
        self._unit: Final = unit
        self.has_tray: Final = unit.definition.device_type is DeviceType.CD_DVD
        self.turn: Final = asyncio.Lock()
        """held while a lock is set or lifted, and while what is kept is written"""
        self._filled = filled
        self._leaving = False
        self._keeping: asyncio.Task[None] | None = None
        self._last = self._recall()
        kept = KEPT.parse(self._last) if self._last else None
        self._open = kept is not None and bool(kept.open)
        self._locks = frozenset(_locks(kept)) if kept is not None and kept.boot == this_boot() else frozenset()
        """who had locked it when the process before this one ended"""
        self._show()

    # ---- what is kept ------------------------------------------------------------------------------------------------

    def _recall(self) -> bytes:
        try:
            blob = self._unit.saved.get(BLOB) or b""
            if blob:
                KEPT.parse(blob)
        except (SavedStateDamaged, ConstructError) as error:
            LOG.error("%s: the drive's state cannot be read; it is closed: %s", self._unit.definition.name, error)
            return b""
        return blob

    def recall(self, itl: ITL) -> None:
        """A nexus that is there again."""
        itl.prevents_removal = itl.nexus.id in self._locks
        self._locks -= {itl.nexus.id}

    def _state(self) -> bytes:
        holders = {(itl.nexus.id.port, itl.nexus.id.initiator) for itl in self._unit.itls if itl.prevents_removal}
        locks = [{"port": port, "initiator": initiator} for port, initiator in sorted(holders)]
        built: bytes = KEPT.build({"boot": this_boot(), "open": self._open, "locks": locks})
        return built

    async def keep(self) -> None:
        """What is so now outlives the process when this returns; if it cannot, that is logged."""
        async with self.turn:
            await self._keep()

    async def _keep(self) -> None:
        fresh = self._state()
        if self._leaving or fresh == self._last:
            return
        try:
            await self._unit.saved.put(BLOB, fresh)
        except SavedStateError as error:
            self._unit.complain("the drive's state cannot be kept: %s", error)
        else:
            self._last = fresh

    def keep_soon(self) -> None:
        """As `keep`, for who cannot wait."""
        if self._keeping is None or self._keeping.done():
            self._keeping = self._unit.spawn(self.keep())

    def leave(self) -> None:
        """This process ends; what is so now stays kept."""
        self._leaving = True

    async def set_lock(self, itl: ITL, prevent: bool) -> bytes:
        """`turn` is held."""
        itl.prevents_removal = prevent
        await self._keep()
        return b""

    async def unlock(self, itls: Iterable[ITL]) -> None:
        """As if each of the nexuses had allowed the removal."""
        for itl in itls:
            itl.prevents_removal = False
        await self.keep()

    # ---- what is so ------------------------------------------------------------------------------------------------

    @property
    def filled(self) -> bool:
        return self._filled

    @property
    def open(self) -> bool:
        """The tray is open, or the disk was ejected."""
        return self._open

    @property
    def present(self) -> bool:
        """The medium can be used."""
        return self._filled and not self._open

    @property
    def locked(self) -> bool:
        """An initiator prevents the removal."""
        return any(itl.prevents_removal for itl in self._unit.itls)

    def why_absent(self) -> SenseCode | None:
        """None when the medium can be used."""
        if self.present:
            return None
        if not self.has_tray:
            return sense.MEDIUM_NOT_PRESENT
        return sense.MEDIUM_NOT_PRESENT_TRAY_OPEN if self._open else sense.MEDIUM_NOT_PRESENT_TRAY_CLOSED

    # ---- what is done to it; nothing is in flight ------------------------------------------------------------------

    def eject(self) -> None:
        """The medium lies in the open tray."""
        if not self._open:
            self._change(self._filled, is_open=True)

    def load(self, by: ITL | None = None) -> None:
        """The tray closes with what lies in it."""
        if self._open:
            self._change(self._filled, is_open=False, by=by)

    def take_out(self) -> None:
        """Somebody at the host opens the drive and takes the medium out, locked or not."""
        self._change(filled=False, is_open=True)
        for itl in self._unit.itls:
            itl.prevents_removal = False

    def put_in(self) -> None:
        """Somebody at the host puts a medium in and closes the drive."""
        self._change(filled=True, is_open=False)

    def ask_for_ejection(self) -> None:
        """Somebody at the host pressed the button of a locked drive (MMC-6: EjectRequest)."""
        for itl in self._unit.itls:
            itl.media_event = MediaEvent.EJECT_REQUEST

    def _change(self, filled: bool, *, is_open: bool, by: ITL | None = None) -> None:
        was = self.present
        self._filled, self._open = filled, is_open
        if self.present == was:
            return
        self._show()
        for itl in self._unit.itls:
            itl.media_event = MediaEvent.NEW_MEDIA if self.present else MediaEvent.MEDIA_REMOVAL
            itl.feature_change = True
        if self.present:
            # Who loaded the medium knows that it did.
            self._unit.establish(sense.NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED, besides=by)

    def _show(self) -> None:
        if self.present:
            self._unit.gate.open(GateBit.NO_MEDIUM)
        else:
            self._unit.gate.close(GateBit.NO_MEDIUM)


def _locks(kept: Any) -> Iterable[NexusId]:
    """An iSCSI nexus was lost with the process that served its session."""
    for each in kept.locks:
        if transport_id.protocol_of(each.initiator) != transport_id.Protocol.ISCSI:
            yield NexusId(each.initiator, each.port)


# ---- commands ----------------------------------------------------------------------------------------------------


def _drive(request: Request) -> Drive:
    drive = request.logical_unit.drive
    if drive is None:
        raise CheckCondition(sense.INVALID_COMMAND_OPERATION_CODE)
    return drive


@handles("prevent_allow_medium_removal")
def prevent_allow_medium_removal(request: Request) -> InTurn:
    """SBC-4: in force while any I_T nexus that asked for it has not taken it back. PREVENT 10b and 11b (persistent)
    are not served."""
    drive = _drive(request)
    return InTurn(drive.turn, drive.set_lock(request.itl, bool(request["prevent"])))


async def _eject(unit: LogicalUnit, drive: Drive, *, flush: bool) -> bytes:
    # As with a stop: what cannot be made durable does not leave the drive.
    if flush:
        await unit.medium.flush()
    drive.eject()
    await drive.keep()
    return b""


async def _flush(unit: LogicalUnit) -> bytes:
    await unit.medium.flush()
    return b""


def stop(request: Request) -> bytes | Exclusive:
    """START STOP UNIT that stops and does not eject: all that is left of it is that what was written is durable."""
    unit = request.logical_unit
    writes = _drive(request).present and not unit.medium.read_only and not request["no_flush"]
    return _flush(unit) if writes else b""


async def _load(unit: LogicalUnit, drive: Drive, by: ITL) -> bytes:
    drive.load(by)
    unit.readiness.set_power(Power.ACTIVE)
    await drive.keep()
    return b""


def load_or_eject(request: Request) -> bytes | Exclusive | Alongside:
    """START STOP UNIT with LOEJ=1."""
    drive = _drive(request)
    if bool(request["start"]) != drive.open:
        return b""
    if drive.locked and not request.itl.prevents_removal:
        return Alongside(_when_free(request))
    return _move(request)


async def _when_free(request: Request) -> bytes:
    """Whoever lost its connection and came back at once may be here before its old nexus is known to be lost, and the
    lock with it. A lock that somebody holds is still there a moment later."""
    unit, drive = request.logical_unit, _drive(request)
    for _ in range(LOOKS):
        if not drive.locked:
            break
        await asyncio.sleep(LOOK_EVERY)
    async with unit.held():
        work = _move(request)
        if isinstance(work, bytes):
            return work
        await work
        return b""


def _move(request: Request) -> bytes | Exclusive:
    unit, drive = request.logical_unit, _drive(request)
    start = bool(request["start"])
    if start != drive.open:
        return b""
    if drive.locked:
        raise CheckCondition(sense.MEDIUM_REMOVAL_PREVENTED)
    if not start:
        writes = drive.present and not unit.medium.read_only and not request["no_flush"]
        return _eject(unit, drive, flush=writes)
    if not drive.filled and not drive.has_tray:
        raise CheckCondition(sense.MEDIUM_NOT_PRESENT)
    return _load(unit, drive, request.itl)
