# SPDX-License-Identifier: Apache-2.0
"""Writes tests/corpus/iscsi_pdu, iscsi_text, iscsi_login and iscsi_text_requests: `python -m tests.iscsi.seeds`. Each
input is something an initiator could send, or a rule that it could break; what a fuzzer found stands beside them under
names of its own.
"""

from __future__ import annotations

import struct
from pathlib import Path

from tests.iscsi import fuzz
from tests.iscsi.client import INITIATOR, TARGET, login_bhs, login_request, text
from vhost_scsi.iscsi.login import State

CORPUS = Path(__file__).parents[1] / "corpus"


def bhs(opcode: int, flags: int = 0x80, ahs_words: int = 0, length: int = 0) -> bytes:
    return struct.pack(">BBHB", opcode, flags, 0, ahs_words) + length.to_bytes(3, "big") + bytes(range(40))


HEADERS = {
    "login": login_bhs(100),
    "login-longest": login_bhs(0xFFFFFF, ahs_words=255),
    "login-version": login_bhs(0, version_min=9, version_max=9),
    "nop-out": bhs(0x00),
    "command": bhs(0x01, 0xC1),
    "command-extended-cdb": bhs(0x01, 0xC1, 6) + b"\0\x11\x01\0" + bytes(20),
    "command-two-segments": bhs(0x01, 0xE1, 8) + b"\0\x11\x01\0" + bytes(20) + b"\0\x05\x02\0\0\0\x10\0",
    "segment-too-long": bhs(0x01, 0xC1, 1) + b"\xff\xff\x01\0",
    "segment-empty": bhs(0x01, 0xC1, 1) + b"\0\0\x01\0",
    "segment-cut": bhs(0x01, 0xC1, 1) + b"\0\x05",
    "task-management": bhs(0x42, 0x81),
    "text": bhs(0x04),
    "data-out": bhs(0x05, 0x80, 0, 8192),
    "logout": bhs(0x46, 0x81),
    "snack": bhs(0x10, 0x82),
    "vendor": bhs(0x1C),
    "from-the-target": bhs(0x25),
    "all-ones": b"\xff" * 48,
    "short": b"\x43\x87",
}
TEXTS = {
    "names": text([("InitiatorName", INITIATOR), ("TargetName", TARGET), ("SessionType", "Normal")]),
    "operational": text(
        [
            ("HeaderDigest", "CRC32C,None"),
            ("MaxRecvDataSegmentLength", "262144"),
            ("InitialR2T", "No"),
            ("FirstBurstLength", "0x10000"),
            ("iSCSIProtocolLevel", "1"),
            ("X-com.example.key", "value"),
        ]
    ),
    "chap": text([("CHAP_N", "somebody"), ("CHAP_R", "0x" + "5a" * 32), ("CHAP_I", "7"), ("CHAP_C", "0bAQIDBA==")]),
    "no-terminator": b"A=1",
    "no-equals-sign": b"AuthMethod\0",
    "no-key": b"=1\0",
    "long-key": b"K" * 64 + b"=1\0",
    "long-value": b"InitiatorAlias=" + b"v" * 256 + b"\0",
    "not-utf-8": b"InitiatorAlias=\xc3\x28\0",
    "escape": b"InitiatorAlias=\x1b]0;x\x07\0",
    "zeroes": bytes(64),
    "twice": text([("MaxBurstLength", "512"), ("MaxBurstLength", "1024")]),
    "many": text([("A", "1")] * 129),
}

NAMES = [("InitiatorName", INITIATOR), ("TargetName", TARGET)]
CHAP_NAMES = [("InitiatorName", INITIATOR), ("TargetName", fuzz.CHAP_TARGET), ("AuthMethod", "CHAP,None")]
LAST = {"csg": 1, "nsg": 3}
PROOF = [("CHAP_N", "host"), ("CHAP_R", "0x" + "5a" * 32), ("CHAP_I", "7"), ("CHAP_C", "0x" + "a5" * 16)]
# Rows of PDUs, and how the login is left.
LOGINS = {
    "two-stages": (
        fuzz.join(
            login_request([*NAMES, ("AuthMethod", "None")]), login_request([("InitialR2T", "No"), ("X-a", "1")], **LAST)
        ),
        State.COMMIT,
    ),
    "one-request": (fuzz.join(login_request([*NAMES, ("MaxBurstLength", "512")], **LAST)), State.COMMIT),
    "discovery": (
        fuzz.join(login_request([("InitiatorName", INITIATOR), ("SessionType", "Discovery")], nsg=3)),
        State.COMMIT,
    ),
    "pieces": (
        fuzz.join(login_request(text(NAMES)[:30], transit=False, more=True), login_request(text(NAMES)[30:], nsg=3)),
        State.COMMIT,
    ),
    "long-answer": (
        fuzz.join(
            login_request(NAMES),
            login_request(text([(f"K{n}{'k' * 58}", "") for n in range(110)]), csg=1, transit=False, nsg=0),
            login_request(b"", **LAST),
            login_request(b"", **LAST),
        ),
        State.COMMIT,
    ),
    "chap-wrong": (
        fuzz.join(login_request(CHAP_NAMES), login_request([("CHAP_A", "8,7,6,5")]), login_request(PROOF)),
        State.REFUSED,
    ),
    "chap-passed-over": (fuzz.join(login_request(CHAP_NAMES[:2], nsg=3)), State.REFUSED),
    "chap-left-half-way": (
        fuzz.join(login_request(CHAP_NAMES), login_request([("CHAP_A", "5")], nsg=3), login_request([], **LAST)),
        State.REFUSED,
    ),
    "not-a-login": (fuzz.join(bytes(48)), State.REFUSED),
    "command-in-between": (fuzz.join(login_request(NAMES), b"\x01" + bytes(47)), State.REFUSED),
    "oversize": (fuzz.join(login_bhs(0xFFFFFF)), State.REFUSED),
    "wrong-stage": (fuzz.join(login_request(NAMES), login_request([], csg=0, nsg=3)), State.REFUSED),
}


def text_request(flags: int, data: bytes = b"") -> bytes:
    return bytes([flags]) + data


# What is answered, what is rejected.
TEXT_REQUESTS: dict[str, tuple[bytes, tuple[int, int]]] = {
    "length": (fuzz.join(text_request(1, text([("MaxRecvDataSegmentLength", "1024")]))), (1, 0)),
    "unknown": (fuzz.join(text_request(1, text([("X-com.example.a", "1"), ("InitiatorAlias", "me")]))), (1, 0)),
    "pieces": (fuzz.join(text_request(2, b"X-com.exam"), text_request(1 | 8, b"ple.a=1\0")), (2, 0)),
    "send-targets": (
        fuzz.join(text_request(1, b"SendTargets=All\0"), *[text_request(1 | 8)] * 12),
        (13, 0),
    ),
    "byte-by-byte": (fuzz.join(text_request(1 | 16, b"SendTargets=\0"), *[text_request(1 | 8 | 16)] * 20), (21, 0)),
    "text-in-between": (
        fuzz.join(text_request(1, b"SendTargets=All\0"), text_request(1 | 8, b"X-a=1\0"), text_request(1, b"X-a=1\0")),
        (2, 1),
    ),
    "both-bits": (fuzz.join(text_request(3, b"X-a=1\0")), (0, 1)),
    "not-now": (fuzz.join(text_request(1, b"MaxBurstLength=512\0"), text_request(1, b"TargetName=x\0")), (0, 2)),
    "another-tag": (fuzz.join(text_request(2, b"X-"), text_request(1 | 4 | 8, b"a=1\0")), (1, 1)),
    "no-terminator": (fuzz.join(text_request(1, b"X-a=1")), (0, 1)),
    "on-and-on": (
        fuzz.join(text_request(0, b"X-a=1\0"), *[text_request(8, b"X-%c=1\0" % key) for key in b"bcd"]),
        (4, 0),
    ),
}

if __name__ == "__main__":
    requests = {name: data for name, (data, _) in TEXT_REQUESTS.items()}
    logins = {name: data for name, (data, _) in LOGINS.items()}
    for folder, inputs in (
        ("iscsi_pdu", HEADERS),
        ("iscsi_text", TEXTS),
        ("iscsi_login", logins),
        ("iscsi_text_requests", requests),
    ):
        (CORPUS / folder).mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (CORPUS / folder / name).write_bytes(data)
