# SPDX-License-Identifier: Apache-2.0
"""What every guest test needs: QEMU, an accelerator, the demo image and the tiny guest, built on first use.

A missing tool or a guest that cannot be built is a failure, never a skip: `make deps` installs what packages.txt
lists. Every QEMU that a test starts is gone when the test ends.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the builders stand beside the tests and are no installed package

import image
import initrd
import sg3_utils
from backend import Bed
from backend import bed as bed
from backend import shared_bed as shared_bed

from vhost_scsi.qemu import Accel, Firmware, Guest, GuestConfig, Qemu, choose_accel, find_qemu

# TCG on a busy machine: ten times what an idle one needs. A hang is still found, only later.
BOOT_TIMEOUT = 400.0
TINY_BOOT_TIMEOUT = 120.0

StartTiny = Callable[..., Guest]


TEST_TIMEOUT = 1200.0  # s, for pytest-timeout; the first test may have to build its guest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full_boot: boots the whole Debian image (20 s and more)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.guest)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TEST_TIMEOUT))


@pytest.fixture(scope="session")
def qemu() -> Qemu:
    """The QEMU that is installed."""
    return find_qemu()


@pytest.fixture(scope="session")
def accel(qemu: Qemu) -> Accel:
    """KVM where the tests' own kernel starts in it, else TCG."""
    return choose_accel(qemu, initrd.tiny_guest().kernel)


@pytest.fixture(scope="session")
def pristine_image() -> Path:
    """The built demo image, read-only and shared by all; a test boots a copy."""
    return image.demo_image()


@pytest.fixture
def demo_image(pristine_image: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the demo image for one test; removed afterwards, pytest keeps its directories for a while."""
    copy = image.copy_image(pristine_image, tmp_path / "debian.img")
    yield copy
    copy.unlink(missing_ok=True)


@pytest.fixture
def start_guest(qemu: Qemu, accel: Accel, tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    """A factory: `start_guest(*options, firmware=..., memory_mib=...)` starts a QEMU that boots from its disks."""
    with contextlib.ExitStack() as guests:

        def start(*options: str, **settings: object) -> Guest:
            log = tmp_path / f"serial-{len(list(tmp_path.glob('serial-*')))}.log"
            config = GuestConfig(qemu, accel, extra=options, serial_log=log, **settings)  # type: ignore[arg-type]
            return guests.enter_context(Guest(config))

        yield start


@pytest.fixture
def tiny_guest(start_guest: Callable[..., Guest]) -> StartTiny:
    """A factory: `tiny_guest(*options)` starts the small guest and returns it with a root shell that takes `run`."""
    built = initrd.tiny_guest()

    def start(*options: str, **settings: object) -> Guest:
        defaults: dict[str, object] = {"memory_mib": 512, "no_reboot": True, "firmware": Firmware.BIOS}
        guest = start_guest(
            *options, kernel=built.kernel, initrd=built.initrd, append=built.append, **{**defaults, **settings}
        )
        guest.expect(built.ready, TINY_BOOT_TIMEOUT)
        return guest

    return start


@pytest.fixture(scope="session")
def sg3_bed(qemu: Qemu, accel: Accel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The test bed of test_sg3_utils*.py: hundreds of commands, one boot of each guest."""
    with Bed(qemu, accel, tmp_path_factory.mktemp("sg3")) as made:
        yield made


@pytest.fixture(scope="session")
def sg3_daemon(sg3_bed: Bed) -> sg3_utils.Daemon:
    return sg3_utils.start(sg3_bed)


@pytest.fixture(scope="session")
def sg3_virtio(sg3_bed: Bed, sg3_daemon: sg3_utils.Daemon) -> sg3_utils.Place:
    return sg3_utils.over_virtio(sg3_bed, sg3_daemon)


@pytest.fixture(scope="session")
def sg3_iscsi(sg3_bed: Bed, sg3_daemon: sg3_utils.Daemon) -> sg3_utils.Place:
    return sg3_utils.over_iscsi(sg3_bed, sg3_daemon)


@pytest.fixture(scope="session", params=[sg3_utils.VIRTIO, sg3_utils.ISCSI])
def place_of_session(request: pytest.FixtureRequest) -> sg3_utils.Place:
    found: sg3_utils.Place = request.getfixturevalue(f"sg3_{request.param}")
    return found


@pytest.fixture
def place(place_of_session: sg3_utils.Place) -> sg3_utils.Place:
    """Each of the two, without unit attentions."""
    place_of_session.ready()
    return place_of_session
