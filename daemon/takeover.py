# SPDX-License-Identifier: Apache-2.0
"""Another configuration for a daemon that runs: what of it can be had without a restart, and how it is taken over.

Everything that may fail is done first: units are opened, secrets read, portals listened on. So a configuration is taken
over, or nothing has changed. What needs a restart (ports, workers, a unit that is another one now) stays as it is and
is named. Where units stand is changed at once, on ports and in targets, and initiators are told.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi.daemon import logs, units
from vhost_scsi.daemon.config import ISCSI_PLACE, DaemonConfig, LuConfig, PortConfig
from vhost_scsi.daemon.iscsi_config import Known, make_all
from vhost_scsi.iscsi import names
from vhost_scsi.target import check_size

if TYPE_CHECKING:
    from vhost_scsi.daemon.service import Service
    from vhost_scsi.target import Port

ALWAYS: Final = ("log_level", "log_format")
PATIENCE: Final = 5.0
"""seconds that initiators have to let go of a logical unit which is taken away"""
_IN_PARTS: Final = ("lu", "port", "map", "iscsi")


@dataclasses.dataclass(frozen=True, slots=True)
class Possible:
    """What can be run now of a configuration, and what of it cannot."""

    config: DaemonConfig
    needs_restart: tuple[str, ...]


def same_unit(one: LuConfig, other: LuConfig) -> bool:
    """Whether two tables make the same unit; whether it may stand nowhere and what is in its drive is no part."""
    medium: dict[str, object] = {"url": None, "store": None} if one.has_drive else {}
    return one.model_copy(update={"spare": False, **medium}) == other.model_copy(update={"spare": False, **medium})


def _with_medium_of(lu: LuConfig, old: LuConfig) -> LuConfig:
    """What is in a drive is changed at run time, and stays there."""
    return lu.model_copy(update={"url": old.url, "store": old.store}) if lu.has_drive else lu


def possible(running: DaemonConfig, fresh: DaemonConfig) -> Possible:
    """`fresh` as far as a daemon that is `running` can be made so. Places are spelled out in both."""
    fixed = [
        name
        for name in DaemonConfig.model_fields
        if name not in (*ALWAYS, *_IN_PARTS) and getattr(fresh, name) != getattr(running, name)
    ]
    fixed += [f"port {name}" for name in {**running.port, **fresh.port} if _at(running, name) != _at(fresh, name)]
    on_ports = _on_ports(running, fresh)
    source = fresh
    if fresh.iscsi is None and running.iscsi is not None:
        fixed.append("iscsi")
        source = running
    in_targets = {place: unit for place, unit in source.map.items() if ISCSI_PLACE.fullmatch(place)}
    found: dict[str, LuConfig] = {}
    for name, lu in fresh.lu.items():
        old = running.lu.get(name)
        changed = old is not None and not same_unit(old, lu)
        if old is not None:
            found[name] = old if changed else _with_medium_of(lu, old)
        else:
            found[name] = lu
        fixed += [f"lu {name}"] if changed else []
    for name in running.lu:
        if name not in fresh.lu and (name in on_ports.values() or source is running):
            found[name] = running.lu[name]
            fixed.append(f"lu {name}")
    update = {name: getattr(fresh, name) for name in ALWAYS}
    update |= {"lu": found, "map": {**on_ports, **in_targets}, "iscsi": source.iscsi}
    update["port"] = {
        name: port if name not in fresh.port else _as_spare(port, fresh.port[name].spare)
        for name, port in running.port.items()
    }
    return Possible(running.model_copy(update=update), tuple(fixed))


def _as_spare(port: PortConfig, spare: bool) -> PortConfig:
    # What nobody gave is not written out as if somebody had.
    return port if port.spare == spare else port.model_copy(update={"spare": spare})


def _on_ports(running: DaemonConfig, fresh: DaemonConfig) -> dict[str, str]:
    """The places on the ports that are here; a port that is to go keeps what it has until the restart."""
    return {
        **{text: lu for text, lu in running.map.items() if (port := _port_of(text)) and port not in fresh.port},
        **{text: lu for text, lu in fresh.map.items() if (port := _port_of(text)) and port in running.port},
    }


def _port_of(place: str) -> str | None:
    """None for a place in an iSCSI target. Places are spelled out."""
    return None if ISCSI_PLACE.fullmatch(place) else place.rsplit(":", 2)[0]


def _at(config: DaemonConfig, port: str) -> object:
    """What the port is; whether it may be empty is no part."""
    table = config.port.get(port)
    return None if table is None else table.model_copy(update={"spare": False})


def _known(service: Service, config: DaemonConfig) -> Known:
    """The targets that are what they were."""
    old, new = service.config.iscsi, config.iscsi
    if service.iscsi is None or old is None or new is None:
        return Known()
    if any(getattr(old, name) != getattr(new, name) for name in type(new).model_fields if name != "target"):
        return Known()
    luns, before, node = config.iscsi_luns(), service.config.iscsi_luns(), service.iscsi.node
    unchanged = [names.normalised(each.name) for each in new.target if each in old.target]
    found = {name: node.targets[name] for name in unchanged if name in node.targets and luns[name] == before[name]}
    return Known(found, node.discovery)


async def take_over(
    service: Service, fresh: DaemonConfig, *, reread: bool, patience: float = PATIENCE
) -> tuple[str, ...]:
    """Makes the daemon what `fresh` says; returns what needs a restart. Raises ConfigError: nothing has changed then.
    `reread`: the secrets of what has not changed are read anew, too. `patience`: seconds that initiators have to let go
    of what is taken away.
    Nobody else changes the daemon meanwhile. Returns when the sessions of what was removed have ended."""
    running = service.config
    plan = await asyncio.to_thread(possible, running, fresh)
    config = plan.config
    await asyncio.to_thread(units.check_shared, config.lu)
    known = None if reread else _known(service, config)
    made = None if config.iscsi is None else make_all(config.iscsi, config.iscsi_luns(), known)
    added = {name: lu for name, lu in config.lu.items() if name not in running.lu}
    await service.add_units(added)
    change = None
    try:
        # In a thread: the numbers of target ports are written down.
        targets = sorted({f"{place.port}:{place.target}" for place in config.places()})
        await asyncio.to_thread(service.target.port_ids.ids_of, targets)
        if made is not None and service.iscsi is None:
            await service.start_iscsi(made)
        elif made is not None and service.iscsi is not None:
            change = await service.iscsi.prepare(made)
    except BaseException:
        for name in added:
            await service.close_unit(name, service.target.hide_lu(name))
        raise
    service.config = config
    if any(getattr(config, name) != getattr(running, name) for name in ALWAYS):
        logs.configure(config.log_level, config.log_format)
    hidden = {name: service.target.hide_lu(name) for name in running.lu if name not in config.lu}
    taken = asyncio.gather(*_moves(service, running, config, patience))
    if change is not None and service.iscsi is not None:
        await service.iscsi.carry_out(change, patience)
    await taken
    for name, unit in hidden.items():
        if service.iscsi is not None:
            await service.iscsi.let_go(unit)
        await service.close_unit(name, unit)
    return plan.needs_restart


async def take_over_unit(service: Service, name: str, fresh: DaemonConfig, patience: float) -> None:
    """Makes the unit `name` what `fresh` says, wherever it stands; nothing else is another one there. Whoever uses the
    old one is told that it goes and then that there is one. Raises ConfigError: nothing has changed then."""
    lu, old = fresh.lu[name], service.target.units[name]
    await asyncio.to_thread(units.check_shared, fresh.lu)
    store = await units.open_unit_store(service.core, name, lu)
    try:
        uuid = (await service.uuids_of({name: lu}))[name]
        check_size(units.spec(name, lu, uuid), store)
    except BaseException:
        store.close()
        raise
    places = [
        (port, (mapped.target_id, mapped.lun))
        for port in service.target.ports.values()
        for mapped in port.luns
        if mapped.unit is old
    ]
    service.target.hide_lu(name)
    await asyncio.gather(*(port.unmap(*place, patience=patience) for port, place in places))
    if service.iscsi is not None:
        # Those that logged in meanwhile.
        await service.iscsi.let_go(old)
    await service.close_unit(name, old)
    service.config = fresh
    await service.add_unit(name, lu, uuid, store)
    for port, place in places:
        if service.target.ports.get(port.name) is port:
            await port.map(*place, service.target.units[name])


def _moves(
    service: Service, running: DaemonConfig, config: DaemonConfig, patience: float
) -> Iterable[Coroutine[Any, Any, None]]:
    """For each port on which something changes: takes away what is not there any more, then puts the new in."""
    before, after = _placed(running), _placed(config)
    for name, serving in service.ports.items():
        was, is_ = before.get(name, {}), after.get(name, {})
        gone = [place for place in was if is_.get(place) != was[place]]
        new = {place: unit for place, unit in is_.items() if was.get(place) != unit}
        if gone or new:
            yield _move(service, serving.port, gone, new, patience)


async def _move(
    service: Service, port: Port, gone: Iterable[tuple[int, int]], new: Mapping[tuple[int, int], str], patience: float
) -> None:
    await asyncio.gather(*(port.unmap(*place, patience=patience) for place in gone))
    await port.map_all((*place, service.target.units[unit]) for place, unit in new.items())


def _placed(config: DaemonConfig) -> dict[str, dict[tuple[int, int], str]]:
    found: dict[str, dict[tuple[int, int], str]] = {}
    for place in config.places():
        found.setdefault(place.port, {})[place.target, place.lun] = place.lu
    return found
