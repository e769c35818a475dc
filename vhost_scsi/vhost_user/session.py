# SPDX-License-Identifier: Apache-2.0
"""One vhost-user connection: takes messages strictly in order, checks them, and tells the device what they ask.

It knows the protocol and nothing of rings' contents, SCSI or mappings: those are the `Device`'s. What a front end sends
never raises past `Session.run`: it is answered with a rule's number, passed over, or ends this connection alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from vhost_scsi.log_limit import LimitedLog
from vhost_scsi.vhost_user import memory_table
from vhost_scsi.vhost_user.channel import Channel, EndOfStream, Frame, ReceivedFds
from vhost_scsi.vhost_user.features import Feature, feature_names, unserved
from vhost_scsi.vhost_user.messages import (
    MESSAGES,
    U64,
    VRING_INDEX_MASK,
    VRING_NOFD,
    IndexedVringAddr,
    Inflight,
    MemoryRegion,
    Message,
    ProtocolFeature,
    Request,
    VringAddr,
    VringState,
    protocol_feature_names,
    request_name,
)
from vhost_scsi.vhost_user.rules import Closes, ProtocolError, Rule

# Not CONFIG: QEMU fills the SCSI host's config space itself and warns if it is offered. Ring reset is a virtio bit and
# not in here; it must not be offered by a Device either, because QEMU does not pass a guest's reset of one ring on.
OFFERED = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.STATUS
)


class Device(Protocol):
    """What a connection drives. One at a time: after `disconnected` the device is as new, and the next one may come.

    Descriptors: a call that returns without an error has taken over the descriptors it was given; one that raises has
    not. Any call may raise ProtocolError (a rule the session cannot see, e.g. RING_STARTED) or OSError (mmap failed).

    Rings: each starts stopped and disabled. A ring starts when its kick descriptor becomes readable (at once where it
    is None: polled), and stops in `get_vring_base` or `reset_device`. Memory and ring parts may come in any order and
    memory may go while a ring runs, so a device looks again at start and at each new map, and lets a ring rest that is
    not inside. Any await may be cancelled when the server is closed; `disconnected` follows.
    """

    @property
    def features(self) -> int:
        """Virtio feature bits that are offered."""
        ...

    @property
    def num_queues(self) -> int:
        """The most rings there can be, the control and event queues included."""
        ...

    @property
    def max_mem_slots(self) -> int: ...

    @property
    def status(self) -> int:
        """The virtio device status byte, as the driver last wrote it."""
        ...

    @status.setter
    def status(self, value: int) -> None: ...

    def set_features(self, features: int) -> None:
        """`features` are virtio bits only, without VHOST_USER_PROTOCOL_FEATURES."""
        ...

    async def set_mem_table(self, regions: Sequence[MemoryRegion]) -> None:
        """Replaces the whole map; returns when the old one is not used any more, as do the two below."""
        ...

    async def add_mem_region(self, region: MemoryRegion) -> None: ...
    async def remove_mem_region(self, region: MemoryRegion) -> None: ...
    async def set_vring_num(self, index: int, num: int) -> None: ...
    async def set_vring_addr(self, index: int, addr: VringAddr) -> None: ...
    async def set_vring_base(self, index: int, base: int) -> None: ...
    def set_vring_kick(self, index: int, fd: int | None) -> None: ...
    def set_vring_call(self, index: int, fd: int | None) -> None: ...
    def set_vring_err(self, index: int, fd: int | None) -> None: ...
    async def set_vring_enable(self, index: int, enabled: bool) -> None: ...

    async def get_vring_base(self, index: int) -> int:
        """Stops the ring; returns the next available index when all that was in flight has ended."""
        ...

    async def reset_device(self) -> None:
        """Stops and disables every ring and forgets what was set up for them, but not memory nor call/err descriptors:
        QEMU resets after it has sent those and does not always send them again."""
        ...

    def get_inflight(self, num_queues: int, queue_size: int) -> tuple[int, int]:
        """Fresh memory in which requests in flight are kept: a descriptor, the caller's to close, and its size."""
        ...

    async def set_inflight(self, inflight: Inflight, fd: int) -> None:
        """Where they are kept from the next start of a ring on, and what a process before this one may have left. The
        descriptor stays the caller's. Raises ProtocolError while a ring runs."""
        ...

    def set_backend_channel(self, channel: socket.socket | None) -> None:
        """A connected non-blocking socket, the device's from now on; one that came before is closed."""
        ...

    async def disconnected(self) -> None:
        """Stops every ring, unmaps and closes everything, and returns when nothing is in flight any more."""
        ...


@dataclass(slots=True)
class _Ring:
    """What the front end has said of a ring, as far as the session must know to check it."""

    num: int = 0
    addr: VringAddr | None = None
    armed: bool = False  # a kick has been set since the last stop


class Session:
    """State and rules of one connection over a device."""

    def __init__(self, device: Device, log: LimitedLog | None = None) -> None:
        self._device = device
        self._log = log or LimitedLog(logging.getLogger("vhost_scsi.control"))
        self._protocol_features = ProtocolFeature(0)
        self._features = 0
        self._regions: list[MemoryRegion] = []
        self._rings = [_Ring() for _ in range(device.num_queues)]
        self._reply_fds: list[int] = []
        """ours, for the reply that comes next"""

    async def run(self, sock: socket.socket) -> None:
        """Serves `sock` (and closes it) until the peer goes, breaks the framing, or leaves no safe way on."""
        channel = Channel(sock)
        try:
            while await self._answer(channel, await channel.receive()):
                # A peer that never stops sending must not keep the loop from everybody else.
                await asyncio.sleep(0)
        except EndOfStream:
            pass
        except ProtocolError as error:
            self._warn(error.rule.name, f"{error}; closing the connection")
        except ConnectionError:
            pass  # the front end went without waiting for its answers
        except OSError as error:
            self._warn("socket", f"connection lost: {error}")
        finally:
            channel.close()
            await self._device.disconnected()

    async def _answer(self, channel: Channel, frame: Frame) -> bool:
        """Serves one message; False: the connection must be closed."""
        acks_before = self._acks
        row = MESSAGES.get(frame.request)
        with frame.fds:
            try:
                reply = await self._serve(row, frame)
            except ProtocolError as error:
                answer = self._refusal(row, error, frame.needs_reply and acks_before)
                if answer is None and error.rule.closes is not Closes.NEVER and row is not None and row.changes_state:
                    self._warn("unanswered", f"{row.request.name} cannot be refused by a reply; closing the connection")
                    return False
            else:
                answer = reply
                if answer is None and frame.needs_reply and (acks_before or self._acks):
                    answer = U64.build(0)
        try:
            if answer is not None:
                await channel.send_reply(frame.request, answer, self._reply_fds)
        finally:
            while self._reply_fds:
                os.close(self._reply_fds.pop())
        return True

    @property
    def _acks(self) -> bool:
        return ProtocolFeature.REPLY_ACK in self._protocol_features

    def _refusal(self, row: Message | None, error: ProtocolError, ack_wanted: bool) -> bytes | None:
        self._warn(error.rule.name, f"{error}")
        if row is None:
            return U64.build(error.rule) if ack_wanted else None
        return row.error_reply(error.rule, ack_wanted)

    def _warn(self, kind: str, text: str) -> None:
        self._log.say(logging.WARNING, kind, f"vhost-user: {text}")

    async def _serve(self, row: Message | None, frame: Frame) -> bytes | None:
        """The payload of the message's own reply, if it has one."""
        name = request_name(frame.request)
        if row is None:
            raise ProtocolError(Rule.UNKNOWN_REQUEST, name)
        if frame.is_reply:
            raise ProtocolError(Rule.REPLY_FLAG_IN_REQUEST, name)
        self._check_negotiated(row, name)
        handler = _HANDLERS.get(frame.request)
        if handler is None:
            raise ProtocolError(Rule.UNSUPPORTED_REQUEST, name)
        if not row.min_fds <= len(frame.fds) <= row.max_fds:
            raise ProtocolError(Rule.FD_COUNT, f"{name} with {len(frame.fds)} descriptors")
        try:
            value = await handler(self, row.payload.parse(frame.payload), frame.fds)
        except ProtocolError as error:
            raise ProtocolError(error.rule, f"{name}: {error.detail}") from error
        except OSError as error:
            raise ProtocolError(Rule.DEVICE_FAILED, f"{name}: {error}") from error
        if row.reply is None:
            return None
        # What comes back in the form in which it was sent has the same size, padded as the front end's compiler does.
        return row.reply.build(value).ljust(len(frame.payload) if row.reply is row.payload else 0, b"\0")

    def _check_negotiated(self, row: Message, name: str) -> None:
        if row.requires & ~self._protocol_features:
            missing = ", ".join(protocol_feature_names(row.requires))
            raise ProtocolError(Rule.NOT_NEGOTIATED, f"{name} needs {missing}")
        if row.requires_virtio & ~self._features:
            missing = ", ".join(feature_names(row.requires_virtio))
            raise ProtocolError(Rule.NOT_NEGOTIATED, f"{name} needs {missing}")

    # Features

    async def _get_features(self, _value: None, _fds: ReceivedFds) -> int:
        return self._device.features | Feature.VHOST_USER_PROTOCOL_FEATURES

    async def _set_features(self, features: int, _fds: ReceivedFds) -> None:
        virtio = features & ~int(Feature.VHOST_USER_PROTOCOL_FEATURES)
        refused = unserved(virtio, self._device.features)
        if refused:
            raise ProtocolError(Rule.FEATURES_REFUSED, ", ".join(feature_names(refused)))
        self._device.set_features(virtio)
        self._features = features
        if virtio == features:
            # "upon receiving a SET_FEATURES message without F_PROTOCOL_FEATURES the back-end must enable all rings";
            # with the bit nothing is disabled: SET_FEATURES also comes in the middle of things.
            for index in range(len(self._rings)):
                await self._device.set_vring_enable(index, True)

    async def _get_protocol_features(self, _value: None, _fds: ReceivedFds) -> int:
        return OFFERED

    async def _set_protocol_features(self, features: int, _fds: ReceivedFds) -> None:
        refused = features & ~int(OFFERED)
        if refused:
            raise ProtocolError(Rule.PROTOCOL_FEATURES_REFUSED, ", ".join(protocol_feature_names(refused)))
        self._protocol_features = ProtocolFeature(features)

    async def _get_queue_num(self, _value: None, _fds: ReceivedFds) -> int:
        return len(self._rings)

    async def _nothing(self, _value: None, _fds: ReceivedFds) -> None:
        """SET_OWNER marks a start we know of; RESET_OWNER is deprecated, and to be ignored."""

    async def _set_status(self, status: int, _fds: ReceivedFds) -> None:
        if status > 0xFF:  # virtio 1.3, 2.1: the device status is one byte
            raise ProtocolError(Rule.STATUS_VALUE, f"{status:#x}")
        self._device.status = status

    async def _get_status(self, _value: None, _fds: ReceivedFds) -> int:
        return self._device.status

    async def _reset_device(self, _value: None, _fds: ReceivedFds) -> None:
        await self._device.reset_device()
        self._rings = [_Ring() for _ in self._rings]

    async def _set_backend_req_fd(self, _value: None, fds: ReceivedFds) -> None:
        if not stat.S_ISSOCK(os.fstat(fds[0]).st_mode):
            raise ProtocolError(Rule.CHANNEL_KIND, "the back-end channel is not a socket")
        channel = socket.socket(fileno=fds[0])
        fds.taken()
        if (channel.family, channel.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            channel.close()
            raise ProtocolError(Rule.CHANNEL_KIND, "the back-end channel is not an AF_UNIX stream socket")
        channel.setblocking(False)
        try:
            self._device.set_backend_channel(channel)
        except BaseException:
            channel.close()
            raise

    # Requests in flight

    def _check_inflight(self, inflight: Inflight) -> None:
        if not 0 < inflight.num_queues <= len(self._rings):
            raise ProtocolError(Rule.INFLIGHT_SHAPE, f"{inflight.num_queues} queues of {len(self._rings)}")
        if not 0 < inflight.queue_size <= memory_table.MAX_RING_SIZE:
            raise ProtocolError(Rule.INFLIGHT_SHAPE, f"queues of {inflight.queue_size} entries")

    async def _get_inflight_fd(self, wanted: Inflight, _fds: ReceivedFds) -> Inflight:
        self._check_inflight(wanted)
        fd, size = self._device.get_inflight(wanted.num_queues, wanted.queue_size)
        self._reply_fds.append(fd)
        return Inflight(size, 0, wanted.num_queues, wanted.queue_size)

    async def _set_inflight_fd(self, inflight: Inflight, fds: ReceivedFds) -> None:
        self._check_inflight(inflight)
        await self._device.set_inflight(inflight, fds[0])

    # Memory

    async def _set_mem_table(self, claimed: list[MemoryRegion], fds: ReceivedFds) -> None:
        if len(fds) != len(claimed):
            raise ProtocolError(Rule.FD_COUNT, f"{len(claimed)} regions with {len(fds)} descriptors")
        regions = [replace(region, fd=fd) for region, fd in zip(claimed, fds, strict=True)]
        for region in regions:
            memory_table.check_region(region)
            memory_table.check_file(region)
        memory_table.check_overlap(regions)
        await self._device.set_mem_table(regions)
        fds.taken()
        self._regions = regions

    async def _get_max_mem_slots(self, _value: None, _fds: ReceivedFds) -> int:
        return self._device.max_mem_slots

    async def _add_mem_reg(self, claimed: MemoryRegion, fds: ReceivedFds) -> None:
        if len(self._regions) >= self._device.max_mem_slots:
            raise ProtocolError(Rule.REGION_COUNT, f"more than {self._device.max_mem_slots} regions")
        region = replace(claimed, fd=fds[0])
        memory_table.check_region(region)
        memory_table.check_file(region)
        memory_table.check_overlap([*self._regions, region])
        await self._device.add_mem_region(region)
        fds.taken()
        self._regions = [*self._regions, region]

    async def _rem_mem_reg(self, claimed: MemoryRegion, _fds: ReceivedFds) -> None:
        region = next((each for each in self._regions if memory_table.same_place(each, claimed)), None)
        if region is None:
            raise ProtocolError(Rule.REGION_UNKNOWN, f"no region of {claimed.size:#x} at {claimed.guest_addr:#x}")
        await self._device.remove_mem_region(region)
        self._regions = [each for each in self._regions if each is not region]

    # Rings

    @property
    def _packed(self) -> bool:
        return bool(self._features & Feature.RING_PACKED)

    def _ring(self, index: int) -> _Ring:
        if index >= len(self._rings):
            raise ProtocolError(Rule.QUEUE_INDEX, f"ring {index} of {len(self._rings)}")
        return self._rings[index]

    async def _set_vring_num(self, state: VringState, _fds: ReceivedFds) -> None:
        ring = self._ring(state.index)
        memory_table.check_ring_size(state.num, packed=self._packed)
        await self._device.set_vring_num(state.index, state.num)
        ring.num = state.num

    async def _set_vring_addr(self, value: IndexedVringAddr, _fds: ReceivedFds) -> None:
        ring = self._ring(value.index)
        memory_table.check_ring_addr(value.addr, packed=self._packed)
        if ring.armed:
            self._check_mapped(ring.num, value.addr)
        await self._device.set_vring_addr(value.index, value.addr)
        ring.addr = value.addr

    async def _set_vring_base(self, state: VringState, _fds: ReceivedFds) -> None:
        memory_table.check_ring_base(state.num, self._ring(state.index).num, packed=self._packed)
        await self._device.set_vring_base(state.index, state.num)

    async def _get_vring_base(self, state: VringState, _fds: ReceivedFds) -> VringState:
        self._ring(state.index)
        base = await self._device.get_vring_base(state.index)
        self._rings[state.index] = _Ring()
        return VringState(state.index, base)

    async def _set_vring_enable(self, state: VringState, _fds: ReceivedFds) -> None:
        self._ring(state.index)
        if state.num > 1:
            raise ProtocolError(Rule.ENABLE_VALUE, f"{state.num} for ring {state.index}")
        await self._device.set_vring_enable(state.index, bool(state.num))

    async def _set_vring_kick(self, value: int, fds: ReceivedFds) -> None:
        index, fd = self._notifier(value, fds)
        ring = self._rings[index]
        if ring.addr is not None:
            self._check_mapped(ring.num, ring.addr)
        self._device.set_vring_kick(index, fd)
        fds.taken()
        ring.armed = True

    async def _set_vring_call(self, value: int, fds: ReceivedFds) -> None:
        self._device.set_vring_call(*self._notifier(value, fds))
        fds.taken()

    async def _set_vring_err(self, value: int, fds: ReceivedFds) -> None:
        self._device.set_vring_err(*self._notifier(value, fds))
        fds.taken()

    def _check_mapped(self, num: int, addr: VringAddr) -> None:
        # The order is the front end's: as long as there is no memory or no size, only the device can check, at start.
        if self._regions and num:
            memory_table.check_ring_mapped(addr, num, self._regions, packed=self._packed)

    def _notifier(self, value: int, fds: ReceivedFds) -> tuple[int, int | None]:
        if value & ~(VRING_INDEX_MASK | VRING_NOFD):
            raise ProtocolError(Rule.RESERVED_BITS, f"{value:#x}")
        index = value & VRING_INDEX_MASK
        self._ring(index)
        if len(fds) != (0 if value & VRING_NOFD else 1):
            raise ProtocolError(Rule.FD_COUNT, f"{value:#x} with {len(fds)} descriptors")
        if not fds:
            return index, None
        if not _is_notifier(fds[0]):
            raise ProtocolError(Rule.NOTIFIER_KIND, f"ring {index}: neither an eventfd nor a pipe")
        return index, fds[0]


def _is_notifier(fd: int) -> bool:
    """The specification knows eventfds and pipes; anything else can be readable for ever and would make us spin."""
    return stat.S_ISFIFO(os.fstat(fd).st_mode) or os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"


_HANDLERS: dict[int, Callable[[Session, Any, ReceivedFds], Awaitable[Any]]] = {
    Request.GET_FEATURES: Session._get_features,
    Request.SET_FEATURES: Session._set_features,
    Request.SET_OWNER: Session._nothing,
    Request.RESET_OWNER: Session._nothing,
    Request.SET_MEM_TABLE: Session._set_mem_table,
    Request.SET_VRING_NUM: Session._set_vring_num,
    Request.SET_VRING_ADDR: Session._set_vring_addr,
    Request.SET_VRING_BASE: Session._set_vring_base,
    Request.GET_VRING_BASE: Session._get_vring_base,
    Request.SET_VRING_KICK: Session._set_vring_kick,
    Request.SET_VRING_CALL: Session._set_vring_call,
    Request.SET_VRING_ERR: Session._set_vring_err,
    Request.GET_PROTOCOL_FEATURES: Session._get_protocol_features,
    Request.SET_PROTOCOL_FEATURES: Session._set_protocol_features,
    Request.GET_QUEUE_NUM: Session._get_queue_num,
    Request.SET_VRING_ENABLE: Session._set_vring_enable,
    Request.SET_BACKEND_REQ_FD: Session._set_backend_req_fd,
    Request.GET_INFLIGHT_FD: Session._get_inflight_fd,
    Request.SET_INFLIGHT_FD: Session._set_inflight_fd,
    Request.RESET_DEVICE: Session._reset_device,
    Request.GET_MAX_MEM_SLOTS: Session._get_max_mem_slots,
    Request.ADD_MEM_REG: Session._add_mem_reg,
    Request.REM_MEM_REG: Session._rem_mem_reg,
    Request.SET_STATUS: Session._set_status,
    Request.GET_STATUS: Session._get_status,
}
