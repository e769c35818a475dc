# SPDX-License-Identifier: Apache-2.0
"""A front end that makes eventfds that it shares with us blocking: its queue breaks, the worker goes on."""

from __future__ import annotations

import contextlib
import os
import select

from tests.live import PATIENCE, Live, inquiry
from vhost_scsi.vhost_user.messages import Request

REQUEST_RING = 2


def test_a_call_eventfd_that_is_full_and_blocking_holds_up_nobody_for_long(live: Live) -> None:
    unit = live.unit("memory:1M")
    attacked, other = live.end((0, 0, unit), name="attacked"), live.end((0, 0, unit), name="other")
    full = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        with other.connect() as victim, attacked.connect() as attacker:
            attacker.command(bytes(6))
            attacker.initiator.frontend.set_notifier(Request.SET_VRING_CALL, REQUEST_RING, full)
            # It is in use when the device has signalled it once: what the old one was told may not be lost.
            assert select.select([full], [], [], PATIENCE)[0]
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(full, 0xFFFFFFFFFFFFFFFE - 1)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(full, 1)
            os.set_blocking(full, True)
            for queue in attacker.initiator.queues:
                queue.enable_notifications()
            attacker.send(bytes(6))
            victim.ok(inquiry(36), in_len=36)
            live.wait_for(lambda: attacked.queue(REQUEST_RING).error == "NOTIFIER_BLOCKS", "the broken queue")
    finally:
        os.set_blocking(full, False)
        os.close(full)
