# SPDX-License-Identifier: Apache-2.0
"""Network portals: where the node listens, and under which addresses initiators find it.

A wildcard portal has the addresses that the machine has, and those come and go: `AddressBook` reads them with pyroute2
and follows netlink. Without netlink, as in some sandboxes, the address that an initiator came in by is all it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi.codes import ISCSI_PORT
from vhost_scsi.iscsi.targets import MAX_TAG, IpAddress

LOG: Final = logging.getLogger("vhost_scsi.control")
_SCOPE_UNIVERSE: Final = 0  # rtnetlink(7): anything else is of this link or this host only
_UNUSABLE: Final = 0x08 | 0x40 | 0x20  # IFA_F_DADFAILED, TENTATIVE, DEPRECATED
_RETRY: Final = 5.0  # seconds


def bracketed(host: str) -> str:
    """RFC 7143, 13.8: an IPv6 address stands in brackets."""
    return f"[{host}]" if ":" in host else host


def plain_address(host: str) -> IpAddress:
    """What getpeername gives, as an address: without a zone, and IPv4 where it only dresses as IPv6."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@dataclass(frozen=True, slots=True)
class Portal:
    """`host` is an address; `0.0.0.0` is every IPv4 address, `::` every IPv6 address. Port 0 takes any free port.

    `announced` are TargetAddresses (HOST[:PORT]) to tell instead of the portal's own, where initiators come through a
    network that translates addresses. `port_group`: the target port group (SPC-5 5.17) of the portal group's ports.
    """

    host: str = "0.0.0.0"
    port: int = ISCSI_PORT
    tag: int = 1
    announced: tuple[str, ...] = ()
    port_group: int = 1

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.host.partition("%")[0])
        except ValueError:
            raise ConfigError(f"portal {self.host!r}: an IP address is wanted") from None
        if not 0 <= self.port <= 65535 or not 0 <= self.tag <= MAX_TAG:
            raise ConfigError(f"portal {self.host}: port {self.port}, tag {self.tag}: both go to 65535")

    @property
    def address(self) -> IpAddress:
        return ipaddress.ip_address(self.host.partition("%")[0])

    @property
    def is_wildcard(self) -> bool:
        return self.address.is_unspecified

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port},{self.tag}"


def parse_portal(text: str, tag: int = 1) -> Portal:
    """HOST[:PORT][,TAG], an IPv6 HOST in brackets; `*` for every IPv4 address. Raises ConfigError."""
    where, comma, tag_text = text.partition(",")
    if where.startswith("["):
        host, bracket, rest = where[1:].partition("]")
        port_text = rest.removeprefix(":")
        well_formed = bool(bracket) and (rest == "" or (rest.startswith(":") and port_text != ""))
    else:
        host, colon, port_text = where.partition(":")
        well_formed = not colon or port_text != ""
    numbers = [each for each in (port_text, tag_text) if each]
    if not well_formed or (comma and not tag_text) or not all(each.isascii() and each.isdigit() for each in numbers):
        raise ConfigError(f"portal {text!r}: HOST[:PORT][,TAG] is wanted, an IPv6 address in brackets")
    host = "0.0.0.0" if host == "*" else host
    # Lengths first: int() of a long row of digits is an exception of its own.
    if any(len(each) > 5 for each in numbers):
        raise ConfigError(f"portal {text!r}: port and tag go to 65535")
    return Portal(host, int(port_text) if port_text else ISCSI_PORT, int(tag_text) if tag_text else tag)


class AddressBook:
    """The addresses of this machine that others can reach, kept up to date while `follow` runs."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._addresses: tuple[IpAddress, ...] = ()
        self._on_change = on_change
        self._task: asyncio.Task[None] | None = None
        self.why_not: str | None = None
        """why the addresses are not known, None if they are"""

    @property
    def addresses(self) -> tuple[IpAddress, ...]:
        return self._addresses

    def set(self, addresses: Iterable[IpAddress]) -> None:
        ordered = tuple(sorted(set(addresses), key=lambda each: (each.version, int(each))))
        if ordered != self._addresses:
            self._addresses = ordered
            self._on_change()

    async def start(self) -> None:
        """Reads the addresses once, then follows changes in the background; nothing if it does already. Never raises:
        see `why_not`."""
        if self._task is not None:
            return
        try:
            self.set(await read_addresses())
        except Exception as error:
            self._tell(error)
            return
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _follow(self) -> None:
        while True:
            try:
                async with _netlink() as netlink:
                    await netlink.bind()
                    # What changed before we were listening.
                    self.set(await read_addresses())
                    self.why_not = None
                    while True:
                        async for _ in netlink.get():
                            pass
                        # What a message says is of no interest: it may be one of many, or the last before an overrun.
                        self.set(await read_addresses())
            except Exception as error:
                self._tell(error)
            await asyncio.sleep(_RETRY)

    def _tell(self, error: Exception) -> None:
        self.why_not = f"netlink: {error!r}"
        LOG.warning("iscsi: addresses of this machine are not known, discovery tells the one it is asked at: %r", error)


def _netlink() -> Any:
    # Imported here: whoever serves on one known address has no need of it.
    import pyroute2  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return pyroute2.AsyncIPRoute()


async def read_addresses() -> list[IpAddress]:
    """Of every interface, those of global scope that are ready for use."""
    found = []
    async with _netlink() as netlink:
        async for message in await netlink.addr("dump"):
            flags = message.get_attr("IFA_FLAGS") or message.get("flags", 0)
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if text and message.get("scope") == _SCOPE_UNIVERSE and not flags & _UNUSABLE:
                found.append(ipaddress.ip_address(text))
    return found


def target_addresses(
    portal: Portal, book: Iterable[IpAddress], came_in_by: tuple[IpAddress, int] | None = None
) -> list[str]:
    """What stands in TargetAddress for a portal: HOST:PORT,TAG, the address the initiator came in by first.

    `came_in_by` is where the asking connection ends here; if it is one of this portal's, that address works for sure.
    """
    if portal.announced:
        return [f"{_with_port(each, portal.port)},{portal.tag}" for each in portal.announced]
    if not portal.is_wildcard:
        return [str(portal)]
    own = [each for each in book if each.version == portal.address.version]
    if came_in_by is not None and came_in_by[1] == portal.port:
        address = came_in_by[0]
        if address.version == portal.address.version:
            own = [address, *(each for each in own if each != address)]
    return [f"{bracketed(str(each))}:{portal.port},{portal.tag}" for each in own]


def _with_port(announced: str, port: int) -> str:
    has_port = announced.rpartition(":")[2].isdigit() and not announced.endswith("]") and announced.count(":") == 1
    has_port = has_port or "]:" in announced
    return announced if has_port else f"{announced}:{port}"
