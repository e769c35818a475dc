# SPDX-License-Identifier: Apache-2.0
"""The event queue: what a driver is told without asking, what becomes of events that nobody can take, and how a logical
unit is taken away from somebody who uses it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from tests.live import PATIENCE, REPORT_LUNS, TEST_UNIT_READY, End, Host, Live, good, inquiry, mode_sense10, read10
from vhost_scsi.scsi import sense
from vhost_scsi.stores import PythonStore
from vhost_scsi.vhost_user.features import Feature
from vhost_scsi.virtqueue.virtio_scsi import Event, EventType, ResetReason, Response


class HeldStore(PythonStore):
    """Reads wait until they are let go."""

    size = 1 << 20

    def __init__(self) -> None:
        self.held = False
        self.reading = 0
        self.go = asyncio.Event()

    async def read(self, offset: int, length: int) -> bytes:
        self.reading += 1
        if self.held:
            await self.go.wait()
        return bytes(length)

    async def write(self, offset: int, data: bytes) -> None: ...


def told(host: Host, count: int = 1) -> list[Event]:
    """The next events; their buffers are the device's again."""
    found: list[Event] = []
    while len(found) < count:
        events = host.driver.wait_event(PATIENCE)
        assert events, f"waited in vain for event {len(found) + 1} of {count}"
        found += events
    return found


def reset(reason: ResetReason, target: int, lun: int) -> Event:
    return Event(EventType.TRANSPORT_RESET, bytes([1, target]) + lun.to_bytes(2, "big") + bytes(4), reason)


def changed(lun: int, asc: int, ascq: int) -> Event:
    return Event(EventType.PARAM_CHANGE, bytes([1, 0]) + lun.to_bytes(2, "big") + bytes(4), asc | ascq << 8)


NOTHING_MISSED = Event(EventType.NO_EVENT, bytes(8), 0, missed=True)


@contextmanager
def beside(live: Live, work: Coroutine[Any, Any, object]) -> Iterator[Callable[[], bool]]:
    """Runs it on the loop meanwhile, and to its end; gives whether it has come."""
    running = asyncio.run_coroutine_threadsafe(work, live.thread.loop)
    yield running.done
    running.result(PATIENCE)


def sent(end: End) -> tuple[int, int]:
    return end.live.run(lambda: (end.device.events.sent, end.device.events.dropped))


def test_units_that_come_and_go_are_told(live: Live) -> None:
    end = live.end((0, 0, live.unit()))
    with end.connect() as host:
        assert host.initiator.features & (Feature.SCSI_HOTPLUG | Feature.SCSI_CHANGE)
        host.driver.post_events()
        host.ready()
        live.call(end.port.map(3, 1, live.unit(name="one")))
        assert told(host) == [reset(ResetReason.RESCAN, 3, 1)]
        # As REPORT LUNS has it: beyond 255 in flat space addressing.
        live.call(end.port.map(3, 300, live.unit(name="far")))
        assert told(host) == [reset(ResetReason.RESCAN, 3, 0x4000 | 300)]
        live.call(end.port.unmap(3, 1))
        assert told(host) == [reset(ResetReason.REMOVED, 3, 1)]
        host.fails(sense.LOGICAL_UNIT_NOT_SUPPORTED, TEST_UNIT_READY, at=(3, 1))
    assert sent(end) == (3, 0)


def test_a_driver_is_told_what_it_negotiated(live: Live) -> None:
    unit = live.unit()
    end = live.end((0, 0, unit))
    for feature, expected in (
        (Feature(0), []),
        (Feature.SCSI_HOTPLUG, [reset(ResetReason.RESCAN, 0, 1), reset(ResetReason.REMOVED, 0, 1)]),
        (Feature.SCSI_CHANGE, [changed(0, 0x2A, 0x09)]),
    ):
        with end.connect(features=Feature.VERSION_1 | feature) as host:
            host.driver.post_events()
            live.call(end.port.map(0, 1, live.unit("memory:1M", name=f"with {feature!r}")))
            live.call(end.port.unmap(0, 1))
            live.call(unit.resize(unit.num_blocks * 512 + 512))
            live.call(live.core.delivered())
            assert told(host, len(expected)) == expected
            assert host.driver.events() == []
        live.wait_until_free(end)


def test_a_resize_is_told_by_event_and_by_unit_attention(live: Live) -> None:
    unit = live.unit("memory:1M")
    end = live.end((0, 0, unit))
    with end.connect() as host:
        host.driver.post_events()
        host.ready()
        live.call(unit.resize(2 << 20))
        assert told(host) == [changed(0, 0x2A, 0x09)]
        host.fails(sense.CAPACITY_DATA_HAS_CHANGED, TEST_UNIT_READY)
        host.ok(read10(4095, 1), in_len=512)


def test_a_mode_page_is_told_to_the_others(live: Live) -> None:
    unit = live.unit()
    one, other = live.end((0, 0, unit), name="one"), live.end((0, 0, unit), name="other")
    with one.connect() as changer, other.connect() as hears:
        for host in (changer, hears):
            host.driver.post_events()
            host.ready()
        page = bytearray(changer.ok(mode_sense10(8), in_len=252)[8:])
        page[2] ^= 4  # WCE
        data = bytes(8) + bytes([8, *page[1:]])
        changer.ok(bytes([0x55, 0x10, 0, 0, 0, 0, 0, 0, len(data), 0]), data)
        assert told(hears) == [changed(0, 0x2A, 0x01)]
        assert changer.driver.events() == []


def test_events_that_nobody_could_take_are_told_of_when_somebody_can(live: Live) -> None:
    end = live.end((0, 0, live.unit()))
    with end.connect() as host:
        host.driver.post_events(1)
        live.call(end.port.map_all((1, lun, live.units["disk"]) for lun in range(5)))
        live.wait_for(lambda: sent(end) == (1, 4), "the events")
        assert host.driver.wait_event(PATIENCE) == [reset(ResetReason.RESCAN, 1, 0)]  # and posts the buffer again
        assert told(host) == [NOTHING_MISSED]
        live.call(end.port.unmap(1, 4))
        assert told(host) == [reset(ResetReason.REMOVED, 1, 4)]


def test_a_driver_that_came_anew_has_missed_nothing(live: Live) -> None:
    unit = live.unit()
    end = live.end((0, 0, unit))
    with end.connect():
        live.call(end.port.map(0, 1, unit))
        live.wait_for(lambda: sent(end) == (0, 1), "the event")
    live.wait_until_free(end)
    with end.connect() as host:
        host.driver.post_events()
        live.call(end.port.map(0, 2, unit))
        assert told(host) == [reset(ResetReason.RESCAN, 0, 2)]
        assert host.driver.events() == []


# ---- a unit that is in use -----------------------------------------------------------------------------------------


def test_what_was_begun_ends_well_before_a_unit_goes(live: Live) -> None:
    store = HeldStore()
    end = live.end((0, 0, live.unit(store)), (0, 1, live.unit(name="stays")))
    with end.connect() as host:
        host.driver.post_events()
        host.ready((0, 0), (0, 1))
        store.held = True
        tag = host.send(read10(0, 1), in_len=512)
        live.wait_for(lambda: live.run(lambda: store.reading) > 0, "the read")
        with beside(live, end.port.unmap(0, 0, patience=600)) as gone:
            assert told(host) == [reset(ResetReason.REMOVED, 0, 0)]
            # It is not there for who looks, and there for who knows it.
            assert host.ok(inquiry(36), in_len=36)[0] == 0x7F
            assert host.ok(REPORT_LUNS, in_len=4096)[:4] == (8).to_bytes(4, "big")
            host.ok(TEST_UNIT_READY)
            assert not gone()
            live.run(store.go.set)
            good(host.wait(tag))
        host.fails(sense.LOGICAL_UNIT_NOT_SUPPORTED, TEST_UNIT_READY)
        host.ok(TEST_UNIT_READY, at=(0, 1))  # REPORT LUNS has told it


def test_a_unit_stays_until_its_driver_has_dealt_with_the_event(live: Live) -> None:
    end = live.end((0, 0, live.unit()), (0, 1, live.unit(name="stays")))
    with end.connect() as host:
        host.driver.post_events()
        host.ready((0, 0), (0, 1))
        live.call(end.port.map(0, 2, live.units["stays"]))
        assert told(host) == [reset(ResetReason.RESCAN, 0, 2)]
        host.ready()
        events = host.driver.event
        assert events is not None
        with beside(live, end.port.unmap(0, 0, patience=600)) as gone:
            assert events.wait(time.monotonic() + PATIENCE)
            [used] = events.queue.collect()
            host.ok(TEST_UNIT_READY)
            assert not gone()
            events.queue.add((), [used.token], token=used.token)
            events.publish()
        host.fails(sense.LOGICAL_UNIT_NOT_SUPPORTED, TEST_UNIT_READY)


def test_what_does_not_end_in_time_is_ended(live: Live) -> None:
    end = live.end((0, 0, live.unit("delay(read=20s):memory:1M")), (0, 1, live.unit(name="stays")))
    with end.connect() as host:
        host.ready((0, 0), (0, 1))
        tags = [host.send(read10(n, 1), in_len=512) for n in range(8)]
        live.wait_for(lambda: live.in_flight() == 8, "the reads")
        live.call(end.port.unmap(0, 0, patience=0.05))
        assert {host.wait(tag).response for tag in tags} == {Response.BAD_TARGET}
        host.fails(sense.LOGICAL_UNIT_NOT_SUPPORTED, TEST_UNIT_READY)


def test_who_takes_a_unit_away_twice_waits_for_the_first(live: Live) -> None:
    store = HeldStore()
    unit = live.unit(store)
    end = live.end((0, 0, unit))
    with end.connect() as host:
        host.ready()
        store.held = True
        tag = host.send(read10(0, 1), in_len=512)
        live.wait_for(lambda: live.run(lambda: store.reading) > 0, "the read")
        with beside(live, end.port.unmap(0, 0, patience=600)):
            live.wait_for(lambda: live.run(lambda: end.port.luns[0].hidden), "the unit to be hidden")
            with beside(live, end.port.unmap(0, 0)):
                live.wait_for(lambda: any(task.aborted for task in live.call(live.core.tasks())), "the abort")
                live.run(store.go.set)
        assert host.wait(tag).response == Response.BAD_TARGET
        assert live.run(lambda: list(unit.logical_unit.itls)) == []
