# SPDX-License-Identifier: Apache-2.0
"""What the registry knows of a kind of store: its name, how it is written, how it is opened. One object for each kind,
in the file of that kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vhost_scsi.dataplane import Core
from vhost_scsi.stores.store import Store


@dataclass(frozen=True, slots=True)
class Opening:
    """What a kind is given to open itself. Option values have been read already."""

    core: Core
    target: str
    options: Mapping[str, Any]
    groups: tuple[Mapping[str, Any], ...]
    """as `options`, one for each rule, for kinds that take several"""
    lower: Store | None
    reading: bool
    """nobody above will write: open what is below for reading unless told otherwise"""

    def below(self) -> Store:
        """The store under a wrapper."""
        if self.lower is None:
            raise TypeError("a wrapper is opened with a store below it")
        return self.lower


@dataclass(frozen=True, slots=True)
class StoreKind:
    """`target`: the key in a table of what a URL has behind the colon; "" for a wrapper, which has a store there.
    `options` None: any option, and its value as it was written. `repeats`: its options come in several groups.
    """

    name: str
    target: str
    options: Mapping[str, Callable[[str], Any]] | None
    open: Callable[[Opening], Store]
    repeats: bool = False
    reads_below: bool = False

    @property
    def wraps(self) -> bool:
        return not self.target
