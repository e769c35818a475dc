# SPDX-License-Identifier: Apache-2.0
"""PCI functions over vfio-user, one day parallel-SCSI host adapters with a bus behind them: what is rare, in Python.

The socket, register accesses, interrupts and the client's memory are the data plane's (core/hba_*.c). Here a client
is accepted, a version agreed upon, memory mapped and taken away, interrupts set up, and the function reset.
"""

if not __name__.startswith("vhost_scsi."):
    raise ImportError("this folder is vhost_scsi.hba; it has no other import name")
