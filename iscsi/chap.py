# SPDX-License-Identifier: Apache-2.0
"""CHAP (RFC 1994, RFC 7143 12.1.3): its algorithms, one row each, and the response to a challenge.

No states and no text keys: the order of the exchange is in `auth.py`.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from enum import Enum, unique
from typing import Final, NamedTuple

from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi.secret import Secret

OPTION: Final = "chap_algorithms"
"""the option that says which algorithms are allowed, as refusals name it"""


class AlgorithmRow(NamedTuple):
    number: int  # IANA's registry of PPP authentication algorithms
    label: str
    digest: str  # as hashlib calls it
    size: int  # bytes of a response


@unique
class Algorithm(Enum):
    """The value of CHAP_A, and what it stands for."""

    SHA3_256 = AlgorithmRow(8, "SHA3-256", "sha3_256", 32)
    SHA_256 = AlgorithmRow(7, "SHA-256", "sha256", 32)
    SHA_1 = AlgorithmRow(6, "SHA-1", "sha1", 20)
    MD5 = AlgorithmRow(5, "MD5", "md5", 16)

    @property
    def number(self) -> int:
        return self.value.number

    @property
    def label(self) -> str:
        return self.value.label

    @property
    def size(self) -> int:
        return self.value.size

    def response(self, identifier: int, secret: Secret, challenge: bytes) -> bytes:
        """RFC 1994, 4.1."""
        data = bytes([identifier]) + secret.reveal() + challenge
        # Where a policy takes MD5 away from everything that calls itself security, an operator allowed it here.
        return hashlib.new(self.value.digest, data, usedforsecurity=False).digest()

    def verifies(self, response: bytes, identifier: int, secret: Secret, challenge: bytes) -> bool:
        return hmac.compare_digest(response, self.response(identifier, secret, challenge))


DEFAULT_ALGORITHMS: Final = (Algorithm.SHA3_256, Algorithm.SHA_256, Algorithm.SHA_1)


def algorithms(labels: Sequence[str]) -> tuple[Algorithm, ...]:
    """The algorithms by their labels, best first. Raises ConfigError."""
    by_label = {each.label.upper(): each for each in Algorithm}
    unknown = [label for label in labels if label.upper() not in by_label]
    if unknown or not labels:
        known = ", ".join(each.label for each in Algorithm)
        raise ConfigError(f"{OPTION}: {', '.join(unknown) or 'nothing'} is no CHAP algorithm; there are {known}")
    return tuple(dict.fromkeys(by_label[label.upper()] for label in labels))


def named(said: str) -> list[Algorithm]:
    """Those of a CHAP_A list that we know."""
    by_number = {str(each.number): each for each in Algorithm}
    return [by_number[number] for number in said.split(",") if number in by_number]
