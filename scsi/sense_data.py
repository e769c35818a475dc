# SPDX-License-Identifier: Apache-2.0
"""Sense data on the wire (SPC-5 4.4): built in fixed or descriptor format from a `Sense`, and parsed back.

Which format applies is the caller's affair (D_SENSE, DESC). Only what we send is built: no field replaceable unit
codes, no deferred errors.
"""

from typing import Final

from construct import (
    BitsInteger,
    BitStruct,
    Bytes,
    Const,
    ConstructError,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Padding,
    Struct,
)

from vhost_scsi.scsi.sense import BY_WORD, FieldPointer, Sense, SenseCode, SenseKey

FIXED_CURRENT: Final = 0x70
DESCRIPTOR_CURRENT: Final = 0x72
VALID: Final = 0x80
ILI: Final = 0x20
SKSV: Final = 0x80
NARROW: Final = 0xFFFFFFFF
"""the largest INFORMATION of the fixed format"""

# SPC-5 4.4.3
FIXED = Struct(
    "response_code" / Int8ub,
    Padding(1),
    "sense_key" / Int8ub,
    "information" / Int32ub,
    "additional_sense_length" / Const(10, Int8ub),
    "command_specific_information" / Int32ub,
    "asc" / Int8ub,
    "ascq" / Int8ub,
    "fru" / Const(0, Int8ub),
    "sense_key_specific" / Bytes(3),
)

# SPC-5 4.4.2.1
DESCRIPTOR = Struct(
    "response_code" / Const(DESCRIPTOR_CURRENT, Int8ub),
    "sense_key" / Int8ub,
    "asc" / Int8ub,
    "ascq" / Int8ub,
    Padding(3),
    "additional_sense_length" / Int8ub,
)

# SPC-5 4.4.2.2
INFORMATION = Struct(
    "type" / Const(0x00, Int8ub),
    "length" / Const(0x0A, Int8ub),
    "valid" / Const(VALID, Int8ub),
    Padding(1),
    "information" / Int64ub,
)

# SPC-5 4.4.2.3
COMMAND_SPECIFIC = Struct(
    "type" / Const(0x01, Int8ub),
    "length" / Const(0x0A, Int8ub),
    Padding(2),
    "information" / Int64ub,
)

# SBC-4 4.18.2, block commands sense data descriptor
BLOCK_COMMANDS = Struct(
    "type" / Const(0x05, Int8ub),
    "length" / Const(0x02, Int8ub),
    Padding(1),
    "flags" / Int8ub,
)

# SPC-5 4.4.2.4
SENSE_KEY_SPECIFIC = Struct(
    "type" / Const(0x02, Int8ub),
    "length" / Const(0x06, Int8ub),
    Padding(2),
    "sense_key_specific" / Bytes(3),
    Padding(1),
)

# SPC-5 4.4.2.4.2
FIELD_POINTER = Struct(
    "flags"
    / BitStruct(
        "sksv" / BitsInteger(1),
        "command_data" / BitsInteger(1),
        Padding(2),
        "bit_pointer_valid" / BitsInteger(1),
        "bit_pointer" / BitsInteger(3),
    ),
    "field_pointer" / Int16ub,
)


def _field_pointer(field: FieldPointer | None) -> bytes:
    if field is None:
        return bytes(3)
    built: bytes = FIELD_POINTER.build(
        {
            "flags": {
                "sksv": 1,
                "command_data": int(field.in_cdb),
                "bit_pointer_valid": int(field.bit is not None),
                "bit_pointer": field.bit or 0,
            },
            "field_pointer": min(field.byte, 0xFFFF),
        }
    )
    return built


def _sense_key_specific(sense: Sense) -> bytes:
    if sense.progress is not None:
        # SPC-5 4.4.2.4.4
        return bytes([SKSV]) + min(sense.progress, 0xFFFF).to_bytes(2)
    return _field_pointer(sense.field)


def _fixed(sense: Sense) -> bytes:
    # SPC-5 4.4.3: INFORMATION has 32 bits here; VALID stays zero for a value that does not fit.
    information = sense.information
    valid = information is not None and information <= NARROW
    built: bytes = FIXED.build(
        {
            "response_code": FIXED_CURRENT | (VALID if valid else 0),
            "sense_key": sense.code.key | (ILI if sense.incorrect_length else 0),
            "information": information if valid else 0,
            "command_specific_information": min(sense.command_specific or 0, 0xFFFFFFFF),
            "asc": sense.code.asc,
            "ascq": sense.code.ascq,
            "sense_key_specific": _sense_key_specific(sense),
        }
    )
    return built


def _descriptor(sense: Sense) -> bytes:
    descriptors = b""
    if sense.information is not None:
        descriptors += INFORMATION.build({"information": sense.information})
    if sense.command_specific is not None:
        descriptors += COMMAND_SPECIFIC.build({"information": sense.command_specific})
    if sense.field is not None or sense.progress is not None:
        descriptors += SENSE_KEY_SPECIFIC.build({"sense_key_specific": _sense_key_specific(sense)})
    if sense.incorrect_length:
        descriptors += BLOCK_COMMANDS.build({"flags": ILI})
    head: bytes = DESCRIPTOR.build(
        {
            "sense_key": sense.code.key,
            "asc": sense.code.asc,
            "ascq": sense.code.ascq,
            "additional_sense_length": len(descriptors),
        }
    )
    return head + descriptors


def build(sense: Sense, *, descriptor: bool) -> bytes:
    """The sense data of a current error."""
    return _descriptor(sense) if descriptor else _fixed(sense)


def _parse_field_pointer(raw: bytes) -> FieldPointer | None:
    parsed = FIELD_POINTER.parse(raw)
    if not parsed.flags.sksv:
        return None
    bit = parsed.flags.bit_pointer if parsed.flags.bit_pointer_valid else None
    return FieldPointer(bool(parsed.flags.command_data), parsed.field_pointer, bit)


def _known(key: int, asc: int, ascq: int) -> SenseCode:
    code = BY_WORD.get(asc << 8 | ascq)
    if code is not None and code.key == key:
        return code
    return SenseCode(SenseKey(key), asc, ascq, code.text if code else "")


def _parse_specific(key: int, raw: bytes) -> tuple[FieldPointer | None, int | None]:
    """The field pointer of ILLEGAL REQUEST, the progress of NOT READY and NO SENSE (SPC-5 table 52)."""
    if key in (SenseKey.NOT_READY, SenseKey.NO_SENSE):
        return None, int.from_bytes(raw[1:]) if raw[0] & SKSV else None
    return _parse_field_pointer(raw), None


def _parse_fixed(data: bytes) -> Sense:
    fixed = FIXED.parse(data)
    field, progress = _parse_specific(fixed.sense_key & 0x0F, fixed.sense_key_specific)
    return Sense(
        _known(fixed.sense_key & 0x0F, fixed.asc, fixed.ascq),
        fixed.information if fixed.response_code & VALID else None,
        field,
        progress,
        fixed.command_specific_information or None,
        bool(fixed.sense_key & ILI),
    )


def parse(data: bytes) -> Sense:
    """Reads what `build` wrote (and C's sense data); ValueError for anything else."""
    try:
        return _parse(data)
    except ConstructError as error:
        raise ValueError(f"no sense data of ours: {data.hex()}") from error


def _parse(data: bytes) -> Sense:
    if len(data) >= FIXED.sizeof() and data[0] & 0x7F == FIXED_CURRENT:
        return _parse_fixed(data)
    if len(data) < DESCRIPTOR.sizeof() or data[0] != DESCRIPTOR_CURRENT:
        raise ValueError(f"no current sense data: {data.hex()}")
    head = DESCRIPTOR.parse(data)
    key = head.sense_key & 0x0F
    information, field, progress, specific, incorrect = None, None, None, None, False
    offset, end = DESCRIPTOR.sizeof(), min(len(data), DESCRIPTOR.sizeof() + head.additional_sense_length)
    while offset + 2 <= end:
        kind, length = data[offset], data[offset + 1]
        body = data[offset : offset + 2 + length]
        if kind == 0x00 and len(body) == INFORMATION.sizeof():
            information = INFORMATION.parse(body).information
        elif kind == 0x01 and len(body) == COMMAND_SPECIFIC.sizeof():
            specific = COMMAND_SPECIFIC.parse(body).information
        elif kind == 0x02 and len(body) == SENSE_KEY_SPECIFIC.sizeof():
            field, progress = _parse_specific(key, SENSE_KEY_SPECIFIC.parse(body).sense_key_specific)
        elif kind == 0x05 and len(body) == BLOCK_COMMANDS.sizeof():
            incorrect = bool(BLOCK_COMMANDS.parse(body).flags & ILI)
        offset += 2 + length
    return Sense(_known(key, head.asc, head.ascq), information, field, progress, specific, incorrect)
