# SPDX-License-Identifier: Apache-2.0
"""`python -m vhost_scsi.cli`: the command without an installed script."""

from vhost_scsi.cli import main

main(prog_name="vhost-scsi")
