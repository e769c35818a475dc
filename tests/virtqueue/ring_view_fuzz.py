# SPDX-License-Identifier: Apache-2.0
"""One input of the inspector's fuzz target: a ring of any bytes, looked at in every way that `queue show`, `check` and
`request list` do. Nothing may be raised, nothing may take longer than its budget, and all must fit into JSON.

The first byte chooses the layout and features, the next ones where the device stands; the rest is the guest's memory.
"""

from __future__ import annotations

import json

from vhost_scsi.daemon.queues import finding_row, header_row, ring_view
from vhost_scsi.vhost_user.device import QueueStatus
from vhost_scsi.vhost_user.ring_reader import RingLook, read_headers
from vhost_scsi.virtqueue.findings import findings
from vhost_scsi.virtqueue.layout import RingAddresses
from vhost_scsi.virtqueue.memory import GuestMemory, Region
from vhost_scsi.virtqueue.rings import DeviceStands, Ring, look

SIZE = 16
BASE = 0x1000
BYTES = 4096
HEAD = 8
BUDGET = 2000
"""descriptors: a ring of 16 that is walked without end would need more"""

STATUS = QueueStatus(
    *(2, "request 0", True, True, False, False, None, SIZE, "split", [], 0, 0, 0, None, None, 0, 0, 0, 0, 0, 0, 0, 0)
)


def one_input(data: bytes) -> None:
    data = data[: HEAD + BYTES].ljust(HEAD, b"\0")
    choice = data[0]
    avail, used = (int.from_bytes(data[at : at + 2], "little") for at in (1, 3))
    memory = GuestMemory([Region.of(BASE, bytearray(data[HEAD:].ljust(BYTES, b"\0")))])
    packed = bool(choice & 1)
    # Sometimes outside the memory, sometimes not aligned.
    shift = (0, 0, 0, 0, 0, 0, 1, BYTES)[choice >> 5]
    ring = Ring(
        RingAddresses(SIZE, BASE + shift, BASE + 0x100, BASE + 0x200),
        packed,
        event_idx=bool(choice & 2),
        indirect=bool(choice & 4),
    )
    in_flight = [byte % (SIZE + 2) for byte in data[5:7]] if choice & 8 else []
    snapshot = look(memory, ring, DeviceStands(avail, used, in_flight), BUDGET)
    headers = read_headers(memory, snapshot.chains)
    seen = RingLook(snapshot, headers, ring.event_idx)
    settled = set(in_flight) if choice & 16 else None
    rows: list[object] = [ring_view(seen, STATUS, settled, tables=True)]
    rows += [finding_row(finding) for finding in findings(snapshot, settled)]
    for queue in (0, 2):
        rows += [
            header_row("port", queue, chain, headers[chain.head], {})
            for chain in snapshot.chains
            if chain.head in headers
        ]
    json.dumps(rows)
    assert sum(len(chain.descriptors) for chain in snapshot.chains) <= BUDGET
