# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a store: while it is named or opened, and while it works.

    VhostScsiError
    ├── StoreError                  an io failed; `kind` says how, and decides the sense data
    └── ConfigError
        └── StoreConfigError        the store cannot be opened as it was asked for
            └── StoreInUse          ... because somebody else holds its lock: may be tried again

What an initiator is told of a StoreError is decided in scsi/sense.py, not here.
"""

from __future__ import annotations

from enum import IntEnum

from vhost_scsi.errors import ConfigError, VhostScsiError


class StoreErrorKind(IntEnum):
    """`enum vs_store_error` of core/api.h; a test holds the two together."""

    READ = 1
    WRITE = 2
    NO_SPACE = 3
    READ_ONLY = 4
    NOT_READY = 5
    BUSY = 6
    GONE = 7
    RANGE = 8
    UNSUPPORTED = 9
    FLUSH_LATCHED = 10
    INTERNAL = 11
    ABORTED = 12


class StoreError(VhostScsiError):
    """An io failed. A store written in Python raises it; everything else it raises counts as INTERNAL."""

    def __init__(self, kind: StoreErrorKind, message: str = "") -> None:
        super().__init__(message or kind.name.lower().replace("_", " "))
        self.kind = kind


class StoreConfigError(ConfigError):
    """One line: which store, and why it cannot be had."""


class StoreInUse(StoreConfigError):
    """Another process holds the lock."""
