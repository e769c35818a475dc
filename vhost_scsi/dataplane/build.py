# SPDX-License-Identifier: Apache-2.0
"""Builds `vhost_scsi._core`, the cffi API-mode module around the C data plane; setup.py names `ffibuilder`.

It is a script for the build, not part of the running program: nothing imports it. core/api.h is the cdef and the header
that the C sources include, so nothing is declared twice; core/gen/tables.h is written from the Python tables before the
compiler starts.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parents[2]
TABLES = ROOT / "core" / "gen" / "tables.h"

PREAMBLE = """
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>
#include "api.h"
/* What follows is cffi's own glue. -Werror is for our sources, and these warnings say nothing about them. */
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wcast-function-type"
"""


def write_tables() -> None:
    """Generate core/gen/tables.h; an unchanged file keeps its time, so that nothing is compiled again for it."""
    TABLES.parent.mkdir(exist_ok=True)
    fresh = TABLES.with_suffix(".h.new")
    subprocess.run([sys.executable, "-m", "vhost_scsi.scsi.generate", str(fresh)], cwd=ROOT, check=True)
    if TABLES.exists() and TABLES.read_bytes() == fresh.read_bytes():
        fresh.unlink()
    else:
        os.replace(fresh, TABLES)


def make_ffi() -> FFI:
    """The FFI object: cdef from api.h, sources and headers relative to the root, where setuptools wants them."""
    ffi = FFI()
    ffi.cdef((ROOT / "core" / "api.h").read_text())
    ffi.set_source(
        "vhost_scsi._core",
        PREAMBLE,
        sources=sorted(f"core/{path.name}" for path in (ROOT / "core").glob("*.c")),
        depends=sorted(str(path.relative_to(ROOT)) for path in (ROOT / "core").rglob("*.h")),
        include_dirs=["core"],
        define_macros=[("_GNU_SOURCE", None)],
        extra_compile_args=["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-pthread", "-fvisibility=hidden"],
        # The static library: the wheel then runs where no liburing package is installed.
        extra_link_args=["-pthread", "-l:liburing.a"],
    )
    return ffi


def write_stub() -> None:
    """Generate vhost_scsi/_core.pyi. By path: the package is not importable while it is being built."""
    spec = importlib.util.spec_from_file_location("stub", Path(__file__).with_name("stub.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(ROOT / "core" / "api.h", ROOT / "vhost_scsi" / "_core.pyi")


write_tables()
write_stub()
ffibuilder = make_ffi()
