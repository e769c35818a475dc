# SPDX-License-Identifier: Apache-2.0
"""Who is logged in: sessions and connections by their names, and the handles that are given out (TSIH).

Bookkeeping only: who may come in is decided in `node.py`, how one comes to be in `establishment.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from vhost_scsi.iscsi.full_feature import ConnectionHandle, SessionHandle
from vhost_scsi.iscsi.negotiation import Negotiation
from vhost_scsi.iscsi.targets import IscsiTarget
from vhost_scsi.iscsi.text_exchange import TextExchange

MAX_TSIH: Final = 0xFFFF
NexusKey: TypeAlias = tuple[str, int, str, int]
"""normalised initiator name, ISID, target name (empty for discovery), portal group tag: an I_T nexus (4.4.3)"""


@dataclass(slots=True, eq=False)
class Connection:
    """In full-feature phase. `negotiation` goes on in text requests."""

    session: Session
    cid: int
    peer: str
    local: tuple[str, int]
    negotiation: Negotiation
    handle: ConnectionHandle
    max_send: int
    """the initiator's MaxRecvDataSegmentLength, bytes"""
    exchange: TextExchange | None = None
    since: float = field(default_factory=time.time)


@dataclass(slots=True, eq=False)
class Session:
    """`initiator` as it gave its name, `key` with the name normalised. `target` is None for discovery."""

    tsih: int
    key: NexusKey
    initiator: str
    address: str
    target: IscsiTarget | None
    negotiation: Negotiation
    handle: SessionHandle
    user: str | None = None
    """the CHAP name"""
    connections: dict[int, Connection] = field(default_factory=dict)
    since: float = field(default_factory=time.time)

    @property
    def isid(self) -> int:
        return self.key[1]

    @property
    def portal_group_tag(self) -> int:
        return self.key[3]

    @property
    def target_name(self) -> str:
        return self.key[2]

    @property
    def max_connections(self) -> int:
        return 1 if self.target is None else int(self.negotiation.values["MaxConnections"])


class Sessions:
    """The registry. A session is in it from before its final login response until everything of it has ended."""

    def __init__(self) -> None:
        self._by_tsih: dict[int, Session] = {}
        self._by_key: dict[NexusKey, Session] = {}
        self._by_handle: dict[ConnectionHandle, Connection] = {}
        self._reserved: set[int] = set()
        self._last = 0

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_tsih.values()))

    def __len__(self) -> int:
        return len(self._by_tsih) + len(self._reserved)

    @property
    def connections(self) -> int:
        return len(self._by_handle)

    def reserve_tsih(self) -> int:
        """A handle that nobody has. The last one given comes again as late as possible: an initiator whose session is
        gone must not find somebody else's. The caller has checked that there are fewer sessions than handles."""
        tsih = self._last
        while True:
            tsih = tsih % MAX_TSIH + 1
            if tsih not in self._by_tsih and tsih not in self._reserved:
                break
        self._last = tsih
        self._reserved.add(tsih)
        return tsih

    def release_tsih(self, tsih: int) -> None:
        self._reserved.discard(tsih)

    def add(self, session: Session) -> None:
        self._reserved.discard(session.tsih)
        self._by_tsih[session.tsih] = session
        self._by_key[session.key] = session

    def remove(self, session: Session) -> None:
        for connection in list(session.connections.values()):
            self.remove_connection(connection)
        if self._by_tsih.get(session.tsih) is session:
            del self._by_tsih[session.tsih]
        if self._by_key.get(session.key) is session:
            del self._by_key[session.key]

    def add_connection(self, connection: Connection) -> None:
        connection.session.connections[connection.cid] = connection
        self._by_handle[connection.handle] = connection

    def remove_connection(self, connection: Connection) -> None:
        if connection.session.connections.get(connection.cid) is connection:
            del connection.session.connections[connection.cid]
        self._by_handle.pop(connection.handle, None)

    def with_tsih(self, tsih: int) -> Session | None:
        return self._by_tsih.get(tsih)

    def with_key(self, key: NexusKey) -> Session | None:
        return self._by_key.get(key)

    def with_handle(self, handle: ConnectionHandle) -> Connection | None:
        return self._by_handle.get(handle)

    def of_target(self, name: str) -> list[Session]:
        return [session for session in self._by_tsih.values() if session.target_name == name]
