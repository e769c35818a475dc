# SPDX-License-Identifier: Apache-2.0
"""A SCSI target in one unprivileged process, and the tools to look into it.

This module holds the version and nothing else: importing it alone loads no other module, so that `vhost-scsi --version`
and shell completion are quick. The parts are imported by name (`vhost_scsi.scsi`, `vhost_scsi.vhost_user`, ...).
"""

__version__ = "0.1.0.dev0"

__all__ = ["__version__"]
