# SPDX-License-Identifier: Apache-2.0
"""What the driver sides of both layouts have in common: where a ring lies, buffers, tables, tokens, in-order use.

`SplitDriver` and `PackedDriver` are this with a layout each: how a chain is written into the ring, how it is shown to
the device, and what a used element looks like. Whoever drives a device takes a `RingDriver` and does not ask which.

    VhostScsiError
      QueueFullError   no descriptors left; collect first
      DeviceError      the device wrote something into the ring that 2.7.8, 2.7.9 or 2.8 forbids
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from vhost_scsi.errors import VhostScsiError
from vhost_scsi.virtqueue.accessors import Accessors, core_accessors
from vhost_scsi.virtqueue.layout import DESC_ALIGN, DESC_BYTES, DescFlag, RingAddresses
from vhost_scsi.virtqueue.memory import GuestBuffer, GuestMemory

Element = GuestBuffer | tuple[int, int]
Placed = tuple[int, int, int]
"""address, length, flags"""


class QueueFullError(VhostScsiError):
    """The chain needs more free descriptors than there are."""


class DeviceError(VhostScsiError):
    """The device broke a rule of the used ring, or of used descriptors."""


class Used(NamedTuple):
    """One buffer that came back: its token, and how many bytes the device says it wrote."""

    token: Any
    written: int


@dataclass(slots=True)
class Outstanding:
    """A chain the device has, or will have once published. `descriptors`: those it holds, or only so many of them."""

    token: Any
    descriptors: list[int] | int
    table: GuestBuffer | None
    writable_bytes: int


def place_elements(out: Sequence[Element], in_: Sequence[Element]) -> list[Placed]:
    """(address, length, flags) of each element, readable before writable (2.7.4.2)."""
    placed = []
    for elements, flag in ((out, 0), (in_, int(DescFlag.WRITE))):
        for element in elements:
            address, length = (element.address, element.length) if isinstance(element, GuestBuffer) else element
            placed.append((address, length, flag))
    return placed


class RingDriver(ABC):
    """Driver side of one queue of `size` entries in `memory`.

    The ring is allocated in `memory` unless `addresses` says where it stands. `event_idx`, `indirect` and `in_order`
    are what was negotiated. Not safe for use from two threads.
    """

    # For words in errors: what a chain is called, and the clauses for the empty, the too long and the indirect one.
    clauses: ClassVar[tuple[str, str, str]]
    noun: ClassVar[str]
    mixes: ClassVar[bool] = True
    """a table may stand behind descriptors of the ring itself"""

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        *,
        event_idx: bool = True,
        indirect: bool = True,
        in_order: bool = False,
        accessors: Accessors | None = None,
        addresses: RingAddresses | None = None,
    ) -> None:
        self.memory = memory
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.in_order = in_order
        self._ring_buffers: list[GuestBuffer] = []
        self.addresses = addresses or self._allocate_ring()
        if self.addresses.size != size:
            raise ValueError(f"ring addresses are of a queue of {self.addresses.size}, not of {size}")
        self._accessors = accessors if accessors is not None else core_accessors()
        self.notifications = True
        self._outstanding: dict[int, Outstanding] = {}
        # In-order use: what was added, oldest first, and the used element that stands for several of them.
        self._order: deque[int] = deque()
        self._batch: tuple[int, int] | None = None

    @classmethod
    @abstractmethod
    def parts(cls, size: int) -> tuple[tuple[int, int], ...]:
        """(bytes, alignment) of the three parts of a ring of this size, as RingAddresses names them."""

    def _allocate_ring(self) -> RingAddresses:
        """The three parts as separate pieces: nothing may depend on their standing together (2.7, 2.8)."""
        self._ring_buffers = [self.memory.allocate(length, align) for length, align in self.parts(self.size)]
        return RingAddresses(self.size, *(buffer.address for buffer in self._ring_buffers))

    def _clear(self) -> None:
        """What both layouts forget when the ring begins anew."""
        self.notifications = True
        self._outstanding.clear()
        self._order.clear()
        self._batch = None

    # ---- what a layout does ---------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def free_descriptors(self) -> int: ...

    @property
    @abstractmethod
    def first_base(self) -> int:
        """vhost-user's VRING_BASE of a ring that nobody has used yet."""

    @property
    @abstractmethod
    def base(self) -> int:
        """vhost-user's VRING_BASE of a device that has used all that was published."""

    @property
    @abstractmethod
    def notification_place(self) -> int:
        """next_off and next_wrap of NOTIFICATION_DATA, as one 16-bit number (2.7.23, 2.8.21.2)."""

    @abstractmethod
    def _reset(self) -> None:
        """The ring as nobody has used it."""

    @abstractmethod
    def _write_table(self, elements: Sequence[Placed]) -> GuestBuffer: ...

    @abstractmethod
    def _place(self, elements: Sequence[Placed], chain: Outstanding) -> int:
        """Write the descriptors, unseen by the device; returns what names the chain."""

    @abstractmethod
    def publish(self) -> bool:
        """Show everything added since the last call to the device; whether it wants a notification."""

    @abstractmethod
    def _has_used(self) -> bool:
        """The device has used another element. Acquire: what it wrote before is seen after."""

    @abstractmethod
    def _used_element(self) -> tuple[int, int]:
        """The next used element: what it names, and the bytes written. Raises DeviceError where nobody knows it."""

    @abstractmethod
    def _release(self, id_: int, chain: Outstanding) -> None:
        """Its descriptors are free again."""

    @abstractmethod
    def _advance(self, chain: Outstanding) -> None:
        """The next used element is looked for behind this chain."""

    @abstractmethod
    def enable_notifications(self, after: int = 1) -> bool:
        """Ask to be notified when `after` more elements are used; True if there is something to collect already.

        `after` above 1 needs event index; without it every used buffer notifies.
        """

    @abstractmethod
    def disable_notifications(self) -> None:
        """Advise the device that we are looking anyway."""

    # ---- what is the same in both ---------------------------------------------------------------------------------

    @property
    def outstanding(self) -> int:
        """Chains added and not yet collected."""
        return len(self._outstanding)

    @property
    def pending(self) -> bool:
        """Whether there is something to collect."""
        return self._batch is not None or self._has_used()

    def notification_data(self, queue: int) -> int:
        """What a driver writes to notify a device that negotiated NOTIFICATION_DATA: queue, and where it stands."""
        return queue & 0xFFFF | self.notification_place << 16

    def add(
        self,
        out: Sequence[Element] = (),
        in_: Sequence[Element] = (),
        *,
        token: Any = None,
        indirect: bool | None = None,
        direct_prefix: int = 0,
    ) -> int:
        """Put one chain into the ring, unseen by the device until `publish`; returns its head or buffer id.

        `out` are device-readable elements, `in_` device-writable ones. `indirect` puts the elements into an indirect
        table (default: where negotiated and there is more than one); the first `direct_prefix` of them stay in the
        ring's own table then, which 2.7.5.3.2 allows and 2.8.19 does not. Raises QueueFullError when there are too few
        free descriptors.
        """
        elements = place_elements(out, in_)
        empty, too_long, not_negotiated = self.clauses
        if not elements:
            raise ValueError(f"a {self.noun} has at least one element ({empty})")
        if len(elements) > self.size:
            raise ValueError(f"{len(elements)} elements in a queue of {self.size} ({too_long})")
        if indirect is None:
            indirect = self.indirect and len(elements) > 1
        if indirect and not self.indirect:
            raise ValueError(f"INDIRECT_DESC was not negotiated ({not_negotiated})")
        if not 0 <= direct_prefix < (len(elements) if self.mixes else 1):
            raise ValueError(f"direct prefix {direct_prefix} of {len(elements)} elements")
        needed = direct_prefix + 1 if indirect else len(elements)
        if needed > self.free_descriptors:
            raise QueueFullError(f"chain needs {needed} descriptors, {self.free_descriptors} are free")
        table = self._write_table(elements[direct_prefix:]) if indirect else None
        if table is not None:
            elements[direct_prefix:] = [(table.address, table.length, int(DescFlag.INDIRECT))]
        writable = sum(e.length if isinstance(e, GuestBuffer) else e[1] for e in in_)
        chain = Outstanding(token, needed, table, writable)
        id_ = self._place(elements, chain)
        self._note(id_, chain)
        return id_

    def _note(self, id_: int, chain: Outstanding) -> None:
        self._outstanding[id_] = chain
        if self.in_order:
            self._order.append(id_)

    def _new_table(self, entries: int) -> GuestBuffer:
        return self.memory.allocate(DESC_BYTES * entries, DESC_ALIGN)

    def collect(self, limit: int | None = None) -> Iterator[Used]:
        """Buffers the device has used, in its order; at most `limit`. Raises DeviceError for what the rules forbid.

        Descriptors of a buffer are free again when it is yielded. With notifications enabled, the one for the next
        buffer is asked for before the iterator ends, and the ring looked at once more after that (2.7.14, 2.8.22).
        """
        left = self.size if limit is None else limit
        while left > 0:
            if self.pending:
                left -= 1
                yield self._take_used()
            elif not self.notifications or not self.enable_notifications():
                return

    def _take_used(self) -> Used:
        id_, written = self._batch or self._used_element()
        chain = self._outstanding[id_]
        if written > chain.writable_bytes:
            raise DeviceError(f"{self._name(id_)}: {written} bytes written to {chain.writable_bytes} writable ones")
        if self.in_order:
            id_, written = self._oldest_of(id_, written)
            chain = self._outstanding[id_]
        del self._outstanding[id_]
        self._release(id_, chain)
        self._advance(chain)
        if chain.table is not None:
            self.memory.free(chain.table)
        return Used(chain.token, written)

    def _oldest_of(self, id_: int, written: int) -> tuple[int, int]:
        """2.7.9, 2.8.8: one element may stand for all chains up to the one that it names; the device has then used the
        others completely."""
        if self._batch is not None and not self._has_more():
            raise DeviceError(f"{self._name(id_)} was used in a batch that is longer than what was used")
        first = self._order.popleft()
        self._batch = (id_, written) if first != id_ else None
        return (first, self._outstanding[first].writable_bytes) if first != id_ else (id_, written)

    def _has_more(self) -> bool:
        """Inside a batch: the device's own count reaches further. A layout without such a count has nothing to say."""
        return True

    def _name(self, id_: int) -> str:
        return f"buffer {id_}"

    def detach(self) -> list[Any]:
        """After the device was reset or the ring stopped: take every chain back, clear the ring; the tokens, by age."""
        chains = list(self._outstanding.items())
        for id_, chain in chains:
            self._release(id_, chain)
            if chain.table is not None:
                self.memory.free(chain.table)
        self._reset()
        return [chain.token for _, chain in chains]

    def close(self) -> None:
        """Detach, and give the ring's memory back if it was allocated here."""
        self.detach()
        for buffer in self._ring_buffers:
            self.memory.free(buffer)
        self._ring_buffers = []
