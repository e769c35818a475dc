# SPDX-License-Identifier: Apache-2.0
"""The configuration as a value: what is accepted, and that each mistake is one line that names its place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vhost_scsi.daemon.config import DaemonConfig, Place, build
from vhost_scsi.errors import ConfigError

GOOD: dict[str, Any] = {
    "workers": 2,
    "lu": {"root": {"url": "disk.img"}, "data": {"store": {"type": "memory", "size": "1M"}, "block_size": 4096}},
    "port": {"vm0": {"socket": "/run/vm0.sock", "num_queues": 4, "workers": [0, 1]}, "vm1": {"fd": 5}},
    "map": {"vm0:0:0": "root", "vm0:0:1": "data", "vm1:255:16383": "root"},
}


def changed(*path: str, value: Any) -> dict[str, Any]:
    """GOOD with one value put in or replaced."""
    raw = copy.deepcopy(GOOD)
    table = raw
    for part in path[:-1]:
        table = table.setdefault(part, {})
    table[path[-1]] = value
    return raw


def refused(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(raw)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_good_configuration_says_where_each_unit_stands() -> None:
    config = build(GOOD)
    assert config.places() == (
        Place("vm0", 0, 0, "root"),
        Place("vm0", 0, 1, "data"),
        Place("vm1", 255, 16383, "root"),
    )


def test_it_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        build(GOOD).workers = 3  # type: ignore[misc]


def test_a_port_may_be_left_out_of_a_place_where_there_is_one() -> None:
    raw = {"lu": {"a": {"url": "x"}}, "port": {"p": {"socket": "s"}}, "map": {"1:2": "a"}}
    assert build(raw).places() == (Place("p", 1, 2, "a"),)


def test_a_uuid_is_read_from_text() -> None:
    text = "3c4d7b0a-6d0f-5b43-9a55-0f5f6e2f1b7c"
    assert str(build(changed("lu", "root", "uuid", value=text)).lu["root"].uuid) == text


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("lu", "root", "blok_size"), 512, "unknown key 'blok_size', did you mean 'block_size'?"),
        (("prot",), {}, "unknown key 'prot', did you mean 'port'?"),
        (("port", "vm0", "sock"), "x", "unknown key 'sock', did you mean 'socket'?"),
        (("xyzzy",), 1, "unknown key 'xyzzy'"),
        (("workers",), "2", "workers"),
        (("workers",), 0, "workers"),
        (("workers",), True, "workers"),
        (("engine",), "uring", "'uring' is not one of"),
        (("log_level",), "loud", "'loud' is not one of"),
        (("name",), "../x", "name"),
        (("lu", "root", "block_size"), 1000, "1000 is not a power of two"),
        (("lu", "root", "block_size"), 256, "256 is not a power of two"),
        (("lu", "root", "physical_block_size"), 256, "256 is not a power of two from 512"),
        (("lu", "root", "uuid"), "nonsense", "'nonsense' is not a UUID"),
        (("lu", "root", "uuid"), 7, "uuid"),
        (("lu", "root", "url"), "", "its URL is empty"),
        (("lu", "root", "store"), {"type": "null"}, "exactly one of url and store"),
        (("lu", "root", "readonly"), "on", "readonly"),
        (("lu", "a b"), {"url": "x"}, "'a b'"),
        (("lu", "spare"), {"url": "x"}, "logical unit spare is mapped nowhere"),
        (("port", "vm0", "socket"), "x\0.sock", "port vm0 socket: a control character in its path"),
        (("control",), "/run/../run/vm0.sock", "port vm0 socket: /run/vm0.sock is the management socket's path"),
        (("control",), "x\n.sock", "control: a control character"),
        (("state_dir",), "x\0", "state_dir: a control character"),
        (("port", "vm0", "fd"), 3, "socket and fd exclude each other"),
        (("port", "vm0", "num_queues"), 0, "num_queues"),
        (("port", "vm0", "workers"), [2], "there is no worker 2"),
        (("port", "vm0", "workers"), [], "names no worker"),
        (("port", "vm2"), {"socket": "/run/vm0.sock"}, "port vm0 has the same socket"),
        (("port", "vm2"), {"socket": "/run/x"}, "port vm2 has no logical unit"),
        (("map", "vm0:1:0"), "rot", "there is no logical unit 'rot', did you mean 'root'?"),
        (("map", "vmo:1:0"), "root", "there is no port 'vmo', did you mean 'vm"),
        (("map", "vm0:x:0"), "root", "is not PORT:TARGET:LUN"),
        (("map", "vm0:1"), "root", "'vm0:1' is not PORT:TARGET:LUN"),
        (("map", "1:0"), "root", "names no port, and there are several"),
        (("map", "vm0:256:0"), "root", "targets go to 255"),
        (("map", "vm0:0:16384"), "root", "LUNs to 16383"),
        (("map", "vm0:00:0"), "data", "LUN 0:0 of port vm0 is given twice (root and data)"),
        (("map", "vm0:-1:0"), "root", "is not PORT:TARGET:LUN"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(path: tuple[str, ...], value: Any, words: str) -> None:
    refused(changed(*path, value=value), words)


def test_two_units_with_one_uuid_are_refused() -> None:
    uuid = "3c4d7b0a-6d0f-5b43-9a55-0f5f6e2f1b7c"
    raw = changed("lu", "root", "uuid", value=uuid)
    raw["lu"]["data"]["uuid"] = uuid.upper()
    refused(raw, "logical unit root has the same UUID")


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from([*DaemonConfig.model_fields, "lu.root", "nonsense"])


@given(st.dictionaries(keys, plain, max_size=5))
def test_whatever_the_values_are_the_answer_is_a_configuration_or_one_line(raw: dict[str, Any]) -> None:
    answer: DaemonConfig | str
    try:
        answer = build(raw)
    except ConfigError as error:
        answer = str(error)
    assert isinstance(answer, DaemonConfig) or (answer and "\n" not in answer)


@given(st.text(max_size=12))
def test_a_place_is_understood_or_refused(place: str) -> None:
    raw = {"lu": {"a": {"url": "x"}}, "port": {"p": {"socket": "s"}}, "map": {place: "a"}}
    try:
        (found,) = build(raw).places()
    except ConfigError:
        return
    assert 0 <= found.target <= 255
    assert 0 <= found.lun <= 16383
