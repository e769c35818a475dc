# SPDX-License-Identifier: Apache-2.0
"""Text requests of full-feature phase (RFC 7143, 6.4, 11.10 and 11.11) on one connection, without I/O.

One negotiation at a time; a new one ends the old. It cuts and joins long texts; which pairs answer which stands in
`negotiation.py`, and what SendTargets tells in `discovery.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from vhost_scsi.iscsi.codes import RESERVED_TAG, RejectReason
from vhost_scsi.iscsi.keys import Phase, longest
from vhost_scsi.iscsi.negotiation import Negotiation, NegotiationError
from vhost_scsi.iscsi.pdu import TextRequest, TextResponse
from vhost_scsi.iscsi.text import Assembler, Pair, TextError, build, parse, pieces

MAX_REQUESTS: Final = 64  # of one negotiation; what goes on for longer is reset
SendTargets: TypeAlias = Callable[[str], list[Pair] | None]


class TextRejected(Exception):
    """The request is answered with a Reject, and the negotiation is reset; the text is for people."""

    def __init__(self, why: str, reason: RejectReason = RejectReason.PROTOCOL_ERROR) -> None:
        super().__init__(why)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TextReply:
    header: TextResponse
    data: bytes
    rejected: tuple[Pair, ...] = ()
    """what was answered with key=Reject, for people"""


class TextExchange:
    """`piece_size` gives the data segment that the initiator takes at this moment."""

    def __init__(self, negotiation: Negotiation, send_targets: SendTargets, piece_size: Callable[[], int]) -> None:
        self._negotiation = negotiation
        self._send_targets = send_targets
        self._piece_size = piece_size
        self._text = Assembler()
        self._pieces: list[bytes] = []
        self._task_tag = RESERVED_TAG
        self._transfer_tag = RESERVED_TAG
        self._next_transfer_tag = 1
        self._requests = 0

    def receive(self, request: TextRequest, data: bytes) -> TextReply:
        """Raises TextRejected."""
        try:
            return self._receive(request, data)
        except (NegotiationError, TextError) as error:
            self.reset()
            raise TextRejected(str(error)) from None
        except TextRejected:
            self.reset()
            raise

    def reset(self) -> None:
        self._text.clear()
        self._pieces = []
        self._task_tag = self._transfer_tag = RESERVED_TAG
        self._requests = 0
        self._negotiation.restart()

    def _receive(self, request: TextRequest, data: bytes) -> TextReply:
        if request.final and request.more_to_come:
            raise TextRejected("the F and the C bit are both set")
        if request.target_transfer_tag == RESERVED_TAG:
            # 11.10.4: a new negotiation; one that was going on is forgotten.
            self.reset()
            self._begin(request)
        elif (request.initiator_task_tag, request.target_transfer_tag) != (self._task_tag, self._transfer_tag):
            raise TextRejected("a text request continues what is not going on", RejectReason.INVALID_PDU_FIELD)
        self._requests += 1
        if self._requests > MAX_REQUESTS:
            raise TextRejected(f"no end after {MAX_REQUESTS} text requests", RejectReason.OUT_OF_RESOURCES)
        if self._pieces:
            if data:
                raise TextRejected("text came while the target's own had not ended")
            return self._next_piece(request)
        whole = self._text.add(data, request.more_to_come)
        if whole is None:
            return TextReply(self._header(request, b"", final=False), b"")
        answers = self._negotiation.receive(parse(whole, longest), Phase.FULL_FEATURE)
        told, rejected = list(answers.pairs), list(answers.rejected)
        if answers.send_targets is not None:
            targets = self._send_targets(answers.send_targets)
            if targets is None:
                rejected.append(Pair("SendTargets", answers.send_targets))
                targets = [Pair("SendTargets", "Reject")]
            told += targets
        self._pieces = pieces(build(told), self._piece_size())
        return self._next_piece(request, tuple(rejected))

    def _begin(self, request: TextRequest) -> None:
        self._task_tag = request.initiator_task_tag
        self._transfer_tag = self._next_transfer_tag
        self._next_transfer_tag = self._next_transfer_tag % (RESERVED_TAG - 1) + 1

    def _next_piece(self, request: TextRequest, rejected: tuple[Pair, ...] = ()) -> TextReply:
        piece = self._pieces.pop(0)
        if self._pieces:
            header = self._header(request, piece, final=False, more_to_come=True)
        else:
            # 11.11.1: F answers F; a target that has said everything does not end what the initiator goes on with.
            header = self._header(request, piece, final=request.final)
            if request.final:
                self.reset()
        return TextReply(header, piece, rejected)

    def _header(self, request: TextRequest, data: bytes, *, final: bool, more_to_come: bool = False) -> TextResponse:
        return TextResponse(
            final=final,
            more_to_come=more_to_come,
            lun=request.lun,
            initiator_task_tag=request.initiator_task_tag,
            target_transfer_tag=RESERVED_TAG if final else self._transfer_tag,
            data_segment_length=len(data),
        )
