# SPDX-License-Identifier: Apache-2.0
"""The network entity: its targets, its portals, who is logged in, and who may log in.

One of it stands behind all portals. It decides and keeps; connections are made in `server.py`, sessions in
`session_keeper.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import names
from vhost_scsi.iscsi.auth import NO_AUTHENTICATION, AuthPolicy, OpenChallenges
from vhost_scsi.iscsi.codes import LoginStatus
from vhost_scsi.iscsi.keys import Offer
from vhost_scsi.iscsi.login import Admitted, Asks, LoginRefused
from vhost_scsi.iscsi.portals import AddressBook, Portal, plain_address
from vhost_scsi.iscsi.refusals import RefusedLog
from vhost_scsi.iscsi.sessions import Session, Sessions
from vhost_scsi.iscsi.targets import AclEntry, IpAddress, IscsiTarget, Limits
from vhost_scsi.iscsi.text import Pair

_REMEMBERED: Final = 64  # names of targets that were removed


@dataclass(frozen=True, slots=True)
class DiscoveryPolicy:
    """Who may ask which targets there are. Each is told of those it may log in to only."""

    enabled: bool = True
    auth: AuthPolicy = NO_AUTHENTICATION
    offer: Offer = field(default_factory=Offer)


class Node:
    """All calls come from the loop's thread."""

    def __init__(
        self,
        limits: Limits | None = None,
        discovery: DiscoveryPolicy | None = None,
        refused: RefusedLog | None = None,
        book: AddressBook | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.discovery = discovery or DiscoveryPolicy()
        self.refused: Final = refused or RefusedLog()
        self.book: Final = book or AddressBook()
        self.sessions: Final = Sessions()
        self.challenges: Final = OpenChallenges()
        self.targets: Final[dict[str, IscsiTarget]] = {}
        self.portals: list[Portal] = []
        """those that listen, with the ports that they have"""
        self.closing = False
        self._removed: dict[str, None] = {}

    # ---- targets ---------------------------------------------------------------------------------------------------

    def add_target(self, target: IscsiTarget) -> None:
        if target.name in self.targets:
            raise ConfigError(f"target {target.name} is there already")
        if len(self.targets) >= self.limits.targets:
            raise ConfigError(f"target {target.name}: {self.limits.targets} targets are the limit")
        self.targets[target.name] = target
        self._removed.pop(target.name, None)

    def replace_target(self, target: IscsiTarget) -> None:
        """Another definition for a name: it holds for logins from now on."""
        if target.name not in self.targets:
            raise ConfigError(f"there is no target {target.name}")
        self.targets[target.name] = target

    def remove_target(self, name: str) -> IscsiTarget:
        """No login finds it any more; whoever calls ends its sessions."""
        name = names.normalised(name)
        if name not in self.targets:
            raise ConfigError(f"there is no target {name}")
        self._removed[name] = None
        while len(self._removed) > _REMEMBERED:
            del self._removed[next(iter(self._removed))]
        return self.targets.pop(name)

    def visible_to(self, initiator: str, address: IpAddress) -> list[IscsiTarget]:
        """Which targets an initiator is told of; its name is normalised."""
        return [
            target
            for name, target in sorted(self.targets.items())
            if target.enabled and target.entry_for(initiator, address) is not None
        ]

    # ---- admission -------------------------------------------------------------------------------------------------

    def admit(self, asks: Asks, address: IpAddress, tag: int) -> Admitted:
        """Raises LoginRefused. `address` is the initiator's, `tag` that of the portal group it came to."""
        if self.closing:
            raise LoginRefused(LoginStatus.SERVICE_UNAVAILABLE, "the target is shutting down")
        try:
            initiator = names.initiator_name(asks.initiator)
        except ValueError as error:
            raise LoginRefused(LoginStatus.INITIATOR_ERROR, str(error)) from None
        if asks.target is None:
            if not self.discovery.enabled:
                raise LoginRefused(LoginStatus.SESSION_TYPE_NOT_SUPPORTED, "discovery is switched off")
            target, auth, offer = None, self.discovery.auth, self.discovery.offer
            luns: Mapping[int, str] = {}
        else:
            target, entry = self._target(asks.target, initiator, address, tag)
            auth, offer, luns = target.auth_for(entry), target.offer, target.luns_for(entry)
        session = self._session(asks, initiator, address, target, tag) if asks.tsih else None
        return Admitted(
            initiator=initiator,
            target=target,
            portal_group_tag=tag,
            luns=luns,
            auth=auth,
            offer=replace(offer, max_connections=min(offer.max_connections, self.limits.connections_per_session)),
            queue_depth=self.limits.commands_per_session,
            session_values=None if session is None else session.negotiation.values,
            window=None if session is None else session.handle.window,
        )

    def _target(self, wanted: str, initiator: str, address: IpAddress, tag: int) -> tuple[IscsiTarget, AclEntry]:
        name = names.normalised(wanted)
        target = self.targets.get(name)
        if target is None and name in self._removed:
            raise LoginRefused(LoginStatus.TARGET_REMOVED, "the target was removed")
        if target is None:
            raise LoginRefused(LoginStatus.NOT_FOUND, "there is no such target")
        if tag not in target.portal_groups:
            raise LoginRefused(LoginStatus.NOT_FOUND, f"the target is not reached through portal group {tag}")
        entry = target.entry_for(initiator, address)
        if entry is None:
            raise LoginRefused(LoginStatus.AUTHORIZATION_FAILURE, "no entry of the access list lets this initiator in")
        if target.redirect is not None:
            permanent = target.redirect.permanent
            status = LoginStatus.MOVED_PERMANENTLY if permanent else LoginStatus.MOVED_TEMPORARILY
            told = Pair("TargetAddress", target.redirect.address)
            raise LoginRefused(status, f"the target is at {target.redirect.address}", (told,))
        if not target.enabled:
            raise LoginRefused(LoginStatus.SERVICE_UNAVAILABLE, "the target is switched off")
        return target, entry

    def _session(self, asks: Asks, initiator: str, address: IpAddress, target: IscsiTarget | None, tag: int) -> Session:
        """The session that a connection wants to join, or to take one of its connections' place."""
        session = self.sessions.with_tsih(asks.tsih)
        name = "" if target is None else target.name
        if session is None or session.key[:3] != (initiator, asks.isid, name):
            raise LoginRefused(LoginStatus.SESSION_DOES_NOT_EXIST, f"this initiator has no session {asks.tsih}")
        if session.portal_group_tag != tag:
            raise LoginRefused(
                LoginStatus.CANNOT_INCLUDE_IN_SESSION,
                f"session {asks.tsih} is in portal group {session.portal_group_tag}, this is {tag}",
            )
        of = session.target
        if of is not None and of.entry_for(initiator, address) is not of.entry_for(
            initiator, plain_address(session.address)
        ):
            # It would have the LUNs of an entry that is not its own.
            raise LoginRefused(
                LoginStatus.AUTHORIZATION_FAILURE, f"session {asks.tsih} is of another entry of the access list"
            )
        self.check_room(session, asks.cid)
        return session

    @staticmethod
    def check_room(session: Session, cid: int) -> None:
        """Raises LoginRefused where the session has all the connections it negotiated, and `cid` is none of them."""
        if cid not in session.connections and len(session.connections) >= session.max_connections:
            raise LoginRefused(
                LoginStatus.TOO_MANY_CONNECTIONS, f"the session negotiated {session.max_connections} connections"
            )


class Door:
    """How one connection stands before the node: the `Admission` of its login."""

    def __init__(self, node: Node, address: IpAddress, tag: int) -> None:
        self._node = node
        self._address = address
        self._tag = tag

    def admit(self, asks: Asks) -> Admitted:
        return self._node.admit(asks, self._address, self._tag)
