# SPDX-License-Identifier: Apache-2.0
"""The SCSI target core: tables, commands, sense, pages, unit attentions, task sets.

Pure Python that decides; it moves no data, opens no file and knows no transport. It is installed as
`vhost_scsi.scsi`; the folder's short name is not an import name.
"""

if __name__ != "vhost_scsi.scsi":
    raise ImportError("import vhost_scsi.scsi, not scsi")
