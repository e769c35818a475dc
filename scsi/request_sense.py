# SPDX-License-Identifier: Apache-2.0
"""REQUEST SENSE (SPC-5 6.39): a pending unit attention, or the state of the unit, as data with GOOD status."""

from vhost_scsi.scsi import sense_data
from vhost_scsi.scsi.dispatch import Request, handles
from vhost_scsi.scsi.sense import Sense


@handles("request_sense")
def request_sense(request: Request) -> bytes:
    code = request.itl.take()
    unit = request.logical_unit
    if code is None and unit.drive is not None:
        code = unit.drive.why_absent()
    told = unit.readiness.sense() if code is None else Sense(code)
    return sense_data.build(told, descriptor=bool(request["desc"]))
