# SPDX-License-Identifier: Apache-2.0
"""The iSCSI target transport (RFC 7143): login and everything rare; full-feature phase is the data plane's.

`server` listens and drives logins, `login` follows one without I/O, `node` keeps targets and decides who may come in,
`session_keeper` begins and ends sessions, `rare` answers what the data plane sends up, `full_feature` is the boundary
to it. `pdu`, `text` and `keys` declare the wire format. Importing the package loads none of them.
"""

if not __name__.startswith("vhost_scsi."):
    raise ImportError("this folder is vhost_scsi.iscsi; it has no other import name")
