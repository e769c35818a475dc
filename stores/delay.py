# SPDX-License-Identifier: Apache-2.0
"""`delay(read=10ms,write=5ms,flush=1s):STORE`: each io waits first. The store is core/store_delay.c."""

from __future__ import annotations

from vhost_scsi._core import lib
from vhost_scsi.stores.kind import Opening, StoreKind
from vhost_scsi.stores.store import Store, create
from vhost_scsi.stores.values import duration


def _open(opening: Opening) -> Store:
    core, lower = opening.core, opening.below()
    read, write, flush = (opening.options.get(name, 0) for name in ("read", "write", "flush"))
    handle = create(
        lambda out, why, room: lib.vs_store_delay(core.handle, lower.handle, read, write, flush, out, why, room)
    )
    return Store(core, handle, lower)


KIND = StoreKind("delay", "", {"read": duration, "write": duration, "flush": duration}, _open)
