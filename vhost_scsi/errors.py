# SPDX-License-Identifier: Apache-2.0
"""The root of every exception this package raises on purpose, and the exit code each class ends a command with.

It holds the classes that more than one layer needs; a class that belongs to one layer lives there and derives from
here. It does not hold SCSI outcomes (those are values) nor anything that a guest can cause past its transport.

    VhostScsiError                              1   anything we have no better word for
    ├── ConfigError                             3   what we were told to do makes no sense, or cannot be done here
    │   └── SocketInUse                         4   another live server already listens on that path
    ├── vhost_user.rules.ProtocolError          5   a vhost-user peer broke a rule (a server answers it, never exits)
    ├── hba.messages.Refused                    1   a vfio-user message is answered with an errno (likewise)
    ├── daemon.errors                     6-9, 14   no daemon, a refused request, a drain or a back end that failed
    └── qemu.errors                         10-13   QEMU, or the guest in it

Exit code 0 is success and 2 is the command line's own usage error; docs/exit-codes.md has the whole table.
"""

from __future__ import annotations


class VhostScsiError(Exception):
    """Root of all our exceptions; `str()` of it is one clear line for a person."""

    exit_code: int = 1


class ConfigError(VhostScsiError):
    """A path, descriptor, option or file given to us cannot be used; the message says which and why."""

    exit_code = 3


class SocketInUse(ConfigError):
    """A server that is alive already owns the socket path."""

    exit_code = 4

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: another server is listening on this socket")
        self.path = path
