# SPDX-License-Identifier: Apache-2.0
"""A ring that is stopped while a request of it waits for credit: the request was taken, but nothing was done for it."""

from __future__ import annotations

from tests.live import Live, good, inquiry, mode_select10, write10


def test_a_request_that_waits_for_credit_is_taken_again_after_a_stop(live: Live) -> None:
    end = live.end((0, 0, live.unit("delay(flush=700ms):memory:1M")), credit=2)
    with end.connect() as host:
        host.ready()
        host.ok(write10(0, 1), bytes(512))
        # Turning the write cache off flushes, and holds everything else for that long.
        cdb, parameters = mode_select10(bytes.fromhex("0812") + bytes(18))
        tags = [host.send(cdb, parameters)]
        tags += [host.send(inquiry(), in_len=96) for _ in range(6)]
        live.wait_for(lambda: end.queue(2).stalled, "a request without credit")
        bases = host.initiator.stop()
        answered = host.initiator.queues[2]._used_idx.load()
        assert bases[2] == answered
        assert 0 < len(host.driver.collect()) < len(tags) - 1
        host.initiator.vrings.clear()
        host.initiator.start(bases)
        for index, port in enumerate(host.driver.requests, 2):
            fresh = host.initiator._port(index)
            port.notify, port.call_fd = fresh.notify, fresh.call_fd
            port.notify()
        for tag in list(host.driver._pending):
            assert good(host.wait(tag))
