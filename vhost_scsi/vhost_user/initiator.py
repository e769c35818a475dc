# SPDX-License-Identifier: Apache-2.0
"""A whole virtio-scsi initiator over a vhost-user socket: front end, guest memory and driver in one object.

What QEMU and a guest's driver do together, in one process: for scripts, tests and benches that send commands to a back
end without a virtual machine. Synchronous; one connection at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.vhost_user.frontend import Frontend, Vring
from vhost_scsi.vhost_user.messages import Inflight, MemoryRegion, VringAddr
from vhost_scsi.virtqueue.memory import GuestMemory
from vhost_scsi.virtqueue.packed_driver import PackedDriver
from vhost_scsi.virtqueue.ring_driver import RingDriver
from vhost_scsi.virtqueue.scsi_driver import QueuePort, ScsiDriver, eventfd_notifier
from vhost_scsi.virtqueue.split_driver import SplitDriver
from vhost_scsi.virtqueue.virtio_scsi import DEFAULT_CDB_SIZE, DEFAULT_SENSE_SIZE

USER_BASE: Final = 0x7F00_0000_0000
CONTROL, EVENT, FIRST_REQUEST = 0, 1, 2


class Initiator:
    """`driver` sends commands. `features`: virtio bits to accept, None for what `Frontend.negotiate` takes then. With
    RING_PACKED among them the rings are packed, with IN_ORDER they are used in order. `inflight`: the back
    end keeps what it has in flight in memory of ours, so that it may die (`resume`)."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        memory_size: int = 64 << 20,
        request_queues: int = 1,
        queue_size: int = 128,
        features: int | None = None,
        cdb_size: int = DEFAULT_CDB_SIZE,
        sense_size: int = DEFAULT_SENSE_SIZE,
        polled: bool = False,
        timeout: float = 30.0,
        inflight: bool = False,
    ) -> None:
        self._path, self._timeout = path, timeout
        self.frontend = Frontend(path, timeout)
        self.memory: Final = GuestMemory.create(memory_size)
        self.vrings: list[Vring] = []
        self._polled = polled
        self._inflight: tuple[Inflight, int] | None = None
        try:
            self.features = self.frontend.negotiate(features)
            self.frontend.set_mem_table(self.regions())
            self.queues = [self._new_queue(queue_size) for _ in range(FIRST_REQUEST + request_queues)]
            if inflight:
                self._inflight = self.frontend.get_inflight(len(self.queues), queue_size)
                self.frontend.set_inflight(*self._inflight)
            self.start()
        except BaseException:
            self.close()
            raise
        ports = [self._port(index) for index in range(len(self.queues))]
        self.driver: Final = ScsiDriver(
            self.memory,
            ports[FIRST_REQUEST:],
            control=ports[CONTROL],
            event=ports[EVENT],
            cdb_size=cdb_size,
            sense_size=sense_size,
        )

    def regions(self) -> Sequence[MemoryRegion]:
        """The memory as a vhost-user table."""
        return [
            MemoryRegion(r.guest_addr, r.size, USER_BASE + r.guest_addr, r.offset, r.fd) for r in self.memory.regions
        ]

    def _new_queue(self, size: int) -> RingDriver:
        layout = PackedDriver if self.features & Feature.RING_PACKED else SplitDriver
        return layout(
            self.memory,
            size,
            event_idx=bool(self.features & Feature.EVENT_IDX),
            indirect=bool(self.features & Feature.INDIRECT_DESC),
            in_order=bool(self.features & Feature.IN_ORDER),
        )

    def user_addresses(self, index: int) -> VringAddr:
        ring = self.queues[index].addresses
        return VringAddr(0, USER_BASE + ring.desc, USER_BASE + ring.used, USER_BASE + ring.avail)

    def start(self, bases: Sequence[int] | None = None) -> None:
        """Sets every ring up; `bases`: where `stop` said that they stood."""
        for index, queue in enumerate(self.queues):
            base = bases[index] if bases is not None else queue.first_base
            addr = self.user_addresses(index)
            vring = self.frontend.setup_vring(index, queue.size, addr, base=base, polled=self._polled)
            self.vrings.append(vring)

    def resume(self, path: str | os.PathLike[str] | None = None) -> None:
        """The back end has died, and another process serves the socket (or that of `path`): goes on with it as QEMU
        does, with the same rings, notifiers and in-flight memory. What was sent and not answered is not sent again."""
        self._path = path or self._path
        fresh = Frontend(self._path, self._timeout)
        self.frontend.hand_over(fresh)
        self.frontend = fresh
        fresh.negotiate(self.features)
        fresh.set_mem_table(self.regions())
        if self._inflight is not None:
            fresh.set_inflight(*self._inflight)
        for vring, queue in zip(self.vrings, self.queues, strict=True):
            # QEMU cannot ask the dead one where the ring stands: it takes the end of the used ring, and of a packed one
            # the place where it began.
            base = queue.used_idx if isinstance(queue, SplitDriver) else queue.first_base
            addr = self.user_addresses(vring.index)
            fresh.setup_vring(vring.index, queue.size, addr, base=base, again=vring)

    def stop(self) -> list[int]:
        """GET_VRING_BASE on every ring."""
        return [self.frontend.stop_vring(index) for index in range(len(self.queues))]

    def _port(self, index: int) -> QueuePort:
        vring = self.vrings[index]
        if vring.kick_fd is None:
            return QueuePort(self.queues[index], lambda: None, None)
        return QueuePort(self.queues[index], eventfd_notifier(vring.kick_fd), vring.call_fd)

    def close(self) -> None:
        self.frontend.close()
        self.memory.close()
        if self._inflight is not None:
            os.close(self._inflight[1])
            self._inflight = None

    def __enter__(self) -> Initiator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
