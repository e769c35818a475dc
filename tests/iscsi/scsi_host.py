# SPDX-License-Identifier: Apache-2.0
"""SCSI commands over the tests' own iSCSI initiator: one at a time, with immediate data, without digests."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from tests.iscsi.client import (
    ASYNC_MESSAGE,
    NO_TAG,
    TARGET,
    TASK_MANAGEMENT,
    TASK_RESPONSE,
    Client,
    Pairs,
    Response,
)
from vhost_scsi.scsi import sense_data
from vhost_scsi.scsi.sense import SenseCode

SCSI_COMMAND, SCSI_RESPONSE, DATA_IN = 0x01, 0x21, 0x25
FINAL, READ, WRITE, SIMPLE, STATUS = 0x80, 0x40, 0x20, 0x01, 0x01
LUN_RESET = 5
SCSI_EVENT = 0


def command_pdu(
    cdb: bytes,
    itt: int,
    cmd_sn: int,
    data: bytes = b"",
    in_len: int = 0,
    *,
    lun: int = 0,
    out_len: int | None = None,
    immediate: bool = False,
    attribute: int = SIMPLE,
) -> bytes:
    """`data` is immediate data, `out_len` what the command is to write in all."""
    out_len = len(data) if out_len is None else out_len
    flags = FINAL | attribute | (READ if in_len else 0) | (WRITE if out_len else 0)
    head = struct.pack(">BBHB", SCSI_COMMAND | (0x40 if immediate else 0), flags, 0, 0) + len(data).to_bytes(3, "big")
    head += lun.to_bytes(2, "big") + bytes(6)
    return head + struct.pack(">IIII", itt, in_len or out_len, cmd_sn, 0) + cdb.ljust(16, b"\0") + data


def manage_pdu(
    function: int,
    cmd_sn: int,
    itt: int = 0x55,
    *,
    tag: int = NO_TAG,
    ref_cmd_sn: int = 0,
    lun: int = 0,
    immediate: bool = True,
) -> bytes:
    head = struct.pack(">BBH", TASK_MANAGEMENT | (0x40 if immediate else 0), FINAL | function, 0) + bytes(4)
    head += lun.to_bytes(2, "big") + bytes(6)
    return head + struct.pack(">IIIII", itt, tag, cmd_sn, 0, ref_cmd_sn) + bytes(12)


@dataclass
class Result:
    status: int
    data: bytes
    sense: bytes


class ScsiHost:
    """Logged in to one target. `ok` and `fails` read like those of `tests.live.Host`."""

    def __init__(
        self,
        address: tuple[str, int],
        target: str = TARGET,
        *,
        extra: Pairs | None = None,
        client: Client | None = None,
        **fields: Any,
    ) -> None:
        self.client = client or Client(address)
        extra = [("MaxRecvDataSegmentLength", "262144"), *(extra or [])]
        answer = self.client.login(target, extra=extra, **fields)
        self.client.cmd_sn = fields.get("cmd_sn", self.client.cmd_sn)
        assert answer.status == (0, 0)
        self._itt = 0x1000
        self.events: list[tuple[int, SenseCode]] = []
        """asynchronous SCSI events that came in between"""

    def __enter__(self) -> ScsiHost:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()

    def send(self, cdb: bytes, data: bytes = b"", in_len: int = 0, *, lun: int = 0) -> int:
        """Submits; returns the tag."""
        self._itt += 1
        self.client.send(command_pdu(cdb, self._itt, self.client.cmd_sn, data, in_len, lun=lun))
        self.client.cmd_sn = (self.client.cmd_sn + 1) & NO_TAG
        return self._itt

    def wait(self, tag: int) -> Result:
        """Data-In up to the status of the command."""
        data = b""
        while True:
            pdu = self.client.receive()
            if pdu.opcode == ASYNC_MESSAGE:
                self._note(pdu)
                continue
            assert pdu.itt == tag, f"{pdu.opcode:#x} of {pdu.itt:#x}"
            if pdu.opcode == DATA_IN:
                data += pdu.data
                if pdu.flags & STATUS:
                    return Result(pdu.bhs[3], data, b"")
            else:
                assert (pdu.opcode, pdu.bhs[2]) == (SCSI_RESPONSE, 0)
                return Result(pdu.bhs[3], data, pdu.data[2:])

    def event(self) -> tuple[int, SenseCode]:
        """The LUN and the sense of the next asynchronous SCSI event; waits for it."""
        while not self.events:
            self._note(self.client.receive())
        return self.events.pop(0)

    def _note(self, pdu: Response) -> None:
        assert (pdu.opcode, pdu.bhs[36]) == (ASYNC_MESSAGE, SCSI_EVENT), f"{pdu.opcode:#x}"
        length = int.from_bytes(pdu.data[:2])
        self.events.append((int.from_bytes(pdu.bhs[8:10]), sense_data.parse(pdu.data[2 : 2 + length]).code))

    def command(self, cdb: bytes, data: bytes = b"", in_len: int = 0, *, lun: int = 0) -> Result:
        return self.wait(self.send(cdb, data, in_len, lun=lun))

    def ok(self, cdb: bytes, data: bytes = b"", in_len: int = 0, *, lun: int = 0) -> bytes:
        result = self.command(cdb, data, in_len, lun=lun)
        assert result.status == 0, sense_data.parse(result.sense).code.name if result.sense else result.status
        return result.data

    def fails(self, code: SenseCode, cdb: bytes, data: bytes = b"", in_len: int = 0, *, lun: int = 0) -> None:
        result = self.command(cdb, data, in_len, lun=lun)
        assert result.status == 2
        found = sense_data.parse(result.sense).code
        assert found == code, f"{found.name}, not {code.name}"

    def ready(self, lun: int = 0) -> None:
        """Takes the unit attentions away."""
        while self.command(bytes(6), lun=lun).status == 2:
            pass

    def reset_unit(self) -> None:
        assert self.manage(LUN_RESET) == 0

    def manage(self, function: int, **fields: Any) -> int:
        """Immediate task management; its response, which must be the next thing that comes."""
        self.client.send(manage_pdu(function, self.client.cmd_sn, **fields))
        return self.managed()

    def managed(self, itt: int = 0x55) -> int:
        answer = self.client.receive()
        assert (answer.opcode, answer.itt) == (TASK_RESPONSE, itt), f"{answer.opcode:#x} of {answer.itt:#x}"
        return answer.bhs[2]
