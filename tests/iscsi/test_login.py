# SPDX-License-Identifier: Apache-2.0
"""The login phase without I/O: stages, headers, text in pieces, who is admitted, and which status each failure has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.iscsi import client
from tests.iscsi.client import FULL_FEATURE, INITIATOR, OPERATIONAL, SECURITY, TARGET, Pairs, Response
from tests.iscsi.rig import login_to, make_node
from vhost_scsi.iscsi.auth import AuthPolicy, ChapUser
from vhost_scsi.iscsi.codes import LoginStatus
from vhost_scsi.iscsi.login import MAX_REQUESTS, Login, Reply, State
from vhost_scsi.iscsi.node import DiscoveryPolicy, Node
from vhost_scsi.iscsi.secret import Secret
from vhost_scsi.iscsi.targets import AclEntry, IscsiTarget, Limits, Redirect

NAMES: Pairs = [("InitiatorName", INITIATOR), ("TargetName", TARGET)]
CHAP = AuthPolicy((ChapUser("host", Secret(b"secret-of-initiator")),))


class Dialogue:
    """One login: raw bytes in, what the target said out."""

    def __init__(self, node: Node | None = None, **where: Any) -> None:
        self.node = node or make_node()
        self.login: Login = login_to(self.node, **where)
        self.reply: Reply | None = None

    def send(self, raw: bytes) -> Response | None:
        """The response; None where there is none."""
        wanted = self.login.to_read(raw[:48])
        self.reply = self.login.receive(raw[:48], None if wanted is None else raw[48 : 48 + wanted])
        return client.split(self.reply.response) if self.reply.response else None

    def say(self, pairs: Pairs | bytes, **fields: Any) -> Response:
        response = self.send(client.login_request(pairs, **fields))
        assert response is not None, "the login was to go on"
        assert self.state is not State.COMMIT
        return response

    def commit(self, pairs: Pairs | bytes, **fields: Any) -> Response:
        """A request that leads to full-feature phase, and the final response."""
        assert self.send(client.login_request(pairs, **fields)) is None
        assert self.state is State.COMMIT
        return client.split(self.login.finish(77))

    @property
    def state(self) -> State:
        assert self.reply is not None
        return self.reply.state

    def refused(self, pairs: Pairs | bytes, **fields: Any) -> LoginStatus:
        response = self.say(pairs, **fields)
        assert self.state is State.REFUSED
        assert self.reply is not None
        assert self.reply.refused is not None
        assert response.status == self.reply.refused.status.code
        assert response.status[0] != 0
        assert not response.transit
        assert str(self.reply.refused)
        return self.reply.refused.status


@pytest.fixture
def dialogue() -> Dialogue:
    return Dialogue()


# ---- the ways through ------------------------------------------------------------------------------------------------


def test_through_both_stages(dialogue: Dialogue) -> None:
    first = dialogue.say([*NAMES, ("AuthMethod", "None")])
    assert (first.opcode, first.status, first.transit, first.csg, first.nsg) == (0x23, (0, 0), True, 0, 1)
    assert first.keys == {"TargetPortalGroupTag": "1", "AuthMethod": "None"}
    assert first.tsih == 0
    last = dialogue.commit([("MaxBurstLength", "4096")], csg=OPERATIONAL, nsg=FULL_FEATURE)
    assert (last.status, last.transit, last.csg, last.nsg, last.tsih) == ((0, 0), True, 1, 3, 77)
    assert last.keys == {"MaxRecvDataSegmentLength": "262144", "MaxBurstLength": "4096"}


def test_from_the_operational_stage_on(dialogue: Dialogue) -> None:
    last = dialogue.commit(NAMES, csg=OPERATIONAL, nsg=FULL_FEATURE)
    assert last.keys == {"TargetPortalGroupTag": "1", "MaxRecvDataSegmentLength": "262144"}


def test_from_the_security_stage_right_to_the_end(dialogue: Dialogue) -> None:
    last = dialogue.commit([*NAMES, ("AuthMethod", "None")], nsg=FULL_FEATURE)
    assert (last.transit, last.csg, last.nsg) == (True, SECURITY, FULL_FEATURE)
    assert "MaxRecvDataSegmentLength" not in last.keys, "an operational key has no place there"


def test_a_stage_may_take_several_requests(dialogue: Dialogue) -> None:
    assert not dialogue.say(NAMES, transit=False).transit
    assert not dialogue.say([], transit=False).transit
    assert dialogue.say([("AuthMethod", "None")]).transit
    assert not dialogue.say([("MaxBurstLength", "512")], csg=OPERATIONAL, transit=False, nsg=0).transit
    assert dialogue.commit([("InitialR2T", "No")], csg=OPERATIONAL, nsg=FULL_FEATURE).keys == {"InitialR2T": "No"}


def test_responses_are_numbered_and_repeat_what_names_the_connection(dialogue: Dialogue) -> None:
    first = dialogue.say(NAMES, itt=0xABCD, cmd_sn=0xFFFFFFF0)
    second = dialogue.say([], itt=0xABCD, csg=OPERATIONAL, transit=False, cmd_sn=0xFFFFFFF0)
    assert second.stat_sn == first.stat_sn + 1
    assert first.itt == second.itt == 0xABCD
    assert first.bhs[8:14] == b"\x80\x12\x34\x56\x00\x01"
    assert first.exp_cmd_sn == 0xFFFFFFF0, "the login takes no number of its own"
    assert second.max_cmd_sn == (0xFFFFFFF0 + 127) & 0xFFFFFFFF
    assert first.bhs[2:4] == b"\0\0", "both versions"


def test_an_alias_is_told() -> None:
    dialogue = Dialogue(make_node(IscsiTarget(TARGET, alias="the disk")))
    assert dialogue.say(NAMES).keys["TargetAlias"] == "the disk"


def test_a_discovery_session(dialogue: Dialogue) -> None:
    pairs = [("InitiatorName", INITIATOR), ("SessionType", "Discovery")]
    assert dialogue.say(pairs).keys == {}
    assert dialogue.commit([("MaxConnections", "2")], csg=1, nsg=3).keys["MaxConnections"] == "Irrelevant"


def test_a_session_has_no_more_connections_than_the_limit() -> None:
    dialogue = Dialogue(make_node(limits=Limits(connections_per_session=2)))
    assert dialogue.commit([*NAMES, ("MaxConnections", "9")], csg=1, nsg=3).keys["MaxConnections"] == "2"


def test_the_target_alone_may_stand_in_the_way(dialogue: Dialogue) -> None:
    dialogue.commit(NAMES, csg=OPERATIONAL, nsg=FULL_FEATURE)
    other = Dialogue()
    other.send(client.login_request(NAMES, csg=OPERATIONAL, nsg=FULL_FEATURE))
    reply = other.login.refuse(LoginStatus.OUT_OF_RESOURCES, "no room")
    assert client.split(reply.response).status == (3, 2)


# ---- CHAP on the way -------------------------------------------------------------------------------------------------


def chap_dialogue() -> Dialogue:
    return Dialogue(make_node(IscsiTarget(TARGET, auth=CHAP)))


def test_chap_holds_the_stage_until_it_has_ended() -> None:
    dialogue = chap_dialogue()
    first = dialogue.say([*NAMES, ("AuthMethod", "CHAP,None")])
    assert (first.transit, first.keys["AuthMethod"]) == (False, "CHAP")
    second = dialogue.say([("CHAP_A", "7")])
    assert not second.transit
    keys = second.keys
    response = client.chap_response(7, int(keys["CHAP_I"]), b"secret-of-initiator", bytes.fromhex(keys["CHAP_C"][2:]))
    third = dialogue.say([("CHAP_N", "host"), ("CHAP_R", "0x" + response.hex())])
    assert third.transit
    assert dialogue.login.user == "host"


def test_a_wrong_secret_is_an_authentication_failure_and_frees_the_challenge() -> None:
    dialogue = chap_dialogue()
    dialogue.say([*NAMES, ("AuthMethod", "CHAP")])
    dialogue.say([("CHAP_A", "7")])
    assert len(dialogue.node.challenges) == 1
    assert dialogue.refused([("CHAP_N", "host"), ("CHAP_R", "0x" + "00" * 32)]) is LoginStatus.AUTHENTICATION_FAILURE
    assert len(dialogue.node.challenges) == 0


@pytest.mark.parametrize(
    "fields", [{"csg": OPERATIONAL, "nsg": FULL_FEATURE}, {}, {"nsg": FULL_FEATURE}], ids=["skipped", "left", "leapt"]
)
def test_nobody_gets_around_chap(fields: dict[str, int]) -> None:
    assert chap_dialogue().refused(NAMES, **fields) is LoginStatus.AUTHENTICATION_FAILURE


def test_nobody_gets_around_chap_half_way() -> None:
    dialogue = chap_dialogue()
    dialogue.say([*NAMES, ("AuthMethod", "CHAP")])
    dialogue.say([("CHAP_A", "7")])
    assert not dialogue.say([], nsg=FULL_FEATURE).transit
    assert dialogue.refused([], csg=OPERATIONAL, nsg=FULL_FEATURE) is LoginStatus.INITIATOR_ERROR


def test_chap_of_one_entry_of_the_access_list() -> None:
    target = IscsiTarget(TARGET, acl=(AclEntry((INITIATOR,), auth=CHAP), AclEntry()))
    assert Dialogue(make_node(target)).refused(NAMES) is LoginStatus.AUTHENTICATION_FAILURE
    others = [("InitiatorName", INITIATOR + "2"), ("TargetName", TARGET)]
    assert Dialogue(make_node(target)).say(others).transit


def test_discovery_may_need_chap() -> None:
    node = make_node(discovery=DiscoveryPolicy(auth=CHAP))
    pairs = [("InitiatorName", INITIATOR), ("SessionType", "Discovery")]
    assert Dialogue(node).refused(pairs) is LoginStatus.AUTHENTICATION_FAILURE


# ---- what a request can do wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"version_min": 1, "version_max": 1}, LoginStatus.UNSUPPORTED_VERSION),
        ({"version_min": 255}, LoginStatus.UNSUPPORTED_VERSION),
        ({"opcode": 0x03}, LoginStatus.INITIATOR_ERROR),
        ({"ahs_words": 1}, LoginStatus.INITIATOR_ERROR),
        ({"csg": 2, "nsg": 3}, LoginStatus.INITIATOR_ERROR),
        ({"csg": 3, "nsg": 3}, LoginStatus.INITIATOR_ERROR),
        ({"csg": 0, "nsg": 0}, LoginStatus.INITIATOR_ERROR),
        ({"csg": 0, "nsg": 2}, LoginStatus.INITIATOR_ERROR),
        ({"csg": 1, "nsg": 0}, LoginStatus.INITIATOR_ERROR),
        ({"csg": 1, "nsg": 1}, LoginStatus.INITIATOR_ERROR),
        ({"more": True, "transit": True}, LoginStatus.INITIATOR_ERROR),
        ({"tsih": 5}, LoginStatus.SESSION_DOES_NOT_EXIST),
    ],
)
def test_headers_that_are_refused(dialogue: Dialogue, fields: dict[str, int], status: LoginStatus) -> None:
    assert dialogue.refused(NAMES, **fields) is status


def test_a_version_that_begins_with_ours_is_fine(dialogue: Dialogue) -> None:
    assert dialogue.say(NAMES, version_max=9).status == (0, 0)


@pytest.mark.parametrize("nsg", [0, 2])
def test_the_next_stage_means_nothing_without_the_t_bit(dialogue: Dialogue, nsg: int) -> None:
    assert dialogue.say(NAMES, transit=False, nsg=nsg).status == (0, 0)


@pytest.mark.parametrize("length", [8193, 0xFFFFFF])
def test_an_oversize_data_segment_is_refused_before_it_is_read(dialogue: Dialogue, length: int) -> None:
    bhs = client.login_bhs(length)
    assert dialogue.login.to_read(bhs) is None
    response = dialogue.send(bhs)
    assert response is not None
    assert response.status == (2, 0)


@pytest.mark.parametrize(
    "fields", [{"isid": b"\x80\0\0\0\0\0"}, {"tsih": 1}, {"cid": 2}, {"itt": 0x12}, {"csg": SECURITY, "nsg": 1}]
)
def test_nothing_that_names_the_connection_changes(dialogue: Dialogue, fields: dict[str, Any]) -> None:
    dialogue.say(NAMES)
    assert dialogue.refused([], **{"csg": OPERATIONAL, "nsg": FULL_FEATURE, **fields}) is LoginStatus.INITIATOR_ERROR


def test_what_begins_with_no_login_is_not_answered(dialogue: Dialogue) -> None:
    assert dialogue.send(b"GET / HTTP/1.1\r\n" + bytes(32)) is None
    assert dialogue.state is State.REFUSED


def test_another_request_in_the_middle_of_a_login(dialogue: Dialogue) -> None:
    dialogue.say(NAMES)
    response = dialogue.send(bytes([0x01]) + bytes(47))
    assert response is not None
    assert response.status == LoginStatus.INVALID_DURING_LOGIN.code


def test_a_login_that_goes_in_circles_ends(dialogue: Dialogue) -> None:
    dialogue.say(NAMES, transit=False)
    for _ in range(MAX_REQUESTS - 1):
        dialogue.say([], transit=False)
    assert dialogue.refused([], transit=False) is LoginStatus.INITIATOR_ERROR


# ---- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "status"),
    [
        ([], LoginStatus.MISSING_PARAMETER),
        ([("TargetName", TARGET)], LoginStatus.MISSING_PARAMETER),
        ([("InitiatorName", INITIATOR)], LoginStatus.MISSING_PARAMETER),
        ([("InitiatorName", "nobody"), ("TargetName", TARGET)], LoginStatus.INITIATOR_ERROR),
        ([("InitiatorName", ""), ("TargetName", TARGET)], LoginStatus.INITIATOR_ERROR),
        ([("InitiatorName", "iqn." + "x" * 220), ("TargetName", TARGET)], LoginStatus.INITIATOR_ERROR),
        ([("InitiatorName", INITIATOR), ("TargetName", TARGET + "2")], LoginStatus.NOT_FOUND),
        ([("InitiatorName", INITIATOR), ("TargetName", "")], LoginStatus.NOT_FOUND),
        ([*NAMES, ("SessionType", "Odd")], LoginStatus.SESSION_TYPE_NOT_SUPPORTED),
        ([*NAMES, ("InitiatorName", INITIATOR)], LoginStatus.INITIATOR_ERROR),
        ([*NAMES, ("MaxBurstLength", "512")], LoginStatus.INITIATOR_ERROR),
        ([*NAMES, ("TargetPortalGroupTag", "1")], LoginStatus.INITIATOR_ERROR),
        ([*NAMES, ("CHAP_A", "7")], LoginStatus.AUTHENTICATION_FAILURE),
        ([*NAMES, ("AuthMethod", "KRB5")], LoginStatus.AUTHENTICATION_FAILURE),
        (b"InitiatorName=" + INITIATOR.encode(), LoginStatus.INITIATOR_ERROR),
        (b"InitiatorName\0", LoginStatus.INITIATOR_ERROR),
        (b"\xff\0", LoginStatus.INITIATOR_ERROR),
    ],
)
def test_first_texts_that_are_refused(dialogue: Dialogue, pairs: Pairs | bytes, status: LoginStatus) -> None:
    assert dialogue.refused(pairs) is status


def test_names_compare_without_regard_to_case(dialogue: Dialogue) -> None:
    assert dialogue.say([("InitiatorName", INITIATOR.upper()), ("TargetName", TARGET.upper())]).status == (0, 0)
    assert dialogue.login.admitted is not None
    assert dialogue.login.admitted.initiator == INITIATOR


@pytest.mark.parametrize("size", [2, 7, 20, 64])
def test_text_in_pieces(dialogue: Dialogue, size: int) -> None:
    whole = client.text([*NAMES, ("AuthMethod", "None")])
    pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
    for piece in pieces[:-1]:
        response = dialogue.say(piece, transit=False, more=True)
        assert (response.status, response.data, response.transit, response.more) == ((0, 0), b"", False, False)
    assert dialogue.say(pieces[-1]).transit


def test_text_in_pieces_is_bounded(dialogue: Dialogue) -> None:
    dialogue.say(b"A=" + b"1" * 8190, transit=False, more=True)
    dialogue.say(b"1" * 8192, transit=False, more=True)
    assert dialogue.refused(b"1" * 8192, transit=False, more=True) is LoginStatus.INITIATOR_ERROR


def long_answer(dialogue: Dialogue) -> Response:
    """The first piece of an answer of more than 8192 bytes."""
    keys = [(f"X-com.example.{'k' * 40}.{number}", "") for number in range(120)]
    dialogue.say(NAMES)
    whole = client.text(keys)
    dialogue.say(whole[:8000], csg=1, transit=False, more=True)
    return dialogue.say(whole[8000:], csg=1, nsg=3)


def test_an_answer_in_pieces(dialogue: Dialogue) -> None:
    first = long_answer(dialogue)
    assert (len(first.data), first.more, first.transit) == (8192, True, False)
    last = dialogue.commit(b"", csg=1, nsg=3)
    assert last.transit
    assert not last.more
    pairs = Response(last.bhs, first.data + last.data).pairs
    assert len(pairs) == 121
    assert {value for _, value in pairs} == {"262144", "NotUnderstood"}


def test_no_text_while_an_answer_has_not_ended(dialogue: Dialogue) -> None:
    long_answer(dialogue)
    assert dialogue.refused([("InitialR2T", "No")], csg=1, nsg=3) is LoginStatus.INITIATOR_ERROR


def test_the_refusal_of_a_key_is_kept_for_people(dialogue: Dialogue) -> None:
    dialogue.commit([*NAMES, ("MaxBurstLength", "1")], csg=1, nsg=3)
    assert dialogue.login.rejected == [("MaxBurstLength", "1")]


# ---- who is admitted -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "where", "status"),
    [
        (lambda node: node.remove_target(TARGET), {}, LoginStatus.TARGET_REMOVED),
        (lambda node: setattr(node, "closing", True), {}, LoginStatus.SERVICE_UNAVAILABLE),
        (lambda node: node.replace_target(IscsiTarget(TARGET, enabled=False)), {}, LoginStatus.SERVICE_UNAVAILABLE),
        (lambda node: None, {"tag": 2}, LoginStatus.NOT_FOUND),
        (
            lambda node: node.replace_target(IscsiTarget(TARGET, acl=(AclEntry(("iqn.other*",)),))),
            {},
            LoginStatus.AUTHORIZATION_FAILURE,
        ),
    ],
)
def test_targets_that_are_out_of_reach(
    change: Callable[[Node], object], where: dict[str, int], status: LoginStatus
) -> None:
    node = make_node()
    change(node)
    assert Dialogue(node, **where).refused(NAMES) is status


@pytest.mark.parametrize(("permanent", "status"), [(False, (1, 1)), (True, (1, 2))])
def test_redirection(permanent: bool, status: tuple[int, int]) -> None:
    target = IscsiTarget(TARGET, redirect=Redirect("[2001:db8::1]:3261,2", permanent))
    response = Dialogue(make_node(target)).say(NAMES)
    assert response.status == status
    assert response.keys == {"TargetAddress": "[2001:db8::1]:3261,2"}


def test_discovery_may_be_switched_off() -> None:
    node = make_node(discovery=DiscoveryPolicy(enabled=False))
    pairs = [("InitiatorName", INITIATOR), ("SessionType", "Discovery")]
    assert Dialogue(node).refused(pairs) is LoginStatus.SESSION_TYPE_NOT_SUPPORTED


# ---- noise -----------------------------------------------------------------------------------------------------------

_BHS = st.builds(
    lambda flags, rest, length: bytes([0x43, flags, 0, 0, 0]) + length.to_bytes(3, "big") + rest,
    st.integers(0, 255),
    st.one_of(st.just(client.login_bhs(0)[8:]), st.binary(min_size=40, max_size=40)),
    st.integers(0, 200),
)
_TEXT = st.one_of(
    st.binary(max_size=200),
    st.lists(
        st.tuples(st.sampled_from(["InitiatorName", "TargetName", "SessionType", "AuthMethod", "CHAP_A", "CHAP_N",
                                   "CHAP_R", "MaxBurstLength", "X-a"]),
                  st.sampled_from([INITIATOR, TARGET, "Normal", "Discovery", "CHAP", "None", "7", "0x00"])),
        max_size=5,
    ).map(client.text),
)  # fmt: skip


@given(st.lists(st.tuples(_BHS, _TEXT), max_size=8), st.booleans())
def test_noise_is_answered_or_refused(requests: list[tuple[bytes, bytes]], with_chap: bool) -> None:
    dialogue = chap_dialogue() if with_chap else Dialogue()
    for bhs, data in requests:
        length = int.from_bytes(bhs[5:8], "big")
        dialogue.send(bhs + (data + bytes(1024))[: length + -length % 4])
        if dialogue.state is State.REFUSED:
            break
        if dialogue.state is State.COMMIT:
            assert not with_chap, "noise got past CHAP"
            client.split(dialogue.login.finish(1))
            break
