# SPDX-License-Identifier: Apache-2.0
"""A broken rule with the place where it stands: guest address and bytes, so that it can be looked up in the guest.

The bytes are those the walker saw, put together again from its snapshot; nothing is read anew, for a moment later they
may be others.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from vhost_scsi.virtqueue.chains import Chain, Violation
from vhost_scsi.virtqueue.layout import DESC_BYTES, INDEX_MASK, DescFlag
from vhost_scsi.virtqueue.packed_walker import PackedSnapshot
from vhost_scsi.virtqueue.ring_rules import RingRule
from vhost_scsi.virtqueue.rings import Snapshot
from vhost_scsi.virtqueue.walker import RingSnapshot

OFFERED_TWICE: Final = (RingRule.HEAD_AVAILABLE_TWICE, RingRule.BUFFER_ID_TWICE)
_FLAGS, _IDX, _ENTRIES = 0, 2, 4  # in both rings (2.7.6, 2.7.8)
_DESCRIPTOR: Final = struct.Struct("<QIHH")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `address` is the guest's, None where there is no one place; `data` what stands there."""

    rule: str
    text: str
    clause: str
    forbidden: bool
    address: int | None = None
    data: bytes = b""
    head: int | None = None


def findings(snapshot: Snapshot, judged: set[int] | None = None) -> Iterator[Finding]:
    """Of the ring, then of its chains. `judged`: heads that can be judged, None if all can."""
    for violation in snapshot.violations:
        # What came back meanwhile may be offered anew.
        if judged is None or violation.rule not in OFFERED_TWICE or violation.value in judged:
            yield _of_ring(snapshot, violation)
    for chain in snapshot.chains:
        if judged is None or chain.head in judged:
            for violation in chain.violations:
                yield _of_chain(snapshot, chain, violation)


def _finding(violation: Violation, address: int | None, data: bytes, text: str, head: int | None = None) -> Finding:
    rule = violation.rule
    return Finding(rule.name, text, f"virtio 1.3, {rule.clause}", rule.forbidden, address, data, head)


def _word(value: int | None) -> bytes:
    return b"" if value is None else (value & INDEX_MASK).to_bytes(2, "little")


def _of_ring(snapshot: Snapshot, violation: Violation) -> Finding:
    rule, index, value = violation.rule, violation.index, violation.value
    ring = snapshot.addresses
    address: int | None = None
    data = b""
    text = rule.text
    if rule in (RingRule.RING_MISALIGNED, RingRule.RING_UNMAPPED):
        address = value
    elif isinstance(snapshot, PackedSnapshot):
        if rule is RingRule.EVENT_INVALID:
            text = f"{text}: flags {value}, descriptor {index}"
        elif rule is RingRule.BUFFER_ID_TWICE and index is not None:
            address, data, text = ring.desc + index * DESC_BYTES + 12, _word(value), f"{text}: id {value}"
    elif rule is RingRule.AVAIL_IDX_JUMPED and isinstance(snapshot, RingSnapshot):
        address, data = ring.avail + _IDX, _word(snapshot.avail_idx)
        text = f"{text}: {snapshot.avail_idx} against {snapshot.used_idx}, queue size {ring.size}"
    elif rule is RingRule.AVAIL_FLAGS_INVALID:
        address, data = ring.avail + _FLAGS, _word(value)
    elif rule is RingRule.USED_FLAGS_INVALID:
        address, data = ring.used + _FLAGS, _word(value)
    elif rule is RingRule.USED_ID_OUT_OF_RANGE and index is not None:
        address, data = ring.used + _ENTRIES + 8 * (index % ring.size), (value or 0).to_bytes(4, "little")
        text = f"{text}: {value}"
    elif rule in (RingRule.HEAD_OUT_OF_RANGE, RingRule.HEAD_AVAILABLE_TWICE) and index is not None:
        address, data = ring.avail + _ENTRIES + 2 * (index % ring.size), _word(value)
        text = f"{text}: entry {index} has {value}"
    elif value is not None:
        text = f"{text}: {value}"
    return _finding(violation, address, data, text)


def _of_chain(snapshot: Snapshot, chain: Chain, violation: Violation) -> Finding:
    table = snapshot.addresses.desc
    for descriptor in chain.descriptors:
        if (descriptor.index, descriptor.indirect) == (violation.index, violation.indirect):
            last, behind = (descriptor.flags, descriptor.next), (descriptor.next, descriptor.flags)
            words = behind if isinstance(snapshot, PackedSnapshot) else last
            data = _DESCRIPTOR.pack(descriptor.address, descriptor.length, *words)
            where = "table entry" if descriptor.indirect else "descriptor"
            text = f"{violation.rule.text}: {where} {descriptor.index} of the chain at {chain.head}"
            return _finding(violation, table + descriptor.index * DESC_BYTES, data, text, chain.head)
        if descriptor.flags & DescFlag.INDIRECT and not descriptor.indirect:
            table = descriptor.address
    return _finding(violation, None, b"", violation.rule.text, chain.head)
