# SPDX-License-Identifier: Apache-2.0
"""The rows of what a CD or DVD drive has beyond a disk (MMC-6), and of PREVENT ALLOW MEDIUM REMOVAL, which every
removable unit has. READ(10), READ(12) and READ CAPACITY(10) are the disk's rows.

No bit is set for what a drive that only reads data does not do: audio, raw sectors, subchannels, streaming, persistent
prevention. Such a request is refused.
"""

from typing import Final

from vhost_scsi.scsi.command import (
    ANY,
    ATTENTIVE,
    CD,
    DISK_AND_CD,
    READS,
    WITH_MEDIUM,
    Command,
    Conflict,
    Direction,
    Feature,
    Field,
    allocation,
    python,
)

_TIME: Final = Field("time", 1, mask=0x02)
# Drives older than MMC took the format from the vendor's bits of CONTROL; Linux still asks for the session like that.
_OLD_FORMAT: Final = Field("old_format", 9, mask=0xC0)
_SECTOR_TYPE: Final = Field("expected_sector_type", 1, mask=0x1C)
_MAIN_CHANNEL: Final = Field("main_channel", 9, mask=0xF8)

MULTIMEDIA_ROWS: Final[tuple[Command, ...]] = (
    python(
        "PREVENT ALLOW MEDIUM REMOVAL",
        0x1E,
        6,
        ATTENTIVE,
        "prevent_allow_medium_removal",
        (Field("prevent", 4, mask=0x01),),
        direction=Direction.NONE,
        conflict=Conflict.WRITE,
        conflicts_if="prevent",
        device_types=DISK_AND_CD,
        requires=Feature.REMOVABLE,
    ),
    python(
        "READ TOC/PMA/ATIP",
        0x43,
        10,
        WITH_MEDIUM,
        "read_toc",
        (_TIME, Field("format", 2, mask=0x0F), Field("track", 6), allocation(7, 2), _OLD_FORMAT),
        conflict=Conflict.READ,
        device_types=CD,
    ),
    python(
        "GET CONFIGURATION",
        0x46,
        10,
        # MMC-6: it neither reports nor clears unit attentions, whether a medium is there or not.
        ANY,
        "get_configuration",
        (Field("rt", 1, mask=0x03), Field("starting_feature", 2, 2), allocation(7, 2)),
        device_types=CD,
    ),
    python(
        "GET EVENT STATUS NOTIFICATION",
        0x4A,
        10,
        ANY,
        "get_event_status_notification",
        (Field("polled", 1, mask=0x01), Field("class_request", 4), allocation(7, 2)),
        device_types=CD,
    ),
    python(
        "READ DISC INFORMATION",
        0x51,
        10,
        WITH_MEDIUM,
        "read_disc_information",
        (Field("data_type", 1, mask=0x07), allocation(7, 2)),
        conflict=Conflict.READ,
        device_types=CD,
    ),
    python(
        "READ TRACK INFORMATION",
        0x52,
        10,
        WITH_MEDIUM,
        "read_track_information",
        (Field("address_type", 1, mask=0x03), Field("address", 2, 4), allocation(7, 2)),
        conflict=Conflict.READ,
        device_types=CD,
    ),
    python(
        "READ DVD STRUCTURE",
        0xAD,
        12,
        WITH_MEDIUM,
        "read_dvd_structure",
        (
            Field("media_type", 1, mask=0x0F),
            Field("address", 2, 4),
            Field("layer", 6),
            Field("format", 7),
            allocation(8, 2),
            Field("agid", 10, mask=0xC0),
        ),
        conflict=Conflict.READ,
        device_types=CD,
    ),
    python(
        "READ CD MSF",
        0xB9,
        12,
        READS,
        "read_cd_msf",
        (_SECTOR_TYPE, Field("start", 3, 3), Field("end", 6, 3), _MAIN_CHANNEL),
        conflict=Conflict.READ,
        device_types=CD,
    ),
    python(
        "MECHANISM STATUS",
        0xBD,
        12,
        ATTENTIVE,
        "mechanism_status",
        (allocation(8, 2),),
        device_types=CD,
    ),
    python(
        "READ CD",
        0xBE,
        12,
        READS,
        "read_cd",
        (_SECTOR_TYPE, Field("lba", 2, 4), Field("blocks", 6, 3), _MAIN_CHANNEL),
        conflict=Conflict.READ,
        device_types=CD,
    ),
)
