# SPDX-License-Identifier: Apache-2.0
"""The virtio-scsi device behind a vhost-user connection: starts and stops rings in the data plane as the session says,
keeps the memory map, and answers the control queue.

It implements `session.Device`. Requests never come here: C takes them from the rings.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core
from vhost_scsi.errors import ConfigError
from vhost_scsi.log_limit import LimitedLog
from vhost_scsi.target import Port
from vhost_scsi.vhost_user import control_queue, inflight
from vhost_scsi.vhost_user.events import Events
from vhost_scsi.vhost_user.features import Feature, feature_names
from vhost_scsi.vhost_user.inflight import InflightMemory
from vhost_scsi.vhost_user.messages import Inflight, MemoryRegion, VringAddr
from vhost_scsi.vhost_user.ring_reader import read_ring
from vhost_scsi.vhost_user.rules import ProtocolError, Rule
from vhost_scsi.virtqueue.layout import RingAddresses
from vhost_scsi.virtqueue.packed_layout import Place
from vhost_scsi.virtqueue.rings import DeviceStands, Ring, Snapshot

if TYPE_CHECKING:
    from vhost_scsi._core import CData

T = TypeVar("T")
LOG: Final = logging.getLogger("vhost_scsi.data")
MAX_MEM_SLOTS: Final = 509
DEFAULT_CREDIT: Final = 128
"""tasks of one device that Python decides at a time"""
CONTROL, EVENT, FIRST_REQUEST = 0, 1, 2
OFFERED: Final = (
    Feature.SCSI_HOTPLUG
    | Feature.SCSI_CHANGE
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.VERSION_1
    | Feature.ANY_LAYOUT
    | Feature.RING_PACKED
)
PACKED_START: Final = 0x8000_8000
"""where a packed ring begins that nobody has used: both places 0, both wrap counters 1 (virtio 1.3, 2.8.1)"""


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """One queue as it stands. Indices are the device's own: modulo 65536; of a packed ring descriptors, with the wrap
    counter of the lap that each is in (None for a split ring)."""

    index: int
    name: str
    started: bool
    enabled: bool
    broken: bool
    stalled: bool
    error: str | None
    size: int
    layout: str
    features: list[str]
    worker: int
    last_avail: int
    used_idx: int
    avail_wrap: bool | None
    used_wrap: bool | None
    in_flight: int
    requests: int
    kicks: int
    interrupts: int
    interrupts_suppressed: int
    batches: int
    max_batch: int
    errors: int


@dataclass(slots=True)
class _Ring:
    """What the front end has said of one ring. Descriptors here are the device's; the data plane gets duplicates."""

    num: int = 0
    addr: VringAddr | None = None
    base: int = 0
    based: bool = False
    """the base is known: told by the front end, or where the ring stopped"""
    kick: int | None = None
    armed: bool = False
    call: int | None = None
    err: int | None = None
    enabled: bool = False
    running: bool = False
    addresses: RingAddresses | None = None


@dataclass(slots=True, eq=False)
class _Map:
    """One memory map in the data plane, and its regions with descriptors of our own."""

    handle: CData
    regions: list[MemoryRegion] = field(default_factory=list)


def _duplicate(fd: int | None) -> int:
    return -1 if fd is None else os.dup(fd)


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)


class VirtioScsiDevice:
    """One device. `workers`: request queues are dealt out to these in turn. `num_queues` counts all queues."""

    def __init__(
        self,
        core: Core,
        port: Port,
        *,
        num_queues: int = 3,
        workers: Sequence[int] = (0,),
        cdb_size: int = 32,
        sense_size: int = 96,
        credit: int = DEFAULT_CREDIT,
        in_order: bool = False,
    ) -> None:
        self._core = core
        self.port: Final = port
        self.num_queues: Final = num_queues
        self.max_mem_slots: Final = MAX_MEM_SLOTS
        self.features: Final = int(OFFERED | Feature.IN_ORDER if in_order else OFFERED)
        self.status = 0
        self.connected = False
        self._workers = tuple(workers)
        params = ffi.new("struct vs_vdev_params *")
        params.cookie = port.cookie
        params.num_queues = num_queues
        params.cdb_size = cdb_size
        params.sense_size = sense_size
        params.credit = credit
        out = ffi.new("vs_vdev **")
        err = lib.vs_vdev_create(core.handle, params, out)
        if err:
            raise ConfigError(
                f"port {port.name}: {num_queues} queues, CDB size {cdb_size}, sense size {sense_size}: not possible"
            )
        self.handle: Final[CData] = out[0]
        self._acked = 0
        self._rings = [_Ring() for _ in range(num_queues)]
        self._map: _Map | None = None
        self._inflight: InflightMemory | None = None
        self._left: set[int] = set()
        """rings that a dead process had something in flight of, and that have not been started since"""
        self._served = False
        """this process has had a front end here, or one that got its in-flight memory from it"""
        self._channel: socket.socket | None = None
        self._pending: set[asyncio.Future[Any]] = set()
        self._starting: dict[int, list[asyncio.Future[None]]] = {}
        self._changes: set[asyncio.Task[Any]] = set()
        self._log = LimitedLog(LOG)
        self._control = control_queue.ControlQueue(core, port)
        core.listen(lib.VS_UP_CTRL, port.cookie, lambda up: self._control.arrived(up.ctrl))
        core.listen(lib.VS_UP_QUEUE_ERROR, port.cookie, self._queue_error)
        port.on_luns = self.publish_luns
        self.events: Final = Events(core, self.handle)
        port.events = self.events

    async def close(self) -> None:
        """The server is closed: nothing runs any more."""
        await self.disconnected()
        await self._control.idle()
        self._core.unlisten(lib.VS_UP_CTRL, self.port.cookie)
        self._core.unlisten(lib.VS_UP_QUEUE_ERROR, self.port.cookie)
        self.port.on_luns = self.port.events = None
        lib.vs_vdev_destroy(self.handle)

    async def publish_luns(self) -> None:
        """The port's LUNs become the device's; returns when no worker uses the old map."""
        mapped = self.port.luns
        entries = ffi.new("struct vs_lun_entry[]", max(len(mapped), 1))
        for i, each in enumerate(mapped):
            entries[i].nexus = each.handle
            entries[i].target = each.target_id
            entries[i].lun = each.lun
        await self._core.message(lambda cookie: lib.vs_vdev_set_luns(self.handle, entries, len(mapped), cookie))

    # ---- features --------------------------------------------------------------------------------------------------

    def set_features(self, features: int) -> None:
        self._acked = self.events.features = features
        self.connected = True

    def _ring_features(self) -> int:
        ring = 0
        if self._acked & Feature.EVENT_IDX:
            ring |= lib.VS_RING_EVENT_IDX
        if self._acked & Feature.INDIRECT_DESC:
            ring |= lib.VS_RING_INDIRECT
        if self._acked & Feature.VERSION_1:
            ring |= lib.VS_RING_VERSION_1
        if self._acked & Feature.RING_PACKED:
            ring |= lib.VS_RING_PACKED
        if self._acked & Feature.IN_ORDER:
            ring |= lib.VS_RING_IN_ORDER
        return ring

    def _base_of(self, ring: _Ring) -> int:
        """Where the ring goes on, or begins while nobody has said anything."""
        if ring.based or not self._acked & Feature.RING_PACKED:
            return ring.base
        return PACKED_START

    # ---- memory ----------------------------------------------------------------------------------------------------

    async def set_mem_table(self, regions: Sequence[MemoryRegion]) -> None:
        await self._change_map([], regions)

    async def add_mem_region(self, region: MemoryRegion) -> None:
        await self._change_map(self._regions(), [region])

    async def remove_mem_region(self, region: MemoryRegion) -> None:
        await self._change_map([each for each in self._regions() if each.guest_addr != region.guest_addr], [])

    def _regions(self) -> list[MemoryRegion]:
        return self._map.regions if self._map else []

    async def _change_map(self, kept: Sequence[MemoryRegion], added: Sequence[MemoryRegion]) -> None:
        """The map keeps duplicates of what is added: a session that is cancelled closes what it gave us."""
        ours: list[MemoryRegion] = []
        try:
            for region in added:
                ours.append(replace(region, fd=os.dup(region.fd)))
            new = self._create_map([*kept, *ours])
        except BaseException:
            for region in ours:
                os.close(region.fd)
            raise
        await self._whole(self._replace_map(new))
        for region in added:
            os.close(region.fd)

    async def _replace_map(self, new: _Map) -> None:
        old, self._map = self._map, new
        for index, ring in enumerate(self._rings):
            if ring.running:
                await self._remap(index, new.handle)
        if old is not None:
            await self._drop_map(old, {region.fd for region in new.regions})
        for index in range(self.num_queues):
            await self._try_start(index)

    async def _drop_map(self, old: _Map, kept: set[int]) -> None:
        """Returns when nobody uses the map any more; `kept`: descriptors that the next one has, too."""
        await self._core.quiesce(lib.vs_memmap_pins(old.handle), old)
        lib.vs_memmap_destroy(old.handle)
        for region in old.regions:
            if region.fd not in kept:
                os.close(region.fd)

    def _create_map(self, regions: list[MemoryRegion]) -> _Map:
        table = ffi.new("struct vs_region[]", max(len(regions), 1))
        for i, region in enumerate(regions):
            table[i].guest_addr = region.guest_addr
            table[i].size = region.size
            table[i].user_addr = region.user_addr
            table[i].mmap_offset = region.mmap_offset
            table[i].fd = region.fd
        out = ffi.new("vs_memmap **")
        base = self._map.handle if self._map else ffi.NULL
        err = lib.vs_memmap_create(self._core.handle, table, len(regions), base, self.port.cookie, out)
        if err:
            raise OSError(-err, f"cannot map guest memory: {os.strerror(-err)}")
        return _Map(out[0], regions)

    async def _remap(self, index: int, handle: CData) -> None:
        reply = await self._core.message(lambda cookie: lib.vs_queue_set_map(self.handle, index, handle, cookie))
        if reply.err:
            # The ring is not inside the new memory: it rests until memory comes in which it is.
            await self._stop(index)
            self._rings[index].armed = True

    # ---- requests in flight ----------------------------------------------------------------------------------------

    def get_inflight(self, num_queues: int, queue_size: int) -> tuple[int, int]:
        self._served = True
        return inflight.create(num_queues, queue_size)

    async def set_inflight(self, wanted: Inflight, fd: int) -> None:
        for index in range(self.num_queues):
            await self._settle(index)
        if any(ring.running for ring in self._rings):
            raise ProtocolError(Rule.RING_STARTED, "a ring runs")
        memory = InflightMemory(self._core, wanted, fd)
        self._drop_inflight()
        self._inflight = memory
        self._left = memory.left(self._ring_features())
        if not self._served:
            # It comes from a process before this one: the guest has been running all the while.
            self._log.say(logging.INFO, "resumed", f"port {self.port.name}: a guest of an earlier process goes on")
            self.port.resumed()
        self._served = True

    def _drop_inflight(self) -> None:
        if self._inflight is not None:
            self._inflight.close()
        self._inflight = None
        self._left = set()

    # ---- rings -----------------------------------------------------------------------------------------------------

    async def set_vring_num(self, index: int, num: int) -> None:
        await self._whole(self._reshape(index, num=num))

    async def set_vring_addr(self, index: int, addr: VringAddr) -> None:
        await self._whole(self._reshape(index, addr=addr))

    async def set_vring_base(self, index: int, base: int) -> None:
        await self._whole(self._reshape(index, base=base))

    async def _reshape(
        self, index: int, *, num: int | None = None, addr: VringAddr | None = None, base: int | None = None
    ) -> None:
        """Changes a ring that is not processed. vhost-user, Ring states: a kick starts a ring. Until then it is stopped
        and the front end may still say what it is."""
        ring = self._rings[index]
        await self._settle(index)
        if ring.running:
            if not self._begun(index):
                await self._stop(index)
            if self._begun(index):
                await self._try_start(index)  # a kick came meanwhile
                raise ProtocolError(Rule.RING_STARTED, f"ring {index} runs")
        if num is not None:
            ring.num = num
        if addr is not None:
            ring.addr = addr
        if base is not None:
            ring.base, ring.based = base, True
        self._start_soon(index)

    def _info(self, index: int) -> Any:
        info: Any = ffi.new("struct vs_queue_info *")
        lib.vs_queue_info(self.handle, index, info)
        return info

    def _begun(self, index: int) -> bool:
        """Since its last start the ring was kicked, or something was taken from it."""
        return bool(self._info(index).begun)

    def set_vring_kick(self, index: int, fd: int | None) -> None:
        ring = self._rings[index]
        if fd is not None:
            os.set_blocking(fd, False)
        _close(ring.kick)
        ring.kick, ring.armed = fd, True
        if ring.running:
            self._tell(lambda cookie: lib.vs_queue_set_kick(self.handle, index, _duplicate(fd), cookie))
        else:
            self._start_soon(index)

    def set_vring_call(self, index: int, fd: int | None) -> None:
        ring = self._rings[index]
        if fd is not None:
            os.set_blocking(fd, False)
        _close(ring.call)
        ring.call = fd
        if ring.running:
            self._tell(lambda cookie: lib.vs_queue_set_call(self.handle, index, _duplicate(fd), cookie))

    def set_vring_err(self, index: int, fd: int | None) -> None:
        ring = self._rings[index]
        if fd is not None:
            os.set_blocking(fd, False)
        _close(ring.err)
        ring.err = fd
        if ring.running:
            self._tell(lambda cookie: lib.vs_queue_set_err(self.handle, index, _duplicate(fd), cookie))

    async def set_vring_enable(self, index: int, enabled: bool) -> None:
        ring = self._rings[index]
        ring.enabled = enabled
        await self._settle(index)
        if ring.running:
            await self._enable(index, enabled)
        else:
            await self._try_start(index)

    async def _enable(self, index: int, enabled: bool) -> None:
        await self._core.message(lambda cookie: lib.vs_queue_enable(self.handle, index, int(enabled), cookie))

    async def get_vring_base(self, index: int) -> int:
        return await self._whole(self._get_vring_base(index))

    async def _get_vring_base(self, index: int) -> int:
        await self._settle(index)
        ring = self._rings[index]
        ring.armed = False
        _close(ring.kick)
        ring.kick = None
        if ring.running:
            await self._stop(index)
        ring.base, ring.based = self._base_of(ring), True
        return ring.base

    async def reset_device(self) -> None:
        await self._whole(self._reset_device())

    async def _reset_device(self) -> None:
        await self._end_requests()
        for ring in self._rings:
            ring.num, ring.addr, ring.base = 0, None, 0
            ring.based = ring.enabled = ring.armed = False
            _close(ring.kick)
            ring.kick = None
        if self._inflight is not None:
            self._inflight.forget(self._ring_features())
        self._left = set()
        await self.events.forget()
        self.status = 0

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Carries the work out to its end even if the caller is cancelled: half a change cannot be undone."""
        task = asyncio.ensure_future(work)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    # A message that needs no answer of ours is still carried out in the order it was sent: the data plane's inbox keeps
    # the order of one thread. Only a start has to be waited for, because it decides whether the ring runs.

    def _tell(self, send: Any) -> None:
        task = asyncio.ensure_future(self._core.message(send))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    def _start_soon(self, index: int) -> None:
        self._starting.setdefault(index, []).append(asyncio.ensure_future(self._try_start(index)))

    async def _settle(self, index: int) -> None:
        for starting in self._starting.pop(index, ()):
            await starting

    async def _try_start(self, index: int) -> None:
        """Starts the ring if everything is there: size, addresses, a kick, memory in which it lies, and leave to run.

        Not before it is enabled: until then a front end may still say where the ring stands and where it begins.
        """
        ring = self._rings[index]
        if ring.running or not ring.armed or not ring.enabled or ring.addr is None or not ring.num or self._map is None:
            return
        addresses = self._guest_addresses(ring)
        if addresses is None or (index == CONTROL and self._left - {CONTROL, EVENT}):
            # Management of tasks waits until all the tasks are there that it may be about.
            return
        if ring.num & (ring.num - 1) and not self._acked & Feature.RING_PACKED:
            # It was for a packed ring when it came: features changed after that.
            self._say(index, "cannot start", "RING_SIZE")
            return
        params = ffi.new("struct vs_queue_params *")
        params.desc, params.avail, params.used = ring.addr.desc, ring.addr.avail, ring.addr.used
        params.size, params.base = ring.num, self._base_of(ring)
        params.features = self._ring_features()
        params.worker = self._worker_of(index)
        params.kick_fd = _duplicate(ring.kick)
        params.call_fd = _duplicate(ring.call)
        params.err_fd = _duplicate(ring.err)
        params.enabled = ring.enabled
        # A ring whose base is known is looked at without a kick: one may have been lost while it was stopped.
        params.wait_kick = not ring.based
        params.inflight = ffi.NULL if self._inflight is None else self._inflight.handle
        ring.running = True
        self._served = True
        enabled = ring.enabled
        reply = await self._core.message(
            lambda cookie: lib.vs_queue_start(self.handle, index, params, self._require_map(), cookie)
        )
        if reply.err:
            ring.running = False
            self._say(index, "cannot start", rule_name(-reply.err))
            return
        ring.addresses = addresses
        self._tell_replays(index, reply.aux)
        if ring.enabled != enabled:
            await self._enable(index, ring.enabled)
        if index in self._left:
            self._left.discard(index)
            if index not in (CONTROL, EVENT):
                await self._try_start(CONTROL)

    def _tell_replays(self, index: int, replays: int) -> None:
        where = f"port {self.port.name}: {queue_name(index)}"
        if replays & inflight.FORGOTTEN:
            self._log.say(
                logging.WARNING,
                "forgotten",
                f"{where}: what an earlier process had in flight does not fit the ring, and is forgotten",
            )
        elif replays:
            self._log.say(
                logging.INFO, "replayed", f"{where}: {replays} requests of an earlier process are executed again"
            )

    def _require_map(self) -> CData:
        if self._map is None:
            raise ProtocolError(Rule.RING_NOT_MAPPED, "there is no memory")
        return self._map.handle

    def _worker_of(self, index: int) -> int:
        return self._workers[max(index - FIRST_REQUEST, 0) % len(self._workers)]

    async def _stop(self, index: int) -> None:
        ring = self._rings[index]
        reply = await self._core.message(lambda cookie: lib.vs_queue_stop(self.handle, index, cookie))
        ring.running = False
        ring.base = reply.aux
        ring.based = ring.based or self._begun(index)
        ring.addresses = None

    async def _end_requests(self) -> None:
        """The initiator is gone or forgot its requests: nothing more is taken, what runs is aborted, rings stop."""
        for index in range(self.num_queues):
            await self._settle(index)
        running = [index for index, ring in enumerate(self._rings) if ring.running]
        await asyncio.gather(*(self._enable(index, False) for index in running))
        await self.port.nexus_lost()
        await asyncio.gather(*(self._stop(index) for index in running))

    # ---- the rest of the session's calls ---------------------------------------------------------------------------

    def set_backend_channel(self, channel: socket.socket | None) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = channel

    async def disconnected(self) -> None:
        """The front end is gone, however it went. The device is as new for the next one."""
        await self._whole(self._disconnect())

    async def _disconnect(self) -> None:
        others = self._changes - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)
        await self._end_requests()
        old, self._map = self._map, None
        if old is not None:
            await self._drop_map(old, set())
        self._drop_inflight()
        for ring in self._rings:
            for fd in (ring.kick, ring.call, ring.err):
                _close(fd)
        self._rings = [_Ring() for _ in range(self.num_queues)]
        self.set_backend_channel(None)
        self._acked = self.status = self.events.features = 0
        await self.events.forget()
        self.connected = False

    # ---- errors and inspection -------------------------------------------------------------------------------------

    def _queue_error(self, up: Any) -> None:
        if rule_name(-up.err) == "RING_UNMAPPED":
            # Where a ring lies is looked at when it starts and when the map changes: it is the front end that took the
            # memory away, and no rule is broken by that.
            self._log.say(
                logging.INFO,
                "rests",
                f"port {self.port.name}: {queue_name(up.aux)} rests: it is in no memory region now",
            )
            return
        self._say(up.aux, "stopped", rule_name(-up.err))

    def _say(self, index: int, what: str, name: str) -> None:
        self._log.say(
            logging.WARNING, name, f"port {self.port.name}: {queue_name(index)} {what}: the driver broke {name}"
        )

    def _guest_addresses(self, ring: _Ring) -> RingAddresses | None:
        """The ring's parts as guest-physical addresses; None where one is not in the memory we have."""
        if ring.addr is None:
            return None
        found = [self._guest_address(user) for user in (ring.addr.desc, ring.addr.avail, ring.addr.used)]
        desc, avail, used = found
        if desc is None or avail is None or used is None:
            return None
        return RingAddresses(ring.num, desc, avail, used)

    def _guest_address(self, user: int) -> int | None:
        for region in self._regions():
            if region.user_addr <= user < region.user_addr + region.size:
                return region.guest_addr + user - region.user_addr
        return None

    def queue_status(self) -> list[QueueStatus]:
        return [self._one_status(index) for index in range(self.num_queues)]

    def _one_status(self, index: int) -> QueueStatus:
        info = self._info(index)
        packed = bool((info.features if info.started else self._ring_features()) & lib.VS_RING_PACKED)
        avail, used = (Place.of_word(word) if packed else None for word in (info.last_avail, info.used_idx))
        return QueueStatus(
            index=index,
            name=queue_name(index),
            started=bool(info.started),
            enabled=bool(info.enabled),
            broken=bool(info.broken),
            stalled=bool(info.stalled),
            error=rule_name(-info.error) if info.error else None,
            size=info.size,
            layout="packed" if packed else "split",
            features=feature_names(self._acked),
            worker=info.worker,
            last_avail=avail.index if avail else info.last_avail,
            used_idx=used.index if used else info.used_idx,
            avail_wrap=avail.wrap if avail else None,
            used_wrap=used.wrap if used else None,
            in_flight=info.in_flight,
            requests=info.requests,
            kicks=info.kicks,
            interrupts=info.interrupts,
            interrupts_suppressed=info.interrupts_suppressed,
            batches=info.batches,
            max_batch=info.max_batch,
            errors=info.errors,
        )

    def notifiers(self, index: int) -> tuple[int | None, int | None]:
        """The kick and the call descriptor of a ring; they stay the device's."""
        ring = self._rings[index]
        return ring.kick, ring.call

    def queue(self, index: int) -> QueueStatus:
        return self._one_status(index)

    def regions(self) -> Sequence[MemoryRegion]:
        """The memory table; the descriptors in it stay the device's."""
        return self._regions()

    def described(self, index: int, in_flight: Sequence[int] = ()) -> tuple[Ring, DeviceStands] | None:
        """Where the ring lies, what was negotiated for it, and where the device stands; None while it does not run."""
        ring = self._rings[index]
        if not ring.running or ring.addresses is None:
            return None
        info = self._info(index)
        # As the ring was started: features may have been set anew since.
        packed, event_idx, indirect = (
            bool(info.features & flag) for flag in (lib.VS_RING_PACKED, lib.VS_RING_EVENT_IDX, lib.VS_RING_INDIRECT)
        )
        stands = DeviceStands(info.last_avail, info.used_idx, list(in_flight))
        return Ring(ring.addresses, packed, event_idx, indirect), stands

    async def walk(self, index: int, in_flight: Sequence[int] = ()) -> Snapshot | None:
        """Reads the ring from the guest's memory by itself; None while it does not run."""
        found = await read_ring(self, index, in_flight)
        return found.snapshot if found is not None else None


def queue_name(index: int) -> str:
    return {CONTROL: "control", EVENT: "event"}.get(index, f"request {index - FIRST_REQUEST}")


def rule_name(rule: int) -> str:
    return ffi.string(lib.vs_ring_rule_name(rule)).decode()
