# SPDX-License-Identifier: Apache-2.0
"""How a store is named: by one line of text, or by a TOML table. Both become a `StoreSpec`, and it becomes text again.

    STORE   = [KIND ":"] TARGET {"," NAME ["=" VALUE]}           disk.img,cache=direct    memory:1G
            | WRAPPER ["(" RULE {";" RULE} ")"] ":" STORE        delay(read=10ms):disk.img
    RULE    = NAME ["=" VALUE] {"," NAME ["=" VALUE]}

A comma that belongs to a value is written twice. Without a KIND it is a file; `file:` goes before a path that looks
like something else. NAME alone means NAME=on. Nothing is opened here.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from vhost_scsi.stores.errors import StoreConfigError
from vhost_scsi.stores.kind import StoreKind
from vhost_scsi.stores.registry import KINDS

Options = dict[str, str]

NESTED_MAX: Final = 16
"""wrappers on top of each other"""


@dataclass(frozen=True, slots=True)
class StoreSpec:
    """`target` is "" and `lower` is set for a wrapper; `groups` has one member unless the kind takes several rules."""

    kind: str
    target: str
    groups: tuple[Options, ...]
    lower: StoreSpec | None = None

    def __str__(self) -> str:
        groups = [",".join(f"{name}={_doubled(value)}" for name, value in group.items()) for group in self.groups]
        if self.lower is not None:
            rules = ";".join(groups)
            return f"{self.kind}({rules}):{self.lower}" if rules else f"{self.kind}:{self.lower}"
        return ",".join([f"{self.kind}:{_doubled(self.target)}", *filter(None, groups)])


def absolute(spec: StoreSpec) -> StoreSpec:
    """The same store from wherever it is looked at."""
    groups = tuple(
        {name: os.path.abspath(value) if name == "file" else value for name, value in group.items()}
        for group in spec.groups
    )
    if spec.lower is not None:
        return replace(spec, groups=groups, lower=absolute(spec.lower))
    return replace(spec, groups=groups, target=os.path.abspath(spec.target)) if spec.kind == "file" else spec


def _doubled(text: str) -> str:
    return text.replace(",", ",,")


def suggestion(name: str, names: Iterable[str]) -> str:
    """`; did you mean x?`, or which there are."""
    names = sorted(set(names))
    close = difflib.get_close_matches(name, names, 1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(names)}" if names else "; it has none"


def _kind(name: str, text: str) -> StoreKind:
    if name not in KINDS:
        line = f"unknown store {name!r} in {text!r}{suggestion(name, KINDS)}"
        raise StoreConfigError(f"{line} (a file of that name is file:{text})" if f"{name}:" in text else line)
    return KINDS[name]


# ---- text -----------------------------------------------------------------------------------------------------------


def _fields(text: str) -> list[str]:
    """Cut at single commas; a double one stands for itself."""
    fields = [""]
    for piece in re.findall(r",,|,|[^,]+", text):
        if piece == ",":
            fields.append("")
        else:
            fields[-1] += "," if piece == ",," else piece
    return fields


def _options(fields: Iterable[str], where: str) -> Options:
    options: Options = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not name:
            raise StoreConfigError(f"{where}: an option without a name")
        if name in options:
            raise StoreConfigError(f"{where}: option {name} is given twice")
        options[name] = value if equals else "on"
    return options


def _wrapped(text: str) -> tuple[StoreKind, str, str] | None:
    """Kind, rules and the store below, when the text starts with a wrapper."""
    match = re.match(r"([A-Za-z][\w-]*)(?:\(([^()]*)\))?:", text)
    if match is None:
        _check_closed(text)
        return None
    if match[2] is None and match[1] not in KINDS:
        return None
    kind = _kind(match[1], text)
    if kind.wraps:
        return kind, match[2] or "", text[match.end() :]
    if match[2] is not None:
        raise StoreConfigError(f"{kind.name} wraps nothing: write {kind.name}:{kind.target.upper()},OPTION=VALUE")
    return None


def _check_closed(text: str) -> None:
    """Rules without an end would make all of it the name of a file."""
    match = re.match(r"([A-Za-z][\w-]*)\(([^()]*)$", text)
    if match is not None and match[1] in KINDS and KINDS[match[1]].wraps:
        raise StoreConfigError(
            f"{match[1]}: the parenthesis in {text!r} is not closed (a file of that name is file:{text})"
        )


def parse_store(text: str, claimed: Collection[str] = ()) -> tuple[StoreSpec, Options]:
    """The store, and those options behind it whose names the caller claims for itself. Raises StoreConfigError."""
    return _parse(text, claimed, 0)


def _parse(text: str, claimed: Collection[str], depth: int) -> tuple[StoreSpec, Options]:
    if not text:
        raise StoreConfigError("a store has no name" if not depth else "a wrapper has no store behind its colon")
    if depth > NESTED_MAX:
        raise StoreConfigError(f"more than {NESTED_MAX} wrappers on top of each other")
    wrapped = _wrapped(text)
    if wrapped is not None:
        kind, rules, rest = wrapped
        lower, others = _parse(rest, claimed, depth + 1)
        groups = tuple(_options(_fields(rule) if rule else [], kind.name) for rule in rules.split(";"))
        return _checked(StoreSpec(kind.name, "", groups, lower)), others
    target, *fields = _fields(text)
    match = re.match(r"([A-Za-z][\w-]*):", target)
    kind = _kind(match[1], target) if match else KINDS["file"]
    target = target[match.end() :] if match else target
    options = _options(fields, kind.name)
    others = {name: options.pop(name) for name in list(options) if name in claimed}
    return _checked(StoreSpec(kind.name, target, (options,)), claimed), others


# ---- tables ---------------------------------------------------------------------------------------------------------


def store_from_table(table: Mapping[str, Any] | str) -> StoreSpec:
    """`{type="delay", read="10ms", lower={type="file", path="disk.img"}}`; a text where a table could be is a URL."""
    return _from_table(table, 0)


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, str | int):
        return str(value)
    raise StoreConfigError(f"option {name}: a {type(value).__name__} makes no sense here")


def _from_table(table: Mapping[str, Any] | str, depth: int) -> StoreSpec:
    if isinstance(table, str):
        return _parse(table, (), depth)[0]
    if depth > NESTED_MAX:
        raise StoreConfigError(f"more than {NESTED_MAX} wrappers on top of each other")
    rest = dict(table)
    kind = _kind(_text("type", rest.pop("type", "file")), "the table's type")
    lower, target, rules = None, "", [{}] if not kind.repeats else rest.pop("rules", [])
    wanted = "lower" if kind.wraps else kind.target
    if wanted not in rest:
        raise StoreConfigError(f"{kind.name}: {wanted} is missing")
    if kind.wraps:
        lower = rest.pop("lower")
        if not isinstance(lower, str | Mapping):
            raise StoreConfigError(f"{kind.name}: lower is a table or a text")
        lower = _from_table(lower, depth + 1)
    else:
        target = _text(kind.target, rest.pop(kind.target))
    if not isinstance(rules, list) or not all(isinstance(rule, Mapping) for rule in rules):
        raise StoreConfigError(f"{kind.name}: rules is a list of tables")
    groups = [{name: _text(name, value) for name, value in rule.items()} for rule in rules if not rest or rule]
    if rest or not groups:
        groups.insert(0, {name: _text(name, value) for name, value in rest.items()})
    return _checked(StoreSpec(kind.name, target, tuple(groups), lower))


# ---- both -----------------------------------------------------------------------------------------------------------


def _checked(spec: StoreSpec, claimed: Collection[str] = ()) -> StoreSpec:
    """Names and values are known before anything is opened."""
    kind = KINDS[spec.kind]
    if not kind.wraps and not spec.target:
        raise StoreConfigError(f"{kind.name}: {kind.target} is missing")
    if len(spec.groups) > 1 and not kind.repeats:
        raise StoreConfigError(f"{kind.name}: takes one set of options, not several with ; between them")
    # A NUL would cut a path short where C takes it, and a line is what an error message is.
    if any(
        char < " " for text in (spec.target, *(v for group in spec.groups for v in group.values())) for char in text
    ):
        raise StoreConfigError(f"{kind.name}: a control character in its name or in an option")
    for group in spec.groups:
        read_options(kind, group, claimed)
    return spec


def read_options(kind: StoreKind, group: Options, claimed: Collection[str] = ()) -> dict[str, Any]:
    """The values that the texts stand for."""
    if kind.options is None:
        return dict(group)
    values = {}
    for name, text in group.items():
        if name not in kind.options:
            known = [*kind.options, *claimed]
            raise StoreConfigError(f"{kind.name}: unknown option {name!r}{suggestion(name, known)}")
        try:
            values[name] = kind.options[name](text)
        except ValueError as error:
            raise StoreConfigError(f"{kind.name}: {name}={text}: {error}") from None
    return values
