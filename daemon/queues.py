# SPDX-License-Identifier: Apache-2.0
"""Virtqueues and the requests in them, as values for the management socket.

Two sources are put side by side: what the data plane knows of its queues and tasks, and what the walker read from the
guest's memory by itself. It only arranges; nothing here reads a ring.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi.scsi.commands import parse
from vhost_scsi.scsi.decode import decode
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.vhost_user.queue_details import latency_below, latency_limit, queue_details
from vhost_scsi.virtqueue.chains import Chain, Descriptor, HeadState, Violation
from vhost_scsi.virtqueue.findings import OFFERED_TWICE, Finding
from vhost_scsi.virtqueue.layout import DescFlag
from vhost_scsi.virtqueue.standing import OWNER_WORDS, as_values, owners, standing
from vhost_scsi.virtqueue.virtio_scsi import (
    LunAddress,
    RequestHeader,
    TaskManagement,
    TmfRequest,
    WellKnownAddress,
    WireError,
    decode_lun,
    request_header_bytes,
    response_header_bytes,
)

if TYPE_CHECKING:
    from vhost_scsi.dataplane import Core, Segment, TaskSnapshot
    from vhost_scsi.target import Port
    from vhost_scsi.vhost_user.device import QueueStatus, VirtioScsiDevice
    from vhost_scsi.vhost_user.ring_reader import RingLook
    from vhost_scsi.virtqueue.rings import Snapshot

Units = Mapping[tuple[int, int], tuple[str, int]]
"""name and block size by target and LUN"""
NO_UNITS: Final[Units] = {}
MAX_CHAINS: Final = 256
"""chains told in full; the strip shows them all"""
MAX_DESCRIPTORS: Final = 4096
"""descriptors told, of all chains together"""
FREE, MEMBER = ".", "-"
MARKS: Final = {
    HeadState.POSTED: "P",
    HeadState.IN_FLIGHT: "F",
    HeadState.OUTSTANDING: "o",
    HeadState.USED_UNSEEN: "u",
}
LEGEND: Final = {**{mark: state.value for state, mark in MARKS.items()}, MEMBER: "part of a chain", FREE: "free"}
LAYER_OF: Final = {HeadState.POSTED: "ring", HeadState.USED_UNSEEN: "completion"}
ATTRIBUTES: Final = ("simple", "ordered", "head of queue", "ACA")
PERCENTILES: Final = {"p50_ns": 0.5, "p90_ns": 0.9, "p99_ns": 0.99, "p999_ns": 0.999}


def queue_row(port: str, device: VirtioScsiDevice, index: int) -> dict[str, Any]:
    """What the data plane knows of a queue, with the name of its port. Percentiles are limits that so many requests
    stayed below; None: nothing has ended yet, or there is no such limit."""
    status, details = device.queue(index), queue_details(device, index)
    latency: dict[str, Any] = {name: latency_below(details.latency, part) for name, part in PERCENTILES.items()}
    return {
        "port": port,
        **dataclasses.asdict(status),
        "stopping": details.stopping,
        "waiting_for_memory": details.waiting,
        "awaits_kick": details.await_kick,
        "kick_pending": details.kick_pending,
        "call_pending": details.call_pending,
        "latency": {
            "count": sum(details.latency),
            **latency,
            "log2_ns": list(details.latency),
            "first_limit_ns": latency_limit(0),
        },
        "batch_sizes": list(details.batch_sizes),
    }


async def device_tasks(core: Core, port: Port) -> list[TaskSnapshot]:
    """The requests of one port in flight, oldest first."""
    return sorted(
        (task for task in await core.look_tasks() if task.port == port.cookie),
        key=lambda task: -(task.age_ns // 1_000_000),
    )


# ---- requests --------------------------------------------------------------------------------------------------------


def task_row(task: TaskSnapshot, units: Units, port: str) -> dict[str, Any]:
    """One request that the data plane has, in words and numbers."""
    return {
        "id": f"{port}:{task.queue}:{task.head}",
        "port": port,
        "queue": task.queue,
        "head": task.head,
        **_addressed(task.target, task.lun, task.cdb, units),
        "tag": task.tag,
        "attribute": _attribute(task.attribute),
        "in_bytes": task.in_length,
        "out_bytes": task.out_length,
        "direction": _direction(task.in_length, task.out_length),
        **_extent(task.cdb, units.get((task.target, task.lun)), task.in_length or task.out_length),
        "segments": task.in_segments + task.out_segments,
        "age_us": task.age_ns // 1000,
        "layer": task.layer,
        "gate": [bit.name for bit in GateBit if bit & task.gate] if task.gate else [],
        "layer_us": task.layer_ns // 1000,
        "worker": task.worker,
        "aborted": task.aborted,
        "from_guest_memory": False,
    }


def header_row(port: str, queue: int, chain: Chain, header: bytes, units: Units) -> dict[str, Any]:
    """One request as it lies in the guest's memory, which may be anything. How long it does nobody can tell."""
    headers = (request_header_bytes(), response_header_bytes()) if queue >= 2 else (0, 0)
    out_bytes, in_bytes = max(0, chain.readable_bytes - headers[0]), max(0, chain.writable_bytes - headers[1])
    row: dict[str, Any] = {
        "id": f"{port}:{queue}:{chain.head}",
        "port": port,
        "queue": queue,
        "head": chain.head,
        **_header_words(queue, header, units),
        "in_bytes": in_bytes,
        "out_bytes": out_bytes,
        "direction": _direction(in_bytes, out_bytes),
        "segments": len(chain.buffers),
        "age_us": None,
        "layer": LAYER_OF.get(chain.state, "ring"),
        "gate": [],
        "layer_us": None,
        "worker": None,
        "aborted": False,
        "from_guest_memory": True,
    }
    row["data"] = {
        "count": len(chain.buffers),
        "segments": [
            {"address": each.address, "length_bytes": each.length, "writable": each.writable}
            for each in chain.buffers[:MAX_DESCRIPTORS]
        ],
    }
    return row


def _header_words(queue: int, header: bytes, units: Units) -> dict[str, Any]:
    nothing = {"target": None, "lun": None, "unit": None, "tag": None, "attribute": None, "cdb": None}
    blank = {**nothing, "lba": None, "blocks": None, "length_bytes": None}
    try:
        if queue == 0:
            request = TmfRequest.parse(header[:24])
            function = request.subtype
            known = function in set(TaskManagement)
            words = TaskManagement(function).name if known else f"task management function {function}"
            return {**blank, **_place(request.lun), "tag": request.tag, "command": words}
        parsed = RequestHeader.parse(header[: request_header_bytes()])
    except (WireError, ValueError):
        return {**blank, "command": "unreadable"}
    place = _place(parsed.lun)
    target, lun = place["target"], place["lun"]
    unit = units.get((target, lun)) if target is not None and lun is not None else None
    return {
        **_addressed(target, lun, parsed.cdb, units),
        "tag": parsed.tag,
        "attribute": _attribute(parsed.task_attr),
        **_extent(parsed.cdb, unit, None),
    }


def _place(lun: bytes) -> dict[str, int | None]:
    try:
        address = decode_lun(lun)
    except WireError:
        return {"target": None, "lun": None}
    if isinstance(address, LunAddress):
        return {"target": address.target, "lun": address.lun}
    assert isinstance(address, WellKnownAddress)
    return {"target": address.target, "lun": None}


def _addressed(target: int | None, lun: int | None, cdb: bytes, units: Units) -> dict[str, Any]:
    # virtio-scsi pads every CDB to one length; what stands behind the command is no part of it.
    command = parse(cdb)
    unit = units.get((target, lun)) if target is not None and lun is not None else None
    return {
        "target": target,
        "lun": lun,
        "unit": unit[0] if unit is not None else None,
        "cdb": cdb[: command.cdb_length if command is not None else None].hex(),
        "command": decode(cdb),
    }


def _extent(cdb: bytes, unit: tuple[str, int] | None, otherwise: int | None) -> dict[str, Any]:
    """LBA and blocks where the command has them, and how many bytes that makes."""
    command = parse(cdb)
    found: dict[str, Any] = {"lba": None, "blocks": None, "length_bytes": otherwise}
    if command is not None and len(cdb) >= command.cdb_length:
        for field in command.fields:
            if field.name in ("lba", "blocks"):
                found[field.name] = command.value(field, cdb)
    if found["blocks"] is not None:
        found["length_bytes"] = found["blocks"] * (unit[1] if unit is not None else 512)
    return found


def _attribute(number: int) -> str:
    return ATTRIBUTES[number] if number < len(ATTRIBUTES) else str(number)


def _direction(in_bytes: int, out_bytes: int) -> str:
    return "both" if in_bytes and out_bytes else "in" if in_bytes else "out" if out_bytes else "none"


def segment_rows(found: tuple[list[Segment], int] | None) -> dict[str, Any] | None:
    """The data segments as the data plane has them, headers left out; None when the request ended meanwhile."""
    if found is None:
        return None
    segments, count = found
    told = [{"address": each.address, "length_bytes": each.length, "writable": each.writable} for each in segments]
    return {"count": count, "segments": told}


# ---- rings -----------------------------------------------------------------------------------------------------------


def ring_view(
    look: RingLook, status: QueueStatus, settled: set[int] | None = None, *, tables: bool = False
) -> dict[str, Any]:
    """What the walker saw in the guest's memory, with the device's own position beside it.

    `settled`: the heads that were the device's all the time while the ring was read, None if all were. Of the others
    no rule can be said to be broken. `tables`: with every descriptor of every chain.
    """
    snapshot = look.snapshot
    told = MAX_DESCRIPTORS if tables else 0
    chains = []
    for chain in snapshot.chains[:MAX_CHAINS]:
        chains.append(_chain(chain, settled, told))
        told = max(0, told - len(chain.descriptors))
    return {
        "layout": status.layout,
        "size": snapshot.addresses.size,
        "desc_address": snapshot.addresses.desc,
        "avail_address": snapshot.addresses.avail,
        "used_address": snapshot.addresses.used,
        "event_idx": look.event_idx,
        "last_avail": status.last_avail,
        **snapshot.facts(),
        "moved": snapshot.moved,
        "truncated": snapshot.truncated,
        "strip": strip(snapshot),
        "legend": LEGEND,
        "owners": owners(snapshot),
        "owner_words": OWNER_WORDS,
        "standing": as_values(standing(snapshot, last_avail=status.last_avail, event_idx=look.event_idx)),
        "chains": chains,
        "violations": [_violation(each) for each in snapshot.violations if _holds(each, settled)],
    }


def strip(snapshot: Snapshot) -> str:
    """The descriptors of the ring, one character each."""
    members = snapshot.members()
    return "".join(
        MARKS[state] if state is not None else MEMBER if index in members else FREE
        for index, state in enumerate(snapshot.cells())
    )


def _chain(chain: Chain, settled: set[int] | None, room: int) -> dict[str, Any]:
    return {
        "head": chain.head,
        "state": chain.state.value,
        "descriptors": len(chain.descriptors),
        "indirect": any(descriptor.indirect for descriptor in chain.descriptors),
        "readable_bytes": chain.readable_bytes,
        "writable_bytes": chain.writable_bytes,
        "table": [_descriptor(each) for each in chain.descriptors[:room]],
        "violations": [_violation(violation) for violation in chain.violations] if judged(chain, settled) else [],
    }


def _descriptor(descriptor: Descriptor) -> dict[str, Any]:
    flags = [name for name in ("NEXT", "WRITE", "INDIRECT") if descriptor.flags & DescFlag[name]]
    return {
        "index": descriptor.index,
        "indirect": descriptor.indirect,
        "address": descriptor.address,
        "length_bytes": descriptor.length,
        "flags": flags,
        "next": descriptor.next,
    }


def judged(chain: Chain, settled: set[int] | None) -> bool:
    """Whether a rule that its chain seems to break is broken indeed: the driver may have taken it back meanwhile."""
    return chain.state is not HeadState.USED_UNSEEN and (settled is None or chain.head in settled)


def _holds(violation: Violation, settled: set[int] | None) -> bool:
    """Whether a rule of the ring is broken indeed. What came back meanwhile may be offered anew."""
    return settled is None or violation.rule not in OFFERED_TWICE or violation.value in settled


def finding_row(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "text": finding.text,
        "clause": finding.clause,
        "forbidden": finding.forbidden,
        "address": finding.address,
        "bytes": finding.data.hex(" "),
        "head": finding.head,
    }


def _violation(violation: Violation) -> dict[str, Any]:
    return {
        "rule": violation.rule.name,
        "text": str(violation.rule),
        "index": violation.index,
        "value": violation.value,
        "forbidden": violation.rule.forbidden,
    }
