# SPDX-License-Identifier: Apache-2.0
"""`overlay[(file=PATH,block=SIZE,keep=on,limit=SIZE)]:STORE`: copy-on-write over a store that is only read. The
store is core/store_overlay.c.
"""

from __future__ import annotations

import os

from vhost_scsi._core import ffi, lib
from vhost_scsi.stores.errors import StoreConfigError
from vhost_scsi.stores.kind import Opening, StoreKind
from vhost_scsi.stores.store import Store, create
from vhost_scsi.stores.values import size, switch

BLOCK = 4096
"""bytes; what most file systems and guests write in"""


def _open(opening: Opening) -> Store:
    core, lower, options = opening.core, opening.below(), opening.options
    path = options.get("file")
    if path is not None and "limit" in options:
        raise StoreConfigError(f"overlay: limit={options['limit']}: the file system limits a file; leave file= out")
    c_path = ffi.NULL if path is None else os.fsencode(path)
    block = min(options.get("block", BLOCK), 2**32 - 1)
    handle = create(
        lambda out, why, room: lib.vs_store_overlay(core.handle, lower.handle, c_path, block, out, why, room)
    )
    if "limit" in options:
        lib.vs_store_limit(handle, options["limit"])
    store = Store(core, handle, lower)
    if path is not None and not options.get("keep", False):
        # Without the map of what was written, which is in memory, the file is of no use to anybody: kill -9 cleans up.
        os.unlink(path)
    return store


KIND = StoreKind("overlay", "", {"file": str, "block": size, "keep": switch, "limit": size}, _open, reads_below=True)
