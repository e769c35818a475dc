# SPDX-License-Identifier: Apache-2.0
"""As test_sg3_utils.py, for the commands of sg3_utils that change something: blocks, buffers, states, identities; and
two guests that fight for one unit with sg_persist, one over each transport, as nodes of a cluster do.
"""

from __future__ import annotations

import re

import pytest
from sg3_utils import BLOCKS, GROUPS, SECONDS, Place, hex_dump

pytestmark = [pytest.mark.slow, pytest.mark.full_boot]

OUT_OF_RANGE, MISCOMPARE, ILLEGAL_REQUEST, MEDIUM_ERROR, NOT_READY, UNIT_ATTENTION, CONFLICT = 22, 14, 5, 3, 2, 6, 24
"""exit statuses of sg3_utils"""
LETTERS = "for c in A B Q; do yes $c | tr -d '\\n' | head -c 65536 >/tmp/$c; done; cat /tmp/A | head -c 512 >/tmp/AB"
LETTERS += "; head -c 512 /tmp/B >>/tmp/AB; head -c 512 /tmp/A >/tmp/A1"
GONE = 1  # deallocated, in GET LBA STATUS


def letters(unit: str, lba: int, blocks: int) -> str:
    """A command that prints the letter of each block, which has no other; z for zeroes."""
    data = f"sg_dd if=${unit} of=- bs=512 skip={lba} count={blocks} 2>/dev/null"
    return f"{data} | tr '\\0' z | fold -w 512 | cut -c 1 | tr -d '\\n'; echo"


def status(text: str) -> list[tuple[int, int, int]]:
    """First block, number and state of each line of `sg_get_lba_status --brief`."""
    rows = re.findall(r"^0x([0-9a-f]+) +0x([0-9a-f]+) +(\d+)", text, re.MULTILINE)
    return [(int(lba, 16), int(blocks, 16), int(state)) for lba, blocks, state in rows]


# ---- blocks ---------------------------------------------------------------------------------------------------------


def test_unmapped_blocks_are_zeroes_and_told_as_such(place: Place) -> None:
    look = "sg_get_lba_status --brief --maxlen=4096 $WORK"
    said = place.say({
        "letters": LETTERS,
        "all gone": f"sg_unmap --lba=0 --num={BLOCKS} --force $WORK",
        "at first": look,
        "write": "sg_dd if=/tmp/A of=$WORK bs=512 count=32 seek=16 2>/dev/null",
        "written": look,
        "from the middle": "sg_get_lba_status --lba=20 $WORK",
        "unmap": "sg_unmap --lba=24 --num=8 --force $WORK",
        "unmapped": look,
        "what is read": letters("WORK", 16, 24),
        "used": "sg_logs --page=0xc $WORK",
        "beyond": f"sg_get_lba_status --lba={BLOCKS} $WORK",
        "beyond too": f"sg_unmap --lba={BLOCKS - 1} --num=2 --force $WORK",
    })  # fmt: skip
    assert {name: each.status for name, each in said.items() if each.status} == {
        "beyond": OUT_OF_RANGE,
        "beyond too": OUT_OF_RANGE,
    }
    assert status(said["at first"].text) == [(0, BLOCKS, GONE)]
    assert status(said["written"].text) == [(0, 16, GONE), (16, 32, 0), (48, BLOCKS - 48, GONE)]
    said["from the middle"].has("LBA: 0x0000000000000014 blocks: 28 mapped")
    assert status(said["unmapped"].text) == [
        (0, 16, GONE), (16, 8, 0), (24, 8, GONE), (32, 16, 0), (48, BLOCKS - 48, GONE),
    ]  # fmt: skip
    assert said["what is read"].text.strip() == "A" * 8 + "z" * 8 + "A" * 8
    assert said["used"].number("Used LBA mapping threshold resource count") == 1, "in sets of a mebibyte"


def test_write_same_in_all_its_forms(place: Place) -> None:
    said = place.say({
        "letters": LETTERS,
        "clean": "sg_unmap --lba=96 --num=64 --force $WORK",
        "10": "sg_write_same --10 --lba=100 --num=8 --in=/tmp/A1 $WORK",
        "16": "sg_write_same --16 --lba=108 --num=8 --in=/tmp/A1 $WORK",
        "32": "sg_write_same --32 --lba=116 --num=8 --in=/tmp/A1 $WORK",
        "ndob": "sg_write_same --16 --lba=104 --num=6 --ndob $WORK",
        "unmap": "sg_write_same --16 --lba=112 --num=8 --unmap $WORK",
        "there": letters("WORK", 96, 32),
        "map": "sg_get_lba_status --brief --lba=112 $WORK",
        "no blocks": "sg_write_same --16 --lba=0 --num=0 --in=/tmp/A1 $WORK",
        "beyond": f"sg_write_same --16 --lba={BLOCKS - 2} --num=8 --in=/tmp/A1 $WORK",
    })  # fmt: skip
    assert {name: each.status for name, each in said.items() if each.status} == {
        "no blocks": ILLEGAL_REQUEST,
        "beyond": OUT_OF_RANGE,
    }
    assert said["there"].text.strip() == "zzzzAAAA" + "zzzzzzAA" + "zzzzzzzz" + "AAAAzzzz"
    assert status(said["map"].text) == [(112, 8, GONE)]


def test_compare_and_write_and_verify(place: Place) -> None:
    said = place.say({
        "letters": LETTERS,
        "write": "sg_dd if=/tmp/A of=$WORK bs=512 count=2 seek=200 2>/dev/null",
        "swap": "sg_compare_and_write --lba=200 --in=/tmp/AB $WORK",
        "not again": "sg_compare_and_write --lba=200 --in=/tmp/AB $WORK",
        "there": letters("WORK", 200, 2),
        "beyond": f"sg_compare_and_write --lba={BLOCKS} --in=/tmp/AB $WORK",
        "verify": "sg_verify --lba=200 --count=8 $WORK",
        "verify 16": "sg_verify --16 --lba=200 --count=8 $WORK",
        "compared": "sg_verify --lba=201 --count=1 --ndo=512 --in=/tmp/A $WORK",
        "differs": "sg_verify --lba=200 --count=1 --ndo=512 --in=/tmp/A $WORK",
        "one for all": "sg_verify --lba=300 --count=8 --ebytchk=3 --ndo=512 --in=/dev/zero $WORK",
        "verify beyond": f"sg_verify --lba={BLOCKS} --count=1 $WORK",
        "and": "sg_write_verify --16 --lba=210 --num=1 --ilen=512 --in=/tmp/B $WORK",
        "or": "sg_write_x --or --16 --lba=210 --num=1 --in=/tmp/A $WORK",
        "atomic": "sg_write_x --atomic=0 --16 --lba=211 --num=2 --in=/tmp/Q $WORK",
        "wide": "sg_write_x --normal --32 --lba=213 --num=1 --in=/tmp/B $WORK",
        "written": letters("WORK", 210, 4),
        "prefetched": "sg_seek --pre-fetch --lba=0 --num-blocks=8 $WORK",
        "synchronized": "sg_sync --16 --lba=200 --count=8 $WORK",
    })  # fmt: skip
    assert {name: each.status for name, each in said.items() if each.status} == {
        "not again": MISCOMPARE,
        "beyond": OUT_OF_RANGE,
        "differs": MISCOMPARE,
        "verify beyond": OUT_OF_RANGE,
    }
    said["not again"].has("Miscompare at byte offset: 0 [0x0]")
    assert said["there"].text.strip() == "BA"
    said["differs"].has("MISCOMPARE: started at LBA 0xc8")
    assert said["written"].text.strip() == "CQQB", "A | B is C"


def test_a_block_that_is_marked_bad(place: Place) -> None:
    said = place.say({
        "mark": "sg_write_long --lba=5 --wr_uncor --xfer_len=0 $WORK",
        "read": "sg_raw --request=512 $WORK 28 00 00 00 00 05 00 00 01 00",
        "verify": "sg_verify --lba=5 --count=1 --verbose $WORK",
        "long": "sg_read_long --lba=5 --xfer_len=512 $WORK",
        "another length": "sg_read_long --lba=5 --xfer_len=520 $WORK",
        "errors": "sg_logs --page=3 $WORK",
        "letters": LETTERS,
        "write long": "sg_write_long --lba=5 --xfer_len=512 --in=/tmp/B $WORK",
        "there": letters("WORK", 5, 1),
    })  # fmt: skip
    for name in ("read", "verify"):
        said[name].has("Sense key: Medium Error", "LBA marked bad by application client", "Info fld=0x5 [5]")
    assert said["read"].status == MEDIUM_ERROR
    assert len(hex_dump(said["long"].text)) == 512
    said["another length"].has("device indicates 'xfer_len' should be 512")
    assert said["errors"].number("Total uncorrected errors") >= 1
    assert said["write long"].status == 0, said["write long"].text
    assert said["there"].text.strip() == "B"


def test_blocks_are_copied_without_passing_the_guest(place: Place) -> None:
    said = place.say({
        "letters": LETTERS,
        "source": "sg_dd if=/tmp/Q of=$WORK bs=512 count=128 seek=512 2>/dev/null",
        "clean": "sg_unmap --lba=0 --num=4096 --force $COPY",
        "copy": "sg_xcopy if=$WORK of=$COPY bs=512 count=128 skip=512 seek=1000",
        "there": letters("COPY", 999, 130),
        "within": "sg_xcopy if=$COPY of=$COPY bs=512 count=4 skip=1000 seek=2000",
        "there too": letters("COPY", 2000, 5),
        "results": "sg_copy_results --params $WORK",
        "nothing": "sg_copy_results --status --list_id=77 $WORK",
    })  # fmt: skip
    assert {name: each.status for name, each in said.items() if each.status} == {"nothing": ILLEGAL_REQUEST}
    said["copy"].has("128 blocks, 1 command")
    assert said["there"].text.strip() == "z" + 128 * "Q" + "z"
    assert said["there too"].text.strip() == "QQQQz"
    results = said["results"]
    results.has("Supports no list identifier (SNLID): yes", "Inline data not supported")
    results.has("Maximum target descriptor count: 16", "Data segment granularity: 512 bytes")


# ---- format and sanitize --------------------------------------------------------------------------------------------


def test_format_clears_and_sanitize_overwrites(place: Place) -> None:
    said = place.say({
        "letters": LETTERS,
        "pattern": "printf 'Q%.0s' $(seq 64) >/tmp/S",
        "write": "sg_dd if=/tmp/A of=$COPY bs=512 count=8 2>/dev/null",
        "look": "sg_format $COPY",
        "format": "sg_format --format --wait --quick $COPY",
        "cleared": letters("COPY", 0, 8),
        "another size": "sg_format --resize --count=1000 $COPY",
        "overwrite": "sg_sanitize --overwrite --pattern=/tmp/S --wait --quick $COPY",
        "overwritten": letters("COPY", BLOCKS - 4, 4),
        "erase": "sg_sanitize --block --wait --quick $COPY",
        "erased": "sg_get_lba_status --brief $COPY",
        "no failure": "sg_sanitize --fail --wait --quick $COPY",
    })  # fmt: skip
    assert {name: each.status for name, each in said.items() if each.status} == {"another size": ILLEGAL_REQUEST}
    said["look"].has(f"Number of blocks={BLOCKS} ", "Block size=512 [0x200]", f"Number of logical blocks={BLOCKS}")
    assert said["cleared"].text.strip() == "z" * 8
    assert said["overwritten"].text.strip() == "QQQQ"
    assert status(said["erased"].text) == [(0, BLOCKS, GONE)]


def test_progress_is_told_and_the_unit_is_not_ready_meanwhile(place: Place) -> None:
    """The daemon takes its time to write all over. Each look may come after the end: then there is no progress."""
    look = f"for i in $(seq {40 * SECONDS}); do sg_requests --progress $COPY; sg_turs $COPY && break; sleep 0.1; done"
    said = place.say({
        "pattern": "printf 'Q%.0s' $(seq 64) >/tmp/S",
        "passes": "sg_sanitize --overwrite --pattern=/tmp/S --count=8 --early --quick $COPY",
        "asked": "sg_requests $COPY",
        "read": "sg_raw --request=512 $COPY 28 00 00 00 00 05 00 00 01 00",
        "looks": f"{look} 2>&1",
        "ready": "sg_turs $COPY",
    })  # fmt: skip
    said["asked"].has("Sense key: Not Ready", "sanitize in progress")
    said["read"].has("Sense key: Not Ready")
    shares = [float(each) for each in re.findall(r"Progress indication: ([\d.]+)% done", said["looks"].text)]
    assert shares == sorted(shares)
    assert said["ready"].status == 0


# ---- power, diagnostics, buffers ------------------------------------------------------------------------------------


def test_power_conditions_are_told_by_request_sense(place: Place) -> None:
    conditions = {
        "active": ("sg_start --start $WORK", "No additional sense information"),
        "standby": ("sg_start --pc=3 $WORK", "Standby condition activated by command"),
        "idle b": ("sg_start --pc=2 --mod=1 $WORK", "Idle_b condition activated by command"),
    }
    words = {}
    for name, (command, _) in conditions.items():
        words |= {f"to {name}": command, name: "sg_requests $WORK"}
    words |= {"to stopped": "sg_start --stop $WORK", "stopped": "sg_requests $WORK", "turs": "sg_turs $WORK"}
    said = place.say({**words, "to start": "sg_start --start $WORK", "desc": "sg_requests --desc $WORK"})
    for name, (_, wanted) in conditions.items():
        said[name].has("Fixed format, current; Sense key: No Sense", wanted)
    said["stopped"].has("Sense key: Not Ready", "initializing command required")
    assert said["turs"].status == NOT_READY
    said["desc"].has("Descriptor format, current; Sense key: No Sense")


def test_self_tests_and_their_results(place: Place) -> None:
    said = place.all(
        "sg_senddiag --test $WORK",
        "sg_senddiag --selftest=5 $WORK",
        "sg_senddiag --list $WORK",
        "sg_logs --page=0x10 $WORK",
    )
    said["sg_senddiag --test $WORK"].has("Default self-test returned GOOD status")
    said["sg_senddiag --list $WORK"].has("0x00 Supported diagnostic pages")
    newest = said["sg_logs --page=0x10 $WORK"].text.partition("Parameter code = 2")[0]
    assert "self-test code: foreground short [5]" in newest
    assert "completed without error [0]" in newest


def test_buffers_give_back_what_was_put_in(place: Place) -> None:
    """sg_read_buffer of sg3_utils 1.46 asks for nothing, whatever length it is given: sg_raw does for it."""
    said = place.say({
        "hello": "yes hello | head -c 512 >/tmp/H",
        "write": "sg_write_buffer --mode=data --in=/tmp/H --length=512 --offset=64 $WORK",
        "read": "sg_raw --request=32 $WORK 3c 02 00 00 00 40 00 00 20 00",
        "nothing": "sg_read_buffer --mode=data $WORK",
        "write echo": "sg_write_buffer --mode=0xa --in=/tmp/H --length=48 $WORK",
        "echo": "sg_raw --request=64 $WORK 3c 0a 00 00 00 00 00 00 40 00",
        "descriptor": "sg_raw --request=4 $WORK 3c 03 00 00 00 00 00 00 04 00",
        "echo descriptor": "sg_raw --request=4 $WORK 3c 0b 00 00 00 00 00 00 04 00",
        "tried": "sg_test_rwbuf --size=4096 --times=3 $WORK",
        "speed": "sg_rbuf --quick --size=1m $WORK",
        "microcode": "sg_write_buffer --mode=dmc_offs --in=/tmp/H --length=64 $WORK",
    })  # fmt: skip
    assert {name: each.status for name, each in said.items() if each.status} == {"microcode": ILLEGAL_REQUEST}
    hello = b"hello\n" * 100
    assert hex_dump(said["read"].text) == hello[:32]
    assert hex_dump(said["echo"].text) == hello[:48]
    descriptor = hex_dump(said["descriptor"].text)
    assert (descriptor[0], int.from_bytes(descriptor[1:])) == (0, 63 << 10)
    echo = hex_dump(said["echo descriptor"].text)
    assert (echo[0], int.from_bytes(echo[2:]) & 0x1FFF) == (1, 4096)
    assert said["tried"].text.strip() == "Success"
    said["speed"].has("buffer capacity=64512, offset boundary=0")


# ---- what is left for others ----------------------------------------------------------------------------------------


def test_identifying_information_and_time(place: Place) -> None:
    said = place.say({
        "before": "sg_timestamp --origin $WORK",
        "set": "sg_timestamp --milliseconds=1234567890123 $WORK",
        "told": "sg_timestamp --origin $WORK",
        "set text": "printf 'a text\\0' | sg_ident --set --itype=2 $WORK",
        "text": "sg_ident --itype=2 --ascii $WORK",
        "name": "printf 'a disk' | sg_ident --set $WORK",
        "named": "sg_ident --ascii $WORK",
        "cleared": "sg_ident --clear $WORK; sg_ident --clear --itype=2 $WORK; sg_ident --ascii $WORK",
    })  # fmt: skip
    assert not {name: each for name, each in said.items() if each.status}
    said["before"].has("Device clock initialized by other method")
    said["told"].has("Device clock initialized by SET TIMESTAMP command")
    since = int(said["told"].text.split()[-1]) - 1234567890123
    assert 0 <= since < 3_600_000
    assert said["text"].text.strip("\0\n ") == "a text"
    assert said["named"].text.strip() == "a disk"
    assert said["cleared"].text.strip() == ""


def test_port_groups_of_a_unit_of_its_own(place: Place) -> None:
    group = GROUPS[place.transport]
    said = place.say({
        "extended": "sg_rtpg --extended --decode $SHARED",
        "set": f"sg_stpg --tp={group:#x} --state=1 $WORK",
        "changed": "sg_rtpg --decode $WORK",
        "standby": f"sg_stpg --tp={group:#x} --state=2 $WORK",
        "waits": "sg_raw --request=512 $WORK 28 00 00 00 00 05 00 00 01 00",
        "back": f"sg_stpg --tp={group:#x} --state=0 $WORK",
        "runs": "sg_raw --request=512 $WORK 28 00 00 00 00 05 00 00 01 00",
        "no such": "sg_stpg --tp=0x9 --state=0 $WORK",
    })  # fmt: skip
    text = said["extended"]
    text.has("Implicit transition time: 10", "T_SUP : 1, O_SUP : 1, LBD_SUP : 0, U_SUP : 1, S_SUP : 1, AN_SUP : 1")
    ids = re.findall(r"target port group id : 0x(\w+) .*\n.*access state : 0x00 \(active/optimized\)", text.text)
    assert ids == ["1", "2"]
    said["changed"].has("0x01 (active/non optimized)", "state changed by SET TARGET PORT GROUPS command")
    said["waits"].has("Sense key: Not Ready", "target port in standby state")
    assert said["runs"].status == 0
    said["no such"].has("Illegal request")  # and ends with 0


# ---- two nodes ------------------------------------------------------------------------------------------------------


def persist(key: int, action: str, kind: int = 0, new: int = 0, more: str = "") -> str:
    words = f"sg_persist --no-inquiry --out --{action} --param-rk={key:#x} --param-sark={new:#x}"
    return f"{words} {f'--prout-type={kind}' if kind else ''} {more} $SHARED"


def keys(place: Place) -> list[int]:
    said = place.ok("sg_persist --no-inquiry --in --read-keys $SHARED").text
    return sorted(int(each, 16) for each in re.findall(r"^ +0x([0-9a-f]+)$", said, re.MULTILINE))


def held(place: Place) -> tuple[int, str] | None:
    """Key and type of the reservation."""
    said = place.ok("sg_persist --no-inquiry --in --read-reservation $SHARED").text
    match = re.search(r"Key=0x([0-9a-f]+)\n +scope: LU_SCOPE, +type: (.*)\n", said)
    return (int(match[1], 16), match[2].strip()) if match else None


def test_two_nodes_of_a_cluster_one_over_each_transport(sg3_virtio: Place, sg3_iscsi: Place) -> None:
    """Register, reserve, fence, preempt, move, release, clear: each with all that the other one sees of it."""
    vm, host = sg3_virtio, sg3_iscsi
    registrants, exclusive = "Write Exclusive, registrants only", "Exclusive Access"
    write = "sg_raw --send=512 --infile=/dev/zero $SHARED 2a 00 00 00 00 00 00 00 01 00"
    for node in (vm, host):
        node.ready("shared")
        assert keys(node) == []
        capable = node.ok("sg_persist --no-inquiry --in --report-capabilities $SHARED")
        for label in ("RLR_C", "CRH", "SIP_C", "ATP_C", "PTPL_C", "TMV"):
            assert re.search(rf"\({label}\): 1", capable.text), capable.text
    vm.ok(persist(0, "register", new=0xA))
    host.ok(persist(0, "register-ignore", new=0xB, more="--param-aptpl"))
    assert keys(vm) == keys(host) == [0xA, 0xB]
    vm.ok(persist(0xA, "reserve", 5))
    assert held(vm) == held(host) == (0xA, registrants)
    host.all(persist(0xB, "reserve", 5), fails={persist(0xB, "reserve", 5): CONFLICT})
    host.ok(write)
    status = host.ok("sg_persist --no-inquiry --in --read-full-status $SHARED").text
    assert status.count("<< Reservation holder >>") == 1
    assert "iqn.1993-08.org.debian:01:guest" in status
    assert "SAS address: 0x3" in status
    # The other one takes over, and the owner is told, and fenced.
    host.ok(persist(0xB, "preempt", 3, new=0xA))
    assert held(host) == (0xB, exclusive)
    told = vm.say({"turs": "sg_turs --verbose $SHARED", "write": write})
    told["turs"].has("Registrations preempted")
    assert told["write"].status == CONFLICT
    # It comes back, and what it gives up is not its own.
    vm.ok(persist(0, "register", new=0xC))
    vm.ok(persist(0xC, "release", 3))
    assert held(vm) == (0xB, exclusive)
    # The owner hands over to a third port, which nobody has seen; another protocol's port is refused.
    full = vm.ok("sg_persist --no-inquiry --in --read-full-status $SHARED").text
    port = {
        int(key, 16): int(at, 16) for key, at in re.findall(r"Key=(0x\w+)\n(?:.*\n)*?.*port address: (0x\w+)", full)
    }
    other = "--transport-id=iqn.1993-08.org.debian:01:other,i,0x00023d0000ff"
    sas = "--transport-id=sas,3f00000000000001"
    refused = persist(0xB, "register-move", new=0xD, more=f"--relative-target-port={port[0xC]} {sas}")
    host.all(refused, fails={refused: ILLEGAL_REQUEST})
    host.ok(persist(0xB, "register-move", new=0xD, more=f"--relative-target-port={port[0xB]} {other}"))
    assert held(host) == (0xD, exclusive)
    assert keys(vm) == [0xB, 0xC, 0xD]
    host.all(write, fails={write: CONFLICT})
    # It never comes: the first node ends it, takes over, and gives back.
    vm.ok(persist(0xC, "preempt-abort", 1, new=0xD))
    # SPC-5 5.14.11.4.1: another type, which those who stay registered are told of.
    host.say({"turs": "sg_turs --verbose $SHARED"})["turs"].has("Reservations released")
    assert held(host) == (0xC, "Write Exclusive")
    assert keys(host) == [0xB, 0xC]
    host.all(write, fails={write: CONFLICT})
    vm.ok(write)
    vm.ok(persist(0xC, "release", 1))
    assert held(host) is None
    host.ok(write)
    lost = persist(0xC, "replace-lost", 3, new=0xE)
    vm.all(lost, fails={lost: ILLEGAL_REQUEST})  # nothing is lost
    vm.ok(persist(0xC, "clear"))
    assert host.say({"turs": "sg_turs --verbose $SHARED"})["turs"].status == UNIT_ATTENTION
    assert keys(vm) == keys(host) == []
    host.ok(write)
