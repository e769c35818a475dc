# SPDX-License-Identifier: Apache-2.0
"""What others' initiators make of us: libiscsi's conformance suite and tools, and QEMU's iSCSI driver.

Each suite of `iscsi-test-cu` is a process of its own, over a memory and a file unit, with two portals so that the
multipath families run. What does not pass stands in `known-failures.txt`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.iscsi.libiscsi import Known, Outcome, known, outcomes, run_tests, suites, surprises, tool
from vhost_scsi.iscsi import Target

SUITES = suites()
SIZE = 256 << 20
CHAP = ("somebody", "a secret of enough bytes")


@pytest.fixture(params=["memory", "file"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    """A new unit for each suite: CompareAndWrite of MultipathIO in libiscsi 1.19 zeroes 256 blocks and wants 257."""
    store = f"memory:{SIZE}"
    if request.param == "file":
        path = tmp_path / "disk.img"
        with path.open("wb") as file:
            file.truncate(SIZE)
        store = str(path)
    # SANITIZE must be under way still when the suite looks, after three seconds.
    long = request.node.callspec.params["suite"] == LONG
    with Target(store, portals=2, overwrite_rate=SIZE // 6 if long else 0) as running:
        yield running


@pytest.fixture(scope="module")
def served() -> Iterator[Target]:
    """For tools: one portal, one unit."""
    with Target("memory:64M") as running:
        yield running


# ---- the conformance suite -----------------------------------------------------------------------------------------


def test_the_program_has_the_suites_that_we_know() -> None:
    assert {"iSCSI.iSCSIcmdsn", "iSCSI.iSCSIdatasn", "iSCSI.iSCSIResiduals", "iSCSI.iSCSITMF"} <= set(SUITES)
    assert len(SUITES) >= 50


# It overwrites all blocks several times and sleeps for a minute.
LONG = "SCSI.Sanitize"


@pytest.mark.parametrize(
    "suite", [pytest.param(each, marks=pytest.mark.slow if each == LONG else ()) for each in sorted(SUITES)]
)
def test_conformance(target: Target, suite: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    directory = tmp_path / "empty"
    directory.mkdir()
    # Of SANITIZE each test is a process: Reservations leaves a RESERVE behind, which keeps the next one out until the
    # session that has it is gone.
    parts = [f"{suite}.{test}" for test in SUITES[suite]] if suite == LONG else [suite]
    found: dict[str, Outcome] = {}
    output = ""
    for part in parts:
        ended, said = run_tests(part, [target.url, target.url_of(0, portal=1)], directory)
        found |= ended
        output += said
        without_sessions(target)
    assert set(found) == set(SUITES[suite]), output
    store = request.node.callspec.params["target"]
    assert not surprises(suite, found, known(), store), output


def without_sessions(target: Target) -> None:
    """An initiator that just closes is noticed in a moment."""
    deadline = time.monotonic() + 15
    while target.sessions:
        assert time.monotonic() < deadline, "the suite has ended, and its sessions have not"
        time.sleep(0.05)


# What some tests need of a unit, and how such a one is made; over the other units they skip.
UNITS: dict[str, dict[str, Any]] = {
    "SCSI.CompareAndWrite.InvalidDataOutSize": {"physical_block_size": 4096},
    "SCSI.WriteSame10.InvalidDataOutSize": {"physical_block_size": 4096},
    "SCSI.WriteSame16.InvalidDataOutSize": {"physical_block_size": 4096},
    "SCSI.WriteSame10.UnmapUnaligned": {"physical_block_size": 4096},
    "SCSI.WriteSame16.UnmapUnaligned": {"physical_block_size": 4096},
    "SCSI.WriteSame10.ZeroBlocks": {"wsnz": False},
    "SCSI.WriteSame16.ZeroBlocks": {"wsnz": False},
    "SCSI.ReadOnly.ReadOnlySBC": {"read_only": True},
    **{f"SCSI.PreventAllow.{name}": {"removable": True} for name in SUITES["SCSI.PreventAllow"]},
    "SCSI.StartStopUnit.NoLoej": {"removable": True},
    # It wants GOOD for reserved power conditions, too.
    "SCSI.StartStopUnit.PwrCnd": {"removable": True, "strict": False},
    "SCSI.StartStopUnit.Simple": {"removable": True},
}


@pytest.mark.parametrize("test", sorted(UNITS))
def test_conformance_over_a_unit_of_the_kind_that_it_needs(test: str, tmp_path: Path) -> None:
    with Target(f"memory:{SIZE}", **UNITS[test]) as target:
        found, output = run_tests(test, [target.url], tmp_path)
    assert found == {test.split(".")[2]: Outcome.PASSED}, output


def test_the_list_excuses_nothing_of_the_protocol_and_has_no_idle_line() -> None:
    names = [f"{suite}.{test}" for suite, tests in SUITES.items() for test in tests]
    for line in known():
        assert not (line.outcome is Outcome.FAILED and line.test.startswith("iSCSI.")), line
        assert not surprises("", {}, [line])
        assert any(
            re.fullmatch(line.test.replace(".", r"\.").replace("*", ".*").replace("?", "."), n) for n in names
        ), line


SAID = """
Suite: Example
  Test: Good ...passed
  Test: MeantToFail ...    [FAILED] WRITE10 failed with sense
passed
  Test: Absent ...    [SKIPPED] ORWRITE is not implemented.
passed
  Test: Bad ...FAILED
    1. test.c:5  - CU_ASSERT_EQUAL(ret,0)
  Test: Last ...passed    [SKIPPED] PERSISTENT RESERVE IN is not implemented.

               tests      5      5      4      1        0
"""


def test_what_the_program_says_is_understood() -> None:
    passed, skipped, failed = Outcome.PASSED, Outcome.SKIPPED, Outcome.FAILED
    found = outcomes(SAID)
    assert found == {"Good": passed, "MeantToFail": passed, "Absent": skipped, "Bad": failed, "Last": passed}
    for wrong in (SAID.replace("      1        0", "      0        0"), SAID.replace("  Test: Good ...passed\n", "")):
        with pytest.raises(AssertionError):
            outcomes(wrong)
    with pytest.raises(AssertionError, match="no totals"):
        outcomes("Segmentation fault")


def test_every_difference_from_the_list_is_a_surprise() -> None:
    listed = [Known(Outcome.FAILED, "S.Example.Bad", "why"), Known(Outcome.SKIPPED, "S.Example.Abs*", "why")]
    assert surprises("S.Example", outcomes(SAID), listed) == []
    assert len(surprises("S.Example", outcomes(SAID), [])) == 2
    listed.append(Known(Outcome.FAILED, "S.Example.Good", "it used to"))
    assert surprises("S.Example", outcomes(SAID), listed) == [
        "S.Example.Good passed, and known-failures.txt has it as failed"
    ]


# ---- tools ---------------------------------------------------------------------------------------------------------


def ok(*words: str) -> str:
    result = tool(*words)
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_iscsi_ls_finds_the_target(served: Target) -> None:
    host, port = served.addresses[0]
    assert f"Target:{served.name} Portal:{host}:{port},1" in ok("iscsi-ls", f"iscsi://{host}:{port}")


def test_iscsi_ls_lists_units() -> None:
    with Target({0: "memory:64M", 5: "memory:1G"}) as target:
        host, port = target.addresses[0]
        said = ok("iscsi-ls", "--show-luns", f"iscsi://{host}:{port}")
    assert [line.split("(")[0].strip() for line in said.splitlines() if "Lun:" in line] == [
        "Lun:0    Type:DIRECT_ACCESS",
        "Lun:5    Type:DIRECT_ACCESS",
    ]


def test_iscsi_inq_and_readcapacity16(served: Target) -> None:
    assert "DIRECT_ACCESS" in ok("iscsi-inq", served.url)
    assert "Total size:67108864" in ok("iscsi-readcapacity16", served.url)


def test_iscsi_swp_protects_the_unit(served: Target) -> None:
    assert "SWP:0" in ok("iscsi-swp", served.url)
    ok("iscsi-swp", "--swp=on", served.url)
    try:
        assert "SWP:1" in ok("iscsi-swp", served.url)
    finally:
        ok("iscsi-swp", "--swp=off", served.url)
    assert "SWP:0" in ok("iscsi-swp", served.url)


def test_iscsi_perf_reads_for_a_second(served: Target) -> None:
    said = ok("iscsi-perf", "-t", "1", "-m", "32", served.url)
    rates = [int(rate) for rate in re.findall(r"iops average (\d+)", said)]
    assert rates
    assert rates[-1] > 0, said


def test_chap_with_md5_which_is_all_that_libiscsi_knows() -> None:
    with Target("memory:16M", chap=CHAP) as target:
        assert "Total size:16777216" in ok("iscsi-readcapacity16", target.url)
        assert target.refused() == []
        wrong = tool("iscsi-readcapacity16", target.url.replace("enough", "no"))
        assert "Authentication failure" in wrong.stdout
        without = tool("iscsi-readcapacity16", target.url.replace(f"{CHAP[0]}%{CHAP[1]}@", ""))
        assert without.returncode != 0
        assert "wrong CHAP secret for 'somebody'" in target.refused()[0]
        assert "CHAP is required" in target.refused()[1]


# ---- QEMU ----------------------------------------------------------------------------------------------------------


def test_qemu_img_writes_and_reads_it_back(served: Target, tmp_path: Path) -> None:
    image, back = tmp_path / "image.raw", tmp_path / "back.raw"
    data = bytes(range(256)) * 4096 + bytes(1 << 20) + b"end" * 1000
    image.write_bytes(data.ljust(64 << 20, b"\0"))
    ok("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), served.url)
    assert "Images are identical" in ok("qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), served.url)
    ok("qemu-img", "convert", "-f", "raw", "-O", "raw", served.url, str(back))
    assert back.read_bytes() == image.read_bytes()


def test_qemu_io_writes_zeroes_discards_and_flushes(served: Target) -> None:
    commands = ("write -P 0x5a 1M 1M", "write -z 1M 64k", "discard 1536k 64k", "flush")
    words = [word for command in commands for word in ("-c", command)]
    assert "failed" not in ok("qemu-io", "-f", "raw", *words, served.url)
    checks = ("read -P 0 1M 64k", "read -P 0x5a 1088k 448k", "read -P 0 1536k 64k", "read -P 0x5a 1600k 448k")
    said = ok("qemu-io", "-f", "raw", *(word for check in checks for word in ("-c", check)), served.url)
    assert "verification failed" not in said
    assert said.count("read ") == len(checks), said
