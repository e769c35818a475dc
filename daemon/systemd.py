# SPDX-License-Identifier: Apache-2.0
"""systemd's two small protocols: readiness messages (sd_notify) and sockets handed over (LISTEN_FDS).

Without systemd's variables in the environment both do nothing. Neither needs systemd, and no library.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

from vhost_scsi.errors import ConfigError

FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
MAX_FDS: Final = 1024


def notify(*words: str) -> None:
    """Tells the service manager, e.g. `READY=1`; a manager that is gone or busy is no reason to fail."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or address[0] not in "/@":
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        target = "\0" + address[1:] if address[0] == "@" else address
        try:
            sock.sendto("\n".join(words).encode(), target)
        except OSError:
            return


def notify_reloading() -> None:
    """A reload begins; `READY=1` ends it. The time is what Type=notify-reload asks for."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def take_listen_fds(environment: MutableMapping[str, str] = os.environ) -> list[tuple[str, int]]:
    """(name, descriptor) of the sockets we were given, and forgets them: children must not think they are theirs."""
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if not count or pid != str(os.getpid()):
        return []
    if not count.isdigit() or int(count) > MAX_FDS:
        raise ConfigError(f"LISTEN_FDS={count}: not a number of descriptors")
    taken = []
    for index in range(int(count)):
        fd = FIRST_FD + index
        try:
            os.set_inheritable(fd, False)
        except OSError as error:
            raise ConfigError(f"LISTEN_FDS={count}: descriptor {fd}: {error.strerror}") from error
        taken.append((names[index] if index < len(names) else "", fd))
    return taken
