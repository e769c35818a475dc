# SPDX-License-Identifier: Apache-2.0
"""The event queue (virtio 1.3, 5.6.6.3): what a device tells its driver without being asked.

It says what has changed, in order, one buffer each, as far as the driver negotiated to be told. That something is lost
for want of buffers the data plane says by itself, in the next event. What SCSI's own means tell is the core's affair.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core
from vhost_scsi.scsi import sense
from vhost_scsi.scsi.lun import encode
from vhost_scsi.scsi.sense import SenseCode
from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.virtqueue.virtio_scsi import Event, EventType, ResetReason

if TYPE_CHECKING:
    from vhost_scsi._core import CData

PARAMETER_CODES: Final = frozenset((sense.MODE_PARAMETERS_CHANGED, sense.CAPACITY_DATA_HAS_CHANGED))
"""the unit attention conditions that are a PARAM_CHANGE event, too"""
_LOOK: Final = 0.01  # seconds between looks at the buffers, while waiting for the driver


class Events:
    """Of one device. `features` are what its driver accepted."""

    def __init__(self, core: Core, device: CData) -> None:
        self._core = core
        self._device = device
        self.features = 0
        self.sent = 0
        self.dropped = 0
        """for want of buffers"""
        self._due: deque[bytes] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._most = 0
        """buffers that were posted at once: so many wait when the driver has dealt with everything"""
        self._all_sent = True
        """nothing was dropped of what was posted last"""

    # ---- target.InitiatorEvents ------------------------------------------------------------------------------------

    def lun_added(self, target: int, lun: int) -> None:
        self._reset(target, lun, ResetReason.RESCAN)

    def lun_removed(self, target: int, lun: int) -> None:
        self._reset(target, lun, ResetReason.REMOVED)

    def attention(self, target: int, lun: int, code: SenseCode) -> None:
        if code in PARAMETER_CODES and self.features & Feature.SCSI_CHANGE:
            # ASC in bits 0 to 7, ASCQ in 8 to 15
            self._post(Event(EventType.PARAM_CHANGE, _address(target, lun), code.asc | code.ascq << 8))

    async def noticed(self) -> bool:
        """Waits until the driver has given back every buffer that it posts, which it does when it has dealt with what
        was in it. False: that cannot be known, because it is told nothing or events were lost."""
        if not self.features & Feature.SCSI_HOTPLUG:
            return False
        while self._sender is not None:
            await asyncio.wait((self._sender,))
        if not self._all_sent or not self._most:
            return False
        while 0 <= (room := await self._room()) < self._most:
            await asyncio.sleep(_LOOK)
        return room >= self._most

    # ---- the device's ----------------------------------------------------------------------------------------------

    async def forget(self) -> None:
        """Whoever drives the device from now on has missed nothing."""
        self._due.clear()
        self._most = 0
        if self._sender is not None:
            await asyncio.wait((self._sender,))
        if self.dropped:
            await self._ask(lambda cookie: lib.vs_vdev_events_forget(self._device, cookie))

    def _reset(self, target: int, lun: int, reason: ResetReason) -> None:
        if self.features & Feature.SCSI_HOTPLUG:
            self._post(Event(EventType.TRANSPORT_RESET, _address(target, lun), reason))

    def _post(self, event: Event) -> None:
        made = event.build()
        # Another nexus may change mode pages faster than this driver is told of it.
        if event.type == EventType.PARAM_CHANGE and made in self._due:
            return
        self._due.append(made)
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        self._all_sent = True
        try:
            while self._due:
                self._most = max(self._most, await self._room())
                if self._due:  # else forgotten meanwhile
                    await self._send_one(self._due.popleft())
        finally:
            self._sender = None

    async def _send_one(self, event: bytes) -> None:
        bytes_ = ffi.from_buffer(event)
        if await self._ask(lambda cookie: lib.vs_vdev_event(self._device, bytes_, cookie)) == 0:
            self.sent += 1
            return
        # Those behind it would be lost as well, and are told of in one go.
        self.dropped += 1 + len(self._due)
        self._all_sent = False
        self._due.clear()

    async def _room(self) -> int:
        """Buffers that wait for events; negative: the queue does not run."""
        return await self._ask(lambda cookie: lib.vs_vdev_event_room(self._device, cookie))

    async def _ask(self, send: Callable[[int], int]) -> int:
        try:
            reply = await self._core.message(send)
        except OSError as error:
            return -(error.errno or errno.EIO)  # the queue has never run
        return reply.err or reply.aux


def _address(target: int, lun: int) -> bytes:
    """5.6.6.1, with the LUN as REPORT LUNS has it: that is how drivers compare."""
    return bytes((1, target)) + encode(lun)[:2] + bytes(4)
