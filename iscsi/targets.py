# SPDX-License-Identifier: Apache-2.0
"""What is served: targets with their portal groups, LUN maps, access lists and limits.

Definitions only, checked when they are made. Who is logged in stands in `sessions.py`, who may log in in `node.py`.
Logical units are named; what a name stands for is known where the target is wired to the data plane.
"""

from __future__ import annotations

import fnmatch
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import names
from vhost_scsi.iscsi.auth import NO_AUTHENTICATION, AuthPolicy
from vhost_scsi.iscsi.keys import Offer
from vhost_scsi.iscsi.text import MAX_VALUE

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_LUN: Final = 16383  # SAM-5 4.7.7: what the flat addressing method reaches
MAX_TAG: Final = 65535
MAX_LOGIN_TIME: Final = 3600.0  # seconds
MAX_WINDOW: Final = 4096
"""commands of one session that the data plane keeps count of"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one node; each may be raised. Times in seconds."""

    sessions: int = 32
    connections_per_session: int = 8
    connections: int = 256
    targets: int = 64
    logins_in_progress: int = 64
    login_timeout: float = 15.0
    commands_per_session: int = 128  # the command window

    def __post_init__(self) -> None:
        for name in ("sessions", "connections_per_session", "connections", "targets", "logins_in_progress"):
            if not 1 <= getattr(self, name) <= 65535:
                raise ConfigError(f"limit {name}: {getattr(self, name)} is not from 1 to 65535")
        if not 1 <= self.commands_per_session <= MAX_WINDOW:
            raise ConfigError(f"limit commands_per_session: {self.commands_per_session} is not from 1 to {MAX_WINDOW}")
        # Not the other way round: it must be false of what is no number.
        if not 0 < self.login_timeout <= MAX_LOGIN_TIME:
            raise ConfigError(
                f"limit login_timeout: {self.login_timeout:g} is not more than 0 and at most 3600 seconds"
            )


@dataclass(frozen=True, slots=True)
class Redirect:
    """Where a target has gone: `address` is HOST[:PORT][,TAG], an IPv6 host in brackets."""

    address: str
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class AclEntry:
    """Whom it is for: any of the `initiators` (names, or patterns with `*` and `?`) from any of the `networks`; nothing
    there means anybody, or from anywhere. What they get: `luns` and `auth` instead of the target's own, if given."""

    initiators: tuple[str, ...] = ()
    networks: tuple[IpNetwork, ...] = ()
    luns: Mapping[int, str] | None = None
    auth: AuthPolicy | None = None

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "initiators", tuple(names.initiator_pattern(each) for each in self.initiators))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self.luns is not None:
            check_luns(self.luns)

    def matches(self, initiator: str, address: IpAddress) -> bool:
        """`initiator` is normalised."""
        named = not self.initiators or any(fnmatch.fnmatchcase(initiator, each) for each in self.initiators)
        return named and (not self.networks or any(address in network for network in self.networks))


ANYBODY: Final = AclEntry()


def check_luns(luns: Mapping[int, str]) -> None:
    for lun in luns:
        if not 0 <= lun <= MAX_LUN:
            raise ConfigError(f"LUN {lun}: LUNs go from 0 to {MAX_LUN}")


@dataclass(frozen=True, slots=True)
class IscsiTarget:
    """`luns` leads from LUN to the name of a logical unit. An empty `acl` lets everybody in. Raises ConfigError."""

    name: str
    alias: str = ""
    luns: Mapping[int, str] = field(default_factory=dict)
    portal_groups: frozenset[int] = frozenset((1,))
    acl: tuple[AclEntry, ...] = ()
    auth: AuthPolicy = NO_AUTHENTICATION
    offer: Offer = field(default_factory=Offer)
    redirect: Redirect | None = None
    enabled: bool = True

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "name", names.target_name(self.name))
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if len(self.alias.encode()) > MAX_VALUE or not self.alias.isprintable():
            raise ConfigError(f"target {self.name}: an alias is printable and at most {MAX_VALUE} bytes long")
        if not self.portal_groups or not all(0 <= tag <= MAX_TAG for tag in self.portal_groups):
            raise ConfigError(f"target {self.name}: portal group tags go from 0 to {MAX_TAG}, and one is needed")
        check_luns(self.luns)

    def entry_for(self, initiator: str, address: IpAddress) -> AclEntry | None:
        """The first entry that matches, None if the initiator has no business here. `initiator` is normalised."""
        if not self.acl:
            return ANYBODY
        return next((entry for entry in self.acl if entry.matches(initiator, address)), None)

    def luns_for(self, entry: AclEntry) -> Mapping[int, str]:
        return self.luns if entry.luns is None else entry.luns

    def auth_for(self, entry: AclEntry) -> AuthPolicy:
        return self.auth if entry.auth is None else entry.auth
