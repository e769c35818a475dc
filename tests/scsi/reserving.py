# SPDX-License-Identifier: Apache-2.0
"""Parameter lists of PERSISTENT RESERVE OUT, and a unit that four initiators reach over two transports."""

import asyncio
from uuid import UUID

from tests.scsi.conftest import PORT_UUID, Rig
from vhost_scsi.scsi import transport_id
from vhost_scsi.scsi.nexus import InitiatorPort, Nexus, TargetPort

NAME = "iqn.2026-11.invalid.test:host-a"
PORTAL = "iqn.2026-11.invalid.test:disk,t,0x0001"


def basic(key=0, new_key=0, *, spec_i_pt=False, all_tg_pt=False, aptpl=False, initiators=()):
    data = key.to_bytes(8) + new_key.to_bytes(8) + bytes(4)
    data += bytes([spec_i_pt << 3 | all_tg_pt << 2 | aptpl, 0, 0, 0])
    if spec_i_pt:
        listed = b"".join(initiators)
        data += len(listed).to_bytes(4) + listed
    return data


def moving(key, new_key, port, initiator, *, unregister=False, aptpl=False):
    head = key.to_bytes(8) + new_key.to_bytes(8) + bytes([0, unregister << 1 | aptpl])
    return head + port.to_bytes(2) + len(initiator).to_bytes(4) + initiator


class Cluster:
    """`a` and `b` are ports of iSCSI hosts at one portal group, `c` and `d` virtual machines at ports of their own."""

    def __init__(self, loop=None, saved=None):
        self.loop = loop or asyncio.new_event_loop()
        self.rig = Rig(self.loop, **({"saved": saved} if saved else {}))
        unit = self.rig.unit
        self.run(unit.detach(self.rig.itl))
        ports = [TargetPort(PORTAL, PORT_UUID, 1, tuple, iscsi_name=PORTAL)]
        ports += [TargetPort(f"vm{number}:0", UUID(int=number), number, tuple) for number in (2, 3)]
        unit.target_ports = lambda: ports
        self.ports = ports
        initiators = {
            "a": InitiatorPort("a", transport_id.iscsi(NAME, 0x80_0000_0001)),
            "b": InitiatorPort("b", transport_id.iscsi(NAME.replace("-a", "-b"), 0x80_0000_0002)),
            "c": InitiatorPort("c"),
            "d": InitiatorPort("d"),
        }
        at = {"a": 0, "b": 0, "c": 1, "d": 2}
        self.itls = {name: self.rig.attach(Nexus(port, ports[at[name]])) for name, port in initiators.items()}
        for name in self.itls:
            self.attentions(name)

    def run(self, awaitable):
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, 5))

    def attentions(self, name):
        """Takes what the nexus would be told."""
        found = []
        while code := self.itls[name].take():
            found.append(code)
        return found

    def outcome(self, name, command, **given):
        return self.rig.outcome(command, itl=self.itls[name], **given)

    def out(self, name, action, data, kind=0, **given):
        """The outcome of PERSISTENT RESERVE OUT."""
        command = f"PERSISTENT RESERVE OUT, {action}"
        return self.outcome(name, command, type=kind, parameter_list_length=len(data), data_out=data, **given)

    def id(self, name):
        return self.itls[name].nexus.id

    @property
    def state(self):
        return self.rig.unit.reservations.state

    def reset(self):
        self.run(self.rig.unit.logical_unit_reset())

    def close(self):
        self.loop.close()
