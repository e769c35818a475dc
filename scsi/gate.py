# SPDX-License-Identifier: Apache-2.0
"""The gate as the core sees it: the reasons why C may not run a command at once, and the port that sets them.

The bits are generated into C (`VS_GATE_<NAME>`). What a closed gate does in the workers is the data plane's affair.
"""

from enum import IntFlag
from typing import Protocol


class GateBit(IntFlag):
    """One reason each; two words in memory carry them, one per logical unit and one per I_T_L nexus."""

    UNIT_ATTENTION = 1 << 0
    """nexus: a unit attention condition is pending"""
    RESERVED_READ = 1 << 1
    """nexus: commands that read the medium conflict with a reservation"""
    RESERVED_WRITE = 1 << 2
    """nexus: commands that change the medium or the unit conflict with a reservation"""
    NOT_READY = 1 << 3
    WRITE_PROTECTED = 1 << 4
    FAULT = 1 << 5
    TRACE = 1 << 6
    EXCLUSIVE = 1 << 7
    """C only: an LBA range is locked; never a reason to ask Python"""
    TMF = 1 << 8
    ORDERED = 1 << 9
    """set by C on arrival of ORDERED, HEAD OF QUEUE or ACA; opened by Python"""
    ACA = 1 << 10
    """set by C when a command ends with CHECK CONDITION and that is the business of others; opened by Python. On a
    nexus: an ACA condition is in effect for it alone"""
    STORE_FAILED = 1 << 11
    """set by C: a flush failed and stays failed until the store is opened again"""
    HOLD = 1 << 12
    """everything waits: resize, mode change, removal"""
    RESERVED = 1 << 13
    """nexus: another one has made a RESERVE, and even TEST UNIT READY conflicts"""
    ACCESS = 1 << 14
    """nexus: the group of its target port is in a state that lets no command at the medium through"""
    NO_MEDIUM = 1 << 15
    """the drive is empty, or its tray open"""
    DISK_ONLY = 1 << 16
    """closed for good where the unit is no disk: commands that only disks have go to Python, which refuses them"""
    MARKED = 1 << 17
    """blocks are marked as bad, durably: what writes may end such a mark, and that has to be kept before"""


class GatePort(Protocol):
    """One gate word: a logical unit's or an I_T_L nexus's."""

    def close(self, bits: GateBit) -> None:
        """Set the bits at once; a command that C started before may still run."""

    async def fence(self, bits: GateBit) -> None:
        """Set the bits at once (before the first wait), then return when no command that missed them can start
        and all commands in flight under this gate have ended."""

    def open(self, bits: GateBit) -> None:
        """Clear the bits, after every task that was answered Execute before this call has been handed to C."""
