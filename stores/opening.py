# SPDX-License-Identifier: Apache-2.0
"""Opens a named store with all that is below it, from the bottom upwards; what fails on the way is closed again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from vhost_scsi.dataplane import Core
from vhost_scsi.stores import python
from vhost_scsi.stores.errors import StoreInUse
from vhost_scsi.stores.kind import Opening
from vhost_scsi.stores.python import PythonStore
from vhost_scsi.stores.registry import KINDS
from vhost_scsi.stores.spec import StoreSpec, parse_store, read_options, store_from_table
from vhost_scsi.stores.store import Store

Source = str | Mapping[str, Any] | StoreSpec | PythonStore
RETRY_EVERY: Final = 0.01


def open_store(source: Source, core: Core) -> Store:
    """Opens what a URL, a table or a spec names, or what a PythonStore is. Raises StoreConfigError."""
    if isinstance(source, PythonStore):
        return python.serve(core, source)
    if isinstance(source, StoreSpec):
        return _open(source, core, reading=False)
    spec = parse_store(source)[0] if isinstance(source, str) else store_from_table(source)
    return _open(spec, core, reading=False)


async def open_store_when_free(
    source: Source, core: Core, patience: float, waits: Callable[[StoreInUse], None] = lambda why: None
) -> Store:
    """Waits up to `patience` seconds for the lock: after a crash the kernel ends the old process's I/O first, and its
    lock with it. `waits` is told once, if it has to. Raises StoreInUse after that.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    told = False
    while True:
        try:
            return open_store(source, core)
        except StoreInUse as why:
            if loop.time() >= until:
                raise
            if not told:
                waits(why)
            told = True
        await asyncio.sleep(RETRY_EVERY)


def _open(spec: StoreSpec, core: Core, *, reading: bool) -> Store:
    kind = KINDS[spec.kind]
    groups = tuple(read_options(kind, group) for group in spec.groups)
    lower = None if spec.lower is None else _open(spec.lower, core, reading=reading or kind.reads_below)
    try:
        return kind.open(Opening(core, spec.target, groups[0], groups, lower, reading))
    except BaseException:
        if lower is not None:
            lower.close()
        raise
