# SPDX-License-Identifier: Apache-2.0
"""`[file:]PATH[,cache=direct][,readonly=on][,lock=off]`: a regular file or block device. The store is
core/store_file.c.
"""

from __future__ import annotations

import os

from vhost_scsi._core import lib
from vhost_scsi.stores.kind import Opening, StoreKind
from vhost_scsi.stores.store import Store, create
from vhost_scsi.stores.values import switch, word


def _open(opening: Opening) -> Store:
    core, options, flags = opening.core, opening.options, 0
    if options.get("readonly", opening.reading):
        flags |= lib.VS_FILE_READ_ONLY
    if options.get("cache", "buffered") == "direct":
        flags |= lib.VS_FILE_DIRECT
    if not options.get("lock", True):
        flags |= lib.VS_FILE_NO_LOCK
    path = os.fsencode(opening.target)
    return Store(core, create(lambda out, why, room: lib.vs_store_file(core.handle, path, flags, out, why, room)))


KIND = StoreKind("file", "path", {"cache": word("direct", "buffered"), "readonly": switch, "lock": switch}, _open)
