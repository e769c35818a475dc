# SPDX-License-Identifier: Apache-2.0
"""The rules of split and packed rings, by name: what the walker reports when a ring or a chain breaks one.

Only names, words and clauses. A rule with `forbidden` false is a remark: the standard allows it, but it is
worth seeing. Clauses of rules that both layouts have are those of the split one (2.7); in 2.8 the same is forbidden.
"""

from __future__ import annotations

from enum import Enum


class RingRule(Enum):
    """One rule each: (what is wrong, clause of virtio 1.3, whether the standard forbids it)."""

    QUEUE_SIZE_INVALID = "queue size is not a power of two from 1 to 32768", "2.7", True
    RING_MISALIGNED = "a part of the ring is not aligned", "2.7.1", True
    RING_UNMAPPED = "a part of the ring is not in guest memory", "2.7", True
    AVAIL_FLAGS_INVALID = "flags of the available ring have a bit that may not be set", "2.7.7.1", True
    USED_FLAGS_INVALID = "flags of the used ring have a bit that may not be set", "2.7.10.2", True
    AVAIL_IDX_JUMPED = "available idx is further ahead of used idx than the queue is long", "2.7.13", True
    HEAD_OUT_OF_RANGE = "available ring names a descriptor beyond the table", "2.7.6", True
    HEAD_AVAILABLE_TWICE = "available ring names a head that the device has not used yet", "2.7.13", True
    USED_ID_OUT_OF_RANGE = "used ring names a descriptor beyond the table", "2.7.8", True

    NEXT_OUT_OF_RANGE = "next names a descriptor beyond the table", "2.7.5", True
    CHAIN_LOOP = "chain comes back to a descriptor it has passed", "2.7.5.2", True
    CHAIN_TOO_LONG = "chain has more descriptors than the queue", "2.7.5.3.1", True
    CHAIN_OVER_4_GIB = "buffers of one chain are longer than 2**32 bytes together", "2.7.5.2", True
    READABLE_AFTER_WRITABLE = "device-readable buffer behind a device-writable one", "2.7.4.2", True
    ADDRESS_OVERFLOW = "buffer wraps past the end of the address space", "2.7.5", True
    ADDRESS_UNMAPPED = "buffer is not in guest memory", "2.7.5", True
    # 2.7.13.1 sets len to the length of the element and says nothing of zero, so a zero length is allowed here and the
    # walker goes on; QEMU's own devices refuse the whole chain for it, so a driver that does this is worth knowing.
    ZERO_LENGTH = "buffer has no bytes", "2.7.13.1", False
    # Nothing in 2.7 forbids it, and only the guest's own data suffers.
    BUFFERS_OVERLAP = "a device-writable buffer overlaps another buffer of the chain", "2.7.5", False

    INDIRECT_NOT_NEGOTIATED = "indirect descriptor without VIRTIO_F_INDIRECT_DESC", "2.7.5.3.1", True
    INDIRECT_WITH_NEXT = "descriptor has both INDIRECT and NEXT", "2.7.5.3.1", True
    INDIRECT_IN_INDIRECT = "indirect descriptor inside an indirect table", "2.7.5.3.1", True
    # the table is an array of 16-byte descriptors that starts with one, so neither 0 nor 24 bytes can be a table
    INDIRECT_LENGTH_INVALID = "indirect table's length is not a positive multiple of 16", "2.7.5.3", True
    INDIRECT_TABLE_OVERFLOW = "indirect table wraps past the end of the address space", "2.7.5.3", True
    INDIRECT_TABLE_UNMAPPED = "indirect table is not in guest memory", "2.7.5.3", True

    PACKED_SIZE_INVALID = "queue size is not one from 1 to 32768", "2.8", True
    LIST_FLAGS_DISAGREE = "descriptors of one list are not all available", "2.8.6", True
    EVENT_INVALID = "event suppression asks for what does not exist", "2.8.10", True
    BUFFER_ID_TWICE = "buffer id is offered while the device still has it", "2.8.21.1", True
    # No clause says how large an id may be; a device that keeps a table of them needs an end.
    BUFFER_ID_OUT_OF_RANGE = "buffer id is not below the queue size", "2.8.13", False

    def __init__(self, text: str, clause: str, forbidden: bool) -> None:
        self.text = text
        self.clause = clause
        self.forbidden = forbidden

    def __str__(self) -> str:
        return f"{self.text} (virtio 1.3, {self.clause})"
