# SPDX-License-Identifier: Apache-2.0
"""Whether a logical unit is ready, and if not, why: stopped, busy with an operation that takes the whole medium, or
left behind by one that failed. And its power condition, which keeps it from nothing but is told on request.

It decides and tells; the operations themselves are `formatting`, the command that starts and stops is `power`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.command import Command
from vhost_scsi.scsi.gate import GateBit, GatePort
from vhost_scsi.scsi.sense import CheckCondition, Sense, SenseCode

PARTS: Final = 65536
"""SPC-5 4.4.2.4.4: the denominator of PROGRESS INDICATION"""


class Power(Enum):
    """SPC-5 5.13. Each but ACTIVE with what REQUEST SENSE says of it."""

    ACTIVE = None
    IDLE_A = sense.IDLE_CONDITION_ACTIVATED_BY_COMMAND
    IDLE_B = sense.IDLE_B_CONDITION_ACTIVATED_BY_COMMAND
    IDLE_C = sense.IDLE_C_CONDITION_ACTIVATED_BY_COMMAND
    STANDBY_Z = sense.STANDBY_CONDITION_ACTIVATED_BY_COMMAND
    STANDBY_Y = sense.STANDBY_Y_CONDITION_ACTIVATED_BY_COMMAND


@dataclass(slots=True, eq=False)
class Operation:
    """Something that takes the whole medium. `code`: why other commands are refused meanwhile."""

    code: SenseCode
    total: int
    done: int = 0

    @property
    def progress(self) -> int:
        return min(self.done * PARTS // max(self.total, 1), PARTS - 1)


class Readiness:
    """Keeps the NOT_READY bit of the unit's gate. `accesses` counts what was done to the medium: an access makes the
    unit active again (SPC-5 5.13.4), in C, where nobody thinks of power conditions."""

    def __init__(self, gate: GatePort, accesses: Callable[[], int]) -> None:
        self._gate = gate
        self._accesses = accesses
        self._stopped = False
        self._operation: Operation | None = None
        self._failure: SenseCode | None = None
        self._may_leave = False
        self._power = Power.ACTIVE
        self._power_since = 0
        self.stops = 0
        """how often the unit was stopped"""

    @property
    def stopped(self) -> bool:
        return self._stopped

    @property
    def operation(self) -> Operation | None:
        return self._operation

    @property
    def failure(self) -> SenseCode | None:
        """What an operation that failed has left behind."""
        return self._failure

    @property
    def as_new(self) -> bool:
        return not self._stopped and self.power is Power.ACTIVE

    @property
    def power(self) -> Power:
        if self._power is not Power.ACTIVE and self._accesses() != self._power_since:
            self._power = Power.ACTIVE
        return self._power

    def set_power(self, power: Power) -> None:
        """A power condition other than stopped; ends that."""
        self._power = power
        self._power_since = self._accesses()
        self.set_stopped(False)

    def set_stopped(self, stopped: bool) -> None:
        self.stops += stopped and not self._stopped
        self._stopped = stopped
        if stopped:
            self._power = Power.ACTIVE
        self._show()

    def begin(self, operation: Operation) -> None:
        """Under a hold. Raises CheckCondition when another is under way."""
        if self._operation is not None:
            raise CheckCondition(self._operation.code, progress=self._operation.progress)
        self._operation = operation
        self._show()

    def end(self, failure: SenseCode | None = None, *, may_leave: bool = False) -> None:
        """The operation is over; `failure`: the medium cannot be used until another one succeeds, or until somebody
        asks for it where `may_leave` says that this is enough."""
        self._operation = None
        self._failure = failure
        self._may_leave = may_leave
        self._show()

    def leave_failure(self) -> None:
        """SANITIZE with EXIT FAILURE MODE (SBC-4 5.30.5)."""
        if self._failure is not None and not self._may_leave:
            raise CheckCondition(self._failure)
        self.end()

    def _show(self) -> None:
        if self._stopped or self._operation is not None or self._failure is not None:
            self._gate.close(GateBit.NOT_READY)
        else:
            self._gate.open(GateBit.NOT_READY)

    def check_operation(self, row: Command) -> None:
        """Raises CheckCondition while the medium is taken, before anybody looks at the CDB. What tells no unit
        attentions (INQUIRY, REPORT LUNS, REQUEST SENSE) is answered even so (SBC-4 5.4, 5.30)."""
        if self._operation is not None and row.gate_mask & GateBit.UNIT_ATTENTION:
            raise CheckCondition(self._operation.code, progress=self._operation.progress)

    def check(self, row: Command) -> None:
        """Raises CheckCondition when the unit is not ready for the command."""
        if not row.gate_mask & GateBit.NOT_READY:
            return
        if self._failure is not None and not row.may_repair:
            raise CheckCondition(self._failure)
        if self._stopped:
            raise CheckCondition(sense.LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED)

    def sense(self) -> Sense:
        """What REQUEST SENSE says when nothing else is to be told."""
        if self._operation is not None:
            return Sense(self._operation.code, progress=self._operation.progress)
        if self._failure is not None:
            return Sense(self._failure)
        if self._stopped:
            return Sense(sense.LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED)
        power = self.power
        return Sense(power.value if power.value is not None else sense.NO_ADDITIONAL_SENSE_INFORMATION)
