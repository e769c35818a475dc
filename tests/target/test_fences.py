# SPDX-License-Identifier: Apache-2.0
"""A change that fences is answered when the commands that were in flight before it have ended, not earlier."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.live import Host, Live, good, set_swp, set_wce, write10


@pytest.mark.parametrize("change", [set_swp, lambda host, value, **options: set_wce(host, not value, **options)])
def test_a_mode_change_waits_for_commands_in_c(live: Live, change: Callable[..., None]) -> None:
    """Else a write would reach the medium after the answer that says it is protected, or nothing is cached."""
    unit = live.unit("delay(write=700ms):memory:1M")
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        writes = [host.send(write10(8 * n, 8), bytes(4096), queue=n) for n in range(2)]
        live.wait_for(lambda: live.in_flight() == 2, "both writes")
        change(host, True, queue=2)
        ended(host, writes)


def test_a_hold_waits_for_commands_in_c(live: Live) -> None:
    unit = live.unit("delay(write=700ms):memory:1M")
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        write = host.send(write10(0, 8), bytes(4096))
        live.wait_for(lambda: live.in_flight() == 1, "the write")

        async def held() -> None:
            async with unit.logical_unit.held():
                pass

        live.call(held())
        ended(host, [write])


def ended(host: Host, tags: list[int]) -> None:
    """They were answered before now, and are not waited for."""
    results = {result.tag: result for result in host.driver.collect()}
    for tag in tags:
        assert tag in results, "still in flight"
        good(results[tag])
