# SPDX-License-Identifier: Apache-2.0
"""What a user gives a unit to say of itself, as text: names, mode pages and vital product data pages. Each reader
raises ValueError with a phrase that says what it wants.

    MODE PAGE   CODE[.SUBPAGE]:VALUES[/CHANGEABLE]      20:00ff00/0000ff    3e.01:c0de
    VPD PAGE    CODE:DATA                               c0:48656c6c6f

All in hexadecimal digits; VALUES and DATA are what stands behind the page's header.
"""

from __future__ import annotations

import re
from typing import Final

from vhost_scsi.scsi.mode_parameters import GivenPage
from vhost_scsi.scsi.vpd import GIVEN_FIRST, GIVEN_LAST, GIVEN_MAX, VPD_BYTES_MAX

_MODE: Final = re.compile(r"([0-9a-f]{1,2})(?:\.([0-9a-f]{1,2}))?:([0-9a-f ]*)(?:/([0-9a-f ]*))?", re.IGNORECASE)
_VPD: Final = re.compile(r"([0-9a-f]{1,2}):([0-9a-f ]*)", re.IGNORECASE)
_EUI: Final = re.compile(r"[0-9a-f]{16}(?:[0-9a-f]{8})?(?:[0-9a-f]{8})?", re.IGNORECASE)
_NAA: Final = re.compile(r"[235][0-9a-f]{15}|6[0-9a-f]{31}", re.IGNORECASE)


def several(value: object) -> object:
    """A list of pages, or on the command line one text with + between them."""
    return value.split("+") if isinstance(value, str) else value


def _bytes(text: str | None, page: str) -> bytes:
    try:
        return bytes.fromhex(text or "")
    except ValueError:
        raise ValueError(f"{page!r:.60}: an odd number of hexadecimal digits") from None


def mode_page(text: str) -> GivenPage:
    match = _MODE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r:.60} is not CODE[.SUBPAGE]:VALUES[/CHANGEABLE] in hexadecimal digits")
    code, subpage, values, changeable = match.groups()
    return GivenPage(int(code, 16), int(subpage or "0", 16), _bytes(values, text), _bytes(changeable, text))


def vpd_page(text: str) -> tuple[int, bytes]:
    match = _VPD.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r:.60} is not CODE:DATA in hexadecimal digits")
    return int(match[1], 16), _bytes(match[2], text)


def vpd_problem(pages: list[tuple[int, bytes]]) -> str | None:
    """What is wrong with these pages, in words; None: nothing."""
    if len(pages) > GIVEN_MAX:
        return f"{len(pages)} vital product data pages: a unit takes {GIVEN_MAX}"
    seen = set()
    for code, data in pages:
        if code in seen:
            return f"page {code:02X}h is given twice"
        seen.add(code)
        if not GIVEN_FIRST <= code <= GIVEN_LAST:
            return f"page {code:02X}h: codes of others go from {GIVEN_FIRST:02X}h to {GIVEN_LAST:02X}h"
        if len(data) > VPD_BYTES_MAX:
            return f"page {code:02X}h: {len(data)} bytes; there may be {VPD_BYTES_MAX}"
    return None


def eui(value: object) -> object:
    """SPC-5 7.7.6.5: an EUI-64, with 4 bytes behind it, or with 8 before it."""
    text = re.sub(r"[-:. ]", "", value) if isinstance(value, str) else value
    if isinstance(text, str) and not _EUI.fullmatch(text):
        raise ValueError(f"{value!r:.60} is not an EUI-64: 16 hexadecimal digits (or 24, or 32)")
    return text.lower() if isinstance(text, str) else text


def naa(value: object) -> object:
    text = re.sub(r"^(0x|naa\.)|[-:. ]", "", value, flags=re.IGNORECASE) if isinstance(value, str) else value
    if isinstance(text, str) and not _NAA.fullmatch(text):
        raise ValueError(f"{value!r:.60} is no NAA name: 16 hexadecimal digits, 2, 3 or 5 first, or 32 with 6 first")
    return text.lower() if isinstance(text, str) else text


def words(value: object, most: int) -> object:
    """Printable ASCII, as the data that it stands in asks for (SPC-5 4.3.1)."""
    if isinstance(value, str) and not (0 < len(value) <= most and all(" " <= char <= "~" for char in value)):
        raise ValueError(f"{value!r:.60} is not 1 to {most} printable ASCII characters")
    return value
