# SPDX-License-Identifier: Apache-2.0
"""Identities that must outlive the process: the UUID of each logical unit that was not given one, and the relative
target port identifier of each port. What units keep otherwise is in `state_dir`.

One JSON file in the state directory, replaced as a whole and made durable before it counts: after a crash there is the
old content or the new one. A UUID belongs to a unit's name and to what its store is, so that another image under an old
name is another disk to the guest. It keeps no data of guests.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from vhost_scsi.daemon import durable
from vhost_scsi.errors import ConfigError
from vhost_scsi.target.port_ids import LAST, allot

SCHEMA: Final = 1
FILE: Final = "state.json"
LOCK: Final = "lock"
_DISK: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def default_directory(name: str) -> Path:
    """`/var/lib/vhost-scsi/NAME` for root, else below $XDG_STATE_HOME; systemd's $STATE_DIRECTORY goes first."""
    if systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(systemd.split(":")[0]) / name
    if home := os.environ.get("XDG_STATE_HOME"):
        return Path(home) / "vhost-scsi" / name
    if os.geteuid() == 0:
        return Path("/var/lib/vhost-scsi") / name
    return Path.home() / ".local" / "state" / "vhost-scsi" / name


class State:
    """One state directory. Nothing is written, and no directory made, before there is something to keep."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def uuid_of(self, name: str, identity: str) -> uuid.UUID:
        """The UUID of the unit `name` over the store `identity`, made at first use and durable on return."""
        return self.uuids_of({name: identity})[name]

    def uuids_of(self, identities: Mapping[str, str]) -> dict[str, uuid.UUID]:
        """As `uuid_of`, for many units at once, by name: the file is written once, or not at all."""
        if not identities:
            return {}
        found = self._known_uuids(self._read(), identities)
        if len(found) < len(identities):
            with self._locked():
                values = self._read()
                # Another daemon may have been here since.
                found = self._known_uuids(values, identities)
                units = values.setdefault("units", {})
                for name in identities.keys() - found.keys():
                    found[name] = uuid.uuid4()
                    units[name] = {"store": identities[name], "uuid": str(found[name])}
                self._write(values)
        return found

    @staticmethod
    def _known_uuids(values: dict[str, Any], identities: Mapping[str, str]) -> dict[str, uuid.UUID]:
        units = values.get("units", {})
        return {
            name: uuid.UUID(units[name]["uuid"])
            for name, identity in identities.items()
            if name in units and units[name].get("store") == identity and _DISK.fullmatch(str(units[name].get("uuid")))
        }

    def ids_of(self, keys: Iterable[str]) -> list[int]:
        """Relative target port identifiers, made at first use and durable on return."""
        keys = list(keys)
        known = self._ports(self._read())
        if any(key not in known for key in keys):
            with self._locked():
                values = self._read()
                known = self._ports(values)
                if allot(known, keys):
                    values["ports"] = known
                    self._write(values)
        return [known[key] for key in keys]

    def _ports(self, values: dict[str, Any]) -> dict[str, int]:
        known = values.get("ports", {})
        numbers = list(known.values())
        if not all(type(each) is int and 1 <= each <= LAST for each in numbers) or len(set(numbers)) != len(numbers):
            raise ConfigError(f"state directory: {self.directory / FILE} is damaged: a port's number is wrong")
        return dict(known)

    def _read(self) -> dict[str, Any]:
        path = self.directory / FILE
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            return {"schema_version": SCHEMA}
        except OSError as error:
            raise ConfigError(f"state directory: {path}: {error.strerror}") from error
        except (ValueError, RecursionError):
            values = None
        # A file that nobody but us writes, as a whole: what is not ours must not be overwritten silently.
        if not isinstance(values, dict) or not all(isinstance(values.get(key, {}), dict) for key in ("units", "ports")):
            raise ConfigError(
                f"state directory: {path} is damaged; remove it to give logical units and ports new identities"
            )
        if values.get("schema_version") != SCHEMA:
            raise ConfigError(
                f"state directory: {path} has schema_version {values.get('schema_version')}, not {SCHEMA}"
            )
        return values

    def _write(self, values: dict[str, Any]) -> None:
        path, fresh = self.directory / FILE, self.directory / f"{FILE}.new"
        try:
            durable.replace(path, json.dumps(values, indent=2, sort_keys=True).encode() + b"\n", fresh=fresh)
        except OSError as error:
            raise ConfigError(f"state directory: {path}: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; held for a few milliseconds."""
        try:
            durable.make_directory(self.directory)
            fd = os.open(self.directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(f"state directory: {self.directory}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
