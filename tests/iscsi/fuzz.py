# SPDX-License-Identifier: Apache-2.0
"""What a fuzzer feeds to login, and what must hold whatever that is. `fuzz_login.py` runs the fuzzer, the corpus is
replayed as ordinary tests. An input is a row of PDUs, each behind its length in two bytes.

Whatever comes in, a login answers with whole PDUs, ends, and nobody gets past CHAP.
"""

from __future__ import annotations

import contextlib

from tests.iscsi import client
from tests.iscsi.rig import login_to, make_node
from vhost_scsi.iscsi import pdu
from vhost_scsi.iscsi.auth import AuthPolicy, ChapUser
from vhost_scsi.iscsi.chap import Algorithm
from vhost_scsi.iscsi.full_feature import SessionKeys
from vhost_scsi.iscsi.login import State
from vhost_scsi.iscsi.pdu import PduError
from vhost_scsi.iscsi.secret import Secret
from vhost_scsi.iscsi.targets import IscsiTarget

CHAP_TARGET = client.TARGET + ":chap"
_MUTUAL = ChapUser("target", Secret(b"secret-of-the-target"))
_AUTH = AuthPolicy((ChapUser("host", Secret(b"secret-of-initiator")),), _MUTUAL, tuple(Algorithm))
NODE = make_node(IscsiTarget(client.TARGET), IscsiTarget(CHAP_TARGET, auth=_AUTH))


def split(data: bytes) -> list[bytes]:
    requests = []
    while len(data) > 2:
        length = int.from_bytes(data[:2], "big")
        requests.append(data[2 : 2 + length])
        data = data[2 + length :]
    return requests


def join(*requests: bytes) -> bytes:
    return b"".join(len(each).to_bytes(2, "big") + each for each in requests)


def run(data: bytes) -> State:
    """Feeds one input to a login; returns the state it is left in."""
    login, state, stat_sn = login_to(NODE), State.CONTINUE, 1
    try:
        for raw in split(data):
            bhs, rest = raw[:48].ljust(48, b"\0"), raw[48:]
            wanted = login.to_read(bhs)
            reply = login.receive(bhs, None if wanted is None else rest[:wanted].ljust(wanted, b"\0"))
            state = reply.state
            if reply.response:
                response = client.split(reply.response)
                assert response.opcode == client.LOGIN_RESPONSE
                assert (response.status == (0, 0)) == (state is State.CONTINUE)
                assert response.stat_sn == stat_sn
                assert len(response.data) <= 8192
                stat_sn += 1
            if state is State.COMMIT:
                assert login.negotiation is not None
                assert login.admitted is not None
                assert login.user is not None or login.admitted.target != NODE.targets[CHAP_TARGET]
                SessionKeys.of(login.negotiation.values)
                assert client.split(login.finish(1)).transit
            if state is not State.CONTINUE:
                break
    finally:
        login.close()
    assert len(NODE.challenges) == 0
    return state


def one_input(data: bytes) -> None:
    run(data)
    with contextlib.suppress(PduError):
        pdu.parse_ahs(data)
