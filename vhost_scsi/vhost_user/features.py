# SPDX-License-Identifier: Apache-2.0
"""Virtio feature bits by name, and which of them a front end may set although we did not offer them.

It names bits and compares sets of them; what a bit does to a ring or a request is the device's business.
"""

from __future__ import annotations

from enum import IntFlag


class Feature(IntFlag):
    """virtio 1.3, 5.6.3 (SCSI host), 6 (reserved bits), 6.3 (legacy); VHOST bits as in linux/vhost.h and vhost-user."""

    SCSI_INOUT = 1 << 0
    SCSI_HOTPLUG = 1 << 1
    SCSI_CHANGE = 1 << 2
    SCSI_T10_PI = 1 << 3
    NOTIFY_ON_EMPTY = 1 << 24
    VHOST_LOG_ALL = 1 << 26
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VHOST_USER_PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    ORDER_PLATFORM = 1 << 36
    SR_IOV = 1 << 37
    NOTIFICATION_DATA = 1 << 38
    NOTIF_CONFIG_DATA = 1 << 39
    RING_RESET = 1 << 40
    ADMIN_VQ = 1 << 41


# The layout of a ring and the order in which it is used are a driver's choice: not to be taken for being offered.
LAYOUTS = Feature.RING_PACKED | Feature.IN_ORDER

# QEMU's vhost-user-scsi masks only some bits by the back end's offer and sets the others from its own properties.
# These ask nothing of us that we do not do anyway: VERSION_1 and ANY_LAYOUT leave the split layout of a little-endian
# guest as it is, and we never rely on message framing (virtio 1.3, 2.7.4).
HARMLESS_UNOFFERED = Feature.VERSION_1 | Feature.ANY_LAYOUT


def feature_names(bits: int) -> list[str]:
    """The names of all bits set in `bits`, lowest first; a bit without a name is `BIT_n`."""
    return [_bit_name(number) for number in range(bits.bit_length()) if bits >> number & 1]


def unserved(accepted: int, offered: int) -> int:
    """The bits of a SET_FEATURES that must be refused by name: nobody offered them and they are not harmless, or they
    mean nothing without VERSION_1 (virtio 1.3, 6: a legacy driver sees the first 32 bits only)."""
    # As plain numbers: the complement of an IntFlag has only the bits that have a name.
    refused = accepted & ~int(offered | HARMLESS_UNOFFERED)
    if not accepted & Feature.VERSION_1:
        refused |= accepted & int(LAYOUTS)
    return refused


def _bit_name(number: int) -> str:
    return Feature(1 << number).name or f"BIT_{number}"
