# SPDX-License-Identifier: Apache-2.0
"""One vfio-user client of a PCI function, from its socket to its end: the messages that the data plane does not answer
by itself, one at a time and in order.

What a client sends never raises past `Session.run`: it is refused with an errno, or ends this client alone. The
function's state outlives the client, its memory and its interrupts do not.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from vhost_scsi.hba import messages as wire
from vhost_scsi.hba.function import IRQS, REGIONS, Ending, Function, Message
from vhost_scsi.hba.messages import Command, DeviceFlag, Irq, IrqFlag, IrqSetFlag, Refused, RegionFlag, UnmapFlag
from vhost_scsi.hba.version import Agreement, agree
from vhost_scsi.hba.windows import Windows
from vhost_scsi.log_limit import LimitedLog

LOG: Final = logging.getLogger("vhost_scsi.control")


class Session:
    def __init__(self, function: Function, log: LimitedLog | None = None) -> None:
        self._function = function
        self._log = log or LimitedLog(LOG)
        self._windows = Windows(function)
        self._agreement: Agreement | None = None
        self._handling: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    async def run(self, sock: socket.socket) -> None:
        """Serves `sock`, which is closed in the end, until the client goes or cannot be followed."""
        cookie = self._function.core.cookie()
        sock.setblocking(False)
        self._function.attach(sock.detach(), cookie, self._arrived, self._ended)
        try:
            await self._over.wait()
        finally:
            await _whole(self._end(cookie))

    async def _end(self, cookie: int) -> None:
        self._over.set()
        if self._handling is not None:
            self._handling.cancel()
            await asyncio.wait((self._handling,))
        await self._function.detach(cookie)
        await self._windows.clear()

    def _arrived(self, message: Message) -> None:
        if self._over.is_set():
            message.refuse(errno.ESHUTDOWN)
        else:
            self._handling = asyncio.get_running_loop().create_task(self._answer(message))

    def _ended(self, ending: Ending) -> None:
        if ending is not Ending.PEER_CLOSED:
            self._warn(ending.name, f"client ended: {ending.name}")
        self._over.set()

    def _warn(self, kind: str, text: str) -> None:
        self._log.say(logging.WARNING, kind, f"vfio-user: {text}")

    async def _answer(self, message: Message) -> None:
        try:
            await self._serve(message)
        except Refused as refusal:
            self._warn(wire.command_name(message.command), f"{wire.command_name(message.command)}: {refusal}")
            message.refuse(refusal.code)
            if refusal.closes:
                self._over.set()
        except Exception:
            # A bug of ours: this client must not wait for ever, and the next one is served.
            self._log.say(logging.ERROR, "message failed", "vfio-user: a message failed", trace=True)
            message.refuse(errno.EIO)
        finally:
            message.refuse(errno.ECANCELED)

    async def _serve(self, message: Message) -> None:
        if message.command == Command.VERSION:
            await self._version(message)
            return
        if self._agreement is None:
            raise Refused(errno.EINVAL, "before a version was agreed upon", closes=True)
        handler = _HANDLERS.get(message.command)
        if handler is None:
            raise Refused(errno.ENOTSUP, "not served")
        await handler(self, message)

    # ---- the messages ----------------------------------------------------------------------------------------------

    async def _version(self, message: Message) -> None:
        if self._agreement is not None:
            raise Refused(errno.EINVAL, "a second VERSION")
        agreement, answer = agree(message.data)
        await self._function.open(agreement.max_data_xfer_size)
        self._agreement = agreement
        message.reply(answer)

    async def _dma_map(self, message: Message) -> None:
        wanted = wire.DMA_MAP.parse(message.data)
        if message.nfds > 1:
            raise Refused(errno.EINVAL, f"{message.nfds} descriptors")
        await self._windows.add(wanted, message.take_fd(0))
        message.reply()

    async def _dma_unmap(self, message: Message) -> None:
        wanted = wire.DMA_UNMAP.parse(message.data)
        if wanted.flags == UnmapFlag.ALL:
            if wanted.address or wanted.size:
                raise Refused(errno.EINVAL, "everything is unmapped without an address")
            await self._windows.clear()
        elif wanted.flags:
            raise Refused(errno.EINVAL, f"flags {wanted.flags:#x}")
        else:
            await self._windows.remove(wanted.address, wanted.size)
        message.reply(message.data)

    async def _device_info(self, message: Message) -> None:
        wanted = wire.DEVICE_INFO.parse(message.data)
        _room(wanted.argsz, wire.DEVICE_INFO.size)
        flags = DeviceFlag.RESET | DeviceFlag.PCI
        message.reply(wire.DEVICE_INFO.build(wire.DeviceInfo(wire.DEVICE_INFO.size, flags, REGIONS, IRQS)))

    async def _region_info(self, message: Message) -> None:
        wanted = wire.REGION_INFO.parse(message.data)
        _room(wanted.argsz, wire.REGION_INFO.size)
        if wanted.index >= REGIONS:
            raise Refused(errno.EINVAL, f"region {wanted.index}")
        region = self._function.region(wanted.index)
        assert self._agreement is not None
        mapped = region.fd >= 0 and self._agreement.max_msg_fds > 0
        flags = RegionFlag(region.flags) & ~(RegionFlag(0) if mapped else RegionFlag.MMAP)
        info = wire.RegionInfo(wire.REGION_INFO.size, flags, wanted.index, 0, region.size)
        message.reply(wire.REGION_INFO.build(info), [region.fd] if mapped else [])

    async def _irq_info(self, message: Message) -> None:
        wanted = wire.IRQ_INFO.parse(message.data)
        _room(wanted.argsz, wire.IRQ_INFO.size)
        if wanted.index >= IRQS:
            raise Refused(errno.EINVAL, f"interrupt type {wanted.index}")
        flags = IrqFlag.EVENTFD
        if wanted.index == Irq.INTX:
            flags |= IrqFlag.MASKABLE | IrqFlag.AUTOMASKED
        count = self._function.irq_count(wanted.index)
        message.reply(wire.IRQ_INFO.build(wire.IrqInfo(wire.IRQ_INFO.size, flags, wanted.index, count)))

    async def _set_irqs(self, message: Message) -> None:
        """Descriptors for interrupts, or none; masking and triggering never comes here."""
        wanted = wire.IRQ_SET.parse(message.data)
        if wanted.index >= IRQS:
            raise Refused(errno.EINVAL, f"interrupt type {wanted.index}")
        count = self._function.irq_count(wanted.index)
        if wanted.flags == IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER and not wanted.count and not wanted.start:
            # "a count (and start) of 0, with data flags of VFIO_IRQ_SET_DATA_NONE disables all interrupts of the index"
            if count:
                await self._function.set_irq_fds(wanted.index, 0, [-1] * count)
            message.reply()
            return
        if wanted.flags == IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER:
            if not wanted.count or wanted.start + wanted.count > count:
                raise Refused(errno.EINVAL, f"interrupts {wanted.start} + {wanted.count} of {count}")
            await self._function.set_irq_fds(wanted.index, wanted.start, _eventfds(message, wanted.count))
            message.reply()
            return
        if wanted.flags & IrqSetFlag.DATA_EVENTFD:
            raise Refused(errno.ENOTSUP, "eventfds that mask or unmask")
        raise Refused(errno.EINVAL, f"flags {wanted.flags:#x}, count {wanted.count}")

    async def _reset(self, message: Message) -> None:
        if message.data:
            raise Refused(errno.EINVAL, f"{len(message.data)} bytes")
        try:
            await self._function.reset()
        except OSError as error:
            raise Refused(error.errno or errno.EIO, "a reset is under way") from error
        message.reply()


async def _whole(work: Coroutine[Any, Any, None]) -> None:
    """Awaits `work` to its end, also when the caller is cancelled meanwhile (a server that closes while its client is
    being let go)."""
    task = asyncio.get_running_loop().create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError


def _room(argsz: int, size: int) -> None:
    """argsz is "the maximum size of the reply payload", and a reply is not shorter than its fixed part."""
    if argsz < size:
        raise Refused(errno.EINVAL, f"argsz {argsz}, the answer has {size} bytes")


def _eventfds(message: Message, count: int) -> Sequence[int]:
    """So many descriptors, the caller's; -1 each where "no file descriptors are provided". Refused: not eventfds."""
    if not message.nfds:
        return [-1] * count
    fds = [message.take_fd(index) for index in range(message.nfds)]
    # Whatever else can be written to might make the data plane wait.
    if len(fds) != count or any(os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[eventfd]" for fd in fds):
        for fd in fds:
            os.close(fd)
        raise Refused(errno.EINVAL, f"{len(fds)} descriptors for {count} interrupts, or not eventfds")
    return fds


_HANDLERS: Final[dict[int, Callable[[Session, Message], Awaitable[None]]]] = {
    Command.DMA_MAP: Session._dma_map,
    Command.DMA_UNMAP: Session._dma_unmap,
    Command.DEVICE_GET_INFO: Session._device_info,
    Command.DEVICE_GET_REGION_INFO: Session._region_info,
    Command.DEVICE_GET_IRQ_INFO: Session._irq_info,
    Command.DEVICE_SET_IRQS: Session._set_irqs,
    Command.DEVICE_RESET: Session._reset,
}
