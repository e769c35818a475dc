# SPDX-License-Identifier: Apache-2.0
"""Writes tests/corpus/vhost_user: `python -m tests.fuzz.seeds`. Each input is a story that a front end could tell, or a
rule that it could break; inputs that the fuzzer found stand beside them under names of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.vhost_user import EDGES, RING_SIZE, Descriptor, Flag, Kind, Step, ring_pages
from vhost_scsi.vhost_user.messages import Request

CORPUS = Path(__file__).parents[1] / "corpus" / "vhost_user"


def page(index: int) -> int:
    """The token of the address of a page."""
    assert index < 0x80
    return 0x40 + index


def edge(value: int) -> int:
    """The token of one of EDGES."""
    return 0xC0 + EDGES.index(value)


def message(request: int, *tokens: int, fd: int = 0, fds: int = 0, flags: int = Flag.NEED_REPLY) -> Step:
    return Step(request, flags, fd, fds, bytes(tokens))


MODERN, OLD = 0x1_7000_0000, 0x1_3000_0000
HALF = page(127)
NEGOTIATE = [
    message(Request.GET_FEATURES, flags=0),
    message(Request.SET_PROTOCOL_FEATURES, edge(0x1A029)),
    message(Request.SET_OWNER),
    message(Request.SET_FEATURES, edge(MODERN)),
]
MEMORY = message(Request.SET_MEM_TABLE, 0, HALF, 0, 0, fds=1)
PAUSE = Step(Kind.PAUSE)


def ring(index: int, *, size: int = 2 * RING_SIZE, kick: bool = True, enable: bool = True) -> list[Step]:
    desc, avail, used = (page(number) for number in ring_pages(index))
    steps = [
        message(Request.SET_VRING_NUM, index, size),
        message(Request.SET_VRING_BASE, index, 0),
        message(Request.SET_VRING_ADDR, index, 0, desc, used, avail, 0),
        message(Request.SET_VRING_CALL, index, fd=Descriptor.EVENT, fds=1),
        message(Request.SET_VRING_ERR, index, fd=Descriptor.PIPE_WRITER, fds=1),
    ]
    if kick:
        steps.append(message(Request.SET_VRING_KICK, index, fd=Descriptor.EVENT, fds=1))
    if enable:
        steps.append(message(Request.SET_VRING_ENABLE, index, 1))
    return steps


def stop(index: int) -> Step:
    return message(Request.GET_VRING_BASE, index, 0)


STORIES: dict[str, Sequence[Step]] = {
    "negotiate": NEGOTIATE,
    "requests": [*NEGOTIATE, MEMORY, *ring(2), PAUSE, stop(2)],
    "all-queues": [*NEGOTIATE, MEMORY, *ring(0), *ring(1), *ring(2), *ring(3), PAUSE, PAUSE],
    "rings-before-memory": [*NEGOTIATE, *ring(2), MEMORY, PAUSE, stop(2)],
    "old-features": [message(Request.SET_FEATURES, edge(OLD)), MEMORY, *ring(2, enable=False), PAUSE],
    "start-stop-start": [*NEGOTIATE, MEMORY, *ring(2), PAUSE, stop(2), *ring(2), PAUSE, stop(2)],
    "polled": [
        *NEGOTIATE,
        MEMORY,
        *ring(0, kick=False),
        message(Request.SET_VRING_KICK, edge(0x100)),
        message(Request.SET_VRING_CALL, edge(0x100)),
        PAUSE,
    ],
    "same-memory-again": [*NEGOTIATE, MEMORY, *ring(2), MEMORY, PAUSE, MEMORY],
    "memory-goes": [
        *NEGOTIATE,
        message(Request.ADD_MEM_REG, 0, HALF, 0, 0, fds=1),
        *ring(2),
        PAUSE,
        message(Request.REM_MEM_REG, 0, HALF, 0, 0),
        message(Request.ADD_MEM_REG, 0, HALF, 0, 0, fds=1),
        PAUSE,
    ],
    "truncated": [*NEGOTIATE, MEMORY, Step(Kind.TRUNCATE, tokens=b"\0"), *ring(2), Step(Kind.KICK), PAUSE, stop(2)],
    "truncated-under-a-ring": [
        *NEGOTIATE,
        MEMORY,
        *ring(3),
        PAUSE,
        Step(Kind.TRUNCATE, tokens=b"\x41"),
        Step(Kind.KICK),
    ],
    "chain-too-long": [*NEGOTIATE, MEMORY, *ring(2, size=RING_SIZE), PAUSE],
    "data-as-a-ring": [*NEGOTIATE, MEMORY, *ring(0), message(Request.SET_VRING_BASE, 0, 1), PAUSE],
    "reset": [*NEGOTIATE, MEMORY, *ring(2), message(Request.RESET_DEVICE), *ring(2), message(Request.SET_STATUS, 0)],
    "status": [*NEGOTIATE, message(Request.SET_STATUS, 15), message(Request.GET_STATUS, flags=0)],
    "back-end-channel": [*NEGOTIATE, message(Request.SET_BACKEND_REQ_FD, fd=Descriptor.SOCKET, fds=1)] * 2,
    "no-channel": [*NEGOTIATE, message(Request.SET_BACKEND_REQ_FD, fd=Descriptor.NULL, fds=1)],
    "kick-is-no-event": [*NEGOTIATE, MEMORY, message(Request.SET_VRING_KICK, 2, fd=Descriptor.NULL, fds=1)],
    "kick-is-a-pipe": [
        *NEGOTIATE,
        MEMORY,
        *ring(2),
        message(Request.SET_VRING_KICK, 2, fd=Descriptor.PIPE_READER, fds=1),
    ],
    "kick-cannot-be-read": [
        *NEGOTIATE,
        MEMORY,
        *ring(2),
        message(Request.SET_VRING_KICK, 2, fd=Descriptor.PIPE_WRITER, fds=1),
        PAUSE,
    ],
    "memory-is-short": [*NEGOTIATE, message(Request.SET_MEM_TABLE, 0, HALF, 0, 0, fd=Descriptor.SHORT_FILE, fds=1)],
    "memory-is-a-directory": [
        *NEGOTIATE,
        message(Request.SET_MEM_TABLE, 0, HALF, 0, 0, fd=Descriptor.DIRECTORY, fds=1),
    ],
    "regions-overlap": [*NEGOTIATE, message(Request.SET_MEM_TABLE, 0, HALF, 0, 0, 0, HALF, 0, 0, fds=2)],
    "region-wraps": [*NEGOTIATE, message(Request.SET_MEM_TABLE, edge((1 << 64) - 4096), HALF, 0, 0, fds=1)],
    "too-many-descriptors": [*NEGOTIATE, message(Request.SET_VRING_KICK, 2, fd=Descriptor.EVENT, fds=15)],
    "unknown-request": [*NEGOTIATE, message(63)],
    "wrong-version": [message(Request.GET_FEATURES, flags=Flag.VERSION)],
    "a-reply": [message(Request.GET_FEATURES, flags=Flag.REPLY)],
    "cut-short": [message(Request.GET_FEATURES, flags=0), Step(Kind.RAW, tokens=bytes(7))],
    "size-without-payload": [message(Request.SET_FEATURES, flags=Flag.SIZE)],
}


def main() -> None:
    CORPUS.mkdir(parents=True, exist_ok=True)
    for name, steps in STORIES.items():
        (CORPUS / name).write_bytes(b"".join(step.encode() for step in steps))


if __name__ == "__main__":
    main()
