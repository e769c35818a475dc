# SPDX-License-Identifier: Apache-2.0
"""A small, real vhost-user front end: connects, negotiates, shares memory, sets up rings, and sends any raw message.

Synchronous and without threads, for tests, benches and fuzzing. It drives the protocol only: the driver side of a ring
is `vhost_scsi.virtqueue`, which works on the memory shared here. It checks replies, not what it is told to send.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from vhost_scsi.errors import VhostScsiError
from vhost_scsi.vhost_user.channel import EndOfStream, Frame, FrameReader
from vhost_scsi.vhost_user.features import LAYOUTS, Feature
from vhost_scsi.vhost_user.messages import (
    EMPTY,
    INFLIGHT,
    MEMORY_TABLE,
    SINGLE_REGION,
    U64,
    VERSION,
    VRING_ADDR,
    VRING_NOFD,
    VRING_STATE,
    HeaderFlag,
    IndexedVringAddr,
    Inflight,
    MemoryRegion,
    ProtocolFeature,
    Request,
    VringAddr,
    VringState,
    pack_header,
)


class RequestRefused(VhostScsiError):
    """The back end answered a request with an error; `code` is its u64, 0 where the reply was empty."""

    exit_code = 5

    def __init__(self, request: Request, code: int) -> None:
        super().__init__(f"{request.name} was refused with {code}")
        self.request = request
        self.code = code


class Disconnected(VhostScsiError):
    """The back end closed the connection."""

    exit_code = 5


class SharedMemory:
    """Guest memory on a memfd: `map` is our view, `fd` the descriptor, both closed by `close`."""

    def __init__(self, size: int, guest_addr: int = 0, user_addr: int = 0x7F00_0000_0000) -> None:
        self.fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)
        self.region = MemoryRegion(guest_addr, size, user_addr, 0, self.fd)

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


@dataclass(slots=True)
class Vring:
    """Our ends of one ring's notifiers; None where the ring was set up to be polled, or never told."""

    index: int
    kick_fd: int | None
    call_fd: int | None
    err_fd: int | None

    def kick(self) -> None:
        assert self.kick_fd is not None
        os.eventfd_write(self.kick_fd, 1)

    def close(self) -> None:
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            if fd is not None:
                os.close(fd)
        self.kick_fd = self.call_fd = self.err_fd = None


def _connect(path: str, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:  # the listen backlog is full
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.001)
    except BaseException:
        sock.close()
        raise


class Frontend:
    """One connection to a back end: a socket path, or a connected socket that it then owns."""

    def __init__(self, target: str | os.PathLike[str] | socket.socket, timeout: float = 10.0) -> None:
        if isinstance(target, socket.socket):
            self.sock = target
        else:
            self.sock = _connect(os.fspath(target), timeout)
        self.sock.settimeout(timeout)
        self.features = 0
        self.protocol_features = ProtocolFeature(0)
        self._reader = FrameReader(self.sock)
        self._vrings: list[Vring] = []

    def __enter__(self) -> Frontend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()
        self.sock.close()
        for vring in self._vrings:
            vring.close()

    def hand_over(self, other: Frontend) -> None:
        """Ends this connection; its notifiers are the other one's from here on."""
        other._vrings, self._vrings = self._vrings, []
        self.close()

    # Raw messages

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Any bytes at all, the descriptors with the first of them."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self.sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            if sent < len(data):
                self.sock.sendall(data[sent:], socket.MSG_NOSIGNAL)
        except ConnectionError as error:
            raise Disconnected("the back end closed the connection") from error

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, need_reply: bool = False) -> None:
        """One message, well framed; nothing is waited for."""
        flags = VERSION | (HeaderFlag.NEED_REPLY if need_reply else 0)
        self.send_bytes(pack_header(request, flags, len(payload)) + payload, fds)

    def receive(self) -> Frame:
        """The next message from the back end; Disconnected when there will be none, TimeoutError when none comes."""
        try:
            return self._reader.read()
        except BlockingIOError:
            raise TimeoutError("no message from the back end") from None
        except (EndOfStream, ConnectionError) as error:
            raise Disconnected("the back end closed the connection") from error

    def ask(
        self, request: Request, payload: bytes = b"", fds: Sequence[int] = (), *, need_reply: bool = False
    ) -> bytes:
        """Sends a message and returns the payload of its reply, whatever it says."""
        self.send(request, payload, fds, need_reply=need_reply)
        frame = self.receive()
        with frame.fds:
            if frame.request != request or not frame.is_reply:
                raise VhostScsiError(f"{request.name} was answered by request {frame.request}, flags {frame.flags:#x}")
            return frame.payload

    def get(self, request: Request, payload: bytes = b"") -> bytes:
        """A request with values in its reply; raises RequestRefused where the reply is empty."""
        reply = self.ask(request, payload)
        if not reply:
            raise RequestRefused(request, 0)
        return reply

    def tell(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """A request without a reply of its own: acknowledged if REPLY_ACK was negotiated, else only sent."""
        if ProtocolFeature.REPLY_ACK not in self.protocol_features:
            self.send(request, payload, fds)
            return
        code = U64.parse(self.ask(request, payload, fds, need_reply=True))
        if code:
            raise RequestRefused(request, code)

    # Negotiation

    def get_features(self) -> int:
        return U64.parse(self.get(Request.GET_FEATURES))

    def set_features(self, features: int) -> None:
        self.tell(Request.SET_FEATURES, U64.build(features))
        self.features = features

    def get_protocol_features(self) -> ProtocolFeature:
        return ProtocolFeature(U64.parse(self.get(Request.GET_PROTOCOL_FEATURES)))

    def set_protocol_features(self, features: int) -> None:
        self.send(Request.SET_PROTOCOL_FEATURES, U64.build(features))
        self.protocol_features = ProtocolFeature(features)

    def set_owner(self) -> None:
        self.tell(Request.SET_OWNER)

    def negotiate(self, features: int | None = None, protocol_features: int | None = None) -> int:
        """QEMU's order: features, protocol features, owner, SET_FEATURES. None: all that is offered, but a split ring
        that is used in any order.

        Returns the features set. VHOST_USER_PROTOCOL_FEATURES is added to `features` where it is offered.
        """
        offered = self.get_features()
        if offered & Feature.VHOST_USER_PROTOCOL_FEATURES:
            self.set_protocol_features(self.get_protocol_features() if protocol_features is None else protocol_features)
        self.set_owner()
        wanted = (
            offered & ~int(LAYOUTS) if features is None else features | (offered & Feature.VHOST_USER_PROTOCOL_FEATURES)
        )
        self.set_features(wanted)
        return wanted

    def get_queue_num(self) -> int:
        return U64.parse(self.get(Request.GET_QUEUE_NUM))

    def get_status(self) -> int:
        return U64.parse(self.get(Request.GET_STATUS))

    def set_status(self, status: int) -> None:
        self.tell(Request.SET_STATUS, U64.build(status))

    def reset_device(self) -> None:
        self.tell(Request.RESET_DEVICE, EMPTY.build(None))

    def set_backend_channel(self) -> socket.socket:
        """Gives the back end its request channel; returns our end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(self.sock.gettimeout())
        with theirs:
            try:
                self.tell(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        return ours

    # Memory

    def set_mem_table(self, regions: Iterable[MemoryRegion]) -> None:
        table = list(regions)
        self.tell(Request.SET_MEM_TABLE, MEMORY_TABLE.build(table), [region.fd for region in table])

    def get_max_mem_slots(self) -> int:
        return U64.parse(self.get(Request.GET_MAX_MEM_SLOTS))

    def add_mem_region(self, region: MemoryRegion) -> None:
        self.tell(Request.ADD_MEM_REG, SINGLE_REGION.build(region), [region.fd])

    def remove_mem_region(self, region: MemoryRegion) -> None:
        self.tell(Request.REM_MEM_REG, SINGLE_REGION.build(region))

    # Requests in flight

    def get_inflight(self, num_queues: int, queue_size: int) -> tuple[Inflight, int]:
        """Where a back end wants to keep them, and a descriptor of that memory, ours to close."""
        request = Request.GET_INFLIGHT_FD
        self.send(request, INFLIGHT.build(Inflight(0, 0, num_queues, queue_size)))
        frame = self.receive()
        with frame.fds:
            if frame.request != request or not frame.payload or len(frame.fds) != 1:
                raise RequestRefused(request, 0)
            fd = os.dup(frame.fds[0])
        return INFLIGHT.parse(frame.payload), fd

    def set_inflight(self, inflight: Inflight, fd: int) -> None:
        self.tell(Request.SET_INFLIGHT_FD, INFLIGHT.build(inflight), [fd])

    # Rings

    def setup_vring(
        self,
        index: int,
        num: int,
        addr: VringAddr,
        *,
        base: int = 0,
        polled: bool = False,
        enable: bool = True,
        again: Vring | None = None,
    ) -> Vring:
        """Everything a ring needs, in QEMU's order: NUM, BASE, ADDR, KICK, CALL, ERR, ENABLE.

        `addr` holds user addresses. `polled`: no descriptor for kick and call. The ring starts at its first kick.
        `again`: with the notifiers that it had.
        """
        vring = again or self._new_vring(index, polled)
        self.tell(Request.SET_VRING_NUM, VRING_STATE.build(VringState(index, num)))
        self.tell(Request.SET_VRING_BASE, VRING_STATE.build(VringState(index, base)))
        self.tell(Request.SET_VRING_ADDR, VRING_ADDR.build(IndexedVringAddr(index, addr)))
        self.set_notifier(Request.SET_VRING_KICK, index, vring.kick_fd)
        self.set_notifier(Request.SET_VRING_CALL, index, vring.call_fd)
        self.set_notifier(Request.SET_VRING_ERR, index, vring.err_fd)
        if enable and self.features & Feature.VHOST_USER_PROTOCOL_FEATURES:
            self.set_vring_enable(index, True)
        return vring

    def _new_vring(self, index: int, polled: bool) -> Vring:
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        kick, call = (None, None) if polled else (os.eventfd(0, flags), os.eventfd(0, flags))
        vring = Vring(index, kick, call, os.eventfd(0, flags))
        self._vrings.append(vring)
        return vring

    def set_notifier(self, request: Request, index: int, fd: int | None) -> None:
        """SET_VRING_KICK, SET_VRING_CALL or SET_VRING_ERR; `fd` None says that there is none."""
        self.tell(request, U64.build(index | (VRING_NOFD if fd is None else 0)), [] if fd is None else [fd])

    def set_vring_enable(self, index: int, enabled: bool) -> None:
        self.tell(Request.SET_VRING_ENABLE, VRING_STATE.build(VringState(index, int(enabled))))

    def stop_vring(self, index: int) -> int:
        """GET_VRING_BASE: returns the next available index, when the back end does not touch the ring any more."""
        reply = self.get(Request.GET_VRING_BASE, VRING_STATE.build(VringState(index, 0)))
        return VRING_STATE.parse(reply).num
