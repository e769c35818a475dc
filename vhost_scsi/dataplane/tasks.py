# SPDX-License-Identifier: Apache-2.0
"""Tasks that C sent to Python, and the batch of answers that goes back.

Values are copied out of C once, when the task arrives. An answer is a record and, for data-in, bytes in one blob: one
call into C hands a whole batch back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vhost_scsi._core import ffi, lib

if TYPE_CHECKING:
    from vhost_scsi._core import CData

SENSE_MAX: Final = lib.VS_SENSE_MAX


@dataclass(slots=True, eq=False)
class PyTask:
    """A task that waits for Python's verdict. `nexus` is the cookie of its I_T_L nexus, 0 where no logical unit is."""

    handle: CData
    nexus: int
    port: int
    tag: int
    attribute: int
    cdb: bytes
    data_out: bytes
    in_length: int
    out_length: int
    target: int
    lun: int
    lun_kind: int
    gate: int
    age_ns: int
    order: int
    once: int
    fault: bool = False
    """C has ended it, with `status`, and waits for a verdict before anybody is told"""
    status: int = 0
    overlapped: bool = False
    """its tag is in use"""
    notify: int = 0
    """the cookie with which it was executed"""


def task_from(info: Any) -> PyTask:
    """Copies what a `struct vs_task_info` says; its pointers are not kept."""
    length = info.param_length
    return PyTask(
        handle=info.task,
        nexus=info.nexus_cookie,
        port=info.port_cookie,
        tag=info.tag,
        attribute=info.attribute,
        cdb=bytes(ffi.buffer(info.cdb, info.cdb_length)),
        data_out=bytes(ffi.buffer(info.param, length)) if length else b"",
        in_length=info.in_length,
        out_length=info.out_length,
        target=info.target,
        lun=info.lun,
        lun_kind=info.lun_kind,
        gate=info.gate,
        age_ns=info.age_ns,
        order=info.order,
        once=info.once,
        fault=bool(info.fault),
        status=info.status,
        overlapped=bool(info.overlapped),
        notify=info.notify,
    )


class Answers:
    """Answers that are gathered until `flush` hands them to C."""

    CAPACITY: Final = 64

    def __init__(self, core: CData) -> None:
        self._core = core
        self._results = ffi.new("struct vs_result[]", self.CAPACITY)
        self._n = 0
        self._blob = bytearray()

    def _next(self, task: PyTask, verdict: int) -> Any:
        if self._n == self.CAPACITY:
            self.flush()
        result = self._results[self._n]
        self._n += 1
        result.task = task.handle
        result.verdict = verdict
        result.cookie = 0
        result.status = result.response = result.sense_length = 0
        result.data_offset = result.data_length = 0
        return result

    def complete(self, task: PyTask, status: int, sense: bytes, data_in: bytes) -> None:
        result = self._next(task, lib.VS_VERDICT_COMPLETE)
        result.status = status
        if sense:
            sense = sense[:SENSE_MAX]
            ffi.memmove(result.sense, sense, len(sense))
            result.sense_length = len(sense)
        if data_in:
            result.data_offset = len(self._blob)
            result.data_length = len(data_in)
            self._blob += data_in

    def respond(self, task: PyTask, response: int) -> None:
        """Ends the task with a transport response (`VS_RESP_*`) and no status."""
        self._next(task, lib.VS_VERDICT_COMPLETE).response = response

    def aborted(self, task: PyTask, response: int) -> None:
        self._next(task, lib.VS_VERDICT_ABORTED).response = response

    def tell(self, task: PyTask) -> None:
        """Of a fault: it ends as C has it."""
        self._next(task, lib.VS_VERDICT_TELL)

    def execute(self, task: PyTask, notify: int = 0) -> None:
        """C runs the task; with a cookie in `notify` its end is reported under that cookie."""
        verdict = lib.VS_VERDICT_EXECUTE_NOTIFY if notify else lib.VS_VERDICT_EXECUTE
        self._next(task, verdict).cookie = notify

    def flush(self) -> None:
        if not self._n:
            return
        n, blob = self._n, bytes(self._blob)
        self._n = 0
        self._blob.clear()
        lib.vs_core_post(self._core, self._results, n, ffi.from_buffer(blob) if blob else ffi.NULL, len(blob))
