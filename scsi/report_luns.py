# SPDX-License-Identifier: Apache-2.0
"""REPORT LUNS (SPC-5 6.33): the LUNs of the target port through which the command came.

No logical unit conglomerates here, so the lists of administrative and subsidiary units are empty.
"""

from collections.abc import Callable
from typing import Final

from construct import Bytes, Int32ub, Padding, Struct, this

from vhost_scsi.scsi import lun, sense
from vhost_scsi.scsi.dispatch import Request, handles
from vhost_scsi.scsi.nexus import TargetPort

LUN_LIST = Struct("length" / Int32ub, Padding(4), "luns" / Bytes(this.length))


def _addressable(port: TargetPort) -> list[bytes]:
    return [lun.encode(number) for number in sorted(set(port.luns()))]


def _well_known(port: TargetPort) -> list[bytes]:
    return [lun.REPORT_LUNS]


def _all(port: TargetPort) -> list[bytes]:
    return _addressable(port) + _well_known(port)


def _none(port: TargetPort) -> list[bytes]:
    return []


SELECT_REPORT: Final[dict[int, Callable[[TargetPort], list[bytes]]]] = {
    0x00: _addressable,
    0x01: _well_known,
    0x02: _all,
    0x10: _none,
    0x11: _addressable,
    0x12: _none,
}


def lun_list(port: TargetPort, select_report: int) -> bytes | None:
    """The parameter data, or None for a SELECT REPORT value that SPC-5 table 294 does not have."""
    select = SELECT_REPORT.get(select_report)
    if select is None:
        return None
    luns = b"".join(select(port))
    built: bytes = LUN_LIST.build({"length": len(luns), "luns": luns})
    return built


@handles("report_luns")
def report_luns(request: Request) -> bytes:
    nexus = request.itl.nexus
    data = lun_list(nexus.target_port, request["select_report"])
    if data is None:
        raise request.refuse("select_report")
    # SPC-5 6.33: the command itself is the answer to this unit attention, on every logical unit of the nexus.
    nexus.clear(sense.REPORTED_LUNS_DATA_HAS_CHANGED)
    return data
