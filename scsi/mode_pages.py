# SPDX-License-Identifier: Apache-2.0
"""Mode pages, one row each: layout, default values, and which bits MODE SELECT may change (SPC-5 7.5, SBC-4 6.5).

What a changed bit does is `mode`; this file knows bits only. Every bit that is not zero says something true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from construct import BitsInteger, BitStruct, Bytewise, Flag, Int16ub, Int32ub, Padding

from vhost_scsi.scsi.command import CD, DISK, DISK_AND_CD, SECONDS, DeviceType, Feature

SPF: Final = 0x40
SAVED_BLOB: Final = "mode-pages"
"""the name under which saved pages are kept: one after the other, as MODE SELECT sends them"""


@dataclass(frozen=True, slots=True)
class ModePage:
    """`layout` is the page behind its header; `defaults` and `changeable` name fields of it, all others are zero. What
    can be changed can be saved. `device_types`: units that have the page, if they have what it `requires`."""

    code: int
    name: str
    layout: Any
    defaults: dict[str, int]
    changeable: dict[str, int]
    device_types: frozenset[DeviceType] = DISK
    subpage: int = 0
    requires: Feature = Feature.NONE

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


_ERROR_RECOVERY: Final = BitStruct(
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
)

# SBC-4 6.5.10. The retry counts are the unit's. Nothing is recovered by rewriting, so nothing is claimed. LBPERE:
# thresholds are told.
READ_WRITE_ERROR_RECOVERY: Final = ModePage(
    0x01,
    "Read-Write Error Recovery",
    _ERROR_RECOVERY,
    {},
    {"lbpere": 1},
)

DRIVE_ERROR_RECOVERY: Final = ModePage(
    0x01,
    "Read/Write Error Recovery (drive)",
    _ERROR_RECOVERY,
    {},
    {},
    CD,
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
    {"tst": 1, "d_sense": 1, "qerr": 3, "ua_intlck_ctrl": 3, "swp": 1, "tas": 1},
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


def _threshold(name: str) -> tuple[Any, ...]:
    """A threshold descriptor."""
    return (
        f"{name}_enabled" / Flag,
        Padding(1),
        f"{name}_type" / BitsInteger(3),
        f"{name}_arming" / BitsInteger(3),
        f"{name}_resource" / BitsInteger(8),
        Padding(16),
        f"{name}_count" / Bytewise(Int32ub),
    )


# SBC-4 6.5. Resources are parameters of the log page: 01h is what is available, armed decreasing (0), 02h what is
# used, armed increasing (1); each is a soft threshold in threshold sets (type 0). SITUA=0: every nexus is told.
LOGICAL_BLOCK_PROVISIONING: Final = ModePage(
    0x1C,
    "Logical Block Provisioning",
    BitStruct(Padding(7), "situa" / Flag, Padding(88), *_threshold("available"), *_threshold("used")),
    {"available_arming": 0, "available_resource": 0x01, "used_arming": 1, "used_resource": 0x02},
    {
        "available_enabled": 1,
        "available_count": 0xFFFFFFFF,
        "used_enabled": 1,
        "used_count": 0xFFFFFFFF,
    },
    subpage=0x02,
    requires=Feature.USAGE,
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
    DRIVE_ERROR_RECOVERY,
    DISCONNECT_RECONNECT,
    VERIFY_ERROR_RECOVERY,
    CACHING,
    CONTROL,
    CONTROL_EXTENSION,
    CD_DEVICE_PARAMETERS,
    POWER_CONDITION,
    INFORMATIONAL_EXCEPTIONS_CONTROL,
    LOGICAL_BLOCK_PROVISIONING,
    TIMEOUT_AND_PROTECT,
    CAPABILITIES,
)


def page_key(data: bytes) -> int:
    """The key of the page that begins here; at least two bytes."""
    return (data[0] & 0x3F) << 8 | (data[1] if data[0] & SPF else 0)
