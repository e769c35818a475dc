# SPDX-License-Identifier: Apache-2.0
"""How what runs differs from what was configured, in words: changes at run time that nobody saved, and changes of the
file that need a restart. It compares, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vhost_scsi.daemon.config import DaemonConfig
from vhost_scsi.daemon.iscsi_config import IscsiConfig
from vhost_scsi.daemon.takeover import same_unit
from vhost_scsi.iscsi import names


def differences(running: DaemonConfig, loaded: DaemonConfig) -> list[str]:
    """One line for each thing; none where a restart would change nothing. Places are spelled out in both."""
    lines = []
    for name in DaemonConfig.model_fields:
        if name in ("lu", "port", "map", "iscsi"):
            continue
        ours, theirs = getattr(running, name), getattr(loaded, name)
        if ours != theirs:
            lines.append(f"{name} is {ours}, configured is {theirs}")
    lines += _tables("logical unit", running.lu, loaded.lu, same_unit)
    lines += [
        f"logical unit {name}: another medium is in it"
        for name, lu in running.lu.items()
        if name in loaded.lu and not lu.same_medium(loaded.lu[name])
    ]
    lines += _tables("port", running.port, loaded.port)
    lines += _tables("place", running.map, loaded.map)
    lines += _iscsi(running.iscsi or IscsiConfig(), loaded.iscsi or IscsiConfig())
    return lines


def _iscsi(running: IscsiConfig, loaded: IscsiConfig) -> list[str]:
    ours, theirs = ({names.normalised(each.name): each for each in config.target} for config in (running, loaded))
    lines = _tables("target", ours, theirs)
    for name in IscsiConfig.model_fields:
        if name != "target" and getattr(running, name) != getattr(loaded, name):
            lines.append(f"iscsi {name}: differs from the configuration")
    return lines


def _tables(what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any], same: Any = None) -> list[str]:
    lines = []
    for name in {**theirs, **ours}:
        if name not in theirs:
            lines.append(f"{what} {name}: here, and not configured")
        elif name not in ours:
            lines.append(f"{what} {name}: configured, and not here")
        elif not (same(ours[name], theirs[name]) if same is not None else ours[name] == theirs[name]):
            lines.append(f"{what} {name}: differs from the configuration")
    return lines
