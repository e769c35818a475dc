# SPDX-License-Identifier: Apache-2.0
"""What a fuzzer feeds to login and to text requests, and what must hold whatever that is. `fuzz_login.py` and
`fuzz_text.py` run the fuzzers, their corpora are replayed as ordinary tests. An input is a row of PDUs, each behind its
length in two bytes; of a text request there is its text behind one byte, see `run_text`.

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
from vhost_scsi.iscsi.keys import Offer
from vhost_scsi.iscsi.login import State
from vhost_scsi.iscsi.negotiation import Negotiation
from vhost_scsi.iscsi.pdu import PduError, TextRequest
from vhost_scsi.iscsi.secret import Secret
from vhost_scsi.iscsi.targets import IscsiTarget
from vhost_scsi.iscsi.text import Pair
from vhost_scsi.iscsi.text_exchange import TextExchange, TextRejected

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
    with contextlib.suppress(PduError):
        pdu.parse(data[:48].ljust(48, b"\0"))


FINAL, MORE, OTHER_TAG, CONTINUES, SHORT = 1, 2, 4, 8, 16


def _send_targets(wanted: str) -> list[Pair] | None:
    return {"All": [Pair("TargetName", client.TARGET)] * 100, "": [Pair("TargetName", client.TARGET)]}.get(wanted)


def run_text(data: bytes) -> tuple[int, int]:
    """Feeds one input to the text requests of a connection; how many were answered and how many rejected."""
    piece, transfer_tag, answered, refused = 512, client.NO_TAG, 0, 0
    exchange = TextExchange(Negotiation(Offer()), _send_targets, lambda: piece)
    for raw in split(data):
        flags, text = raw[0] if raw else 0, raw[1:]
        piece = 1 if flags & SHORT else 512
        request = TextRequest(
            final=bool(flags & FINAL),
            more_to_come=bool(flags & MORE),
            initiator_task_tag=8 if flags & OTHER_TAG else 7,
            target_transfer_tag=transfer_tag if flags & CONTINUES else client.NO_TAG,
            data_segment_length=len(text),
        )
        try:
            reply = exchange.receive(request, text)
        except TextRejected:
            refused += 1
            continue
        answered += 1
        transfer_tag = reply.header.target_transfer_tag
        assert len(reply.data) == reply.header.data_segment_length <= 512
        assert not (reply.header.final and reply.header.more_to_come)
        assert not reply.header.final or request.final
        assert (transfer_tag == client.NO_TAG) == reply.header.final
    return answered, refused
