# SPDX-License-Identifier: Apache-2.0
"""Virtqueues seen from Python: layout, guest memory, the driver side and the read-only walker.

Not the data plane: the device side that serves a guest is C (core/). What is here drives a device in tests and
benches, and looks at live rings from outside. The split format (virtio 1.3, 2.7): `layout`, `split_driver`, `walker`
with `chains`. The packed format (2.8): `packed_layout`, `packed_driver`, `packed_walker`. Whoever does not care which
takes a `ring_driver.RingDriver`, and `rings.look`. `memory`, `accessors`, `ring_rules`, `virtio_scsi` and `scsi_driver`
are shared.
"""

if __name__ != "vhost_scsi.virtqueue":
    raise ImportError("import this package as vhost_scsi.virtqueue, not under its folder's name")
