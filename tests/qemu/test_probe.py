# SPDX-License-Identifier: Apache-2.0
"""KVM is used only when proven, and the proof is kept for one boot of the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vhost_scsi.errors import ConfigError
from vhost_scsi.qemu import Accel, Qemu, choose_accel, probe


class Boots:
    """Stands for the probe's boot and counts how often it is asked."""

    def __init__(self, works: bool) -> None:
        self.verdict = probe.Verdict(works, "as the test wants")
        self.count = 0

    def __call__(self, qemu: Qemu, accel: Accel, kernel: Path) -> probe.Verdict:
        self.count += 1
        return self.verdict


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host with an openable KVM device and a kernel; returns the kernel."""
    for name in ("kvm", "vmlinuz-6.1", "boot_id"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(probe, "KVM_DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(probe, "BOOT_ID", tmp_path / "boot_id")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("VHOST_SCSI_ACCEL", raising=False)
    return tmp_path / "vmlinuz-6.1"


def test_a_kernel_that_comes_up_proves_kvm_once(host: Path, fake: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    boots = Boots(True)
    monkeypatch.setattr(probe, "_boot", boots)
    assert [choose_accel(fake, host).name for _ in range(3)] == ["kvm", "kvm", "kvm"]
    assert boots.count == 1


def test_a_new_boot_of_the_host_is_probed_again(host: Path, fake: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_boot", Boots(True))
    assert choose_accel(fake, host).name == "kvm"
    probe.BOOT_ID.write_text("another")
    monkeypatch.setattr(probe, "_boot", Boots(False))
    assert choose_accel(fake, host) == Accel("tcg", fake.tcg_cpu, "as the test wants")


def test_a_damaged_verdict_is_made_anew(host: Path, fake: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    boots = Boots(True)
    monkeypatch.setattr(probe, "_boot", boots)
    choose_accel(fake, host)
    (host.parent / "cache/vhost-scsi/kvm.json").write_text("[1")
    choose_accel(fake, host)
    assert boots.count == 2


def test_a_guest_that_dies_in_kvm_means_tcg(host: Path, fake: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_QEMU", "dies")
    accel = choose_accel(fake, host)
    assert accel.name == "tcg"
    assert "Failed to connect" in accel.reason


def test_without_the_device_or_a_kernel_nothing_is_tried(
    host: Path, fake: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    boots = Boots(True)
    monkeypatch.setattr(probe, "_boot", boots)
    monkeypatch.setattr(probe, "host_kernels", list)
    assert "no readable kernel" in choose_accel(fake).reason
    probe.KVM_DEVICE.unlink()
    assert "missing" in choose_accel(fake, host).reason
    assert boots.count == 0


def test_the_environment_decides_and_nonsense_is_refused(
    host: Path, fake: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VHOST_SCSI_ACCEL", "kvm")
    assert choose_accel(fake, host).options() == ["-accel", "kvm", "-cpu", "host"]
    monkeypatch.setenv("VHOST_SCSI_ACCEL", "hax")
    with pytest.raises(ConfigError, match="hax"):
        choose_accel(fake, host)


def test_an_unwritable_cache_only_costs_another_probe(host: Path, fake: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    boots = Boots(True)
    monkeypatch.setattr(probe, "_boot", boots)
    monkeypatch.setenv("XDG_CACHE_HOME", str(host))  # a file where a directory should be
    assert [choose_accel(fake, host).name for _ in range(2)] == ["kvm", "kvm"]
    assert boots.count == 2


def test_the_running_kernel_is_tried_first(tmp_path: Path) -> None:
    names = [f"vmlinuz-{os.uname().release}", "vmlinuz-0.1"]
    for name in names:
        (tmp_path / name).write_text("")
    assert [path.name for path in probe.host_kernels(tmp_path)] == names
