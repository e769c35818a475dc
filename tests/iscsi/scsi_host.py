# SPDX-License-Identifier: Apache-2.0
"""SCSI commands over the tests' own iSCSI initiator: one at a time, with immediate data, without digests."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

from tests.iscsi.client import TARGET, TASK_RESPONSE, Client
from vhost_scsi.scsi import sense_data
from vhost_scsi.scsi.sense import SenseCode

SCSI_COMMAND, SCSI_RESPONSE, DATA_IN = 0x01, 0x21, 0x25
FINAL, READ, WRITE, SIMPLE, STATUS = 0x80, 0x40, 0x20, 0x01, 0x01
LUN_RESET = 5


@dataclass
class Result:
    status: int
    data: bytes
    sense: bytes


class ScsiHost:
    """Logged in to one target. `ok` and `fails` read like those of `tests.live.Host`."""

    def __init__(self, address: tuple[str, int], target: str = TARGET, **fields: Any) -> None:
        self.client = Client(address)
        answer = self.client.login(target, extra=[("MaxRecvDataSegmentLength", "262144")], **fields)
        assert answer.status == (0, 0)
        self._itt = 0x1000

    def __enter__(self) -> ScsiHost:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.close()

    def send(self, cdb: bytes, data: bytes = b"", in_len: int = 0, *, lun: int = 0) -> int:
        """Submits; returns the tag."""
        self._itt += 1
        flags = FINAL | SIMPLE | (READ if in_len else 0) | (WRITE if data else 0)
        head = struct.pack(">BBHB", SCSI_COMMAND, flags, 0, 0) + len(data).to_bytes(3, "big")
        head += lun.to_bytes(2, "big") + bytes(6)
        head += struct.pack(">IIII", self._itt, in_len or len(data), self.client.cmd_sn, 0) + cdb.ljust(16, b"\0")
        self.client.cmd_sn += 1
        self.client.send(head + data)
        return self._itt

    def wait(self, tag: int) -> Result:
        """Data-In up to the status of the command."""
        data = b""
        while True:
            pdu = self.client.receive()
            assert pdu.itt == tag, f"{pdu.opcode:#x} of {pdu.itt:#x}"
            if pdu.opcode == DATA_IN:
                data += pdu.data
                if pdu.flags & STATUS:
                    return Result(pdu.bhs[3], data, b"")
            else:
                assert (pdu.opcode, pdu.bhs[2]) == (SCSI_RESPONSE, 0)
                return Result(pdu.bhs[3], data, pdu.data[2:])

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
        self.client.request(0x42, FINAL | LUN_RESET, b"\xff\xff\xff\xff", itt=0x55)
        answer = self.client.receive()
        assert (answer.opcode, answer.bhs[2]) == (TASK_RESPONSE, 0)
