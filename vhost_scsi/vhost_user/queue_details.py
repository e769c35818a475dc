# SPDX-License-Identifier: Apache-2.0
"""What can be told of a queue beside where it stands: how long requests took, how many were found at once, why nothing
is taken, and whether a notification waits in its descriptor. It takes nothing out of any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vhost_scsi._core import ffi, lib

if TYPE_CHECKING:
    from vhost_scsi.vhost_user.device import VirtioScsiDevice


@dataclass(frozen=True, slots=True)
class QueueDetails:
    """`latency[k]`: requests that took less than `latency_limit(k)` ns. `batch_sizes[k]`: turns that took 2**k requests
    or more, but less than twice as many. Pending: signals in the eventfd that nobody has read; None if it is none."""

    stopping: bool
    waiting: bool
    await_kick: bool
    latency: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    kick_pending: int | None
    call_pending: int | None


def queue_details(device: VirtioScsiDevice, index: int) -> QueueDetails:
    info: Any = ffi.new("struct vs_queue_info *")
    lib.vs_queue_info(device.handle, index, info)
    kick, call = device.notifiers(index)
    return QueueDetails(
        stopping=bool(info.stopping),
        waiting=bool(info.waiting),
        await_kick=bool(info.await_kick),
        latency=tuple(info.latency),
        batch_sizes=tuple(info.batch_sizes),
        kick_pending=pending_signals(kick),
        call_pending=pending_signals(call),
    )


def latency_limit(bucket: int) -> int | None:
    """Nanoseconds; None: there is none."""
    return None if bucket == lib.VS_QLATENCY_BUCKETS - 1 else 1 << (bucket + lib.VS_QLATENCY_SHIFT)


def latency_below(latency: Sequence[int], part: float) -> int | None:
    """The lowest limit in ns that at least this part of the requests stayed below; None where there is none."""
    count, seen = sum(latency), 0
    for bucket, found in enumerate(latency):
        seen += found
        if found and seen >= part * count:
            return latency_limit(bucket)
    return None


def pending_signals(fd: int | None) -> int | None:
    """What stands in an eventfd, without reading it: the kernel tells it beside the descriptor."""
    if fd is None:
        return None
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == "eventfd-count":
            return int(value.strip(), 16)
    return None
