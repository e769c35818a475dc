# SPDX-License-Identifier: Apache-2.0
"""What initiator and target have agreed on so far: applies the rows of `keys.py` to pairs as they arrive.

One object for the login of a connection, which lives on for the text negotiations of its full-feature phase. It answers
pairs; who carries them, and what an error costs, is decided by whoever asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from vhost_scsi.iscsi import keys
from vhost_scsi.iscsi.codes import LoginStatus
from vhost_scsi.iscsi.keys import KEYS, Key, Offer, Phase, Result, Scope, Sender, Value, Values
from vhost_scsi.iscsi.text import RESERVED_VALUES, Pair


class NegotiationError(Exception):
    """The initiator broke a rule of negotiation; the text is one line for the log and names the key.

    In login it ends the connection with `status`, in full-feature phase it is a Reject with reason Protocol Error.
    """

    def __init__(self, text: str, status: LoginStatus = LoginStatus.INITIATOR_ERROR) -> None:
        super().__init__(text)
        self.status = status


@dataclass(slots=True)
class Answers:
    """In the order of the pairs they answer. What others must answer is handed on."""

    pairs: list[Pair] = field(default_factory=list)
    authentication: list[Pair] = field(default_factory=list)
    send_targets: str | None = None
    rejected: list[Pair] = field(default_factory=list)
    """what we answered with Reject, for the log"""


class Negotiation:
    """`values` holds what is agreed, with the defaults of all that nobody mentioned."""

    def __init__(self, offer: Offer, *, leading: bool = True, values: Values | None = None) -> None:
        self.offer: Final = offer
        self.leading = leading
        self.values: dict[str, Value] = {**keys.DEFAULTS, **(values or {})}
        self._seen: set[str] = set()
        self._declared: set[str] = set()

    @property
    def discovery(self) -> bool:
        return self.values["SessionType"] == "Discovery"

    def join(self, session_values: Values) -> None:
        """This is one more connection of a session that exists: what was agreed for the session holds."""
        self.leading = False
        for name, value in session_values.items():
            if KEYS[name].scope is Scope.SESSION and name not in self._seen:
                self.values[name] = value

    def declare(self, pair: Pair) -> Pair:
        """Remembers that the target said it: the initiator may refuse it, and must not be answered for that."""
        self._declared.add(pair.key)
        return pair

    def said(self, name: str) -> str | None:
        """What the initiator declared, None if it did not."""
        return str(self.values[name]) if name in self._seen and name in self.values else None

    def restart(self) -> None:
        """A new text negotiation of full-feature phase: each key may be said again."""
        self._seen.clear()
        self._declared.clear()

    def receive(self, pairs: Sequence[Pair], phase: Phase) -> Answers:
        """Raises NegotiationError. Results are worked out in the order of the table and told in the order of the pairs,
        since what a result depends on may come later in the same request."""
        answers = Answers()
        open_pairs = [pair for pair in pairs if not self._is_reply(pair)]
        for pair in open_pairs:
            self._check(pair, phase)
        told: dict[str, str | None] = {}
        for pair in sorted(open_pairs, key=lambda each: keys.ORDER.get(each.key, len(keys.ORDER))):
            told[pair.key] = self._answer(pair, answers)
        for pair in open_pairs:
            text = told[pair.key]
            if text is not None:
                answers.pairs.append(Pair(pair.key, text))
                if text == "Reject":
                    answers.rejected.append(pair)
        return answers

    def _is_reply(self, pair: Pair) -> bool:
        """Whether the pair refuses what the target declared. A reserved value is never an offer (6.2)."""
        if pair.value not in RESERVED_VALUES:
            return False
        if pair.key in self._declared:
            return True
        raise NegotiationError(f"{pair.key}: {pair.value} is an answer, and nothing was asked")

    def _check(self, pair: Pair, phase: Phase) -> None:
        key = KEYS.get(pair.key)
        if pair.key in self._seen and not (key is not None and key.repeats):
            # 6.2: declared or negotiated twice
            raise NegotiationError(f"{pair.key} was said twice")
        self._seen.add(pair.key)
        if key is None:
            return
        if Sender.INITIATOR not in key.sender:
            raise NegotiationError(f"{key.name} is not the initiator's to say")
        if phase not in key.phases:
            raise NegotiationError(f"{key.name} may not be said in this stage")
        if key.leading_only and not self.leading:
            raise NegotiationError(f"{key.name} may be said on the first connection of a session only")

    def _answer(self, pair: Pair, answers: Answers) -> str | None:
        key = KEYS.get(pair.key)
        if key is None:
            return "NotUnderstood"
        if key.result is Result.AUTHENTICATION:
            answers.authentication.append(pair)
            return None
        if key.result is Result.SEND_TARGETS:
            answers.send_targets = pair.value
            return None
        if self._irrelevant(key):
            return "Irrelevant"
        answer = keys.answer(key, pair.value, self.offer, self.values)
        if key.name == "SessionType" and answer.text == "Reject":
            raise NegotiationError(
                "SessionType is neither Normal nor Discovery", LoginStatus.SESSION_TYPE_NOT_SUPPORTED
            )
        if answer.value is not None:
            self.values[key.name] = answer.value
        return answer.text

    def _irrelevant(self, key: Key) -> bool:
        return (self.discovery and not key.in_discovery) or key.irrelevant(self.values)
