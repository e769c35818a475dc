# SPDX-License-Identifier: Apache-2.0
"""What sg3_utils make of a unit, over virtio-scsi and over iSCSI: each tool decodes the values that our tables and the
test's own doings say, not only without an error. Two guests, many commands in one script.

Commands that change the medium or reservations are in test_sg3_utils_changes.py.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from sg3_utils import BLOCKS, GROUPS, SIZE, UNITS, Place, Said, hex_dump

from vhost_scsi.scsi import log_pages, mode_pages, vpd
from vhost_scsi.scsi.command import Command, DeviceType, Feature
from vhost_scsi.scsi.commands import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.full_boot]

SERVED = [row for row in COMMANDS if DeviceType.DISK in row.device_types and row.requires is not Feature.REMOVABLE]


# ---- INQUIRY and vital product data ---------------------------------------------------------------------------------


def pages(place: Place) -> dict[int, tuple[bytes, Said]]:
    """Each page that page 00h names: its bytes behind the header, and what sg_vpd makes of them."""
    listed = hex_dump(place.ok("sg_vpd --page=0 --raw $WORK | od -An -v -tx1").text)[4:]
    words = {}
    for code in listed:
        words[f"{code:#x} raw"] = f"sg_vpd --page={code:#x} --raw $WORK | od -An -v -tx1"
        words[f"{code:#x} decoded"] = f"sg_vpd --page={code:#x} $WORK"
    said = place.say(words)
    assert all(each.status == 0 for each in said.values())
    found = {}
    for code in listed:
        page = vpd.PAGE.parse(hex_dump(said[f"{code:#x} raw"].text))
        assert page.code == code
        found[code] = page.data, said[f"{code:#x} decoded"]
    return found


def flags(text: str) -> dict[str, int]:
    """NAME=value, brackets taken away."""
    return {match[1].lower(): int(match[2]) for match in re.finditer(r"\[?(\w+)=(\d+)\]?", text)}


def same_flags(parsed: Any, told: dict[str, int]) -> None:
    """Each field of the layout that is a bit is what the tool says of the same name."""
    for name, value in parsed.items():
        if not name.startswith("_"):
            assert told[name] == int(value), name


LIMITS = {
    "maximum_compare_and_write_length": "Maximum compare and write length",
    "optimal_transfer_length_granularity": "Optimal transfer length granularity",
    "maximum_transfer_length": "Maximum transfer length",
    "optimal_transfer_length": "Optimal transfer length",
    "maximum_prefetch_length": "Maximum prefetch transfer length",
    "maximum_unmap_lba_count": "Maximum unmap LBA count",
    "maximum_unmap_block_descriptor_count": "Maximum unmap block descriptor count",
    "optimal_unmap_granularity": "Optimal unmap granularity",
    "maximum_write_same_length": "Maximum write same length",
    "maximum_atomic_transfer_length": "Maximum atomic transfer length",
    "atomic_alignment": "Atomic alignment",
    "atomic_transfer_length_granularity": "Atomic transfer length granularity",
    "maximum_atomic_transfer_length_with_atomic_boundary": "Maximum atomic transfer length with atomic boundary",
    "maximum_atomic_boundary_size": "Maximum atomic boundary size",
}
PROVISIONING = {
    "lbpu": "Unmap command supported (LBPU)",
    "lbpws": "Write same (16) with unmap bit supported (LBPWS)",
    "lbpws10": "Write same (10) with unmap bit supported (LBPWS10)",
    "lbprz": "Logical block provisioning read zeros (LBPRZ)",
    "anc_sup": "Anchored LBAs supported (ANC_SUP)",
    "dp": "Descriptor present (DP)",
}


def test_every_page_is_to_sg3_utils_what_it_is_to_construct(place: Place) -> None:
    found = pages(place)
    assert list(found) == [page.code for page in vpd.PAGES]
    data, said = found[0xB0]
    limits = vpd.BLOCK_LIMITS.parse(data)
    assert said.number("Write same non-zero (WSNZ)") == limits.wsnz == 1
    for name, label in LIMITS.items():
        assert said.number(label) & 0xFFFFFFFF == limits[name], label
    said.has("Unmap granularity alignment valid: true", "Unmap granularity alignment: 0")
    data, said = found[0xB1]
    assert vpd.BLOCK_DEVICE_CHARACTERISTICS.parse(data).medium_rotation_rate == vpd.NON_ROTATING
    said.has("Non-rotating medium", "WABEREQ=1", "WACEREQ=0", "ZONED=0", "FUAB=0")
    data, said = found[0xB2]
    provisioning = vpd.LOGICAL_BLOCK_PROVISIONING.parse(data)
    for name, label in PROVISIONING.items():
        assert said.number(label) == int(provisioning.flags[name]), label
    assert said.number("Provisioning type") == provisioning.provisioning_type == vpd.THIN_PROVISIONED
    data, said = found[0xB7]
    assert not any(data)
    assert said.number("Maximum number of streams") == 0
    data, said = found[0x86]
    extended, told = vpd.EXTENDED_INQUIRY.parse(data), flags(said.text)
    for part in ("task_attributes", "caches", "clearing"):
        same_flags(extended[part], told)
    data, said = found[0x8A]
    power, told = vpd.POWER_CONDITION.parse(data), flags(said.text)
    assert [told[f"idle_{each}"] for each in "cba"] == [power.idle >> bit & 1 for bit in (2, 1, 0)] == [1, 1, 1]
    assert [told[f"standby_{each}"] for each in "yz"] == [power.standby >> bit & 1 for bit in (1, 0)] == [1, 1]
    assert re.findall(r"recovery time \(ms\) (\d+)", said.text) == ["0"] * 6
    data, said = found[0x87]
    assert data == bytes([0x3F, 0xFF, 0, 0])
    said.has("applies to all modes pages and subpages", "MLUS=0, Policy: shared")
    data, said = found[0x85]
    assert data == b""


def test_a_page_of_another_unit_is_noticed(place: Place) -> None:
    """Negative twin: what is decoded for one unit is not what the bytes of another one say."""
    decoded = place.ok("sg_vpd --page=0x80 $COPY")
    raw = hex_dump(place.ok("sg_vpd --page=0x80 --raw $WORK | od -An -v -tx1").text)
    assert decoded.value("Unit serial number").encode() != vpd.PAGE.parse(raw).data


def test_who_it_is_and_how_it_is_reached(place: Place) -> None:
    said = place.all(
        "sg_inq $WORK", "sg_vpd --page=0x83 $WORK", "sg_vpd --page=0x88 $SHARED", "sg_vpd --page=0x8f $WORK"
    )
    uuid = place.uuid("work")
    inquiry = said["sg_inq $WORK"]
    told = flags(inquiry.text)
    wanted = {"pqual": 0, "pdt": 0, "rmb": 0, "normaca": 1, "hisup": 1, "resp_data_format": 2, "tpgs": 3, "3pc": 1,
              "protect": 0, "encserv": 0, "multip": 1, "cmdque": 1, "sccs": 0}  # fmt: skip
    assert {name: told[name] for name in wanted} == wanted
    inquiry.has("version=0x06 [SPC-4]", "length=96 (0x60)", "Vendor identification: VHOST", "SCSI DISK")
    assert inquiry.value("Unit serial number") == uuid.replace("-", "")
    designators = said["sg_vpd --page=0x83 $WORK"]
    designators.has(f"Locally assigned UUID: {uuid}", f"vendor specific: {uuid.replace('-', '')}")
    naa = re.search(r"designator type: NAA, +code set: Binary\s+0x([0-9a-f]{16})", designators.text)
    assert naa is not None
    designators.has(f"naa.{naa[1].upper()}", f"Target port group: {GROUPS[place.transport]:#x}")
    ports = said["sg_vpd --page=0x88 $SHARED"].text
    assert len(re.findall(r"Relative port=\d+", ports)) == 2, ports
    assert "t,0x0001" in ports
    copy = said["sg_vpd --page=0x8f $WORK"]
    copy.has("Extended copy(LID1)", "Receive copy status(LID1)", "Receive copy operating parameters")
    copy.has("Maximum CSCD descriptor count: 16", "Maximum segment descriptor count: 16")
    copy.has("block -> block [0x2]", "block<o> -> block<o> [0xa]", "CSCD: Identification Descriptor [0xe4]")
    copy.has("Total concurrent copies: 16", "Maximum segment length: 1073741824")


def test_capacity_and_luns(place: Place) -> None:
    said = place.all(
        "sg_readcap $WORK", "sg_readcap --long $WORK", "sg_luns --decode $WORK", "sg_luns --select=2 $WORK"
    )
    for command in ("sg_readcap $WORK", "sg_readcap --long $WORK"):
        said[command].has(
            f"Last LBA={BLOCKS - 1} ({BLOCKS - 1:#x}), Number of logical blocks={BLOCKS}",
            "Logical block length=512 bytes",
            f"Device size: {SIZE} bytes",
        )
    said["sg_readcap --long $WORK"].has(
        "Protection: prot_en=0, p_type=0, p_i_exponent=0",
        "Logical block provisioning: lbpme=1, lbprz=1",
        "Logical blocks per physical block exponent=0",
        "Lowest aligned LBA=0",
    )
    luns = said["sg_luns --decode $WORK"]
    luns.has(f"Lun list length = {8 * len(UNITS)} ")
    assert re.findall(r"Peripheral device addressing: lun=(\d+)", luns.text) == ["0", "1", "2"]
    assert "c101000000000000" in said["sg_luns --select=2 $WORK"].text, "the well-known unit"


# ---- mode pages -----------------------------------------------------------------------------------------------------

FEATURES = (Feature.NONE, Feature.UNMAP, Feature.USAGE)
CONTROLS = {"current": 0, "changeable": 1, "default": 2, "saved": 3}


def mode_dump(text: str) -> dict[int, bytes]:
    """By key, the bytes of each page with PS taken away."""
    found = {}
    for part in text.split(">> ")[1:]:
        data = hex_dump(part.partition("\n")[2])
        data = bytes([data[0] & 0x7F]) + data[1:]
        found[mode_pages.page_key(data)] = data
    return found


def test_mode_pages_are_the_rows_of_our_table(place: Place) -> None:
    place.ready("work")
    said = place.all(*(f"sg_modes --all --all --control={number} $WORK" for number in CONTROLS.values()))
    rows = [page for page in mode_pages.PAGES if DeviceType.DISK in page.device_types and page.requires in FEATURES]
    for name, number in CONTROLS.items():
        answer = said[f"sg_modes --all --all --control={number} $WORK"]
        answer.has("WP=0, DpoFua=1, longlba=0", "Block descriptor length=8", f"page_control: {name}")
        wanted = {page.key: page.mask if name == "changeable" else page.default for page in rows}
        assert mode_dump(answer.text) == wanted, name


def test_a_mode_page_that_is_saved(place: Place) -> None:
    off, on = (",".join(["08", "12", wce, *["00"] * 17]) for wce in ("00", "04"))
    said = place.all(
        f"sg_wr_mode --page=8 --save --contents={off} $WORK",
        *(f"sg_modes --page=8 --control={number} $WORK" for number in CONTROLS.values()),
        f"sg_wr_mode --page=8 --save --contents={on} $WORK",
    )
    wce = {
        name: mode_dump(said[f"sg_modes --page=8 --control={number} $WORK"].text)[0x0800][2] >> 2 & 1
        for name, number in CONTROLS.items()
    }
    assert wce == {"current": 0, "changeable": 1, "default": 1, "saved": 0}


# ---- log pages ------------------------------------------------------------------------------------------------------


def test_log_pages_count_what_was_done(place: Place) -> None:
    found = place.all(
        "sg_logs --page=0xe $WORK",
        "sg_logs --reset $WORK",
        "sg_dd if=/dev/zero of=$WORK bs=512 count=24 bpt=8 2>/dev/null",
        "sg_dd if=$WORK of=/dev/null bs=512 count=16 bpt=8 2>/dev/null",
        "sg_verify --lba=0 --count=8 $WORK",
        "sg_start --stop $WORK",
        "sg_start --start $WORK",
        "sg_senddiag --test $WORK",
        "sg_logs --all $WORK",
    )
    stops = found["sg_logs --page=0xe $WORK"].number("Accumulated start-stop cycles")
    said = found["sg_logs --all $WORK"]
    listed = re.findall(r"^ +0x([0-9a-f]{2}) ", said.text, re.MULTILINE)
    assert [int(code, 16) for code in listed] == [page.code for page in log_pages.PAGES if not page.subpage]
    parts = {part.partition("  [")[0].splitlines()[-1]: part for part in said.text.split("\n\n")}

    def number(page: str, label: str) -> int:
        match = re.search(rf"{re.escape(label)} *[:=] *(\d+)", parts[page])
        assert match is not None, parts[page]
        return int(match[1])

    assert number("Write error counter page", "Total bytes processed") == 24 * 512
    assert number("Read error counter page", "Total bytes processed") >= 16 * 512
    assert number("Verify error counter page", "Total bytes processed") == 8 * 512
    for page in ("Write", "Read", "Verify"):
        assert number(f"{page} error counter page", "Total uncorrected errors") == 0
    assert number("Non-medium error page", "Non-medium error count") == 0
    assert number("Logical block provisioning page", "Used LBA mapping threshold resource count") >= 1
    assert "Scope: dedicated to lu" in said.text
    assert number("Start-stop cycle counter page", "Accumulated start-stop cycles") == stops + 1
    assert parts["Self-test results page"].count("completed without error") >= 1
    assert number("Background scan results page", "Number of background scans performed") == 0
    statistics = next(part for name, part in parts.items() if name.startswith("General Statistics"))
    assert "Unable to decode" not in statistics
    told = dict(re.findall(r"(number of [a-z ]+) = (\d+)", statistics))
    assert told["number of write commands"] == "3", statistics
    assert told["number of logical blocks received"] == "24"
    assert int(told["number of logical blocks transmitted"]) >= 16
    assert "idle time intervals" in statistics
    assert "Current temperature = <not available>" in said.text
    assert "IE asc = 0x0, ascq = 0x0" in said.text


# ---- what is supported ----------------------------------------------------------------------------------------------


def opcode_word(row: Command) -> str:
    action = "" if row.service_action is None else f",{row.service_action:#x}"
    return f"{row.opcode:#x}{action}"


def test_operation_codes_are_the_rows_of_our_table(place: Place) -> None:
    said = place.all("sg_opcodes $WORK", "sg_opcodes --rctd $WORK", "sg_opcodes --tmf --repd $WORK")
    pattern = r"^ ([0-9a-f]{2}) +(?:([0-9a-f]{1,4}) +)?(\d+) +(\S+?)(?:,| +)(\S+) "
    ours = {(row.opcode, row.service_action): row for row in SERVED}
    for command in ("sg_opcodes $WORK", "sg_opcodes --rctd $WORK"):
        lines = [re.match(pattern, line) for line in said[command].text.splitlines()]
        found = {(int(each[1], 16), int(each[2], 16) if each[2] else None): each for each in lines if each}
        assert found.keys() == ours.keys()
        for key, each in found.items():
            assert int(each[3]) == ours[key].cdb_length
            if "rctd" in command:
                assert (each[4], each[5]) == ("-", str(ours[key].timeout)), ours[key].name
    functions = said["sg_opcodes --tmf --repd $WORK"]
    functions.has("Abort task", "Abort task set", "Clear task set", "Logical unit reset", "I_T nexus reset")
    functions.has("Query task", "Query task set", "Clear ACA", "TMFTMOV=1")


def test_each_command_has_the_usage_data_of_its_row(place: Place) -> None:
    said = place.say({row.name: f"sg_opcodes --opcode={opcode_word(row)} $WORK" for row in SERVED})
    for row in SERVED:
        said[row.name].has("Command is supported [conforming to SCSI standard]")
        usage = bytes.fromhex(said[row.name].value("Usage data"))
        assert [(at, each) for at, each in enumerate(usage) if each != row.usage[at]] == _removable_bits(row), row.name
    absent = place.ok("sg_opcodes --opcode=0x96 $WORK")
    absent.has("Command is NOT supported")


def _removable_bits(row: Command) -> list[tuple[int, int]]:
    """LOEJ is a removable unit's: what is left of START STOP UNIT's byte 4 without it."""
    return [(4, row.usage[4] & ~0x02)] if row.name == "START STOP UNIT" else []


NO_SUCH_COMMAND = (
    "sg_rmsn $WORK",
    "sg_read_attr $WORK",
    "sg_reset_wp --all $WORK",
    "sg_rep_zones $WORK",
    "sg_prevent --prevent=1 $WORK",
    "sg_seek --lba=0 $WORK",
)
NO_SUCH_ACTION = ("sg_referrals $WORK", "sg_stream_ctl $WORK", "sg_sanitize --crypto --wait --quick $WORK")
INVALID_OPERATION_CODE, ILLEGAL_REQUEST = 9, 5  # exit statuses of sg3_utils


def test_what_is_not_served_is_refused(place: Place) -> None:
    place.all(*NO_SUCH_COMMAND, fails=dict.fromkeys(NO_SUCH_COMMAND, INVALID_OPERATION_CODE))
    place.all(*NO_SUCH_ACTION, fails=dict.fromkeys(NO_SUCH_ACTION, ILLEGAL_REQUEST))
