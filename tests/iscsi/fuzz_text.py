# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of text requests in full-feature phase: `python -m tests.iscsi.fuzz_text [libFuzzer options]
CORPUS`. As `fuzz_login.py` otherwise.
"""

from __future__ import annotations

import logging
import sys

import atheris  # type: ignore[import-not-found,unused-ignore]

with atheris.instrument_imports(include=["vhost_scsi.iscsi"]):
    from tests.iscsi.fuzz import run_text

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    atheris.Setup(sys.argv, run_text)
    atheris.Fuzz()
