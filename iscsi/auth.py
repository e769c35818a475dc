# SPDX-License-Identifier: Apache-2.0
"""The security stage of login (RFC 7143, 12): AuthMethod, and CHAP in one or both directions.

An `AuthPolicy` says who must prove what; an `Authenticator` follows one login through it and answers pairs. It reads no
socket and logs nothing; what it raises is told to people by the login.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import chap
from vhost_scsi.iscsi.chap import DEFAULT_ALGORITHMS, OPTION, Algorithm
from vhost_scsi.iscsi.codes import LoginStatus
from vhost_scsi.iscsi.negotiation import NegotiationError
from vhost_scsi.iscsi.secret import MIN_BYTES, Secret
from vhost_scsi.iscsi.text import Pair, binary, hexadecimal, number

_NOBODY: Final = Secret(secrets.token_bytes(32), "nobody")


class AuthError(NegotiationError):
    """The initiator is not who it has to be, or does not say so properly."""

    def __init__(self, text: str) -> None:
        super().__init__(text, LoginStatus.AUTHENTICATION_FAILURE)


@dataclass(frozen=True, slots=True)
class ChapUser:
    name: str
    secret: Secret


@dataclass(frozen=True, slots=True)
class AuthPolicy:
    """Without `users` nobody has to prove anything. `mutual` is what the target proves to initiators that ask.

    `algorithms` stand in the order in which the target chooses. Raises ConfigError for what would not be safe.
    """

    users: tuple[ChapUser, ...] = ()
    mutual: ChapUser | None = None
    algorithms: tuple[Algorithm, ...] = DEFAULT_ALGORITHMS
    require_mutual: bool = False

    def __post_init__(self) -> None:
        if len({user.name for user in self.users}) != len(self.users):
            raise ConfigError("a CHAP name stands there twice")
        if not self.algorithms:
            raise ConfigError(f"{OPTION}: none is left")
        if (self.mutual is not None or self.require_mutual) and not self.users:
            raise ConfigError("mutual CHAP needs a CHAP name and secret of the initiator as well")
        if self.require_mutual and self.mutual is None:
            raise ConfigError("mutual CHAP is required, and the target has no name and secret for it")
        # 12.1.3: one secret in both directions lets an initiator have the target answer its own challenge.
        if self.mutual is not None and any(user.secret == self.mutual.secret for user in self.users):
            raise ConfigError("the same CHAP secret stands in both directions")

    @property
    def required(self) -> bool:
        return bool(self.users)

    @property
    def warnings(self) -> list[str]:
        """What is legal and not wise, in plain words."""
        everybody = [*self.users, *([self.mutual] if self.mutual is not None else [])]
        return [
            f"the CHAP secret of {user.name} ({user.secret.source}) has fewer than {MIN_BYTES * 8} bits"
            for user in everybody
            if user.secret.is_short
        ]


NO_AUTHENTICATION: Final = AuthPolicy()


class OpenChallenges:
    """The challenges of all logins in progress, so that none can be sent back to us on another connection."""

    def __init__(self) -> None:
        self._challenges: set[bytes] = set()

    def add(self, challenge: bytes) -> None:
        self._challenges.add(challenge)

    def discard(self, challenge: bytes) -> None:
        self._challenges.discard(challenge)

    def __contains__(self, challenge: bytes) -> bool:
        return challenge in self._challenges

    def __len__(self) -> int:
        return len(self._challenges)


class _State(Enum):
    NOTHING_SAID = auto()
    METHOD_CHOSEN = auto()
    CHALLENGED = auto()
    DONE = auto()


class Authenticator:
    """Follows one login. `close` when the login has ended, however it did."""

    def __init__(
        self,
        policy: AuthPolicy,
        challenges: OpenChallenges,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._policy = policy
        self._challenges = challenges
        self._random = random
        self._state = _State.NOTHING_SAID
        self._algorithm = policy.algorithms[0]
        self._identifier = 0
        self._challenge = b""
        self.user: str | None = None
        """the CHAP name that was proven"""
        self.unanswered_proof: str | None = None
        """our own name, where we proved it in the last response: an initiator that goes then does not believe it"""

    @property
    def may_proceed(self) -> bool:
        """Whether the security stage may end."""
        return self._state is _State.DONE or (self._state is _State.NOTHING_SAID and not self._policy.required)

    @property
    def in_progress(self) -> bool:
        return self._state in (_State.METHOD_CHOSEN, _State.CHALLENGED)

    def close(self) -> None:
        self._challenges.discard(self._challenge)

    def receive(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The answers. Raises AuthError."""
        if not pairs:
            return []
        said = dict(pairs)
        wanted, step = _STEPS[self._state]
        unexpected = sorted(said.keys() - wanted)
        if unexpected:
            raise AuthError(f"{', '.join(unexpected)} at a point of the exchange where it has no place")
        return step(self, said)

    def _choose_method(self, said: Mapping[str, str]) -> list[Pair]:
        offered = said["AuthMethod"].split(",")
        method = "CHAP" if self._policy.required else "None"
        if method not in offered:
            raise AuthError(
                "CHAP is required, and the initiator does not offer it"
                if self._policy.required
                else "the initiator offers no AuthMethod but such as need a secret, and none is configured"
            )
        self._state = _State.METHOD_CHOSEN if self._policy.required else _State.DONE
        return [Pair("AuthMethod", method)]

    def _send_challenge(self, said: Mapping[str, str]) -> list[Pair]:
        offered = chap.named(said["CHAP_A"])
        chosen = next((each for each in self._policy.algorithms if each in offered), None)
        if chosen is None:
            raise AuthError(_no_algorithm(offered, self._policy))
        self._algorithm = chosen
        self._identifier = self._random(1)[0]
        self._challenge = self._random(chosen.size)
        self._challenges.add(self._challenge)
        self._state = _State.CHALLENGED
        return [
            Pair("CHAP_A", str(chosen.number)),
            Pair("CHAP_I", str(self._identifier)),
            Pair("CHAP_C", hexadecimal(self._challenge)),
        ]

    def _check_response(self, said: Mapping[str, str]) -> list[Pair]:
        missing = {"CHAP_N", "CHAP_R"} - said.keys()
        if missing:
            raise AuthError(f"{' and '.join(sorted(missing))} missing from the answer to the challenge")
        user = next((each for each in self._policy.users if each.name == said["CHAP_N"]), None)
        # The hash is made for a name that does not exist as well: time must not tell which names do.
        secret = _NOBODY if user is None else user.secret
        right = self._algorithm.verifies(_binary(said, "CHAP_R"), self._identifier, secret, self._challenge)
        if user is None:
            raise AuthError(f"no CHAP name {said['CHAP_N']!r} here")
        if not right:
            raise AuthError(f"wrong CHAP secret for {user.name!r}")
        answers = self._prove_ourselves(said)
        self.user = user.name
        self._state = _State.DONE
        return answers

    def _prove_ourselves(self, said: Mapping[str, str]) -> list[Pair]:
        if "CHAP_I" not in said and "CHAP_C" not in said:
            if self._policy.require_mutual:
                raise AuthError("mutual CHAP is required, and the initiator does not ask for it")
            return []
        if "CHAP_I" not in said or "CHAP_C" not in said:
            raise AuthError("CHAP_I and CHAP_C come together")
        mutual = self._policy.mutual
        if mutual is None:
            raise AuthError("the initiator wants the target to prove itself, and no secret is configured for that")
        challenge = _binary(said, "CHAP_C")
        try:
            identifier = number(said["CHAP_I"])
        except ValueError:
            identifier = -1
        if not 0 <= identifier <= 255:
            raise AuthError("CHAP_I is not a number from 0 to 255")
        # 12.1.3: the initiator's challenge MUST NOT be the target's, here or on a connection beside this one.
        if challenge in self._challenges:
            raise AuthError("the initiator sent a challenge of ours back")
        response = self._algorithm.response(identifier, mutual.secret, challenge)
        self.unanswered_proof = mutual.name
        return [Pair("CHAP_N", mutual.name), Pair("CHAP_R", hexadecimal(response))]

    def _nothing_more(self, said: Mapping[str, str]) -> list[Pair]:
        raise AuthError("authentication has ended")


_STEPS: Final[Mapping[_State, tuple[frozenset[str], Callable[[Authenticator, Mapping[str, str]], list[Pair]]]]] = {
    _State.NOTHING_SAID: (frozenset(("AuthMethod",)), Authenticator._choose_method),
    _State.METHOD_CHOSEN: (frozenset(("CHAP_A",)), Authenticator._send_challenge),
    _State.CHALLENGED: (frozenset(("CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C")), Authenticator._check_response),
    _State.DONE: (frozenset(), Authenticator._nothing_more),
}


def _binary(said: Mapping[str, str], name: str) -> bytes:
    try:
        return binary(said[name])
    except ValueError as error:
        raise AuthError(f"{name} is {error}") from None


def _no_algorithm(offered: Sequence[Algorithm], policy: AuthPolicy) -> str:
    allowed = ", ".join(each.label for each in policy.algorithms)
    if not offered:
        return f"the initiator offers CHAP with no algorithm that we know; allowed are {allowed}"
    theirs = ", ".join(each.label for each in offered)
    return (
        f"the initiator offers CHAP with {theirs} only, which is not allowed; {OPTION} = {allowed}, "
        f"{offered[0].label} would allow it"
    )
