# SPDX-License-Identifier: Apache-2.0
"""CHAP in both directions, what is refused and in which words, and that secrets are not shown."""

from __future__ import annotations

import base64
import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.iscsi.client import chap_response
from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import chap
from vhost_scsi.iscsi.auth import Authenticator, AuthError, AuthPolicy, ChapUser, OpenChallenges
from vhost_scsi.iscsi.chap import Algorithm
from vhost_scsi.iscsi.secret import Secret
from vhost_scsi.iscsi.text import Pair

OURS, THEIRS = b"secret-of-initiator", b"secret-of-the-target"
USER = ChapUser("host", Secret(OURS))
MUTUAL = ChapUser("target", Secret(THEIRS))
ALL = tuple(Algorithm)


def start(policy: AuthPolicy | None = None, challenges: OpenChallenges | None = None) -> Authenticator:
    policy = policy or AuthPolicy((USER,), MUTUAL, ALL)
    return Authenticator(policy, OpenChallenges() if challenges is None else challenges)


def say(auth: Authenticator, **keys: str) -> dict[str, str]:
    return dict(auth.receive([Pair(key, value) for key, value in keys.items()]))


def challenged(auth: Authenticator, algorithms: str = "8,7,6,5") -> tuple[int, int, bytes]:
    """Algorithm, identifier and challenge."""
    assert say(auth, AuthMethod="CHAP,None") == {"AuthMethod": "CHAP"}
    assert auth.in_progress
    keys = say(auth, CHAP_A=algorithms)
    assert list(keys) == ["CHAP_A", "CHAP_I", "CHAP_C"]
    return int(keys["CHAP_A"]), int(keys["CHAP_I"]), bytes.fromhex(keys["CHAP_C"][2:])


def proof(auth: Authenticator, secret: bytes = OURS, algorithms: str = "8,7,6,5", name: str = "host") -> dict[str, str]:
    return {"CHAP_N": name, "CHAP_R": "0x" + chap_response(*_order(challenged(auth, algorithms), secret)).hex()}


def _order(told: tuple[int, int, bytes], secret: bytes) -> tuple[int, int, bytes, bytes]:
    return told[0], told[1], secret, told[2]


def refused(auth: Authenticator, **keys: str) -> str:
    with pytest.raises(AuthError) as caught:
        say(auth, **keys)
    assert not auth.may_proceed
    return str(caught.value)


@pytest.mark.parametrize("algorithm", [8, 7, 6, 5])
def test_each_algorithm(algorithm: int) -> None:
    auth = start()
    assert say(auth, **proof(auth, algorithms=str(algorithm))) == {}
    assert auth.may_proceed
    assert auth.user == "host"


@pytest.mark.parametrize("algorithm", [8, 7, 6, 5])
def test_each_algorithm_the_other_way(algorithm: int) -> None:
    auth = start()
    answer = say(auth, **proof(auth, algorithms=str(algorithm)), CHAP_I="200", CHAP_C="0x0102030405060708")
    expected = chap_response(algorithm, 200, THEIRS, bytes(range(1, 9)))
    assert answer == {"CHAP_N": "target", "CHAP_R": "0x" + expected.hex()}
    assert auth.may_proceed


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        (Algorithm.MD5, "d809c1dfb0ade02647ed4cfc017a42f2"),
        (Algorithm.SHA_1, "361807ae5c7edc06cf5f2a0064117cc873ed9714"),
        (Algorithm.SHA_256, "760b697bd77eea45742854f3fb91813e7b4175e10478597321dc5e7e3cff2f13"),
        (Algorithm.SHA3_256, "00cbd069857e8526c8024608bea1576243c7f3c976f08f4676fa706218e481d7"),
    ],
)
def test_known_responses(algorithm: Algorithm, response: str) -> None:
    # RFC 1994, 4.1: the hash of identifier, secret, challenge; worked out with md5sum, sha1sum, sha256sum, openssl.
    assert algorithm.response(1, Secret(b"abc"), b"def").hex() == response
    assert algorithm.size == len(response) // 2


@pytest.mark.parametrize(
    ("order", "offered", "chosen"),
    [(ALL, "5,6,7,8", 8), ((Algorithm.SHA_1, Algorithm.SHA_256), "8,7,6", 6), (ALL, "99,5,x,", 5)],
)
def test_our_order_decides(order: tuple[Algorithm, ...], offered: str, chosen: int) -> None:
    assert challenged(start(AuthPolicy((USER,), algorithms=order)), offered)[0] == chosen


def test_md5_is_off_and_the_refusal_says_how_to_allow_it() -> None:
    auth = start(AuthPolicy((USER,)))
    say(auth, AuthMethod="CHAP")
    why = refused(auth, CHAP_A="5")
    assert "MD5" in why
    assert f"{chap.OPTION} = SHA3-256, SHA-256, SHA-1, MD5" in why


def test_algorithms_that_nobody_knows_are_refused() -> None:
    auth = start()
    say(auth, AuthMethod="CHAP")
    assert "no algorithm that we know" in refused(auth, CHAP_A="1,2,3")


@pytest.mark.parametrize(
    ("policy", "offered", "answer"),
    [(AuthPolicy(), "None", "None"), (AuthPolicy(), "CHAP,None", "None"), (AuthPolicy((USER,)), "None,CHAP", "CHAP"),
     (AuthPolicy((USER,)), "SRP,KRB5,CHAP", "CHAP")],
)  # fmt: skip
def test_the_method(policy: AuthPolicy, offered: str, answer: str) -> None:
    assert say(start(policy), AuthMethod=offered) == {"AuthMethod": answer}


@pytest.mark.parametrize(("policy", "offered"), [(AuthPolicy((USER,)), "None"), (AuthPolicy((USER,)), ""),
                                                 (AuthPolicy(), "CHAP"), (AuthPolicy((USER,)), "chap")])  # fmt: skip
def test_no_method_in_reach(policy: AuthPolicy, offered: str) -> None:
    auth = start(policy)
    with pytest.raises(AuthError):
        say(auth, AuthMethod=offered)


def test_nothing_to_prove() -> None:
    assert start(AuthPolicy()).may_proceed
    assert not start(AuthPolicy((USER,))).may_proceed


def test_a_wrong_secret() -> None:
    auth = start()
    assert "wrong CHAP secret for 'host'" in refused(auth, **proof(auth, b"another secret"))


def test_a_name_of_nobody() -> None:
    auth = start()
    assert "no CHAP name 'guest'" in refused(auth, **proof(auth, name="guest"))


def test_a_response_of_another_length() -> None:
    auth = start()
    keys = proof(auth)
    refused(auth, CHAP_N="host", CHAP_R=keys["CHAP_R"] + "00")


def test_a_response_in_base64() -> None:
    auth = start()
    raw = bytes.fromhex(proof(auth)["CHAP_R"][2:])
    assert say(auth, CHAP_N="host", CHAP_R="0b" + base64.b64encode(raw).decode()) == {}
    assert auth.may_proceed


@pytest.mark.parametrize("value", ["", "0x", "12345", "0xzz", "0b=", "hello"])
def test_a_response_that_is_no_binary_value(value: str) -> None:
    auth = start()
    challenged(auth)
    assert "CHAP_R" in refused(auth, CHAP_N="host", CHAP_R=value)


@pytest.mark.parametrize("missing", ["CHAP_N", "CHAP_R"])
def test_half_a_response(missing: str) -> None:
    auth = start()
    keys = proof(auth)
    del keys[missing]
    assert missing in refused(auth, **keys)


@pytest.mark.parametrize(
    ("said", "keys"),
    [
        ([], {"CHAP_A": "7"}),
        ([], {"CHAP_N": "host", "CHAP_R": "0x00"}),
        ([{"AuthMethod": "CHAP"}], {"AuthMethod": "CHAP"}),
        ([{"AuthMethod": "CHAP"}], {"CHAP_N": "host", "CHAP_R": "0x00"}),
        ([{"AuthMethod": "CHAP"}], {"CHAP_A": "7", "CHAP_N": "host"}),
        ([{"AuthMethod": "CHAP"}, {"CHAP_A": "7"}], {"CHAP_A": "7"}),
    ],
)
def test_steps_out_of_order(said: list[dict[str, str]], keys: dict[str, str]) -> None:
    auth = start()
    for each in said:
        say(auth, **each)
    assert "no place" in refused(auth, **keys)


def test_nothing_comes_after_the_end() -> None:
    auth = start()
    say(auth, **proof(auth))
    with pytest.raises(AuthError):
        say(auth, CHAP_N="host")


def test_our_own_challenge_is_not_answered() -> None:
    auth = start()
    algorithm, identifier, challenge = challenged(auth)
    response = chap_response(algorithm, identifier, OURS, challenge)
    why = refused(
        auth, CHAP_N="host", CHAP_R="0x" + response.hex(), CHAP_I=str(identifier), CHAP_C="0x" + challenge.hex()
    )
    assert "challenge of ours" in why


def test_a_challenge_of_another_connection_is_not_answered_either() -> None:
    challenges = OpenChallenges()
    victim, attacker = start(challenges=challenges), start(challenges=challenges)
    _, _, challenge = challenged(victim)
    keys = proof(attacker)
    assert "challenge of ours" in refused(
        attacker, **keys, CHAP_I="1", CHAP_C="0b" + base64.b64encode(challenge).decode()
    )
    assert len(challenges) == 2
    victim.close()
    attacker.close()
    assert len(challenges) == 0


def test_challenges_differ() -> None:
    assert len({challenged(start())[2] for _ in range(20)}) == 20


@pytest.mark.parametrize("keys", [{"CHAP_I": "1"}, {"CHAP_C": "0x01"}, {"CHAP_I": "256", "CHAP_C": "0x01"},
                                  {"CHAP_I": "x", "CHAP_C": "0x01"}, {"CHAP_I": "1", "CHAP_C": "0x" + "0" * 2050},
                                  {"CHAP_I": "1", "CHAP_C": ""}])  # fmt: skip
def test_mutual_chap_that_is_not_well_formed(keys: dict[str, str]) -> None:
    auth = start()
    refused(auth, **proof(auth), **keys)


def test_mutual_chap_without_a_secret_for_it() -> None:
    auth = start(AuthPolicy((USER,)))
    assert "no secret is configured" in refused(auth, **proof(auth), CHAP_I="1", CHAP_C="0x01")


def test_mutual_chap_may_be_required() -> None:
    auth = start(AuthPolicy((USER,), MUTUAL, require_mutual=True))
    assert "mutual CHAP is required" in refused(auth, **proof(auth))


def test_a_wrong_initiator_gets_no_proof_from_us() -> None:
    auth = start()
    refused(auth, **proof(auth, b"another secret"), CHAP_I="1", CHAP_C="0x0102030405060708")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"users": (USER,), "mutual": ChapUser("t", Secret(OURS))}, "both directions"),
        ({"users": (USER, USER)}, "twice"),
        ({"mutual": MUTUAL}, "of the initiator as well"),
        ({"users": (USER,), "require_mutual": True}, "no name and secret"),
        ({"users": (USER,), "algorithms": ()}, "none is left"),
    ],
)
def test_policies_that_are_not_safe(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AuthPolicy(**arguments)


def test_a_short_secret_is_warned_of() -> None:
    assert AuthPolicy((USER,), MUTUAL).warnings == []
    (warning,) = AuthPolicy((ChapUser("host", Secret(b"12345678901", "a file")),)).warnings
    assert "96 bits" in warning
    assert "12345678901" not in warning


def test_algorithms_by_name() -> None:
    assert chap.algorithms(["md5", "SHA-256"]) == (Algorithm.MD5, Algorithm.SHA_256)
    for wrong in (["SHA-512"], []):
        with pytest.raises(ConfigError, match=chap.OPTION):
            chap.algorithms(wrong)


# ---- secrets ---------------------------------------------------------------------------------------------------------


def test_a_secret_is_shown_nowhere() -> None:
    secret = Secret(b"open sesame", "a file")
    policy = AuthPolicy((ChapUser("host", secret),))
    for shown in (repr(secret), str(secret), f"{policy}", repr(start(policy)), repr(ConfigError(secret))):
        assert "sesame" not in shown
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        copy.copy(secret)
    assert not hasattr(secret, "__dict__")


def secret_file(tmp_path: Path, content: bytes = b"open sesame!\n", mode: int = 0o600) -> str:
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_a_secret_from_a_file(tmp_path: Path) -> None:
    assert Secret.from_file(secret_file(tmp_path)).reveal() == b"open sesame!"
    assert Secret.from_file(secret_file(tmp_path, b" a \r\n", 0o400)).reveal() == b" a "


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o660])
def test_a_file_that_others_may_touch(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="chmod 0600"):
        Secret.from_file(secret_file(tmp_path, mode=mode))


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 257])
def test_a_file_without_a_secret_or_with_too_much(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError):
        Secret.from_file(secret_file(tmp_path, content))


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match=str(path)):
            Secret.from_file(str(path))


def test_a_secret_from_the_environment() -> None:
    assert Secret.from_environment("KEY", {"KEY": "value"}).reveal() == b"value"
    with pytest.raises(ConfigError, match="KEY is not set"):
        Secret.from_environment("KEY", {})
