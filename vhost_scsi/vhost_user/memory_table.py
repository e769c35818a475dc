# SPDX-License-Identifier: Apache-2.0
"""What may stand in a map of guest memory, and whether a ring lies inside one.

It checks numbers that a front end claims, against each other and against the file behind a descriptor, before anybody
maps anything. It maps nothing itself, and what it says about a file is true only now: the file can be truncated later,
which the data plane survives by itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from itertools import pairwise

from vhost_scsi.vhost_user.messages import MemoryRegion, VringAddr
from vhost_scsi.vhost_user.rules import ProtocolError, Rule

PAGE = 4096
ADDRESS_SPACE = 1 << 64
MAX_RING_SIZE = 32768  # virtio 1.3, 2.7 and 2.8: the maximum queue size is 32768
SPLIT_ALIGNMENTS = (("desc", 16), ("avail", 2), ("used", 4))  # virtio 1.3, 2.7
PACKED_ALIGNMENTS = (("desc", 16), ("avail", 4), ("used", 4))  # virtio 1.3, 2.8.10.1: both event structures
PACKED_PLACE = 0x7FFF  # of a place in a packed ring: bit 15 is the wrap counter
VRING_F_LOG = 1 << 0
MAX_MEM_SLOTS = 509  # what QEMU takes at most with CONFIGURE_MEM_SLOTS: the KVM memory slots less its own


def check_region(region: MemoryRegion) -> None:
    """Raises ProtocolError unless the region stands for real bytes at real addresses."""
    where = f"region of {region.size:#x} bytes at guest {region.guest_addr:#x}"
    if region.size == 0:
        raise ProtocolError(Rule.REGION_EMPTY, where)
    for name in ("guest_addr", "user_addr", "mmap_offset"):
        if getattr(region, name) + region.size > ADDRESS_SPACE:
            raise ProtocolError(Rule.REGION_OVERFLOW, f"{where}: {name} {getattr(region, name):#x} runs over 2^64")
    # Pages are the unit of mmap, and front ends share pages: guest, user and file addresses are all page multiples.
    for name in ("guest_addr", "size", "user_addr", "mmap_offset"):
        if getattr(region, name) % PAGE:
            raise ProtocolError(
                Rule.REGION_UNALIGNED, f"{where}: {name} {getattr(region, name):#x} is not page-aligned"
            )


def check_file(region: MemoryRegion) -> None:
    """Raises ProtocolError unless the file behind `region.fd` can be mapped and reaches to the region's end."""
    status = os.fstat(region.fd)
    if stat.S_ISCHR(status.st_mode):  # a DAX device has no size; mmap itself will say
        return
    if not stat.S_ISREG(status.st_mode):
        raise ProtocolError(Rule.REGION_NOT_MAPPABLE, f"region at guest {region.guest_addr:#x}: not a file")
    end = region.mmap_offset + region.size
    if status.st_size < end:
        raise ProtocolError(
            Rule.REGION_BEYOND_FILE,
            f"region at guest {region.guest_addr:#x} ends at {end:#x} of a file of {status.st_size:#x} bytes",
        )


def check_overlap(regions: Sequence[MemoryRegion]) -> None:
    """Raises ProtocolError where two regions claim one guest address, or one user address.

    Guest and user addresses are two spaces: the same numbers in both (a front end that maps guest memory 1:1) are fine.
    """
    for name, rule in (("guest_addr", Rule.REGION_GUEST_OVERLAP), ("user_addr", Rule.REGION_USER_OVERLAP)):
        spans = sorted((getattr(region, name), region.size) for region in regions)
        for (start, size), (following, _) in pairwise(spans):
            if start + size > following:
                raise ProtocolError(rule, f"{name} {start:#x} + {size:#x} runs into {following:#x}")


def same_place(a: MemoryRegion, b: MemoryRegion) -> bool:
    """REM_MEM_REG: a region is identified by its guest address, user address and size, not by its offset."""
    return (a.guest_addr, a.user_addr, a.size) == (b.guest_addr, b.user_addr, b.size)


def check_ring_size(num: int, *, packed: bool = False) -> None:
    """virtio 1.3, 2.7: the queue size is a power of 2, at most 32768; 2.8.10.1: any number up to that if packed."""
    if not 0 < num <= MAX_RING_SIZE or (num & (num - 1) and not packed):
        raise ProtocolError(Rule.RING_SIZE, f"{num} entries of a {'packed' if packed else 'split'} ring")


def check_ring_base(base: int, num: int, *, packed: bool = False) -> None:
    """vhost-user: of a split ring the 16 bits of an index; of a packed one two places with wrap counters, the next
    available descriptor below the next used one. `num` 0: the size is not known yet."""
    if not packed:
        if base > 0xFFFF:
            raise ProtocolError(Rule.RING_BASE, f"{base:#x} for a split ring")
        return
    for name, word in (("available", base & 0xFFFF), ("used", base >> 16)):
        if num and word & PACKED_PLACE >= num:
            raise ProtocolError(Rule.RING_BASE, f"{base:#x}: {name} descriptor {word & PACKED_PLACE} of {num}")


def check_ring_addr(addr: VringAddr, *, packed: bool = False) -> None:
    """Alignments, and flags that we serve: logging (VHOST_VRING_F_LOG) is not offered."""
    if addr.flags:
        what = "logging is not offered" if addr.flags == VRING_F_LOG else "unknown"
        raise ProtocolError(Rule.RING_FLAGS, f"flags {addr.flags:#x}: {what}")
    for name, alignment in PACKED_ALIGNMENTS if packed else SPLIT_ALIGNMENTS:
        if getattr(addr, name) % alignment:
            raise ProtocolError(
                Rule.RING_UNALIGNED, f"{name} {getattr(addr, name):#x} is not a multiple of {alignment}"
            )


def check_ring_mapped(addr: VringAddr, num: int, regions: Sequence[MemoryRegion], *, packed: bool = False) -> None:
    """Raises ProtocolError unless each part of the ring lies in one region, by its user address."""
    for name, start, size in _ring_parts(addr, num, packed):
        if start + size > ADDRESS_SPACE:
            raise ProtocolError(Rule.RING_OVERFLOW, f"{name} {start:#x} + {size:#x} runs over 2^64")
        if not any(each.user_addr <= start and start + size <= each.user_addr + each.size for each in regions):
            raise ProtocolError(Rule.RING_NOT_MAPPED, f"{name} {start:#x} + {size:#x} is in no memory region")


def _ring_parts(addr: VringAddr, num: int, packed: bool) -> Iterator[tuple[str, int, int]]:
    # virtio 1.3, 2.7: 16 bytes an entry; 6 + 2 * num; 6 + 8 * num, with used_event and avail_event always counted.
    # 2.8.10.1: 16 bytes an entry; 4; 4.
    yield "desc", addr.desc, 16 * num
    yield "avail", addr.avail, 4 if packed else 6 + 2 * num
    yield "used", addr.used, 4 if packed else 6 + 8 * num
