# SPDX-License-Identifier: Apache-2.0
"""A small virtio-scsi driver over its control, event and request queues: SCSI commands in, results out.

For tests, benches and the fuzzing of a device; synchronous calls and submit/collect with tags. It knows no SCSI (CDBs
and sense are bytes), retries nothing, and checks what the device answers. How the device is notified and how we wait
for it is the QueuePort's: eventfds with a back end in another process, a plain call with a device in this one.

    VhostScsiError
      WireError            (virtio_scsi) the answer is not what virtio 1.3, 5.6 says
      CommandTimeoutError  no answer in time; the request is still the device's
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from vhost_scsi.errors import VhostScsiError
from vhost_scsi.virtqueue.memory import GuestBuffer, GuestMemory
from vhost_scsi.virtqueue.ring_driver import RingDriver
from vhost_scsi.virtqueue.virtio_scsi import (
    AN_RESPONSE_BYTES,
    DEFAULT_CDB_SIZE,
    DEFAULT_SENSE_SIZE,
    EVENT_BYTES,
    AnRequest,
    AnResponse,
    ControlType,
    Event,
    LunAddress,
    RequestHeader,
    ResponseHeader,
    TaskAttr,
    TaskManagement,
    TmfRequest,
    WellKnownAddress,
    WireError,
    request_header_bytes,
    response_header_bytes,
)

DEFAULT_TIMEOUT: Final = 10.0
_TAG_LIMIT: Final = 1 << 64

Address = LunAddress | WellKnownAddress | bytes


class CommandTimeoutError(VhostScsiError):
    """The device did not answer in time."""


def eventfd_notifier(fd: int) -> Callable[[], None]:
    """A notifier that adds one to the kick eventfd."""

    def notify() -> None:
        os.eventfd_write(fd, 1)

    return notify


class QueuePort:
    """A queue, how its device is notified, and how to wait for it: on the `call_fd` eventfd, or by looking (None)."""

    def __init__(self, queue: RingDriver, notify: Callable[[], None], call_fd: int | None = None) -> None:
        self.queue = queue
        self.notify = notify
        self.call_fd = call_fd
        self.kicks = 0

    def publish(self) -> None:
        """Publish, and notify where the device asks for it."""
        if self.queue.publish():
            self.kicks += 1
            self.notify()

    def wait(self, deadline: float) -> bool:
        """Wait until there is something to collect; False when `deadline` (time.monotonic) passed first."""
        if self.call_fd is None:
            while not self.queue.pending:
                if time.monotonic() >= deadline:
                    return False
                # gives the core, and the interpreter lock, to a device that runs beside us
                time.sleep(0)
            return True
        poller = select.poll()
        poller.register(self.call_fd, select.POLLIN)
        while not self.queue.enable_notifications():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if poller.poll(left * 1000):
                self._drain()
        return True

    def _drain(self) -> None:
        """Take the count out of the call eventfd; 2.7.7.1: spurious notifications are to be expected."""
        assert self.call_fd is not None
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.call_fd)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended. `response` and `status` are plain numbers: a device may say anything.

    `data` is what the device says it wrote behind the response header (2.7.8.3: nothing beyond that counts), `written`
    the whole of it.
    """

    tag: int
    response: int
    status: int
    sense: bytes
    residual: int
    status_qualifier: int
    data: bytes
    written: int


@dataclass(slots=True)
class _Pending:
    """A request the device has: which queue, and the pieces it consists of."""

    tag: int
    queue: int
    readable: list[GuestBuffer]
    writable: list[GuestBuffer]
    in_len: int


def cut(total: int, cuts: Sequence[int]) -> list[int]:
    """Lengths of the pieces of `total` bytes cut at the offsets `cuts`; cuts outside or twice do not count."""
    edges = sorted({0, total, *(c for c in cuts if 0 < c < total)})
    return [end - start for start, end in pairwise(edges)]


class ScsiDriver:
    """Commands, task management and events over one control, one event and any number of request queues.

    `cdb_size` and `sense_size` are those of the configuration space. With `control` or `event` None the calls that need
    them are not to be made. Not safe for use from two threads.
    """

    def __init__(
        self,
        memory: GuestMemory,
        requests: Sequence[QueuePort],
        *,
        control: QueuePort | None = None,
        event: QueuePort | None = None,
        cdb_size: int = DEFAULT_CDB_SIZE,
        sense_size: int = DEFAULT_SENSE_SIZE,
    ) -> None:
        self.memory = memory
        self.requests = list(requests)
        self.control = control
        self.event = event
        self.cdb_size = cdb_size
        self.sense_size = sense_size
        self._next_tag = 1
        self._results: dict[int, CommandResult] = {}
        self._pending: dict[int, _Pending] = {}

    @property
    def pending(self) -> int:
        """Commands submitted and not yet seen back."""
        return len(self._pending)

    def command(
        self,
        target: int,
        lun: int,
        cdb: bytes,
        data_out: bytes = b"",
        in_len: int = 0,
        *,
        queue: int = 0,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> CommandResult:
        """Send one command and wait for it. Framing, attribute and raw addresses: see `submit`."""
        return self.wait(self.submit(LunAddress(target, lun), cdb, data_out, in_len, queue=queue), timeout)

    def submit(
        self,
        address: Address,
        cdb: bytes,
        data_out: bytes = b"",
        in_len: int = 0,
        *,
        queue: int = 0,
        tag: int | None = None,
        attribute: int = TaskAttr.SIMPLE,
        out_cuts: Sequence[int] | None = None,
        in_cuts: Sequence[int] | None = None,
        indirect: bool | None = None,
        publish: bool = True,
    ) -> int:
        """Send one command; returns its tag.

        `out_cuts` and `in_cuts` are offsets at which the readable part (header, dataout) and the writable part
        (response, datain) are cut into separate buffers; the default is one buffer each for header and data. A device
        may not depend on how that is done (2.7.4.1). `publish` False leaves it to a later submit or `publish`.
        """
        tag = self._new_tag() if tag is None else tag
        if tag in self._pending or tag in self._results:
            raise ValueError(f"tag {tag} is in use")
        lun = address if isinstance(address, bytes) else address.encode()
        header = RequestHeader(lun, tag, cdb, attribute).build(self.cdb_size)
        response_bytes = response_header_bytes(self.sense_size)
        out_at = [request_header_bytes(self.cdb_size)] if out_cuts is None else out_cuts
        in_at = [response_bytes] if in_cuts is None else in_cuts
        readable = self._allocate(cut(len(header) + len(data_out), out_at))
        try:
            writable = self._allocate(cut(response_bytes + in_len, in_at))
        except VhostScsiError:
            self._free(readable)
            raise
        self._scatter(readable, header + data_out)
        pending = _Pending(tag, queue, readable, writable, in_len)
        port = self.requests[queue]
        try:
            port.queue.add(readable, writable, token=pending, indirect=indirect)
        except (VhostScsiError, ValueError):
            self._free(readable + writable)
            raise
        self._pending[tag] = pending
        if publish:
            port.publish()
        return tag

    def publish(self) -> None:
        """Publish what was submitted with publish=False, on every request queue."""
        for port in self.requests:
            port.publish()

    def collect(self) -> list[CommandResult]:
        """Everything that came back since the last look, in order per queue; does not wait."""
        self._look()
        results = list(self._results.values())
        self._results.clear()
        return results

    def wait(self, tag: int, timeout: float = DEFAULT_TIMEOUT) -> CommandResult:
        """The result of one command; others that come back meanwhile wait for `collect` or their own `wait`."""
        deadline = time.monotonic() + timeout
        while True:
            self._look()
            if tag in self._results:
                return self._results.pop(tag)
            if tag not in self._pending:
                raise ValueError(f"no command with tag {tag}")
            if not self.requests[self._pending[tag].queue].wait(deadline):
                raise CommandTimeoutError(f"no answer to the command with tag {tag} in {timeout:g} s")

    def task_management(
        self, function: TaskManagement | int, address: Address, tag: int = 0, *, timeout: float = DEFAULT_TIMEOUT
    ) -> int:
        """Send one task management function and wait; its response, see ControlResponse."""
        lun = address if isinstance(address, bytes) else address.encode()
        data = self._control(TmfRequest(function, lun, tag).build(), 1, timeout)
        if len(data) != 1:
            raise WireError("the device wrote no response to a task management function")
        return data[0]

    def notification_request(
        self, type_: ControlType | int, address: Address, events: int, *, timeout: float = DEFAULT_TIMEOUT
    ) -> AnResponse:
        """Query (AN_QUERY) or subscribe to (AN_SUBSCRIBE) asynchronous notifications, and wait for the answer."""
        lun = address if isinstance(address, bytes) else address.encode()
        data = self._control(AnRequest(type_, lun, events).build(), AN_RESPONSE_BYTES, timeout)
        return AnResponse.parse(data)

    def _control(self, request: bytes, response_bytes: int, timeout: float) -> bytes:
        if self.control is None:
            raise ValueError("this driver has no control queue")
        token = self._allocate([len(request), response_bytes])
        self._scatter(token[:1], request)
        try:
            self.control.queue.add(token[:1], token[1:], token=token)
        except (VhostScsiError, ValueError):
            self._free(token)
            raise
        self.control.publish()
        deadline = time.monotonic() + timeout
        while True:
            for used in self.control.queue.collect():
                data = self._gather(used.token[1:], used.written)
                self._free(used.token)
                # an earlier request that we gave up on may come back first
                if used.token is token:
                    return data
            if not self.control.wait(deadline):
                # buffers stay the device's; they are not freed
                raise CommandTimeoutError(f"no answer on the control queue in {timeout:g} s")

    def post_events(self, count: int = 8, size: int = EVENT_BYTES) -> None:
        """Give the device `count` event buffers; 10 to 15 are enough in practice (5.6.6.3)."""
        port = self._event_port()
        for _ in range(count):
            buffer = self.memory.allocate(size)
            port.queue.add((), [buffer], token=buffer)
        port.publish()

    def events(self) -> list[Event]:
        """Events that came in; their buffers go back to the device. Does not wait; `wait_event` does."""
        port = self._event_port()
        found = []
        for used in port.queue.collect():
            buffer: GuestBuffer = used.token
            found.append(bytes(buffer.view[: used.written]))
            port.queue.add((), [buffer], token=buffer)
        port.publish()
        return [Event.parse(data) for data in found]

    def wait_event(self, timeout: float = DEFAULT_TIMEOUT) -> list[Event]:
        """Events, waiting for the first one; empty when none came in time."""
        port = self._event_port()
        return self.events() if port.wait(time.monotonic() + timeout) else []

    def reset(self) -> list[int]:
        """After the device was reset: take everything back, on all queues; tags of the commands that were lost."""
        lost = []
        for port in self.requests:
            for pending in port.queue.detach():
                lost.append(pending.tag)
                self._free(pending.readable + pending.writable)
        if self.control is not None:
            for buffers in self.control.queue.detach():
                self._free(buffers)
        if self.event is not None:
            self._free(self.event.queue.detach())
        self._pending.clear()
        return lost

    def _event_port(self) -> QueuePort:
        if self.event is None:
            raise ValueError("this driver has no event queue")
        return self.event

    def _new_tag(self) -> int:
        while self._next_tag in self._pending or self._next_tag in self._results:
            self._next_tag = (self._next_tag + 1) % _TAG_LIMIT
        tag = self._next_tag
        self._next_tag = (tag + 1) % _TAG_LIMIT
        return tag

    def _look(self) -> None:
        for port in self.requests:
            for used in port.queue.collect():
                pending: _Pending = used.token
                del self._pending[pending.tag]
                data = self._gather(pending.writable, used.written)
                self._free(pending.readable + pending.writable)
                self._results[pending.tag] = self._result(pending, data)

    def _result(self, pending: _Pending, data: bytes) -> CommandResult:
        """Raises WireError where the device wrote less than a response header."""
        try:
            header = ResponseHeader.parse(data, self.sense_size)
        except WireError as error:
            raise WireError(f"command with tag {pending.tag}: {error}") from error
        return CommandResult(
            tag=pending.tag,
            response=header.response,
            status=header.status,
            sense=header.sense,
            residual=header.residual,
            status_qualifier=header.status_qualifier,
            data=data[response_header_bytes(self.sense_size) :],
            written=len(data),
        )

    def _allocate(self, lengths: Sequence[int]) -> list[GuestBuffer]:
        """One buffer each, or none at all."""
        buffers: list[GuestBuffer] = []
        try:
            for length in lengths:
                buffers.append(self.memory.allocate(length, 1))
        except VhostScsiError:
            self._free(buffers)
            raise
        return buffers

    def _free(self, buffers: Sequence[GuestBuffer]) -> None:
        for buffer in buffers:
            self.memory.free(buffer)

    @staticmethod
    def _scatter(buffers: Sequence[GuestBuffer], data: bytes) -> None:
        offset = 0
        for buffer in buffers:
            buffer.view[:] = data[offset : offset + buffer.length]
            offset += buffer.length

    @staticmethod
    def _gather(buffers: Sequence[GuestBuffer], length: int) -> bytes:
        """The first `length` bytes of the buffers."""
        return b"".join(bytes(buffer.view) for buffer in buffers)[:length]
