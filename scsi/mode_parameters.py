# SPDX-License-Identifier: Apache-2.0
"""The mode pages of one logical unit with their current, default and saved values: those that its type has, and those
that whoever defines it gives. What a changed bit does is `mode`; the pages that we have are rows of `mode_pages`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from vhost_scsi.scsi.command import DISK_AND_CD, DeviceType, Feature
from vhost_scsi.scsi.mode_pages import CACHING, PAGES, READ_WRITE_ERROR_RECOVERY, SPF, ModePage, page_key

LAST_CODE, LAST_SUBPAGE = 0x3E, 0xFE
GIVEN_MAX: Final = 32
"""pages that one unit may be given"""
SHORT_MAX, LONG_MAX = 255, 1020
"""bytes behind the header of a page, without and with a subpage code"""


@dataclass(frozen=True, slots=True)
class GivenPage:
    """A page that somebody gives a unit: `values` is what stands behind the header, and so is `changeable`, of the same
    length or empty. With the code of a page that we have it gives that one other defaults, and no other bits to
    change."""

    code: int
    subpage: int
    values: bytes
    changeable: bytes = b""

    @property
    def name(self) -> str:
        return "given"

    @property
    def device_types(self) -> frozenset[DeviceType]:
        return DISK_AND_CD

    @property
    def requires(self) -> Feature:
        return Feature.NONE

    @property
    def key(self) -> int:
        return self.code << 8 | self.subpage

    @property
    def header_bytes(self) -> int:
        return 4 if self.subpage else 2

    def _whole(self, body: bytes) -> bytes:
        if self.subpage:
            return bytes([SPF | self.code, self.subpage]) + len(body).to_bytes(2) + body
        return bytes([self.code, len(body)]) + body

    @property
    def default(self) -> bytes:
        return self._whole(self.values)

    @property
    def mask(self) -> bytes:
        return self._whole(self.changeable or bytes(len(self.values)))

    @property
    def can_be_saved(self) -> bool:
        return any(self.changeable)


Page = ModePage | GivenPage


def _own(device_type: DeviceType) -> dict[int, ModePage]:
    """By key: the rows of that type, and those of others where it has none."""
    rows = sorted(PAGES, key=lambda page: device_type in page.device_types)
    return {page.key: page for page in rows}


def problem(device_type: DeviceType, given: Iterable[GivenPage]) -> str | None:
    """What is wrong with these pages, in words; None: nothing."""
    own, seen = _own(device_type), set()
    pages = list(given)
    if len(pages) > GIVEN_MAX:
        return f"{len(pages)} mode pages: a unit takes {GIVEN_MAX}"
    for page in pages:
        said = f"mode page {page.code:02X}h" + (f"/{page.subpage:02X}h" if page.subpage else "")
        if page.key in seen:
            return f"{said} is given twice"
        seen.add(page.key)
        if why := _wrong(page, own.get(page.key), device_type):
            return f"{said}: {why}"
    return None


def _wrong(page: GivenPage, row: ModePage | None, device_type: DeviceType) -> str | None:
    if not 1 <= page.code <= LAST_CODE or not 0 <= page.subpage <= LAST_SUBPAGE:
        return f"codes go from 01h to {LAST_CODE:02X}h, subpages from 00h to {LAST_SUBPAGE:02X}h"
    most = LONG_MAX if page.subpage else SHORT_MAX
    if not 1 <= len(page.values) <= most:
        return f"{len(page.values)} bytes of values; there must be 1 to {most}"
    if page.changeable and len(page.changeable) != len(page.values):
        return f"{len(page.changeable)} bytes say what can be changed of {len(page.values)}"
    if row is None or device_type not in row.device_types:
        return None
    if page.changeable:
        return "is one of ours, and what can be changed of it is not for others to say"
    if len(page.default) != len(row.default):
        return f"is one of ours, with {len(row.default) - row.header_bytes} bytes of values, not {len(page.values)}"
    for at, (ours, theirs, mask) in enumerate(zip(row.default, page.default, row.mask, strict=True)):
        if (ours ^ theirs) & ~mask and at >= row.header_bytes:
            return (
                f"is one of ours, and byte {at} may differ from {ours:02X}h in the bits of {mask:02X}h only; "
                f"{theirs:02X}h does not"
            )
    return None


class ModeParameters:
    """`pages`: those that a unit of its type may have, in ascending order; `given` is without a problem."""

    __slots__ = ("_by_key", "_current", "_defaults", "_saved", "pages")

    def __init__(
        self,
        *,
        device_type: DeviceType = DeviceType.DISK,
        given: Iterable[GivenPage] = (),
        write_cache: bool = True,
        retries: int = 0,
        saved: bytes = b"",
    ) -> None:
        own = _own(device_type)
        self._defaults = {key: page.default for key, page in own.items()}
        if not write_cache:
            self._defaults[CACHING.key] = CACHING.build({"wce": 0})
        counts = {"read_retry_count": retries, "write_retry_count": retries}
        self._defaults[READ_WRITE_ERROR_RECOVERY.key] = READ_WRITE_ERROR_RECOVERY.build(counts)
        found: dict[int, Page] = {key: page for key, page in own.items() if device_type in page.device_types}
        for page in given:
            self._defaults[page.key] = page.default
            found.setdefault(page.key, page)
        self.pages: Final = tuple(found[key] for key in sorted(found))
        self._by_key = found
        self._saved = dict(self._defaults)
        self._saved.update(self._parse_saved(saved))
        self._current = dict(self._saved)

    def find(self, key: int) -> Page | None:
        return self._by_key.get(key)

    def _parse_saved(self, blob: bytes) -> dict[int, bytes]:
        """Pages that we still have, and only the bits in them that can still change."""
        found: dict[int, bytes] = {}
        while len(blob) >= 2:
            page = self._by_key.get(page_key(blob))
            length = 4 + int.from_bytes(blob[2:4]) if blob[0] & SPF else 2 + blob[1]
            data, blob = blob[:length], blob[length:]
            if page is not None and len(data) == len(page.mask):
                kept = zip(self._defaults[page.key], data, page.mask, strict=True)
                fresh = bytes(default & ~mask | new & mask for default, new, mask in kept)
                found[page.key] = self._defaults[page.key][: page.header_bytes] + fresh[page.header_bytes :]
        return found

    def current(self, page: Page) -> bytes:
        return self._current[page.key]

    def current_of(self, key: int) -> bytes:
        return self._current[key]

    def default(self, page: Page) -> bytes:
        return self._defaults[page.key]

    def saved(self, page: Page) -> bytes:
        """What a power on or a reset brings back: the default where nothing was saved."""
        return self._saved[page.key]

    def field(self, page: ModePage, name: str) -> int:
        return page.field(self._current[page.key], name)

    def all_saved(self) -> dict[int, bytes]:
        return dict(self._saved)

    @property
    def as_saved(self) -> bool:
        """Nothing differs from what a power on brings."""
        return self._current == self._saved

    def replace(self, pages: dict[int, bytes]) -> None:
        """Makes the given pages current; their lengths and codes have been checked."""
        self._current.update(pages)

    def _saveable(self) -> Iterable[Page]:
        return (page for page in self.pages if page.can_be_saved)

    def to_save(self) -> bytes:
        """The blob of the current values."""
        return b"".join(self._current[page.key] for page in self._saveable())

    def now_saved(self) -> None:
        """The blob has been kept."""
        self._saved.update({page.key: self._current[page.key] for page in self._saveable()})
