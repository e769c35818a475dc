# SPDX-License-Identifier: Apache-2.0
"""Measurements of the data plane, run by `make bench` as `python -m bench` from a checkout.

Not part of the installed package, and never a test: what these figures are depends on the machine and on who else uses
it. tests/bench/ only sees to it that each measurement runs and counts correctly.
"""
