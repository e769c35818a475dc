# SPDX-License-Identifier: Apache-2.0
"""What a target answers where no logical unit is: at a LUN that nobody mapped, and at the REPORT LUNS well known
logical unit (SPC-5 8.2). Both are stateless: no nexus state, no unit attentions, no task set."""

from collections.abc import Callable
from typing import Final

from vhost_scsi.scsi import sense, sense_data, vpd
from vhost_scsi.scsi.commands import Command, DeviceType, first_unused_bit, parse
from vhost_scsi.scsi.inquiry import QUALIFIER_NO_DEVICE, standard_data
from vhost_scsi.scsi.nexus import Nexus
from vhost_scsi.scsi.report_luns import lun_list
from vhost_scsi.scsi.sense import CheckCondition, Sense, SenseCode
from vhost_scsi.scsi.task import Complete, Status
from vhost_scsi.scsi.task_set import is_naca

VENDOR: Final = "VHOST"
WELL_KNOWN_PRODUCT: Final = "REPORT LUNS WLUN"
REVISION: Final = "0001"

Answer = Callable[[Command, bytes, Nexus], bytes]


def _value(row: Command, name: str, cdb: bytes) -> int:
    return row.value(row[name], cdb)


def _report_luns(row: Command, cdb: bytes, nexus: Nexus) -> bytes:
    data = lun_list(nexus.target_port, _value(row, "select_report", cdb))
    if data is None:
        raise sense.invalid_cdb_field(2, 7)
    nexus.clear(sense.REPORTED_LUNS_DATA_HAS_CHANGED)
    return data


def _request_sense(code: SenseCode) -> Answer:
    def answer(row: Command, cdb: bytes, nexus: Nexus) -> bytes:
        return sense_data.build(Sense(code), descriptor=bool(_value(row, "desc", cdb)))

    return answer


def _absent_inquiry(row: Command, cdb: bytes, nexus: Nexus) -> bytes:
    if _value(row, "evpd", cdb) or _value(row, "page_code", cdb):
        raise sense.invalid_cdb_field(2, 7)
    # SPC-5 6.7.2: qualifier 011b goes with device type 1Fh
    return standard_data(QUALIFIER_NO_DEVICE | DeviceType.UNKNOWN, VENDOR, "", REVISION)


def _well_known_inquiry(row: Command, cdb: bytes, nexus: Nexus) -> bytes:
    page = _value(row, "page_code", cdb)
    if _value(row, "evpd", cdb):
        pages = {0x00: bytes([0x00, 0x83]), 0x83: vpd.target_port_designators(nexus.target_port)}
        if page in pages:
            data = {"peripheral": DeviceType.WELL_KNOWN, "code": page, "data": pages[page]}
            built: bytes = vpd.PAGE.build(data)
            return built
    if page or _value(row, "evpd", cdb):
        raise sense.invalid_cdb_field(2, 7)
    return standard_data(DeviceType.WELL_KNOWN, VENDOR, WELL_KNOWN_PRODUCT, REVISION)


def _test_unit_ready(row: Command, cdb: bytes, nexus: Nexus) -> bytes:
    return b""


# SPC-5 6.39, 6.33, 6.7: these three answer at any LUN.
_ABSENT: Final[dict[str, Answer]] = {
    "INQUIRY": _absent_inquiry,
    "REPORT LUNS": _report_luns,
    "REQUEST SENSE": _request_sense(sense.LOGICAL_UNIT_NOT_SUPPORTED),
}

# SPC-5 table 556
_WELL_KNOWN: Final[dict[str, Answer]] = {
    "INQUIRY": _well_known_inquiry,
    "REPORT LUNS": _report_luns,
    "REQUEST SENSE": _request_sense(sense.NO_ADDITIONAL_SENSE_INFORMATION),
    "TEST UNIT READY": _test_unit_ready,
}


def _answer(answers: dict[str, Answer], otherwise: SenseCode, cdb: bytes, nexus: Nexus) -> Complete:
    try:
        row = parse(cdb)
        if row is None or row.name not in answers:
            raise CheckCondition(otherwise)
        if len(cdb) < row.cdb_length:
            raise sense.invalid_cdb_field(len(cdb))
        if is_naca(cdb):
            # SAM-5 5.2: nobody here keeps others waiting.
            raise sense.invalid_cdb_field(row.cdb_length - 1, 2)
        stray = first_unused_bit(row, cdb)
        if stray is not None:
            raise sense.invalid_cdb_field(*stray)
        data = answers[row.name](row, cdb, nexus)
    except CheckCondition as condition:
        return Complete(Status.CHECK_CONDITION, sense_data.build(condition.sense, descriptor=False))
    allocation = row.field("allocation_length")
    return Complete(Status.GOOD, data_in=data[: row.value(allocation, cdb)] if allocation else data)


def absent_unit(cdb: bytes, nexus: Nexus) -> Complete:
    """The answer at a LUN without a logical unit."""
    return _answer(_ABSENT, sense.LOGICAL_UNIT_NOT_SUPPORTED, cdb, nexus)


def report_luns_unit(cdb: bytes, nexus: Nexus) -> Complete:
    """The answer of the REPORT LUNS well known logical unit."""
    return _answer(_WELL_KNOWN, sense.INVALID_COMMAND_OPERATION_CODE, cdb, nexus)
