# SPDX-License-Identifier: Apache-2.0
"""Which function serves a row that has no media operation, and what it is given.

A handler returns its data-in, whole; the allocation length is applied here, once for all. It raises CheckCondition
to end in CHECK CONDITION. A handler that must wait for the data plane returns a coroutine instead: the logical unit
then runs it alone, with everything else held and nothing in flight; or `InTurn`, and nothing else is held. What takes
long returns `Alongside`: other commands go on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vhost_scsi.scsi import sense
from vhost_scsi.scsi.commands import Command
from vhost_scsi.scsi.sense import CheckCondition, FieldPointer
from vhost_scsi.scsi.task import Execute, Task

if TYPE_CHECKING:
    from vhost_scsi.scsi.logical_unit import LogicalUnit
    from vhost_scsi.scsi.nexus import ITL

Exclusive = Coroutine[Any, Any, bytes | Execute]
"""gives data-in; or a media command that C may run now"""


@dataclass(frozen=True, slots=True)
class InTurn:
    """Work that waits, one after the other with what takes the same lock, while every other command goes on."""

    turn: asyncio.Lock
    work: Exclusive


@dataclass(frozen=True, slots=True)
class Alongside:
    """Work beside other commands. When its command is aborted it is cancelled, and has ended before anybody is told so;
    work that `goes_on` is not: its command ends without it (SANITIZE, SBC-4 5.30)."""

    work: Exclusive
    goes_on: bool = False


Handler = Callable[["Request"], bytes | Exclusive | InTurn | Alongside]

HANDLERS: dict[str, Handler] = {}


@dataclass(frozen=True, slots=True)
class Request:
    """A checked command: the CDB has the row's length and no bit that the row does not use."""

    logical_unit: LogicalUnit
    itl: ITL
    row: Command
    task: Task

    def __getitem__(self, name: str) -> int:
        """The value of a CDB field, by the row's name for it."""
        return self.row.value(self.row[name], self.task.cdb)

    def refuse(self, name: str) -> CheckCondition:
        """INVALID FIELD IN CDB, pointing at the field's first byte and most significant bit."""
        field = self.row[name]
        return sense.invalid_cdb_field(field.byte, field.first_bit)

    def parameter_list(self, name: str = "parameter_list_length") -> bytes:
        """The parameter list, as long as the CDB says; PARAMETER LIST LENGTH ERROR when the data-out is shorter."""
        length = self[name]
        if len(self.task.data_out) < length:
            pointer = FieldPointer(True, self.row[name].byte)
            raise CheckCondition(sense.PARAMETER_LIST_LENGTH_ERROR, field=pointer)
        return self.task.data_out[:length]

    def truncate(self, data: bytes) -> bytes:
        """SPC-5 4.2.5.6: data-in ends at the allocation length; that is no error."""
        field = self.row.field("allocation_length")
        return data if field is None else data[: self.row.value(field, self.task.cdb)]


def handles(name: str) -> Callable[[Handler], Handler]:
    """Registers a handler under the name by which rows know it."""

    def register(handler: Handler) -> Handler:
        if name in HANDLERS:
            raise ValueError(f"two handlers are called {name}")
        HANDLERS[name] = handler
        return handler

    return register
