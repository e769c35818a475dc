# SPDX-License-Identifier: Apache-2.0
"""Another configuration for a daemon that runs: what of it can be had without a restart, and how it is taken over.

Everything that may fail is done first: units are opened, secrets read, portals listened on. So a configuration is taken
over, or nothing has changed. What needs a restart (ports, workers, a unit that is another one now) stays as it is and
is named.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Final

from vhost_scsi.daemon import logs, units
from vhost_scsi.daemon.config import ISCSI_PLACE, DaemonConfig, LuConfig
from vhost_scsi.daemon.iscsi_config import Known, make_all
from vhost_scsi.iscsi import names

if TYPE_CHECKING:
    from vhost_scsi.daemon.service import Service

ALWAYS: Final = ("log_level", "log_format")
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
    on_ports = {place: unit for place, unit in running.map.items() if not ISCSI_PLACE.fullmatch(place)}
    wanted = {place: unit for place, unit in fresh.map.items() if not ISCSI_PLACE.fullmatch(place)}
    fixed += [f"place {place}" for place in {**on_ports, **wanted} if on_ports.get(place) != wanted.get(place)]
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
    return Possible(running.model_copy(update=update), tuple(fixed))


def _at(config: DaemonConfig, port: str) -> object:
    return config.port.get(port)


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


async def take_over(service: Service, fresh: DaemonConfig, *, reread: bool) -> tuple[str, ...]:
    """Makes the daemon what `fresh` says; returns what needs a restart. Raises ConfigError: nothing has changed then.
    `reread`: the secrets of what has not changed are read anew, too.
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
    if change is not None and service.iscsi is not None:
        await service.iscsi.carry_out(change)
    for name, unit in hidden.items():
        if service.iscsi is not None:
            await service.iscsi.let_go(unit)
        await service.close_unit(name, unit)
    return plan.needs_restart
