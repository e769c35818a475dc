# SPDX-License-Identifier: Apache-2.0
"""REQUEST SENSE (SPC-5 6.39): a pending unit attention, or the state of the unit, as data with GOOD status."""

from vhost_scsi.scsi import sense, sense_data
from vhost_scsi.scsi.dispatch import Request, handles
from vhost_scsi.scsi.sense import Sense


@handles("request_sense")
def request_sense(request: Request) -> bytes:
    code = request.itl.take()
    if code is None:
        stopped = request.logical_unit.stopped
        code = (
            sense.LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED
            if stopped
            else sense.NO_ADDITIONAL_SENSE_INFORMATION
        )
    return sense_data.build(Sense(code), descriptor=bool(request["desc"]))
