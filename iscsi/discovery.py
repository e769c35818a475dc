# SPDX-License-Identifier: Apache-2.0
"""SendTargets (RFC 7143, appendix C): which targets an initiator is told of, and at which addresses.

Each sees the targets it may log in to, at the portals of their portal groups.
"""

from __future__ import annotations

from vhost_scsi.iscsi import names
from vhost_scsi.iscsi.node import Node
from vhost_scsi.iscsi.portals import bracketed, plain_address, target_addresses
from vhost_scsi.iscsi.sessions import Connection
from vhost_scsi.iscsi.targets import IscsiTarget
from vhost_scsi.iscsi.text import Pair


def send_targets(node: Node, connection: Connection, wanted: str) -> list[Pair] | None:
    """The answer to SendTargets=`wanted`; None where that may not be asked in this session."""
    session = connection.session
    visible = node.visible_to(session.key[0], plain_address(session.address))
    if wanted == "All":
        # C: "All" in discovery sessions only.
        chosen = visible if session.target is None else None
    elif wanted == "":
        # C: the target of this session, which a discovery session does not have.
        chosen = None if session.target is None else [each for each in visible if each.name == session.target_name]
    else:
        name = names.normalised(wanted)
        # In a normal session only its own target may be asked for; others are as if they were not there.
        here = session.target is None or name == session.target_name
        chosen = [each for each in visible if each.name == name and here]
    if chosen is None:
        return None
    return [pair for target in chosen for pair in _record(node, target, connection.local)]


def _record(node: Node, target: IscsiTarget, local: tuple[str, int]) -> list[Pair]:
    """The address that this connection came in by stands first: it is known to work."""
    came_in_by = (plain_address(local[0]), local[1])
    told = [
        address
        for portal in node.portals
        if portal.tag in target.portal_groups
        for address in target_addresses(portal, node.book.addresses, came_in_by)
    ]
    here = f"{bracketed(str(came_in_by[0]))}:{came_in_by[1]},"
    told.sort(key=lambda address: not address.startswith(here))
    return [Pair("TargetName", target.name), *(Pair("TargetAddress", each) for each in dict.fromkeys(told))]
