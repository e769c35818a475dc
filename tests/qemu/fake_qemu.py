# SPDX-License-Identifier: Apache-2.0
"""Stands in for QEMU: answers QMP and puts a shell on the serial descriptor. Not a test; started by them.

$FAKE_QEMU says how it behaves: `shell` (default), `dies` at once with words on stderr, `mute` never answers QMP,
`login` asks for a login first.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading


def descriptor(name: str) -> int:
    match = re.search(rf"id={name},fd=(\d+)", " ".join(sys.argv))
    assert match is not None, sys.argv
    return int(match[1])


def serve_qmp(connection: socket.socket) -> None:
    stream = connection.makefile("rwb")
    stream.write(b'{"QMP": {"version": {}, "capabilities": []}}\n')
    stream.flush()
    for line in stream:
        request = json.loads(line)
        answer: dict[str, object] = {"return": {}, "id": request["id"]}
        if request["execute"] == "no-such-command":
            answer = {"error": {"class": "CommandNotFound", "desc": "it is unknown"}, "id": request["id"]}
        stream.write(b'{"event": "RESUME"}\n' + json.dumps(answer).encode() + b"\n")
        stream.flush()
        if request["execute"] == "quit":
            os._exit(0)


def main() -> None:
    if "--version" in sys.argv:
        print("QEMU emulator version 10.0.2 (fake)")
        return
    if "help" in sys.argv[-1]:
        print("vhost-user-scsi-pci options:\n  packed=<bool>  - on/off\n  num_queues=<uint32>")
        return
    mode = os.environ.get("FAKE_QEMU", "shell")
    if mode == "dies":
        print("fake: Failed to connect to '/nowhere': No such file", file=sys.stderr)
        sys.exit(1)
    if mode == "mute":
        threading.Event().wait()
    threading.Thread(target=serve_qmp, args=(socket.socket(fileno=descriptor("qmp")),), daemon=True).start()
    serial = descriptor("serial")
    if mode == "login":
        os.write(serial, b"\x1b[0mfake login: ")
        os.read(serial, 100)
        os.write(serial, b"root@fake:~# ")
    environment = {**os.environ, "PATH": f"{os.environ['FAKE_BIN']}:{os.environ['PATH']}"}
    os.set_inheritable(serial, True)
    status = subprocess.run(["sh"], stdin=serial, stdout=serial, stderr=serial, env=environment).returncode
    sys.exit(0 if status == 77 else status)


if __name__ == "__main__":
    main()
