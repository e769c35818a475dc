# SPDX-License-Identifier: Apache-2.0
"""The words of `target add` made into the table of a target, with every path made absolute: the daemon reads the files,
and stands elsewhere. Whether a table makes sense, the daemon says.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any, Final

from vhost_scsi.daemon.grammar import logical_unit
from vhost_scsi.errors import ConfigError
from vhost_scsi.stores import absolute, parse_store

ENVIRONMENT: Final = "env:"


def luns(texts: Iterable[str], known: Collection[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """LUNs of units that there are, by name, and of units that are to be made, as tables."""
    named: dict[str, str] = {}
    made: dict[str, Any] = {}
    for text in texts:
        lun, equals, rest = text.partition("=")
        if not (lun.isascii() and lun.isdigit()) or len(lun) > 5 or not equals or not rest:
            raise ConfigError(f"--lun {text}: not LUN=NAME or LUN=URL")
        lun = str(int(lun))
        if lun in named or lun in made:
            raise ConfigError(f"--lun {text}: LUN {lun} is given twice")
        if rest in known:
            named[lun] = rest
            continue
        table = logical_unit(f"--lun {text}", rest)
        spec = absolute(parse_store(table["url"])[0])
        if spec.kind == "file" and not os.path.exists(spec.target):
            raise ConfigError(f"--lun {text}: the daemon has no logical unit of that name, and there is no such file")
        made[lun] = {**table, "url": str(spec)}
    return named, made


def settings(options: dict[str, Any]) -> dict[str, Any]:
    """What is more of a target's table than its name and LUNs; only what was given."""
    found: dict[str, Any] = {
        "portal_groups": list(options["groups"]),
        "acl": [_entry(text) for text in options["entries"]],
        "chap": [_user("--chap", text) for text in options["users"]],
        "mutual_chap": _user("--mutual-chap", options["mutual_chap"]) if options["mutual_chap"] else None,
        "require_mutual_chap": options["require_mutual_chap"],
        "chap_algorithms": options["chap_algorithms"].split(",") if options["chap_algorithms"] else None,
    }
    return {name: value for name, value in found.items() if value}


def _entry(text: str) -> dict[str, Any]:
    """INITIATOR[,...][,from=NETWORK...][,lun=LUN=NAME...]; no initiator is anybody."""
    entry: dict[str, Any] = {}
    for word in text.split(","):
        key, equals, value = word.partition("=")
        if equals and key == "from":
            entry.setdefault("networks", []).append(value)
        elif equals and key == "lun":
            lun, _, unit = value.partition("=")
            if not unit:
                raise ConfigError(f"--allow {text}: {word!r} is not lun=LUN=NAME")
            if lun in entry.setdefault("luns", {}):
                raise ConfigError(f"--allow {text}: LUN {lun} is given twice")
            entry["luns"][lun] = unit
        elif equals or not word:
            raise ConfigError(f"--allow {text}: {word!r} is no initiator, nor from=NETWORK or lun=LUN=NAME")
        else:
            entry.setdefault("initiators", []).append(word)
    return entry


def _user(option: str, text: str) -> dict[str, str]:
    name, equals, where = text.partition("=")
    if not name or not equals or not where:
        raise ConfigError(f"{option} {text}: not NAME=FILE or NAME=env:VARIABLE")
    if where.startswith(ENVIRONMENT):
        return {"name": name, "secret_env": where.removeprefix(ENVIRONMENT)}
    return {"name": name, "secret_file": os.path.abspath(where)}
