# SPDX-License-Identifier: Apache-2.0
"""The rows of RESERVE, RELEASE and PERSISTENT RESERVE IN and OUT (SPC-5 6.14, 6.15; SPC-2 7.16, 7.21).

What another nexus's reservation means for these is their handlers' affair, because who asks decides: no row conflicts.
"""

from typing import Final

from vhost_scsi.scsi.command import ATTENTIVE, Access, Command, Direction, Field, allocation, parameter_list, python
from vhost_scsi.scsi.limits import PARAMETER_LIST_BYTES

PERSISTENT_RESERVE_IN, PERSISTENT_RESERVE_OUT = 0x5E, 0x5F
PREEMPT_AND_ABORT: Final = 0x05

# In the order of their service actions.
_IN: Final = ("READ KEYS", "READ RESERVATION", "REPORT CAPABILITIES", "READ FULL STATUS")
_OUT: Final = (
    "REGISTER",
    "RESERVE",
    "RELEASE",
    "CLEAR",
    "PREEMPT",
    "PREEMPT AND ABORT",
    "REGISTER AND IGNORE EXISTING KEY",
    "REGISTER AND MOVE",
    "REPLACE LOST RESERVATION",
)


def _handler(name: str) -> str:
    return name.lower().replace(" ", "_")


def _reserve_in(action: int, name: str) -> Command:
    return python(
        f"PERSISTENT RESERVE IN, {name}",
        PERSISTENT_RESERVE_IN,
        10,
        ATTENTIVE,
        _handler(name),
        (allocation(7, 2),),
        service_action=action,
        passes_reserve=True,
        access=Access.STANDBY,
    )


def _reserve_out(action: int, name: str) -> Command:
    return python(
        f"PERSISTENT RESERVE OUT, {name}",
        PERSISTENT_RESERVE_OUT,
        10,
        ATTENTIVE,
        _handler(name),
        (Field("scope", 2, mask=0xF0), Field("type", 2, mask=0x0F), parameter_list(5, 4)),
        service_action=action,
        direction=Direction.OUT,
        parameter_list_max=PARAMETER_LIST_BYTES - 1,
        passes_reserve=True,
        access=Access.STANDBY,
        once=True,
    )


def _legacy(name: str, opcode: int, length: int, handler: str) -> Command:
    # No third party, and the whole unit: every other form is obsolete.
    return python(name, opcode, length, ATTENTIVE, handler, direction=Direction.NONE, passes_reserve=True, once=True)


RESERVATION_ROWS: Final[tuple[Command, ...]] = (
    _legacy("RESERVE(6)", 0x16, 6, "reserve_legacy"),
    _legacy("RELEASE(6)", 0x17, 6, "release_legacy"),
    _legacy("RESERVE(10)", 0x56, 10, "reserve_legacy"),
    _legacy("RELEASE(10)", 0x57, 10, "release_legacy"),
    *(_reserve_in(action, name) for action, name in enumerate(_IN)),
    *(_reserve_out(action, name) for action, name in enumerate(_OUT)),
)
