# SPDX-License-Identifier: Apache-2.0
"""Emulated parallel-SCSI host adapters over vfio-user; empty until that transport is built."""

if not __name__.startswith("vhost_scsi."):
    raise ImportError("this folder is vhost_scsi.hba; it has no other import name")
