# SPDX-License-Identifier: Apache-2.0
"""The monitor connection when the other side misbehaves."""

from __future__ import annotations

import socket

import pytest

from vhost_scsi.qemu import QemuError
from vhost_scsi.qemu.qmp import Qmp, QmpClosed


def connection(answer: bytes) -> tuple[Qmp, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.sendall(answer)
    return Qmp(ours), theirs


def test_an_answer_in_pieces_between_events_is_found() -> None:
    qmp, peer = connection(b'{"event": "STOP"}\n{"return": {"a"')
    with peer:
        peer.sendall(b': 1}, "id": 1}\n{"event": "LATE", "data": {"x": 2}}\n')
        assert qmp.execute("query", name="value") == {"a": 1}
        assert b'"arguments": {"name": "value"}' in peer.recv(1000)
        assert qmp.wait_event("LATE", 5)["data"] == {"x": 2}
        assert qmp.events[0]["event"] == "STOP"
    qmp.close()


def test_a_closed_connection_is_told_from_a_refusal() -> None:
    qmp, peer = connection(b"")
    peer.shutdown(socket.SHUT_WR)
    with pytest.raises(QmpClosed, match="no answer to stop"):
        qmp.execute("stop")
    peer.close()
    with pytest.raises(QmpClosed):
        qmp.execute("stop")
    qmp.close()


def test_what_is_no_object_is_refused() -> None:
    qmp, peer = connection(b"[1]\n")
    with peer, pytest.raises(QemuError, match="no object"):
        qmp.execute("stop")
    qmp.close()


def test_an_event_that_comes_while_others_are_waited_for_is_kept() -> None:
    qmp, peer = connection(b'{"event": "A"}\n{"event": "B"}\n')
    with peer:
        assert qmp.wait_event("B", 5)["event"] == "B"
        assert qmp.wait_event("A", 0)["event"] == "A"
    qmp.close()
