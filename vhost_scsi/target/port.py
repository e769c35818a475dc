# SPDX-License-Identifier: Apache-2.0
"""A port: what one transport end (a virtio-scsi device, later an iSCSI portal group or an adapter) shows of the target.

A virtio-scsi device has up to 256 targets of its own; each is a SCSI target port with one initiator behind it, and so
has one I_T nexus. What the transport does with its LUN map is told to it through `on_luns`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID, uuid5

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core, Gate
from vhost_scsi.errors import ConfigError
from vhost_scsi.scsi import transport_id
from vhost_scsi.scsi.nexus import ITL, InitiatorPort, Nexus, TargetPort
from vhost_scsi.scsi.sense import SenseCode
from vhost_scsi.slices import SLICE, all_entered, sliced
from vhost_scsi.target import tmf
from vhost_scsi.target.port_ids import UNKNOWN
from vhost_scsi.target.unit import Unit

if TYPE_CHECKING:
    from vhost_scsi._core import CData
    from vhost_scsi.target.target import Target

LOG: Final = logging.getLogger("vhost_scsi.control")
PORT_NAMESPACE: Final = UUID("3c4d7b0a-6d0f-5b43-9a55-0f5f6e2f1b7c")
TARGETS: Final = 256
_LOOK: Final = 0.02  # seconds between looks at what is in flight, while a unit that is taken away is still in use
LUNS: Final = 16384


class InitiatorEvents(Protocol):
    """How a transport tells its initiator what has changed, beside unit attentions. Only `noticed` waits."""

    def lun_added(self, target: int, lun: int) -> None: ...

    def lun_removed(self, target: int, lun: int) -> None: ...

    def attention(self, target: int, lun: int, code: SenseCode) -> None:
        """A unit attention condition was established there."""

    async def noticed(self) -> bool:
        """Returns when the initiator has dealt with all that it was told; False: that cannot be known."""
        ...


@dataclass(slots=True, eq=False)
class MappedLun:
    """A logical unit at one place of a port: the I_T_L nexus in both planes. `hidden`: nobody finds it any more, though
    who knows it may still use it. `leaving`: it is being unmapped."""

    target_id: int
    lun: int
    unit: Unit
    itl: ITL
    handle: CData
    cookie: int
    gate: Gate
    hidden: bool = False
    leaving: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """nothing is left of it"""

    @property
    def abort_response(self) -> int:
        """How the transport is told of tasks that are ended from outside. What was sent to a place that is taken away
        is answered as if the place had been empty."""
        return lib.VS_RESP_BAD_TARGET if self.leaving else self.unit.abort_response


class Port:
    """Made by `Target.add_port`. `cookie` names it in the data plane."""

    def __init__(
        self, target: Target, name: str, nexus: Nexus | None = None, initiator: int | None = None, group: int = 1
    ) -> None:
        self.name: Final = name
        self.cookie: Final = target.core.cookie()
        self._target = target
        self._given = nexus is not None
        self._group = group
        address = transport_id.made_up_address(name) if initiator is None else initiator
        self._initiator: Final = transport_id.sas(address)
        self._mapped: dict[tuple[int, int], MappedLun] = {}
        self._nexuses: dict[int, Nexus] = {} if nexus is None else {0: nexus}
        self.on_luns: Callable[[], Awaitable[None]] | None = None
        """the transport's: publish `luns` to the data plane; returns when the old map is not used any more"""
        self.events: InitiatorEvents | None = None

    @property
    def core(self) -> Core:
        return self._target.core

    @property
    def target(self) -> Target:
        return self._target

    @property
    def luns(self) -> list[MappedLun]:
        """In the order of target and LUN."""
        return [self._mapped[place] for place in sorted(self._mapped)]

    def at(self, target_id: int, lun: int) -> MappedLun | None:
        return self._mapped.get((target_id, lun))

    def nexus(self, target_id: int) -> Nexus:
        """The I_T nexus of this port's initiator and one of its targets."""
        if target_id not in self._nexuses:
            # A guest may ask at any of 256 targets: what is empty gets no number that would have to be kept.
            self._nexuses[target_id] = self._make_nexus(target_id, UNKNOWN)
        return self._nexuses[target_id]

    def _make_nexus(self, target_id: int, relative: int) -> Nexus:
        name = f"{self.name}:{target_id}"

        def luns() -> list[int]:
            return [mapped.lun for mapped in self.luns if mapped.target_id == target_id and not mapped.hidden]

        return Nexus(
            InitiatorPort(name, self._initiator),
            TargetPort(name, uuid5(PORT_NAMESPACE, name), relative, luns, group=self._group),
        )

    def _numbered_nexus(self, target_id: int) -> Nexus:
        """As `nexus`, for a target that shows a logical unit."""
        found = self._nexuses.get(target_id)
        if found is None or (found.target_port.relative_id == UNKNOWN and not self._given):
            [relative] = self._target.port_ids.ids_of([f"{self.name}:{target_id}"])
            found = self._nexuses[target_id] = self._make_nexus(target_id, relative)
            self._target.target_ports[relative] = found.target_port
        return found

    async def map(self, target_id: int, lun: int, unit: Unit) -> MappedLun:
        """Shows the unit at target:LUN. Raises ConfigError for a place that is taken or does not exist."""
        [mapped] = await self.map_all([(target_id, lun, unit)])
        return mapped

    async def map_all(self, places: Iterable[tuple[int, int, Unit]]) -> list[MappedLun]:
        """As `map`, for many at once: the transport is told once. A place is asked for right before it is mapped: what
        it names may be gone by then."""
        mapped: list[MappedLun] = []
        try:
            async for place in sliced(places):
                mapped.append(self._map(*place))
        finally:
            if mapped:
                await self._publish()
                _tell_others(mapped)
                for each in mapped:
                    if self.events is not None and not each.hidden:
                        self.events.lun_added(each.target_id, each.lun)
        return mapped

    def _map(self, target_id: int, lun: int, unit: Unit) -> MappedLun:
        if not 0 <= target_id < TARGETS or not 0 <= lun < LUNS:
            raise ConfigError(
                f"port {self.name}: no place {target_id}:{lun}: targets go to {TARGETS - 1}, LUNs to {LUNS - 1}"
            )
        if (target_id, lun) in self._mapped:
            raise ConfigError(
                f"port {self.name}: {target_id}:{lun} is taken by {self._mapped[target_id, lun].unit.name}"
            )
        cookie = self.core.cookie()
        out = ffi.new("vs_nexus **")
        err = lib.vs_nexus_create(self.core.handle, unit.handle, cookie, out)
        if err:
            raise MemoryError(f"port {self.name}: no memory for a nexus (error {-err})")
        gate = self.core.gate(unit.handle, out[0])
        itl = unit.logical_unit.attach(self._numbered_nexus(target_id), gate)
        mapped = MappedLun(target_id, lun, unit, itl, out[0], cookie, gate)
        itl.cancel = lambda told: self._target.canceller(mapped, others_told=told)()
        itl.told = lambda code: self._attention(mapped, code)
        self._mapped[target_id, lun] = mapped
        self._target.nexus_added(mapped)
        return mapped

    def _attention(self, mapped: MappedLun, code: SenseCode) -> None:
        if self.events is not None and not mapped.hidden:
            self.events.attention(mapped.target_id, mapped.lun, code)

    async def _publish(self) -> None:
        if self.on_luns is not None:
            await self.on_luns()

    async def unmap(self, target_id: int, lun: int, *, patience: float = 0) -> None:
        """Takes the unit away; returns when its tasks of this nexus have ended.

        With `patience` it is only hidden at first: the inventory does not have it any more, the initiator is told, and
        for up to so many seconds it may still use what it knows, to end what it has begun and to write back what it has
        cached. What is left then is ended as if the place had been empty.
        """
        mapped = self._mapped[target_id, lun]
        if not mapped.hidden:
            mapped.hidden = True
            _tell_others([mapped])
            if self.events is not None:
                self.events.lun_removed(target_id, lun)
            if patience > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await self._let_finish(mapped)
        if mapped.leaving:
            # Somebody else takes it away already.
            await mapped.gone.wait()
            return
        mapped.leaving = True
        del self._mapped[target_id, lun]
        await self._publish()
        await self._end(mapped)

    async def _let_finish(self, mapped: MappedLun) -> None:
        """Returns when its initiator has let go of it, as far as that can be known, and nothing is in flight."""
        if self.events is not None:
            await self.events.noticed()
        while not mapped.leaving and self._in_use(mapped):
            await asyncio.sleep(_LOOK)

    def _in_use(self, mapped: MappedLun) -> bool:
        pinned = bool(lib.vs_pins_busy(lib.vs_nexus_pins(mapped.handle)))
        return pinned or mapped.itl in mapped.unit.logical_unit.nexuses_with_tasks()

    async def unmap_all(self) -> None:
        """As `unmap`, for all that is left: nobody has to be told of LUNs that changed."""
        gone = self.luns
        self._mapped.clear()
        for mapped in gone:
            mapped.hidden = mapped.leaving = True
        if gone and self.on_luns is not None:
            await self.on_luns()
        # One look for them all: of 16384 LUNs few have anything in flight.
        async with self._all_held(gone):
            await tmf.ask_port(self.core, self, lib.VS_TMF_QUERY)
            await self.core.epoch_reached(lib.vs_epoch_bump(self.core.handle))
            busy = await self._busy(gone)
        async for mapped in sliced(gone):
            if mapped in busy:
                await self._end(mapped)
            else:
                mapped.unit.logical_unit.detach_quiet(mapped.itl)
                await self._destroy(mapped)

    async def _end(self, mapped: MappedLun) -> None:
        await mapped.unit.logical_unit.detach(mapped.itl, self._target.canceller(mapped))
        await self.core.quiesce(lib.vs_nexus_pins(mapped.handle), mapped)
        await self._destroy(mapped)

    async def _destroy(self, mapped: MappedLun) -> None:
        self._target.nexus_removed(mapped)
        await mapped.gate.retire()
        lib.vs_nexus_destroy(mapped.handle)
        mapped.gone.set()

    def resumed(self) -> None:
        """Who is behind the port was there before this process was and has noticed nothing: no power came on for it."""
        for mapped in self.luns:
            mapped.itl.in_use = True
            mapped.itl.clear(mapped.itl.nexus.greeting)

    async def nexus_lost(self, *, machine: bool = True) -> None:
        """The transport lost its initiator (or was reset by it): every nexus of this port ends its tasks. `machine`:
        what was behind the port is gone as a machine is that was switched off, and a unit that nobody else uses is as
        new. A network initiator that logs out leaves mode pages and a stop as they are (SPC-5 6.11)."""
        mapped = self.luns
        places = _by_unit(mapped)
        async with all_entered(unit.resetting() for unit in places), self._all_held(mapped):
            await tmf.ask_port(self.core, self, lib.VS_TMF_ABORT)
            await self.core.epoch_reached(lib.vs_epoch_bump(self.core.handle))
            busy = await self._busy(mapped)
            async for each in sliced(mapped):
                if each not in busy:
                    each.itl.lost()
            # Units at once: what one has in flight must not keep the next one's tasks running.
            await asyncio.gather(*(self._unit_lost(*lost) for lost in _by_unit(busy).items()))
            async for each in sliced(mapped):
                await each.unit.logical_unit.reservations.forget_legacy(each.itl.nexus.id)
        if machine:
            # Few have anything to forget; those that have do not wait for each other, as far as a slice goes.
            units = iter(places.items())
            while slice_ := list(islice(units, SLICE)):
                await asyncio.gather(
                    *(unit.logical_unit.initiators_gone([m.itl for m in each]) for unit, each in slice_)
                )

    async def _unit_lost(self, unit: Unit, places: list[MappedLun]) -> None:
        for mapped in places:
            await unit.logical_unit.nexus_lost(mapped.itl, self._target.canceller(mapped))

    def _all_held(self, places: Iterable[MappedLun]) -> AbstractAsyncContextManager[None]:
        return all_entered(
            unit.logical_unit.nexuses_held([mapped.itl for mapped in each]) for unit, each in _by_unit(places).items()
        )

    async def _busy(self, places: Iterable[MappedLun]) -> dict[MappedLun, None]:
        """Those that have tasks in either plane, in order. All are held, and every worker was asked since."""
        tasks: set[ITL] = set()
        async for unit in sliced(_by_unit(places)):
            tasks |= unit.logical_unit.nexuses_with_tasks()
        return {
            mapped: None
            async for mapped in sliced(places)
            if mapped.itl in tasks or lib.vs_pins_busy(lib.vs_nexus_pins(mapped.handle))
        }


def _tell_others(changed: Iterable[MappedLun]) -> None:
    """Initiators learn of other LUNs that have ever asked for anything here (SPC-5 6.33)."""
    new = {mapped.itl for mapped in changed}
    for nexus in {id(itl.nexus): itl.nexus for itl in new}.values():
        nexus.luns_changed(besides=new)


def _by_unit(places: Iterable[MappedLun]) -> dict[Unit, list[MappedLun]]:
    found: dict[Unit, list[MappedLun]] = {}
    for mapped in places:
        found.setdefault(mapped.unit, []).append(mapped)
    return found
