# SPDX-License-Identifier: Apache-2.0
"""Measurements of the iSCSI transport against another target, run by `make bench-iscsi` as `python -m bench.iscsi`.

Like the rest of bench/ no part of the installed package, and never a test of speed.
"""
