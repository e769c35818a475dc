# SPDX-License-Identifier: Apache-2.0
"""`lun.add`, `lun.remove` and `lun.replace`: logical units that come and go while a daemon runs, on ports and in iSCSI
targets alike.

A unit is added and removed as a configuration that is read anew would do it (`takeover.py`). Replacing one puts another
unit, opened first, where the old one stood, once whoever used that one has let go of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi.daemon import grammar
from vhost_scsi.daemon.config import ISCSI_PLACE, PLACE, DaemonConfig, build, nearest
from vhost_scsi.daemon.config_save import plain_tables
from vhost_scsi.daemon.rpc import REFUSED, Method, Param, RpcError
from vhost_scsi.daemon.takeover import PATIENCE
from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import names

if TYPE_CHECKING:
    from vhost_scsi.daemon.iscsi_config import IscsiConfig, TargetConfig
    from vhost_scsi.daemon.service import Service

MAX_PATIENCE: Final = 60.0  # seconds


def rows(service: Service) -> tuple[Method, ...]:
    calls = _Calls(service)
    patience = Param("patience_ms", "integer", "how long its users have to let go of it; 0: not at all")
    return (
        Method("lun.add", "one more logical unit, at one place", calls.add, (
            Param("place", "string", "PORT:T:L or T:L on a port, IQN:LUN or LUN in an iSCSI target", required=True),
            Param("unit", "object", "what it is: a table as in the file, under [lu.NAME]", required=True),
            Param("name", "string", "what it is called; made up of the place, if it is left out"),
        )),
        Method("lun.remove", "takes a logical unit away, everywhere or from one place", calls.remove, (
            Param("what", "string", "name of the unit, or a place", required=True),
            patience,
        )),
        Method("lun.replace", "another logical unit in the places of one", calls.replace, (
            Param("lu", "string", "name of the logical unit", required=True),
            Param("unit", "object", "what it is: a table as in the file, under [lu.NAME]", required=True),
            patience,
        )),
    )  # fmt: skip


def _seconds(patience_ms: int | None) -> float:
    if patience_ms is None:
        return PATIENCE
    if not 0 <= patience_ms <= MAX_PATIENCE * 1000:
        raise RpcError(REFUSED, f"patience: it goes from 0 to {MAX_PATIENCE:g} seconds")
    return patience_ms / 1000


class _Calls:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def add(self, place: str, unit: dict[str, Any], name: str | None = None) -> dict[str, Any]:
        chosen = name or grammar.unit_name("lun add", place)

        def with_unit(running: DaemonConfig) -> DaemonConfig:
            if chosen in running.lu:
                raise ConfigError(f"logical unit {chosen} is there already")
            raw = plain_tables(running)
            raw["lu"] = {**raw.get("lu", {}), chosen: unit}
            raw["map"] = {**raw.get("map", {}), place: chosen}
            return build(raw).spelled_out()

        await self._service.change(with_unit)
        made = self._service.target.units[chosen]
        return {"name": chosen, "uuid": str(made.uuid), "size_bytes": made.num_blocks * made.block_size}

    async def remove(self, what: str, patience_ms: int | None = None) -> dict[str, Any]:
        gone: list[str] = []

        def without(running: DaemonConfig) -> DaemonConfig:
            name, places = _meant(running, what)
            less = _unmapped(running, name, places)
            if name not in less.mapped():
                gone.append(name)
                less = less.model_copy(update={"lu": {key: lu for key, lu in less.lu.items() if key != name}})
            return less

        await self._service.change(without, patience=_seconds(patience_ms))
        return {"removed": gone}

    async def replace(self, lu: str, unit: dict[str, Any], patience_ms: int | None = None) -> dict[str, Any]:
        def other(running: DaemonConfig) -> DaemonConfig:
            if lu not in running.lu:
                raise ConfigError(_no_unit(running, lu))
            if running.lu[lu].has_drive:
                raise ConfigError(f"logical unit {lu} is removable: eject and insert exchange its medium")
            raw = plain_tables(running)
            spare = {"spare": True} if running.lu[lu].spare else {}
            raw["lu"] = {**raw["lu"], lu: {**unit, **spare}}
            return build(raw)

        await self._service.replace_unit(lu, other, _seconds(patience_ms))
        made = self._service.target.units[lu]
        return {"name": lu, "uuid": str(made.uuid), "size_bytes": made.num_blocks * made.block_size}


def _no_unit(running: DaemonConfig, name: str) -> str:
    return f"there is no logical unit {name[:200]!r}{nearest(name[:64], running.lu)}"


def _meant(running: DaemonConfig, what: str) -> tuple[str, set[str] | None]:
    """The unit, and at which places of the map it is to go: None is everywhere."""
    if what in running.lu:
        return what, None
    if ISCSI_PLACE.fullmatch(what) or PLACE.fullmatch(what):
        # As the map spells it.
        [(place, _)] = running.model_copy(update={"map": {what: ""}}).spelled_out().map.items()
        if place in running.map:
            return running.map[place], {place}
        match = ISCSI_PLACE.fullmatch(place)
        luns = running.iscsi_luns().get(names.normalised(match["target"] or ""), {}) if match else {}
        if match is not None and int(match["lun"]) in luns:
            return luns[int(match["lun"])], {place}
        raise ConfigError(f"there is no logical unit at {place}")
    raise ConfigError(_no_unit(running, what))


def _unmapped(running: DaemonConfig, name: str, places: set[str] | None) -> DaemonConfig:
    def stays(place: str, unit: str) -> bool:
        return unit != name or (places is not None and place not in places)

    left = {place: unit for place, unit in running.map.items() if stays(place, unit)}
    iscsi = None if running.iscsi is None else _targets_without(running.iscsi, stays, everywhere=places is None)
    # That it has no logical unit is no mistake from here on.
    empty = {key for key in running.port if not any(place.startswith(f"{key}:") for place in left)}
    ports = {
        key: port.model_copy(update={"spare": True}) if key in empty else port for key, port in running.port.items()
    }
    less = running.model_copy(update={"map": left, "iscsi": iscsi, "port": ports})
    for target, luns in less.iscsi_luns().items():
        if not luns and running.iscsi_luns()[target]:
            raise ConfigError(f"it is the last logical unit of target {target}: `target remove` takes the target away")
    return less


def _targets_without(iscsi: IscsiConfig, stays: Any, *, everywhere: bool) -> IscsiConfig:
    def without(target: TargetConfig) -> TargetConfig:
        iqn = names.normalised(target.name)

        def left(luns: Mapping[str, str]) -> dict[str, str]:
            return {lun: unit for lun, unit in luns.items() if stays(f"{iqn}:{lun}", unit)}

        acl = [
            entry.model_copy(update={"luns": left(entry.luns)}) if everywhere and entry.luns else entry
            for entry in target.acl
        ]
        return target.model_copy(update={"luns": left(target.luns), "acl": acl})

    return iscsi.model_copy(update={"target": [without(target) for target in iscsi.target]})
