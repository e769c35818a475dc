# SPDX-License-Identifier: Apache-2.0
"""The addresses of a real machine as they come and go: pyroute2 in a network namespace of its own, root or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCENARIO = """
import asyncio
import pyroute2
from vhost_scsi.iscsi.portals import AddressBook, Portal, target_addresses

async def main():
    changed = asyncio.Event()
    book = AddressBook(changed.set)
    await book.start()
    assert book.why_not is None, book.why_not

    def told(host):
        return " ".join(target_addresses(Portal(host), book.addresses)) or "nothing"

    async def change(what, address, prefixlen):
        changed.clear()
        await netlink.addr(what, index=index, address=address, prefixlen=prefixlen)
        await asyncio.wait_for(changed.wait(), 20)
        print(told("0.0.0.0"), "|", told("::"))

    print(told("0.0.0.0"), "|", told("::"))
    async with pyroute2.AsyncIPRoute() as netlink:
        (index,) = await netlink.link_lookup(ifname="lo")
        await netlink.link("set", index=index, state="up")
        await change("add", "192.0.2.7", 24)
        await change("add", "2001:db8::7", 64)
        await change("del", "192.0.2.7", 24)
    await book.close()

asyncio.run(main())
"""


def test_a_wildcard_portal_tells_the_addresses_that_there_are() -> None:
    namespace = ["unshare", "--user", "--map-root-user", "--net"]
    result = subprocess.run(
        [*namespace, sys.executable, "-c", SCENARIO], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "nothing | nothing",  # the addresses of the loopback interface are nobody else's business
        "192.0.2.7:3260,1 | nothing",
        "192.0.2.7:3260,1 | [2001:db8::7]:3260,1",
        "nothing | [2001:db8::7]:3260,1",
    ]
