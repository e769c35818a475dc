# SPDX-License-Identifier: Apache-2.0
"""Every text key of RFC 7143 (12 and 13), one row each: who may send it, when, what may be said, what the result is.

The rows are facts of the protocol. What this target is ready to agree to is an `Offer`; who said what so far is kept in
`negotiation.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, Flag, auto, unique
from typing import Final, TypeAlias

from vhost_scsi.iscsi.text import LONGEST_BINARY_VALUE, MAX_VALUE, number

Value: TypeAlias = str | int | bool
Values: TypeAlias = Mapping[str, Value]

MAX_LENGTH: Final = (1 << 24) - 1


@unique
class Scope(Enum):
    SESSION = auto()
    CONNECTION = auto()


class Phase(Flag):
    """When a key may be sent."""

    SECURITY = auto()
    OPERATIONAL = auto()
    FULL_FEATURE = auto()
    LOGIN = SECURITY | OPERATIONAL
    ANY = LOGIN | FULL_FEATURE


class Sender(Flag):
    INITIATOR = auto()
    TARGET = auto()
    BOTH = INITIATOR | TARGET


@unique
class Result(Enum):
    """How the result follows from what both sides say (6.2)."""

    LIST = auto()  # the first of the offered list that the responder takes
    AND = auto()
    OR = auto()
    MINIMUM = auto()
    MAXIMUM = auto()
    DECLARED_NUMBER = auto()  # no answer
    DECLARED_CHOICE = auto()
    DECLARED_TEXT = auto()
    AUTHENTICATION = auto()  # auth.py answers
    SEND_TARGETS = auto()  # discovery.py answers
    OBSOLETE = auto()  # 13.25


def _never(values: Values) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Key:
    """One row. `irrelevant` looks at what is agreed so far; `longest` is in bytes."""

    name: str
    result: Result
    scope: Scope
    phases: Phase
    sender: Sender
    default: Value | None = None
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()
    leading_only: bool = False
    in_discovery: bool = True
    repeats: bool = False
    longest: int = MAX_VALUE
    irrelevant: Callable[[Values], bool] = _never
    answer: str = ""  # of an obsolete key


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said in return (None: nothing), and what now holds (None: what held before)."""

    text: str | None
    value: Value | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """What the target is ready to agree to; the names are those of the keys. Lengths in bytes, times in seconds."""

    header_digest: tuple[str, ...] = ("CRC32C", "None")
    data_digest: tuple[str, ...] = ("CRC32C", "None")
    task_reporting: tuple[str, ...] = ("RFC3720",)
    max_connections: int = 8
    initial_r2t: bool = False
    immediate_data: bool = True
    max_recv_data_segment_length: int = 262144  # ours
    max_burst_length: int = MAX_LENGTH
    first_burst_length: int = 262144
    default_time2wait: int = 2
    default_time2retain: int = 0  # at recovery level 0 no task outlives its connection
    max_outstanding_r2t: int = 8
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    error_recovery_level: int = 0
    iscsi_protocol_level: int = 1

    def of(self, key: Key) -> Value | tuple[str, ...]:
        value: Value | tuple[str, ...] = getattr(self, _OFFER_FIELDS[key.name])
        return value


_OFFER_FIELDS: Final = {
    "HeaderDigest": "header_digest",
    "DataDigest": "data_digest",
    "TaskReporting": "task_reporting",
    "MaxConnections": "max_connections",
    "InitialR2T": "initial_r2t",
    "ImmediateData": "immediate_data",
    "MaxBurstLength": "max_burst_length",
    "FirstBurstLength": "first_burst_length",
    "DefaultTime2Wait": "default_time2wait",
    "DefaultTime2Retain": "default_time2retain",
    "MaxOutstandingR2T": "max_outstanding_r2t",
    "DataPDUInOrder": "data_pdu_in_order",
    "DataSequenceInOrder": "data_sequence_in_order",
    "ErrorRecoveryLevel": "error_recovery_level",
    "iSCSIProtocolLevel": "iscsi_protocol_level",
}


def _no_unsolicited_data(values: Values) -> bool:
    return values["InitialR2T"] is True and values["ImmediateData"] is False


_S, _C = Scope.SESSION, Scope.CONNECTION
_OPERATIONAL, _FULL, _ANY = Phase.OPERATIONAL, Phase.FULL_FEATURE, Phase.ANY
_I, _T, _BOTH = Sender.INITIATOR, Sender.TARGET, Sender.BOTH


def _digest(name: str) -> Key:
    return Key(name, Result.LIST, _C, _OPERATIONAL, _BOTH, "None", choices=("CRC32C", "None"))


def _session_number(
    name: str,
    result: Result,
    default: int,
    low: int,
    high: int,
    *,
    discovery: bool = False,
    irrelevant: Callable[[Values], bool] = _never,
) -> Key:
    return Key(
        name,
        result,
        _S,
        _OPERATIONAL,
        _BOTH,
        default,
        low,
        high,
        leading_only=True,
        in_discovery=discovery,
        irrelevant=irrelevant,
    )


def _session_boolean(name: str, result: Result, default: bool) -> Key:
    return Key(name, result, _S, _OPERATIONAL, _BOTH, default, leading_only=True, in_discovery=False)


def _chap(name: str, longest: int = MAX_VALUE) -> Key:
    return Key(name, Result.AUTHENTICATION, _C, Phase.SECURITY, _BOTH, longest=longest)


def _obsolete(name: str, answer: str) -> Key:
    return Key(name, Result.OBSOLETE, _C, Phase.ANY, _BOTH, answer=answer)


# The order counts: a key stands behind those that its result or its relevance depends on.
KEYS: Final[Mapping[str, Key]] = {
    key.name: key
    for key in (
        # 12.1
        Key("AuthMethod", Result.AUTHENTICATION, _C, Phase.SECURITY, _BOTH),
        _chap("CHAP_A"),
        _chap("CHAP_I"),
        _chap("CHAP_C", LONGEST_BINARY_VALUE),
        _chap("CHAP_N"),
        _chap("CHAP_R", LONGEST_BINARY_VALUE),
        # 13.21 comes first: a discovery session makes others irrelevant. Initiators send it on added connections too.
        Key("SessionType", Result.DECLARED_CHOICE, _S, Phase.LOGIN, _I, "Normal", choices=("Normal", "Discovery")),
        Key("InitiatorName", Result.DECLARED_TEXT, _S, Phase.LOGIN, _I),  # 13.5
        Key("TargetName", Result.DECLARED_TEXT, _S, Phase.LOGIN, _I),  # 13.4; from the target in SendTargets only
        Key("InitiatorAlias", Result.DECLARED_TEXT, _S, _ANY, _I),  # 13.7
        Key("TargetAlias", Result.DECLARED_TEXT, _S, _ANY, _T),  # 13.6
        Key("TargetAddress", Result.DECLARED_TEXT, _S, _ANY, _T, repeats=True),  # 13.8
        Key("TargetPortalGroupTag", Result.DECLARED_NUMBER, _S, Phase.LOGIN, _T, high=65535),  # 13.9
        Key("SendTargets", Result.SEND_TARGETS, _S, _FULL, _I),  # 13.3
        _digest("HeaderDigest"),  # 13.1
        _digest("DataDigest"),
        _session_number("MaxConnections", Result.MINIMUM, 1, 1, 65535),  # 13.2
        _session_boolean("InitialR2T", Result.OR, True),  # 13.10
        _session_boolean("ImmediateData", Result.AND, True),  # 13.11
        Key(  # 13.12
            "MaxRecvDataSegmentLength",
            Result.DECLARED_NUMBER,
            _C,
            _OPERATIONAL | _FULL,
            _BOTH,
            8192,
            512,
            MAX_LENGTH,
        ),
        _session_number("MaxBurstLength", Result.MINIMUM, 262144, 512, MAX_LENGTH),  # 13.13
        _session_number(  # 13.14
            "FirstBurstLength", Result.MINIMUM, 65536, 512, MAX_LENGTH, irrelevant=_no_unsolicited_data
        ),
        _session_number("DefaultTime2Wait", Result.MAXIMUM, 2, 0, 3600, discovery=True),  # 13.15
        _session_number("DefaultTime2Retain", Result.MINIMUM, 20, 0, 3600, discovery=True),  # 13.16
        _session_number("MaxOutstandingR2T", Result.MINIMUM, 1, 1, 65535),  # 13.17
        _session_boolean("DataPDUInOrder", Result.OR, True),  # 13.18
        _session_boolean("DataSequenceInOrder", Result.OR, True),  # 13.19
        _session_number("ErrorRecoveryLevel", Result.MINIMUM, 0, 0, 2, discovery=True),  # 13.20
        Key(  # 13.23
            "TaskReporting",
            Result.LIST,
            _S,
            _OPERATIONAL,
            _BOTH,
            "RFC3720",
            choices=("RFC3720", "ResponseFence", "FastAbort"),
            leading_only=True,
            in_discovery=False,
        ),
        _session_number("iSCSIProtocolLevel", Result.MINIMUM, 1, 0, 31),  # 13.24
        # 13.25: never NotUnderstood. "No" is allowed for the first two, and initiators of RFC 3720 expect it.
        _obsolete("IFMarker", "No"),
        _obsolete("OFMarker", "No"),
        _obsolete("IFMarkInt", "Reject"),
        _obsolete("OFMarkInt", "Reject"),
    )
}
ORDER: Final = {name: place for place, name in enumerate(KEYS)}
DEFAULTS: Final[Values] = {key.name: key.default for key in KEYS.values() if key.default is not None}
REJECT: Final = Answer("Reject")


def longest(key: str) -> int:
    """How many bytes a value of this key may have."""
    return KEYS[key].longest if key in KEYS else MAX_VALUE


def answer(key: Key, said: str, offer: Offer, values: Values) -> Answer:
    """The target's answer to what the initiator offered or declared. An inadmissible value is answered with Reject,
    and what held before holds (6.2)."""
    match key.result:
        case Result.LIST:
            return _choose(key, said, offer)
        case Result.AND | Result.OR:
            if said not in ("Yes", "No"):
                return REJECT
            theirs, ours = said == "Yes", bool(offer.of(key))
            agreed = theirs and ours if key.result is Result.AND else theirs or ours
            return Answer("Yes" if agreed else "No", agreed)
        case Result.MINIMUM | Result.MAXIMUM | Result.DECLARED_NUMBER:
            return _number(key, said, offer, values)
        case Result.DECLARED_CHOICE:
            return Answer(None, said) if said in key.choices else REJECT
        case Result.DECLARED_TEXT:
            return Answer(None, said)
        case Result.OBSOLETE:
            return Answer(key.answer)
        case _:
            raise AssertionError(f"{key.name} is answered elsewhere")


def _choose(key: Key, said: str, offer: Offer) -> Answer:
    ours = offer.of(key)
    assert isinstance(ours, tuple)
    # A value that we do not know is no error: 6.2 lets lists name private extensions.
    chosen = next((each for each in said.split(",") if each in ours and each in key.choices), None)
    return REJECT if chosen is None else Answer(chosen, chosen)


def _number(key: Key, said: str, offer: Offer, values: Values) -> Answer:
    try:
        theirs = number(said)
    except ValueError:
        return REJECT
    if not key.low <= theirs <= key.high:
        return REJECT
    if key.result is Result.DECLARED_NUMBER:
        return Answer(None, theirs)
    ours = offer.of(key)
    assert isinstance(ours, int)
    if key.result is Result.MAXIMUM:
        agreed = max(theirs, ours)
    else:
        agreed = min(theirs, ours)
        if key.name == "FirstBurstLength":  # 13.14: MUST NOT exceed MaxBurstLength
            agreed = min(agreed, int(values["MaxBurstLength"]))
    return Answer(str(agreed), agreed)
