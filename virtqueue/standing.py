# SPDX-License-Identifier: Apache-2.0
"""Where driver and device stand in a ring: who has each descriptor, how much is on its way, and what would come of the
next kick and the next interrupt, and why.

Derived from one snapshot, of either layout; nothing is read here. What cannot be known is None, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from vhost_scsi.virtqueue.chains import HeadState
from vhost_scsi.virtqueue.layout import INDEX_MASK, AvailFlag, UsedFlag
from vhost_scsi.virtqueue.packed_layout import EventMode, Place
from vhost_scsi.virtqueue.packed_walker import EventSuppression, PackedSnapshot
from vhost_scsi.virtqueue.rings import Snapshot
from vhost_scsi.virtqueue.walker import RingSnapshot

FREE: Final = "."
OWNERS: Final[dict[HeadState, str]] = {
    HeadState.POSTED: "p",
    HeadState.IN_FLIGHT: "f",
    HeadState.OUTSTANDING: "o",
    HeadState.USED_UNSEEN: "u",
}
OWNER_WORDS: Final = {
    FREE: "free",
    "p": "posted by the driver, not taken",
    "f": "in flight in the device",
    "o": "posted or in flight",
    "u": "used, not seen by the driver",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the next entry is notified of; None where that cannot be known. `due`: what was notified of, or should
    have been, and nobody has reacted to as far as the ring shows."""

    wanted: bool | None
    why: str
    due: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """Entries (split) or descriptors (packed) that are posted, in flight, and used without the driver having looked."""

    posted: int | None
    in_flight: int | None
    unseen: int | None
    kick: Decision
    interrupt: Decision


def owners(snapshot: Snapshot) -> str:
    """One character for each descriptor of the ring, those behind the head of a chain included."""
    size = snapshot.addresses.size
    found = [FREE] * size
    if isinstance(snapshot, PackedSnapshot):
        _packed_owners(snapshot, found)
    for chain in snapshot.chains:
        for descriptor in chain.descriptors:
            if not descriptor.indirect and descriptor.index < size and found[descriptor.index] == FREE:
                found[descriptor.index] = OWNERS[chain.state]
    if isinstance(snapshot, RingSnapshot):
        for head, state in snapshot.heads.items():
            if head < size:
                found[head] = OWNERS[state]
    return "".join(found)


def _packed_owners(snapshot: PackedSnapshot, found: list[str]) -> None:
    """2.8: what the device took stands between its two places; which descriptor belongs to which list nobody knows."""
    size = snapshot.addresses.size
    used = snapshot.next_used
    if used is None:
        return
    unseen = _packed_unseen(snapshot)
    for step in range(min(snapshot.held or 0, size)):
        found[(used.index + step) % size] = OWNERS[HeadState.IN_FLIGHT]
    for step in range(unseen or 0):
        found[(used.index - 1 - step) % size] = OWNERS[HeadState.USED_UNSEEN]


def standing(snapshot: Snapshot, *, last_avail: int | None, event_idx: bool) -> Standing | None:
    """None where the ring cannot be read. `last_avail`: the device's next entry of a split ring."""
    if isinstance(snapshot, PackedSnapshot):
        return _packed(snapshot, event_idx)
    return _split(snapshot, last_avail, event_idx) if isinstance(snapshot, RingSnapshot) else None


# ---- split -----------------------------------------------------------------------------------------------------------


def _span(start: int | None, end: int | None, size: int) -> int | None:
    """Entries from one free-running index to another; None where that is more than there can be."""
    if start is None or end is None:
        return None
    count = (end - start) & INDEX_MASK
    return count if count <= size else None


def _split(snapshot: RingSnapshot, last_avail: int | None, event_idx: bool) -> Standing | None:
    if snapshot.avail_idx is None or snapshot.used_idx is None:
        return None
    size = snapshot.addresses.size
    posted = _span(last_avail, snapshot.avail_idx, size)
    in_flight = _span(snapshot.used_idx, last_avail, size)
    unseen = _span(snapshot.used_event, snapshot.used_idx, size) if event_idx else None
    kick = _split_kick(snapshot, last_avail, posted, event_idx)
    return Standing(posted, in_flight, unseen, kick, _split_interrupt(snapshot, unseen, event_idx))


def _split_kick(snapshot: RingSnapshot, last_avail: int | None, posted: int | None, event_idx: bool) -> Decision:
    """2.7.10: the driver's decision when it makes one more entry available."""
    avail_idx, event, flags = snapshot.avail_idx, snapshot.avail_event, snapshot.used_flags
    if not event_idx:
        wanted = not (flags or 0) & UsedFlag.NO_NOTIFY
        if wanted:
            return Decision(
                True, "used.flags is 0: the device wants a kick for whatever becomes available", bool(posted)
            )
        return Decision(False, "used.flags has NO_NOTIFY: the device is awake and looks by itself")
    if event == avail_idx:
        return Decision(True, f"avail_event is {event}, the entry that becomes available next")
    if last_avail is not None and posted and ((event or 0) - last_avail) & INDEX_MASK < posted:
        return Decision(
            False,
            f"avail_event is {event}: that entry is available, and was to be kicked for; the next, {avail_idx}, is not",
            True,
        )
    return Decision(
        False, f"avail_event is {event}, the next entry {avail_idx}: the device is awake and looks by itself"
    )


def _split_interrupt(snapshot: RingSnapshot, unseen: int | None, event_idx: bool) -> Decision:
    """2.7.7: the device's decision when it uses one more entry."""
    used_idx, event, flags = snapshot.used_idx, snapshot.used_event, snapshot.avail_flags
    if not event_idx:
        if (flags or 0) & AvailFlag.NO_INTERRUPT:
            return Decision(False, "avail.flags has NO_INTERRUPT: the driver looks by itself")
        return Decision(True, "avail.flags is 0: the driver wants an interrupt for whatever is used")
    if event == used_idx:
        return Decision(True, f"used_event is {event}, the entry that is used next")
    if unseen:
        return Decision(
            False,
            f"used_event is {event}: that entry is used, and was to be interrupted for; the driver has not looked at "
            f"{unseen} since",
            True,
        )
    return Decision(
        False, f"used_event is {event}, the next entry {used_idx}: the driver waits for a later one, or none"
    )


# ---- packed ----------------------------------------------------------------------------------------------------------


def _packed_unseen(snapshot: PackedSnapshot) -> int | None:
    """A driver that waits says where it looks next (2.8.10); from there on to the device's place all is used."""
    event, used = snapshot.driver_event, snapshot.next_used
    size = snapshot.addresses.size
    if event is None or used is None or event.mode != EventMode.DESC or event.place.index >= size:
        return None
    count = event.place.distance(used, size)
    return count if count + (snapshot.held or 0) <= size else None


def _packed(snapshot: PackedSnapshot, event_idx: bool) -> Standing | None:
    driver, device = snapshot.driver_event, snapshot.device_event
    if driver is None or device is None:
        return None
    size = snapshot.addresses.size
    posted = _packed_posted(snapshot)
    next_post = snapshot.next_avail.forward(posted, size) if snapshot.next_avail is not None else None
    unseen = _packed_unseen(snapshot)
    kick = _packed_decision(device, next_post, "device", "becomes available", event_idx)
    if posted and not kick.wanted and _asked_among(device, snapshot.next_avail, posted, size, event_idx):
        kick = Decision(False, f"{_at(device.place)} is available, and was to be kicked for", True)
    elif posted and kick.wanted and device.mode == EventMode.ENABLE:
        kick = Decision(True, kick.why, True)
    interrupt = _packed_decision(driver, snapshot.next_used, "driver", "is used", event_idx)
    if unseen:
        interrupt = Decision(
            False, f"{_at(driver.place)} is used, and was to be interrupted for; the driver has not looked since", True
        )
    return Standing(posted, snapshot.held, unseen, kick, interrupt)


def _packed_posted(snapshot: PackedSnapshot) -> int:
    return sum(1 for chain in snapshot.chains for descriptor in chain.descriptors if not descriptor.indirect)


def _asked_among(event: EventSuppression, start: Place | None, count: int, size: int, event_idx: bool) -> bool:
    if start is None or not event_idx or event.mode != EventMode.DESC or event.place.index >= size:
        return False
    return start.distance(event.place, size) < count


def _at(place: Place) -> str:
    return f"descriptor {place.index} (wrap {int(place.wrap)})"


def _packed_decision(
    event: EventSuppression, following: Place | None, who: str, what: str, event_idx: bool
) -> Decision:
    """2.8.10: what a side wrote into its event suppression structure, held against the place that comes next."""
    if event.mode == EventMode.DISABLE:
        return Decision(False, f"the {who}'s event flags are DISABLE: it looks by itself")
    if event.mode == EventMode.ENABLE or not event_idx:
        return Decision(True, f"the {who}'s event flags are ENABLE: it wants to be notified of whatever {what}")
    if event.mode != EventMode.DESC:
        return Decision(None, f"the {who}'s event flags are {event.mode}, which means nothing")
    if following is None:
        return Decision(None, f"the {who} waits for {_at(event.place)}, and the next place is not known")
    if event.place == following:
        return Decision(True, f"the {who} waits for {_at(event.place)}, which {what} next")
    return Decision(False, f"the {who} waits for {_at(event.place)}, and {_at(following)} {what} next")


def as_values(standing: Standing | None) -> dict[str, Any] | None:
    """For JSON."""
    if standing is None:
        return None

    def decision(each: Decision) -> dict[str, Any]:
        return {"wanted": each.wanted, "due": each.due, "why": each.why}

    return {
        "posted": standing.posted,
        "in_flight": standing.in_flight,
        "unseen": standing.unseen,
        "next_kick": decision(standing.kick),
        "next_interrupt": decision(standing.interrupt),
    }
