# SPDX-License-Identifier: Apache-2.0
"""The iSCSI target transport (RFC 7143): login and everything rare; full-feature phase is the data plane's.

`server` listens and drives logins, `login` follows one without I/O, `node` keeps targets and decides who may come in,
`session_keeper` begins and ends sessions, `rare` answers what the data plane sends up, `full_feature` is the boundary
to it. `pdu`, `text` and `keys` declare the wire format. Importing the package loads none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if not __name__.startswith("vhost_scsi."):
    raise ImportError("this folder is vhost_scsi.iscsi; it has no other import name")

if TYPE_CHECKING:
    from vhost_scsi.iscsi.fixture import Target

__all__ = ["Target"]


def __getattr__(name: str) -> Any:
    """`vhost_scsi.iscsi.Target`, which stands on everything, when it is asked for."""
    if name == "Target":
        from vhost_scsi.iscsi.fixture import Target

        return Target
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
