# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a queue right now: rules that the driver's ring breaks, and notifications that are missing.

A broken rule stands in the ring. A notification is missing when both sides have stood still for a while although one of
them has something to do; so a queue is looked at twice, and nobody is woken by that.

    LOST_KICK         posted, the device asked for a kick, and none has come
    KICK_NOT_TAKEN    the kick came, and the worker has not taken it
    KICK_NOT_ASKED    posted, the device sleeps, and asked for no kick: a mistake of ours
    WORKER_HANGS      the worker does not turn: a mistake of ours, or of a descriptor that was handed to it
    NOT_TAKEN         posted, and the device has a reason to leave it there
    LOST_INTERRUPT    used, the driver asked for an interrupt, and has not looked
    RING_STOPPED      the driver broke a rule, and nothing is taken until it starts the ring anew
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi.daemon.queues import finding_row, judged
from vhost_scsi.vhost_user.queue_details import QueueDetails, queue_details
from vhost_scsi.virtqueue.findings import Finding, findings
from vhost_scsi.virtqueue.packed_walker import PackedSnapshot
from vhost_scsi.virtqueue.standing import Standing, standing
from vhost_scsi.virtqueue.walker import RingSnapshot

if TYPE_CHECKING:
    from vhost_scsi.daemon.inspection import QueueLook
    from vhost_scsi.daemon.service import Serving
    from vhost_scsi.dataplane import Core, WorkerStats

SETTLE_MS: Final = 100
EVENT_QUEUE: Final = 1
VIRTIO: Final = "virtio 1.3, "


@dataclass(frozen=True, slots=True)
class Sample:
    """A queue, its worker and its ring at one moment; `standing` is None where the ring does not run."""

    look: QueueLook
    details: QueueDetails
    worker: WorkerStats
    standing: Standing | None


LookAt = Callable[["Serving", int], Awaitable["QueueLook"]]


async def sample(core: Core, look_at: LookAt, serving: Serving, index: int) -> Sample:
    look = await look_at(serving, index)
    stands = None
    if look.ring is not None:
        stands = standing(look.ring.snapshot, last_avail=look.status.last_avail, event_idx=look.ring.event_idx)
    return Sample(look, queue_details(serving.device, index), core.worker_stats(look.status.worker), stands)


async def check(
    core: Core, look_at: LookAt, chosen: Sequence[tuple[Serving, int]], settle_ms: int
) -> list[dict[str, Any]]:
    """A row for each queue, with its findings, worst first."""
    before = [await sample(core, look_at, *each) for each in chosen]
    await asyncio.sleep(settle_ms / 1000)
    rows = []
    for (serving, index), first in zip(chosen, before, strict=True):
        second = await sample(core, look_at, serving, index)
        found = sorted(wrong(index, first, second, settle_ms), key=lambda each: not each.forbidden)
        rows.append(
            {
                "port": serving.name,
                "index": index,
                "name": second.look.status.name,
                "looked_at": second.look.ring is not None,
                "findings": [finding_row(each) for each in found],
            }
        )
    return rows


def wrong(index: int, before: Sample, after: Sample, waited_ms: int) -> Iterator[Finding]:
    """All that is wrong with queue `index`."""
    status = after.look.status
    if status.broken:
        yield Finding("RING_STOPPED", f"the ring is stopped: the driver broke {status.error}", "", True)
    yield from _broken_rules(before, after)
    if not status.broken and index != EVENT_QUEUE:
        # Buffers for events lie there until there is an event.
        yield from _not_taken(before, after, waited_ms)
    yield from _not_seen(before, after, waited_ms)


def _broken_rules(before: Sample, after: Sample) -> Iterator[Finding]:
    """A ring that moved while it was read may look as if it broke a rule: of that only what stood there twice."""
    found = list(_rules(after.look))
    if after.look.settled is not None or (after.look.ring is not None and after.look.ring.snapshot.moved):
        first = {(each.rule, each.address, each.data) for each in _rules(before.look)}
        found = [each for each in found if (each.rule, each.address, each.data) in first]
    yield from found


def _rules(look: QueueLook) -> Iterable[Finding]:
    if look.ring is None:
        return ()
    snapshot = look.ring.snapshot
    return findings(snapshot, {chain.head for chain in snapshot.chains if judged(chain, look.settled)})


def _not_taken(before: Sample, after: Sample, waited_ms: int) -> Iterator[Finding]:
    one, two = before.standing, after.standing
    if one is None or two is None or not one.posted or not two.posted:
        return
    first, status = before.look.status, after.look.status
    if (first.last_avail, first.avail_wrap, first.requests) != (status.last_avail, status.avail_wrap, status.requests):
        return
    posted = f"{two.posted} {'entry is' if two.posted == 1 else 'entries are'} posted for at least {waited_ms} ms"
    address, data = _avail_idx(after)
    reason = _reason(after)
    if reason is not None:
        yield Finding("NOT_TAKEN", f"{posted}, and not taken: {reason}", "", False, address, data)
    elif after.details.kick_pending:
        text = f"{posted}; the kick is in its descriptor, and worker {status.worker} has not taken it"
        yield Finding("KICK_NOT_TAKEN", f"{text}{_hanging(before, after)}", "", True, address, data)
    elif two.kick.due or after.details.await_kick:
        why = "no kick has come since the ring was started" if after.details.await_kick else two.kick.why
        text = f"{posted} and never kicked for: {why}; {status.kicks} kicks so far"
        yield Finding("LOST_KICK", text, f"{VIRTIO}2.7.13.4", True, address, data)
    elif after.worker.sleeping:
        yield Finding(
            "KICK_NOT_ASKED", f"{posted}, worker {status.worker} sleeps: {two.kick.why}", "", True, address, data
        )
    elif before.worker.loops == after.worker.loops:
        yield Finding("WORKER_HANGS", f"{posted}{_hanging(before, after)}", "", True, address, data)


def _reason(after: Sample) -> str | None:
    """Why the device may leave in the ring what lies there."""
    if after.details.stopping:
        return "the ring is being stopped, and waits for what is in flight"
    if not after.look.status.enabled:
        return "the front end has disabled the ring"
    if after.look.status.stalled:
        return "Python has as many requests of this port as it takes at a time"
    if after.details.waiting:
        return "long chains have used up the queue's share of memory; it goes on when one of them ends"
    return None


def _hanging(before: Sample, after: Sample) -> str:
    if after.worker.sleeping:
        return ": the worker sleeps"
    if before.worker.loops == after.worker.loops:
        return f": worker {after.look.status.worker} does not turn"
    return ": the worker turns, and looks elsewhere"


def _not_seen(before: Sample, after: Sample, waited_ms: int) -> Iterator[Finding]:
    one, two = before.standing, after.standing
    if one is None or two is None or not one.unseen or not two.unseen:
        return
    first, status = before.look.status, after.look.status
    if (first.used_idx, first.used_wrap) != (status.used_idx, status.used_wrap) or _wish(before) != _wish(after):
        return
    pending = after.details.call_pending
    if pending:
        where = f"{pending} signals lie unread in the call descriptor: nobody listens at its other end"
    else:
        where = f"the last of {status.interrupts} interrupts has left the call descriptor"
    used = f"{two.unseen} {'entry is' if two.unseen == 1 else 'entries are'} used for at least {waited_ms} ms"
    text = f"{used} and not looked at: {two.interrupt.why}; {where}"
    address, data = _wish(after)
    yield Finding("LOST_INTERRUPT", text, f"{VIRTIO}2.7.7", True, address, data)


def _avail_idx(sample: Sample) -> tuple[int | None, bytes]:
    ring = sample.look.ring
    if ring is None or not isinstance(ring.snapshot, RingSnapshot) or ring.snapshot.avail_idx is None:
        return None, b""
    return ring.snapshot.addresses.avail + 2, ring.snapshot.avail_idx.to_bytes(2, "little")


def _wish(sample: Sample) -> tuple[int | None, bytes]:
    """Where the driver says which entry it wants an interrupt for, and what it says."""
    ring = sample.look.ring
    if ring is None:
        return None, b""
    at = ring.snapshot.addresses
    if isinstance(ring.snapshot, PackedSnapshot):
        event = ring.snapshot.driver_event
        return at.avail, b"" if event is None else event.place.word.to_bytes(2, "little")
    event_word = ring.snapshot.used_event if isinstance(ring.snapshot, RingSnapshot) else None
    return at.avail + 4 + 2 * at.size, b"" if event_word is None else event_word.to_bytes(2, "little")
