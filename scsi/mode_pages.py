# SPDX-License-Identifier: Apache-2.0
"""Mode pages, one row each: layout, default values, and which bits MODE SELECT may change (SPC-5 7.5, SBC-4 6.5).

What a changed bit does is `mode`; this file knows bits only. Every bit that is not zero says something true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from construct import BitsInteger, BitStruct, Bytewise, Flag, Int16ub, Padding

HEADER_BYTES: Final = 2
"""page code and page length; no page of ours has the subpage format"""


@dataclass(frozen=True, slots=True)
class ModePage:
    """`layout` is the page from byte 2 on; `defaults` and `changeable` name fields of it, all others are zero."""

    code: int
    name: str
    layout: Any
    defaults: dict[str, int]
    changeable: dict[str, int]

    def build(self, values: dict[str, int]) -> bytes:
        fields = {sub.name: values.get(sub.name, 0) for sub in self.layout.subcon.subcons if sub.name}
        body: bytes = self.layout.build(fields)
        return bytes([self.code, len(body)]) + body

    @property
    def default(self) -> bytes:
        return self.build(self.defaults)

    @property
    def mask(self) -> bytes:
        """The changeable values: 1 where a bit may change. Code and length stand as in the page (SPC-5 6.13.3)."""
        return self.build(self.changeable)

    def field(self, page: bytes, name: str) -> int:
        return int(self.layout.parse(page[HEADER_BYTES:])[name])


# SBC-4 6.5.10. Nothing is recovered by rewriting or retrying, so nothing is claimed.
READ_WRITE_ERROR_RECOVERY: Final = ModePage(
    0x01,
    "Read-Write Error Recovery",
    BitStruct(
        "awre" / Flag,
        "arre" / Flag,
        "tb" / Flag,
        "rc" / Flag,
        "eer" / Flag,
        "per" / Flag,
        "dte" / Flag,
        "dcr" / Flag,
        "read_retry_count" / BitsInteger(8),
        Padding(24),
        "lbpere" / Flag,
        Padding(7),
        "write_retry_count" / BitsInteger(8),
        Padding(8),
        "recovery_time_limit" / Bytewise(Int16ub),
    ),
    {},
    {},
)

# SPC-5 7.5.11. Buffers, timers and burst sizes belong to a parallel bus; zero leaves them to the target.
DISCONNECT_RECONNECT: Final = ModePage(
    0x02,
    "Disconnect-Reconnect",
    BitStruct(
        "buffer_full_ratio" / BitsInteger(8),
        "buffer_empty_ratio" / BitsInteger(8),
        "bus_inactivity_limit" / Bytewise(Int16ub),
        "disconnect_time_limit" / Bytewise(Int16ub),
        "connect_time_limit" / Bytewise(Int16ub),
        "maximum_burst_size" / Bytewise(Int16ub),
        Padding(16),
        "first_burst_size" / Bytewise(Int16ub),
    ),
    {},
    {},
)

# SBC-4 6.5.6
CACHING: Final = ModePage(
    0x08,
    "Caching",
    BitStruct(
        Padding(5),
        "wce" / Flag,
        Padding(1),
        "rcd" / Flag,
        Padding(136),
    ),
    {"wce": 1},
    {"wce": 1},
)

# SPC-5 7.5.10. QUEUE ALGORITHM MODIFIER 1: SIMPLE tasks are reordered freely. BUSY TIMEOUT PERIOD FFFFh: no limit.
CONTROL: Final = ModePage(
    0x0A,
    "Control",
    BitStruct(
        "tst" / BitsInteger(3),
        "tmf_only" / Flag,
        "dpicz" / Flag,
        "d_sense" / Flag,
        "gltsd" / Flag,
        "rlec" / Flag,
        "queue_algorithm_modifier" / BitsInteger(4),
        "nuar" / Flag,
        "qerr" / BitsInteger(2),
        Padding(1),
        Padding(1),
        "rac" / Flag,
        "ua_intlck_ctrl" / BitsInteger(2),
        "swp" / Flag,
        Padding(3),
        "ato" / Flag,
        "tas" / Flag,
        "atmpe" / Flag,
        "rwwp" / Flag,
        Padding(1),
        "autoload_mode" / BitsInteger(3),
        Padding(16),
        "busy_timeout_period" / Bytewise(Int16ub),
        "extended_self_test_completion_time" / Bytewise(Int16ub),
    ),
    {"queue_algorithm_modifier": 1, "busy_timeout_period": 0xFFFF},
    {"d_sense": 1, "swp": 1},
)

# SPC-5 7.5.13 (SBC-4 6.5.8). DEXCPT: no informational exceptions are reported.
INFORMATIONAL_EXCEPTIONS_CONTROL: Final = ModePage(
    0x1C,
    "Informational Exceptions Control",
    BitStruct(
        "perf" / Flag,
        Padding(1),
        "ebf" / Flag,
        "ewasc" / Flag,
        "dexcpt" / Flag,
        "test" / Flag,
        "ebackerr" / Flag,
        "logerr" / Flag,
        Padding(4),
        "mrie" / BitsInteger(4),
        Padding(64),
    ),
    {"dexcpt": 1},
    {},
)

PAGES: Final[tuple[ModePage, ...]] = (
    READ_WRITE_ERROR_RECOVERY,
    DISCONNECT_RECONNECT,
    CACHING,
    CONTROL,
    INFORMATIONAL_EXCEPTIONS_CONTROL,
)

BY_CODE: Final = {page.code: page for page in PAGES}


class ModeParameters:
    """The current and default values of all pages of one logical unit. Nothing is saved (PS=0)."""

    __slots__ = ("_current", "_defaults")

    def __init__(self, *, write_cache: bool = True) -> None:
        self._defaults = {page.code: page.default for page in PAGES}
        if not write_cache:
            self._defaults[CACHING.code] = CACHING.build({"wce": 0})
        self._current = dict(self._defaults)

    def current(self, page: ModePage) -> bytes:
        return self._current[page.code]

    def default(self, page: ModePage) -> bytes:
        return self._defaults[page.code]

    def field(self, page: ModePage, name: str) -> int:
        return page.field(self._current[page.code], name)

    def all_defaults(self) -> dict[int, bytes]:
        return dict(self._defaults)

    def replace(self, pages: dict[int, bytes]) -> None:
        """Makes the given pages current; their lengths and codes have been checked."""
        self._current.update(pages)
