# SPDX-License-Identifier: Apache-2.0
"""REPORT SUPPORTED OPERATION CODES (SPC-5 6.35), derived from the command rows."""

from construct import BitsInteger, BitStruct, Const, Flag, GreedyBytes, Int8ub, Int16ub, Int32ub, Padding, Struct
from construct import Prefixed as PrefixedBytes

from vhost_scsi.scsi.commands import Command, find, has_service_actions
from vhost_scsi.scsi.dispatch import Request, handles

ALL_COMMANDS = Struct("descriptors" / PrefixedBytes(Int32ub, GreedyBytes))
COMMAND_DESCRIPTOR = Struct(
    "operation_code" / Int8ub,
    Padding(1),
    "service_action" / Int16ub,
    Padding(1),
    "flags" / BitStruct(Padding(6), "ctdp" / Flag, "servactv" / Flag),
    "cdb_length" / Int16ub,
)
ONE_COMMAND = Struct(
    Padding(1),
    "flags" / BitStruct("ctdp" / Flag, Padding(4), "support" / BitsInteger(3)),
    "usage" / PrefixedBytes(Int16ub, GreedyBytes),
)
# SPC-5 6.35.4, in seconds; zero means that no timeout is indicated. Nobody can say what a command takes nominally.
TIMEOUTS_DESCRIPTOR = Struct(
    "length" / Const(10, Int16ub),
    Padding(1),
    "command_specific" / Const(0, Int8ub),
    "nominal" / Const(0, Int32ub),
    "recommended" / Int32ub,
)

NOT_SUPPORTED, SUPPORTED_AS_IN_A_STANDARD = 0b001, 0b011


def _descriptor(row: Command, *, timeouts: bool) -> bytes:
    built: bytes = COMMAND_DESCRIPTOR.build(
        {
            "operation_code": row.opcode,
            "service_action": row.service_action or 0,
            "flags": {"ctdp": timeouts, "servactv": row.service_action is not None},
            "cdb_length": row.cdb_length,
        }
    )
    return built + (_timeouts(row) if timeouts else b"")


def _timeouts(row: Command) -> bytes:
    built: bytes = TIMEOUTS_DESCRIPTOR.build({"recommended": row.timeout})
    return built


def _all_commands(request: Request, *, timeouts: bool) -> bytes:
    rows = request.logical_unit.commands()
    built: bytes = ALL_COMMANDS.build({"descriptors": b"".join(_descriptor(row, timeouts=timeouts) for row in rows)})
    return built


def _one_command(row: Command | None, *, timeouts: bool) -> bytes:
    built: bytes = ONE_COMMAND.build(
        {
            "flags": {
                "ctdp": timeouts and row is not None,
                "support": SUPPORTED_AS_IN_A_STANDARD if row else NOT_SUPPORTED,
            },
            "usage": row.usage if row else b"",
        }
    )
    return built + (_timeouts(row) if timeouts and row is not None else b"")


@handles("report_supported_operation_codes")
def report_supported_operation_codes(request: Request) -> bytes:
    options, opcode = request["reporting_options"], request["requested_operation_code"]
    action = request["requested_service_action"]
    timeouts = bool(request["rctd"])
    if options == 0b000:
        return _all_commands(request, timeouts=timeouts)
    if options > 0b011:
        raise request.refuse("reporting_options")
    with_actions = has_service_actions(opcode)
    # SPC-5 table 300: 001b is for operation codes without service actions, 010b for those with; 011b takes both.
    if (options == 0b001 and with_actions) or (options == 0b010 and not with_actions and find(opcode, None)):
        raise request.refuse("requested_operation_code")
    row = find(opcode, action)
    if options == 0b011 and not with_actions and action:
        row = None
    if row is not None and not request.logical_unit.offers(row):
        row = None
    if row is not None:
        row = request.logical_unit.as_offered(row)
    return _one_command(row, timeouts=timeouts)
