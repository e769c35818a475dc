# SPDX-License-Identifier: Apache-2.0
"""The registry of handlers, and CDB fields by name."""

import pytest

from vhost_scsi.scsi.commands import find
from vhost_scsi.scsi.dispatch import HANDLERS, handles


def test_two_handlers_cannot_have_one_name():
    with pytest.raises(ValueError, match="inquiry"):
        handles("inquiry")(HANDLERS["inquiry"])


def test_a_field_that_the_command_does_not_have():
    with pytest.raises(KeyError, match="READ\\(10\\) has no evpd"):
        find(0x28, None)["evpd"]
