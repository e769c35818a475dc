# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a daemon as a whole, with the exit code that a command ends with.

    VhostScsiError
    ├── ConfigError (3)
    │   └── ConfigFileError    3   a line of the configuration file
    ├── NoDaemon               6   nobody answers on the management socket
    ├── RequestFailed          7   the daemon answered that it cannot
    ├── DrainTimeout           8   requests or connections did not end in time when the daemon was stopped
    ├── QueueBroken            9   `queue check` found something
    └── BackendFailed         14   `boot`: the back end stopped serving under the guest

docs/exit-codes.md has the whole table.
"""

from __future__ import annotations

from vhost_scsi.errors import ConfigError, VhostScsiError


class ConfigFileError(ConfigError):
    """A mistake in a configuration file; `line` and `column` count from 1, None where there is no one place."""

    def __init__(self, path: str, message: str, line: int | None = None, column: int | None = None) -> None:
        place = ":".join(str(part) for part in (path, line, column) if part is not None)
        super().__init__(f"{place}: {message}")
        self.path = path
        self.line = line
        self.column = column


class NoDaemon(VhostScsiError):
    """There is no daemon behind the management socket."""

    exit_code = 6


class RequestFailed(VhostScsiError):
    """A daemon refused a request; `code` is the JSON-RPC error code."""

    exit_code = 7

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class DrainTimeout(VhostScsiError):
    """The daemon was stopped and something did not end within its time."""

    exit_code = 8


class QueueBroken(VhostScsiError):
    """A driver's ring breaks rules, or a notification is missing."""

    exit_code = 9


class BackendFailed(VhostScsiError):
    """The back end ended while its guest was still running."""

    exit_code = 14
