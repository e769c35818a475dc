# SPDX-License-Identifier: Apache-2.0
"""The words of QEMU's command line."""

from __future__ import annotations

import pytest

from vhost_scsi.errors import ConfigError
from vhost_scsi.qemu import Qemu, QemuError, device_options, memory_options
from vhost_scsi.qemu import options as module

OLD = Qemu(("q",), (7, 2, 22))
NEW = Qemu(("q",), (11, 1, 0))


def test_the_memory_can_be_mapped_by_another_process() -> None:
    words = memory_options(512)
    assert "memory-backend-memfd,id=mem,size=512M,share=on" in words
    assert words[words.index("-machine") + 1] == "memory-backend=mem"


@pytest.mark.parametrize("size", [0, -1])
def test_no_memory_is_refused(size: int) -> None:
    with pytest.raises(ConfigError):
        memory_options(size)


def test_the_device_of_an_old_qemu_does_not_reconnect() -> None:
    assert device_options("/run/s", 4, 64, qemu=OLD, bootindex=0) == [
        "-chardev",
        "socket,id=scsi0-backend,path=/run/s",
        "-device",
        "vhost-user-scsi-pci,id=scsi0,chardev=scsi0-backend,num_queues=4,virtqueue_size=64,bootindex=0",
    ]


def test_the_device_of_a_new_qemu_reconnects_unless_told_not_to() -> None:
    assert device_options("/s", qemu=NEW)[1].endswith(",reconnect-ms=1000")
    assert "reconnect" not in device_options("/s", qemu=NEW, reconnect=False)[1]


def test_a_comma_in_the_socket_path_is_doubled() -> None:
    assert "path=/a,,b" in device_options("/a,b", qemu=OLD)[1]


@pytest.mark.parametrize(("queues", "size"), [(0, 128), (255, 128), (1, 2), (1, 100), (1, 2048)])
def test_what_qemu_cannot_do_is_refused_before_it_starts(queues: int, size: int) -> None:
    with pytest.raises(ConfigError):
        device_options("/s", queues, size, qemu=OLD)


def test_a_property_that_this_qemu_lacks_is_refused_by_name(fake: Qemu) -> None:
    assert device_options("/s", qemu=fake, properties={"packed": "on"})[3].endswith(",packed=on")
    with pytest.raises(QemuError, match="no property in_order"):
        device_options("/s", qemu=fake, properties={"in_order": "on"})


def test_missing_efi_firmware_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OVMF_PAIRS", (("/no/code", "/no/vars"),))
    with pytest.raises(QemuError, match="package ovmf"):
        module.find_ovmf()
