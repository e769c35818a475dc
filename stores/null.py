# SPDX-License-Identifier: Apache-2.0
"""`null:SIZE`: reads zeroes, keeps nothing. The store is core/store_null.c."""

from __future__ import annotations

from vhost_scsi._core import lib
from vhost_scsi.stores.kind import Opening, StoreKind
from vhost_scsi.stores.memory import target_size
from vhost_scsi.stores.store import Store, create


def _open(opening: Opening) -> Store:
    n, core = target_size(opening, "null"), opening.core
    return Store(core, create(lambda out, why, room: lib.vs_store_null(core.handle, n, out, why, room)))


KIND = StoreKind("null", "size", {}, _open)
