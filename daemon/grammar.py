# SPDX-License-Identifier: Apache-2.0
"""The command line's words for logical units, ports and places, made into the tables of `config.py`.

    --lu NAME=URL[,option=value...]      a logical unit
    --port NAME=SOCKET[,option=value...] a port
    --map PORT:T:L=NAME                  puts a unit on a port
    --lun T:L=URL[,option=value...]      both at once, on the only port; the unit is called lun-T-L
    --iscsi HOST[:PORT][,TAG]            an iSCSI portal
    --target IQN                         an iSCSI target
    --map IQN:LUN=NAME                   puts a unit in a target
    --lun LUN=URL[,option=value...]      a unit and its place in the only target; the unit is called lun-LUN

    --lu NAME=none,type=cdrom            a drive without a medium

A place with a target number of its own (T:L) is on a vhost-user port, one that is a LUN alone is in an iSCSI target.

The grammar of a URL is the stores' (docs/stores.md); the unit's options stand behind it, among the store's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from vhost_scsi.daemon.config import ISCSI_PLACE, PLACE, LuConfig, PortConfig
from vhost_scsi.errors import ConfigError
from vhost_scsi.stores import StoreConfigError, parse_store

LU_OPTIONS: Final = tuple(name for name in LuConfig.model_fields if name not in ("url", "store"))
PORT_OPTIONS: Final = tuple(name for name in PortConfig.model_fields if name != "socket")
NO_MEDIUM: Final = "none"
"""in place of a URL: a removable unit that is empty at first"""
_NAME_LENGTH: Final = 40  # of the part of a unit's name that comes from its target
_TRUTH: Final = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


def tables(
    lus: Iterable[str] = (),
    luns: Iterable[str] = (),
    maps: Iterable[str] = (),
    ports: Iterable[str] = (),
    portals: Iterable[str] = (),
    targets: Iterable[str] = (),
) -> dict[str, dict[str, Any]]:
    """The `lu`, `port`, `map` and `iscsi` tables that these options stand for; ConfigError for a wrong one."""
    made: dict[str, dict[str, Any]] = {"lu": {}, "port": {}, "map": {}}
    for text in ports:
        name, rest = _named("--port", text, "NAME=SOCKET")
        _add(made["port"], name, _port(text, rest), f"--port {text}: port {name}")
    for text in lus:
        name, rest = _named("--lu", text, "NAME=URL")
        _add(made["lu"], name, logical_unit(f"--lu {text}", rest), f"--lu {text}: logical unit {name}")
    for text in maps:
        place, name = _named("--map", text, "PORT:T:L=NAME or IQN:LUN=NAME")
        _add(made["map"], place, name, f"--map {text}: LUN {place}")
    for text in luns:
        place, rest = _named("--lun", text, "T:L=URL or LUN=URL")
        name = unit_name(f"--lun {text}", place)
        _add(made["lu"], name, logical_unit(f"--lun {text}", rest), f"--lun {text}: LUN {place}")
        _add(made["map"], place, name, f"--lun {text}: LUN {place}")
    if portals or targets:
        made["iscsi"] = {"portal": [{"listen": text} for text in portals], "target": [{"name": iqn} for iqn in targets]}
    return made


def unit_name(said: str, place: str) -> str:
    """What a unit without a name of its own is called, from its place; `said` names it in errors."""
    if place.isascii() and place.isdigit() and ISCSI_PLACE.fullmatch(place):
        return f"lun-{int(place)}"
    in_target = ISCSI_PLACE.fullmatch(place)
    if in_target is not None:
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", in_target["target"].rpartition(":")[2]).strip("-._")[:_NAME_LENGTH]
        return "-".join(word for word in ("lun", words, str(int(in_target["lun"]))) if word)
    match = PLACE.fullmatch(place)
    if match is None:
        where = "T:L (target and LUN of a port, such as 0:0) or LUN (of the iSCSI target, such as 0)"
        raise ConfigError(f"{said}: {place!r} is not {where}")
    parts = ["lun", match["port"], str(int(match["target"])), str(int(match["lun"]))]
    return "-".join(part for part in parts if part)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`: single values replace, tables and lists are joined and name nothing twice."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and not isinstance(merged.get(key, {}), dict):
            # What is no table in the file is a mistake there, and to be told with its place.
            continue
        if not isinstance(value, dict) or key not in merged:
            merged[key] = value
            continue
        below = dict(merged[key])
        for name, item in value.items():
            if isinstance(item, list) and isinstance(below.get(name, []), list):
                below[name] = [*below.get(name, []), *item]
            elif name in below:
                raise ConfigError(f"{key} {name} is given twice, on the command line and in the file")
            else:
                below[name] = item
        merged[key] = below
    return merged


def logical_unit(said: str, text: str) -> dict[str, Any]:
    """The table of one unit from URL[,option=value...]; `said` names it in errors."""
    url, comma, rest = text.partition(",")
    empty = url == NO_MEDIUM
    try:
        # The store below an empty drive's options stands for none; a file called so is ./none.
        spec, options = parse_store(f"null:1M{comma}{rest}" if empty else text, LU_OPTIONS)
    except StoreConfigError as error:
        raise type(error)(f"{said}: {error}") from None
    table: dict[str, Any] = {} if empty else {"url": str(spec)}
    for key, value in options.items():
        table[key] = _value(said, LuConfig.model_fields[key].annotation, key, value)
    return table


def _port(text: str, rest: str) -> dict[str, Any]:
    socket, *options = rest.split(",")
    table: dict[str, Any] = {"socket": socket} if socket else {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in PORT_OPTIONS:
            raise ConfigError(f"--port {text}: unknown option {key!r}; there are {', '.join(PORT_OPTIONS)}")
        if key == "spare":
            table[key] = _value(f"--port {text}", bool, key, value)
        elif key == "workers":
            table[key] = [_number(f"--port {text}", key, word) for word in value.split("+")]
        else:
            table[key] = _value(f"--port {text}", PortConfig.model_fields[key].annotation, key, value)
    return table


def _named(option: str, text: str, shape: str) -> tuple[str, str]:
    name, equals, rest = text.partition("=")
    if not equals or not name or not rest:
        raise ConfigError(f"{option} {text}: not {shape}")
    return name, rest


def _add(table: dict[str, Any], name: str, value: Any, said: str) -> None:
    if name in table:
        raise ConfigError(f"{said} is given twice")
    table[name] = value


def _value(said: str, annotation: Any, key: str, value: str) -> Any:
    if annotation is int or annotation == int | None:
        return _number(said, key, value)
    if annotation is bool or annotation == bool | None:
        if value not in _TRUTH:
            raise ConfigError(f"{said}: {key}={value}: must be on or off")
        return _TRUTH[value]
    return value


def _number(said: str, key: str, value: str) -> int:
    scale = {"k": 1024, "K": 1024}.get(value[-1:], 1)
    digits = value[:-1] if scale > 1 else value
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 9:
        raise ConfigError(f"{said}: {key}={value}: not a number")
    return int(digits) * scale
