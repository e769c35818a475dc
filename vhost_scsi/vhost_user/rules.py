# SPDX-License-Identifier: Apache-2.0
"""The rules of vhost-user that a peer can break, by name, and what breaking one costs.

The session raises them, the error reply carries their number, the log their name. What to do about one is decided in
`session.py`; nothing here looks at a message.
"""

from __future__ import annotations

from enum import Enum, IntEnum, auto, unique

from vhost_scsi.errors import VhostScsiError


class Closes(Enum):
    """When breaking a rule ends the connection."""

    ALWAYS = auto()  # the byte stream cannot be followed any further
    UNANSWERED = auto()  # the front end would believe in memory or rings that we do not have, and we cannot tell it
    NEVER = auto()  # the message touched nothing: passing it over is safe


@unique
class Rule(IntEnum):
    """The rules a peer can break. The number is the non-zero u64 of the error reply."""

    VERSION = 1
    PAYLOAD_TOO_LARGE = 2
    TOO_MANY_FDS = 3
    FDS_TRUNCATED = 4
    TRUNCATED_MESSAGE = 5
    UNKNOWN_REQUEST = 10
    UNSUPPORTED_REQUEST = 11
    NOT_NEGOTIATED = 12
    REPLY_FLAG_IN_REQUEST = 13
    PAYLOAD_SIZE = 14
    FD_COUNT = 15
    RESERVED_BITS = 16
    FEATURES_REFUSED = 20
    PROTOCOL_FEATURES_REFUSED = 21
    REGION_COUNT = 30
    REGION_EMPTY = 31
    REGION_OVERFLOW = 32
    REGION_UNALIGNED = 33
    REGION_GUEST_OVERLAP = 34
    REGION_USER_OVERLAP = 35
    REGION_BEYOND_FILE = 36
    REGION_NOT_MAPPABLE = 37
    REGION_UNKNOWN = 38
    QUEUE_INDEX = 40
    RING_SIZE = 41
    RING_UNALIGNED = 42
    RING_OVERFLOW = 43
    RING_NOT_MAPPED = 44
    RING_FLAGS = 45
    RING_BASE = 46
    RING_STARTED = 47
    ENABLE_VALUE = 48
    NOTIFIER_KIND = 49
    CHANNEL_KIND = 50
    STATUS_VALUE = 51
    INFLIGHT_SHAPE = 52
    DEVICE_FAILED = 60

    @property
    def closes(self) -> Closes:
        if self <= Rule.TRUNCATED_MESSAGE:
            return Closes.ALWAYS
        return Closes.NEVER if self in _TOUCHED_NOTHING else Closes.UNANSWERED


_TOUCHED_NOTHING = frozenset(
    (Rule.UNKNOWN_REQUEST, Rule.UNSUPPORTED_REQUEST, Rule.NOT_NEGOTIATED, Rule.REPLY_FLAG_IN_REQUEST, Rule.QUEUE_INDEX)
)


class ProtocolError(VhostScsiError):
    """A peer broke `rule`; the text is one line for the log."""

    exit_code = 5

    def __init__(self, rule: Rule, detail: str) -> None:
        super().__init__(f"{rule.name}: {detail}")
        self.rule = rule
        self.detail = detail
