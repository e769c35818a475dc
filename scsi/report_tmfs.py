# SPDX-License-Identifier: Apache-2.0
"""REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-5 6.37)."""

from construct import BitStruct, Flag, Int8ub, Int32ub, Padding, Struct

from vhost_scsi.scsi.dispatch import Request, handles

FUNCTIONS = Struct(
    "flags"
    / BitStruct(
        "ats" / Flag,
        "atss" / Flag,
        "cacas" / Flag,
        "ctss" / Flag,
        "lurs" / Flag,
        "qts" / Flag,
        Padding(2),
        Padding(5),
        "qaes" / Flag,
        "qtss" / Flag,
        "itnrs" / Flag,
    ),
    Padding(1),
    "additional_length" / Int8ub,
)
# SPC-5 table 310, in units of 100 ms. No selector bit is set: the long one is that of every function.
TIMEOUTS = Struct(
    "valid" / BitStruct(Padding(7), "tmftmov" / Flag),
    Padding(3),
    "long" / Int32ub,
    "short" / Int32ub,
)
TENTHS = 300
"""as long as an initiator should wait for a function: until what is in flight has ended"""
OFFERED = ("ats", "atss", "cacas", "ctss", "lurs", "qts", "qtss", "itnrs")
NOT_OFFERED = ("qaes",)


@handles("report_supported_tmfs")
def report_supported_tmfs(request: Request) -> bytes:
    flags = {name: name in OFFERED for name in (*OFFERED, *NOT_OFFERED)}
    timeouts: bytes = (
        TIMEOUTS.build({"valid": {"tmftmov": True}, "long": TENTHS, "short": TENTHS}) if request["repd"] else b""
    )
    built: bytes = FUNCTIONS.build({"flags": flags, "additional_length": len(timeouts)})
    return built + timeouts
