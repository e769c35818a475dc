# SPDX-License-Identifier: Apache-2.0
"""The rows of the method table that are about iSCSI: targets, portals, sessions, connections, refusals.

They are there in every daemon; one that serves no iSCSI says so.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi.daemon import run_time
from vhost_scsi.daemon.rpc import REFUSED, Method, Param, RpcError
from vhost_scsi.iscsi import names
from vhost_scsi.iscsi.data_plane import CoreConnection, CoreSession
from vhost_scsi.iscsi.latency import Latency
from vhost_scsi.iscsi.targets import AclEntry, IscsiTarget

if TYPE_CHECKING:
    from vhost_scsi.daemon.iscsi_node import IscsiNode
    from vhost_scsi.daemon.service import Service
    from vhost_scsi.iscsi.sessions import Connection, Session

_TARGET: Final = Param("target", "string", "name of the target", required=True)
_TSIH: Final = Param("session", "integer", "number of the session (TSIH)", required=True)
_CID: Final = Param("connection", "integer", "number of the connection (CID)", required=True)


def rows(service: Service) -> tuple[Method, ...]:
    calls = _Calls(service)
    return (
        Method("target.list", "iSCSI targets", calls.target_list),
        Method("target.show", "one target: LUNs, portals, access, sessions", calls.target_show, (_TARGET,)),
        Method("target.add", "one more target, until the daemon ends or `config.save` keeps it", calls.target_add, (
            _TARGET,
            Param("luns", "object", "LUN: name of a logical unit"),
            Param("units", "object", "LUN: table of a logical unit that is made for it"),
            Param("alias", "string", "what initiators show"),
            Param("settings", "object", "more of a target's table: acl, chap, portal_groups, keys, ..."),
        )),
        Method("target.remove", "takes a target away", calls.target_remove, (
            _TARGET,
            Param("force", "boolean", "end its sessions; refused otherwise"),
        )),
        Method("portal.list", "where initiators may log in", calls.portal_list),
        Method("session.list", "who is logged in", calls.session_list),
        Method("session.show", "one session: keys, window, LUNs, connections", calls.session_show, (_TSIH,)),
        Method("session.reset", "ends a session at once; the initiator recovers", calls.session_reset, (_TSIH,)),
        Method("session.remove", "asks an initiator to log out, and ends the session", calls.session_remove, (_TSIH,)),
        Method("session.refused", "what initiators asked for and did not get", calls.session_refused),
        Method("connection.list", "connections of all sessions", calls.connection_list),
        Method("connection.show", "one connection: keys, window, latency", calls.connection_show, (_TSIH, _CID)),
        Method("connection.remove", "ends a connection at once", calls.connection_remove, (_TSIH, _CID)),
    )  # fmt: skip


def summary(node: IscsiNode) -> dict[str, Any]:
    """For `status`."""
    sessions = node.node.sessions
    return {
        "portals": node.portals,
        "targets": len(node.node.targets),
        "sessions": len(sessions),
        "connections": sessions.connections,
        "logins_in_progress": node.server.logins_in_progress,
        "addresses_why_not": node.node.book.why_not,
    }


def lun_places(node: IscsiNode) -> dict[str, list[dict[str, Any]]]:
    """Where each logical unit is reached by iSCSI."""
    found: dict[str, list[dict[str, Any]]] = {}
    for target in node.node.targets.values():
        for lun, name in sorted(target.luns.items()):
            found.setdefault(name, []).append({"target": target.name, "lun": lun})
    return found


class _Calls:
    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def _iscsi(self) -> IscsiNode:
        if self._service.iscsi is None:
            raise RpcError(REFUSED, "this daemon serves no iSCSI: start it with --iscsi and --target")
        return self._service.iscsi

    # ---- targets and portals ---------------------------------------------------------------------------------------

    def target_list(self) -> dict[str, Any]:
        return {"targets": [self._target_row(target) for target in self._iscsi.node.targets.values()]}

    def _target_row(self, target: IscsiTarget) -> dict[str, Any]:
        return {
            "name": target.name,
            "alias": target.alias,
            "enabled": target.enabled,
            "luns": len(target.luns),
            "portal_groups": sorted(target.portal_groups),
            "authentication": _algorithms(target.auth) if target.auth.required else [],
            "acl_entries": len(target.acl),
            "redirect": None if target.redirect is None else target.redirect.address,
            "sessions": len(self._iscsi.node.sessions.of_target(target.name)),
        }

    def target_show(self, target: str) -> dict[str, Any]:
        found = self._iscsi.node.targets.get(names.normalised(target))
        if found is None:
            raise RpcError(REFUSED, f"there is no target {target[:223]!r}")
        portals = [str(each) for each in self._iscsi.node.portals if each.tag in found.portal_groups]
        return {
            "target": self._target_row(found),
            "portals": portals,
            "luns": [{"lun": lun, "unit": unit} for lun, unit in sorted(found.luns.items())],
            "acl": [_acl_row(entry) for entry in found.acl],
            "sessions": [self._session_row(session) for session in self._iscsi.node.sessions.of_target(found.name)],
        }

    async def target_add(
        self,
        target: str,
        luns: dict[str, Any] | None = None,
        units: dict[str, Any] | None = None,
        alias: str = "",
        settings: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        node = self._iscsi.node
        table = {"name": target, "luns": luns or {}, **({"alias": alias} if alias else {}), **(settings or {})}
        if not settings or "portal_groups" not in settings:
            table["portal_groups"] = sorted({portal.tag for portal in node.portals})
        made = await run_time.add_target(self._service, table, units or {})
        added = node.targets[names.normalised(target)]
        return {"target": self._target_row(added), "units": made, "urls": self._iscsi.urls_of(added)}

    async def target_remove(self, target: str, force: bool = False) -> dict[str, Any]:
        sessions, units = await run_time.remove_target(self._service, target, force=force)
        return {"sessions_ended": sessions, "units_removed": units}

    def portal_list(self) -> dict[str, Any]:
        node = self._iscsi.node
        return {
            "portals": [
                {
                    "portal": str(portal),
                    "host": portal.host,
                    "port": portal.port,
                    "group": portal.tag,
                    "announced": list(portal.announced),
                    "addresses": [
                        str(each) for each in node.book.addresses if each.version == portal.address.version
                    ] if portal.is_wildcard else [portal.host],
                    "targets": sum(portal.tag in target.portal_groups for target in node.targets.values()),
                }
                for portal in node.portals
            ],
            "addresses_why_not": node.book.why_not,
        }  # fmt: skip

    # ---- sessions --------------------------------------------------------------------------------------------------

    def session_list(self) -> dict[str, Any]:
        return {"sessions": [self._session_row(session) for session in self._iscsi.node.sessions]}

    def _session_row(self, session: Session) -> dict[str, Any]:
        exp_cmd_sn, max_cmd_sn = session.handle.window
        infos = [_info(connection) for connection in session.connections.values()]
        return {
            "session": session.tsih,
            "initiator": session.initiator,
            "alias": str(session.negotiation.values.get("InitiatorAlias", "")) or None,
            "isid": f"0x{session.isid:012x}",
            "target": session.target_name or None,
            "type": "discovery" if session.target is None else "normal",
            "portal_group": session.portal_group_tag,
            "user": session.user,
            "since": round(session.since, 3),
            "connections": sorted(session.connections),
            "exp_cmd_sn": exp_cmd_sn,
            "max_cmd_sn": max_cmd_sn,
            "window": (max_cmd_sn - exp_cmd_sn + 1) & 0xFFFFFFFF,
            "commands": sum(info["commands"] for info in infos),
            "active": sum(info["active"] for info in infos),
        }

    def _session(self, tsih: int) -> Session:
        session = self._iscsi.node.sessions.with_tsih(tsih)
        if session is None:
            raise RpcError(REFUSED, f"there is no session {tsih}")
        return session

    def session_show(self, session: int) -> dict[str, Any]:
        found = self._session(session)
        handle = found.handle
        assert isinstance(handle, CoreSession)
        return {
            "session": self._session_row(found),
            "keys": dict(found.negotiation.values),
            "luns": [{"lun": mapped.lun, "unit": mapped.unit.name} for mapped in handle.port.luns],
            "connections": [_connection_row(each) for each in found.connections.values()],
        }

    async def session_reset(self, session: int) -> dict[str, Any]:
        await self._iscsi.reset_session(self._session(session))
        return {"session": session}

    async def session_remove(self, session: int) -> dict[str, Any]:
        return {"session": session, "logged_out": await self._iscsi.remove_session(self._session(session))}

    def session_refused(self) -> dict[str, Any]:
        return {
            "refused": [
                {
                    "peer": refusal.peer,
                    "initiator": refusal.initiator or None,
                    "target": refusal.target or None,
                    "kind": refusal.kind,
                    "lun": refusal.lun,
                    "asked": refusal.asked,
                    "why": refusal.why,
                    "first": round(refusal.first, 3),
                    "last": round(refusal.last, 3),
                    "times": refusal.times,
                    "text": str(refusal),
                }
                for refusal in self._iscsi.node.refused.all()
            ]
        }

    # ---- connections -----------------------------------------------------------------------------------------------

    def connection_list(self) -> dict[str, Any]:
        sessions = self._iscsi.node.sessions
        return {"connections": [_connection_row(each) for session in sessions for each in session.connections.values()]}

    def _connection(self, tsih: int, cid: int) -> Connection:
        connection = self._session(tsih).connections.get(cid)
        if connection is None:
            raise RpcError(REFUSED, f"session {tsih} has no connection {cid}")
        return connection

    def connection_show(self, session: int, connection: int) -> dict[str, Any]:
        found = self._connection(session, connection)
        handle = found.handle
        assert isinstance(handle, CoreConnection)
        exp_cmd_sn, max_cmd_sn = found.session.handle.window
        return {
            "connection": _connection_row(found),
            "keys": dict(found.negotiation.values),
            "window": {
                "exp_cmd_sn": exp_cmd_sn,
                "max_cmd_sn": max_cmd_sn,
                "commands": (max_cmd_sn - exp_cmd_sn + 1) & 0xFFFFFFFF,
            },
            "latency": {latency.kind: _latency_row(latency) for latency in handle.latencies()},
        }

    async def connection_remove(self, session: int, connection: int) -> dict[str, Any]:
        await self._iscsi.remove_connection(self._connection(session, connection))
        return {"session": session, "connection": connection}


def _connection_row(connection: Connection) -> dict[str, Any]:
    handle, session = connection.handle, connection.session
    assert isinstance(handle, CoreConnection)
    return {
        "session": session.tsih,
        "connection": connection.cid,
        "initiator": session.initiator,
        "target": session.target_name or None,
        "peer": connection.peer,
        "local": f"{connection.local[0]}:{connection.local[1]}",
        "since": round(connection.since, 3),
        "header_digest": "CRC32C" if handle.params.header_digest else "None",
        "data_digest": "CRC32C" if handle.params.data_digest else "None",
        "max_send_bytes": connection.max_send,
        "max_recv_bytes": handle.params.max_recv,
        **_info(connection),
    }


def _info(connection: Connection) -> dict[str, Any]:
    """The data plane's counters; zeroes of a connection that is just ending."""
    handle = connection.handle
    assert isinstance(handle, CoreConnection)
    info = handle.info()

    def counter(name: str) -> int:
        return 0 if info is None else int(getattr(info, name))

    heard = counter("last_heard_ns")
    return {
        "commands": counter("commands"),
        "active": counter("active"),
        "received_bytes": counter("rx_bytes"),
        "sent_bytes": counter("tx_bytes"),
        "received_pdus": counter("rx_pdus"),
        "sent_pdus": counter("tx_pdus"),
        "r2ts": counter("r2ts"),
        "digest_errors": counter("digest_errors"),
        "waiting_for_buffers": counter("waiting_buffer"),
        "stat_sn": counter("stat_sn"),
        "idle_us": max(0, time.monotonic_ns() - heard) // 1000 if heard else None,
    }


def _latency_row(latency: Latency) -> dict[str, Any]:
    return {
        "commands": latency.count,
        "average_us": latency.average_us,
        "min_us": latency.min_us,
        "max_us": latency.max_us,
        "half_below_us": latency.below(0.5),
        "99_percent_below_us": latency.below(0.99),
        "histogram": [{"below_us": limit, "commands": count} for limit, count in latency.histogram if count],
    }


def _acl_row(entry: AclEntry) -> dict[str, Any]:
    return {
        "initiators": list(entry.initiators),
        "networks": [str(network) for network in entry.networks],
        "luns": None if entry.luns is None else {str(lun): unit for lun, unit in sorted(entry.luns.items())},
        "authentication": None if entry.auth is None else _algorithms(entry.auth) if entry.auth.required else [],
    }


def _algorithms(policy: Any) -> list[str]:
    return [algorithm.label for algorithm in policy.algorithms]
