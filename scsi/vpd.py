# SPDX-License-Identifier: Apache-2.0
"""Vital product data pages, one row each; page 00h is derived from the rows (SPC-5 7.7, SBC-4 6.6).

Identity comes from the logical unit's UUID alone: the same unit has the same names wherever its data lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from construct import (
    BitsInteger,
    BitStruct,
    Const,
    Flag,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Padding,
    Struct,
)
from construct import Prefixed as PrefixedBytes

from vhost_scsi.scsi import copy_parameters, limits, thresholds
from vhost_scsi.scsi.commands import DeviceType, Feature
from vhost_scsi.scsi.medium import Support

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit
    from vhost_scsi.scsi.nexus import TargetPort

PAGE = Struct("peripheral" / Int8ub, "code" / Int8ub, "data" / PrefixedBytes(Int16ub, GreedyBytes))

# SPC-5 7.7.6.1
DESIGNATOR = Struct(
    "head"
    / BitStruct(
        "protocol_identifier" / BitsInteger(4),
        "code_set" / BitsInteger(4),
        "piv" / Flag,
        Padding(1),
        "association" / BitsInteger(2),
        "type" / BitsInteger(4),
    ),
    Padding(1),
    "designator" / PrefixedBytes(Int8ub, GreedyBytes),
)
BINARY, ASCII, UTF_8 = 1, 2, 3
LOGICAL_UNIT, TARGET_PORT = 0, 1
GIVEN_FIRST, GIVEN_LAST = 0xC0, 0xFF
"""SPC-5 7.7.2: pages that are nobody's but the vendor's"""
GIVEN_MAX, VPD_BYTES_MAX = 16, 1020
T10_VENDOR_ID, EUI_64, NAA, RELATIVE_TARGET_PORT, TARGET_PORT_GROUP, SCSI_NAME_STRING, UUID_DESIGNATOR = (
    1,
    2,
    3,
    4,
    5,
    8,
    0xA,
)
ISCSI: Final = 0x5
NAA_LOCALLY_ASSIGNED: Final = 0x3

# SBC-4 6.6.4, from byte 4 on
BLOCK_LIMITS = Struct(
    "wsnz" / Int8ub,
    "maximum_compare_and_write_length" / Int8ub,
    "optimal_transfer_length_granularity" / Int16ub,
    "maximum_transfer_length" / Int32ub,
    "optimal_transfer_length" / Int32ub,
    "maximum_prefetch_length" / Int32ub,
    "maximum_unmap_lba_count" / Int32ub,
    "maximum_unmap_block_descriptor_count" / Int32ub,
    "optimal_unmap_granularity" / Int32ub,
    "unmap_granularity_alignment" / Int32ub,
    "maximum_write_same_length" / Int64ub,
    "maximum_atomic_transfer_length" / Int32ub,
    "atomic_alignment" / Int32ub,
    "atomic_transfer_length_granularity" / Int32ub,
    "maximum_atomic_transfer_length_with_atomic_boundary" / Int32ub,
    "maximum_atomic_boundary_size" / Int32ub,
)
UGAVALID: Final = 1 << 31

# SBC-4 6.6.2
BLOCK_DEVICE_CHARACTERISTICS = Struct(
    "medium_rotation_rate" / Int16ub, Padding(1), "write_after_erase" / Int8ub, Padding(56)
)
WABEREQ_READS_SUCCEED: Final = 0b01 << 6
"""after SANITIZE, BLOCK ERASE blocks are read without error"""
ROTATION_NOT_REPORTED, NON_ROTATING = 0x0000, 0x0001

# SBC-4 6.6.7
LOGICAL_BLOCK_PROVISIONING = Struct(
    "threshold_exponent" / Int8ub,
    "flags"
    / BitStruct(
        "lbpu" / Flag,
        "lbpws" / Flag,
        "lbpws10" / Flag,
        "lbprz" / BitsInteger(3),
        "anc_sup" / Flag,
        "dp" / Flag,
    ),
    "provisioning_type" / Int8ub,
    Padding(1),
)
FULLY_PROVISIONED, THIN_PROVISIONED = 0, 2

# SPC-5 7.7.7, from byte 4 on
EXTENDED_INQUIRY = Struct(
    "checks" / Int8ub,
    "task_attributes"
    / BitStruct(
        Padding(2),
        "uask_sup" / Flag,
        "group_sup" / Flag,
        "prior_sup" / Flag,
        "headsup" / Flag,
        "ordsup" / Flag,
        "simpsup" / Flag,
    ),
    "caches" / BitStruct(Padding(4), "wu_sup" / Flag, "crd_sup" / Flag, "nv_sup" / Flag, "v_sup" / Flag),
    "clearing" / BitStruct(Padding(3), "p_i_i_sup" / Flag, Padding(3), "luiclr" / Flag),
    Padding(56),
)

# SPC-5 7.7.15
SCSI_PORT = Struct(
    Padding(2),
    "relative_id" / Int16ub,
    Padding(2),
    "initiator_transport_id" / Const(0, Int16ub),
    Padding(2),
    "descriptors" / PrefixedBytes(Int16ub, GreedyBytes),
)

# SPC-5 7.7.12, from byte 4 on; recovery times in milliseconds
POWER_CONDITION = Struct("standby" / Int8ub, "idle" / Int8ub, Padding(12))

# SPC-5 7.7.17
COPY_DESCRIPTOR = Struct("type" / Int16ub, "body" / PrefixedBytes(Int16ub, GreedyBytes))
COPY_PARAMETER_DATA = Struct(
    Padding(4),
    "targets" / Int16ub,
    "segments" / Int16ub,
    "list_bytes" / Int32ub,
    "inline_bytes" / Int32ub,
    Padding(12),
)
GENERAL_COPY_OPERATIONS = Struct(
    "total_copies" / Int32ub,
    "identified_copies" / Int32ub,
    "segment_bytes" / Int32ub,
    "segment_granularity" / Int8ub,
    "inline_granularity" / Int8ub,
    Padding(18),
)


def naa_locally_assigned(uuid: UUID) -> bytes:
    """An NAA 3h name (SPC-5 7.7.6.6.4): 60 bits of a digest of the UUID. We own no IEEE company identifier, so no
    registered format would be true."""
    digest = hashlib.sha256(uuid.bytes).digest()[:8]
    return bytes([NAA_LOCALLY_ASSIGNED << 4 | digest[0] & 0x0F]) + digest[1:]


def serial_number(uuid: UUID) -> bytes:
    return uuid.hex.encode("ascii")


def _designator(association: int, kind: int, code_set: int, value: bytes, protocol: int | None = None) -> bytes:
    built: bytes = DESIGNATOR.build(
        {
            "head": {
                "protocol_identifier": protocol or 0,
                "code_set": code_set,
                "piv": protocol is not None,
                "association": association,
                "type": kind,
            },
            "designator": value,
        }
    )
    return built


def _supported_pages(unit: LogicalUnit, port: TargetPort) -> bytes:
    return bytes(row.code for row in pages_of(unit))


def _unit_serial_number(unit: LogicalUnit, port: TargetPort) -> bytes:
    return _serial(unit)


def _serial(unit: LogicalUnit) -> bytes:
    return unit.definition.serial.encode("ascii", "replace") or serial_number(unit.definition.uuid)


def target_port_name(port: TargetPort) -> bytes:
    if port.iscsi_name is None:
        return _designator(TARGET_PORT, NAA, BINARY, naa_locally_assigned(port.uuid))
    # SPC-5 7.7.6.11: null-terminated, null-padded to a multiple of four
    name = port.iscsi_name.encode()
    name += bytes(4 - len(name) % 4)
    return _designator(TARGET_PORT, SCSI_NAME_STRING, UTF_8, name, ISCSI)


def target_port_designators(port: TargetPort) -> bytes:
    """The relative identifier of the port, its group, and its name."""
    relative = _designator(TARGET_PORT, RELATIVE_TARGET_PORT, BINARY, bytes(2) + port.relative_id.to_bytes(2))
    group = _designator(TARGET_PORT, TARGET_PORT_GROUP, BINARY, bytes(2) + port.group.to_bytes(2))
    return relative + group + target_port_name(port)


def logical_unit_designators(unit: LogicalUnit) -> list[tuple[int, int, bytes]]:
    """What names the unit: code set, designator type, value."""
    uuid = unit.definition.uuid
    vendor = unit.definition.vendor.encode("ascii", "replace")[:8].ljust(8)
    naa, eui = unit.definition.naa or naa_locally_assigned(uuid), unit.definition.eui64
    name = b"naa." + naa.hex().upper().encode("ascii")
    return [
        (BINARY, NAA, naa),
        *([(BINARY, EUI_64, eui)] if eui else []),
        # SPC-5 7.7.6.10: designator length and type of UUID 1h, then the UUID
        (BINARY, UUID_DESIGNATOR, bytes([0x10, 0x00]) + uuid.bytes),
        (ASCII, T10_VENDOR_ID, vendor + _serial(unit)),
        # SPC-5 7.7.6.11: null-terminated, null-padded to a multiple of four
        (UTF_8, SCSI_NAME_STRING, name + bytes(4 - len(name) % 4)),
    ]


def _device_identification(unit: LogicalUnit, port: TargetPort) -> bytes:
    own = (_designator(LOGICAL_UNIT, kind, code_set, value) for code_set, kind, value in logical_unit_designators(unit))
    return b"".join(own) + target_port_designators(port)


def _extended_inquiry(unit: LogicalUnit, port: TargetPort) -> bytes:
    built: bytes = EXTENDED_INQUIRY.build(
        {
            "checks": 0,
            "task_attributes": {
                "uask_sup": False,
                "group_sup": False,
                "prior_sup": False,
                "headsup": True,
                "ordsup": True,
                "simpsup": True,
            },
            "caches": {"wu_sup": False, "crd_sup": False, "nv_sup": False, "v_sup": True},
            "clearing": {"p_i_i_sup": False, "luiclr": True},
        }
    )
    return built


def _block_limits(unit: LogicalUnit, port: TargetPort) -> bytes:
    medium = unit.medium
    unmaps = medium.capabilities.unmap is not Support.NONE
    granularity = medium.unmap_granularity if unmaps else 0
    built: bytes = BLOCK_LIMITS.build(
        {
            "wsnz": int(unit.definition.wsnz),
            "maximum_compare_and_write_length": limits.COMPARE_AND_WRITE_BLOCKS,
            "optimal_transfer_length_granularity": 1 << medium.physical_block_exponent,
            "maximum_transfer_length": limits.TRANSFER_BYTES // medium.block_size,
            "optimal_transfer_length": limits.OPTIMAL_TRANSFER_BYTES // medium.block_size,
            "maximum_prefetch_length": 0,
            "maximum_unmap_lba_count": limits.UNMAP_BLOCKS if unmaps else 0,
            "maximum_unmap_block_descriptor_count": limits.UNMAP_DESCRIPTORS if unmaps else 0,
            "optimal_unmap_granularity": granularity,
            "unmap_granularity_alignment": UGAVALID if granularity else 0,
            "maximum_write_same_length": limits.WRITE_SAME_BYTES // medium.block_size,
            # Alignment and granularity 0: any. No boundary: a WRITE ATOMIC is one write.
            "maximum_atomic_transfer_length": min(medium.atomic_blocks, limits.TRANSFER_BYTES // medium.block_size),
            "atomic_alignment": 0,
            "atomic_transfer_length_granularity": 0,
            "maximum_atomic_transfer_length_with_atomic_boundary": 0,
            "maximum_atomic_boundary_size": 0,
        }
    )
    return built


def _block_device_characteristics(unit: LogicalUnit, port: TargetPort) -> bytes:
    rate = ROTATION_NOT_REPORTED if unit.medium.rotational else NON_ROTATING
    erases = unit.medium.capabilities.unmap is not Support.NONE
    built: bytes = BLOCK_DEVICE_CHARACTERISTICS.build(
        {"medium_rotation_rate": rate, "write_after_erase": WABEREQ_READS_SUCCEED if erases else 0}
    )
    return built


def _logical_block_provisioning(unit: LogicalUnit, port: TargetPort) -> bytes:
    medium = unit.medium
    unmaps = medium.capabilities.unmap is not Support.NONE
    built: bytes = LOGICAL_BLOCK_PROVISIONING.build(
        {
            "threshold_exponent": thresholds.exponent(medium.block_size) if unit.has(Feature.USAGE) else 0,
            "flags": {
                "lbpu": unmaps,
                "lbpws": unmaps,
                "lbpws10": unmaps,
                "lbprz": int(unmaps and medium.lbprz),
                "anc_sup": False,
                "dp": False,
            },
            "provisioning_type": THIN_PROVISIONED if unmaps else FULLY_PROVISIONED,
        }
    )
    return built


def _management_network_addresses(unit: LogicalUnit, port: TargetPort) -> bytes:
    """None: a unit is managed through its process's socket, which has no URL."""
    return b""


def _mode_page_policy(unit: LogicalUnit, port: TargetPort) -> bytes:
    # SPC-5 7.7.9: all pages and subpages are shared by all nexuses, none by several logical units.
    return bytes([0x3F, 0xFF, 0x00, 0x00])


def _scsi_ports(unit: LogicalUnit, port: TargetPort) -> bytes:
    built = b""
    for each in sorted(unit.target_ports(), key=lambda one: one.relative_id):
        built += SCSI_PORT.build({"relative_id": each.relative_id, "descriptors": target_port_name(each)})
    return built


def _power_condition(unit: LogicalUnit, port: TargetPort) -> bytes:
    """Every condition that START STOP UNIT may ask for; none takes time to leave."""
    built: bytes = POWER_CONDITION.build({"standby": 0b11, "idle": 0b111})
    return built


def _padded(kind: int, body: bytes) -> bytes:
    """A third-party copy descriptor: a multiple of four bytes (SPC-5 7.7.17.2)."""
    built: bytes = COPY_DESCRIPTOR.build({"type": kind, "body": body + bytes(-len(body) % 4)})
    return built


def _third_party_copy(unit: LogicalUnit, port: TargetPort) -> bytes:
    commands: dict[int, list[int]] = {}
    for row in unit.commands():
        if row.opcode in (0x83, 0x84):
            commands.setdefault(row.opcode, []).append(row.service_action or 0)
    listed = b"".join(bytes([opcode, len(actions), *actions]) for opcode, actions in commands.items())
    listed = bytes([len(listed)]) + listed
    # A supported commands list is 4n-2 long: type and length, four bytes, come before it.
    codes = bytes([len(copy_parameters.CODES), *copy_parameters.CODES])
    parameters = COPY_PARAMETER_DATA.build(
        {
            "targets": copy_parameters.TARGETS,
            "segments": copy_parameters.SEGMENTS,
            "list_bytes": copy_parameters.LIST_BYTES,
            "inline_bytes": 0,
        }
    )
    operations = GENERAL_COPY_OPERATIONS.build(
        {
            "total_copies": limits.COPIES,
            "identified_copies": limits.COPIES,
            "segment_bytes": copy_parameters.SEGMENT_BYTES,
            "segment_granularity": unit.medium.block_size.bit_length() - 1,
            "inline_granularity": 0,
        }
    )
    return _padded(0x0001, listed) + _padded(0x0004, parameters) + _padded(0x0008, codes) + _padded(0x8001, operations)


def _block_limits_extension(unit: LogicalUnit, port: TargetPort) -> bytes:
    """No streams and no scattered writes: all zero (SBC-4 6.6.5)."""
    return bytes(60)


@dataclass(frozen=True, slots=True)
class VpdPage:
    """`build` gives the page from byte 4 on."""

    code: int
    name: str
    build: Callable[[LogicalUnit, TargetPort], bytes]


PAGES: Final[tuple[VpdPage, ...]] = (
    VpdPage(0x00, "Supported VPD Pages", _supported_pages),
    VpdPage(0x80, "Unit Serial Number", _unit_serial_number),
    VpdPage(0x83, "Device Identification", _device_identification),
    VpdPage(0x85, "Management Network Addresses", _management_network_addresses),
    VpdPage(0x86, "Extended INQUIRY Data", _extended_inquiry),
    VpdPage(0x87, "Mode Page Policy", _mode_page_policy),
    VpdPage(0x88, "SCSI Ports", _scsi_ports),
    VpdPage(0x8A, "Power Condition", _power_condition),
    VpdPage(0x8F, "Third-party Copy", _third_party_copy),
    VpdPage(0xB0, "Block Limits", _block_limits),
    VpdPage(0xB1, "Block Device Characteristics", _block_device_characteristics),
    VpdPage(0xB2, "Logical Block Provisioning", _logical_block_provisioning),
    VpdPage(0xB7, "Block Limits Extension", _block_limits_extension),
)

DEVICE_TYPE_SPECIFIC: Final = 0xB0
_BY_CODE: Final = {row.code: row for row in PAGES}


def pages_of(unit: LogicalUnit) -> list[VpdPage]:
    """SPC-5 7.7: pages from B0h on belong to the device type; those we have are a disk's. Then those it is given."""
    is_disk = unit.definition.device_type is DeviceType.DISK
    own = [page for page in PAGES if is_disk or page.code < DEVICE_TYPE_SPECIFIC]
    return own + [_given(code, data) for code, data in sorted(unit.definition.vpd_pages)]


def _given(code: int, data: bytes) -> VpdPage:
    return VpdPage(code, "given", lambda unit, port: data)


def find(code: int) -> VpdPage | None:
    """Of those that we have."""
    return _BY_CODE.get(code)


def page_of(unit: LogicalUnit, code: int) -> VpdPage | None:
    return next((page for page in pages_of(unit) if page.code == code), None)


def build(page: VpdPage, unit: LogicalUnit, port: TargetPort) -> bytes:
    """The whole page with its header."""
    built: bytes = PAGE.build(
        {"peripheral": unit.definition.device_type, "code": page.code, "data": page.build(unit, port)}
    )
    return built
