# SPDX-License-Identifier: Apache-2.0
"""A disk of a few blocks in Python, after SBC-4 alone, and random media commands for it: what C answers must be what
this answers. It knows no store, no cache and no time; reservations and unit attentions are others' tests.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from tests.scsi.conftest import ROWS, cdb_of
from vhost_scsi.scsi import sense
from vhost_scsi.scsi.commands import VARIABLE_LENGTH, Feature
from vhost_scsi.scsi.sense import SenseCode

BLOCK = 512
BLOCKS = 64
WIDEST = {6: 255, 10: 0xFFFF, 12: 0xFFFFFFFF, 16: 0xFFFFFFFF, 32: 0xFFFFFFFF}


@dataclass(frozen=True)
class Command:
    """`valid`: nothing is wrong with it, though what it compares may differ."""

    name: str
    cdb: bytes
    data_out: bytes
    in_length: int
    valid: bool


@dataclass(frozen=True)
class Answer:
    """`code` is None for GOOD; `at`: the field pointer. The fixed format says nothing of an address beyond 32 bits."""

    code: SenseCode | None = None
    information: int | None = None
    at: tuple[int, int | None] | None = None
    data: bytes = b""


class Refused(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


class Disk:
    """`run` answers a command and changes the blocks."""

    def __init__(self) -> None:
        self.data = bytearray(BLOCK * BLOCKS)

    def run(self, command: Command) -> Answer:
        row = ROWS[command.name]
        try:
            stray = next(
                (
                    (i, (command.cdb[i] & ~row.usage[i]).bit_length() - 1)
                    for i in range(1, row.cdb_length)
                    if command.cdb[i] & ~row.usage[i]
                ),
                None,
            )
            if stray is not None:
                raise Refused(Answer(sense.INVALID_FIELD_IN_CDB, at=stray))
            family = command.name.partition("(")[0]
            fields = {field.name: row.value(field, command.cdb) for field in row.fields}
            if family == "UNMAP":
                return self._unmap(command.data_out)
            lba, blocks = fields["lba"], fields["blocks"]
            if lba > BLOCKS or blocks > BLOCKS - lba:
                raise Refused(Answer(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, information=_told(max(lba, BLOCKS))))
            return self._families[family](self, command, fields, slice(lba * BLOCK, (lba + blocks) * BLOCK))
        except Refused as refused:
            return refused.answer

    def _read(self, command: Command, fields: dict[str, int], extent: slice) -> Answer:
        return Answer(data=bytes(self.data[extent]))

    def _write(self, command: Command, fields: dict[str, int], extent: slice) -> Answer:
        self.data[extent] = command.data_out
        return Answer()

    def _verify(self, command: Command, fields: dict[str, int], extent: slice) -> Answer:
        check, stored = fields["bytchk"], bytes(self.data[extent])
        if check == 2:
            raise Refused(Answer(sense.INVALID_FIELD_IN_CDB, at=(_flags(command), 2)))
        if check and stored:
            self._compare(stored, command.data_out * (len(stored) // BLOCK if check == 3 else 1), repeats=check == 3)
        return Answer()

    def _compare(self, stored: bytes, given: bytes, *, repeats: bool = False) -> None:
        if stored != given:
            at = next(i for i, (one, other) in enumerate(zip(stored, given, strict=True)) if one != other)
            where = at % BLOCK if repeats else at
            raise Refused(Answer(sense.MISCOMPARE_DURING_VERIFY_OPERATION, information=where))

    def _write_and_verify(self, command: Command, fields: dict[str, int], extent: slice) -> Answer:
        if fields["bytchk"] in (2, 3):
            raise Refused(Answer(sense.INVALID_FIELD_IN_CDB, at=(_flags(command), 2)))
        self.data[extent] = command.data_out
        return Answer()

    def _orwrite(self, command: Command, fields: dict[str, int], extent: slice) -> Answer:
        self.data[extent] = bytes(a | b for a, b in zip(self.data[extent], command.data_out, strict=True))
        return Answer()

    def _compare_and_write(self, command: Command, fields: dict[str, int], extent: slice) -> Answer:
        half = len(command.data_out) // 2
        self._compare(bytes(self.data[extent]), command.data_out[:half])
        self.data[extent] = command.data_out[half:]
        return Answer()

    def _write_same(self, command: Command, fields: dict[str, int], extent: slice) -> Answer:
        if not fields["blocks"]:
            raise Refused(Answer(sense.INVALID_FIELD_IN_CDB, at=(ROWS[command.name]["blocks"].byte, 7)))
        block = bytes(BLOCK) if fields.get("ndob") else command.data_out
        self.data[extent] = block * fields["blocks"]
        return Answer()

    def _nothing(self, command: Command, fields: dict[str, int], extent: slice) -> Answer:
        return Answer()

    def _unmap(self, data: bytes) -> Answer:
        if not data:
            return Answer()
        if len(data) < 8:
            raise Refused(Answer(sense.PARAMETER_LIST_LENGTH_ERROR))
        length = int.from_bytes(data[2:4])
        if length % 16:
            raise Refused(Answer(sense.INVALID_FIELD_IN_PARAMETER_LIST, at=(2, 7)))
        count = min(length, (len(data) - 8) // 16 * 16) // 16
        ranges = [
            (int.from_bytes(data[8 + 16 * i :][:8]), int.from_bytes(data[16 + 16 * i :][:4])) for i in range(count)
        ]
        for lba, blocks in ranges:
            if lba > BLOCKS or blocks > BLOCKS - lba:
                raise Refused(Answer(sense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, information=_told(max(lba, BLOCKS))))
        for lba, blocks in ranges:
            self.data[lba * BLOCK : (lba + blocks) * BLOCK] = bytes(blocks * BLOCK)
        return Answer()

    _families: ClassVar[dict[str, Callable[[Disk, Command, dict[str, int], slice], Answer]]] = {
        "READ": _read,
        "WRITE": _write,
        "WRITE ATOMIC": _write,
        "VERIFY": _verify,
        "WRITE AND VERIFY": _write_and_verify,
        "ORWRITE": _orwrite,
        "COMPARE AND WRITE": _compare_and_write,
        "WRITE SAME": _write_same,
        "PRE-FETCH": _nothing,
        "SYNCHRONIZE CACHE": _nothing,
    }


def _told(lba: int) -> int | None:
    return lba if lba <= 0xFFFFFFFF else None


def _flags(command: Command) -> int:
    return 10 if command.cdb[0] == VARIABLE_LENGTH else 1


NAMES = [name for name, row in ROWS.items() if row.media.name not in ("NONE", "TEST_UNIT_READY") and name != "UNMAP"]


class Generator:
    """Commands from a seed; `disk` is looked at so that comparisons are not always in vain."""

    def __init__(self, seed: int, disk: Disk, *, atomic: bool) -> None:
        self._names = [name for name in NAMES if atomic or ROWS[name].requires is not Feature.ATOMIC]
        self._random = random.Random(seed)
        self._disk = disk

    def next(self) -> Command:
        if self._random.random() < 0.08:
            return self._unmap()
        name = self._random.choice(self._names)
        lba, blocks = self._extent(name)
        valid = self._random.random() < 0.9
        fields = {"lba": lba, "blocks": blocks, **self._flags_of(name)}
        data = self._data(name, fields)
        cdb = bytearray(cdb_of(name, **{key: value for key, value in fields.items() if value}))
        if not valid:
            cdb = self._spoil(name, cdb, fields)
        in_length = BLOCK * blocks if name.startswith("READ") else 0
        return Command(name, bytes(cdb), data, in_length, valid)

    def _extent(self, name: str) -> tuple[int, int]:
        """Inside the disk, its edges more often than they come by chance. READ(6) of zero blocks is 256: not here."""
        blocks = self._random.choice([1, 1, 2, 3, self._random.randint(1, 9), self._random.randint(1, BLOCKS)])
        if self._random.random() < 0.05 and "(6)" not in name and not name.startswith("WRITE SAME"):
            blocks = 0
        if name == "COMPARE AND WRITE":
            blocks = min(blocks, 4)
        last = BLOCKS - blocks
        return self._random.choice([0, last, max(0, last - 1), self._random.randint(0, last)]), blocks

    def _flags_of(self, name: str) -> dict[str, int]:
        row, found = ROWS[name], {}
        for flag in ("dpo", "fua", "immed", "unmap", "ndob"):
            if row.field(flag) and self._random.random() < 0.2:
                found[flag] = 1
        if row.field("bytchk"):
            found["bytchk"] = self._random.choice([0, 1, 1] + ([3] if name.startswith("VERIFY") else []))
        return found

    def _data(self, name: str, fields: dict[str, int]) -> bytes:
        lba, blocks = fields["lba"], fields["blocks"]
        here = bytes(self._disk.data[lba * BLOCK : (lba + blocks) * BLOCK])
        fresh = self._bytes(blocks)
        if name.startswith("VERIFY"):
            same = here if self._random.random() < 0.7 else fresh
            return {0: b"", 1: same, 3: (here or bytes(BLOCK))[:BLOCK] if blocks else bytes(BLOCK)}[fields["bytchk"]]
        if name == "COMPARE AND WRITE":
            return (here if self._random.random() < 0.7 else fresh) + self._bytes(blocks)
        if name.startswith("WRITE SAME"):
            return b"" if fields.get("ndob") else self._bytes(1)
        if name.startswith(("READ", "PRE-FETCH", "SYNCHRONIZE")):
            return b""
        return fresh

    def _bytes(self, blocks: int) -> bytes:
        kind = self._random.random()
        if kind < 0.3:
            return bytes(BLOCK * blocks)
        if kind < 0.6:
            return bytes([self._random.randrange(256)]) * (BLOCK * blocks)
        return self._random.randbytes(BLOCK * blocks)

    def _spoil(self, name: str, cdb: bytearray, fields: dict[str, int]) -> bytearray:
        row, kind = ROWS[name], self._random.random()
        if kind < 0.5:
            # A bit that nobody may set; not what says which command it is.
            first = 11 if cdb[0] == VARIABLE_LENGTH else 2
            free = [
                (byte, bit)
                for byte in range(first, row.cdb_length - 1)
                for bit in range(8)
                if not row.usage[byte] >> bit & 1
            ]
            if free:
                byte, bit = self._random.choice(free)
                cdb[byte] |= 1 << bit
                return cdb
        if kind < 0.6 and row.field("bytchk"):
            return bytearray(cdb_of(name, **{key: value for key, value in (fields | {"bytchk": 2}).items() if value}))
        width = 8 * row["lba"].length - (3 if "(6)" in name else 0)
        beyond = self._random.choice(
            [BLOCKS, BLOCKS + 1, (1 << width) - 1, 1 << (width - 1), BLOCKS - fields["blocks"] + 1]
        )
        return bytearray(cdb_of(name, **{key: value for key, value in (fields | {"lba": beyond}).items() if value}))

    def _unmap(self) -> Command:
        count = self._random.randint(0, 4)
        ranges = [self._extent("UNMAP") for _ in range(count)]
        valid = self._random.random() < 0.85
        data = b"".join(lba.to_bytes(8) + n.to_bytes(4) + bytes(4) for lba, n in ranges)
        head = (len(data) + 6).to_bytes(2) + len(data).to_bytes(2) + bytes(4)
        data = head + data
        if not valid:
            data = self._random.choice(
                [data[:7], data[:2] + b"\0\x07" + data[4:], head + (BLOCKS).to_bytes(8) + b"\0\0\0\1" + bytes(4)]
            )
            if data[:8] == head and len(data) > 8:
                data = (22).to_bytes(2) + (16).to_bytes(2) + bytes(4) + data[8:]
        return Command("UNMAP", cdb_of("UNMAP", parameter_list_length=len(data)), data, 0, valid)
