# SPDX-License-Identifier: Apache-2.0
"""MODE SENSE and MODE SELECT (SPC-5 6.11 to 6.14, SBC-4 6.5.1). The pages themselves are `mode_pages`.

MODE SELECT checks the whole list first and changes nothing unless all of it is right; a change is then made with
nothing in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from construct import Int8ub, Int16ub, Int24ub, Int32ub, Int64ub, Padding, Struct

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.commands import DeviceType
from vhost_scsi.scsi.dispatch import Exclusive, Request, handles
from vhost_scsi.scsi.medium import Support
from vhost_scsi.scsi.mode_pages import CAPABILITIES, CONTROL, SPF, page_key
from vhost_scsi.scsi.mode_parameters import Page
from vhost_scsi.scsi.nexus import ITL
from vhost_scsi.scsi.sense import CheckCondition

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit

# SPC-5 7.5.5. In MODE SELECT the data length and the device-specific parameter are reserved and not looked at.
HEADER_6 = Struct("length" / Int8ub, "medium_type" / Int8ub, "device_specific" / Int8ub, "descriptors" / Int8ub)
HEADER_10 = Struct(
    "length" / Int16ub,
    "medium_type" / Int8ub,
    "device_specific" / Int8ub,
    "longlba" / Int8ub,
    Padding(1),
    "descriptors" / Int16ub,
)

# SBC-4 6.5.2
SHORT_DESCRIPTOR = Struct("num_blocks" / Int32ub, Padding(1), "block_size" / Int24ub)
LONG_DESCRIPTOR = Struct("num_blocks" / Int64ub, Padding(4), "block_size" / Int32ub)

WP: Final = 0x80
DPOFUA: Final = 0x10
LONGLBA: Final = 0x01

CURRENT, CHANGEABLE, DEFAULT, SAVED = 0, 1, 2, 3
ALL_PAGES: Final = 0x3F
ALL_SUBPAGES: Final = 0xFF
PS: Final = 0x80
LENGTH_6_MAX: Final = 0xFF
RESERVED_INTERLOCK: Final = 0b01
RESERVED_QUEUE_ERROR: Final = 0b10


def device_specific_parameter(unit: LogicalUnit) -> int:
    """SBC-4 6.5.1: whether writes are refused for any reason, and whether DPO and FUA are honoured. MMC-6 has none."""
    if unit.definition.device_type is DeviceType.CD_DVD:
        return 0
    return (WP if unit.write_protected else 0) | (DPOFUA if unit.medium.capabilities.fua is not Support.NONE else 0)


def _selected(request: Request) -> list[Page]:
    """SPC-5 table 275: subpage 00h is the page_0 format alone, FFh is all subpages."""
    code, subpage = request["page_code"], request["subpage_code"]
    pages = [page for page in request.logical_unit.mode_pages() if code in (ALL_PAGES, page.code)]
    if not pages:
        raise request.refuse("page_code")
    if subpage != ALL_SUBPAGES:
        pages = [page for page in pages if page.subpage == subpage]
        if not pages or (code == ALL_PAGES and subpage):
            raise request.refuse("subpage_code")
    return pages


def _values(request: Request, page: Page) -> bytes:
    parameters = request.logical_unit.mode
    match request["pc"]:
        case 0:
            data = _with_lock(request.logical_unit, page, parameters.current(page))
        case 1:
            data = page.mask
        case 2:
            data = parameters.default(page)
        case _:
            data = parameters.saved(page)
    # SPC-5 7.5.6: PS says that MODE SELECT may save the page.
    return bytes([data[0] | PS]) + data[1:] if page.can_be_saved else data


def _with_lock(unit: LogicalUnit, page: Page, values: bytes) -> bytes:
    """The one bit of a page that is a state: whether the tray is locked."""
    if page is not CAPABILITIES or unit.drive is None or not unit.drive.locked:
        return values
    return CAPABILITIES.build({**CAPABILITIES.defaults, "lock_state": 1})


def _block_descriptor(unit: LogicalUnit, *, long: bool) -> bytes:
    blocks, size = unit.medium.num_blocks, unit.medium.block_size
    built: bytes
    if long:
        built = LONG_DESCRIPTOR.build({"num_blocks": blocks, "block_size": size})
    else:
        # SBC-4 6.5.2.2: FFFFFFFFh when the number does not fit
        built = SHORT_DESCRIPTOR.build({"num_blocks": min(blocks, 0xFFFFFFFF), "block_size": size})
    return built


def _sense_parts(request: Request, *, long: bool) -> tuple[bytes, bytes]:
    pages = b"".join(_values(request, page) for page in _selected(request))
    # A CD drive has no block descriptor to tell: MMC-6 has its block length in the features.
    bare = request["dbd"] or request.logical_unit.definition.device_type is DeviceType.CD_DVD
    return b"" if bare else _block_descriptor(request.logical_unit, long=long), pages


@handles("mode_sense_6")
def mode_sense_6(request: Request) -> bytes:
    descriptor, pages = _sense_parts(request, long=False)
    length = HEADER_6.sizeof() - 1 + len(descriptor) + len(pages)
    if length > LENGTH_6_MAX:
        # SPC-5 6.13: what has no room in the MODE DATA LENGTH of this command is there by MODE SENSE(10).
        raise request.refuse("page_code")
    header: bytes = HEADER_6.build(
        {
            "length": length,
            "medium_type": 0,
            "device_specific": device_specific_parameter(request.logical_unit),
            "descriptors": len(descriptor),
        }
    )
    return header + descriptor + pages


@handles("mode_sense_10")
def mode_sense_10(request: Request) -> bytes:
    long = bool(request["llbaa"])
    descriptor, pages = _sense_parts(request, long=long)
    header: bytes = HEADER_10.build(
        {
            "length": HEADER_10.sizeof() - 2 + len(descriptor) + len(pages),
            "medium_type": 0,
            "device_specific": device_specific_parameter(request.logical_unit),
            "longlba": LONGLBA if long and descriptor else 0,
            "descriptors": len(descriptor),
        }
    )
    return header + descriptor + pages


def _too_short() -> CheckCondition:
    return CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the parts of a MODE SELECT parameter list stand, in bytes."""

    descriptor_at: int
    descriptor_length: int
    long: bool

    @property
    def pages_at(self) -> int:
        return self.descriptor_at + self.descriptor_length


def _layout_6(data: bytes) -> _Layout:
    if len(data) < HEADER_6.sizeof():
        raise _too_short()
    header = HEADER_6.parse(data)
    if header.medium_type:
        raise sense.invalid_parameter(1, 7)
    if header.descriptors not in (0, SHORT_DESCRIPTOR.sizeof()):
        raise sense.invalid_parameter(3, 7)
    return _Layout(HEADER_6.sizeof(), header.descriptors, False)


def _layout_10(data: bytes) -> _Layout:
    if len(data) < HEADER_10.sizeof():
        raise _too_short()
    header = HEADER_10.parse(data)
    if header.medium_type:
        raise sense.invalid_parameter(2, 7)
    if header.longlba & ~LONGLBA:
        raise sense.invalid_parameter(4, header.longlba.bit_length() - 1)
    long = bool(header.longlba)
    if header.descriptors not in (0, (LONG_DESCRIPTOR if long else SHORT_DESCRIPTOR).sizeof()):
        raise sense.invalid_parameter(6, 7)
    return _Layout(HEADER_10.sizeof(), header.descriptors, long)


def _check_descriptor(unit: LogicalUnit, data: bytes, layout: _Layout) -> None:
    """Neither capacity nor block length can be changed; SBC-4 6.5.2: 0 blocks and all ones keep the capacity."""
    if not layout.descriptor_length:
        return
    raw = data[layout.descriptor_at : layout.pages_at]
    if len(raw) < layout.descriptor_length:
        raise _too_short()
    parsed = (LONG_DESCRIPTOR if layout.long else SHORT_DESCRIPTOR).parse(raw)
    everything = (1 << 64) - 1 if layout.long else (1 << 32) - 1
    if parsed.num_blocks not in (0, everything, unit.medium.num_blocks):
        raise sense.invalid_parameter(layout.descriptor_at, 7)
    if parsed.block_size != unit.medium.block_size:
        raise sense.invalid_parameter(layout.descriptor_at + (12 if layout.long else 5), 7)


def _no_such_page(unit: LogicalUnit, head: int, at: int) -> CheckCondition:
    """Points at the subpage code, at SPF or at the page code."""
    if not head & SPF:
        return sense.invalid_parameter(at, 5)
    if any(page.code == head & 0x3F and page.subpage for page in unit.mode_pages()):
        return sense.invalid_parameter(at + 1, 7)
    return sense.invalid_parameter(at, 6)


def _check_page(data: bytes, at: int, staged: dict[int, bytes], unit: LogicalUnit) -> int:
    """Stages one page; returns the offset of the next."""
    if len(data) - at < 2:
        raise _too_short()
    # SPC-5 7.5.6: PS is reserved in MODE SELECT.
    if data[at] & PS:
        raise sense.invalid_parameter(at, PS.bit_length() - 1)
    page = unit.mode.find(page_key(data[at:]))
    if page is None or not unit.has(page.requires) or bool(data[at] & SPF) != bool(page.subpage):
        raise _no_such_page(unit, data[at], at)
    current = staged.get(page.key, unit.mode.current(page))
    if len(data) - at < page.header_bytes:
        raise _too_short()
    if data[at : at + page.header_bytes] != current[: page.header_bytes]:
        raise sense.invalid_parameter(at + (2 if page.subpage else 1), 7)
    new = data[at : at + len(current)]
    if len(new) < len(current):
        raise _too_short()
    for index in range(page.header_bytes, len(new)):
        # SPC-5 6.11: a value that differs in a bit that cannot change
        wrong = (new[index] ^ current[index]) & ~page.mask[index]
        if wrong:
            raise sense.invalid_parameter(at + index, wrong.bit_length() - 1)
    if page is CONTROL and CONTROL.field(new, "ua_intlck_ctrl") == RESERVED_INTERLOCK:
        raise sense.invalid_parameter(at + 4, 5)
    if page is CONTROL and page.field(new, "qerr") == RESERVED_QUEUE_ERROR:
        raise sense.invalid_parameter(at + 3, 2)
    staged[page.key] = new
    return at + len(new)


async def _apply(unit: LogicalUnit, staged: dict[int, bytes], by: ITL, *, save: bool) -> bytes:
    before = {key: unit.mode.current_of(key) for key in staged}
    changes = before != staged
    if changes:
        await unit.set_mode(staged)
    if save:
        try:
            await unit.save_mode()
        except CheckCondition:
            await unit.set_mode(before)
            raise
    if changes:
        unit.mode_changed(by)
    return b""


def _select(request: Request, data: bytes, layout: _Layout) -> bytes | Exclusive:
    unit = request.logical_unit
    _check_descriptor(unit, data, layout)
    staged: dict[int, bytes] = {}
    at = layout.pages_at
    while at < len(data):
        at = _check_page(data, at, staged, unit)
    save = bool(request["sp"])
    if not save and all(unit.mode.current_of(key) == page for key, page in staged.items()):
        return b""
    return _apply(unit, staged, request.itl, save=save)


def _checked_list(request: Request) -> bytes:
    data = request.parameter_list()
    if data and not request["pf"]:
        # SPC-5 6.11: PF=0 means vendor-specific pages, and we have none.
        raise request.refuse("pf")
    return data


@handles("mode_select_6")
def mode_select_6(request: Request) -> bytes | Exclusive:
    # SPC-5 6.11: a parameter list length of zero is not an error
    data = _checked_list(request)
    return _select(request, data, _layout_6(data)) if data else b""


@handles("mode_select_10")
def mode_select_10(request: Request) -> bytes | Exclusive:
    data = _checked_list(request)
    return _select(request, data, _layout_10(data)) if data else b""
