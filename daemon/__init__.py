# SPDX-License-Identifier: Apache-2.0
"""The running process: its configuration, life cycle, management socket and state directory.

It puts a core, stores, logical units and transports together and keeps them running; what these do is theirs. The
command line stands above it. It is installed as `vhost_scsi.daemon`; the folder's short name is not an import name.
"""

if not __name__.startswith("vhost_scsi."):
    raise ImportError("this folder is vhost_scsi.daemon; it has no other import name")
