# SPDX-License-Identifier: Apache-2.0
"""Targets that come and go while a daemon runs: the configuration that runs with one more, or one less.

What they are made of is the same table as in the file, so it is checked by the same rules and taken over in the same
way as a file that is read anew. A unit that was made for a target goes with it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi.daemon.config import ISCSI_PLACE, DaemonConfig, build
from vhost_scsi.daemon.config_save import plain_tables
from vhost_scsi.daemon.iscsi_config import is_lun
from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import names
from vhost_scsi.iscsi.targets import MAX_LUN

if TYPE_CHECKING:
    from vhost_scsi.daemon.service import Service

_NAME_LENGTH: Final = 40  # of the part of a unit's name that comes from its target


async def add_target(service: Service, table: Mapping[str, Any], units: Mapping[str, Any]) -> list[str]:
    """One more target, with units that are made for it at LUNs of their own. Returns their names; raises ConfigError,
    and nothing has changed then."""
    made: dict[str, str] = {}

    def with_target(running: DaemonConfig) -> DaemonConfig:
        _refuse_doubles(running, str(table["name"]), table["luns"], units)
        made.update(_unit_names(running, str(table["name"]), units))
        raw = plain_tables(running)
        luns = {**table["luns"], **made}
        if all(map(is_lun, luns)):
            luns = dict(sorted(luns.items(), key=lambda item: int(item[0])))
        raw["lu"] = {**raw.get("lu", {}), **{name: units[lun] for lun, name in made.items()}}
        raw["iscsi"] = {**raw["iscsi"], "target": [*raw["iscsi"].get("target", []), {**table, "luns": luns}]}
        return build(raw, _located(len(raw["iscsi"]["target"]) - 1))

    await service.change(with_target)
    service.came_with.update(dict.fromkeys(made.values(), names.normalised(str(table["name"]))))
    return list(made.values())


async def remove_target(service: Service, name: str, *, force: bool) -> tuple[int, list[str]]:
    """One target less. Returns how many sessions and which units went with it. Raises ConfigError where there are
    sessions, without `force`; they are asked to log out first."""
    wanted = names.normalised(name)
    went: list[str] = []
    ended = 0

    def without_target(running: DaemonConfig) -> DaemonConfig:
        nonlocal ended
        node = service.iscsi.node if service.iscsi is not None else None
        if node is None or wanted not in node.targets or running.iscsi is None:
            raise ConfigError(f"there is no target {name[:223]!r}")
        ended = len(node.sessions.of_target(wanted))
        if ended and not force:
            raise ConfigError(f"target {wanted} has {ended} session{'s' if ended > 1 else ''}; --force ends them")
        return _without(running, wanted, service.came_with, went)

    await service.change(without_target)
    return ended, went


def _without(running: DaemonConfig, target: str, came_with: Mapping[str, str], went: list[str]) -> DaemonConfig:
    assert running.iscsi is not None
    targets = [each for each in running.iscsi.target if names.normalised(each.name) != target]
    places = {text: unit for text, unit in running.map.items() if not _is_in(text, target)}
    update = {"iscsi": running.iscsi.model_copy(update={"target": targets}), "map": places}
    less = running.model_copy(update=update)
    mapped = less.mapped()
    went += [name for name, owner in came_with.items() if owner == target and name in less.lu and name not in mapped]
    # The others stay, for targets that come later.
    units = {
        name: lu if name in mapped or lu.spare else lu.model_copy(update={"spare": True})
        for name, lu in less.lu.items()
        if name not in went
    }
    return less.model_copy(update={"lu": units})


def _is_in(place: str, target: str) -> bool:
    match = ISCSI_PLACE.fullmatch(place)
    return match is not None and match["target"] is not None and names.normalised(match["target"]) == target


def _refuse_doubles(running: DaemonConfig, name: str, luns: Any, units: Mapping[str, Any]) -> None:
    known = [names.normalised(each.name) for each in running.iscsi.target] if running.iscsi is not None else []
    if names.normalised(name) in known:
        raise ConfigError(f"target {names.normalised(name)} is there already")
    for lun in units:
        if not is_lun(lun):
            raise ConfigError(f"{lun[:64]!r} is not a LUN: they go from 0 to {MAX_LUN}")
    if isinstance(luns, dict) and (both := luns.keys() & units.keys()):
        raise ConfigError(f"LUN {min(both)} is given twice")


def _unit_names(running: DaemonConfig, target: str, units: Mapping[str, Any]) -> dict[str, str]:
    """By LUN: the last part of the target's name, and the LUN; with a number behind it where that is taken."""
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", target.rpartition(":")[2]).strip("-._")[:_NAME_LENGTH] or "lun"
    found: dict[str, str] = {}
    for lun in units:
        plain = f"{words}-{lun[:5]}"
        candidates = itertools.chain([plain], (f"{plain}-{number}" for number in itertools.count(2)))
        found[lun] = next(each for each in candidates if each not in running.lu and each not in found.values())
    return found


def _located(index: int) -> Any:
    """Errors about the new target are about what was asked for; others name where they are."""

    def locate(path: tuple[str | int, ...], message: str) -> ConfigError:
        if path[:3] == ("iscsi", "target", index):
            path = path[3:]
        return ConfigError(f"{' '.join(str(part) for part in path)}: {message}" if path else message)

    return locate
