# SPDX-License-Identifier: Apache-2.0
"""The `iscsi` part of the configuration: portals, targets, who may come in, and how it is made into what the transport
understands.

Nothing listens here. Secrets are read when the configuration is checked, so that what is wrong with one is told with
its place, and once more when the node is made; they are kept in neither table nor log.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import names
from vhost_scsi.iscsi.auth import AuthPolicy, ChapUser
from vhost_scsi.iscsi.chap import DEFAULT_ALGORITHMS, algorithms
from vhost_scsi.iscsi.keys import MAX_LENGTH, Offer
from vhost_scsi.iscsi.node import DiscoveryPolicy
from vhost_scsi.iscsi.ping import PingPolicy
from vhost_scsi.iscsi.portals import Portal, parse_portal
from vhost_scsi.iscsi.secret import MIN_BYTES, Secret
from vhost_scsi.iscsi.targets import MAX_LUN, MAX_TAG, AclEntry, IscsiTarget, Limits, Redirect

T = TypeVar("T")
Path = tuple[str | int, ...]
Problem = tuple[Path, str]
_Digests = list[Literal["CRC32C", "None"]]
STRICT: Final = ConfigDict(strict=True, frozen=True, extra="forbid")
"""what every table of the configuration has in common: nothing unknown, nothing converted, nothing changed later"""


class Table(BaseModel):
    model_config = STRICT


class ChapConfig(Table):
    """A CHAP name, and where its secret is: never the secret itself."""

    name: str
    secret_file: str | None = None
    secret_env: str | None = None


class _AuthTable(Table):
    """Who must prove what. Without `chap` nobody has to."""

    chap: list[ChapConfig] = []
    mutual_chap: ChapConfig | None = None
    require_mutual_chap: bool = False
    chap_algorithms: list[str] | None = None


class KeysConfig(Table):
    """What the target agrees to in login, where the default is not wanted."""

    header_digest: _Digests | None = None
    data_digest: _Digests | None = None
    initial_r2t: bool | None = None
    immediate_data: bool | None = None
    max_connections: Annotated[int, Field(ge=1, le=65535)] | None = None
    max_outstanding_r2t: Annotated[int, Field(ge=1, le=65535)] | None = None
    max_recv_data_segment_length: Annotated[int, Field(ge=512, le=MAX_LENGTH)] | None = None
    max_burst_length: Annotated[int, Field(ge=512, le=MAX_LENGTH)] | None = None
    first_burst_length: Annotated[int, Field(ge=512, le=MAX_LENGTH)] | None = None


class AclConfig(_AuthTable):
    """For whom it is, and what they get instead of the target's own."""

    initiators: list[str] = []
    networks: list[str] = []
    luns: dict[str, str] | None = None


class RedirectConfig(Table):
    address: str
    permanent: bool = False


class TargetConfig(_AuthTable):
    name: str
    alias: str = ""
    luns: dict[str, str] = {}
    portal_groups: list[Annotated[int, Field(ge=0, le=MAX_TAG)]] = [1]
    acl: list[AclConfig] = []
    redirect: RedirectConfig | None = None
    enabled: bool = True
    keys: KeysConfig = KeysConfig()


class PortalConfig(Table):
    """`listen` is HOST[:PORT][,TAG]; `announce` what discovery tells instead, behind a network that translates.
    `port_group`: the target port group (asymmetric access) of the portal group's ports; its first portal's counts."""

    listen: str
    group: Annotated[int, Field(ge=0, le=MAX_TAG)] = 1
    port_group: Annotated[int, Field(ge=1, le=65535)] = 1
    announce: list[str] = []


class DiscoveryConfig(_AuthTable):
    enabled: bool = True


class LimitsConfig(Table):
    """Those of `Limits`; unset: its default."""

    sessions: int | None = None
    connections_per_session: int | None = None
    connections: int | None = None
    targets: int | None = None
    logins_in_progress: int | None = None
    login_timeout: float | None = None
    commands_per_session: int | None = None


class PingConfig(Table):
    """Seconds; an idle of 0 never asks."""

    idle: float = 30.0
    timeout: float = 15.0


class IscsiConfig(Table):
    """Everything. `chap_algorithms` holds wherever a table has none of its own; secrets of less than 96 bits are
    refused unless `allow_short_secrets`."""

    portal: list[PortalConfig] = []
    target: list[TargetConfig] = []
    discovery: DiscoveryConfig = DiscoveryConfig()
    limits: LimitsConfig = LimitsConfig()
    ping: PingConfig = PingConfig()
    chap_algorithms: list[str] | None = None
    allow_short_secrets: bool = False


@dataclass(frozen=True, slots=True)
class Made:
    """All of the configuration as the transport understands it, with the secrets read."""

    limits: Limits
    discovery: DiscoveryPolicy
    ping: PingPolicy
    portals: tuple[Portal, ...]
    targets: Mapping[str, IscsiTarget]

    @property
    def warnings(self) -> list[str]:
        """What is legal and not wise, in plain words; each once."""
        policies = [self.discovery.auth]
        for target in self.targets.values():
            policies += [target.auth, *(entry.auth for entry in target.acl if entry.auth is not None)]
        return list(dict.fromkeys(line for policy in policies for line in policy.warnings))


@dataclass(frozen=True, slots=True)
class Known:
    """What was made before and is not to be made anew: its secrets may be gone from where they were."""

    targets: Mapping[str, IscsiTarget] = field(default_factory=dict)
    discovery: DiscoveryPolicy | None = None


# ---- made into the transport's values ------------------------------------------------------------------------------


def make_all(wanted: IscsiConfig, luns: Mapping[str, Mapping[int, str]], known: Known | None = None) -> Made:
    """`luns`: of each target, by its normalised name. Raises ConfigError: a secret may have gone since the check."""
    by_name = {names.normalised(each.name): each for each in wanted.target}
    known = known or Known()
    targets = [known.targets.get(name) or make_target(each, luns[name], wanted) for name, each in by_name.items()]
    return Made(
        make_limits(wanted.limits),
        known.discovery or make_discovery(wanted),
        make_ping(wanted.ping),
        tuple(make_portal(portal) for portal in wanted.portal),
        {target.name: target for target in targets},
    )


def make_portal(wanted: PortalConfig) -> Portal:
    portal = parse_portal(wanted.listen, wanted.group)
    return Portal(portal.host, portal.port, portal.tag, tuple(wanted.announce), wanted.port_group)


def make_limits(wanted: LimitsConfig) -> Limits:
    return Limits(**wanted.model_dump(exclude_none=True))


def make_ping(wanted: PingConfig) -> PingPolicy:
    return PingPolicy(wanted.idle, wanted.timeout)


def make_secret(wanted: ChapConfig, node: IscsiConfig) -> Secret:
    secret = _read_secret(wanted)
    # RFC 7143, 9.2.1: where nothing protects the connection, a shorter one is found by trying.
    if secret.is_short and not node.allow_short_secrets:
        raise ConfigError(
            f"{secret.source}: the secret has fewer than {MIN_BYTES * 8} bits: {MIN_BYTES} characters at least, "
            "or allow_short_secrets = true in [iscsi]"
        )
    return secret


def _read_secret(wanted: ChapConfig) -> Secret:
    if (wanted.secret_file is None) == (wanted.secret_env is None):
        raise ConfigError(f"CHAP name {wanted.name}: exactly one of secret_file and secret_env says where it is kept")
    if wanted.secret_file is not None:
        return Secret.from_file(wanted.secret_file)
    assert wanted.secret_env is not None
    return Secret.from_environment(wanted.secret_env)


def make_auth(wanted: _AuthTable, node: IscsiConfig) -> AuthPolicy:
    mutual = wanted.mutual_chap
    chosen = wanted.chap_algorithms if wanted.chap_algorithms is not None else node.chap_algorithms
    return AuthPolicy(
        tuple(ChapUser(user.name, make_secret(user, node)) for user in wanted.chap),
        None if mutual is None else ChapUser(mutual.name, make_secret(mutual, node)),
        DEFAULT_ALGORITHMS if chosen is None else algorithms(chosen),
        wanted.require_mutual_chap,
    )


def make_acl(wanted: AclConfig, node: IscsiConfig) -> AclEntry:
    own_auth = wanted.model_fields_set & set(_AuthTable.model_fields)
    return AclEntry(
        tuple(wanted.initiators),
        tuple(_network(text) for text in wanted.networks),
        None if wanted.luns is None else {int(lun): unit for lun, unit in wanted.luns.items()},
        make_auth(wanted, node) if own_auth else None,
    )


def make_target(wanted: TargetConfig, luns: Mapping[int, str], node: IscsiConfig) -> IscsiTarget:
    return IscsiTarget(
        wanted.name,
        wanted.alias,
        dict(luns),
        frozenset(wanted.portal_groups),
        tuple(make_acl(entry, node) for entry in wanted.acl),
        make_auth(wanted, node),
        make_offer(wanted.keys, make_limits(node.limits)),
        None if wanted.redirect is None else Redirect(wanted.redirect.address, wanted.redirect.permanent),
        wanted.enabled,
    )


def make_offer(wanted: KeysConfig, limits: Limits) -> Offer:
    # As many connections as the node has for a session, where a target does not say less.
    given: dict[str, Any] = {"max_connections": limits.connections_per_session, **wanted.model_dump(exclude_none=True)}
    for name, value in given.items():
        given[name] = tuple(value) if isinstance(value, list) else value
    return Offer(**given)


def make_discovery(node: IscsiConfig) -> DiscoveryPolicy:
    return DiscoveryPolicy(node.discovery.enabled, make_auth(node.discovery, node))


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(f"{text!r} is not an address or a network such as 192.0.2.0/24") from None


# ---- what is wrong -------------------------------------------------------------------------------------------------


def problems(iscsi: IscsiConfig, units: Collection[str], luns: Mapping[str, Mapping[int, str]]) -> Iterable[Problem]:
    """First things first; paths begin at the top of the configuration. `luns`: of each target, the map included."""
    path: Path = ("iscsi",)
    if not iscsi.portal:
        yield path, "there is no portal to listen on: give --iscsi or an [[iscsi.portal]]"
    if not iscsi.target:
        yield path, "there is no target: give --target or an [[iscsi.target]]"
    if iscsi.chap_algorithms is not None:
        yield from _try((*path, "chap_algorithms"), algorithms, iscsi.chap_algorithms)
    yield from _try((*path, "limits"), make_limits, iscsi.limits)
    yield from _try((*path, "ping"), make_ping, iscsi.ping)
    yield from _bad_auth((*path, "discovery"), iscsi.discovery, iscsi)
    yield from _bad_portals(iscsi)
    most = make_limits(iscsi.limits).targets
    if len(iscsi.target) > most:
        yield (*path, "target", most), f"there are {len(iscsi.target)} targets, and limits.targets is {most}"
    seen: set[str] = set()
    for index, target in enumerate(iscsi.target):
        yield from _bad_target((*path, "target", index), target, iscsi, units, luns)
        name = names.normalised(target.name)
        if name in seen:
            yield (*path, "target", index, "name"), f"target {name} is given twice"
        seen.add(name)


def _bad_portals(iscsi: IscsiConfig) -> Iterable[Problem]:
    for index, wanted in enumerate(iscsi.portal):
        yield from _try(("iscsi", "portal", index, "listen"), make_portal, wanted)
        if "group" in wanted.model_fields_set and "," in wanted.listen:
            yield ("iscsi", "portal", index), "its portal group is given twice, in listen and as group"


def _bad_target(
    path: Path, target: TargetConfig, node: IscsiConfig, units: Collection[str], luns: Mapping[str, Mapping[int, str]]
) -> Iterable[Problem]:
    yield from _try((*path, "name"), lambda name: IscsiTarget(name), target.name)
    yield from _bad_luns((*path, "luns"), target.luns, units)
    yield from _bad_auth(path, target, node)
    for index, entry in enumerate(target.acl):
        here = (*path, "acl", index)
        for place, text in enumerate(entry.initiators):
            yield from _try((*here, "initiators", place), lambda name: AclEntry((name,)), text)
        for place, text in enumerate(entry.networks):
            yield from _try((*here, "networks", place), _network, text)
        yield from _bad_luns((*here, "luns"), entry.luns or {}, units)
        yield from _bad_auth(here, entry, node)
    groups = {make_portal(each).tag for each in node.portal}
    if not groups & set(target.portal_groups):
        yield (*path, "portal_groups"), f"target {target.name}: no portal is in any of its portal groups"
    yield from _try(path, lambda wanted: make_target(wanted, {}, node), target)
    has_luns = luns.get(names.normalised(target.name)) or any(entry.luns for entry in target.acl)
    if not has_luns and target.redirect is None:
        yield path, f"target {target.name} has no logical unit"


def is_lun(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_LUN


def _bad_luns(path: Path, luns: Mapping[str, str], units: Collection[str]) -> Iterable[Problem]:
    for text, unit in luns.items():
        if not is_lun(text):
            yield (*path, text), f"{text!r} is not a LUN: they go from 0 to {MAX_LUN}"
        if unit not in units:
            yield (*path, text), f"there is no logical unit {unit!r}"
    if len({text.lstrip("0") for text in luns}) != len(luns):  # 0 and 00
        yield path, "a LUN is given twice"


def _bad_auth(path: Path, wanted: _AuthTable, node: IscsiConfig) -> Iterable[Problem]:
    for index, user in enumerate(wanted.chap):
        yield from _try((*path, "chap", index, *_source(user)), lambda each: make_secret(each, node), user)
    if wanted.mutual_chap is not None:
        where = (*path, "mutual_chap", *_source(wanted.mutual_chap))
        yield from _try(where, lambda each: make_secret(each, node), wanted.mutual_chap)
    if wanted.chap_algorithms is not None:
        yield from _try((*path, "chap_algorithms"), algorithms, wanted.chap_algorithms)
    yield from _try(path, lambda table: make_auth(table, node), wanted)


def _source(user: ChapConfig) -> Path:
    given = [name for name in ("secret_file", "secret_env") if getattr(user, name) is not None]
    return (given[0],) if len(given) == 1 else ()


def _try(path: Path, make: Callable[[T], object], wanted: T) -> Iterable[Problem]:
    try:
        make(wanted)
    except ConfigError as error:
        yield path, str(error)
