# SPDX-License-Identifier: Apache-2.0
"""Writes tests/corpus/vhost_user: `python -m tests.fuzz.seeds`. Each input is a story that a front end could tell, or a
rule that it could break; inputs that the fuzzer found stand beside them under names of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.vhost_user import (
    EDGES,
    PAGE,
    RING_SIZE,
    TABLE_PAGE,
    Descriptor,
    Flag,
    Kind,
    Step,
    descriptor,
    packed_ring_page,
    ring_pages,
)
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


PACKED, PACKED_IN_ORDER, IN_ORDER = 0x5_7000_0000, 0xD_7000_0000, 0x9_7000_0000
FLAGS_ONLY = 0x5_5000_0000  # without EVENT_IDX
AVAIL, USED = 1 << 7, 1 << 15


def negotiate(features: int) -> list[Step]:
    return [*NEGOTIATE[:-1], message(Request.SET_FEATURES, edge(features))]


def packed_ring(index: int, *, size: int = 13, base: int = 0x8000_8000, avail_token: int | None = None) -> list[Step]:
    """The packed ring of that number, of any size. `avail_token`: the driver's event structure, elsewhere."""
    desc, avail, used = (page(packed_ring_page(index) + part) for part in range(3))
    return [
        message(Request.SET_VRING_NUM, index, size),
        message(Request.SET_VRING_BASE, index, edge(base)),
        message(Request.SET_VRING_ADDR, index, 0, desc, used, avail_token or avail, 0),
        message(Request.SET_VRING_CALL, index, fd=Descriptor.EVENT, fds=1),
        message(Request.SET_VRING_KICK, index, fd=Descriptor.EVENT, fds=1),
        message(Request.SET_VRING_ENABLE, index, 1),
    ]


def write(at_page: int, sixteenth: int, content: bytes) -> Step:
    """Sixteen bytes are a descriptor."""
    return Step(Kind.WRITE, tokens=bytes([at_page, sixteenth]) + content)


def offered(queue: int, place: int, *descriptors: tuple[int, int, int, int]) -> list[Step]:
    """Descriptors of a packed ring, the last first, and a kick."""
    steps = [
        write(packed_ring_page(queue), place + number, descriptor(*each)) for number, each in enumerate(descriptors)
    ]
    return [*reversed(steps), Step(Kind.KICK), PAUSE]


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
    "packed": [*negotiate(PACKED), MEMORY, *packed_ring(2), PAUSE, PAUSE, stop(2)],
    "packed-in-order": [*negotiate(PACKED_IN_ORDER), MEMORY, *packed_ring(2), *packed_ring(3), PAUSE, PAUSE, stop(2)],
    "split-in-order": [*negotiate(IN_ORDER), MEMORY, *ring(2), PAUSE, stop(2)],
    "packed-without-event-index": [*negotiate(FLAGS_ONLY), MEMORY, *packed_ring(2), PAUSE, stop(2)],
    "packed-control-and-event": [*negotiate(PACKED), MEMORY, *packed_ring(0), *packed_ring(1), PAUSE, PAUSE],
    "packed-stop-and-go-on": [*negotiate(PACKED), MEMORY, *packed_ring(2), PAUSE, stop(2), *packed_ring(2)[2:], PAUSE],
    "packed-from-the-middle": [*negotiate(PACKED), MEMORY, *packed_ring(2, base=0x8003_8003), PAUSE, stop(2)],
    "packed-base-held": [*negotiate(PACKED), MEMORY, *packed_ring(2, base=0x8000_8002), PAUSE, stop(2)],
    "packed-base-of-another-lap": [*negotiate(PACKED), MEMORY, *packed_ring(2, base=0x8003), PAUSE, stop(2)],
    "packed-base-beyond": [*negotiate(PACKED), MEMORY, *packed_ring(2, size=2, base=0x8003_8003), PAUSE],
    "packed-list-longer-than-the-ring": [*negotiate(PACKED), MEMORY, *packed_ring(2, size=2), PAUSE, stop(2)],
    "packed-then-split": [
        *negotiate(PACKED),
        MEMORY,
        *packed_ring(2),
        PAUSE,
        stop(2),
        message(Request.SET_FEATURES, edge(MODERN)),
        *packed_ring(2),
        *ring(2),
        PAUSE,
        stop(2),
    ],
    "packed-events-are-the-ring": [
        *negotiate(PACKED),
        MEMORY,
        *packed_ring(2, avail_token=page(packed_ring_page(2))),
        PAUSE,
    ],
    "packed-id-in-flight": [
        *negotiate(PACKED_IN_ORDER),
        MEMORY,
        *packed_ring(2),
        *offered(2, 10, (TABLE_PAGE * PAGE, 32, 3, 4 | AVAIL), (TABLE_PAGE * PAGE, 32, 3, 4 | AVAIL)),
    ],
    "packed-table-in-a-list": [
        *negotiate(PACKED),
        MEMORY,
        *packed_ring(2),
        *offered(2, 10, (32 * PAGE, 51, 5, 1 | AVAIL), (TABLE_PAGE * PAGE, 32, 5, 4 | AVAIL)),
    ],
    "packed-flags-disagree": [
        *negotiate(PACKED),
        MEMORY,
        *packed_ring(2),
        *offered(2, 10, (32 * PAGE, 51, 5, 1 | AVAIL), (42 * PAGE, 204, 5, 2 | AVAIL | USED)),
    ],
    "packed-table-that-nests": [
        *negotiate(PACKED),
        MEMORY,
        *packed_ring(2),
        write(TABLE_PAGE, 0, descriptor(TABLE_PAGE * PAGE, 32, 0, 4)),
        *offered(2, 10, (TABLE_PAGE * PAGE, 32, 5, 4 | AVAIL)),
    ],
    "packed-next-lap": [
        *negotiate(PACKED),
        MEMORY,
        *packed_ring(2, size=10),
        PAUSE,
        PAUSE,
        *offered(2, 0, (32 * PAGE, 51, 9, 1 | USED), (42 * PAGE, 204, 9, 2 | USED)),
    ],
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
