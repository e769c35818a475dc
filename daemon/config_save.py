# SPDX-License-Identifier: Apache-2.0
"""A configuration as a file: written whole, or the changes of a running daemon put into the file it was read from, with
the comments and the order that are in there.

Nothing is checked here: who saves reads what came out again before it counts.
"""

from __future__ import annotations

import os
import re
import secrets
import tomllib
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from vhost_scsi.daemon import durable
from vhost_scsi.daemon.config import ISCSI_PLACE, DaemonConfig
from vhost_scsi.daemon.takeover import same_unit
from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import names
from vhost_scsi.stores import absolute, parse_store, store_from_table


def plain_tables(config: DaemonConfig) -> dict[str, Any]:
    """What `build` makes the same configuration of; only what was given."""
    found: dict[str, Any] = config.model_dump(exclude_unset=True, exclude_none=True)
    for unit in found.get("lu", {}).values():
        if "uuid" in unit:
            unit["uuid"] = str(unit["uuid"])
    return {name: value for name, value in found.items() if value != {}}


def whole_text(config: DaemonConfig) -> str:
    """All of it as TOML, with absolute paths: it says the same from wherever it is read."""
    document = tomlkit.document()
    tables = _with_absolute_paths(config)
    for name, value in sorted(tables.items(), key=lambda item: isinstance(item[1], dict)):
        if name in ("lu", "port"):
            group = tomlkit.table(is_super_table=True)
            for each, table in value.items():
                group[each] = _item(table, top=True)
            document[name] = group
        else:
            document[name] = _item(value, top=True)
    return _spaced(tomlkit.dumps(document))


def _with_absolute_paths(config: DaemonConfig) -> dict[str, Any]:
    """`plain_tables`, from this process's directory."""
    tables = plain_tables(config)
    for name, unit in tables.get("lu", {}).items():
        lu = config.lu[name]
        if lu.empty:
            continue
        spec = parse_store(lu.url)[0] if lu.url is not None else store_from_table(lu.store or {})
        if absolute(spec) != spec:
            unit.pop("store", None)
            unit["url"] = str(absolute(spec))
    _make_absolute(tables, ("control", "state_dir"))
    for port in tables.get("port", {}).values():
        _make_absolute(port, ("socket",))
    _make_secrets_absolute(tables.get("iscsi", {}))
    return tables


def _make_absolute(table: dict[str, Any], keys: Iterable[str]) -> None:
    for key in keys:
        if key in table:
            table[key] = os.path.abspath(table[key])


def _make_secrets_absolute(value: Any) -> None:
    """Those of a table and of all below it."""
    if isinstance(value, dict):
        _make_absolute(value, ("secret_file",))
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _make_secrets_absolute(each)


def _spaced(text: str, before: str = "") -> str:
    """With an empty line before each table that was not there `before`; as it was where that would change what it
    says."""

    def space(match: re.Match[str]) -> str:
        return match[0] if f"{match[0]}[{match[2]}" in before else f"{match[1]}\n\n"

    spaced = re.sub(r"([^\n]+)\n(?=\[([^\n]*))", space, text)
    return spaced if tomllib.loads(spaced) == tomllib.loads(text) else text


def _item(value: Any, *, top: bool = False) -> Any:
    """Lists of tables become [[...]] and deep tables [...]; small ones at the bottom stay in their line."""
    if isinstance(value, dict):
        deep = top or any(_has_tables(item) or isinstance(item, dict) for item in value.values())
        table: Any = tomlkit.table() if deep else tomlkit.inline_table()
        # In TOML what stands behind a table's head is in that table: single values go first.
        for key, item in sorted(value.items(), key=_rank):
            table[key] = _item(item)
        return table
    if _has_tables(value):
        array = tomlkit.aot()
        for each in value:
            array.append(_item(each, top=True))
        return array
    return value


def _rank(pair: tuple[str, Any]) -> int:
    """The name first, tables last."""
    return 2 if _has_tables(pair[1]) else 1 if isinstance(pair[1], dict) else -1 if pair[0] == "name" else 0


def _has_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def changed_text(text: str, loaded: DaemonConfig, running: DaemonConfig) -> str:
    """`text`, the file that `loaded` came from (command line included), with what is different in `running`. Raises
    ConfigError where such a file cannot be edited."""
    try:
        document = tomlkit.parse(text)
        _edit(document, loaded, running)
        return _spaced(tomlkit.dumps(document), text)
    except (TOMLKitError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the file cannot be changed in place ({error}); `config show` gives all of it") from None


def _edit_medium(unit: MutableMapping[str, Any], url: str | None) -> None:
    """What was put into a drive at run time is always a URL."""
    unit.pop("store", None)
    if url is None:
        unit.pop("url", None)
    else:
        unit["url"] = url


def _edit(document: MutableMapping[str, Any], loaded: DaemonConfig, running: DaemonConfig) -> None:
    if running.log_level != loaded.log_level:
        document["log_level"] = running.log_level
    fresh, old = plain_tables(running), plain_tables(loaded)
    units = document.setdefault("lu", tomlkit.table(is_super_table=True)) if fresh.get("lu") else document.get("lu", {})
    for name, table in fresh.get("lu", {}).items():
        if name not in old.get("lu", {}):
            units[name] = _item(table, top=True)
        elif name in units and running.lu[name].spare != loaded.lu[name].spare:
            units[name]["spare"] = running.lu[name].spare
        if name in units and name in old.get("lu", {}) and not running.lu[name].same_medium(loaded.lu[name]):
            _edit_medium(units[name], running.lu[name].url)
        elif name in units and name in old.get("lu", {}) and not same_unit(running.lu[name], loaded.lu[name]):
            units[name] = _item(table, top=True)  # replaced at run time
    for name in [name for name in units if name in old.get("lu", {}) and name not in fresh.get("lu", {})]:
        del units[name]
    _edit_targets(document, _targets(old), _targets(fresh))
    _edit_map(document, loaded, running)
    _edit_ports(document, loaded, running)


def _targets(tables: Mapping[str, Any]) -> dict[str, Any]:
    return {names.normalised(each["name"]): each for each in tables.get("iscsi", {}).get("target", [])}


def _edit_targets(document: MutableMapping[str, Any], old: Mapping[str, Any], fresh: Mapping[str, Any]) -> None:
    if old.keys() == fresh.keys():
        return
    iscsi = document.setdefault("iscsi", tomlkit.table(is_super_table=True))
    array = iscsi.setdefault("target", tomlkit.aot())
    for index in reversed(range(len(array))):
        if names.normalised(str(array[index]["name"])) not in fresh:
            del array[index]
    for name, table in fresh.items():
        if name not in old:
            array.append(_item(table, top=True))


def _edit_map(document: MutableMapping[str, Any], loaded: DaemonConfig, running: DaemonConfig) -> None:
    """Takes out the places of removed targets; with one more target, a LUN alone does not say whose it is."""
    places = document.get("map", tomlkit.table())
    only = names.normalised(loaded.iscsi.target[0].name) if loaded.iscsi and len(loaded.iscsi.target) == 1 else ""
    for text in list(places):
        match = ISCSI_PLACE.fullmatch(text)
        spelled = _spelled(text, loaded)
        if spelled in running.map and running.map[spelled] != loaded.map.get(spelled):
            places[text] = running.map[spelled]
        if match is None:
            if spelled not in running.map:
                del places[text]
            continue
        full = f"{names.normalised(match['target']) if match['target'] else only}:{int(match['lun'])}"
        unit = places[text]
        if full not in running.map:
            del places[text]
        elif match["target"] is None and running.iscsi != loaded.iscsi:
            del places[text]
            places[full] = unit
    known = {_spelled(text, loaded) for text in places}
    for text, unit in running.map.items():
        if text not in loaded.map and text not in known:
            places[text] = unit
    if places and "map" not in document:
        document["map"] = places


def _spelled(text: str, loaded: DaemonConfig) -> str:
    """A place of the file with its port or target, as the running configuration has it."""
    [spelled] = loaded.model_copy(update={"map": {text: ""}}).spelled_out().map
    return spelled


def _edit_ports(document: MutableMapping[str, Any], loaded: DaemonConfig, running: DaemonConfig) -> None:
    """A port that was made empty at run time may be so in the file."""
    for name, table in document.get("port", {}).items():
        if name in running.port and name in loaded.port and running.port[name].spare != loaded.port[name].spare:
            table["spare"] = running.port[name].spare


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None


def write(path: str, text: str) -> None:
    """Makes `text` the file's content, durable and all at once; a link stays one. Raises ConfigError, and nothing has
    changed then."""
    real = Path(os.path.realpath(path))
    fresh = real.with_name(f".{real.name}.{secrets.token_hex(8)}")
    try:
        mode = real.stat().st_mode & 0o777 if real.exists() else durable.PRIVATE_FILE
        durable.replace(real, text.encode(), fresh=fresh, mode=mode)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
