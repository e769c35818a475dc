# SPDX-License-Identifier: Apache-2.0
"""What a CD or DVD drive can do, and what has happened to it: GET CONFIGURATION (MMC-6) and, polled, GET EVENT
STATUS NOTIFICATION (MMC-6). Features are rows; which of them are current depends on the medium.

What the drive says of a medium is `multimedia`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from construct import BitsInteger, BitStruct, Flag, GreedyBytes, Int8ub, Int16ub, Int32ub, Padding, Struct
from construct import Prefixed as PrefixedBytes

from vhost_scsi.scsi.dispatch import Request, handles
from vhost_scsi.scsi.multimedia import BLOCK, Profile, profile
from vhost_scsi.scsi.readiness import Power
from vhost_scsi.scsi.removable import Drive, MediaEvent

# ---- features ------------------------------------------------------------------------------------------------------

HEADER = Struct("features" / PrefixedBytes(Int32ub, GreedyBytes))
FEATURE = Struct(
    "code" / Int16ub,
    "flags" / BitStruct(Padding(2), "version" / BitsInteger(4), "persistent" / Flag, "current" / Flag),
    "data" / PrefixedBytes(Int8ub, GreedyBytes),
)

# MMC-6: the SCSI family; DBE: device busy events are reported
SCSI_FAMILY_DBE: Final = Int32ub.build(1) + bytes([0x01, 0, 0, 0])
# MMC-6: OCEvent; Async is zero, events are polled
OC_EVENT: Final = bytes([0x02, 0, 0, 0])
# MMC-6: tray, LOAD and EJECT by START STOP UNIT, no prevent jumper, LOCK
TRAY_LOAD_EJECT_LOCK: Final = bytes([1 << 5 | 0x10 | 0x08 | 0x04 | 0x01, 0, 0, 0])

_WITH_CD: Final = frozenset({Profile.CD_ROM})
_WITH_DVD: Final = frozenset({Profile.DVD_ROM})
_ALWAYS: Final = frozenset(Profile)


def _profiles(now: Profile) -> bytes:
    """MMC-6: what the drive can read, the most able first."""
    return b"".join(Int16ub.build(each) + bytes([int(each is now), 0]) for each in (Profile.DVD_ROM, Profile.CD_ROM))


def _random_readable(now: Profile) -> bytes:
    """MMC-6: block length, blocks of an ECC unit, and that there is a mode page 01h."""
    return BLOCK.to_bytes(4) + (16 if now is Profile.DVD_ROM else 1).to_bytes(2) + bytes([0x01, 0])


def _constant(data: bytes) -> Callable[[Profile], bytes]:
    return lambda now: data


def _nothing_more(now: Profile) -> bytes:
    return b""


@dataclass(frozen=True, slots=True)
class MmcFeature:
    """`current_with`: the media with which it can be used; with all of them it is persistent."""

    code: int
    name: str
    version: int
    current_with: frozenset[Profile]
    data: Callable[[Profile], bytes] = _nothing_more

    def build(self, now: Profile) -> bytes:
        built: bytes = FEATURE.build(
            {
                "code": self.code,
                "flags": {
                    "version": self.version,
                    "persistent": self.current_with is _ALWAYS,
                    "current": now in self.current_with,
                },
                "data": self.data(now),
            }
        )
        return built


# Not here though a DVD-ROM drive may have them: Real Time Streaming and DVD CSS, which we do not do.
FEATURES: Final[tuple[MmcFeature, ...]] = (
    MmcFeature(0x0000, "Profile List", 0, _ALWAYS, _profiles),
    MmcFeature(0x0001, "Core", 1, _ALWAYS, _constant(SCSI_FAMILY_DBE)),
    MmcFeature(0x0002, "Morphing", 1, _ALWAYS, _constant(OC_EVENT)),
    MmcFeature(0x0003, "Removable Medium", 1, _ALWAYS, _constant(TRAY_LOAD_EJECT_LOCK)),
    MmcFeature(0x0010, "Random Readable", 0, _WITH_CD | _WITH_DVD, _random_readable),
    MmcFeature(0x001D, "MultiRead", 0, _WITH_CD),
    MmcFeature(0x001E, "CD Read", 1, _WITH_CD, _constant(bytes(4))),
    MmcFeature(0x001F, "DVD Read", 0, _WITH_DVD),
    MmcFeature(0x0100, "Power Management", 0, _ALWAYS),
    MmcFeature(0x0105, "Timeout", 0, _ALWAYS),
)

ALL_FEATURES, CURRENT_FEATURES, ONE_FEATURE = 0b00, 0b01, 0b10


@handles("get_configuration")
def get_configuration(request: Request) -> bytes:
    """MMC-6: features from the first wanted on; RT says all of them, those that are current, or that one."""
    now, first, kind = profile(request.logical_unit), request["starting_feature"], request["rt"]
    if kind > ONE_FEATURE:
        raise request.refuse("rt")
    wanted = [
        feature
        for feature in FEATURES
        if (feature.code == first if kind == ONE_FEATURE else feature.code >= first)
        and (kind != CURRENT_FEATURES or now in feature.current_with)
    ]
    described = bytes(2) + Int16ub.build(now) + b"".join(feature.build(now) for feature in wanted)
    built: bytes = HEADER.build({"features": described})
    return built


# ---- events --------------------------------------------------------------------------------------------------------

EVENT_HEADER = Struct("length" / Int16ub, "class_" / Int8ub, "supported" / Int8ub)
NO_EVENT_AVAILABLE: Final = 0x80
OPERATIONAL_CHANGE, POWER_MANAGEMENT, MEDIA, DEVICE_BUSY = 1, 2, 4, 6
EVENT_BYTES: Final = 4

OPERATIONAL_CHANGED, FEATURE_CHANGE = 2, 1
POWER_ACTIVE, POWER_IDLE, POWER_STANDBY = 1, 2, 3
_IDLE: Final = frozenset({Power.IDLE_A, Power.IDLE_B, Power.IDLE_C})
TRAY_OPEN, MEDIA_PRESENT = 0x01, 0x02


@dataclass(frozen=True, slots=True)
class EventClass:
    """`describe` gives the event, and whether something has happened; `told` says that it was told."""

    number: int
    describe: Callable[[Request], tuple[bytes, bool]]
    told: Callable[[Request], None]


def _nothing(request: Request) -> None:
    """Nothing of this class ever happens."""


def _operational(request: Request) -> tuple[bytes, bool]:
    if request.itl.feature_change:
        return bytes([OPERATIONAL_CHANGED, 0, 0, FEATURE_CHANGE]), True
    return bytes(EVENT_BYTES), False


def _operational_told(request: Request) -> None:
    request.itl.feature_change = False


def _power(request: Request) -> tuple[bytes, bool]:
    power = request.logical_unit.readiness.power
    status = POWER_ACTIVE if power is Power.ACTIVE else POWER_IDLE if power in _IDLE else POWER_STANDBY
    return bytes([0, status, 0, 0]), False


def media_status(drive: Drive | None) -> int:
    if drive is None:
        return 0
    return (TRAY_OPEN if drive.open else 0) | (MEDIA_PRESENT if drive.present else 0)


def _media(request: Request) -> tuple[bytes, bool]:
    event = request.itl.media_event
    return bytes([event, media_status(request.logical_unit.drive), 0, 0]), event != MediaEvent.NO_CHANGE


def _media_told(request: Request) -> None:
    request.itl.media_event = MediaEvent.NO_CHANGE


def _busy(request: Request) -> tuple[bytes, bool]:
    # What asks has got the drive to itself.
    return bytes(EVENT_BYTES), False


EVENT_CLASSES: Final[tuple[EventClass, ...]] = (
    EventClass(OPERATIONAL_CHANGE, _operational, _operational_told),
    EventClass(POWER_MANAGEMENT, _power, _nothing),
    EventClass(MEDIA, _media, _media_told),
    EventClass(DEVICE_BUSY, _busy, _nothing),
)
SUPPORTED: Final = sum(1 << each.number for each in EVENT_CLASSES)


@handles("get_event_status_notification")
def get_event_status_notification(request: Request) -> bytes:
    """MMC-6: of the classes that are asked for, the first one that has an event, else the first."""
    if not request["polled"]:
        # MMC-6: asynchronous operation, which Morphing does not announce
        raise request.refuse("polled")
    wanted = [each for each in EVENT_CLASSES if request["class_request"] >> each.number & 1]
    built: bytes
    if not wanted:
        built = EVENT_HEADER.build({"length": 2, "class_": NO_EVENT_AVAILABLE, "supported": SUPPORTED})
        return built
    described = [(each, *each.describe(request)) for each in wanted]
    chosen, event, _ = next((one for one in described if one[2]), described[0])
    # MMC-6: who has no room for the event has not been told of it.
    if request["allocation_length"] > EVENT_HEADER.sizeof():
        chosen.told(request)
    built = EVENT_HEADER.build({"length": 2 + EVENT_BYTES, "class_": chosen.number, "supported": SUPPORTED})
    return built + event
