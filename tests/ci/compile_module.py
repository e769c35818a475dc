# SPDX-License-Identifier: Apache-2.0
"""Compiles `vhost_scsi._core` in a copy of the tree with other flags, and compiles no file twice that has not changed.

    cd COPY && python .../tests/ci/compile_module.py OBJECTS [FLAG ...]

What is compiled, and how, is what vhost_scsi/dataplane/build.py says; the flags come after it and win. setuptools,
which builds the module that is installed, compiles everything when one file has changed. Here an object is kept in
OBJECTS under a hash of all that it is made from, so that a tree that is copied anew, or patched and restored, costs
nothing.
"""

from __future__ import annotations

import hashlib
import os
import runpy
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

JOBS = 2


def compile_one(source: Path, command: list[str], headers: bytes, objects: Path) -> Path:
    key = hashlib.sha256("\0".join(command).encode() + headers + source.read_bytes()).hexdigest()[:24]
    result = objects / f"{source.stem}-{key}.o"
    if not result.exists():
        fresh = result.with_suffix(".new")
        subprocess.run([*command, "-c", "-o", str(fresh), str(source)], check=True)
        os.replace(fresh, result)
    return result


def main(objects: Path, flags: list[str]) -> None:
    sys.path.insert(0, os.getcwd())
    ffi = runpy.run_path("vhost_scsi/dataplane/build.py")["ffibuilder"]
    name, preamble, _, how = ffi._assigned_source
    glue = Path(name.replace(".", "/") + ".c")
    ffi.emit_c_code(str(glue))
    compiler = [
        "gcc",
        "-fPIC",
        *how["extra_compile_args"],
        *(f"-D{macro}" if value is None else f"-D{macro}={value}" for macro, value in how["define_macros"]),
        *(f"-I{folder}" for folder in how["include_dirs"]),
        f"-I{sysconfig.get_path('include')}",
        *flags,
    ]
    headers = preamble.encode() + b"".join(Path(header).read_bytes() for header in how["depends"])
    objects.mkdir(parents=True, exist_ok=True)
    sources = [glue, *(Path(source) for source in how["sources"])]
    with ThreadPoolExecutor(JOBS) as pool:
        made = list(pool.map(lambda source: compile_one(source, compiler, headers, objects), sources))
    module = glue.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
    subprocess.run(["gcc", "-shared", "-o", str(module), *map(str, made), *flags, *how["extra_link_args"]], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
