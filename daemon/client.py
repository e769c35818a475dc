# SPDX-License-Identifier: Apache-2.0
"""Where the management socket is, and its other end, for the command line and for tests.

Synchronous, one request at a time. It needs no event loop and loads nothing heavy.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from vhost_scsi.daemon.errors import NoDaemon, RequestFailed

PROTOCOL: Final = 1  # what this client speaks; the daemon says what it speaks (rpc.py)
MAX_ANSWER: Final = 32 << 20
TIMEOUT: Final = 30.0  # seconds
ENVIRONMENT: Final = "VHOST_SCSI_CONTROL"


def directory() -> Path:
    """Where the sockets of this user's daemons are: below $XDG_RUNTIME_DIR, else a private directory in /tmp."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "vhost-scsi"
    return Path("/tmp") / f"vhost-scsi-{os.geteuid()}"


def socket_path(name: str = "default", explicit: str | None = None) -> Path:
    """The management socket of the daemon `name`: `explicit`, else $VHOST_SCSI_CONTROL, else by name."""
    if chosen := explicit or os.environ.get(ENVIRONMENT):
        return Path(chosen)
    return directory() / f"{name}.sock"


class ControlClient:
    """One connection, greeted. `daemon` is what the daemon said of itself: name, pid, version."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = TIMEOUT) -> None:
        self.path = Path(path)
        self._buffer = b""
        self._next_id = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            try:
                self._socket.connect(str(self.path))
            except OSError as error:
                raise NoDaemon(f"no daemon answers on {self.path}: {error.strerror or error}") from None
            self.daemon: dict[str, Any] = self.call("hello", protocol=PROTOCOL)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a method; RequestFailed when the daemon says no, NoDaemon when it goes away."""
        self._next_id += 1
        request = {"jsonrpc": "2.0", "id": self._next_id, "method": method, "params": params}
        try:
            # Who hangs up before it was asked has said why, and that can still be read.
            with contextlib.suppress(BrokenPipeError):
                self._socket.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(self._line())
        except OSError as error:
            raise NoDaemon(f"the daemon on {self.path} does not answer: {error}") from None
        except ValueError:
            raise NoDaemon(f"what answers on {self.path} is no daemon of ours") from None
        if not isinstance(answer, dict) or ("error" not in answer and not isinstance(answer.get("result"), dict)):
            raise NoDaemon(f"what answers on {self.path} is no daemon of ours")
        if "error" in answer:
            raise RequestFailed(int(answer["error"].get("code", 0)), str(answer["error"].get("message")))
        result: dict[str, Any] = answer["result"]
        return result

    def _line(self) -> bytes:
        parts = [self._buffer]
        size = len(self._buffer)
        while b"\n" not in parts[-1]:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionError("it hung up")
            parts.append(data)
            size += len(data)
            if size > MAX_ANSWER:
                raise ConnectionError("its answer is too long")
        line, _, self._buffer = b"".join(parts).partition(b"\n")
        return line
