# SPDX-License-Identifier: Apache-2.0
"""The iSCSI target transport (RFC 7143); empty until that transport is built."""

if not __name__.startswith("vhost_scsi."):
    raise ImportError("this folder is vhost_scsi.iscsi; it has no other import name")
