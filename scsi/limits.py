# SPDX-License-Identifier: Apache-2.0
"""Limits of single commands: what the Block Limits VPD page (SBC-4 6.6.4) says and what C enforces, written once.

Not here: limits of a store, which a `Medium` carries. Zero means "no limit given", as in the page itself.
"""

from typing import Final

COMPARE_AND_WRITE_BLOCKS: Final = 255
"""MAXIMUM COMPARE AND WRITE LENGTH: the CDB field is one byte"""
OPTIMAL_TRANSFER_BYTES: Final = 1 << 20
UNMAP_BLOCKS: Final = 0xFFFFFFFF
"""MAXIMUM UNMAP LBA COUNT: FFFFFFFFh is "no limit" """
UNMAP_DESCRIPTORS: Final = 256
"""MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT; a longer list is refused"""
WRITE_SAME_BYTES: Final = 4 << 30
"""MAXIMUM WRITE SAME LENGTH in bytes (the page says it in blocks)"""
TRANSFER_BYTES: Final = 64 << 20
"""MAXIMUM TRANSFER LENGTH in bytes: what one command may move to or from the initiator"""
BUFFER_BYTES: Final = 0xFC00
"""the unit's buffer (READ BUFFER): less than a parameter list, which brings what is written to it"""
ECHO_BUFFER_BYTES: Final = 4096
OUTSTANDING: Final = 1024
"""commands of all nexuses at one unit, unless it is told another limit"""
COMMAND_TIMEOUT: Final = 30
"""seconds that a store operation may take, likewise"""
COPIES: Final = 16
"""copies of one nexus at once, or whose results it may still ask for"""
PARAMETER_LIST_BYTES: Final = 0x10000
"""the longest parameter list that any command of ours takes"""
