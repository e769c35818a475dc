# SPDX-License-Identifier: Apache-2.0
"""Virtqueues and the requests in them, as values for the management socket.

Two sources are put side by side: what the data plane knows of its queues and tasks, and what the walker read from the
guest's memory by itself. It only arranges; nothing here reads a ring.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi.scsi.commands import parse
from vhost_scsi.scsi.decode import decode
from vhost_scsi.virtqueue.chains import Chain, HeadState, Violation
from vhost_scsi.virtqueue.ring_rules import RingRule

if TYPE_CHECKING:
    from vhost_scsi.dataplane import Core, TaskSnapshot
    from vhost_scsi.target import Port
    from vhost_scsi.vhost_user.device import QueueStatus
    from vhost_scsi.virtqueue.rings import Snapshot

MAX_CHAINS: Final = 256
"""chains told in full; the strip shows them all"""
OFFERED_TWICE: Final = (RingRule.HEAD_AVAILABLE_TWICE, RingRule.BUFFER_ID_TWICE)
FREE, MEMBER = ".", "-"
MARKS: Final = {
    HeadState.POSTED: "P",
    HeadState.IN_FLIGHT: "F",
    HeadState.OUTSTANDING: "o",
    HeadState.USED_UNSEEN: "u",
}
LEGEND: Final = {**{mark: state.value for state, mark in MARKS.items()}, MEMBER: "part of a chain", FREE: "free"}
ATTRIBUTES: Final = ("simple", "ordered", "head of queue", "ACA")


def queue_row(port: str, status: QueueStatus) -> dict[str, Any]:
    """A `QueueStatus` with the name of its port."""
    return {"port": port, **dataclasses.asdict(status)}


async def device_tasks(core: Core, port: Port) -> list[TaskSnapshot]:
    """The requests of one port in flight, oldest first."""
    return sorted((task for task in await core.tasks() if task.port == port.cookie), key=lambda task: -task.age_ns)


def task_row(task: TaskSnapshot, units: dict[tuple[int, int], tuple[str, int]]) -> dict[str, Any]:
    """One request in words and numbers. `units` gives name and block size by target and LUN."""
    name, block_size = units.get((task.target, task.lun), (None, 512))
    # virtio-scsi pads every CDB to one length; what stands behind the command is no part of it.
    command = parse(task.cdb)
    row: dict[str, Any] = {
        "queue": task.queue,
        "head": task.head,
        "target": task.target,
        "lun": task.lun,
        "unit": name,
        "tag": task.tag,
        "attribute": ATTRIBUTES[task.attribute] if task.attribute < len(ATTRIBUTES) else str(task.attribute),
        "cdb": task.cdb[: command.cdb_length if command is not None else None].hex(),
        "command": decode(task.cdb),
        "lba": None,
        "blocks": None,
        "in_bytes": task.in_length,
        "out_bytes": task.out_length,
        "length_bytes": task.in_length or task.out_length,
        "segments": task.in_segments + task.out_segments,
        "age_us": task.age_ns // 1000,
        "layer": task.layer,
        "layer_us": task.layer_ns // 1000,
        "worker": task.worker,
        "aborted": task.aborted,
    }
    if command is not None and len(task.cdb) >= command.cdb_length:
        for field in command.fields:
            if field.name in ("lba", "blocks"):
                row[field.name] = command.value(field, task.cdb)
    if row["blocks"] is not None:
        row["length_bytes"] = row["blocks"] * block_size
    return row


def ring_view(snapshot: Snapshot, status: QueueStatus, settled: set[int] | None = None) -> dict[str, Any]:
    """What the walker saw in the guest's memory, with the device's own position beside it.

    `settled`: the heads that were the device's all the time while the ring was read, None if all were. Of the others
    no rule can be said to be broken.
    """
    return {
        "layout": status.layout,
        "size": snapshot.addresses.size,
        "desc_address": snapshot.addresses.desc,
        "avail_address": snapshot.addresses.avail,
        "used_address": snapshot.addresses.used,
        "last_avail": status.last_avail,
        **snapshot.facts(),
        "moved": snapshot.moved,
        "truncated": snapshot.truncated,
        "strip": strip(snapshot),
        "legend": LEGEND,
        "chains": [_chain(chain, settled) for chain in snapshot.chains[:MAX_CHAINS]],
        "violations": [_violation(each) for each in snapshot.violations if _holds(each, settled)],
    }


def strip(snapshot: Snapshot) -> str:
    """The descriptors of the ring, one character each."""
    members = snapshot.members()
    return "".join(
        MARKS[state] if state is not None else MEMBER if index in members else FREE
        for index, state in enumerate(snapshot.cells())
    )


def _chain(chain: Chain, settled: set[int] | None) -> dict[str, Any]:
    judged = chain.state is not HeadState.USED_UNSEEN and (settled is None or chain.head in settled)
    return {
        "head": chain.head,
        "state": chain.state.value,
        "descriptors": len(chain.descriptors),
        "indirect": any(descriptor.indirect for descriptor in chain.descriptors),
        "readable_bytes": chain.readable_bytes,
        "writable_bytes": chain.writable_bytes,
        "violations": [_violation(violation) for violation in chain.violations] if judged else [],
    }


def _holds(violation: Violation, settled: set[int] | None) -> bool:
    """Whether a rule of the ring is broken indeed. What came back meanwhile may be offered anew."""
    return settled is None or violation.rule not in OFFERED_TWICE or violation.value in settled


def _violation(violation: Violation) -> dict[str, Any]:
    return {
        "rule": violation.rule.name,
        "text": str(violation.rule),
        "index": violation.index,
        "value": violation.value,
        "forbidden": violation.rule.forbidden,
    }
