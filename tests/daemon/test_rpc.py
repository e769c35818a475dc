# SPDX-License-Identifier: Apache-2.0
"""JSON-RPC 2.0 and the method table: what is answered to what, and that nothing a client says is more than an error."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_scsi.daemon import rpc
from vhost_scsi.daemon.rpc import Dispatcher, Method, Param
from vhost_scsi.errors import ConfigError

NOT_FINITE = (b"NaN", b"-Infinity", b"1e999", b"-1e999")


def double(number: int, note: str = "") -> dict[str, Any]:
    return {"doubled": 2 * number, "note": note}


def refuse() -> dict[str, Any]:
    raise ConfigError("the disk is gone")


TABLE = {
    row.name: row
    for row in (
        Method(
            "double",
            "twice a number",
            double,
            (Param("number", "integer", "what", required=True), Param("note", "string", "why")),
        ),
        Method("refuse", "always says no", refuse),
    )
}


def dispatcher(greeted: bool = True) -> Dispatcher:
    made = Dispatcher(TABLE, lambda: {"name": "test"})
    if greeted:
        assert ask(made, "hello", {"protocol": rpc.PROTOCOL})["result"]["name"] == "test"
    return made


def raw(made: Dispatcher, line: bytes) -> Any:
    answer = asyncio.run(made.answer(line))
    return None if answer is None else json.loads(answer)


def ask(made: Dispatcher, method: str, params: Any = None, **more: Any) -> Any:
    return raw(made, json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params, **more}).encode())


def test_a_result_carries_its_schema_version_and_the_id() -> None:
    answer = ask(dispatcher(), "double", {"number": 4})
    expected = {"schema_version": rpc.SCHEMA_VERSION, "doubled": 8, "note": ""}
    assert answer == {"jsonrpc": "2.0", "id": 7, "result": expected}


def test_nothing_is_done_before_the_handshake() -> None:
    assert ask(dispatcher(greeted=False), "double", {"number": 4})["error"]["code"] == rpc.NO_HANDSHAKE


@pytest.mark.parametrize("params", [None, {}, {"protocol": 99}, {"protocol": "1"}, {"protocol": True}, [1]])
def test_a_handshake_with_another_protocol_is_refused(params: Any) -> None:
    made = dispatcher(greeted=False)
    assert ask(made, "hello", params)["error"]["code"] == rpc.WRONG_PROTOCOL
    assert ask(made, "double", {"number": 4})["error"]["code"] == rpc.NO_HANDSHAKE


def test_help_is_the_table() -> None:
    methods = ask(dispatcher(), "help")["result"]["methods"]
    assert [method["name"] for method in methods] == list(TABLE)
    assert methods[0]["params"][0] == {"name": "number", "type": "integer", "required": True, "help": "what"}


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (None, "number is missing"),
        ({"number": "4"}, "number must be of type integer"),
        ({"number": True}, "number must be of type integer"),
        ({"number": 4, "nmber": 5}, "unknown parameter 'nmber', did you mean 'number'?"),
        ([4], "by name"),
    ],
)
def test_parameters_are_checked_by_their_rows(params: Any, words: str) -> None:
    error = ask(dispatcher(), "double", params)["error"]
    assert error["code"] == rpc.INVALID_PARAMS
    assert words in error["message"]


def test_an_unknown_method_names_the_nearest() -> None:
    error = ask(dispatcher(), "duoble")["error"]
    assert (error["code"], error["message"]) == (
        rpc.METHOD_NOT_FOUND,
        "unknown method 'duoble', did you mean 'double'?",
    )


def test_an_error_of_ours_is_an_answer() -> None:
    assert ask(dispatcher(), "refuse")["error"] == {"code": rpc.REFUSED, "message": "the disk is gone"}


def test_a_notification_is_not_answered() -> None:
    assert raw(dispatcher(), b'{"jsonrpc": "2.0", "method": "double", "params": {"number": 1}}') is None
    assert raw(dispatcher(), b'{"jsonrpc": "2.0", "method": "nothing"}') is None


def test_a_batch_is_answered_as_one() -> None:
    line = json.dumps(
        [
            {"jsonrpc": "2.0", "id": 1, "method": "double", "params": {"number": 1}},
            {"jsonrpc": "2.0", "method": "double", "params": {"number": 1}},
            3,
        ]
    ).encode()
    answers = raw(dispatcher(), line)
    assert [answer["id"] for answer in answers] == [1, None]
    assert answers[1]["error"]["code"] == rpc.INVALID_REQUEST


@pytest.mark.parametrize("count", [0, rpc.MAX_BATCH + 1])
def test_an_empty_or_a_huge_batch_is_refused(count: int) -> None:
    line = json.dumps([{"jsonrpc": "2.0", "id": 1, "method": "help"}] * count).encode()
    assert raw(dispatcher(), line)["error"]["code"] == rpc.INVALID_REQUEST


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"", rpc.PARSE_ERROR),
        (b"{", rpc.PARSE_ERROR),
        (b"\xff\xfe", rpc.PARSE_ERROR),
        (b"[" * 50_000, rpc.PARSE_ERROR),
        (b"9" * 10_000, rpc.PARSE_ERROR),
        *((b'{"jsonrpc": "2.0", "method": "help", "id": %s}' % number, rpc.PARSE_ERROR) for number in NOT_FINITE),
        (b"null", rpc.INVALID_REQUEST),
        (b"7", rpc.INVALID_REQUEST),
        (b"{}", rpc.INVALID_REQUEST),
        (b'{"jsonrpc": "1.0", "method": "help", "id": 1}', rpc.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "method": 7, "id": 1}', rpc.INVALID_REQUEST),
        (b'{"jsonrpc": "2.0", "method": "help", "id": {}}', rpc.INVALID_REQUEST),
    ],
)
def test_what_is_no_request_is_answered_with_an_error(line: bytes, code: int) -> None:
    answer = raw(dispatcher(), line)
    assert (answer["error"]["code"], answer["id"]) == (code, None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
requests = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0") | json_values, "method": st.sampled_from(["help", "double", "hello"]) | json_values},
    optional={"id": json_values, "params": json_values | st.dictionaries(st.just("number"), json_values)},
)


@given(requests | json_values | st.lists(requests, max_size=4))
def test_any_json_is_answered_with_json_or_not_at_all(message: Any) -> None:
    answer = raw(dispatcher(), json.dumps(message).encode())
    for one in answer if isinstance(answer, list) else [answer] if answer is not None else []:
        assert one["jsonrpc"] == "2.0"
        assert ("result" in one) != ("error" in one)


@given(st.binary(max_size=64))
def test_any_bytes_are_answered(line: bytes) -> None:
    raw(dispatcher(), line)


def test_an_answer_in_slices_is_the_same_answer() -> None:
    message = {
        "rows": [{"n": n, "text": 'a "\\u00e4" \n', "none": None, "list": [True, 1.5]} for n in range(rpc.PIECES)]
    }
    turns = 0

    async def beside() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> bytes:
        other = asyncio.ensure_future(beside())
        try:
            return await rpc.encode_in_slices(message)
        finally:
            other.cancel()

    assert asyncio.run(main()) == rpc.encode(message)
    assert turns > 10
