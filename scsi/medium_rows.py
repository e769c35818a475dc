# SPDX-License-Identifier: Apache-2.0
"""The rows of commands that C carries out on the medium (SBC-4 5), each in all its CDB lengths.

No bit is set for RDPROTECT, WRPROTECT, VRPROTECT (no protection information), RARC, ANCHOR (ANC_SUP=0) and NACA
(NORMACA=0): a request for what we do not do is refused, not ignored. GROUP NUMBER asks for statistics only, and with
GROUP_SUP=0 none are kept: it is taken as it comes.
"""

from typing import Final

from vhost_scsi.scsi import command
from vhost_scsi.scsi.command import VARIABLE_LENGTH, Command, DeviceType, Direction, Feature, Field, MediaOp, media
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.scsi.limits import PARAMETER_LIST_BYTES

_READS, _WRITES = command.READS, command.WRITES
_IN, _OUT, _NO_DATA = Direction.IN, Direction.OUT, Direction.NONE
_M = MediaOp


def _range(lba: tuple[int, int], blocks: tuple[int, int]) -> tuple[Field, ...]:
    return Field("lba", *lba), Field("blocks", *blocks)


_RANGE_6: Final = (Field("lba", 1, 3, mask=0x1F), Field("blocks", 4, zero_means=256))


def _group(byte: int) -> Field:
    return Field("group_number", byte, mask=0x1F)


_RANGE_10: Final = (*_range((2, 4), (7, 2)), _group(6))
_RANGE_12: Final = (*_range((2, 4), (6, 4)), _group(10))
_RANGE_16: Final = (*_range((2, 8), (10, 4)), _group(14))
# SBC-4 5.15: without protection information nobody looks at what is expected of it, and nobody refuses it.
_RANGE_32: Final = (
    *_range((12, 8), (28, 4)),
    _group(6),
    Field("expected_reference_tag", 20, 4),
    Field("expected_application_tag", 24, 2),
    Field("application_tag_mask", 26, 2),
)


def _flags(byte: int, **bits: int) -> tuple[Field, ...]:
    return tuple(Field(name, byte, mask=mask) for name, mask in bits.items())


def _cache(byte: int) -> tuple[Field, ...]:
    return _flags(byte, dpo=0x10, fua=0x08)


def _checked(byte: int) -> tuple[Field, ...]:
    return _flags(byte, dpo=0x10, bytchk=0x06)


_IMMED: Final = _flags(1, immed=0x02)
# SBC-4 5.38: BYTCHK 11b is not for WRITE AND VERIFY; C refuses it with its field.
_LENGTHS: Final = ((10, _RANGE_10, 1), (12, _RANGE_12, 1), (16, _RANGE_16, 1))


def _32(
    name: str,
    action: int,
    gate_mask: GateBit,
    operation: MediaOp,
    direction: Direction,
    flags: tuple[Field, ...],
) -> Command:
    return media(
        f"{name}(32)",
        VARIABLE_LENGTH,
        32,
        gate_mask,
        operation,
        direction,
        (*_RANGE_32, *flags),
        service_action=action,
        requires=Feature.CDB_32,
    )


def _family(
    name: str,
    opcodes: tuple[int, int, int],
    action_of_32: int,
    gate_mask: GateBit,
    operation: MediaOp,
    direction: Direction,
    *,
    checks: bool = False,
    device_types: frozenset[DeviceType] = command.DISK,
) -> tuple[Command, ...]:
    """The CDBs of 10, 12, 16 and 32 bytes; `device_types` have those of 10 and 12."""
    flags = _checked if checks else _cache
    return (
        *(
            media(
                f"{name}({length})",
                opcode,
                length,
                gate_mask,
                operation,
                direction,
                (*extent, *flags(byte)),
                device_types=device_types if length in (10, 12) else command.DISK,
            )
            for opcode, (length, extent, byte) in zip(opcodes, _LENGTHS, strict=True)
        ),
        _32(name, action_of_32, gate_mask, operation, direction, flags(10)),
    )


MEDIUM_ROWS: Final[tuple[Command, ...]] = (
    media(
        "TEST UNIT READY",
        0x00,
        6,
        command.READY | GateBit.RESERVED,
        _M.TEST_UNIT_READY,
        _NO_DATA,
        device_types=command.DISK_AND_WELL_KNOWN,
    ),
    media("READ(6)", 0x08, 6, _READS, _M.READ, _IN, _RANGE_6),
    media("WRITE(6)", 0x0A, 6, _WRITES, _M.WRITE, _OUT, _RANGE_6),
    *_family("READ", (0x28, 0xA8, 0x88), 0x09, _READS, _M.READ, _IN, device_types=command.DISK_AND_CD),
    *_family("WRITE", (0x2A, 0xAA, 0x8A), 0x0B, _WRITES, _M.WRITE, _OUT),
    *_family("VERIFY", (0x2F, 0xAF, 0x8F), 0x0A, _READS, _M.VERIFY, _OUT, checks=True),
    *_family("WRITE AND VERIFY", (0x2E, 0xAE, 0x8E), 0x0C, _WRITES, _M.WRITE_AND_VERIFY, _OUT, checks=True),
    media("PRE-FETCH(10)", 0x34, 10, _READS, _M.PRE_FETCH, _NO_DATA, (*_RANGE_10, *_IMMED)),
    media("PRE-FETCH(16)", 0x90, 16, _READS, _M.PRE_FETCH, _NO_DATA, (*_RANGE_16, *_IMMED)),
    media("SYNCHRONIZE CACHE(10)", 0x35, 10, command.FLUSHES, _M.SYNCHRONIZE_CACHE, _NO_DATA, (*_RANGE_10, *_IMMED)),
    media("SYNCHRONIZE CACHE(16)", 0x91, 16, command.FLUSHES, _M.SYNCHRONIZE_CACHE, _NO_DATA, (*_RANGE_16, *_IMMED)),
    media("WRITE SAME(10)", 0x41, 10, _WRITES, _M.WRITE_SAME, _OUT, (*_RANGE_10, *_flags(1, unmap=0x08))),
    media("WRITE SAME(16)", 0x93, 16, _WRITES, _M.WRITE_SAME, _OUT, (*_RANGE_16, *_flags(1, unmap=0x08, ndob=0x01))),
    _32("WRITE SAME", 0x0D, _WRITES, _M.WRITE_SAME, _OUT, _flags(10, unmap=0x08, ndob=0x01)),
    media(
        "UNMAP",
        0x42,
        10,
        _WRITES,
        _M.UNMAP,
        _OUT,
        (_group(6), command.parameter_list(7, 2)),
        parameter_list_max=PARAMETER_LIST_BYTES - 1,
        requires=Feature.UNMAP,
    ),
    media(
        "COMPARE AND WRITE",
        0x89,
        16,
        _WRITES,
        _M.COMPARE_AND_WRITE,
        _OUT,
        (*_range((2, 8), (13, 1)), _group(14), *_cache(1)),
        once=True,
    ),
    media("ORWRITE(16)", 0x8B, 16, _WRITES, _M.ORWRITE, _OUT, (*_RANGE_16, *_cache(1))),
    # ATOMIC BOUNDARY has no bit: MAXIMUM ATOMIC BOUNDARY SIZE is zero.
    media(
        "WRITE ATOMIC(16)",
        0x9C,
        16,
        _WRITES,
        _M.WRITE_ATOMIC,
        _OUT,
        (*_range((2, 8), (12, 2)), _group(14), *_cache(1)),
        requires=Feature.ATOMIC,
    ),
)
