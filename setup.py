# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: the data plane is compiled by cffi, after Python's tables were written into C.

Everything else about the package (names, dependencies, links) is in pyproject.toml.
"""

from __future__ import annotations

from setuptools import setup

setup(cffi_modules=["vhost_scsi/dataplane/build.py:ffibuilder"])
