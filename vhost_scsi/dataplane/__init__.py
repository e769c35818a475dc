# SPDX-License-Identifier: Apache-2.0
"""The data plane as Python drives it: the C core on one asyncio loop, its messages, gates, fences and drains.

A thin, typed binding of core/api.h. It knows tasks and queues, and nothing of SCSI, protocols or configuration.
"""

from vhost_scsi.dataplane.core import Core, CoreOptions, EngineUnavailable, Reply, Segment, TaskSnapshot, WorkerStats
from vhost_scsi.dataplane.gate import Gate
from vhost_scsi.dataplane.tasks import PyTask

__all__ = [
    "Core",
    "CoreOptions",
    "EngineUnavailable",
    "Gate",
    "PyTask",
    "Reply",
    "Segment",
    "TaskSnapshot",
    "WorkerStats",
]
