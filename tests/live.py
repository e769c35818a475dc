# SPDX-License-Identifier: Apache-2.0
"""A whole back end in this process, for tests: data plane, target, virtio-scsi devices and their sockets on a loop in a
thread of its own, and initiators that drive it from the test's thread. Nothing in it is a fake.

`Live` is the back end, `End` one device with its socket, `Host` an initiator with commands that read like sentences.
Errors that the back end logs fail the test that did not ask for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from tests.waiting import PATIENCE, wait_for
from vhost_scsi.dataplane import Core, CoreOptions
from vhost_scsi.scsi import sense_data
from vhost_scsi.scsi.sense import Sense, SenseCode
from vhost_scsi.scsi.task import Status
from vhost_scsi.stores import PythonStore, open_store
from vhost_scsi.target import LuSpec, Port, Target, Unit
from vhost_scsi.vhost_user.device import QueueStatus, VirtioScsiDevice
from vhost_scsi.vhost_user.initiator import Initiator
from vhost_scsi.vhost_user.server import Server
from vhost_scsi.virtqueue.scsi_driver import Address, CommandResult
from vhost_scsi.virtqueue.virtio_scsi import LunAddress, Response, TaskManagement

T = TypeVar("T")


class LoopThread:
    """An asyncio loop in a thread; `call` runs a coroutine there and returns what it returns."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T], patience: float = PATIENCE) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(patience)

    def run(self, function: Callable[[], T]) -> T:
        """A plain call on the loop's thread."""

        async def calls() -> T:
            return function()

        return self.call(calls())

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


class ErrorLog(logging.Handler):
    """What the back end logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@dataclass
class End:
    """A device, its port and its socket."""

    live: Live
    port: Port
    device: VirtioScsiDevice
    server: Server
    path: str
    cdb_size: int
    sense_size: int

    def queue(self, index: int) -> QueueStatus:
        return self.live.run(lambda: self.device.queue_status()[index])

    def connect(self, **options: Any) -> Host:
        options = {
            "request_queues": self.device.num_queues - 2,
            "cdb_size": self.cdb_size,
            "sense_size": self.sense_size,
            "timeout": PATIENCE,
            **options,
        }
        return Host(Initiator(self.path, **options))


class Live:
    """`engine` and `workers` as in CoreOptions."""

    def __init__(self, directory: Path, engine: str, workers: int) -> None:
        self.directory = directory
        self.workers = workers
        self.thread = LoopThread()
        self.errors = ErrorLog()
        logging.getLogger("vhost_scsi").addHandler(self.errors)
        self.ends: list[End] = []
        self.units: dict[str, Unit] = {}
        self.core, self.target = self.thread.call(self._start(engine))

    async def _start(self, engine: str) -> tuple[Core, Target]:
        core = Core(CoreOptions(workers=self.workers, engine=engine))  # type: ignore[arg-type]
        await core.start()
        return core, Target(core)

    def call(self, coroutine: Coroutine[Any, Any, T], patience: float = PATIENCE) -> T:
        return self.thread.call(coroutine, patience)

    def run(self, function: Callable[[], T]) -> T:
        return self.thread.run(function)

    def unit(self, store: str | PythonStore = "memory:16M", name: str = "disk", **spec: Any) -> Unit:
        async def add() -> Unit:
            return await self.target.add_lu(LuSpec(name, uuid4(), **spec), open_store(store, self.core))

        self.units[name] = self.call(add())
        return self.units[name]

    def end(
        self,
        *luns: tuple[int, int, Unit],
        name: str = "port",
        request_queues: int = 4,
        cdb_size: int = 32,
        sense_size: int = 96,
        **options: Any,
    ) -> End:
        """A device with these units at (target, LUN)."""
        path = str(self.directory / f"{name}.sock")

        async def add() -> End:
            port = self.target.add_port(name)
            device = VirtioScsiDevice(
                self.core,
                port,
                num_queues=2 + request_queues,
                workers=range(self.workers),
                cdb_size=cdb_size,
                sense_size=sense_size,
                **options,
            )
            for target_id, lun, unit in luns:
                await port.map(target_id, lun, unit)
            server = Server.at_path(device, path)
            await server.start()
            return End(self, port, device, server, path, cdb_size, sense_size)

        end = self.call(add())
        self.ends.append(end)
        return end

    def wait_for(self, condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        wait_for(condition, what, patience)

    def wait_until_free(self, end: End) -> None:
        """Until the connection that was closed has been cleaned up."""
        self.wait_for(lambda: not any(queue.started for queue in self.run(end.device.queue_status)), "the rings' end")

    def in_flight(self) -> int:
        return len(self.call(self.core.tasks()))

    def close(self) -> None:
        async def ended() -> None:
            for end in self.ends:
                await end.server.close()
                await end.device.close()
            await self.target.close()
            await self.core.close()

        try:
            self.call(ended(), 8 * PATIENCE)  # 16384 nexuses end one after the other
        finally:
            self.thread.stop()
            logging.getLogger("vhost_scsi").removeHandler(self.errors)
        assert not self.errors.lines, "\n".join(self.errors.lines)


class Host:
    """An initiator. Commands go to target 0, LUN 0 unless `at` says otherwise."""

    def __init__(self, initiator: Initiator) -> None:
        self.initiator = initiator
        self.driver = initiator.driver

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.initiator.close()

    def send(
        self, cdb: bytes, data: bytes = b"", in_len: int = 0, *, at: Address | tuple[int, int] = (0, 0), **options: Any
    ) -> int:
        """Submits; returns the tag."""
        address = LunAddress(*at) if isinstance(at, tuple) else at
        return self.driver.submit(address, cdb, data, in_len, **options)

    def wait(self, tag: int) -> CommandResult:
        return self.driver.wait(tag, PATIENCE)

    def command(self, cdb: bytes, data: bytes = b"", in_len: int = 0, **options: Any) -> CommandResult:
        return self.wait(self.send(cdb, data, in_len, **options))

    def ok(self, cdb: bytes, data: bytes = b"", in_len: int = 0, **options: Any) -> bytes:
        """Ends GOOD; returns the data-in."""
        return good(self.command(cdb, data, in_len, **options))

    def fails(self, code: SenseCode, cdb: bytes, data: bytes = b"", in_len: int = 0, **options: Any) -> Sense:
        """Ends with CHECK CONDITION and this sense code."""
        return check(self.command(cdb, data, in_len, **options), code)

    def ready(self, *places: tuple[int, int], queue: int = 0) -> None:
        """Takes the unit attentions away."""
        for place in places or ((0, 0),):
            while self.command(TEST_UNIT_READY, at=place, queue=queue).status == Status.CHECK_CONDITION:
                pass

    def manage(self, function: TaskManagement, tag: int = 0, at: Address | tuple[int, int] = (0, 0)) -> int:
        address = LunAddress(*at) if isinstance(at, tuple) else at
        return self.driver.task_management(function, address, tag, timeout=PATIENCE)

    def drain(self, tags: Iterable[int]) -> list[CommandResult]:
        return [self.wait(tag) for tag in tags]


def good(result: CommandResult) -> bytes:
    assert result.response == Response.OK, Response(result.response).name
    assert result.status == Status.GOOD, (
        sense_data.parse(result.sense).code.name if result.sense else Status(result.status).name
    )
    return result.data


def check(result: CommandResult, code: SenseCode) -> Sense:
    assert (result.response, result.status) == (Response.OK, Status.CHECK_CONDITION)
    found = sense_data.parse(result.sense)
    assert found.code == code, f"{found.code.name}, not {code.name}"
    return found


def open_fds() -> dict[int, str]:
    """Every open descriptor and what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def resident_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


# ---- CDBs ----------------------------------------------------------------------------------------------------------

TEST_UNIT_READY = bytes(6)
REPORT_LUNS = bytes([0xA0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0])


def inquiry(length: int = 96, page: int | None = None) -> bytes:
    return bytes([0x12, page is not None, page or 0]) + length.to_bytes(2, "big") + bytes(1)


def read10(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    return bytes([0x28, fua << 3]) + lba.to_bytes(4, "big") + bytes(1) + blocks.to_bytes(2, "big") + bytes(1)


def write10(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    return bytes([0x2A]) + read10(lba, blocks, fua=fua)[1:]


def read16(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    return bytes([0x88, fua << 3]) + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(2)


def write16(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    return bytes([0x8A]) + read16(lba, blocks, fua=fua)[1:]


def compare_and_write(lba: int, blocks: int = 1) -> bytes:
    return bytes([0x89, 0]) + lba.to_bytes(8, "big") + bytes(3) + bytes([blocks, 0, 0])


def synchronize_cache() -> bytes:
    return bytes([0x35]) + bytes(9)


def write_same16(lba: int, blocks: int, *, unmap: bool = False, ndob: bool = False) -> bytes:
    return bytes([0x93, unmap << 3 | ndob]) + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(2)


def unmap_blocks(*ranges: tuple[int, int]) -> tuple[bytes, bytes]:
    """The CDB and its parameter list."""
    descriptors = b"".join(lba.to_bytes(8, "big") + n.to_bytes(4, "big") + bytes(4) for lba, n in ranges)
    length = len(descriptors)
    data = (length + 6).to_bytes(2, "big") + length.to_bytes(2, "big") + bytes(4) + descriptors
    return bytes([0x42]) + bytes(6) + len(data).to_bytes(2, "big") + bytes(1), data


def verify10(lba: int, blocks: int, *, bytchk: int = 0) -> bytes:
    return bytes([0x2F, bytchk << 1]) + lba.to_bytes(4, "big") + bytes(1) + blocks.to_bytes(2, "big") + bytes(1)


def start_stop(start: bool) -> bytes:
    return bytes([0x1B, 0, 0, 0, start, 0])


def mode_sense10(page: int, *, changeable: bool = False) -> bytes:
    return bytes([0x5A, 8, changeable << 6 | page]) + bytes(4) + (252).to_bytes(2, "big") + bytes(1)


def mode_select10(page: bytes) -> tuple[bytes, bytes]:
    """The CDB and its parameter list."""
    data = bytes(8) + page
    return bytes([0x55, 0x10]) + bytes(5) + len(data).to_bytes(2, "big") + bytes(1), data


def set_mode(host: Host, page: int, byte: int, bit: int, value: bool, **options: Any) -> None:
    """Reads a mode page, changes one bit of it, and selects it."""
    data = bytearray(host.ok(mode_sense10(page), in_len=252, **options)[8:])
    data[0] &= 0x3F  # PS is reserved in MODE SELECT
    data[byte] = data[byte] & ~(1 << bit) | value << bit
    cdb, parameters = mode_select10(bytes(data))
    host.ok(cdb, parameters, **options)


def set_wce(host: Host, value: bool, **options: Any) -> None:
    set_mode(host, 0x08, 2, 2, value, **options)


def set_d_sense(host: Host, value: bool, **options: Any) -> None:
    set_mode(host, 0x0A, 2, 2, value, **options)


def set_swp(host: Host, value: bool, **options: Any) -> None:
    set_mode(host, 0x0A, 4, 3, value, **options)
