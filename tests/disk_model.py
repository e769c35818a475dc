# SPDX-License-Identifier: Apache-2.0
"""A model of a disk, and random commands with random scatter lists that must leave the disk and the model alike."""

from __future__ import annotations

import random

from tests.live import (
    Host,
    check,
    good,
    read10,
    read16,
    synchronize_cache,
    verify10,
    write10,
    write16,
    write_same16,
)
from vhost_scsi.scsi import sense
from vhost_scsi.virtqueue.scsi_driver import CommandResult

SIZE = 4 << 20


def cuts(rnd: random.Random, total: int, header: int) -> list[int]:
    """Where the buffers are cut: header and data apart, or anyhow."""
    if rnd.random() < 0.3:
        return [header]
    return [rnd.randrange(1, total) for _ in range(rnd.randrange(12))]


class Model:
    """What the disk should hold, and random commands that should leave both alike. `direct`: one buffer each way.
    `indirect` as in `ScsiDriver.submit`."""

    def __init__(
        self, host: Host, block: int, seed: int, *, direct: bool = False, indirect: bool | None = None
    ) -> None:
        self.direct, self.indirect = direct, indirect
        self.host, self.block, self.rnd = host, block, random.Random(seed)
        self.blocks = SIZE // block
        self.disk = bytearray(SIZE)
        self.out = 19 + host.driver.cdb_size
        self.response = 12 + host.driver.sense_size

    def place(self) -> tuple[int, int]:
        count = self.rnd.choice([1, 1, 2, 3, 7, 8, 33, 128 * 512 // self.block, 0])
        count = min(count, self.blocks)
        return self.rnd.randrange(self.blocks - count + 1), count

    def write(self) -> None:
        lba, count = self.place()
        data = self.rnd.randbytes(count * self.block)
        cdb = self.rnd.choice([write10, write16])(lba, count, fua=self.rnd.random() < 0.1)
        good(self.send(cdb, data))
        self.disk[lba * self.block : lba * self.block + len(data)] = data

    def read(self) -> None:
        lba, count = self.place()
        cdb = self.rnd.choice([read10, read16])(lba, count)
        found = good(self.send(cdb, in_len=count * self.block))
        assert found == self.disk[lba * self.block : (lba + count) * self.block]

    def same(self) -> None:
        lba, count = self.place()
        if count:
            data = self.rnd.randbytes(self.block)
            good(self.send(write_same16(lba, count), data))
            self.disk[lba * self.block : (lba + count) * self.block] = data * count

    def verify(self) -> None:
        lba, count = self.place()
        data = bytes(self.disk[lba * self.block : (lba + count) * self.block])
        good(self.send(verify10(lba, count, bytchk=1), data))
        if count:
            wrong = bytes([data[0] ^ 1]) + data[1:]
            check(self.send(verify10(lba, count, bytchk=1), wrong), sense.MISCOMPARE_DURING_VERIFY_OPERATION)

    def send(self, cdb: bytes, data: bytes = b"", in_len: int = 0) -> CommandResult:
        out, in_ = self.out + len(data), self.response + in_len
        return self.host.command(
            cdb,
            data,
            in_len,
            out_cuts=() if self.direct else cuts(self.rnd, out, self.out),
            in_cuts=() if self.direct else cuts(self.rnd, in_, self.response),
            indirect=self.indirect,
            queue=self.rnd.randrange(len(self.host.driver.requests)),
        )

    def run(self, turns: int) -> None:
        steps = [self.write] * 4 + [self.read] * 4 + [self.same, self.verify]
        for _ in range(turns):
            self.rnd.choice(steps)()
        self.host.ok(synchronize_cache())
        for lba in range(0, self.blocks, 128):
            found = self.host.ok(read16(lba, 128), in_len=128 * self.block)
            assert found == self.disk[lba * self.block : (lba + 128) * self.block]
