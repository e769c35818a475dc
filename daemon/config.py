# SPDX-License-Identifier: Apache-2.0
"""What a daemon is told to do, as one checked value: logical units, ports, and which unit stands where.

The shape is that of the configuration file, one table a unit and a port; the command line makes the same shape
(`grammar.py`) and both end in `build`. Files are read in `config_file.py`. Nothing is opened or started here.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vhost_scsi.errors import ConfigError

# virtio 1.3, 5.6.6.1: what the single level LUN structure reaches
MAX_TARGET: Final = 255
MAX_LUN: Final = 16383
MAX_WORKERS: Final = 64
MAX_QUEUES: Final = 1022
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PLACE: Final = re.compile(r"(?:(?P<port>[^:]+):)?(?P<target>[0-9]{1,5}):(?P<lun>[0-9]{1,5})")


def _uuid(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return UUID(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a UUID") from None


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class LuConfig(_Model):
    """One logical unit. `url` or `store` says where its bytes are; a `uuid` is made up, and kept, if there is none."""

    url: str | None = None
    store: dict[str, Any] | None = None
    block_size: int = Field(default=512, description="bytes, a power of two from 512 to 65536")
    uuid: Annotated[UUID | None, BeforeValidator(_uuid)] = Field(default=None, description="its identity")
    readonly: bool = Field(default=False, description="refuse writes")
    wce: bool = Field(default=True, description="whether the write cache starts enabled")
    rotational: bool | None = Field(default=None, description="what guests are told; unset: what the store says")
    physical_block_size: int | None = Field(default=None, description="bytes; unset: what the store says")


class PortConfig(_Model):
    """One target port: a vhost-user socket. Without `socket` and `fd` it is handed over by socket activation."""

    socket: str | None = None
    fd: Annotated[int, Field(ge=0)] | None = None
    num_queues: Annotated[int, Field(ge=1, le=MAX_QUEUES)] = 1
    workers: list[Annotated[int, Field(ge=0, lt=MAX_WORKERS)]] | None = None


class DaemonConfig(_Model):
    """Everything. `map` leads from "PORT:TARGET:LUN" (PORT may be left out where there is one) to a unit's name."""

    name: str = "default"
    engine: Literal["auto", "io_uring", "epoll"] = "auto"
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 1
    poll: Literal["adaptive", "always", "never"] = "adaptive"
    spin_us: Annotated[int, Field(ge=0, le=1_000_000)] = 50
    io_threads: Annotated[int, Field(ge=1, le=64)] = 4
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    control: str | None = None
    state_dir: str | None = None
    lu: dict[str, LuConfig] = {}
    port: dict[str, PortConfig] = {}
    map: dict[str, str] = {}

    def places(self) -> tuple[Place, ...]:
        """`map`, understood; only of a config that `build` returned."""
        return tuple(_place(self, text, name) for text, name in self.map.items())


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a logical unit is reached."""

    port: str
    target: int
    lun: int
    lu: str


Locate = Callable[[tuple[str | int, ...], str], ConfigError]
"""Makes the error for a path into the configuration, with the place where it was written."""


def at_path(path: tuple[str | int, ...], message: str) -> ConfigError:
    """For what came from the command line: the path is the place."""
    return ConfigError(f"{' '.join(str(part) for part in path)}: {message}" if path else message)


def build(raw: Mapping[str, Any], locate: Locate = at_path) -> DaemonConfig:
    """A checked configuration from tables of plain values; ConfigError, one line, for the first thing that is wrong."""
    try:
        config = DaemonConfig.model_validate(raw)
    except ValidationError as error:
        path, message = _first_error(error)
        raise locate(path, message) from None
    for path, message in _contradictions(config):
        raise locate(path, message)
    return config


def nearest(word: str, known: Iterable[str]) -> str:
    """', did you mean ...?' or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""


def known_keys(path: tuple[str | int, ...]) -> list[str]:
    """The keys that the table at `path` may have."""
    tables: dict[str, type[_Model]] = {"lu": LuConfig, "port": PortConfig}
    return list((tables.get(str(path[0]), DaemonConfig) if path else DaemonConfig).model_fields)


def _first_error(error: ValidationError) -> tuple[tuple[str | int, ...], str]:
    # An unknown key explains what is missing elsewhere, so it is said first.
    errors = sorted(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    first = errors[0]
    path = tuple(first["loc"])
    if first["type"] == "extra_forbidden":
        return path, f"unknown key {path[-1]!r}{nearest(str(path[-1]), known_keys(path[:-1]))}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "literal_error":
        message = f"{first['input']!r} is not one of {first['ctx']['expected']}"
    elif first["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, not {first['input']!r:.60}"
    return path, message


Contradiction = tuple[tuple[str | int, ...], str]


def _contradictions(config: DaemonConfig) -> Iterable[Contradiction]:
    """What each value alone does not show, first things first."""
    if not NAME.fullmatch(config.name):
        yield ("name",), f"{config.name!r}: a name has letters, digits, '.', '_' and '-', at most 64"
    yield from _bad_units(config)
    yield from _bad_ports(config)
    yield from _bad_map(config)


def _bad_units(config: DaemonConfig) -> Iterable[Contradiction]:
    owners: dict[UUID, str] = {}
    for name, lu in config.lu.items():
        path = ("lu", name)
        if not NAME.fullmatch(name):
            yield path, f"{name!r}: a name has letters, digits, '.', '_' and '-', at most 64"
        if (lu.url is None) == (lu.store is None):
            yield path, "exactly one of url and store says where its bytes are"
        if lu.url == "":
            yield path, "its URL is empty"
        size = lu.block_size
        if not 512 <= size <= 65536 or size & (size - 1):
            yield (*path, "block_size"), f"{size} is not a power of two from 512 to 65536"
        physical = lu.physical_block_size
        if physical is not None and (physical < size or physical & (physical - 1) or physical > size << 15):
            yield (*path, "physical_block_size"), f"{physical} is not a power of two from {size} to {size << 15}"
        if lu.uuid is not None and owners.setdefault(lu.uuid, name) != name:
            yield (*path, "uuid"), f"logical unit {owners[lu.uuid]} has the same UUID"


def _bad_ports(config: DaemonConfig) -> Iterable[Contradiction]:
    sockets: dict[str | int, str] = {}
    for name, port in config.port.items():
        path = ("port", name)
        if not NAME.fullmatch(name):
            yield path, f"{name!r}: a name has letters, digits, '.', '_' and '-', at most 64"
        if port.socket is not None and port.fd is not None:
            yield path, "socket and fd exclude each other"
        if port.socket == "":
            yield (*path, "socket"), "its path is empty"
        where = port.socket if port.socket is not None else port.fd
        if where is not None and sockets.setdefault(where, name) != name:
            yield path, f"port {sockets[where]} has the same socket"
        if port.workers == []:
            yield (*path, "workers"), "names no worker"
        for worker in port.workers or ():
            if worker >= config.workers:
                yield (*path, "workers"), f"there is no worker {worker}: workers = {config.workers}"


def _bad_map(config: DaemonConfig) -> Iterable[Contradiction]:
    seen: dict[tuple[str, int, int], str] = {}
    for text, name in config.map.items():
        path = ("map", text)
        try:
            place = _place(config, text, name)
        except ConfigError as error:
            yield path, str(error)
            continue
        if name not in config.lu:
            yield path, f"there is no logical unit {name!r}{nearest(name, config.lu)}"
        key = (place.port, place.target, place.lun)
        if key in seen:
            yield path, f"LUN {place.target}:{place.lun} of port {place.port} is given twice ({seen[key]} and {name})"
        seen[key] = name
    for port in config.port:
        if not any(key[0] == port for key in seen):
            yield ("port", port), f"port {port} has no logical unit"
    for name in config.lu:
        if name not in config.map.values():
            yield ("lu", name), f"logical unit {name} is mapped nowhere"


def _place(config: DaemonConfig, text: str, name: str) -> Place:
    match = PLACE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not PORT:TARGET:LUN or TARGET:LUN")
    target, lun, port = int(match["target"]), int(match["lun"]), match["port"]
    if target > MAX_TARGET or lun > MAX_LUN:
        raise ConfigError(f"{target}:{lun}: targets go to {MAX_TARGET} and LUNs to {MAX_LUN}")
    if port is None:
        if len(config.port) != 1:
            raise ConfigError(f"{text!r} names no port, and there {'are several' if config.port else 'is none'}")
        port = next(iter(config.port))
    if port not in config.port:
        raise ConfigError(f"there is no port {port!r}{nearest(port, config.port)}")
    return Place(port, target, lun, name)
