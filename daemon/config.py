# SPDX-License-Identifier: Apache-2.0
"""What a daemon is told to do, as one checked value: logical units, ports, iSCSI targets, and where units stand.

The shape is that of the configuration file, one table a unit, a port and a target; the command line makes the same one
(`grammar.py`) and both end in `build`. Files are read in `config_file.py`, what iSCSI has of its own stands in
`iscsi_config.py`. No store is opened and nothing is started here.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from vhost_scsi.daemon import unit_pages
from vhost_scsi.daemon.iscsi_config import STRICT, IscsiConfig, is_lun, problems
from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import names
from vhost_scsi.scsi.commands import DeviceType
from vhost_scsi.scsi.mode_parameters import problem
from vhost_scsi.stores import StoreConfigError, StoreSpec, parse_store, store_from_table

# virtio 1.3, 5.6.6.1: what the single level LUN structure reaches
CD_BLOCK: Final = 2048
MAX_TARGET: Final = 255
MAX_LUN: Final = 16383
MAX_WORKERS: Final = 64
# vhost-user's notifier messages have 8 bits for the ring, and two rings are control and event queue.
MAX_QUEUES: Final = 254
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PLACE: Final = re.compile(r"(?:(?P<port>[^:]+):)?(?P<target>[0-9]{1,5}):(?P<lun>[0-9]{1,5})")
# An iSCSI name has colons of its own: its LUN stands behind the last one.
ISCSI_PLACE: Final = re.compile(r"(?:(?P<target>(?:iqn|eui|naa)\..+):)?(?P<lun>[0-9]{1,5})", re.IGNORECASE)
ISCSI_NAME: Final = re.compile(r"(?:iqn|eui|naa)\.", re.IGNORECASE)


def _uuid(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return UUID(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a UUID") from None


def _initiator(value: object) -> object:
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"naa\.[0-9a-fA-F]{16}", value) is None:
        raise ValueError(f"{value!r} is not naa. and sixteen hexadecimal digits")
    return int(value[4:], 16)


def _words(most: int) -> BeforeValidator:
    return BeforeValidator(lambda value: unit_pages.words(value, most))


class _Model(BaseModel):
    model_config = STRICT


class LuConfig(_Model):
    """One logical unit. `url` or `store` says where its bytes are, or, where the medium can be taken out, what is in it
    at first: there may be neither. A `uuid` is made up, and kept, if there is none."""

    url: str | None = None
    store: dict[str, Any] | None = None
    block_size: int = Field(default=512, description="bytes, a power of two from 512 to 65536")
    uuid: Annotated[UUID | None, BeforeValidator(_uuid)] = Field(default=None, description="its identity")
    readonly: bool = Field(default=False, description="refuse writes")
    wce: bool = Field(default=True, description="whether the write cache starts enabled")
    rotational: bool | None = Field(default=None, description="what guests are told; unset: what the store says")
    physical_block_size: int | None = Field(default=None, description="bytes; unset: what the store says")
    spare: bool = Field(default=False, description="that it is mapped nowhere is no mistake")
    strict: bool = Field(default=True, description="refuse commands with reserved bits")
    wsnz: bool = Field(default=True, description="refuse WRITE SAME of zero blocks")
    cdb32: bool = Field(default=False, description="serve READ(32) and its like")
    overwrite_rate: int = Field(default=0, ge=0, description="bytes a second of FORMAT UNIT and SANITIZE; 0: no limit")
    outstanding: int = Field(default=1024, ge=1, le=65536, description="commands at once; more get TASK SET FULL")
    queue_depth: int = Field(default=0, ge=0, le=65536, description="commands of one initiator at once; 0: as many")
    command_timeout: int = Field(default=30, ge=0, le=86400, description="seconds of a store operation; 0: any time")
    retries: int = Field(default=0, ge=0, le=255, description="how often a failed store operation is tried again")
    type: Literal["disk", "cdrom"] = Field(default="disk", description="disk or cdrom, which is a CD or DVD drive")
    removable: bool = Field(default=False, description="the medium of the disk can be taken out")
    vendor: Annotated[str | None, _words(8)] = Field(default=None, description="T10 vendor identification")
    product: Annotated[str | None, _words(16)] = Field(default=None, description="product identification")
    revision: Annotated[str | None, _words(4)] = Field(default=None, description="product revision level")
    serial: Annotated[str | None, _words(64)] = Field(default=None, description="unset: made of the UUID")
    naa: Annotated[str | None, BeforeValidator(unit_pages.naa)] = Field(
        default=None, description="a world wide name of yours; unset: made of the UUID"
    )
    eui64: Annotated[str | None, BeforeValidator(unit_pages.eui)] = Field(
        default=None, description="an EUI-64 of yours"
    )
    mode_pages: Annotated[list[str], BeforeValidator(unit_pages.several)] = Field(
        default=[], description="CODE[.SUBPAGE]:VALUES[/CHANGEABLE]"
    )
    vpd_pages: Annotated[list[str], BeforeValidator(unit_pages.several)] = Field(default=[], description="CODE:DATA")

    @property
    def has_drive(self) -> bool:
        """Its medium comes and goes."""
        return self.removable or self.type == "cdrom"

    @property
    def empty(self) -> bool:
        """It begins without a medium."""
        return self.url is None and self.store is None

    def same_medium(self, other: LuConfig) -> bool:
        """Whether the same is in it, where that comes and goes."""
        return not self.has_drive or (self.url, self.store) == (other.url, other.store)

    @property
    def block_bytes(self) -> int:
        return CD_BLOCK if self.type == "cdrom" else self.block_size


class PortConfig(_Model):
    """One target port: a vhost-user socket. Without `socket` and `fd` it is handed over by socket activation."""

    socket: str | None = None
    fd: Annotated[int, Field(ge=0)] | None = None
    num_queues: Annotated[int, Field(ge=1, le=MAX_QUEUES)] = 1
    in_order: bool = Field(default=False, description="offer IN_ORDER: one slow logical unit then holds up all others")
    port_group: Annotated[int, Field(ge=1, le=65535)] = 1
    initiator: Annotated[int | None, BeforeValidator(_initiator)] = Field(
        default=None, description="the name of the machine's adapter in reservations: naa. and 16 digits"
    )
    workers: list[Annotated[int, Field(ge=0, lt=MAX_WORKERS)]] | None = None
    spare: bool = Field(default=False, description="that it has no logical unit is no mistake")


class DaemonConfig(_Model):
    """Everything. `map` leads from a place to a unit's name: PORT:TARGET:LUN on a vhost-user port (PORT may be left out
    where there is one), IQN:LUN in an iSCSI target (IQN may be left out where there is one)."""

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
    stall_after: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = Field(
        default=20.0, description="seconds after which a request counts as stalled and a dump is written; 0: never"
    )
    stall_dumps: Annotated[int, Field(ge=1, le=1000)] = Field(default=16, description="dumps that are kept")
    lu: dict[str, LuConfig] = {}
    port: dict[str, PortConfig] = {}
    map: dict[str, str] = {}
    iscsi: IscsiConfig | None = None

    def places(self) -> tuple[Place, ...]:
        """Where `map` puts units on ports; only of a config that `build` returned."""
        return tuple(_place(self, text, name) for text, name in self.map.items() if not ISCSI_PLACE.fullmatch(text))

    def iscsi_luns(self) -> dict[str, dict[int, str]]:
        """By the normalised name of each iSCSI target: its LUNs, from its table and from `map`. As above."""
        targets = self.iscsi.target if self.iscsi is not None else []
        found = {
            names.normalised(target.name): {int(lun): unit for lun, unit in target.luns.items() if is_lun(lun)}
            for target in targets
        }
        for text, unit in self.map.items():
            if ISCSI_PLACE.fullmatch(text):
                target, lun = _iscsi_place(self, text)
                found[target][lun] = unit
        return found

    def mapped(self) -> set[str]:
        """Every unit that stands somewhere."""
        found = set(self.map.values())
        for target in self.iscsi.target if self.iscsi is not None else []:
            found.update(target.luns.values(), *((entry.luns or {}).values() for entry in target.acl))
        return found

    def spelled_out(self) -> DaemonConfig:
        """The same with the port or target in every place of `map`: one more of them makes no place ambiguous. As
        above."""
        found: dict[str, str] = {}
        for text, unit in self.map.items():
            if ISCSI_PLACE.fullmatch(text):
                target, lun = _iscsi_place(self, text)
                found[f"{target}:{lun}"] = unit
            else:
                place = _place(self, text, unit)
                found[f"{place.port}:{place.target}:{place.lun}"] = unit
        return self.model_copy(update={"map": found})


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a logical unit is reached."""

    port: str
    target: int
    lun: int
    lu: str


def store_spec(lu: LuConfig) -> StoreSpec:
    """The store of a unit, read-only down to its file where the unit is. Raises StoreConfigError; opens nothing."""
    spec = parse_store(lu.url)[0] if lu.url is not None else store_from_table(lu.store or {})
    return _read_only(spec) if lu.readonly or lu.type == "cdrom" else spec


def _read_only(spec: StoreSpec) -> StoreSpec:
    if spec.lower is not None:
        return dataclasses.replace(spec, lower=_read_only(spec.lower))
    if spec.kind == "file":
        return dataclasses.replace(spec, groups=({**spec.groups[0], "readonly": "on"},))
    return spec


Locate = Callable[[tuple[str | int, ...], str], ConfigError]
"""Makes the error for a path into the configuration, with the place where it was written."""


def at_path(path: tuple[str | int, ...], message: str) -> ConfigError:
    """For what came from the command line: the path is the place."""
    return ConfigError(f"{' '.join(words_of(path))}: {message}" if path else message)


def words_of(path: Iterable[str | int]) -> list[str]:
    """The words of a path: a key may be anything, and an error is one line."""
    return [str(part) if str(part).isprintable() else repr(part) for part in path]


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
    shape: Any = DaemonConfig
    for part in path:
        shape = _below(shape, part)
    return list(shape.model_fields) if isinstance(shape, type) and issubclass(shape, BaseModel) else []


def _below(shape: Any, part: str | int) -> Any:
    """The annotation of what stands at `part` in a value of the annotation `shape`."""
    if isinstance(shape, type) and issubclass(shape, BaseModel):
        field = shape.model_fields.get(str(part))
        shape = None if field is None else field.annotation
    elif get_origin(shape) in (dict, list):
        shape = get_args(shape)[-1]
    # What may be left out is the same thing when it is there.
    if get_origin(shape) is not None and type(None) in get_args(shape):
        shape = next(each for each in get_args(shape) if each is not type(None))
    return shape


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
    for key in ("control", "state_dir"):
        if _has_control(getattr(config, key)):
            yield (key,), "a control character in its path"
    yield from _bad_units(config)
    yield from _bad_ports(config)
    yield from _bad_map(config)
    if config.iscsi is not None:
        yield from problems(config.iscsi, config.lu, config.iscsi_luns())
    mapped = config.mapped()
    for name, lu in config.lu.items():
        if name not in mapped and not lu.spare:
            yield ("lu", name), f"logical unit {name} is mapped nowhere (spare = true if it shall not be, yet)"


def _has_control(text: str | None) -> bool:
    # A NUL would end a path where the kernel takes it, and a line is what READY and an error message are.
    return any(char < " " for char in text or "")


def _bad_units(config: DaemonConfig) -> Iterable[Contradiction]:
    owners: dict[UUID, str] = {}
    named: dict[str, str] = {}
    for name, lu in config.lu.items():
        path = ("lu", name)
        if not NAME.fullmatch(name):
            yield path, f"{name!r}: a name has letters, digits, '.', '_' and '-', at most 64"
        if (lu.url is None) == (lu.store is None) and not (lu.empty and lu.has_drive):
            yield path, "exactly one of url and store says where its bytes are"
        if lu.url == "":
            yield path, "its URL is empty"
        try:
            if not lu.empty:
                store_spec(lu)
        except StoreConfigError as error:
            yield (*path, "store" if lu.url is None else "url"), str(error)
        if lu.type == "cdrom" and "block_size" in lu.model_fields_set and lu.block_size != CD_BLOCK:
            yield (*path, "block_size"), f"{lu.block_size}: the blocks of a cdrom have {CD_BLOCK} bytes"
        size = lu.block_bytes
        if not 512 <= size <= 65536 or size & (size - 1):
            yield (*path, "block_size"), f"{size} is not a power of two from 512 to 65536"
        physical = lu.physical_block_size
        if physical is not None and (physical < size or physical & (physical - 1) or physical > size << 15):
            yield (*path, "physical_block_size"), f"{physical} is not a power of two from {size} to {size << 15}"
        yield from _bad_pages(path, lu)
        for key in ("naa", "eui64"):
            said = getattr(lu, key)
            if said is not None and named.setdefault(said, name) != name:
                yield (*path, key), f"logical unit {named[said]} has the same name"
        if lu.uuid is not None and owners.setdefault(lu.uuid, name) != name:
            yield (*path, "uuid"), f"logical unit {owners[lu.uuid]} has the same UUID"


def _bad_pages(path: tuple[str | int, ...], lu: LuConfig) -> Iterable[Contradiction]:
    kind = DeviceType.CD_DVD if lu.type == "cdrom" else DeviceType.DISK
    try:
        if why := problem(kind, [unit_pages.mode_page(text) for text in lu.mode_pages]):
            yield (*path, "mode_pages"), why
    except ValueError as error:
        yield (*path, "mode_pages"), str(error)
    try:
        if why := unit_pages.vpd_problem([unit_pages.vpd_page(text) for text in lu.vpd_pages]):
            yield (*path, "vpd_pages"), why
    except ValueError as error:
        yield (*path, "vpd_pages"), str(error)


def _bad_ports(config: DaemonConfig) -> Iterable[Contradiction]:
    sockets: dict[str | int, str] = {}
    for name, port in config.port.items():
        path = ("port", name)
        if not NAME.fullmatch(name):
            yield path, f"{name!r}: a name has letters, digits, '.', '_' and '-', at most 64"
        if ISCSI_NAME.match(name):
            yield path, f"{name!r}: what begins so is the name of an iSCSI target, not of a port"
        if port.socket is not None and port.fd is not None:
            yield path, "socket and fd exclude each other"
        if port.socket == "":
            yield (*path, "socket"), "its path is empty"
        if config.control and port.socket and os.path.abspath(config.control) == os.path.abspath(port.socket):
            yield (*path, "socket"), f"{port.socket} is the management socket's path (control) too"
        if _has_control(port.socket):
            yield (*path, "socket"), "a control character in its path"
        where = port.socket if port.socket is not None else port.fd
        if where is not None and sockets.setdefault(where, name) != name:
            yield path, f"port {sockets[where]} has the same socket"
        if port.workers == []:
            yield (*path, "workers"), "names no worker"
        for worker in port.workers or ():
            if worker >= config.workers:
                yield (*path, "workers"), f"there is no worker {worker}: workers = {config.workers}"


def _bad_map(config: DaemonConfig) -> Iterable[Contradiction]:
    seen: dict[tuple[str, ...], str] = {}
    for text, name in config.map.items():
        path = ("map", text)
        try:
            key, said = _where(config, text, name)
        except ConfigError as error:
            yield path, str(error)
            continue
        if name not in config.lu:
            yield path, f"there is no logical unit {name!r}{nearest(name, config.lu)}"
        if key in seen:
            yield path, f"{said} is given twice ({seen[key]} and {name})"
        seen[key] = name
    for port, table in config.port.items():
        if not table.spare and not any(key[0] == "port" and key[1] == port for key in seen):
            yield ("port", port), f"port {port} has no logical unit (spare = true if it shall have none, yet)"


def _where(config: DaemonConfig, text: str, unit: str) -> tuple[tuple[str, ...], str]:
    """A place as a key that is the same however it was spelled, and in words."""
    if not ISCSI_PLACE.fullmatch(text):
        place = _place(config, text, unit)
        key = ("port", place.port, str(place.target), str(place.lun))
        return key, f"LUN {place.target}:{place.lun} of port {place.port}"
    target, lun = _iscsi_place(config, text)
    for each in config.iscsi.target if config.iscsi is not None else []:
        if names.normalised(each.name) == target and str(lun) in each.luns:
            raise ConfigError(f"LUN {lun} of target {target} is given twice, here and in the target's own table")
    return ("target", target, str(lun)), f"LUN {lun} of target {target}"


def _iscsi_place(config: DaemonConfig, text: str) -> tuple[str, int]:
    """The normalised name of the target, and the LUN."""
    match = ISCSI_PLACE.fullmatch(text)
    assert match is not None
    known = [names.normalised(target.name) for target in (config.iscsi.target if config.iscsi is not None else ())]
    if int(match["lun"]) > MAX_LUN:
        raise ConfigError(f"LUN {match['lun']}: LUNs go to {MAX_LUN}")
    if match["target"] is None:
        if len(known) != 1:
            raise ConfigError(
                f"{text!r} names no iSCSI target, and there {'are several' if known else 'is none'}"
                + ("" if known else "; on a vhost-user port it is TARGET:LUN, such as 0:0")
            )
        return known[0], int(match["lun"])
    target = names.normalised(match["target"])
    if target not in known:
        raise ConfigError(f"there is no iSCSI target {match['target']!r}{nearest(target, known)}")
    return target, int(match["lun"])


def _place(config: DaemonConfig, text: str, name: str) -> Place:
    match = PLACE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is not PORT:TARGET:LUN or TARGET:LUN, nor IQN:LUN or LUN of an iSCSI target")
    target, lun, port = int(match["target"]), int(match["lun"]), match["port"]
    if target > MAX_TARGET or lun > MAX_LUN:
        raise ConfigError(f"{target}:{lun}: targets go to {MAX_TARGET} and LUNs to {MAX_LUN}")
    if port is None:
        if len(config.port) != 1:
            raise ConfigError(
                f"{text!r} names no port, and there "
                + (
                    "are several"
                    if config.port
                    else "is none: give --socket-path (over --iscsi a LUN is a number alone)"
                )
            )
        port = next(iter(config.port))
    if port not in config.port:
        raise ConfigError(f"there is no port {port!r}{nearest(port, config.port)}")
    return Place(port, target, lun, name)
