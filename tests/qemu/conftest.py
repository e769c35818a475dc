# SPDX-License-Identifier: Apache-2.0
"""A fake QEMU for tests of the code around it; the real one is tested in qemu-tests/."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vhost_scsi.qemu import Qemu


@pytest.fixture
def fake_program(tmp_path: Path) -> Path:
    """A program that behaves as fake_qemu.py says."""
    program = tmp_path / "fake qemu"  # a blank in the path, as people have them
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("stty", "dmesg", "poweroff"):  # the shell runs on the host: there they would do harm
        (commands / name).write_text("#!/bin/sh\nexit 0\n")
        (commands / name).chmod(0o755)
    fake = Path(__file__).with_name("fake_qemu.py")
    program.write_text(f'#!/bin/sh\nFAKE_BIN="{commands}" exec {sys.executable} {fake} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def fake(fake_program: Path) -> Qemu:
    return Qemu((str(fake_program),), (10, 0, 2))
