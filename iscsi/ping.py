# SPDX-License-Identifier: Apache-2.0
"""When a silent initiator is asked whether it is still there (NOP-In, RFC 7143 11.19), and when it is given up.

Arithmetic on times that others read: no timer, no socket. A connection with traffic is never asked, and one that is
silent costs a look when `next_look` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from vhost_scsi.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PingPolicy:
    """Seconds: after `idle` without a PDU the initiator is asked, `timeout` later it is given up. An idle of 0 never
    asks."""

    idle: float = 30.0
    timeout: float = 15.0

    def __post_init__(self) -> None:
        if self.idle < 0 or self.timeout <= 0:
            raise ConfigError("ping: idle is not negative, and timeout more than nothing")


class PingAction(Enum):
    NOTHING = auto()
    PING = auto()
    GIVE_UP = auto()


class Pinger:
    """One connection's. Any PDU of the initiator counts as an answer: it is there, which is all we wanted to know."""

    def __init__(self, policy: PingPolicy, now: float) -> None:
        self._policy = policy
        self._heard = now
        self._asked: float | None = None

    def heard(self, now: float) -> None:
        self._heard = now
        self._asked = None

    def look(self, now: float) -> PingAction:
        if not self._policy.idle:
            return PingAction.NOTHING
        if self._asked is not None:
            return PingAction.GIVE_UP if now >= self._asked + self._policy.timeout else PingAction.NOTHING
        if now >= self._heard + self._policy.idle:
            self._asked = now
            return PingAction.PING
        return PingAction.NOTHING

    @property
    def next_look(self) -> float | None:
        """When `look` may say something else; None for never."""
        if not self._policy.idle:
            return None
        return self._heard + self._policy.idle if self._asked is None else self._asked + self._policy.timeout
