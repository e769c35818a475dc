# SPDX-License-Identifier: Apache-2.0
"""What can be asked of a running daemon: the one table of management methods, and what each answers.

Answers are plain values for JSON, with units in their names (`_bytes`, `_us`). The table is `table`; parameters, their
checks and the `help` answer come from its rows.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from vhost_scsi import __version__
from vhost_scsi.daemon import config_save, hot_plug, inspection, iscsi_methods, logs, media
from vhost_scsi.daemon.drift import differences
from vhost_scsi.daemon.rpc import INVALID_PARAMS, REFUSED, Method, Param, RpcError
from vhost_scsi.scsi.alua import AccessState
from vhost_scsi.scsi.saved_state import SavedStateError
from vhost_scsi.slices import sliced

if TYPE_CHECKING:
    from vhost_scsi.daemon.service import Service, Serving

UNIT_SLICE: Final = 8
"""units described in one turn of the loop, at some 0.3 ms each"""


ACCESS_STATES: Final = {
    state.name.lower().replace("_", "-"): state for state in AccessState if state is not AccessState.TRANSITIONING
}


def table(service: Service) -> Mapping[str, Method]:
    """The methods of one daemon."""
    calls = _Calls(service)
    rows = (
        Method("status", "what runs here, and how it does", calls.status),
        Method("lun.list", "logical units and where they are mapped", calls.lun_list),
        Method("lun.resize", "another size for a logical unit, told to all who use it", calls.lun_resize, (
            Param("lu", "string", "name of the logical unit", required=True),
            Param("size", "integer", "bytes; 0 or nothing: what its file or device has by now"),
        )),
        Method("lun.access", "target port groups of a unit; with a group, another state for it", calls.lun_access, (
            Param("lu", "string", "name of the logical unit", required=True),
            Param("group", "integer", "the target port group that changes"),
            Param("state", "string", "active-optimized, active-non-optimized, standby, unavailable or offline"),
        )),
        *hot_plug.rows(service),
        *media.rows(service),
        *inspection.rows(service),
        *iscsi_methods.rows(service),
        Method("log.level", "the log level; sets it where one is given", calls.log_level, (
            Param("level", "string", ", ".join(logs.LEVELS)),
        )),
        Method("config.show", "what runs, as TOML, and how it differs from what was configured", calls.config_show),
        Method("config.save", "keeps what was changed at run time", calls.config_save, (
            Param("path", "string", "absolute; the file the daemon was started with, if it is left out"),
        )),
        Method("reload", "reads the configuration file anew, as SIGHUP does", calls.reload),
        Method("shutdown", "drains and ends the daemon, as SIGTERM does", calls.shutdown),
    )  # fmt: skip
    return {row.name: row for row in rows}


class _Calls:
    def __init__(self, service: Service) -> None:
        self._service = service

    def status(self) -> dict[str, Any]:
        service, core = self._service, self._service.core
        watch = service.watch
        return {
            "name": service.config.name,
            "pid": os.getpid(),
            "version": __version__,
            "uptime_s": round(time.time() - service.started_at, 3),
            "engine": core.engine_name,
            "engine_why_not": core.engine_why_not,
            "poll": service.config.poll,
            "log_level": logs.get_level(),
            "control": str(service.control_path),
            "rss_bytes": _resident(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "loop_stalls": watch.stalls if watch else 0,
            "loop_longest_stall_us": int(watch.longest * 1e6) if watch else 0,
            "ports": [self._port(serving) for serving in service.ports.values()],
            "workers": [
                {"index": index, **dataclasses.asdict(core.worker_stats(index))}
                for index in range(service.config.workers)
            ],
            "logical_units": len(service.target.units),
            "config_file": service.config_path,
            "stall_dumps": service.stalls.dumps if service.stalls is not None else 0,
            "drift": differences(service.config, service.loaded),
            "iscsi": iscsi_methods.summary(service.iscsi) if service.iscsi is not None else None,
        }

    def _port(self, serving: Serving) -> dict[str, Any]:
        statuses = serving.device.queue_status()
        return {
            "name": serving.name,
            "transport": "vhost-user",
            "socket": serving.where,
            "connected": serving.device.connected or any(status.started for status in statuses),
            "num_queues": serving.num_queues,
            "queues_started": sum(status.started for status in statuses),
            "queues_broken": sum(status.broken for status in statuses),
            "requests": sum(status.requests for status in statuses),
            "in_flight": sum(status.in_flight for status in statuses),
            "luns": len(serving.port.luns),
        }

    async def lun_list(self) -> dict[str, Any]:
        service = self._service
        places: dict[str, list[dict[str, Any]]] = {}
        for serving in service.ports.values():
            for mapped in serving.port.luns:
                place = {"port": serving.name, "target": mapped.target_id, "lun": mapped.lun}
                places.setdefault(mapped.unit.name, []).append(place)
        in_targets = iscsi_methods.lun_places(service.iscsi) if service.iscsi is not None else {}
        units = []
        async for unit in sliced(list(service.target.units.values()), UNIT_SLICE):
            if service.target.units.get(unit.name) is not unit:
                continue  # taken away meanwhile, and its memory with it
            store = unit.store
            units.append(
                {
                    "name": unit.name,
                    "uuid": str(unit.uuid),
                    "block_size": unit.block_size,
                    "num_blocks": unit.num_blocks,
                    "size_bytes": unit.num_blocks * unit.block_size,
                    "read_only": unit.read_only,
                    "type": unit.spec.device_type.name.lower(),
                    "medium": media.state(unit),
                    "store": {"kind": store.kind, "info": plain(store.info), "stats": plain(store.stats)},
                    "stats": plain(unit.stats()),
                    "mapped": places.get(unit.name, []),
                    "iscsi": in_targets.get(unit.name, []),
                }
            )
        return {"logical_units": units}

    async def lun_resize(self, lu: str, size: int = 0) -> dict[str, Any]:
        unit = self._service.target.units.get(lu)
        if unit is None:
            raise RpcError(REFUSED, f"there is no logical unit {lu[:200]!r}")
        before = unit.num_blocks * unit.block_size
        return {"name": unit.name, "size_bytes": await unit.resize(size), "size_bytes_before": before}

    async def lun_access(self, lu: str, group: int | None = None, state: str | None = None) -> dict[str, Any]:
        unit = self._service.target.units.get(lu)
        if unit is None:
            raise RpcError(REFUSED, f"there is no logical unit {lu[:200]!r}")
        groups = unit.logical_unit.port_groups
        if group is not None:
            wanted = ACCESS_STATES.get(state or "")
            if wanted is None:
                raise RpcError(REFUSED, f"state {(state or '')[:64]!r}: one of {', '.join(ACCESS_STATES)} is wanted")
            if group not in groups.groups():
                raise RpcError(REFUSED, f"logical unit {unit.name}: no target port is in group {group}")
            try:
                await groups.change_implicitly({group: wanted})
            except SavedStateError as error:
                raise RpcError(REFUSED, f"nothing changed: {error}") from None
        names: dict[int, str] = {value: name for name, value in ACCESS_STATES.items()}
        return {
            "name": unit.name,
            "groups": [
                {"group": each, "state": names.get(groups.state(each), "transitioning"), "ports": ports}
                for each, ports in groups.groups().items()
            ],
        }

    def log_level(self, level: str | None = None) -> dict[str, Any]:
        if level is not None:
            if level not in logs.LEVELS:
                raise RpcError(INVALID_PARAMS, f"log.level: {level[:64]!r} is none of {', '.join(logs.LEVELS)}")
            logs.set_level(level)
            self._service.config = self._service.config.model_copy(update={"log_level": level})
        return {"level": logs.get_level()}

    async def config_show(self) -> dict[str, Any]:
        # Configurations are never changed, only replaced, so that a thread may take its time over one.
        text = await asyncio.to_thread(config_save.whole_text, self._service.config)
        return {"toml": text, **await self._drift()}

    async def config_save(self, path: str | None = None) -> dict[str, Any]:
        if path is not None and not os.path.isabs(path):
            raise RpcError(INVALID_PARAMS, "config.save: path must be absolute")
        return {"saved": await self._service.save(path), **await self._drift()}

    async def _drift(self) -> dict[str, Any]:
        service = self._service
        drift = await asyncio.to_thread(differences, service.config, service.loaded)
        return {"file": service.config_path, "drift": drift}

    async def reload(self) -> dict[str, Any]:
        return {"needs_restart": list(await self._service.reload()), "log_level": logs.get_level()}

    def shutdown(self) -> dict[str, Any]:
        # Later, so that the answer is on its way before the socket is closed.
        asyncio.get_running_loop().call_soon(self._service.stop, "asked to on the management socket")
        return {"stopping": True}


def plain(value: Any) -> Any:
    """A value for JSON: dataclasses become objects, enums their names in lower case."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {plain_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "name") and hasattr(value, "value"):
        return str(value.name).lower()
    if isinstance(value, UUID | Path):
        return str(value)
    return value


def plain_key(key: Any) -> str:
    return str(plain(key))


def _resident() -> int:
    """RSS in bytes."""
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
