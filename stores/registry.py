# SPDX-License-Identifier: Apache-2.0
"""Every kind of store by its name. A new kind is a file with a `KIND`, a line here and a section in docs/stores.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vhost_scsi.stores import delay, faulty, file, memory, null, overlay, python
from vhost_scsi.stores.kind import StoreKind

KINDS: Final[Mapping[str, StoreKind]] = {
    kind.name: kind
    for kind in (
        memory.KIND,
        null.KIND,
        file.KIND,
        overlay.KIND,
        delay.KIND,
        faulty.KIND,
        python.KIND,
    )
}
