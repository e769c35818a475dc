# SPDX-License-Identifier: Apache-2.0
"""iSCSI names (RFC 7143, 4.2.7): what is one, and when two are the same.

Names of our own targets must follow the format of their type. Initiators' names are taken as long as they are of a
known type and hold no character that a name cannot have: in many that are in use the date or the authority is no such
thing.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MAX_NAME: Final = 223  # bytes, 4.2.7.1

_KINDS: Final = ("iqn.", "eui.", "naa.")
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_TARGET: Final = re.compile(
    rf"iqn\.[0-9]{{4}}-(?:0[1-9]|1[0-2])\.{_LABEL}(?:\.{_LABEL})*(?::[^\s]+)?"
    r"|eui\.[0-9a-f]{16}|naa\.(?:[0-9a-f]{16}|[0-9a-f]{32})"
)
_INITIATOR: Final = re.compile(r"iqn\.[^\s]+|eui\.[0-9a-f]{16}|naa\.(?:[0-9a-f]{16}|[0-9a-f]{32})")


def normalised(name: str) -> str:
    """The form in which names are compared (4.2.7.2): as stringprep makes it, lower case and composed."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _checked(name: str, form: re.Pattern[str], whose: str) -> str:
    prepared = normalised(name)
    if len(prepared.encode()) > MAX_NAME:
        raise ValueError(f"{whose} name is longer than {MAX_NAME} bytes")
    if not form.fullmatch(prepared) or not all(_may_stand(character) for character in prepared):
        raise ValueError(f"{name!r} is no {whose} name: an iqn., eui. or naa. name is wanted")
    return prepared


def _may_stand(character: str) -> bool:
    """4.2.7.2: of ASCII only these; of the rest no punctuation, space or control."""
    if character.isascii():
        # Underscores are not in the RFC's list, but in many names that are in use.
        return character.isalnum() or character in "-.:_"
    return unicodedata.category(character)[0] in "LMN"


def target_name(name: str) -> str:
    """The normalised name. Raises ValueError, with a line for a person."""
    return _checked(name, _TARGET, "target")


def initiator_name(name: str) -> str:
    """The normalised name. Raises ValueError, with a line for a person."""
    return _checked(name, _INITIATOR, "initiator")


def initiator_pattern(pattern: str) -> str:
    """What an access list may have for a name: one, or one with `*` and `?`. Normalised; raises ValueError."""
    if not any(wildcard in pattern for wildcard in "*?"):
        return initiator_name(pattern)
    prepared = normalised(pattern)
    begins = re.split(r"[*?]", prepared, maxsplit=1)[0][:4]
    if not all(_may_stand(character) or character in "*?" for character in prepared):
        raise ValueError(f"{pattern!r} has characters that no initiator name has")
    if not any(kind.startswith(begins) for kind in _KINDS) or len(prepared.encode()) > MAX_NAME:
        raise ValueError(f"{pattern!r} is no pattern of initiator names: those begin with iqn., eui. or naa.")
    return prepared
