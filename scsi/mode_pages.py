# SPDX-License-Identifier: Apache-2.0
"""Mode pages, one row each: layout, default values, and which bits MODE SELECT may change (SPC-5 7.5, SBC-4 6.5).

What a changed bit does is `mode`; this file knows bits only. Every bit that is not zero says something true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from construct import BitsInteger, BitStruct, Bytewise, Flag, Int16ub, Padding

from vhost_scsi.scsi.command import CD, DISK, DISK_AND_CD, SECONDS, DeviceType

SPF: Final = 0x40
SAVED_BLOB: Final = "mode-pages"
"""the name under which saved pages are kept: one after the other, as MODE SELECT sends them"""


@dataclass(frozen=True, slots=True)
class ModePage:
    """`layout` is the page behind its header; `defaults` and `changeable` name fields of it, all others are zero. What
    can be changed can be saved. `device_types`: units that have the page."""

    code: int
    name: str
    layout: Any
    defaults: dict[str, int]
    changeable: dict[str, int]
    device_types: frozenset[DeviceType] = DISK
    subpage: int = 0

    @property
    def key(self) -> int:
        """Code and subpage in one number."""
        return self.code << 8 | self.subpage

    @property
    def header_bytes(self) -> int:
        """SPC-5 7.5.6, 7.5.7: page_0 and subpage format."""
        return 4 if self.subpage else 2

    def build(self, values: dict[str, int]) -> bytes:
        fields = {sub.name: values.get(sub.name, 0) for sub in self.layout.subcon.subcons if sub.name}
        body: bytes = self.layout.build(fields)
        if self.subpage:
            return bytes([SPF | self.code, self.subpage]) + len(body).to_bytes(2) + body
        return bytes([self.code, len(body)]) + body

    @property
    def default(self) -> bytes:
        return self.build(self.defaults)

    @property
    def mask(self) -> bytes:
        """The changeable values: 1 where a bit may change. Code and length stand as in the page (SPC-5 6.13.3)."""
        return self.build(self.changeable)

    @property
    def can_be_saved(self) -> bool:
        return bool(self.changeable)

    def field(self, page: bytes, name: str) -> int:
        return int(self.layout.parse(page[self.header_bytes :])[name])


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
    DISK_AND_CD,
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

# SBC-4 6.5.9
VERIFY_ERROR_RECOVERY: Final = ModePage(
    0x07,
    "Verify Error Recovery",
    BitStruct(
        Padding(4),
        "eer" / Flag,
        "per" / Flag,
        "dte" / Flag,
        "dcr" / Flag,
        "verify_retry_count" / BitsInteger(8),
        Padding(48),
        "verify_recovery_time_limit" / Bytewise(Int16ub),
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
    {"tst": 1, "d_sense": 1, "ua_intlck_ctrl": 3, "swp": 1, "tas": 1},
    DISK_AND_CD,
)

# SPC-5 7.5.11. The host's clock sets the time (TCMOS), and SET TIMESTAMP goes before it (SCSIP).
CONTROL_EXTENSION: Final = ModePage(
    0x0A,
    "Control Extension",
    BitStruct(
        Padding(5),
        "tcmos" / Flag,
        "scsip" / Flag,
        "ialuae" / Flag,
        Padding(4),
        "initial_command_priority" / BitsInteger(4),
        "maximum_sense_data_length" / BitsInteger(8),
        Padding(200),
    ),
    {"tcmos": 1, "scsip": 1, "maximum_sense_data_length": 252},
    {},
    subpage=0x01,
)

# SPC-5 7.5.15. Every timer is disabled: conditions change by command only.
POWER_CONDITION: Final = ModePage(
    0x1A,
    "Power Condition",
    BitStruct(
        "pm_bg_precedence" / BitsInteger(2),
        Padding(5),
        "standby_y" / Flag,
        Padding(4),
        "idle_c" / Flag,
        "idle_b" / Flag,
        "idle_a" / Flag,
        "standby_z" / Flag,
        Padding(160),
        Padding(128),
    ),
    {},
    {},
    DISK_AND_CD,
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
    DISK_AND_CD,
)

# MMC-6 annex of legacy pages. A second is 75 frames, a minute 60 seconds; the drive never spins down by itself.
CD_DEVICE_PARAMETERS: Final = ModePage(
    0x0D,
    "CD Device Parameters",
    BitStruct(
        Padding(8),
        Padding(4),
        "inactivity_timer_multiplier" / BitsInteger(4),
        "seconds_in_a_minute" / Bytewise(Int16ub),
        "frames_in_a_second" / Bytewise(Int16ub),
    ),
    {"seconds_in_a_minute": 60, "frames_in_a_second": 75},
    {},
    CD,
)

# MMC-6, for the Timeout feature. Seconds; nothing is a recorder's long operation.
TIMEOUT_AND_PROTECT: Final = ModePage(
    0x1D,
    "Timeout and Protect",
    BitStruct(
        Padding(16),
        Padding(4),
        "g3enable" / Flag,
        "tmoe" / Flag,
        "disp" / Flag,
        "swpp" / Flag,
        Padding(8),
        "group_1_minimum_timeout" / Bytewise(Int16ub),
        "group_2_minimum_timeout" / Bytewise(Int16ub),
    ),
    {"group_1_minimum_timeout": SECONDS, "group_2_minimum_timeout": SECONDS},
    {},
    CD,
)

# MMC-6 annex of legacy pages: what it reads, how the medium gets in and out. Speeds are in 1000 bytes a second and
# those of no real drive: "as fast as can be said".
CAPABILITIES: Final = ModePage(
    0x2A,
    "CD/DVD Capabilities and Mechanical Status",
    BitStruct(
        Padding(2),
        "dvd_ram_read" / Flag,
        "dvd_r_read" / Flag,
        "dvd_rom_read" / Flag,
        "method_2" / Flag,
        "cd_rw_read" / Flag,
        "cd_r_read" / Flag,
        Padding(8),  # writes nothing
        Padding(8),  # plays no audio, and one session is all
        Padding(8),  # neither audio extraction nor subchannels
        "loading_mechanism" / BitsInteger(3),
        Padding(1),
        "eject" / Flag,
        "prevent_jumper" / Flag,
        "lock_state" / Flag,
        "lock" / Flag,
        Padding(8),
        "maximum_read_speed" / Bytewise(Int16ub),
        "volume_levels" / Bytewise(Int16ub),
        "buffer_kib" / Bytewise(Int16ub),
        "current_read_speed" / Bytewise(Int16ub),
        Padding(8),
        Padding(8),
        Padding(16),
        Padding(16),
        Padding(16),
    ),
    {
        "dvd_rom_read": 1,
        "loading_mechanism": 1,
        "eject": 1,
        "lock": 1,
        "maximum_read_speed": 0xFFFF,
        "current_read_speed": 0xFFFF,
    },
    {},
    CD,
)

PAGES: Final[tuple[ModePage, ...]] = (
    READ_WRITE_ERROR_RECOVERY,
    DISCONNECT_RECONNECT,
    VERIFY_ERROR_RECOVERY,
    CACHING,
    CONTROL,
    CONTROL_EXTENSION,
    CD_DEVICE_PARAMETERS,
    POWER_CONDITION,
    INFORMATIONAL_EXCEPTIONS_CONTROL,
    TIMEOUT_AND_PROTECT,
    CAPABILITIES,
)

BY_KEY: Final = {page.key: page for page in PAGES}


def page_key(data: bytes) -> int:
    """The key of the page that begins here; at least two bytes."""
    return (data[0] & 0x3F) << 8 | (data[1] if data[0] & SPF else 0)


class ModeParameters:
    """The current, default and saved values of all pages of one logical unit."""

    __slots__ = ("_current", "_defaults", "_saved")

    def __init__(self, *, write_cache: bool = True, saved: bytes = b"") -> None:
        self._defaults = {page.key: page.default for page in PAGES}
        if not write_cache:
            self._defaults[CACHING.key] = CACHING.build({"wce": 0})
        self._saved = dict(self._defaults)
        self._saved.update(self._parse_saved(saved))
        self._current = dict(self._saved)

    def _parse_saved(self, blob: bytes) -> dict[int, bytes]:
        """Pages that we still have, and only the bits in them that can still change."""
        found: dict[int, bytes] = {}
        while len(blob) >= 2:
            page = BY_KEY.get(page_key(blob))
            length = 4 + int.from_bytes(blob[2:4]) if blob[0] & SPF else 2 + blob[1]
            data, blob = blob[:length], blob[length:]
            if page is not None and len(data) == len(page.mask):
                kept = zip(self._defaults[page.key], data, page.mask, strict=True)
                fresh = bytes(default & ~mask | new & mask for default, new, mask in kept)
                found[page.key] = self._defaults[page.key][: page.header_bytes] + fresh[page.header_bytes :]
        return found

    def current(self, page: ModePage) -> bytes:
        return self._current[page.key]

    def default(self, page: ModePage) -> bytes:
        return self._defaults[page.key]

    def saved(self, page: ModePage) -> bytes:
        """What a power on or a reset brings back: the default where nothing was saved."""
        return self._saved[page.key]

    def field(self, page: ModePage, name: str) -> int:
        return page.field(self._current[page.key], name)

    def all_saved(self) -> dict[int, bytes]:
        return dict(self._saved)

    def replace(self, pages: dict[int, bytes]) -> None:
        """Makes the given pages current; their lengths and codes have been checked."""
        self._current.update(pages)

    def to_save(self) -> bytes:
        """The blob of the current values."""
        return b"".join(self._current[page.key] for page in PAGES if page.can_be_saved)

    def now_saved(self) -> None:
        """The blob has been kept."""
        self._saved.update({page.key: self._current[page.key] for page in PAGES if page.can_be_saved})
