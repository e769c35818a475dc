# SPDX-License-Identifier: Apache-2.0
"""One look at a ring and at the requests that lie in it, from the guest's memory, by descriptors of our own: in a
thread, never through the data plane's mappings, bounded, and whatever the guest has written there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vhost_scsi.errors import ConfigError
from vhost_scsi.virtqueue.chains import Chain, HeadState
from vhost_scsi.virtqueue.memory import FileMemory, FileRegion, ReadableMemory
from vhost_scsi.virtqueue.rings import Snapshot, look
from vhost_scsi.virtqueue.walker import DEFAULT_MAX_DESCRIPTORS

if TYPE_CHECKING:
    from vhost_scsi.vhost_user.device import VirtioScsiDevice

HEADER_BYTES: Final = 64
"""enough of a request to know what it is: its header with a CDB of the usual length"""
MAX_HEADERS: Final = 1024


@dataclass(frozen=True, slots=True)
class RingLook:
    """`headers`: by head, the first bytes of requests that are posted, or used and not collected."""

    snapshot: Snapshot
    headers: Mapping[int, bytes]
    event_idx: bool


async def read_ring(
    device: VirtioScsiDevice,
    index: int,
    in_flight: Sequence[int] = (),
    *,
    max_descriptors: int = DEFAULT_MAX_DESCRIPTORS,
) -> RingLook | None:
    """None while the ring does not run. `in_flight`: the heads that the device has; without them what is in
    flight is counted, and not found."""
    described = device.described(index, in_flight)
    if described is None:
        return None
    ring, stands = described
    regions: list[FileRegion] = []

    def close() -> None:
        for region in regions:
            os.close(region.fd)

    def work() -> RingLook:
        try:
            memory = FileMemory(regions)
            snapshot = look(memory, ring, stands, max_descriptors)
            return RingLook(snapshot, read_headers(memory, snapshot.chains), ring.event_idx)
        finally:
            close()

    try:
        # Descriptors of its own: the map may go, and their numbers be somebody else's, before the thread has ended.
        for each in device.regions():
            regions.append(FileRegion(each.guest_addr, each.size, os.dup(each.fd), each.mmap_offset))
    except OSError as error:
        close()
        raise ConfigError(f"port {device.port.name}, queue {index}: cannot be read: {error.strerror}") from None
    # Who stops waiting does not keep it from closing them.
    return await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(work)))


def read_headers(memory: ReadableMemory, chains: Collection[Chain]) -> dict[int, bytes]:
    """Not of those in flight: the data plane knows them better."""
    found: dict[int, bytes] = {}
    for chain in chains:
        if chain.state is not HeadState.IN_FLIGHT and len(found) < MAX_HEADERS:
            found[chain.head] = chain.read(memory, HEADER_BYTES)
    return found
