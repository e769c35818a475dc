# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of what looks into rings: `python -m tests.virtqueue.fuzz_ring_view [libFuzzer options]
CORPUS`. Needs atheris (`make fuzz` installs it)."""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-not-found,unused-ignore]

with atheris.instrument_imports(include=["vhost_scsi.virtqueue", "vhost_scsi.daemon.queues"]):
    from tests.virtqueue.ring_view_fuzz import one_input

if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
