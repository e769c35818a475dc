# SPDX-License-Identifier: Apache-2.0
"""The login phase of one connection (RFC 7143, 6.3), without I/O: a Login Request goes in, a Login Response comes out.

It follows stages and text, and asks an `Admission` who may come in. When a request ends the login it says so and waits:
whoever drives it makes the session and then calls `finish` or `refuse`. Every refusal carries a sentence for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Protocol

from vhost_scsi.iscsi.auth import Authenticator, AuthPolicy, OpenChallenges
from vhost_scsi.iscsi.codes import VERSION, LoginStatus, Opcode, Stage
from vhost_scsi.iscsi.keys import Offer, Phase, Values, longest
from vhost_scsi.iscsi.negotiation import Answers, Negotiation, NegotiationError
from vhost_scsi.iscsi.pdu import LoginRequest, LoginResponse, opcode_of, padding, sizes
from vhost_scsi.iscsi.targets import IscsiTarget
from vhost_scsi.iscsi.text import Assembler, Pair, TextError, build, parse, pieces

MAX_SEGMENT: Final = 8192  # 13.12: the default, which is what holds during login, for both sides
MAX_REQUESTS: Final = 64  # a login takes two to six; one that goes in circles ends here
_PHASES: Final = {Stage.SECURITY: Phase.SECURITY, Stage.OPERATIONAL: Phase.OPERATIONAL}


class LoginRefused(Exception):
    """The login ends with `status`; the text is for people here, `pairs` are told to the initiator."""

    def __init__(self, status: LoginStatus, why: str, pairs: tuple[Pair, ...] = ()) -> None:
        super().__init__(why)
        self.status = status
        self.pairs = pairs


@dataclass(frozen=True, slots=True)
class Asks:
    """What a connection's first request wants. Names as given; `target` is None in a discovery session."""

    initiator: str
    target: str | None
    isid: int
    tsih: int
    cid: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who may go on. `session_values` and `window` (ExpCmdSN, MaxCmdSN) are those of the session that a connection is
    added to; None for a new session. `queue_depth` is a new session's window."""

    initiator: str  # normalised
    target: IscsiTarget | None
    portal_group_tag: int
    luns: Mapping[int, str]
    auth: AuthPolicy
    offer: Offer
    queue_depth: int
    session_values: Values | None = None
    window: tuple[int, int] | None = None


class Admission(Protocol):
    def admit(self, asks: Asks) -> Admitted:
        """Raises LoginRefused."""
        ...


class State(Enum):
    CONTINUE = auto()  # send the response, wait for the next request
    COMMIT = auto()  # nothing to send yet: make the session, then `finish` or `refuse`
    REFUSED = auto()  # send the response if there is one, then close


@dataclass(frozen=True, slots=True)
class Reply:
    """`response` is a whole PDU, empty if nothing is sent. `refused` says why, with State.REFUSED only."""

    state: State
    response: bytes = b""
    refused: LoginRefused | None = None


class Login:
    """One connection's. `stat_sn` is the number of the first response."""

    def __init__(self, admission: Admission, challenges: OpenChallenges, stat_sn: int = 1) -> None:
        self._admission = admission
        self._challenges = challenges
        self._stat_sn = stat_sn
        self._first: LoginRequest | None = None
        self._last: LoginRequest | None = None
        self._requests = 0
        self._stage = Stage.SECURITY
        self._text = Assembler()
        self._answer_pieces: list[bytes] = []
        self._auth: Authenticator | None = None
        self._declared_stage: set[Stage] = set()
        self.asks: Asks | None = None
        self.admitted: Admitted | None = None
        self.negotiation: Negotiation | None = None
        self.rejected: list[Pair] = []
        """what the initiator offered and we answered with Reject, for people"""

    # ---- what the driver sees --------------------------------------------------------------------------------------

    @property
    def request(self) -> LoginRequest:
        """The first one; there is one once a reply was COMMIT."""
        assert self._first is not None
        return self._first

    @property
    def next_stat_sn(self) -> int:
        return self._stat_sn

    @property
    def user(self) -> str | None:
        return None if self._auth is None else self._auth.user

    @property
    def unanswered_proof(self) -> str | None:
        return None if self._auth is None else self._auth.unanswered_proof

    @staticmethod
    def to_read(bhs: bytes) -> int | None:
        """How many bytes of data segment and padding to read behind this header before `receive` is called; None where
        the header alone decides, because it announces what no login has."""
        announced = sizes(bhs)
        if opcode_of(bhs) != Opcode.LOGIN_REQUEST or announced.ahs or announced.data > MAX_SEGMENT:
            return None
        return announced.data + announced.padding

    def receive(self, bhs: bytes, data: bytes | None) -> Reply:
        """One PDU: its header and what `to_read` asked for."""
        if self._auth is not None:
            self._auth.unanswered_proof = None
        try:
            return self._receive(bhs, data or b"")
        except LoginRefused as refused:
            return self._refuse(refused)
        except NegotiationError as error:
            return self._refuse(LoginRefused(error.status, str(error)))
        except TextError as error:
            return self._refuse(LoginRefused(LoginStatus.INITIATOR_ERROR, str(error)))

    def finish(self, tsih: int) -> bytes:
        """The final Login Response: the session exists, full-feature phase begins."""
        assert self._last is not None
        return self._respond(self._last, self._answer_pieces.pop(0), tsih=tsih, transit=True)

    def refuse(self, status: LoginStatus, why: str) -> Reply:
        """Ends the login for a reason that its driver knows: time, resources, an error of ours."""
        return self._refuse(LoginRefused(status, why))

    def close(self) -> None:
        """The login has ended, however it did."""
        if self._auth is not None:
            self._auth.close()

    # ---- one request -----------------------------------------------------------------------------------------------

    def _receive(self, bhs: bytes, data: bytes) -> Reply:
        if opcode_of(bhs) != Opcode.LOGIN_REQUEST:
            if self._first is None:
                # 6.3: what does not begin with a Login Request is not answered, it may not be iSCSI at all.
                why = LoginRefused(LoginStatus.INVALID_DURING_LOGIN, "the connection does not begin with a login")
                return Reply(State.REFUSED, b"", why)
            raise LoginRefused(
                LoginStatus.INVALID_DURING_LOGIN, f"opcode {opcode_of(bhs):#04x} came before the login had ended"
            )
        request = LoginRequest.from_bytes(bhs)
        self._last = request
        self._check_request(request)
        data = data[: request.data_segment_length]
        if self._answer_pieces:
            if data:
                raise _wrong("text came while the target's own had not ended")
            return self._next_piece(request)
        whole = self._text.add(data, request.more_to_come)
        if whole is None:
            return Reply(State.CONTINUE, self._respond(request, b""))
        answers = self._answers(parse(whole, longest))
        self._answer_pieces = pieces(build(answers), MAX_SEGMENT)
        return self._next_piece(request)

    def _check_request(self, request: LoginRequest) -> None:
        if request.version_min > VERSION:
            raise LoginRefused(
                LoginStatus.UNSUPPORTED_VERSION,
                f"version {request.version_min} at least is asked for, this is {VERSION}",
            )
        if not request.immediate:
            raise _wrong("a Login Request is not marked immediate")
        if request.total_ahs_length:
            raise _wrong("a Login Request has additional header segments")
        if request.data_segment_length > MAX_SEGMENT:
            length = request.data_segment_length
            raise _wrong(f"a data segment of {length} bytes: {MAX_SEGMENT} are allowed during login")
        self._requests += 1
        if self._requests > MAX_REQUESTS:
            raise _wrong(f"no end after {MAX_REQUESTS} requests")
        if self._first is None:
            self._first = request
            if request.current_stage not in (Stage.SECURITY, Stage.OPERATIONAL):
                raise _wrong(f"login cannot begin in stage {request.current_stage}")
            self._stage = Stage(request.current_stage)
        else:
            self._check_same(self._first, request)
        if request.current_stage != self._stage:
            raise _wrong(f"stage {request.current_stage}, but the login is in stage {self._stage.value}")
        if request.transit:
            if request.more_to_come:
                raise _wrong("the T and the C bit are both set")
            if request.next_stage not in (Stage.OPERATIONAL, Stage.FULL_FEATURE):
                raise _wrong(f"there is no stage {request.next_stage} to go to")
            if request.next_stage <= self._stage:
                raise _wrong(f"from stage {self._stage.value} nothing leads to stage {request.next_stage}")

    @staticmethod
    def _check_same(first: LoginRequest, request: LoginRequest) -> None:
        # 11.12.5 to 11.12.7: what names the connection stays the same through the login.
        for name in ("isid", "tsih", "cid", "initiator_task_tag"):
            if getattr(first, name) != getattr(request, name):
                raise _wrong(f"{name} changed during login")

    # ---- text ------------------------------------------------------------------------------------------------------

    def _answers(self, pairs: list[Pair]) -> list[Pair]:
        first_text = self.negotiation is None
        if first_text:
            self._admit(pairs)
        assert self.negotiation is not None
        assert self._auth is not None
        answers: Answers = self.negotiation.receive(pairs, _PHASES[self._stage])
        self.rejected += answers.rejected
        told = self._declarations(first_text)
        told += self._auth.receive(answers.authentication)
        return told + answers.pairs

    def _admit(self, pairs: list[Pair]) -> None:
        """Who asks for what: the names stand in the first text of each connection (13.4, 13.5)."""
        assert self._first is not None
        request = self._first
        said = dict(reversed(pairs))
        if "InitiatorName" not in said:
            raise LoginRefused(LoginStatus.MISSING_PARAMETER, "InitiatorName is missing from the first request")
        session_type = said.get("SessionType", "Normal")
        discovery = session_type == "Discovery"
        if session_type not in ("Normal", "Discovery"):
            raise LoginRefused(LoginStatus.SESSION_TYPE_NOT_SUPPORTED, "SessionType is neither Normal nor Discovery")
        if not discovery and "TargetName" not in said:
            raise LoginRefused(LoginStatus.MISSING_PARAMETER, "TargetName is missing from the first request")
        target = None if discovery else said["TargetName"]
        self.asks = Asks(said["InitiatorName"], target, request.isid, request.tsih, request.cid)
        admitted = self._admission.admit(self.asks)
        if self._stage is Stage.OPERATIONAL and admitted.auth.required:
            # 6.3.2: whoever passes the security stage over offers no authentication.
            raise LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, "CHAP is required, and the initiator passes it over")
        self.admitted = admitted
        self.negotiation = Negotiation(admitted.offer)
        if admitted.session_values is not None:
            self.negotiation.join(admitted.session_values)
        self._auth = Authenticator(admitted.auth, self._challenges)

    def _declarations(self, first_text: bool) -> list[Pair]:
        """What the target says without being asked."""
        assert self.negotiation is not None
        assert self.admitted is not None
        told = []
        target = self.admitted.target
        if first_text and target is not None:
            # 13.9: in the first response.
            told.append(Pair("TargetPortalGroupTag", str(self.admitted.portal_group_tag)))
            if target.alias:
                told.append(Pair("TargetAlias", target.alias))
        if self._stage not in self._declared_stage:
            self._declared_stage.add(self._stage)
            if self._stage is Stage.OPERATIONAL:
                length = self.admitted.offer.max_recv_data_segment_length
                told.append(Pair("MaxRecvDataSegmentLength", str(length)))
        return [self.negotiation.declare(pair) for pair in told]

    # ---- responses -------------------------------------------------------------------------------------------------

    def _next_piece(self, request: LoginRequest) -> Reply:
        """The next piece of our text. The stage changes with the last one only, and only if both sides are ready."""
        if len(self._answer_pieces) > 1:
            piece = self._answer_pieces.pop(0)
            return Reply(State.CONTINUE, self._respond(request, piece, more_to_come=True))
        transit = request.transit and self._may_leave()
        if transit and request.next_stage == Stage.FULL_FEATURE:
            return Reply(State.COMMIT)
        response = self._respond(request, self._answer_pieces.pop(0), transit=transit)
        if transit:
            self._stage = Stage(request.next_stage)
        return Reply(State.CONTINUE, response)

    def _may_leave(self) -> bool:
        assert self._auth is not None
        if self._stage is not Stage.SECURITY or self._auth.may_proceed:
            return True
        if self._auth.in_progress:
            return False
        raise LoginRefused(LoginStatus.AUTHENTICATION_FAILURE, "CHAP is required, and the initiator passes it over")

    def _respond(
        self,
        request: LoginRequest,
        data: bytes,
        *,
        transit: bool = False,
        more_to_come: bool = False,
        tsih: int | None = None,
        status: LoginStatus = LoginStatus.SUCCESS,
    ) -> bytes:
        status_class, detail = status.code
        exp_cmd_sn, max_cmd_sn = self._window(request)
        header = LoginResponse(
            transit=transit,
            more_to_come=more_to_come,
            current_stage=request.current_stage,
            next_stage=request.next_stage if transit else 0,
            isid=request.isid,
            tsih=request.tsih if tsih is None else tsih,
            initiator_task_tag=request.initiator_task_tag,
            stat_sn=self._stat_sn,
            exp_cmd_sn=exp_cmd_sn,
            max_cmd_sn=max_cmd_sn,
            status_class=status_class,
            status_detail=detail,
            data_segment_length=len(data),
        )
        self._stat_sn = (self._stat_sn + 1) & 0xFFFFFFFF
        return header.to_bytes() + data + bytes(padding(len(data)))

    def _window(self, request: LoginRequest) -> tuple[int, int]:
        first = self._first or request
        if self.admitted is not None and self.admitted.window is not None:
            return self.admitted.window
        depth = 1 if self.admitted is None else self.admitted.queue_depth
        # 11.12.8: the login takes no number of its own; its CmdSN is that of the first command.
        return first.cmd_sn, (first.cmd_sn + depth - 1) & 0xFFFFFFFF

    def _refuse(self, refused: LoginRefused) -> Reply:
        self.close()
        if self._last is None:
            return Reply(State.REFUSED, b"", refused)
        response = self._respond(self._last, build(refused.pairs), status=refused.status)
        return Reply(State.REFUSED, response, refused)


def _wrong(why: str) -> LoginRefused:
    return LoginRefused(LoginStatus.INITIATOR_ERROR, why)
