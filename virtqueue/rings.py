# SPDX-License-Identifier: Apache-2.0
"""One way to look at a ring of either layout: `look` takes a snapshot, and every `Snapshot` answers the same.

What a ring's layout makes of it is in `walker` and `packed_walker`. What the device knows of itself is handed over as
the data plane tells it: two 16-bit words, counters of a split ring and places with wrap counters of a packed one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vhost_scsi.virtqueue.chains import Chain, HeadState, Violation
from vhost_scsi.virtqueue.layout import RingAddresses
from vhost_scsi.virtqueue.memory import ReadableMemory
from vhost_scsi.virtqueue.packed_layout import Place
from vhost_scsi.virtqueue.packed_walker import PackedPositions, walk_packed
from vhost_scsi.virtqueue.walker import DEFAULT_MAX_DESCRIPTORS, Positions, walk

Fact = int | str | bool | list[str] | dict[str, int | str | bool] | None


class Snapshot(Protocol):
    """A queue at one moment."""

    @property
    def addresses(self) -> RingAddresses: ...

    @property
    def chains(self) -> tuple[Chain, ...]: ...

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Of the ring itself; each chain has its own."""
        ...

    @property
    def moved(self) -> bool:
        """The ring did not hold still while it was read."""
        ...

    @property
    def truncated(self) -> bool: ...

    def all_violations(self) -> Iterator[Violation]: ...

    def cells(self) -> list[HeadState | None]:
        """Who has each descriptor of the ring; None: free, or in a chain behind its head (`members`)."""
        ...

    def members(self) -> set[int]:
        """Descriptors that are in a chain behind its head."""
        ...

    def facts(self) -> Mapping[str, Fact]:
        """What only this layout has, by name. None where it could not be read."""
        ...


@dataclass(frozen=True, slots=True)
class Ring:
    """Where a ring lies and what was negotiated for it."""

    addresses: RingAddresses
    packed: bool
    event_idx: bool
    indirect: bool


@dataclass(frozen=True, slots=True)
class DeviceStands:
    """What the device knows of itself. To be taken while it stands still."""

    next_avail: int
    next_used: int
    in_flight: Sequence[int] = ()


def look(
    memory: ReadableMemory, ring: Ring, device: DeviceStands, max_descriptors: int = DEFAULT_MAX_DESCRIPTORS
) -> Snapshot:
    """A snapshot of the ring, with the walker of its layout."""
    if ring.packed:
        places = Place.of_word(device.next_avail), Place.of_word(device.next_used)
        return walk_packed(
            memory,
            ring.addresses,
            indirect=ring.indirect,
            positions=PackedPositions(*places, device.in_flight),
            max_descriptors=max_descriptors,
        )
    return walk(
        memory,
        ring.addresses,
        event_idx=ring.event_idx,
        indirect=ring.indirect,
        positions=Positions(device.next_avail, list(device.in_flight)),
        max_descriptors=max_descriptors,
    )
