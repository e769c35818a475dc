# SPDX-License-Identifier: Apache-2.0
"""The SCSI core wired to the data plane: logical units over stores, ports with their nexuses, task management.

Transports stand on this: they make nexuses and carry tasks; what a LUN is and who may do what is decided below.
"""

from vhost_scsi.target.medium import LuSpec
from vhost_scsi.target.port import InitiatorEvents, MappedLun, Port
from vhost_scsi.target.target import Target
from vhost_scsi.target.tmf import TaskManagementFunction
from vhost_scsi.target.unit import LuStats, Unit, check_size

__all__ = [
    "InitiatorEvents",
    "LuSpec",
    "LuStats",
    "MappedLun",
    "Port",
    "Target",
    "TaskManagementFunction",
    "Unit",
    "check_size",
]
