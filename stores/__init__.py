# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of a logical unit live: naming, opening and driving stores. What they do is in docs/stores.md.

The stores themselves are C (core/store_*.c), or written by a user on `PythonStore`. Nothing here knows SCSI.
"""

if not __name__.startswith("vhost_scsi."):
    raise ImportError("this folder is vhost_scsi.stores; it has no other import name")

from vhost_scsi.stores.errors import StoreConfigError, StoreError, StoreErrorKind, StoreInUse
from vhost_scsi.stores.opening import open_store, open_store_when_free
from vhost_scsi.stores.python import PythonStore
from vhost_scsi.stores.registry import KINDS
from vhost_scsi.stores.spec import StoreSpec, absolute, parse_store, store_from_table
from vhost_scsi.stores.store import Capability, Extent, Store, StoreInfo, StoreStats

__all__ = [
    "KINDS",
    "Capability",
    "Extent",
    "PythonStore",
    "Store",
    "StoreConfigError",
    "StoreError",
    "StoreErrorKind",
    "StoreInUse",
    "StoreInfo",
    "StoreSpec",
    "StoreStats",
    "absolute",
    "open_store",
    "open_store_when_free",
    "parse_store",
    "store_from_table",
]
