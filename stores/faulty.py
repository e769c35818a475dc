# SPDX-License-Identifier: Apache-2.0
"""`faulty(RULE;RULE...):STORE`: ios that fail by rule, a rule being `op=read,lba=8-15,error=read,skip=2,count=1`. The
store is core/store_faulty.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vhost_scsi._core import ffi, lib
from vhost_scsi.stores.errors import StoreConfigError, StoreErrorKind
from vhost_scsi.stores.kind import Opening, StoreKind
from vhost_scsi.stores.store import OPERATIONS, Store, create
from vhost_scsi.stores.values import blocks, count, listed, size, word, words

FAULTS: Final = ("error", "short", "torn")
"""names of `enum vs_fault_kind`, in its order"""
ERRORS: Final = {kind.name.lower().replace("_", "-"): kind for kind in StoreErrorKind}
BLOCK: Final = 512


def _rule(options: Mapping[str, Any]) -> dict[str, int]:
    """One `struct vs_fault_rule`."""
    fault = options.get("fault", "error")
    ops = frozenset({"write"}) if fault == "torn" and "op" not in options else options.get("op")
    if ops is None:
        raise StoreConfigError(f"faulty: op is missing: {listed(OPERATIONS)}, several with + between them")
    # A read that fails failed to read; whatever else fails failed to write.
    error = options.get("error", "read" if ops == {"read"} else "write")
    offset, length = options.get("offset", 0), options.get("length", 0)
    if "lba" in options:
        if "offset" in options or "length" in options:
            raise StoreConfigError("faulty: a rule has either lba or offset and length")
        block = options.get("block", BLOCK)
        first, last = options["lba"]
        offset, length = first * block, 0 if last is None else (last - first + 1) * block
    elif "block" in options:
        raise StoreConfigError("faulty: block is the unit of lba, which the rule has not")
    if max(offset, length) >= 2**63:
        raise StoreConfigError("faulty: the range lies beyond any store")
    return {
        "offset": offset,
        "length": length,
        "skip": options.get("skip", 0),
        "count": options.get("count", 0),
        "ops": sum(1 << OPERATIONS.index(op) for op in ops),
        "kind": FAULTS.index(fault),
        "error": ERRORS[error],
    }


def _open(opening: Opening) -> Store:
    core, lower = opening.core, opening.below()
    rules = ffi.new("struct vs_fault_rule[]", [_rule(group) for group in opening.groups])
    n = len(opening.groups)
    handle = create(lambda out, why, room: lib.vs_store_faulty(core.handle, lower.handle, rules, n, out, why, room))
    return Store(core, handle, lower)


KIND = StoreKind(
    "faulty",
    "",
    {
        "op": words(*OPERATIONS),
        "fault": word(*FAULTS),
        "error": word(*ERRORS),
        "lba": blocks,
        "block": size,
        "offset": size,
        "length": size,
        "skip": count,
        "count": count,
    },
    _open,
    repeats=True,
)
