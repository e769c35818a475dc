# SPDX-License-Identifier: Apache-2.0
"""The media commands of C against a disk in Python (media_model.py), through real rings, on random commands."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable

import pytest

from tests.live import Live
from tests.target.media_model import BLOCK, BLOCKS, Answer, Disk, Generator
from vhost_scsi.scsi import sense_data
from vhost_scsi.scsi.task import Status
from vhost_scsi.virtqueue.scsi_driver import CommandResult
from vhost_scsi.virtqueue.virtio_scsi import Response

FEW, MANY = 3000, 1_000_000


def answer_of(result: CommandResult) -> Answer:
    assert result.response == Response.OK, Response(result.response).name
    if result.status == Status.GOOD:
        return Answer(data=result.data)
    assert result.status == Status.CHECK_CONDITION
    told = sense_data.parse(result.sense)
    return Answer(told.code, told.information, (told.field.byte, told.field.bit) if told.field else None)


def compare(live: Live, store: str, commands: int) -> None:
    seed = int(os.environ.get("MEDIA_MODEL_SEED", 0)) or random.SystemRandom().getrandbits(32)
    print(f"\nMEDIA_MODEL_SEED={seed}")
    disk, told = Disk(), Counter[str]()
    generator = Generator(seed, disk, atomic=store.startswith("memory"))
    valid = 0
    with live.end((0, 0, live.unit(store, cdb32=True))).connect() as host:
        host.ready()
        for number in range(commands):
            command = generator.next()
            wanted = disk.run(command)
            found = answer_of(host.command(command.cdb, command.data_out, command.in_length))
            assert found == wanted, f"seed {seed}, command {number}: {command.name} {command.cdb.hex(' ')}"
            valid += command.valid
            told[wanted.code.name if wanted.code else "GOOD"] += 1
            if number % 1000 == 0:
                whole = host.ok(bytes.fromhex("28 00 00 00 00 00 00 00 40 00"), in_len=BLOCK * BLOCKS)
                assert whole == disk.data, f"seed {seed}, after command {number}: {command.name}"
    print(dict(told.most_common()))
    assert valid >= 0.8 * commands


@pytest.mark.parametrize("store", ["memory", "file"])
def test_c_and_the_model_agree(make_live: Callable[[str, int], Live], store: str) -> None:
    live = make_live("auto", 1)
    path = live.directory / "disk.img"
    path.write_bytes(bytes(BLOCK * BLOCKS))
    compare(live, "memory:32K" if store == "memory" else str(path), FEW)


@pytest.mark.slow
def test_c_and_the_model_agree_on_a_million_commands(make_live: Callable[[str, int], Live]) -> None:
    compare(make_live("auto", 1), "memory:32K", MANY)
