# SPDX-License-Identifier: Apache-2.0
"""The unit attention conditions pending for one I_T_L nexus (SAM-5 5.14): which, and which is told first.

It holds codes; who establishes them and who is told is the logical unit's affair.
"""

from typing import Final

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.sense import SenseCode

LIMIT: Final = 32
"""conditions pending at once; each code is pending at most once, so the codes we know never reach it"""

# SAM-5 5.14.5, unit attention condition precedence: a reset of higher precedence says all that a lower one says.
_RESETS: Final = (
    sense.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED,
    sense.POWER_ON_OCCURRED,
    sense.DEVICE_INTERNAL_RESET,
    sense.SCSI_BUS_RESET_OCCURRED,
    sense.BUS_DEVICE_RESET_FUNCTION_OCCURRED,
    sense.I_T_NEXUS_LOSS_OCCURRED,
)
_OTHER: Final = len(_RESETS)
_ENDS_ALL: Final = _RESETS[:2]


def _rank(code: SenseCode) -> int:
    return _RESETS.index(code) if code in _RESETS else _OTHER


class UnitAttentions:
    """Ordered by precedence, then by age."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending: list[SenseCode] = []

    def __bool__(self) -> bool:
        return bool(self._pending)

    def pending(self) -> tuple[SenseCode, ...]:
        """In the order in which they will be told."""
        return tuple(self._pending)

    def establish(self, code: SenseCode) -> None:
        """Adds the condition unless it, or a reset that implies it, is pending."""
        if code in self._pending and code not in _ENDS_ALL:
            return
        rank = _rank(code)
        if rank < _OTHER:
            if any(_rank(other) < rank for other in self._pending):
                return
            keep_others = code not in _ENDS_ALL
            self._pending = [other for other in self._pending if keep_others and _rank(other) == _OTHER]
            self._pending.insert(0, code)
        elif len(self._pending) < LIMIT:
            self._pending.append(code)

    def take(self) -> SenseCode | None:
        """Ends and returns the condition that is told first."""
        return self._pending.pop(0) if self._pending else None

    def clear(self, code: SenseCode) -> None:
        if code in self._pending:
            self._pending.remove(code)
