# SPDX-License-Identifier: Apache-2.0
"""`vhost_scsi.iscsi.Target` and the pytest fixture, as somebody else's test suite uses them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.iscsi.client import Client
from tests.iscsi.libiscsi import tool
from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi import Target

ROOT = Path(__file__).resolve().parents[2]


def test_the_package_loads_nothing_heavy() -> None:
    program = "import sys, vhost_scsi.iscsi, vhost_scsi.iscsi.pytest_plugin; print(*sys.modules)"
    words = [sys.executable, "-c", program]
    loaded = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "construct", "numpy", "pyroute2", "vhost_scsi._core", "vhost_scsi.dataplane"} & set(loaded)


def test_it_serves_while_the_block_runs_and_leaves_nothing_behind() -> None:
    with Target("memory:1M"):  # whatever a process has open once
        pass
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with Target("memory:1M", block_size=4096) as target:
        assert target.url == f"iscsi://127.0.0.1:{target.addresses[0][1]}/{target.name}/0"
        assert "LOGICAL BLOCK LENGTH IN BYTES:4096" in tool("iscsi-readcapacity16", target.url).stdout
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, descriptors)
    target.close()
    with pytest.raises(ConfigError, match="does not run"):
        _ = target.url


def test_several_units_portals_and_targets_at_once(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(2 << 20))
    with Target({0: "memory:1M", 5: str(disk)}, portals=2) as one, Target("memory:4M") as other:
        assert len(set(one.addresses) | set(other.addresses)) == 3
        for portal in (0, 1):
            assert "Total size:2097152" in tool("iscsi-readcapacity16", one.url_of(5, portal)).stdout
        assert "Total size:4194304" in tool("iscsi-readcapacity16", other.url).stdout


def test_two_in_an_asyncio_program_leave_nothing_behind() -> None:
    async def look(target: Target) -> str:
        words = ("iscsi-readcapacity16", target.url)
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        return (await process.communicate())[0].decode()

    async def program() -> list[str]:
        async with Target("memory:1M") as one, Target("memory:2M") as two:
            return await asyncio.gather(look(one), look(two))

    asyncio.run(program())  # whatever a process has open once
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    said = asyncio.run(program())
    assert ["Total size:1048576" in said[0], "Total size:2097152" in said[1]] == [True, True]
    # What asyncio itself waits with for a subprocess may end a moment later than the program.
    deadline = time.monotonic() + 30
    while (threading.active_count(), len(os.listdir("/proc/self/fd"))) != (threads, descriptors):
        assert time.monotonic() < deadline, f"left behind: {threading.enumerate()}, {os.listdir('/proc/self/fd')}"
        time.sleep(0.01)


def test_sessions_can_be_dropped_and_refusals_read(iscsi_target: Target) -> None:
    with Client(iscsi_target.addresses[0]) as client:
        client.login(iscsi_target.name)
        assert iscsi_target.sessions == 1
        iscsi_target.drop_sessions()
        assert client.closed()
        assert iscsi_target.sessions == 0
    with Client(iscsi_target.addresses[0]) as client:
        assert client.login("iqn.2026-11.invalid:nobody").status == (2, 3)
    assert "there is no such target" in iscsi_target.refused()[0]


@pytest.mark.parametrize(
    ("stores", "options", "words"),
    [
        ("/nowhere/at-all.img", {}, "no such file"),
        ("memory:1000", {}, "not a multiple"),
        ("memory:1M", {"name": "disk"}, "no target name"),
        ("memory:1M", {"host": "localhost"}, "an IP address is wanted"),
        ("memory:1M", {"host": "192.0.2.1"}, "cannot listen"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(stores: str, options: dict[str, str], words: str) -> None:
    threads = threading.active_count()
    with pytest.raises(ConfigError, match=words) as caught, Target(stores, **options):  # type: ignore[arg-type]
        pass
    assert "\n" not in str(caught.value)
    assert threading.active_count() == threads


def test_pytest_finds_the_fixture(tmp_path: Path) -> None:
    assert "vhost_scsi_iscsi" in {point.name for point in entry_points(group="pytest11")}
    (tmp_path / "conftest.py").write_text(
        "import pytest\n@pytest.fixture\ndef iscsi_store():\n    return 'memory:3M'\n"
    )
    (tmp_path / "test_theirs.py").write_text(
        "import subprocess\n"
        "def test_size(iscsi_target):\n"
        "    said = subprocess.run(['iscsi-readcapacity16', iscsi_target.url], capture_output=True, text=True).stdout\n"
        "    assert 'Total size:3145728' in said\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV", "PYTEST"))}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_theirs.py"]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert "1 passed" in result.stdout, result.stdout + result.stderr


def test_it_needs_no_root() -> None:
    program = "from vhost_scsi.iscsi import Target\nwith Target() as t: print(t.url)"
    words = [sys.executable, "-c", program]
    if os.geteuid() == 0:
        words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", *words]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.startswith("iscsi://127.0.0.1:"), result.stderr


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "iscsi.md").read_text()
    example = page[page.index("    import subprocess") : page.index("`target.url_of(lun")]
    (tmp_path / "test_page.py").write_text(textwrap.dedent(example))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV", "PYTEST"))}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_page.py"]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert "2 passed" in result.stdout, result.stdout + result.stderr
