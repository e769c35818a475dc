# SPDX-License-Identifier: Apache-2.0
"""Every key with legal and illegal values, the functions that results come from, and who may say what when."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.iscsi import keys
from vhost_scsi.iscsi.codes import LoginStatus
from vhost_scsi.iscsi.full_feature import SessionKeys
from vhost_scsi.iscsi.keys import KEYS, Offer, Phase, Result
from vhost_scsi.iscsi.negotiation import Negotiation, NegotiationError
from vhost_scsi.iscsi.text import Pair

TOP = (1 << 24) - 1


def offer(*pairs: tuple[str, str], phase: Phase = Phase.OPERATIONAL, ours: Offer | None = None, **kwargs: Any) -> Any:
    negotiation = Negotiation(ours or Offer(), **kwargs)
    answers = negotiation.receive([Pair(*pair) for pair in pairs], phase)
    return dict(answers.pairs), negotiation.values


def refused(*pairs: tuple[str, str], phase: Phase = Phase.OPERATIONAL, **kwargs: Any) -> NegotiationError:
    with pytest.raises(NegotiationError) as caught:
        offer(*pairs, phase=phase, **kwargs)
    return caught.value


# key, what is said, our answer (None: none), what holds then
LEGAL: list[tuple[str, str, str | None, Any]] = [
    ("HeaderDigest", "CRC32C", "CRC32C", "CRC32C"),
    ("HeaderDigest", "None,CRC32C", "None", "None"),
    ("HeaderDigest", "CRC32C,None", "CRC32C", "CRC32C"),
    ("HeaderDigest", "Y-com.example.sum,None", "None", "None"),
    ("DataDigest", "CRC32C", "CRC32C", "CRC32C"),
    ("DataDigest", "None", "None", "None"),
    ("MaxConnections", "1", "1", 1),
    ("MaxConnections", "65535", "8", 8),
    ("InitialR2T", "Yes", "Yes", True),
    ("InitialR2T", "No", "No", False),
    ("ImmediateData", "Yes", "Yes", True),
    ("ImmediateData", "No", "No", False),
    ("MaxRecvDataSegmentLength", "512", None, 512),
    ("MaxRecvDataSegmentLength", "0xffffff", None, TOP),
    ("MaxBurstLength", "512", "512", 512),
    ("MaxBurstLength", "16777215", "16777215", TOP),
    ("FirstBurstLength", "512", "512", 512),
    ("FirstBurstLength", "16777215", "262144", 262144),
    ("DefaultTime2Wait", "0", "2", 2),
    ("DefaultTime2Wait", "3600", "3600", 3600),
    ("DefaultTime2Retain", "0", "0", 0),
    ("DefaultTime2Retain", "3600", "0", 0),
    ("MaxOutstandingR2T", "1", "1", 1),
    ("MaxOutstandingR2T", "65535", "8", 8),
    ("DataPDUInOrder", "Yes", "Yes", True),
    ("DataPDUInOrder", "No", "Yes", True),
    ("DataSequenceInOrder", "No", "Yes", True),
    ("ErrorRecoveryLevel", "0", "0", 0),
    ("ErrorRecoveryLevel", "2", "0", 0),
    ("TaskReporting", "RFC3720", "RFC3720", "RFC3720"),
    ("TaskReporting", "FastAbort,ResponseFence,RFC3720", "RFC3720", "RFC3720"),
    ("iSCSIProtocolLevel", "1", "1", 1),
    ("iSCSIProtocolLevel", "31", "1", 1),
    ("iSCSIProtocolLevel", "0", "0", 0),
    ("InitiatorAlias", "a machine", None, "a machine"),
    ("InitiatorName", "iqn.2024-01.org.example:x", None, "iqn.2024-01.org.example:x"),
    ("TargetName", "iqn.2024-01.org.example:y", None, "iqn.2024-01.org.example:y"),
    ("SessionType", "Normal", None, "Normal"),
    ("SessionType", "Discovery", None, "Discovery"),
]
# key and what may not be said: it is answered with Reject, and the default holds
ILLEGAL: list[tuple[str, str]] = [
    *((name, said) for name in ("HeaderDigest", "DataDigest") for said in ("", "crc32c", "MD5", "CRC32C None")),
    *(
        (name, said)
        for name in ("InitialR2T", "ImmediateData", "DataPDUInOrder", "DataSequenceInOrder")
        for said in ("", "yes", "NO", "1", "Yes,No", "None", "?")
    ),
    *(
        (name, said)
        for name in ("MaxConnections", "MaxOutstandingR2T")
        for said in ("0", "65536", "", "-1", "one", "01")
    ),
    *(
        (name, said)
        for name in ("MaxRecvDataSegmentLength", "MaxBurstLength", "FirstBurstLength")
        for said in ("0", "511", "16777216", "0x1000000", "99999999999999999999", "512~1024", "1,2", "?", "None")
    ),
    *((name, said) for name in ("DefaultTime2Wait", "DefaultTime2Retain") for said in ("3601", "-1", "", "2.5")),
    ("ErrorRecoveryLevel", "3"),
    ("ErrorRecoveryLevel", ""),
    ("TaskReporting", "Whatever"),
    ("iSCSIProtocolLevel", "32"),
]


@pytest.mark.parametrize(("key", "said", "answer", "value"), LEGAL)
def test_legal_values(key: str, said: str, answer: str | None, value: Any) -> None:
    answers, values = offer((key, said))
    assert answers.get(key) == answer
    assert values[key] == value
    assert type(values[key]) is type(value)


@pytest.mark.parametrize(("key", "said"), ILLEGAL)
def test_illegal_values_are_rejected_and_change_nothing(key: str, said: str) -> None:
    answers, values = offer((key, said))
    assert answers == {key: "Reject"}
    assert values == keys.DEFAULTS


def test_every_key_that_an_initiator_may_say_in_login_is_tested_both_ways() -> None:
    negotiable = {
        key.name
        for key in KEYS.values()
        if keys.Sender.INITIATOR in key.sender
        and key.result not in (Result.AUTHENTICATION, Result.SEND_TARGETS, Result.OBSOLETE)
    }
    assert {row[0] for row in LEGAL} == negotiable
    texts = {"InitiatorName", "TargetName", "InitiatorAlias", "SessionType"}
    assert {row[0] for row in ILLEGAL} == negotiable - texts


def test_what_was_rejected_is_kept_for_people() -> None:
    negotiation = Negotiation(Offer())
    answers = negotiation.receive([Pair("MaxBurstLength", "1")], Phase.OPERATIONAL)
    assert answers.rejected == [("MaxBurstLength", "1")]


def test_a_wrong_session_type_has_a_status_of_its_own() -> None:
    error = refused(("SessionType", "Strange"), phase=Phase.SECURITY)
    assert error.status is LoginStatus.SESSION_TYPE_NOT_SUPPORTED


@pytest.mark.parametrize("key", ["X-com.example.colour", "Whatever", "maxburstlength", "X#NodeArchitecture"])
def test_unknown_keys_are_not_understood(key: str) -> None:
    assert offer((key, "1"))[0] == {key: "NotUnderstood"}


@pytest.mark.parametrize(
    ("key", "answer"), [("IFMarker", "No"), ("OFMarker", "No"), ("IFMarkInt", "Reject"), ("OFMarkInt", "Reject")]
)
def test_obsolete_keys_are_understood(key: str, answer: str) -> None:
    assert offer((key, "Yes"))[0] == {key: answer}


@pytest.mark.parametrize("value", ["NotUnderstood", "Irrelevant", "Reject"])
def test_answers_to_what_was_not_asked_are_an_error(value: str) -> None:
    refused(("MaxBurstLength", value))
    refused(("X-unknown", value))


def test_a_refusal_of_what_we_declared_is_taken_in_silence() -> None:
    negotiation = Negotiation(Offer())
    negotiation.declare(Pair("MaxRecvDataSegmentLength", "262144"))
    answers = negotiation.receive([Pair("MaxRecvDataSegmentLength", "Reject")], Phase.OPERATIONAL)
    assert answers.pairs == []


def test_a_key_that_is_said_twice_is_an_error() -> None:
    assert "MaxBurstLength" in str(refused(("MaxBurstLength", "512"), ("MaxBurstLength", "512")))
    negotiation = Negotiation(Offer())
    negotiation.receive([Pair("MaxBurstLength", "512")], Phase.OPERATIONAL)
    with pytest.raises(NegotiationError, match="twice"):
        negotiation.receive([Pair("MaxBurstLength", "1024")], Phase.OPERATIONAL)


@pytest.mark.parametrize("key", ["TargetAlias", "TargetAddress", "TargetPortalGroupTag"])
def test_what_only_a_target_says_is_an_error(key: str) -> None:
    assert "not the initiator's" in str(refused((key, "1"), phase=Phase.SECURITY))


@pytest.mark.parametrize("key", [key.name for key in KEYS.values() if Phase.SECURITY not in key.phases])
def test_no_operational_key_in_the_security_stage(key: str) -> None:
    assert "in this stage" in str(refused((key, "1"), phase=Phase.SECURITY))


@pytest.mark.parametrize("key", ["AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R", "SendTargets"])
def test_no_security_key_in_the_operational_stage(key: str) -> None:
    assert "in this stage" in str(refused((key, "1")))


@pytest.mark.parametrize("key", [key.name for key in KEYS.values() if Phase.FULL_FEATURE not in key.phases])
def test_no_login_key_in_full_feature_phase(key: str) -> None:
    refused((key, "1"), phase=Phase.FULL_FEATURE)


def test_max_recv_data_segment_length_may_be_said_again_in_full_feature_phase() -> None:
    negotiation = Negotiation(Offer())
    negotiation.receive([Pair("MaxRecvDataSegmentLength", "512")], Phase.OPERATIONAL)
    negotiation.restart()
    negotiation.receive([Pair("MaxRecvDataSegmentLength", "1024")], Phase.FULL_FEATURE)
    assert negotiation.values["MaxRecvDataSegmentLength"] == 1024


@pytest.mark.parametrize("key", [key.name for key in KEYS.values() if key.leading_only])
def test_session_keys_on_the_first_connection_only(key: str) -> None:
    assert "first connection" in str(refused((key, "1"), leading=False))


def test_an_added_connection_has_what_its_session_agreed_on() -> None:
    negotiation = Negotiation(Offer())
    negotiation.join({**keys.DEFAULTS, "MaxBurstLength": 4096, "MaxRecvDataSegmentLength": 512})
    assert negotiation.values["MaxBurstLength"] == 4096
    assert negotiation.values["MaxRecvDataSegmentLength"] == 8192, "that one belongs to each connection"


@pytest.mark.parametrize("key", [key.name for key in KEYS.values() if not key.in_discovery])
def test_what_is_irrelevant_in_discovery(key: str) -> None:
    answers, values = offer((key, "1"), ("SessionType", "Discovery"))
    assert answers == {key: "Irrelevant"}
    assert values[key] == KEYS[key].default


def test_digests_matter_in_discovery() -> None:
    assert offer(("SessionType", "Discovery"), ("HeaderDigest", "CRC32C"))[0] == {"HeaderDigest": "CRC32C"}


def test_first_burst_length_is_irrelevant_without_unsolicited_data() -> None:
    answers, _ = offer(("FirstBurstLength", "1024"), ("ImmediateData", "No"), ("InitialR2T", "Yes"))
    assert answers["FirstBurstLength"] == "Irrelevant"
    answers, _ = offer(("FirstBurstLength", "1024"), ("ImmediateData", "No"), ("InitialR2T", "No"))
    assert answers["FirstBurstLength"] == "1024"


def test_first_burst_length_never_exceeds_max_burst_length() -> None:
    answers, values = offer(("FirstBurstLength", "65536"), ("MaxBurstLength", "4096"))
    assert answers == {"FirstBurstLength": "4096", "MaxBurstLength": "4096"}
    assert SessionKeys.of(values).first_burst_length == 4096


def test_a_default_first_burst_does_not_exceed_a_small_max_burst_either() -> None:
    assert SessionKeys.of(offer(("MaxBurstLength", "512"))[1]).first_burst_length == 512


def test_answers_stand_in_the_order_of_the_offers() -> None:
    negotiation = Negotiation(Offer())
    said = [Pair("X-a", "1"), Pair("MaxBurstLength", "512"), Pair("HeaderDigest", "None"), Pair("IFMarker", "No")]
    answers = negotiation.receive(said, Phase.OPERATIONAL)
    assert [pair.key for pair in answers.pairs] == [pair.key for pair in said]


def test_what_we_are_not_ready_for_is_not_agreed_to() -> None:
    ours = Offer(header_digest=("None",), initial_r2t=True, immediate_data=False, error_recovery_level=1)
    answers, _ = offer(
        ("HeaderDigest", "CRC32C"),
        ("InitialR2T", "No"),
        ("ImmediateData", "Yes"),
        ("ErrorRecoveryLevel", "2"),
        ours=ours,
    )
    assert answers == {"HeaderDigest": "Reject", "InitialR2T": "Yes", "ImmediateData": "No", "ErrorRecoveryLevel": "1"}


_VALUES = st.one_of(
    st.sampled_from(
        ["Yes", "No", "None", "CRC32C", "CRC32C,None", "RFC3720", "0", "1", "512", "16777215", "Reject", "?"]
    ),
    st.integers(-5, 1 << 65).map(str),
    st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20),
)


@given(st.lists(st.tuples(st.sampled_from([*KEYS, "X-com.example.key", "Foo"]), _VALUES), max_size=12))
def test_whatever_is_said_the_result_stays_within_the_rows(pairs: list[tuple[str, str]]) -> None:
    negotiation = Negotiation(Offer())
    try:
        answers = negotiation.receive([Pair(*pair) for pair in pairs], Phase.OPERATIONAL)
    except NegotiationError:
        return
    assert len(answers.pairs) <= len(pairs)
    for name, value in negotiation.values.items():
        key = KEYS[name]
        if key.result in (Result.MINIMUM, Result.MAXIMUM, Result.DECLARED_NUMBER):
            assert isinstance(value, int)
            assert key.low <= value <= key.high
        elif key.result in (Result.LIST, Result.DECLARED_CHOICE):
            assert value in key.choices
    agreed = SessionKeys.of(negotiation.values)
    assert agreed.first_burst_length <= agreed.max_burst_length
