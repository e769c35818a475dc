# SPDX-License-Identifier: Apache-2.0
"""What a CD or DVD drive says of its medium (MMC-6): table of contents, disc, track, DVD structures, mechanism, and
the data of READ CD. Every medium here is one closed session with one data track from block 0 to the end.

Which commands a drive has is `multimedia_rows`; its features and events are `multimedia_features`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from construct import BitsInteger, BitStruct, Flag, GreedyBytes, Int8ub, Int16ub, Int24ub, Int32ub, Padding, Struct
from construct import Prefixed as PrefixedBytes

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.dispatch import Exclusive, Request, handles
from vhost_scsi.scsi.sense import CheckCondition

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit

BLOCK: Final = 2048
"""bytes of user data in a block (MMC-6, Mode 1)"""
FRAMES, SECONDS, PREGAP = 75, 60, 150
CD_BLOCKS: Final = 80 * SECONDS * FRAMES
"""no CD holds more: what is larger is a DVD"""
LAYER_BLOCKS: Final = 2_298_496
"""of a single-layer DVD; what is larger has two layers"""
NO_MSF: Final = bytes([0xFF, 0x3B, 0x4A])
"""MMC-6: an address that minutes, seconds and frames cannot say"""
DATA_TRACK: Final = 0x14
"""ADR 1 (Q subchannel has the position) and CONTROL 4 (data, recorded uninterrupted)"""
LEAD_OUT: Final = 0xAA
READ_CD_BLOCKS: Final = 512
"""of one READ CD: it passes through memory of ours"""
FIRST_PSN: Final = 0x030000
"""ECMA-267: the physical sector number of block 0 of a DVD"""


class Profile(IntEnum):
    """MMC-6."""

    NONE = 0x0000
    CD_ROM = 0x0008
    DVD_ROM = 0x0010


def profile(unit: LogicalUnit) -> Profile:
    """What lies in the drive, by its size."""
    if unit.drive is None or not unit.drive.present:
        return Profile.NONE
    return Profile.CD_ROM if unit.medium.num_blocks <= CD_BLOCKS else Profile.DVD_ROM


# ---- READ TOC/PMA/ATIP (MMC-6) ------------------------------------------------------------------------------

TOC = Struct("descriptors" / PrefixedBytes(Int16ub, GreedyBytes))
TOC_ENTRY = Struct(Padding(1), "adr_control" / Int8ub, "number" / Int8ub, Padding(1), "address" / Int32ub)
RAW_ENTRY = Struct(
    "session" / Int8ub,
    "adr_control" / Int8ub,
    "tno" / Int8ub,
    "point" / Int8ub,
    "running" / Int24ub,
    "zero" / Int8ub,
    "p" / Int24ub,
)


def msf(lba: int) -> bytes:
    """Minutes, seconds and frames (MMC-6)."""
    seconds, frame = divmod(lba + PREGAP, FRAMES)
    minute, second = divmod(seconds, SECONDS)
    return bytes([minute, second, frame]) if minute < 0xFF else NO_MSF


def lba_of(time: int) -> int:
    """Of a 24-bit MSF field; ValueError for what is no time, or lies before block 0."""
    minute, second, frame = time.to_bytes(3)
    if second >= SECONDS or frame >= FRAMES:
        raise ValueError(f"{minute}:{second}:{frame}")
    lba = (minute * SECONDS + second) * FRAMES + frame - PREGAP
    if lba < 0:
        raise ValueError(f"{minute}:{second}:{frame}")
    return lba


def _address(request: Request, lba: int) -> int:
    return int.from_bytes(msf(lba)) if request["time"] else lba


def _entry(request: Request, number: int, lba: int) -> bytes:
    built: bytes = TOC_ENTRY.build({"adr_control": DATA_TRACK, "number": number, "address": _address(request, lba)})
    return built


def _tracks(request: Request) -> bytes:
    """Format 0. TRACK: the first one that is wanted; AAh is the lead-out alone."""
    first = request["track"]
    if first not in (0, 1, LEAD_OUT):
        raise request.refuse("track")
    end = _entry(request, LEAD_OUT, request.logical_unit.medium.num_blocks)
    return end if first == LEAD_OUT else _entry(request, 1, 0) + end


def _raw_entries(request: Request) -> bytes:
    """Format 2: what the lead-in says. A0h and A1h: first and last track; A2h: where the lead-out begins."""
    if request["track"] > 1:
        raise request.refuse("track")
    points = (
        (0xA0, bytes([1, 0, 0])),
        (0xA1, bytes([1, 0, 0])),
        (0xA2, msf(request.logical_unit.medium.num_blocks)),
        (0x01, msf(0)),
    )
    return b"".join(
        RAW_ENTRY.build(
            {
                "session": 1,
                "adr_control": DATA_TRACK,
                "tno": 0,
                "point": point,
                "running": 0,
                "zero": 0,
                "p": int.from_bytes(time),
            }
        )
        for point, time in points
    )


@handles("read_toc")
def read_toc(request: Request) -> bytes:
    kind = request["format"] or request["old_format"]
    # A DVD has no lead-in in this sense; the other two are fabricated for it (MMC-6). PMA, ATIP and CD-TEXT
    # are things of other media.
    if kind > 2 or (kind == 2 and profile(request.logical_unit) is Profile.DVD_ROM):
        raise request.refuse("format")
    if kind == 0:
        entries = _tracks(request)
    elif kind == 1:
        entries = _entry(request, 1, 0)
    else:
        entries = _raw_entries(request)
    # First and last track, or session: there is one of each.
    built: bytes = TOC.build({"descriptors": bytes([1, 1]) + entries})
    return built


# ---- READ DISC INFORMATION, READ TRACK INFORMATION (MMC-6) ----------------------------------------------

DISC = Struct(
    "length" / Int16ub,
    "status" / BitStruct(
        "data_type" / BitsInteger(3), "erasable" / Flag, "last_session" / BitsInteger(2), "disc" / BitsInteger(2)
    ),
    "first_track" / Int8ub,
    "sessions" / Int8ub,
    "first_track_in_last_session" / Int8ub,
    "last_track_in_last_session" / Int8ub,
    "valid" / Int8ub,
    "disc_type" / Int8ub,
    Padding(3),
    "disc_identification" / Int32ub,
    "last_lead_in" / Int32ub,
    "last_lead_out" / Int32ub,
    Padding(8),
    Padding(1),
    "opc_entries" / Int8ub,
)  # fmt: skip
COMPLETE: Final = 0b11
FINALIZED: Final = 0b10
UNRESTRICTED_USE: Final = 0x20
CD_DA_OR_CD_ROM, TYPE_UNDEFINED = 0x00, 0xFF
NO_ADDRESS: Final = 0xFFFFFFFF

TRACK = Struct(
    "length" / Int16ub,
    "track" / Int8ub,
    "session" / Int8ub,
    Padding(1),
    "track_mode" / Int8ub,
    "data_mode" / Int8ub,
    "valid" / Int8ub,
    "start" / Int32ub,
    "next_writable" / Int32ub,
    "free_blocks" / Int32ub,
    "packet_size" / Int32ub,
    "size" / Int32ub,
    "last_recorded" / Int32ub,
    Padding(4),
)
MODE_1: Final = 1
BY_LBA, BY_TRACK, BY_SESSION = 0, 1, 2


@handles("read_disc_information")
def read_disc_information(request: Request) -> bytes:
    if request["data_type"]:
        # Track resources and pseudo-overwrite resources are a recorder's.
        raise request.refuse("data_type")
    is_cd = profile(request.logical_unit) is Profile.CD_ROM
    built: bytes = DISC.build(
        {
            "length": DISC.sizeof() - 2,
            "status": {"data_type": 0, "erasable": False, "last_session": COMPLETE, "disc": FINALIZED},
            "first_track": 1,
            "sessions": 1,
            "first_track_in_last_session": 1,
            "last_track_in_last_session": 1,
            "valid": UNRESTRICTED_USE,
            "disc_type": CD_DA_OR_CD_ROM if is_cd else TYPE_UNDEFINED,
            "disc_identification": 0,
            "last_lead_in": NO_ADDRESS,
            "last_lead_out": NO_ADDRESS,
            "opc_entries": 0,
        }
    )
    return built


@handles("read_track_information")
def read_track_information(request: Request) -> bytes:
    blocks, address = request.logical_unit.medium.num_blocks, request["address"]
    match request["address_type"]:
        case 0:
            if address >= blocks:
                raise CheckCondition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, information=address)
        case 1 | 2:
            if address != 1:
                raise request.refuse("address")
        case _:
            raise request.refuse("address_type")
    built: bytes = TRACK.build(
        {
            "length": TRACK.sizeof() - 2,
            "track": 1,
            "session": 1,
            "track_mode": DATA_TRACK & 0x0F,
            "data_mode": MODE_1,
            "valid": 0,
            "start": 0,
            "next_writable": 0,
            "free_blocks": 0,
            "packet_size": 0,
            "size": min(blocks, NO_ADDRESS),
            "last_recorded": 0,
        }
    )
    return built


# ---- READ DVD STRUCTURE (MMC-6, READ DISC STRUCTURE there) ----------------------------------------------------

STRUCTURE = Struct("data" / PrefixedBytes(Int16ub, GreedyBytes))
PHYSICAL = Struct(
    "category" / Int8ub,
    "size_and_rate" / Int8ub,
    "layers" / BitStruct(Padding(1), "count" / BitsInteger(2), "opposite" / Flag, "type" / BitsInteger(4)),
    "density" / Int8ub,
    "first" / Int32ub,
    "last" / Int32ub,
    "last_of_layer_0" / Int32ub,
    "bca" / Int8ub,
    Padding(2031),
)
DVD_ROM_PART_VERSION_1: Final = 0x01
SIZE_120_MM_RATE_NOT_SPECIFIED: Final = 0x0F
EMBOSSED: Final = 1
FORMAT_ENTRY = Struct("code" / Int8ub, "flags" / Int8ub, "length" / Int16ub)
READABLE: Final = 0x40


def _physical(request: Request) -> bytes:
    blocks = request.logical_unit.medium.num_blocks
    two = blocks > LAYER_BLOCKS
    if request["layer"] > int(two):
        raise request.refuse("layer")
    first_layer = (blocks + 1) // 2
    built: bytes = PHYSICAL.build(
        {
            "category": DVD_ROM_PART_VERSION_1,
            "size_and_rate": SIZE_120_MM_RATE_NOT_SPECIFIED,
            "layers": {"count": int(two), "opposite": False, "type": EMBOSSED},
            "density": 0,
            "first": FIRST_PSN,
            "last": min(FIRST_PSN + (blocks - first_layer if two else blocks) - 1, 0xFFFFFF),
            "last_of_layer_0": min(FIRST_PSN + first_layer - 1, 0xFFFFFF) if two else 0,
            "bca": 0,
        }
    )
    return built


def _copyright(request: Request) -> bytes:
    """Neither a protection system nor regions."""
    return bytes(4)


def _manufacturing(request: Request) -> bytes:
    return bytes(BLOCK)


_STRUCTURES: Final = {0x00: _physical, 0x01: _copyright, 0x04: _manufacturing}
_LENGTHS: Final = {0x00: PHYSICAL.sizeof(), 0x01: 4, 0x04: BLOCK}
ALL_FORMATS: Final = 0xFF


@handles("read_dvd_structure")
def read_dvd_structure(request: Request) -> bytes:
    if request["media_type"]:
        raise request.refuse("media_type")
    kind = request["format"]
    built: bytes
    if kind == ALL_FORMATS:
        entries = [
            FORMAT_ENTRY.build({"code": code, "flags": READABLE, "length": length + 4})
            for code, length in _LENGTHS.items()
        ]
        built = STRUCTURE.build({"data": bytes(2) + b"".join(entries)})
        return built
    if kind not in _STRUCTURES:
        raise request.refuse("format")
    if profile(request.logical_unit) is not Profile.DVD_ROM:
        raise CheckCondition(sense.CANNOT_READ_MEDIUM_INCOMPATIBLE_FORMAT)
    built = STRUCTURE.build({"data": bytes(2) + _STRUCTURES[kind](request)})
    return built


# ---- MECHANISM STATUS (MMC-6) ---------------------------------------------------------------------------------

MECHANISM = Struct("slot" / Int8ub, "state" / Int8ub, "lba" / Int24ub, "slots" / Int8ub, "table_length" / Int16ub)
DOOR_OPEN: Final = 0x10


@handles("mechanism_status")
def mechanism_status(request: Request) -> bytes:
    drive = request.logical_unit.drive
    state = DOOR_OPEN if drive is not None and drive.open else 0
    built: bytes = MECHANISM.build({"slot": 0, "state": state, "lba": 0, "slots": 0, "table_length": 0})
    return built


# ---- READ CD, READ CD MSF (MMC-6) -----------------------------------------------------------------------

ANY_TYPE, MODE_1_TYPE = 0b000, 0b010
USER_DATA: Final = 0b00010


async def _read(unit: LogicalUnit, lba: int, blocks: int) -> bytes:
    return await unit.medium.read(lba, blocks)


def _read_cd(request: Request, lba: int, blocks: int, length_field: str) -> bytes | Exclusive:
    """User data of Mode 1 sectors, and nothing around them: the store has no more."""
    unit = request.logical_unit
    if profile(unit) is not Profile.CD_ROM:
        raise CheckCondition(sense.CANNOT_READ_MEDIUM_INCOMPATIBLE_FORMAT)
    if request["expected_sector_type"] not in (ANY_TYPE, MODE_1_TYPE):
        raise CheckCondition(sense.ILLEGAL_MODE_FOR_THIS_TRACK)
    if request["main_channel"] not in (0, USER_DATA):
        raise request.refuse("main_channel")
    end = unit.medium.num_blocks
    if lba > end or blocks > end - lba:
        raise CheckCondition(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, information=max(lba, end))
    if not request["main_channel"] or not blocks:
        return b""
    if blocks > READ_CD_BLOCKS:
        raise request.refuse(length_field)
    return _read(unit, lba, blocks)


@handles("read_cd")
def read_cd(request: Request) -> bytes | Exclusive:
    return _read_cd(request, request["lba"], request["blocks"], "blocks")


@handles("read_cd_msf")
def read_cd_msf(request: Request) -> bytes | Exclusive:
    """The end is the block after the last one."""
    try:
        start = lba_of(request["start"])
    except ValueError:
        raise request.refuse("start") from None
    try:
        end = lba_of(request["end"])
    except ValueError:
        raise request.refuse("end") from None
    if end < start:
        raise request.refuse("end")
    return _read_cd(request, start, end - start, "end")
