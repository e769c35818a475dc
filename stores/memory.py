# SPDX-License-Identifier: Apache-2.0
"""`memory:SIZE[,huge-pages=on,limit=SIZE]`: bytes in this process, gone with it. The store is core/store_memory.c."""

from __future__ import annotations

from vhost_scsi._core import lib
from vhost_scsi.stores.errors import StoreConfigError
from vhost_scsi.stores.kind import Opening, StoreKind
from vhost_scsi.stores.store import Store, create
from vhost_scsi.stores.values import size, switch


def target_size(opening: Opening, kind: str) -> int:
    """The size that stands behind the colon."""
    try:
        return size(opening.target)
    except ValueError as error:
        raise StoreConfigError(f"{kind}:{opening.target}: {error}") from None


def _open(opening: Opening) -> Store:
    n, huge = target_size(opening, "memory"), opening.options.get("huge-pages", False)
    core = opening.core
    handle = create(lambda out, why, room: lib.vs_store_memory(core.handle, n, huge, out, why, room))
    if "limit" in opening.options:
        lib.vs_store_limit(handle, opening.options["limit"])
    return Store(core, handle)


KIND = StoreKind("memory", "size", {"huge-pages": switch, "limit": size}, _open)
