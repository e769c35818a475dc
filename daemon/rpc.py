# SPDX-License-Identifier: Apache-2.0
"""JSON-RPC 2.0 as the management socket speaks it: one object a line, a version handshake first, everything bounded.

The method table is made of rows: name, parameters, what it does. Checking of parameters and `help` are derived from
them. This module does no I/O; `control.py` has the socket.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vhost_scsi.daemon.config import nearest
from vhost_scsi.errors import VhostScsiError
from vhost_scsi.slices import sliced

PROTOCOL: Final = 1
"""of the handshake; a daemon that cannot speak a client's number says which it speaks"""
SCHEMA_VERSION: Final = 1
"""of every result; grows when a field changes its meaning or goes away, not when one is added"""
MAX_REQUEST: Final = 64 << 10
MAX_ANSWER: Final = 32 << 20
MAX_BATCH: Final = 64
PIECES: Final = 4000
"""words and marks of an answer that are written in one turn of the loop: some 2 ms"""
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
NO_HANDSHAKE, WRONG_PROTOCOL, REFUSED, TOO_MANY = -32001, -32002, -32003, -32004

TYPES: Final[Mapping[str, type]] = {"string": str, "integer": int, "boolean": bool, "object": dict}


class RpcError(VhostScsiError):
    """An answer that is an error; `message` is for a person."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter, by name."""

    name: str
    type: str
    help: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table. `call` gets the parameters that were given, by name."""

    name: str
    help: str
    call: Callable[..., dict[str, Any] | Awaitable[dict[str, Any]]]
    params: tuple[Param, ...] = ()

    def check(self, given: Any) -> dict[str, Any]:
        """The parameters as keywords; RpcError for what the row does not allow."""
        if given is None:
            given = {}
        if not isinstance(given, dict):
            raise RpcError(INVALID_PARAMS, f"{self.name}: parameters are given by name, in an object")
        known = {param.name: param for param in self.params}
        for name, value in given.items():
            if name not in known:
                raise RpcError(
                    INVALID_PARAMS, f"{self.name}: unknown parameter {name[:64]!r}{nearest(name[:64], known)}"
                )
            wanted = known[name].type
            if type(value) is not TYPES[wanted]:
                raise RpcError(INVALID_PARAMS, f"{self.name}: {name} must be of type {wanted}")
        for param in self.params:
            if param.required and param.name not in given:
                raise RpcError(INVALID_PARAMS, f"{self.name}: {param.name} is missing")
        return dict(given)

    def described(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "help": self.help,
            "params": [
                {"name": param.name, "type": param.type, "required": param.required, "help": param.help}
                for param in self.params
            ],
        }


class Dispatcher:
    """One connection's view of the method table: it remembers whether the handshake was made."""

    def __init__(self, methods: Mapping[str, Method], hello: Callable[[], dict[str, Any]]) -> None:
        self._methods = methods
        self._hello = hello
        self._greeted = False

    async def answer(self, line: bytes) -> bytes | None:
        """The line that answers a line; None where only notifications were sent."""
        try:
            message = json.loads(line, parse_float=_finite, parse_constant=_finite)
        except (ValueError, RecursionError):
            return encode(error_answer(None, PARSE_ERROR, "not JSON"))
        if isinstance(message, list):
            if not 1 <= len(message) <= MAX_BATCH:
                return encode(error_answer(None, INVALID_REQUEST, f"a batch has 1 to {MAX_BATCH} requests"))
            answers = [answer for item in message if (answer := await self._one(item)) is not None]
            return await encode_in_slices(answers) if answers else None
        answer = await self._one(message)
        return await encode_in_slices(answer) if answer is not None else None

    async def _one(self, request: Any) -> dict[str, Any] | None:
        if (
            not isinstance(request, dict)
            or request.get("jsonrpc") != "2.0"
            or not isinstance(request.get("method"), str)
        ):
            return error_answer(None, INVALID_REQUEST, "not a JSON-RPC 2.0 request")
        ident = request.get("id")
        if isinstance(ident, dict | list | bool):
            return error_answer(None, INVALID_REQUEST, "id is a string, a number or null")
        try:
            result = await self._call(request["method"], request.get("params"))
        except RpcError as error:
            answer = error_answer(ident, error.code, str(error))
        except VhostScsiError as error:
            answer = error_answer(ident, REFUSED, str(error))
        else:
            answer = {"jsonrpc": "2.0", "id": ident, "result": {"schema_version": SCHEMA_VERSION, **result}}
        # Without an id it is a notification: carried out, never answered.
        return answer if "id" in request else None

    async def _call(self, name: str, params: Any) -> dict[str, Any]:
        if name == "hello":
            wanted = params.get("protocol") if isinstance(params, dict) else None
            if wanted != PROTOCOL or isinstance(wanted, bool):
                raise RpcError(WRONG_PROTOCOL, f"this daemon speaks protocol {PROTOCOL}, not {wanted!r:.20}")
            self._greeted = True
            return {"protocol": PROTOCOL, **self._hello()}
        if not self._greeted:
            raise RpcError(NO_HANDSHAKE, f"the first request is hello, with protocol {PROTOCOL}")
        if name == "help":
            return {"methods": [method.described() for method in self._methods.values()]}
        method = self._methods.get(name)
        if method is None:
            raise RpcError(METHOD_NOT_FOUND, f"unknown method {name[:64]!r}{nearest(name[:64], self._methods)}")
        result = method.call(**method.check(params))
        return await result if inspect.isawaitable(result) else result


def _finite(text: str) -> float:
    # NaN and Infinity are Python's own additions, and 1e999 becomes one of them: an answer with it would be no JSON.
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not a finite number")
    return number


def error_answer(ident: Any, code: int, message: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": ident, "error": {"code": code, "message": message}}


def encode(message: Any) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


async def encode_in_slices(message: Any) -> bytes:
    """As `encode`, for answers that may be megabytes: others have their turn meanwhile."""
    pieces = [piece async for piece in sliced(_ENCODER.iterencode(message), PIECES)]
    return "".join(pieces).encode() + b"\n"
