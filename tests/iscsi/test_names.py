# SPDX-License-Identifier: Apache-2.0
"""Names, targets, access lists, limits, portals and the addresses that are told."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import pytest

from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import names, portals
from vhost_scsi.iscsi.node import Node
from vhost_scsi.iscsi.portals import AddressBook, Portal, parse_portal, target_addresses
from vhost_scsi.iscsi.refusals import KEPT, RefusedLog
from vhost_scsi.iscsi.targets import AclEntry, IscsiTarget, Limits

TARGET = "iqn.2024-01.org.example:disk"
A = ipaddress.ip_address


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("iqn.2024-01.org.example", "iqn.2024-01.org.example"),
        ("iqn.2024-12.org.example:a.b-c:d", "iqn.2024-12.org.example:a.b-c:d"),
        ("IQN.2024-01.ORG.Example:Disk", "iqn.2024-01.org.example:disk"),
        ("iqn.2024-01.org.example:käse", "iqn.2024-01.org.example:käse"),
        ("iqn.2024-01.org.example:ka\u0308se", "iqn.2024-01.org.example:käse"),
        ("eui.02004567A425678D", "eui.02004567a425678d"),
        ("naa.52004567BA64678D", "naa.52004567ba64678d"),
        ("naa.62004567BA64678D0123456789ABCDEF", "naa.62004567ba64678d0123456789abcdef"),
    ],
)
def test_names_of_targets(name: str, normal: str) -> None:
    assert names.target_name(name) == normal
    assert names.target_name(normal) == normal
    assert names.initiator_name(name) == normal


@pytest.mark.parametrize(
    "name",
    ["", "disk", "iqn.", "iqn.2024-13.org.example", "iqn.2024-1.org.example", "iqn.24-01.org.example", "eui.123",
     "iqn.2024-01.-example", "iqn.2024-01.org..example", "iqn.2024-01.org.example:", "iqn.2024-01.org.example:a b",
     "iqn.2024-01.org.example:a/b", "iqn.2024-01.org.example:a,b", "iqn.2024-01.org.example:a\n", "naa.5200",
     "eui.02004567A425678G", "iqn.2024-01.org.example:" + "x" * 200, "iqn.2024-01.org.example:\u2028",
     "iqn.2024-01.org.example:\u3002"],
)  # fmt: skip
def test_what_is_no_name_of_a_target(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        names.target_name(name)


@pytest.mark.parametrize("name", ["iqn.1993-08.org.debian:01:6a3b", "iqn.whatever", "iqn.2008-11.org.linux-kvm:vm_1"])
def test_initiators_are_taken_as_they_come(name: str) -> None:
    assert names.initiator_name(name) == name


@pytest.mark.parametrize("name", ["", "x", "iqn.a b", "iqn.\u00ad\u200b/", "eui.12"])
def test_what_is_no_name_of_an_initiator(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        names.initiator_name(name)


@pytest.mark.parametrize(
    "arguments",
    [{"name": "disk"}, {"alias": "a\nb"}, {"alias": "x" * 256}, {"portal_groups": frozenset()},
     {"portal_groups": frozenset((65536,))}, {"luns": {-1: "a"}}, {"luns": {16384: "a"}}],
)  # fmt: skip
def test_targets_that_make_no_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        IscsiTarget(**{"name": TARGET, **arguments})


def test_access_lists() -> None:
    net = ipaddress.ip_network("192.0.2.0/24")
    by_name, by_address = AclEntry(("IQN.2024-01.org.*",), luns={5: "five"}), AclEntry(networks=(net,))
    target = IscsiTarget(TARGET, luns={0: "disk"}, acl=(by_name, by_address))
    first = target.entry_for("iqn.2024-01.org.a", A("198.51.100.1"))
    assert first is by_name
    assert target.luns_for(by_name) == {5: "five"}
    second = target.entry_for("iqn.1999-01.com.b", A("192.0.2.7"))
    assert second is by_address
    assert target.luns_for(by_address) == {0: "disk"}
    assert target.entry_for("iqn.1999-01.com.b", A("198.51.100.1")) is None
    assert target.entry_for("iqn.1999-01.com.b", A("2001:db8::1")) is None


def test_name_and_address_of_an_entry_must_both_fit() -> None:
    entry = AclEntry(("iqn.a",), (ipaddress.ip_network("127.0.0.0/8"),))
    assert entry.matches("iqn.a", A("127.0.0.1"))
    assert not entry.matches("iqn.b", A("127.0.0.1"))
    assert not entry.matches("iqn.a", A("10.0.0.1"))


def test_targets_of_a_node() -> None:
    node = Node(Limits(targets=1))
    node.add_target(IscsiTarget(TARGET))
    with pytest.raises(ConfigError, match="there already"):
        node.add_target(IscsiTarget(TARGET))
    with pytest.raises(ConfigError, match="limit"):
        node.add_target(IscsiTarget(TARGET + "2"))
    node.remove_target(TARGET.upper())
    for call in (lambda: node.remove_target(TARGET), lambda: node.replace_target(IscsiTarget(TARGET))):
        with pytest.raises(ConfigError, match="no target"):
            call()


def test_the_limits_that_are_documented() -> None:
    limits = Limits()
    assert (limits.sessions, limits.connections_per_session, limits.connections, limits.targets) == (32, 8, 256, 64)
    for wrong in ({"sessions": 0}, {"connections": 65536}, {"login_timeout": 0}, {"commands_per_session": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Limits(**wrong)  # type: ignore[arg-type]


# ---- portals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "portal"),
    [
        ("127.0.0.1", Portal("127.0.0.1", 3260, 1)),
        ("127.0.0.1:3261", Portal("127.0.0.1", 3261, 1)),
        ("*:3261,2", Portal("0.0.0.0", 3261, 2)),
        ("[::]", Portal("::", 3260, 1)),
        ("[2001:db8::1]:9,65535", Portal("2001:db8::1", 9, 65535)),
        ("[fe80::1%eth0]:9", Portal("fe80::1%eth0", 9)),
    ],
)
def test_portals_in_words(text: str, portal: Portal) -> None:
    assert parse_portal(text) == portal
    assert parse_portal(str(portal)) == portal


@pytest.mark.parametrize(
    "text", ["", ":3260", "localhost", "1.2.3.4:", "1.2.3.4:65536", "1.2.3.4,", "1.2.3.4:1,x", "::1", "[::1", "[::1]x",
             "[::1]:", "1.2.3.4:" + "9" * 5000, "1.2.3.4:1,65536", "1.2.3.4:١"],
)  # fmt: skip
def test_what_is_no_portal(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_portal(text)


BOOK = (A("192.0.2.1"), A("198.51.100.1"), A("2001:db8::1"))


@pytest.mark.parametrize(
    ("portal", "came_in_by", "told"),
    [
        (Portal("127.0.0.1", 3260), None, ["127.0.0.1:3260,1"]),
        (Portal("2001:db8::9", 3261, 2), None, ["[2001:db8::9]:3261,2"]),
        (Portal("0.0.0.0", 3260), None, ["192.0.2.1:3260,1", "198.51.100.1:3260,1"]),
        (Portal("::", 3260), None, ["[2001:db8::1]:3260,1"]),
        (Portal(), (A("198.51.100.1"), 3260), ["198.51.100.1:3260,1", "192.0.2.1:3260,1"]),
        (Portal(), (A("127.0.0.1"), 3260), ["127.0.0.1:3260,1", "192.0.2.1:3260,1", "198.51.100.1:3260,1"]),
        (Portal(), (A("127.0.0.1"), 9), ["192.0.2.1:3260,1", "198.51.100.1:3260,1"]),
        (Portal(), (A("::1"), 3260), ["192.0.2.1:3260,1", "198.51.100.1:3260,1"]),
        (
            Portal(announced=("10.0.2.2", "10.0.2.3:9", "[::1]")),
            None,
            ["10.0.2.2:3260,1", "10.0.2.3:9,1", "[::1]:3260,1"],
        ),
    ],
)
def test_addresses_that_are_told(portal: Portal, came_in_by: Any, told: list[str]) -> None:
    assert target_addresses(portal, BOOK, came_in_by) == told


def test_ipv4_in_the_clothes_of_ipv6() -> None:
    assert portals.plain_address("::ffff:192.0.2.1") == A("192.0.2.1")
    assert portals.plain_address("fe80::1%2") == A("fe80::1")


def test_a_book_without_netlink_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails() -> list[Any]:
        raise PermissionError("no netlink here")

    monkeypatch.setattr(portals, "read_addresses", fails)

    async def scenario() -> AddressBook:
        book = AddressBook()
        await book.start()
        await book.close()
        return book

    book = asyncio.run(scenario())
    assert book.addresses == ()
    assert "no netlink here" in str(book.why_not)


class Netlink:
    """Stands for pyroute2: says that something changed whenever it is told to."""

    def __init__(self) -> None:
        self.changes: asyncio.Queue[None] = asyncio.Queue()

    async def __aenter__(self) -> Netlink:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def bind(self) -> None:
        pass

    async def get(self) -> Any:
        await self.changes.get()
        yield {}


def test_a_book_follows_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    have = [A("192.0.2.1")]

    async def read() -> list[Any]:
        return list(have)

    async def scenario() -> None:
        netlink = Netlink()
        monkeypatch.setattr(portals, "read_addresses", read)
        monkeypatch.setattr(portals, "_netlink", lambda: netlink)
        changed = asyncio.Event()
        book = AddressBook(changed.set)
        await book.start()
        assert book.addresses == (A("192.0.2.1"),)
        changed.clear()
        have.insert(0, A("2001:db8::1"))
        netlink.changes.put_nowait(None)
        await asyncio.wait_for(changed.wait(), 10)
        assert book.addresses == (A("192.0.2.1"), A("2001:db8::1")), "IPv4 first"
        changed.clear()
        netlink.changes.put_nowait(None)
        await asyncio.sleep(0.05)
        assert not changed.is_set(), "nothing changed"
        await book.close()

    asyncio.run(scenario())


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_refusals_are_told_in_plain_words_and_counted() -> None:
    log = RefusedLog(lambda: 5.0)
    for port in range(3):
        log.add(f"192.0.2.1:{port}", "iqn.a", "iqn.t", "login", "login", "there is no such target")
    (refusal,) = log.all()
    assert refusal.times == 3
    assert str(refusal) == "iqn.a at 192.0.2.1:2 asked for login of iqn.t: refused, there is no such target"


def test_refusals_are_bounded_and_fit_for_a_terminal() -> None:
    log = RefusedLog()
    for number in range(KEPT + 50):
        log.add("192.0.2.1:1", f"iqn.{number}", "\x1b[2J" + "x" * 5000, "login", "login", "no")
    assert len(log.all()) == KEPT
    assert "\x1b" not in str(log.all()[0])
    assert len(str(log.all()[0])) < 1000


def test_the_log_says_each_kind_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = RefusedLog(lambda: now[0])
    for number in range(10):
        log.add("192.0.2.1:1", f"iqn.{number}", "", "login", "login", "no")
    assert len(caplog.records) == 1
    now[0] = 1.5
    log.add("192.0.2.1:1", "iqn.last", "", "login", "login", "no")
    assert "(9 more since)" in caplog.records[-1].getMessage()
