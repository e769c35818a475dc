# SPDX-License-Identifier: Apache-2.0
"""A dump of one virtqueue: all that was known of it at a moment, in one file that can be read anywhere.

`queue.dump` and the stall watchdog write it, `queue show|check|dump --from` read it. A file comes from somebody else,
so it is checked against the shape below before anything of it is shown; what a later version adds is left aside.
"""

from __future__ import annotations

import datetime
import os
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vhost_scsi import __version__
from vhost_scsi.errors import ConfigError

KIND: Final = "vhost-scsi queue dump"
VERSION: Final = 1
"""grows when a field changes its meaning or goes away, not when one is added"""
MAX_BYTES: Final = 64 << 20
MAX_RING: Final = 32768

Word = Annotated[str, Field(max_length=2000)]
Count = Annotated[int, Field(ge=0, lt=1 << 64)]


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Decision(_Shape):
    wanted: bool | None
    due: bool
    why: Word


class Standing(_Shape):
    posted: Count | None
    in_flight: Count | None
    unseen: Count | None
    next_kick: Decision
    next_interrupt: Decision


class Descriptor(_Shape):
    index: Count
    indirect: bool
    address: Count
    length_bytes: Count
    flags: list[Word]
    next: Count


class Violation(_Shape):
    rule: Word
    text: Word
    forbidden: bool


class Chain(_Shape):
    head: Count
    state: Word
    descriptors: Count
    indirect: bool
    readable_bytes: Count
    writable_bytes: Count
    table: list[Descriptor]
    violations: list[Violation]


class Place(_Shape):
    index: Count
    wrap: bool


class Event(Place):
    mode: Word


class Ring(_Shape):
    layout: Word
    size: Annotated[int, Field(ge=0, le=MAX_RING)]
    desc_address: Count
    avail_address: Count
    used_address: Count
    last_avail: Count
    avail_idx: Count | None = None
    used_idx: Count | None = None
    avail_flags: list[Word] | None = None
    used_flags: list[Word] | None = None
    used_event: Count | None = None
    avail_event: Count | None = None
    next_avail: Place | None = None
    next_used: Place | None = None
    driver_event: Event | None = None
    device_event: Event | None = None
    held: Count | None = None
    moved: bool
    owners: Annotated[str, Field(max_length=MAX_RING, pattern=r"^[.pfou]*$")]
    owner_words: dict[Annotated[str, Field(max_length=1)], Word]
    standing: Standing | None
    chains: Annotated[list[Chain], Field(max_length=4096)]
    violations: list[Violation]


class Latency(_Shape):
    count: Count
    p50_ns: Count | None
    p90_ns: Count | None
    p99_ns: Count | None
    p999_ns: Count | None


class Queue(_Shape):
    port: Word
    index: Count
    name: Word
    started: bool
    enabled: bool
    broken: bool
    stalled: bool
    error: Word | None
    size: Count
    layout: Word
    features: list[Word]
    worker: Count
    in_flight: Count
    requests: Count
    batches: Count
    max_batch: Count
    kicks: Count
    interrupts: Count
    interrupts_suppressed: Count
    kick_pending: Count | None
    call_pending: Count | None
    latency: Latency
    batch_sizes: Annotated[list[Count], Field(max_length=32)]


class Request(_Shape):
    head: Count
    target: Count | None
    lun: Count | None
    unit: Word | None
    command: Word
    cdb: Word | None
    lba: Count | None
    length_bytes: Count | None
    segments: Count
    age_us: Count | None
    layer: Word
    layer_us: Count | None
    gate: list[Word]
    aborted: bool


class Finding(_Shape):
    rule: Word
    text: Word
    clause: Word
    forbidden: bool
    address: Count | None
    bytes: Word


class Check(_Shape):
    looked_at: bool
    findings: list[Finding]


class Worker(_Shape):
    sleeping: bool


class Dump(_Shape):
    kind: Word
    dump_version: int
    taken_at: Word
    why: Word
    queue: Queue
    worker: Worker
    ring: Ring | None
    tasks: list[Request]
    lying: list[Request]
    check: Check


def make_dump(shown: dict[str, Any], found: dict[str, Any], why: str, daemon: str) -> dict[str, Any]:
    """`shown` is the answer of queue.show, `found` the row of queue.check."""
    return {
        "kind": KIND,
        "dump_version": VERSION,
        "taken_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "why": why,
        "daemon": {"name": daemon, "pid": os.getpid(), "version": __version__},
        **shown,
        "check": found,
    }


def read_dump(path: str) -> dict[str, Any]:
    """The dump in a file, checked; ConfigError, one line, for anything else."""
    try:
        with open(path, "rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes")
    return parse_dump(data, path)


def parse_dump(data: bytes, path: str) -> dict[str, Any]:
    try:
        dump = Dump.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200]
        raise ConfigError(f"{path}: not a queue dump: {where + ': ' if where else ''}{first['msg']}") from None
    if dump.kind != KIND or dump.dump_version != VERSION:
        raise ConfigError(
            f"{path}: {dump.kind[:64]!r} of version {dump.dump_version}, not {KIND!r} of version {VERSION}"
        )
    return {"schema_version": 1, **dump.model_dump()}
