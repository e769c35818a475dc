# SPDX-License-Identifier: Apache-2.0
"""Full-feature phase over the C core, and the SCSI target behind it: `FullFeature` and `ScsiSide` for real.

A session is a port of the target with one I_T nexus, and a session object in C on one worker. Bytes never come here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid5

from vhost_scsi._core import ffi, lib
from vhost_scsi.dataplane import Core
from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi.codes import TaskFunction, TaskResponse
from vhost_scsi.iscsi.full_feature import (
    ConnectionEvent,
    ConnectionHandle,
    ConnectionParams,
    EventKind,
    RefusedBelow,
    RemoveReason,
    SessionHandle,
    SessionParams,
    Upcalls,
)
from vhost_scsi.iscsi.heap import HeapTrim
from vhost_scsi.iscsi.latency import KINDS, Latency, latency_from
from vhost_scsi.iscsi.pdu import ScsiCommand, TaskManagementRequest
from vhost_scsi.iscsi.sessions import Connection
from vhost_scsi.iscsi.task_management import TaskManagement, is_lower
from vhost_scsi.scsi import sense, transport_id
from vhost_scsi.scsi.nexus import InitiatorPort, Nexus, TargetPort
from vhost_scsi.scsi.sense import SenseCode
from vhost_scsi.target import Port, Target, Unit, port_ids

if TYPE_CHECKING:
    from vhost_scsi._core import CData

LOG: Final = logging.getLogger("vhost_scsi.control")
PORT_NAMESPACE: Final = UUID("0d7a4f5e-62cf-5c0e-8f3b-6a7c3c1d9f10")
CREDIT: Final = 64
"""tasks of one session that Python decides at a time"""
MAX_TRANSFER: Final = 64 << 20
BUFFER_LIMIT: Final = 128 << 20
"""bytes of data buffers of one session; commands beyond it wait for their turn"""

_EVENTS: Final = {
    lib.VS_ICONN_PEER_CLOSED: (EventKind.CLOSED_BY_PEER, ""),
    lib.VS_ICONN_SOCKET_ERROR: (EventKind.SOCKET_ERROR, ""),
    lib.VS_ICONN_HEADER_DIGEST: (EventKind.HEADER_DIGEST_ERROR, ""),
    lib.VS_ICONN_SEGMENT_TOO_LONG: (EventKind.PROTOCOL_ERROR, "a data segment is longer than declared"),
    lib.VS_ICONN_BURST: (EventKind.PROTOCOL_ERROR, "data-out that nobody asked for, or out of order"),
    lib.VS_ICONN_NO_MEMORY: (EventKind.PROTOCOL_ERROR, "no memory"),
    lib.VS_ICONN_SENT_LAST: (EventKind.CLOSED_BY_PEER, ""),
    lib.VS_ICONN_PROTOCOL: (EventKind.PROTOCOL_ERROR, "immediate data or direction that was not agreed on"),
}


def port_name(target: str, tag: int) -> str:
    """RFC 7143, 4.2.7.1: the SCSI port name of a portal group of a target."""
    return f"{target},t,0x{tag:04x}"


class CoreConnection:
    """A connection in C."""

    def __init__(self, session: CoreSession, cookie: int, params: ConnectionParams) -> None:
        self.session = session
        self.cookie = cookie
        self.params = params
        self.handle: CData | None = None

    def info(self) -> Any:
        """`struct vs_iconn_info`; None when the connection has ended."""
        if self.handle is None:
            return None
        out = ffi.new("struct vs_iconn_info *")
        lib.vs_iconn_info(self.handle, out)
        return out

    def latencies(self) -> list[Latency]:
        """Of reads, writes and commands without data."""
        info = self.info()
        if info is None:
            return [Latency(kind) for kind in KINDS]
        return [latency_from(kind, each) for kind, each in zip(KINDS, info.latency, strict=True)]


class CoreSession:
    """A session in C, and its port. A discovery session has no LUNs."""

    def __init__(self, params: SessionParams, port: Port, handle: CData, luns: list[int]) -> None:
        self.luns: Final = luns
        """what REPORT LUNS tells its initiator"""
        self.params = params
        self.port = port
        self.handle = handle
        self.connections: list[CoreConnection] = []
        self.changing: Final = asyncio.Lock()

    def sees(self, unit: Unit) -> bool:
        return any(mapped.unit is unit for mapped in self.port.luns)

    @property
    def window(self) -> tuple[int, int]:
        found: tuple[int, int] | None = None
        for connection in self.connections:
            # Each shows how things stood when something last happened on it: the newest counts.
            info = connection.info()
            if info is None or not (info.exp_cmd_sn or info.max_cmd_sn):
                continue
            exp, most = int(info.exp_cmd_sn), int(info.max_cmd_sn)
            if found is None:
                found = exp, most
            found = exp if is_lower(found[0], exp) else found[0], most if is_lower(found[1], most) else found[1]
        if found is not None:
            return found
        return self.params.cmd_sn, (self.params.cmd_sn + self.params.queue_depth - 1) & 0xFFFFFFFF


class SessionEvents:
    """`target.InitiatorEvents` of a session: `tell` it at which LUN what has become true."""

    def __init__(self, tell: Callable[[int, SenseCode], None]) -> None:
        self._tell = tell

    def lun_added(self, target: int, lun: int) -> None:
        self._tell(lun, sense.REPORTED_LUNS_DATA_HAS_CHANGED)

    lun_removed = lun_added

    def attention(self, target: int, lun: int, code: SenseCode) -> None:
        if code == sense.CAPACITY_DATA_HAS_CHANGED:
            self._tell(lun, code)

    async def noticed(self) -> bool:
        """Nobody acknowledges what is done about a message."""
        return False


class DataPlane:
    """`FullFeature` and `ScsiSide` of one node over a core and a target. `workers`: sessions are dealt out to these."""

    def __init__(self, core: Core, target: Target, workers: tuple[int, ...] = (0,)) -> None:
        self._core = core
        self._target = target
        self._workers = cycle(workers)
        self._tasks = TaskManagement(core, target)
        self._upcalls: Upcalls | None = None
        self._sessions: set[CoreSession] = set()
        self._heap = HeapTrim()
        self.port_groups: dict[int, int] = {}
        """by portal group tag: the target port group of its ports; 1 where there is none"""
        self.on_cold_reset: Callable[[str], None] = lambda target: None
        """told of a cold reset of that iSCSI target, when it has been carried out: its sessions are to end"""
        self.on_attention: Callable[[CoreSession, int, SenseCode], None] = lambda session, lun, code: None
        """told of what an initiator is to hear without asking: at which LUN, and what"""

    @property
    def sessions(self) -> list[CoreSession]:
        """Those that are being made or ended as well."""
        return list(self._sessions)

    def attach(self, upcalls: Upcalls) -> None:
        self._upcalls = upcalls

    # ---- sessions --------------------------------------------------------------------------------------------------

    async def open_session(self, params: SessionParams) -> SessionHandle:
        name = f"iscsi:{params.initiator_name},i,0x{params.isid:012x},{params.target or 'discovery'},{params.tsih}"
        luns = sorted(params.luns)
        port = self._target.add_port(name, nexus=self._nexus(params, luns))
        out = ffi.new("vs_isession **")
        err = lib.vs_isession_create(self._core.handle, self._session_params(params, port), out)
        if err:
            await self._target.remove_port(port)
            raise OSError(-err, f"the data plane refuses a session: error {-err}")
        session = CoreSession(params, port, out[0], luns)
        self._sessions.add(session)
        port.on_luns = lambda: self._publish(session)
        try:
            await port.map_all((0, lun, self._unit(params, lun)) for lun in sorted(params.luns))
        except BaseException:
            await self.close_session(session)
            raise
        # Only now: what was there from the beginning is no news.
        port.events = SessionEvents(lambda lun, code: self.on_attention(session, lun, code))
        return session

    async def show_luns(self, handle: SessionHandle, luns: Mapping[int, str], patience: float) -> None:
        """Gives the session the LUNs that are new, and takes from it those that are no more. One that leads to another
        unit now stays what it was: nobody exchanges a disk under a file system."""
        session = _session(handle)
        async with session.changing:
            here = {mapped.lun: mapped.unit.name for mapped in session.port.luns if not mapped.leaving}
            gone = [lun for lun in here if lun not in luns]
            new = [lun for lun in sorted(luns) if lun not in here]
            if not (gone or new) or session not in self._sessions:
                return
            session.luns[:] = sorted(luns)
            session.params = replace(session.params, luns={**luns, **{lun: here[lun] for lun in here if lun in luns}})
            await asyncio.gather(*(session.port.unmap(0, lun, patience=patience) for lun in gone))
            if session in self._sessions:
                await session.port.map_all((0, lun, self._unit(session.params, lun)) for lun in new)

    def _unit(self, params: SessionParams, lun: int) -> Unit:
        # Looked up late: a unit may be taken away while the session is being made.
        unit = self._target.units.get(params.luns[lun])
        if unit is None:
            raise ConfigError(f"target {params.target}: LUN {lun}: there is no logical unit {params.luns[lun]}")
        return unit

    def declare(self, ports: Iterable[str]) -> list[int]:
        """These target ports (`port_name`) are there, with or without a session; their relative identifiers, which are
        kept from here on. Raises ConfigError."""
        names = list(ports)
        numbers = self._target.port_ids.ids_of(names)
        for name, number in zip(names, numbers, strict=True):
            group = self.port_groups.get(int(name.rpartition("0x")[2], 16), 1)
            port = TargetPort(name, uuid5(PORT_NAMESPACE, name), number, lambda: (), name, group)
            self._target.target_ports.setdefault(number, port)
        return numbers

    def withdraw(self, ports: Iterable[str]) -> None:
        """These target ports are gone; should they come again they are the same."""
        for number in self._target.port_ids.ids_of(ports):
            self._target.target_ports.pop(number, None)

    def _session_params(self, params: SessionParams, port: Port) -> CData:
        keys = params.keys
        out = ffi.new("struct vs_isession_params *")
        out.cookie = port.cookie
        out.worker = next(self._workers)
        out.exp_cmd_sn = params.cmd_sn
        out.queue_depth = min(params.queue_depth, 4096)
        out.max_burst = keys.max_burst_length
        out.first_burst = keys.first_burst_length
        out.max_outstanding_r2t = keys.max_outstanding_r2t
        out.credit = CREDIT
        out.max_transfer = MAX_TRANSFER
        out.buffer_limit = BUFFER_LIMIT
        out.initial_r2t = keys.initial_r2t
        out.immediate_data = keys.immediate_data
        out.discovery = params.target is None
        return out

    def _nexus(self, params: SessionParams, luns: list[int]) -> Nexus:
        """`luns` may change while the session lasts."""
        if params.target is None:
            port = TargetPort("discovery", PORT_NAMESPACE, port_ids.UNKNOWN, lambda: ())
        else:
            name = port_name(params.target, params.portal_group_tag)
            [relative] = self.declare([name])
            port = replace(self._target.target_ports[relative], luns=lambda: luns)
        initiator = f"{params.initiator_name},i,0x{params.isid:012x}"
        initiator_port = InitiatorPort(initiator, transport_id.iscsi(params.initiator_name, params.isid))
        return Nexus(initiator_port, port, sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED)

    async def _publish(self, session: CoreSession) -> None:
        mapped = session.port.luns
        entries = ffi.new("struct vs_lun_entry[]", max(len(mapped), 1))
        for i, each in enumerate(mapped):
            entries[i].nexus = each.handle
            entries[i].lun = each.lun
        await self._core.message(lambda cookie: lib.vs_isession_set_luns(session.handle, entries, len(mapped), cookie))

    async def close_session(self, handle: SessionHandle) -> None:
        session = _session(handle)
        if session not in self._sessions:
            return
        self._sessions.discard(session)
        # Both at once: what C aborts may be in Python's hands, and what Python aborts may be C's to end.
        await asyncio.gather(
            *(self._close(each) for each in list(session.connections)), session.port.nexus_lost(machine=False)
        )
        await self._target.remove_port(session.port)
        await self._core.message(lambda cookie: lib.vs_isession_destroy(session.handle, cookie))
        self._heap.ask()

    # ---- connections -----------------------------------------------------------------------------------------------

    async def add_connection(
        self, session: SessionHandle, sock_fd: int, params: ConnectionParams, leftover: bytes
    ) -> ConnectionHandle:
        owner = _session(session)
        cookie = self._core.cookie()
        connection = CoreConnection(owner, cookie, params)
        out = ffi.new("vs_iconn **")
        wanted = ffi.new("struct vs_iconn_params *")
        kept = ffi.from_buffer(leftover) if leftover else ffi.NULL
        wanted.cookie = cookie
        wanted.fd = sock_fd
        wanted.stat_sn = params.stat_sn
        wanted.max_send_segment = params.max_send
        wanted.max_recv_segment = params.max_recv
        wanted.header_digest = params.header_digest
        wanted.data_digest = params.data_digest
        wanted.cid = params.cid
        wanted.leftover = kept
        wanted.leftover_length = len(leftover)
        self._core.listen(lib.VS_UP_IPDU, cookie, lambda up: self._pdu(connection, up.pdu))
        self._core.listen(lib.VS_UP_ICONN, cookie, lambda up: self._event(connection, up.aux))
        self._core.listen(lib.VS_UP_IREFUSED, cookie, lambda up: self._refused(connection, up.refusal))
        err = lib.vs_iconn_start(owner.handle, wanted, out)
        if err:
            self._forget(connection)
            raise OSError(-err, f"the data plane refuses a connection: error {-err}")
        connection.handle = out[0]
        owner.connections.append(connection)
        return connection

    async def remove_connection(self, connection: ConnectionHandle, reason: RemoveReason) -> None:
        await self._close(_connection(connection))

    async def _close(self, connection: CoreConnection) -> None:
        handle, connection.handle = connection.handle, None
        if handle is None:
            return
        await self._core.message(lambda cookie: lib.vs_iconn_close(handle, cookie))
        connection.session.connections.remove(connection)
        self._forget(connection)

    def _forget(self, connection: CoreConnection) -> None:
        self._core.unlisten(lib.VS_UP_IPDU, connection.cookie)
        self._core.unlisten(lib.VS_UP_ICONN, connection.cookie)
        self._core.unlisten(lib.VS_UP_IREFUSED, connection.cookie)

    def send(
        self,
        connection: ConnectionHandle,
        bhs: bytes,
        data: bytes = b"",
        *,
        final: bool = False,
        advance_stat_sn: bool = True,
    ) -> None:
        handle = _connection(connection).handle
        if handle is None:
            return
        flags = (lib.VS_ISEND_STATUS if advance_stat_sn else 0) | (lib.VS_ISEND_CLOSE if final else 0)
        err = lib.vs_iconn_send(handle, bhs, data, len(data), flags)
        if err:
            raise OSError(-err, f"the data plane refuses a PDU of {len(data)} bytes: error {-err}")

    def set_max_send(self, connection: ConnectionHandle, length: int) -> None:
        handle = _connection(connection).handle
        if handle is not None:
            lib.vs_iconn_set_max_send(handle, length)

    # ---- what comes up ---------------------------------------------------------------------------------------------

    def _pdu(self, connection: CoreConnection, pdu: CData) -> None:
        info: Any = ffi.new("struct vs_ipdu_info *")
        lib.vs_ipdu_info(pdu, info)
        bhs = bytes(ffi.buffer(info.bhs, 48))
        ahs = bytes(ffi.buffer(info.ahs, info.ahs_length)) if info.ahs_length else b""
        data = bytes(ffi.buffer(info.data, info.data_length)) if info.data_length else b""
        order = int(info.order)
        try:
            if self._upcalls is not None and connection.handle is not None:
                self._upcalls.on_pdu(connection, bhs, ahs, data, order)
        finally:
            # Not before: the connection is read on as far as what it brought is dealt with.
            lib.vs_ipdu_done(self._core.handle, pdu)

    def _event(self, connection: CoreConnection, event: int) -> None:
        kind, detail = _EVENTS[event]
        if self._upcalls is not None and connection.handle is not None:
            self._upcalls.on_event(connection, ConnectionEvent(kind, detail))

    def _refused(self, connection: CoreConnection, refusal: CData) -> None:
        info: Any = ffi.new("struct vs_irefusal_info *")
        lib.vs_irefusal_take(refusal, info)
        refused = RefusedBelow(
            int(info.missed),
            bytes(info.lun),
            bytes(info.cdb)[: info.cdb_length],
            bytes(info.sense)[: info.sense_length],
            bytes(info.bhs),
            int(info.reject),
        )
        if self._upcalls is not None:
            self._upcalls.on_refused(connection, refused)

    # ---- the SCSI side ---------------------------------------------------------------------------------------------

    async def task_management(self, connection: Connection, request: TaskManagementRequest, order: int) -> TaskResponse:
        response = await self._tasks.run(_session(connection.session.handle), request, order)
        if request.function == TaskFunction.TARGET_COLD_RESET and response is TaskResponse.COMPLETE:
            asyncio.get_running_loop().call_soon(self.on_cold_reset, connection.session.target_name)
        return response

    def command(self, connection: Connection, command: ScsiCommand, cdb: bytes, data: bytes) -> None:
        """C runs every command, those with an extended CDB too."""
        LOG.error("iscsi: a SCSI command came up that should have been run below (CDB %s)", cdb.hex())


def _session(handle: SessionHandle) -> CoreSession:
    assert isinstance(handle, CoreSession)
    return handle


def _connection(handle: ConnectionHandle) -> CoreConnection:
    assert isinstance(handle, CoreConnection)
    return handle
