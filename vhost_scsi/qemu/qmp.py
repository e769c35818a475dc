# SPDX-License-Identifier: Apache-2.0
"""QEMU's machine protocol, as far as we use it: commands with their replies, and events.

One JSON object a line over a socket that QEMU was started with. Synchronous; one thread at a time. It does not know
any command by name.
"""

from __future__ import annotations

import collections
import json
import select
import socket
import time
from typing import Any

from vhost_scsi.qemu.errors import QemuError

MAX_LINE = 16 << 20
EVENTS_KEPT = 256


class QmpClosed(QemuError):
    """QEMU is gone."""


class Qmp:
    """One connection. `events` holds those that nobody has waited for yet, oldest first."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = b""
        self._next_id = 0
        self.events: collections.deque[dict[str, Any]] = collections.deque(maxlen=EVENTS_KEPT)

    def handshake(self, timeout: float) -> None:
        """Leave capability negotiation. QEMU answers only when all its devices stand."""
        self.execute("qmp_capabilities", timeout=timeout)

    def execute(self, command: str, timeout: float = 60.0, **arguments: Any) -> Any:
        """Run one command; its return value, or QemuError with QEMU's own words."""
        self._next_id += 1
        request: dict[str, Any] = {"execute": command, "id": self._next_id}
        if arguments:
            request["arguments"] = arguments
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpClosed(f"QEMU is gone: {error}") from error
        deadline = time.monotonic() + timeout
        while True:
            message = self._receive(deadline, f"answer to {command}")
            if "event" in message:
                self.events.append(message)
            elif message.get("id") == self._next_id:
                if "error" in message:
                    raise QemuError(f"QEMU refuses {command}: {message['error'].get('desc')}")
                return message["return"]

    def wait_event(self, name: str, timeout: float = 60.0) -> dict[str, Any]:
        """The next event of that name, from among those seen already or to come."""
        deadline = time.monotonic() + timeout
        for event in list(self.events):
            if event["event"] == name:
                self.events.remove(event)
                return event
        while True:
            message = self._receive(deadline, f"event {name}")
            if message.get("event") == name:
                return message
            if "event" in message:
                self.events.append(message)

    def _receive(self, deadline: float, what: str) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([self._socket], [], [], remaining)[0]:
                raise QemuError(f"no {what} from QEMU in time")
            try:
                data = self._socket.recv(65536)
            except ConnectionError as error:
                raise QmpClosed(f"QEMU is gone: {error}") from error
            if not data:
                raise QmpClosed(f"QEMU is gone; no {what}")
            self._buffer += data
            if len(self._buffer) > MAX_LINE:
                raise QemuError("QEMU sent an endless line")
        line, self._buffer = self._buffer.split(b"\n", 1)
        message = json.loads(line)
        if not isinstance(message, dict):
            raise QemuError(f"QEMU sent something that is no object: {line[:80]!r}")
        return message

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
