# SPDX-License-Identifier: Apache-2.0
"""What a user gives a unit to say of itself: read from text, refused in one line where it makes no sense."""

from __future__ import annotations

from typing import Any

import pytest

from vhost_scsi.daemon import unit_pages
from vhost_scsi.daemon.config import DaemonConfig, build
from vhost_scsi.daemon.config_save import whole_text
from vhost_scsi.daemon.grammar import tables
from vhost_scsi.errors import ConfigError
from vhost_scsi.scsi.mode_parameters import GivenPage


def unit(**values: Any) -> DaemonConfig:
    return build(
        {"lu": {"d": {"url": "memory:1M", **values}}, "port": {"p": {"socket": "s"}}, "map": {"0:0": "d"}},
    )


def test_texts_are_read() -> None:
    assert unit_pages.mode_page("20:00FF00/0000ff") == GivenPage(0x20, 0, b"\x00\xff\x00", b"\x00\x00\xff")
    assert unit_pages.mode_page(" 3e.01:c0 de") == GivenPage(0x3E, 1, b"\xc0\xde")
    assert unit_pages.vpd_page("c0:48656c6c6f") == (0xC0, b"Hello")
    assert unit_pages.vpd_page("d0:") == (0xD0, b"")


def test_the_command_line_and_a_file_say_the_same() -> None:
    said = (
        "0:0=memory:1M,vendor=ACME,product=FAST DISK,revision=2.0,serial=S-1,naa=0x5000c50012345678,"
        "eui64=00-1B-44-11-3A-B7-12-34,mode_pages=20:00+3e.01:00/ff,vpd_pages=c0:01"
    )
    made = build({"port": {"p": {"socket": "s"}}, **tables(luns=[said])} | {"port": {"p": {"socket": "s"}}})
    lu = made.lu["lun-0-0"]
    assert (lu.vendor, lu.product, lu.revision, lu.serial) == ("ACME", "FAST DISK", "2.0", "S-1")
    assert (lu.naa, lu.eui64) == ("5000c50012345678", "001b44113ab71234")
    assert (lu.mode_pages, lu.vpd_pages) == (["20:00", "3e.01:00/ff"], ["c0:01"])
    assert 'mode_pages = ["20:00", "3e.01:00/ff"]' in whole_text(made)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("vendor", "LONGER THAN 8", "is not 1 to 8 printable ASCII characters"),
        ("serial", "", "is not 1 to 64 printable ASCII characters"),
        ("revision", "\u00e9", "is not 1 to 4 printable ASCII characters"),
        ("naa", "1000c50012345678", "is no NAA name"),
        ("naa", "6000c50012345678", "is no NAA name"),
        ("eui64", "1234", "is not an EUI-64"),
        ("mode_pages", ["00:00"], "mode page 00h: codes go from 01h to 3Eh"),
        ("mode_pages", ["3f:00"], "mode page 3Fh: codes go from 01h"),
        ("mode_pages", ["20.ff:00"], "subpages from 00h to FEh"),
        ("mode_pages", ["20:"], "0 bytes of values; there must be 1 to 255"),
        ("mode_pages", ["20.01:" + "00" * 1021], "1021 bytes of values; there must be 1 to 1020"),
        ("mode_pages", ["20:0000/ff"], "1 bytes say what can be changed of 2"),
        ("mode_pages", ["20:00", "20:01"], "mode page 20h is given twice"),
        ("mode_pages", ["20:0"], "an odd number of hexadecimal digits"),
        ("mode_pages", ["disk"], "is not CODE[.SUBPAGE]:VALUES[/CHANGEABLE]"),
        ("mode_pages", [f"{code:x}:00" for code in range(1, 40)], "39 mode pages: a unit takes 32"),
        ("mode_pages", ["08:00"], "mode page 08h: is one of ours, with 18 bytes of values, not 1"),
        ("mode_pages", ["08:" + "00" * 18 + "/" + "ff" * 18], "what can be changed of it is not for others to say"),
        ("mode_pages", ["08:01" + "00" * 17], "byte 2 may differ from 04h in the bits of 04h only; 01h does not"),
        ("vpd_pages", ["b0:00"], "page B0h: codes of others go from C0h to FFh"),
        ("vpd_pages", ["c0:00", "c0:00"], "page C0h is given twice"),
        ("vpd_pages", ["c0:" + "00" * 1021], "1021 bytes; there may be 1020"),
        ("vpd_pages", ["c0=1"], "is not CODE:DATA"),
        ("vpd_pages", [f"{code:x}:" for code in range(0xC0, 0xD1)], "17 vital product data pages"),
    ],
)
def test_mistakes_are_one_line(key: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        unit(**{key: value})
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"lu d {key}")


def test_two_units_have_two_names() -> None:
    lus = {name: {"url": "memory:1M", "eui64": "001b44113ab71234", "spare": True} for name in "ab"}
    with pytest.raises(ConfigError, match="lu b eui64: logical unit a has the same name"):
        build({"lu": lus, "port": {"p": {"socket": "s"}}, "map": {"0:0": "a"}})
