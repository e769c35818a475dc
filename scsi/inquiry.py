# SPDX-License-Identifier: Apache-2.0
"""INQUIRY: standard data and the dispatch to the vital product data pages (SPC-5 6.7). The pages are `vpd`."""

from typing import Final

from construct import Bytes, Int8ub, Int16ub, Padding, Struct

from vhost_scsi.scsi import vpd
from vhost_scsi.scsi.commands import DeviceType
from vhost_scsi.scsi.dispatch import Request, handles

STANDARD = Struct(
    "peripheral" / Int8ub,
    "removable" / Int8ub,
    "version" / Int8ub,
    "format" / Int8ub,
    "additional_length" / Int8ub,
    "protect" / Int8ub,
    "ports" / Int8ub,
    "queueing" / Int8ub,
    "vendor" / Bytes(8),
    "product" / Bytes(16),
    "revision" / Bytes(4),
    Padding(22),
    "version_descriptors" / Int16ub[8],
    Padding(22),
)

QUALIFIER_NO_DEVICE: Final = 0b011 << 5
"""the target cannot have a device at this LUN"""
VERSION_SPC_4: Final = 0x06
HISUP_FORMAT_2: Final = 0x12
"""LUNs are as SAM's REPORT LUNS gives them; RESPONSE DATA FORMAT 2"""
NORMACA: Final = 0x20
TPGS: Final = 0x30
"""implicit and explicit asymmetric logical unit access"""
THIRD_PARTY_COPY: Final = 0x08
"""3PC: EXTENDED COPY is there"""
MULTIP: Final = 0x10
"""there are several target ports"""
CMDQUE: Final = 0x02

# SPC-5 table 149. SPC-4 and SBC-3 are the newest whose requirements on the commands that we have are all met.
SAM_5: Final = 0x00A0
SPC_4: Final = 0x0460
SBC_3: Final = 0x04C0
MMC_6: Final = 0x04E0
COMMAND_SET: Final = {DeviceType.DISK: [SBC_3], DeviceType.CD_DVD: [MMC_6]}
RMB: Final = 0x80


def pad(text: str, length: int) -> bytes:
    """Left-aligned ASCII, filled with spaces (SPC-5 4.3.1)."""
    return text.encode("ascii", "replace")[:length].ljust(length)


def standard_data(
    peripheral: int,
    vendor: str,
    product: str,
    revision: str,
    *,
    removable: bool = False,
    aca: bool = False,
    ports: int = 1,
) -> bytes:
    """Standard INQUIRY data; `peripheral` is qualifier and device type, `ports` how many reach the unit."""
    descriptors = [SAM_5, SPC_4, *COMMAND_SET.get(DeviceType(peripheral & 0x1F), [])]
    built: bytes = STANDARD.build(
        {
            "peripheral": peripheral,
            "removable": RMB if removable else 0,
            "version": VERSION_SPC_4,
            "format": HISUP_FORMAT_2 | (NORMACA if aca else 0),
            "additional_length": STANDARD.sizeof() - 5,
            "protect": TPGS | THIRD_PARTY_COPY if peripheral == DeviceType.DISK else 0,
            "ports": MULTIP if ports > 1 else 0,
            "queueing": CMDQUE,
            "vendor": pad(vendor, 8),
            "product": pad(product, 16),
            "revision": pad(revision, 4),
            "version_descriptors": descriptors + [0] * (8 - len(descriptors)),
        }
    )
    return built


@handles("inquiry")
def inquiry(request: Request) -> bytes:
    definition = request.logical_unit.definition
    if request["evpd"]:
        page = vpd.page_of(request.logical_unit, request["page_code"])
        if page is None:
            raise request.refuse("page_code")
        return vpd.build(page, request.logical_unit, request.itl.nexus.target_port)
    if request["page_code"]:
        # SPC-5 6.7.1: a page code without EVPD
        raise request.refuse("page_code")
    return standard_data(
        definition.device_type,
        definition.vendor,
        definition.product,
        definition.revision,
        removable=definition.removable,
        aca=True,
        ports=len(list(request.logical_unit.target_ports())),
    )
