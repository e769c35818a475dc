# SPDX-License-Identifier: Apache-2.0
"""Blocks that an initiator marks as bad, in both planes and over a new process: what C reads and writes, and what lies
in a real state directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from tests.live import Live, read10, unmap_blocks, write10
from vhost_scsi.daemon.state_dir import StateDirectory
from vhost_scsi.scsi import sense
from vhost_scsi.scsi.gate import GateBit
from vhost_scsi.stores import open_store
from vhost_scsi.target import LuSpec, Unit

UUID_OF_IT = UUID("3f4b6f0e-7a53-4a8a-b5f3-6f2f6a1d8c11")
BLOCK = b"\xa5" * 512
BAD = sense.READ_ERROR_LBA_MARKED_BAD_BY_APPLICATION_CLIENT


def mark(lba: int) -> bytes:
    """WRITE LONG(16) with WR_UNCOR."""
    return bytes([0x9F, 0x51]) + lba.to_bytes(8) + bytes([0, 0, 0, 0, 0, 0])


class Machine:
    """A disk, in a process that is started anew again and again."""

    def __init__(self, make_live: Callable[..., Live], directory: Path) -> None:
        self._make_live, self._directory = make_live, directory
        self._image = directory / "disk.img"
        self._image.write_bytes(bytes(1 << 20))
        self._number = 0

    def start(self) -> tuple[Live, Unit]:
        live = self._make_live()
        self._state = StateDirectory(self._directory / "state")

        async def add() -> Unit:
            saved = await self._state.unit(UUID_OF_IT)
            return await live.target.add_lu(LuSpec("disk", UUID_OF_IT), open_store(f"{self._image}", live.core), saved)

        return live, live.call(add())

    def stop(self, live: Live) -> None:
        live.call(live.target.close())
        live.call(self._state.close())


def test_marks_in_two_lives(make_live: Callable[..., Live], tmp_path: Path) -> None:
    machine = Machine(make_live, tmp_path)
    live, unit = machine.start()
    with live.end((0, 0, unit)).connect() as host:
        host.ready()
        host.ok(write10(0, 8), BLOCK * 8)
        for lba in (3, 5, 6):
            host.ok(mark(lba))
        host.fails(BAD, read10(0, 8), in_len=4096)
        host.ok(write10(2, 2), BLOCK * 2)
        assert host.ok(read10(0, 5), in_len=2560) == BLOCK * 5
        host.ok(*unmap_blocks((6, 1)))
        assert host.ok(read10(6, 1), in_len=512) == bytes(512)
        host.fails(BAD, read10(5, 1), in_len=512)
    live.wait_until_free(live.ends[0])
    machine.stop(live)
    live, unit = machine.start()
    with live.end((0, 0, unit), name="again").connect() as host:
        host.ready()
        assert host.ok(read10(0, 5), in_len=2560) == BLOCK * 5
        host.fails(BAD, read10(5, 1), in_len=512)
        host.ok(write10(5, 1), BLOCK)
        assert host.ok(read10(5, 1), in_len=512) == BLOCK
        live.wait_for(lambda: not live.run(unit.gate.read) & GateBit.MARKED, "writes that pass the gate again")
        escalated = unit.stats().escalated
        host.ok(write10(5, 1), BLOCK)
        assert unit.stats().escalated == escalated
    live.wait_until_free(live.ends[0])
    machine.stop(live)
    live, unit = machine.start()
    with live.end((0, 0, unit), name="third").connect() as host:
        host.ready()
        assert host.ok(read10(5, 1), in_len=512) == BLOCK
