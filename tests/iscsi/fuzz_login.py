# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of logins: `python -m tests.iscsi.fuzz_login [libFuzzer options] CORPUS`.

Needs atheris (`make fuzz` installs it). What must hold stands in `fuzz.py`; an input that fails is written to a file,
and run again when that file is the argument.
"""

from __future__ import annotations

import logging
import sys

import atheris  # type: ignore[import-not-found,unused-ignore]

with atheris.instrument_imports(include=["vhost_scsi.iscsi"]):
    from tests.iscsi.fuzz import one_input

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
