# SPDX-License-Identifier: Apache-2.0
"""Logical unit numbers as eight bytes (SAM-5 4.7): peripheral device and flat space addressing, well known LUNs.

One level only: we have no buses behind a LUN. What a transport does with the numbers is its own affair.
"""

from typing import Final

MAX_LUN: Final = 0x3FFF
REPORT_LUNS: Final = bytes.fromhex("C101000000000000")
"""SAM-5 4.7.7.5.1: the REPORT LUNS well known logical unit, W-LUN 01h"""


def encode(lun: int) -> bytes:
    """Peripheral device addressing up to 255, flat space addressing beyond (SAM-5 4.7.5: either way is allowed where
    both fit; initiators know the short one best)."""
    if not 0 <= lun <= MAX_LUN:
        raise ValueError(f"LUN {lun} is not in 0..{MAX_LUN}")
    return (lun if lun < 0x100 else 0x4000 | lun).to_bytes(2) + bytes(6)


def decode(number: bytes) -> int | None:
    """The LUN, by either method; None for a well known LUN, another method, a bus number or a second level."""
    if len(number) != 8 or any(number[2:]):
        return None
    word = int.from_bytes(number[:2])
    method, rest = word >> 14, word & MAX_LUN
    if method == 0b01 or (method == 0b00 and rest < 0x100):
        return rest
    return None
