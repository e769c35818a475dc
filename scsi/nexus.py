# SPDX-License-Identifier: Apache-2.0
"""Ports and nexuses: who talks to a logical unit, and what the logical unit keeps for each.

Identity only. How a transport makes a nexus, and how it loses one, is the transport's affair.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from vhost_scsi.scsi import sense, transport_id
from vhost_scsi.scsi.gate import GateBit, GatePort
from vhost_scsi.scsi.reservations import NexusId
from vhost_scsi.scsi.sense import SenseCode
from vhost_scsi.scsi.unit_attention import UnitAttentions

if TYPE_CHECKING:
    from vhost_scsi.scsi.extended_copy import Copies
    from vhost_scsi.scsi.logical_unit import LogicalUnit

Cancel = Callable[[], Awaitable[Iterable["ITL"] | None]]
"""ends what the data plane holds; says which nexuses lost tasks by it"""
CancelOwn = Callable[[bool], Awaitable[Iterable["ITL"] | None]]
"""as Cancel, for one nexus; told that its tasks end as TAS says, because another nexus wants it"""


@dataclass(frozen=True, slots=True)
class InitiatorPort:
    """`name` for people and logs; `transport_id` as SPC-5 7.6.4, made up of the name unless given."""

    name: str
    transport_id: bytes = b""

    def __post_init__(self) -> None:
        if not self.transport_id:
            object.__setattr__(self, "transport_id", transport_id.sas(transport_id.made_up_address(self.name)))


@dataclass(frozen=True, slots=True)
class TargetPort:
    """`luns` gives the LUNs that initiators of this port may see, in any order, read anew for each REPORT LUNS.
    `iscsi_name`: name and portal group ("iqn...,t,0x0001") for an iSCSI port."""

    name: str
    uuid: UUID
    relative_id: int
    luns: Callable[[], Iterable[int]]
    iscsi_name: str | None = None
    group: int = 1
    """the target port group that it belongs to"""

    @property
    def protocol(self) -> transport_id.Protocol:
        return transport_id.Protocol.SAS if self.iscsi_name is None else transport_id.Protocol.ISCSI


@dataclass(slots=True, eq=False)
class Nexus:
    """An I_T nexus; knows the I_T_L nexuses that hang on it. `greeting`: the condition that its first command at a unit
    is told. An initiator that may come and go while we run gets the code that says no more than we know: 29/00."""

    initiator: InitiatorPort
    target_port: TargetPort
    greeting: SenseCode = sense.POWER_ON_OCCURRED
    itls: list[ITL] = field(default_factory=list)

    @property
    def id(self) -> NexusId:
        return NexusId(self.initiator.transport_id, self.target_port.relative_id)

    def luns_changed(self, besides: Collection[ITL] = ()) -> None:
        """SPC-5 6.33: the inventory of the target port's LUNs has changed. Who has never sent a command has no old one.
        `besides`: the LUNs that are new, and say so themselves, or gone."""
        if any(itl.in_use for itl in self.itls):
            for itl in self.itls:
                if itl not in besides:
                    itl.establish(sense.REPORTED_LUNS_DATA_HAS_CHANGED)

    def clear(self, code: SenseCode) -> None:
        """Ends a unit attention condition on every logical unit of this nexus."""
        for itl in self.itls:
            itl.clear(code)


@dataclass(slots=True, eq=False)
class ITL:
    """An I_T_L nexus: the unit attention queue and the gate of one initiator at one logical unit.

    `in_use`: a command has come since it was made, or since its initiator left. The first one always reaches Python: a
    unit attention is pending, or Python answers what passes one. `cancel`: ends what the data plane holds of it.
    """

    logical_unit: LogicalUnit
    nexus: Nexus
    gate: GatePort
    attentions: UnitAttentions = field(default_factory=UnitAttentions)
    in_use: bool = False
    cancel: CancelOwn | None = None
    told: Callable[[SenseCode], None] | None = None
    """the transport's own way of telling the initiator what has changed, beside the unit attention"""
    echo: bytes | None = None
    """what WRITE BUFFER left for READ BUFFER"""
    copies: Copies = field(default_factory=OrderedDict)
    """what RECEIVE COPY RESULTS may ask for"""
    prevents_removal: bool = False
    """PREVENT ALLOW MEDIUM REMOVAL"""
    media_event: int = 0
    """of GET EVENT STATUS NOTIFICATION: what it has not been told yet"""
    feature_change: bool = False
    """likewise, that features are current which were not, or are no more"""

    def establish(self, code: SenseCode) -> None:
        """Establishes a unit attention condition."""
        self.attentions.establish(code)
        self.gate.close(GateBit.UNIT_ATTENTION)
        if self.told is not None:
            self.told(code)

    def take(self) -> SenseCode | None:
        """Ends the condition that is told first, and opens the gate after the last."""
        code = self.attentions.take()
        if code is not None:
            self._settle()
        if code == sense.REPORTED_LUNS_DATA_HAS_CHANGED:
            # It is about the target port, not about one unit: once for the nexus, however many LUNs there are.
            self.nexus.clear(code)
        return code

    def peek(self) -> SenseCode | None:
        """The condition that is told first; it stays."""
        return next(iter(self.attentions.pending()), None)

    def lost(self) -> None:
        """SAM-5 6.3.4, for a nexus whose tasks have ended: should it come back it learns of it."""
        if self.prevents_removal and self.logical_unit.drive is not None:
            self.prevents_removal = False
            self.logical_unit.drive.keep_soon()
        self.logical_unit.contingencies.clear(self)
        self.establish(sense.I_T_NEXUS_LOSS_OCCURRED)

    def clear(self, code: SenseCode) -> None:
        if code in self.attentions.pending():
            self.attentions.clear(code)
            self._settle()

    def _settle(self) -> None:
        if not self.attentions:
            self.gate.open(GateBit.UNIT_ATTENTION)
