# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of vhost-user connections: `python -m tests.fuzz.fuzz_vhost_user [libFuzzer options] CORPUS`.

Needs atheris (`make fuzz` installs it). libFuzzer writes an input that fails to a file, and runs it again when that
file is the argument. The C core is not instrumented here: it has fuzz targets of its own, and the corpus is replayed
over it under the sanitizers.
"""

from __future__ import annotations

import logging
import sys

import atheris  # type: ignore[import-not-found,unused-ignore]

with atheris.instrument_imports(include=["vhost_scsi.vhost_user", "vhost_scsi.target"]):
    from tests.fuzz.vhost_user import Rig

rig: Rig | None = None


def one_input(data: bytes) -> None:
    global rig
    if rig is None:
        # Not before: libFuzzer sets its signal handlers when it starts, and the core's for SIGBUS must come after.
        rig = Rig()
    rig.run(data)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
