# SPDX-License-Identifier: Apache-2.0
"""The pytest fixture `iscsi_target`: an iSCSI target of its own for each test that asks for one.

pytest finds it through an entry point of the package. A suite that wants another store overrides `iscsi_store`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vhost_scsi.iscsi.fixture import Target


@pytest.fixture
def iscsi_store() -> str:
    """The store that `iscsi_target` serves as LUN 0."""
    return "memory:64M"


@pytest.fixture
def iscsi_target(iscsi_store: str) -> Iterator[Target]:
    """A target that runs while the test does; `.url` leads to its LUN 0."""
    # Here and not above: every pytest run of an environment that has the package loads this module.
    from vhost_scsi.iscsi.fixture import Target

    with Target(iscsi_store) as target:
        yield target
