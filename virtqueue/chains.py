# SPDX-License-Identifier: Apache-2.0
"""One descriptor chain, walked read-only: its descriptors in order, and every rule it breaks.

The part of the walker that follows descriptors, direct and indirect. It never raises for anything that stands in guest
memory, looks at each descriptor once, and stops where its budget ends. Which heads there are is walker's business.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntFlag
from typing import Final

from vhost_scsi.virtqueue.layout import DESC_BYTES, DescFlag
from vhost_scsi.virtqueue.memory import AddressError, ReadableMemory
from vhost_scsi.virtqueue.ring_rules import RingRule

FOUR_GIB: Final = 1 << 32
SHORT_TABLE: Final = 4096  # bytes
_ENTRY: Final = struct.Struct("<QIHH")
# Plain numbers: an operation on a flag of an enumeration takes longer than all else that is done with a descriptor.
NEXT, WRITE, INDIRECT = int(DescFlag.NEXT), int(DescFlag.WRITE), int(DescFlag.INDIRECT)


class HeadState(Enum):
    """Where the chain of a head stands. Heads that are not mentioned are free."""

    POSTED = "posted"  # available, the device has not taken it
    IN_FLIGHT = "in flight"  # the device has taken it
    OUTSTANDING = "outstanding"  # one of the two: the device's position is not known
    USED_UNSEEN = "used, unseen"  # used, the driver has not collected it, as far as used_event tells


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One descriptor as it was read; `indirect` says it stood in an indirect table, `index` is its place there."""

    index: int
    indirect: bool
    address: int
    length: int
    flags: int
    next: int

    @property
    def writable(self) -> bool:
        return bool(self.flags & WRITE)


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken, and where: the descriptor or ring index, and the value that broke it."""

    rule: RingRule
    index: int | None = None
    value: int | None = None
    indirect: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain. `descriptors` are in order from the head; one that refers to a table stands before its content."""

    head: int
    state: HeadState
    descriptors: tuple[Descriptor, ...]
    violations: tuple[Violation, ...]
    truncated: bool

    @property
    def buffers(self) -> tuple[Descriptor, ...]:
        """The descriptors that are buffers, not tables."""
        return tuple(d for d in self.descriptors if not d.flags & INDIRECT)

    @property
    def readable_bytes(self) -> int:
        return sum(d.length for d in self.buffers if not d.writable)

    @property
    def writable_bytes(self) -> int:
        return sum(d.length for d in self.buffers if d.writable)

    @property
    def valid(self) -> bool:
        """No rule of the standard broken, as far as it was walked."""
        return not any(v.rule.forbidden for v in self.violations)

    def read(self, memory: ReadableMemory, length: int) -> bytes:
        """The first `length` bytes of the device-readable buffers, fewer where they end or are not in memory."""
        data = b""
        for buffer in self.buffers:
            if buffer.writable or len(data) >= length:
                break
            try:
                data += memory.read(buffer.address, min(buffer.length, length - len(data)))
            except AddressError:
                break
        return data


def members(chains: Iterable[Chain], size: int) -> set[int]:
    """Descriptors of the ring's own table that stand in a chain behind its first one."""
    found: set[int] = set()
    for chain in chains:
        direct = [each.index for each in chain.descriptors if not each.indirect and each.index < size]
        found.update(direct[1:])
    return found


def flag_names(flags: type[IntFlag], value: int | None) -> list[str] | None:
    """The names of the bits that are set; those without a name as one number."""
    if value is None:
        return None
    names = [flag.name for flag in flags if flag & value and flag.name]
    unknown = value & ~sum(int(flag) for flag in flags)
    return [*names, *([hex(unknown)] if unknown else [])]


class Budget:
    """Descriptors that may still be looked at."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self) -> bool:
        self.left -= 1
        return self.left >= 0


class ChainWalk:
    """Walks one chain, over a copy of the ring's table and descriptor by descriptor in indirect tables."""

    def __init__(self, memory: ReadableMemory, table: bytes, size: int, indirect: bool, budget: Budget) -> None:
        self._memory = memory
        self._table = table
        self._size = size
        self._indirect = indirect
        self._budget = budget
        self._descriptors: list[Descriptor] = []
        self._violations: list[Violation] = []
        self._truncated = False
        self._bytes = self._buffers = 0
        self._writable_seen = False
        self._spans: list[tuple[int, int, bool, Descriptor]] = []

    def walk(self, head: int, state: HeadState) -> Chain:
        self._direct(head)
        self._check_overlap()
        return Chain(head, state, tuple(self._descriptors), tuple(self._violations), self._truncated)

    def _breaks(self, rule: RingRule, descriptor: Descriptor, value: int | None = None) -> None:
        self._violations.append(Violation(rule, descriptor.index, value, descriptor.indirect))

    @staticmethod
    def _fields(raw: bytes, index: int) -> tuple[int, int, int, int]:
        """Address, length, flags, next of entry `index`. Not by numpy: one at a time that is many times slower."""
        address, length, flags, following = _ENTRY.unpack_from(raw, index * DESC_BYTES)
        return address, length, flags, following

    def _take(self, index: int, indirect: bool, fields: tuple[int, int, int, int]) -> Descriptor | None:
        """Count and note one descriptor; None at the end of the budget."""
        if not self._budget.take():
            self._truncated = True
            return None
        address, length, flags, following = fields
        descriptor = Descriptor(index, indirect, address, length, flags, following)
        self._descriptors.append(descriptor)
        return descriptor

    def _direct(self, head: int) -> None:
        index, passed = head, set[int]()
        while True:
            descriptor = self._take(index, False, self._fields(self._table, index))
            if descriptor is None:
                return
            passed.add(index)
            if descriptor.flags & INDIRECT:
                self._table_descriptor(descriptor)
                return
            self._buffer(descriptor)
            following = self._follow(descriptor, self._size, passed)
            if following is None:
                return
            index = following

    def _follow(self, descriptor: Descriptor, limit: int, passed: set[int]) -> int | None:
        """The next index of the chain, or None at its end, rightful or not."""
        if not descriptor.flags & NEXT:
            return None
        if descriptor.next >= limit:
            self._breaks(RingRule.NEXT_OUT_OF_RANGE, descriptor, descriptor.next)
            return None
        if descriptor.next in passed:
            self._breaks(RingRule.CHAIN_LOOP, descriptor, descriptor.next)
            return None
        if self._buffers >= self._size:
            self._breaks(RingRule.CHAIN_TOO_LONG, descriptor)
            return None
        return descriptor.next

    def _table_descriptor(self, descriptor: Descriptor) -> None:
        """The descriptor that refers to an indirect table. Its WRITE flag means nothing (2.7.5.3.2)."""
        if not self._indirect:
            self._breaks(RingRule.INDIRECT_NOT_NEGOTIATED, descriptor)
        if descriptor.flags & NEXT:
            self._breaks(RingRule.INDIRECT_WITH_NEXT, descriptor, descriptor.next)
        if descriptor.length == 0 or descriptor.length % DESC_BYTES:
            self._breaks(RingRule.INDIRECT_LENGTH_INVALID, descriptor, descriptor.length)
            return
        try:
            self._memory.check(descriptor.address, descriptor.length)
        except AddressError as error:
            rule = RingRule.INDIRECT_TABLE_OVERFLOW if error.overflow else RingRule.INDIRECT_TABLE_UNMAPPED
            self._breaks(rule, descriptor, descriptor.address)
            return
        self._walk_table(descriptor)

    def _short_table(self, table: Descriptor) -> bytes | None:
        """A table of the usual length, read at once; a long one is read as far as it is walked."""
        if table.length > SHORT_TABLE:
            return None
        try:
            return self._memory.read(table.address, table.length)
        except AddressError:
            return None

    def _entry(self, table: Descriptor, whole: bytes | None, index: int) -> tuple[int, int, int, int]:
        """Raises AddressError."""
        if whole is not None:
            return self._fields(whole, index)
        return self._fields(self._memory.read(table.address + index * DESC_BYTES, DESC_BYTES), 0)

    def _walk_table(self, table: Descriptor) -> None:
        entries = table.length // DESC_BYTES
        index, passed = 0, set[int]()
        whole = self._short_table(table)
        while True:
            try:
                fields = self._entry(table, whole, index)
            except AddressError:
                self._breaks(RingRule.INDIRECT_TABLE_UNMAPPED, table, table.address)
                return
            descriptor = self._take(index, True, fields)
            if descriptor is None:
                return
            passed.add(index)
            if descriptor.flags & INDIRECT:
                self._breaks(RingRule.INDIRECT_IN_INDIRECT, descriptor)
                return
            self._buffer(descriptor)
            following = self._follow(descriptor, entries, passed)
            if following is None:
                return
            index = following

    def _buffer(self, descriptor: Descriptor) -> None:
        """Checks of one buffer; the walk goes on behind a bad one, so that all is named."""
        self._buffers += 1
        if descriptor.writable:
            self._writable_seen = True
        elif self._writable_seen:
            self._breaks(RingRule.READABLE_AFTER_WRITABLE, descriptor)
        if descriptor.length == 0:
            self._breaks(RingRule.ZERO_LENGTH, descriptor)
            return
        before, self._bytes = self._bytes, self._bytes + descriptor.length
        if before <= FOUR_GIB < self._bytes:
            self._breaks(RingRule.CHAIN_OVER_4_GIB, descriptor, self._bytes)
        try:
            self._memory.check(descriptor.address, descriptor.length)
        except AddressError as error:
            rule = RingRule.ADDRESS_OVERFLOW if error.overflow else RingRule.ADDRESS_UNMAPPED
            self._breaks(rule, descriptor, descriptor.address)
            return
        span = (descriptor.address, descriptor.address + descriptor.length, descriptor.writable, descriptor)
        self._spans.append(span)

    def _check_overlap(self) -> None:
        """Sweep the buffers by address, keeping the furthest end of all and of the writable ones."""
        end = writable_end = 0
        for start, stop, writable, descriptor in sorted(self._spans, key=lambda span: span[:2]):
            if start < (end if writable else writable_end):
                self._breaks(RingRule.BUFFERS_OVERLAP, descriptor, start)
            end = max(end, stop)
            if writable:
                writable_end = max(writable_end, stop)
