# SPDX-License-Identifier: Apache-2.0
"""Linux's own initiator: a Debian guest with open-iscsi logs in to `vhost-scsi serve --iscsi` over QEMU's user network.

Discovery, CHAP in both directions, digests, two sessions, a file system, fio with checksums, what sg3_utils says, idle
sessions; and the same unit at once over vhost-user. Connections that fail are in test_open_iscsi_recovery.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import open_iscsi
import pytest
from backend import Backend, Bed, Cost, wait_until
from guest_disks import Disk, disks, file_hash, make_data, read_hash, write
from open_iscsi import (
    CHAP,
    DIGESTS,
    HOST,
    IQN,
    TARGET_NAME,
    GuestSession,
    KernelLog,
    configuration,
    configure,
    debian,
    discover,
    free_port,
    logged_in,
    login,
    logout,
    make_secrets,
    portal_of,
    refused,
    serve,
    sessions,
)

from vhost_scsi.qemu import Guest
from vhost_scsi.scsi.command import DeviceType, Feature
from vhost_scsi.scsi.commands import COMMANDS

pytestmark = [pytest.mark.slow, pytest.mark.full_boot]

MIB = 1 << 20
SIZE = 256 * MIB
WHOLE, TORN = 0, 1  # LUNs
VHOST = (1, 0)  # where the guest finds the whole one without iSCSI: target 1, LUN 0
ONCE = {"node.session.initial_login_retry_max": "1"}
TWO = {"node.session.nr_sessions": "2"}
QUIET = {"node.conn[0].timeo.noop_out_interval": "0", "node.conn[0].timeo.noop_out_timeout": "0"}

VERIFY = """fio --directory={folder} --ioengine=libaio --direct=1 --verify=crc32c --do_verify=1 --verify_fatal=1 \
  --randseed=7 --output-format=terse \
  --name=small --rw=randwrite --bs=4k --iodepth=16 --size=4M \
  --stonewall --name=mixed --rw=randwrite --bsrange=4k-512k --iodepth=8 --size=8M \
  --stonewall --name=large --rw=write --bs=1M --iodepth=4 --size=8M"""


@dataclasses.dataclass(frozen=True, slots=True)
class Linux:
    """The guest, the daemon, and where its one portal is found from the guest."""

    guest: Guest
    backend: Backend
    portal: str
    image: Path


@pytest.fixture(scope="module")
def linux(shared_bed: Bed) -> Linux:
    """Two LUNs behind one target; the first one is the guest's by vhost-user as well."""
    port, image = free_port(), shared_bed.disk("disk", SIZE)
    text = configuration(
        {WHOLE: str(image), TORN: "faulty(op=write,fault=torn,skip=200,count=1):memory:256M"},
        {port: HOST},
        secrets=make_secrets(shared_bed.folder / "secrets"),
    )
    place = f"default:{VHOST[0]}:{VHOST[1]}"
    backend = serve(shared_bed, "target", text, "--map", f"{place}=lun{WHOLE}", vhost=True)
    guest = debian(shared_bed, *shared_bed.attach(backend, ident="shared"))
    return Linux(guest, backend, portal_of(port), image)


def log_in(linux: Linux, *settings: dict[str, str], number: int = 1) -> list[GuestSession]:
    """As the settings say, from nothing; the sessions that work then."""
    configure(linux.guest, *settings)
    discover(linux.guest, linux.portal)
    status, said = login(linux.guest)
    assert status == 0, said
    return logged_in(linux.guest, number, luns=2)


# -- discovery --------------------------------------------------------------------------------------------------------


def check_discovery(guest: Guest, portal: str) -> None:
    """What SendTargets tells is an address that the guest reaches, and there is the target."""
    told = discover(guest, portal)
    assert told == [f"{portal},1 {IQN}"], f"told is {told}"
    status, said = login(guest)
    assert status == 0, f"no login: {said}"
    logout(guest)


def test_discovery_tells_what_is_announced_for_a_network_that_translates(linux: Linux) -> None:
    configure(linux.guest, CHAP, ONCE)
    check_discovery(linux.guest, linux.portal)


def test_an_address_of_the_host_alone_is_of_no_use_to_the_guest(linux: Linux, bed: Bed) -> None:
    """Broken: nothing is announced, so the guest is told 127.0.0.1, where nobody listens in the guest."""
    port = free_port()
    serve(bed, "silent", configuration({0: "memory:16M"}, {port: None}))
    configure(linux.guest, ONCE)
    with pytest.raises(AssertionError, match=rf"told is \['127\.0\.0\.1:{port},1 {re.escape(IQN)}'\]"):
        check_discovery(linux.guest, portal_of(port))
    assert login(linux.guest)[0] != 0
    logout(linux.guest)


# -- who may log in ---------------------------------------------------------------------------------------------------


def check_refusal(guest: Guest, portal: str, settings: dict[str, str]) -> None:
    configure(guest, settings, ONCE)
    discover(guest, portal)
    status, said = login(guest)
    logout(guest)
    assert status != 0, "the guest is let in"
    assert "authorization failure" in said, f"another failure: {said}"


MD5_REFUSED = "CHAP with MD5 only, which is not allowed; chap_algorithms = SHA3-256, SHA-256, SHA-1, MD5 would allow it"
REFUSED = {
    "secret": ({**CHAP, "node.session.auth.password": "another secret, long enough"}, "wrong CHAP secret for 'guest'"),
    "name": ({**CHAP, "node.session.auth.username": "somebody"}, "no CHAP name 'somebody' here"),
    "md5": ({**CHAP, "node.session.auth.chap_algs": "MD5"}, MD5_REFUSED),
    "none": ({}, "CHAP is required"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_who_does_not_prove_himself_is_refused_and_it_is_told_why(linux: Linux, case: str) -> None:
    settings, why = REFUSED[case]
    check_refusal(linux.guest, linux.portal, settings)
    assert why in refused(linux.backend)
    assert not linux.backend.command("session", "list")["sessions"]


def test_a_guest_that_is_let_in_is_noticed(linux: Linux) -> None:
    """Broken: the secret is right."""
    with pytest.raises(AssertionError, match="is let in"):
        check_refusal(linux.guest, linux.portal, CHAP)


def test_the_guest_refuses_a_target_that_does_not_know_its_secret(linux: Linux) -> None:
    """Mutual CHAP: the initiator just goes then, and the target tells what that means."""
    configure(linux.guest, {**CHAP, "node.session.auth.password_in": "not what the target has"}, ONCE)
    discover(linux.guest, linux.portal)
    status, said = login(linux.guest)
    logout(linux.guest)
    assert status != 0, said
    wait_until("the target tells it", lambda: f"as {TARGET_NAME!r}" in refused(linux.backend))


# -- what was negotiated ----------------------------------------------------------------------------------------------

BOOLEANS = {
    "initial_r2t": "InitialR2T",
    "immediate_data": "ImmediateData",
    "data_pdu_in_order": "DataPDUInOrder",
    "data_seq_in_order": "DataSequenceInOrder",
}
NUMBERS = {
    "max_outstanding_r2t": "MaxOutstandingR2T",
    "max_burst_len": "MaxBurstLength",
    "first_burst_len": "FirstBurstLength",
    "erl": "ErrorRecoveryLevel",
}


def stat_sns_in_guest(guest: Guest) -> list[int]:
    return sorted(int(session.values["exp_statsn"]) for session in sessions(guest))


def stat_sns(backend: Backend) -> list[int]:
    return sorted(connection["stat_sn"] for connection in backend.command("connection", "list")["connections"])


def check_agreement(guest: Guest, backend: Backend, number: int) -> None:
    """`session` and `connection` on the host say of each session what the guest's kernel says."""
    theirs = logged_in(guest, number, luns=2)
    rows = backend.command("session", "list")["sessions"]
    assert len(rows) == len(theirs), "sessions"
    for session, row in zip(theirs, rows, strict=True):
        shown = backend.command("session", "show", str(row["session"]))
        (connection,) = shown["connections"]
        keys, values = shown["keys"], session.values
        assert (row["initiator"], row["target"]) == (open_iscsi.INITIATOR, values["targetname"])
        assert (row["user"], str(row["portal_group"])) == (values["username"], values["tpgt"])
        assert values["username_in"] == TARGET_NAME
        for digest in ("header_digest", "data_digest"):
            assert connection[digest] == "CRC32C", f"{digest}: {connection[digest]}"
            assert values[digest] == "1"
        assert {key: keys[key] for key in BOOLEANS.values()} == {
            key: values[name] == "1" for name, key in BOOLEANS.items()
        }
        assert {key: keys[key] for key in NUMBERS.values()} == {key: int(values[name]) for name, key in NUMBERS.items()}
        assert connection["max_send_bytes"] == int(values["max_recv_dlength"])
        assert connection["max_recv_bytes"] == int(values["max_xmit_dlength"])
        assert {lun["lun"] for lun in shown["luns"]} == set(session.disks)
        shown_alone = backend.command("connection", "show", f"{row['session']}:{connection['connection']}")
        assert (shown_alone["keys"], shown_alone["connection"]["digest_errors"]) == (keys, 0)
        assert row["commands"] > 0
    # Once no command is under way, both sides stand at the same StatSN.
    wait_until("both sides count alike", lambda: stat_sns_in_guest(guest) == stat_sns(backend))


def test_two_sessions_with_mutual_chap_and_digests_are_what_both_sides_say(linux: Linux) -> None:
    log_in(linux, CHAP, DIGESTS, TWO, QUIET, number=2)
    check_agreement(linux.guest, linux.backend, 2)


def test_a_session_without_digests_is_noticed(linux: Linux) -> None:
    """Broken: the guest asks for no digest of data."""
    log_in(linux, CHAP, {**DIGESTS, "node.conn[0].iscsi.DataDigest": "None"}, QUIET)
    with pytest.raises(AssertionError, match="data_digest: None"):
        check_agreement(linux.guest, linux.backend, 1)


# -- data -------------------------------------------------------------------------------------------------------------


def check_file_system(guest: Guest, first: Disk, second: Disk) -> None:
    """Made and filled through one session, checked by fio; found whole through the other one."""
    guest.check(f"mkfs.ext4 -q {first.block} && mount {first.block} /mnt", 300)
    result = guest.run(VERIFY.format(folder="/mnt"), 900)
    sums = guest.run("cd /mnt && sha256sum *.0 >/tmp/sums", 300)
    guest.check("umount /mnt", 120)
    assert result.status == 0, f"fio: {result.output}"
    assert sums.status == 0, sums.output
    # What this disk's cache holds is from before.
    look = f"blockdev --flushbufs {second.block} && e2fsck -fn {second.block} && mount -r {second.block} /mnt"
    guest.check(look, 300)
    result = guest.run("cd /mnt && sha256sum -c /tmp/sums", 300)
    guest.check("umount /mnt", 120)
    assert result.status == 0, f"other data through the second session: {result.output}"


def test_a_file_system_and_fio_over_one_session_are_seen_through_the_other(linux: Linux) -> None:
    first, second = log_in(linux, CHAP, DIGESTS, TWO, number=2)
    check_file_system(linux.guest, first.disks[WHOLE], second.disks[WHOLE])
    counted = linux.backend.command("connection", "list")["connections"]
    assert all(connection["received_bytes"] + connection["sent_bytes"] > 8 * MIB for connection in counted)
    assert sum(connection["r2ts"] for connection in counted) > 0, "nothing was sent in bursts"
    assert not any(connection["digest_errors"] for connection in counted)


def test_data_that_are_lost_are_noticed(linux: Linux) -> None:
    """Broken: of one write among hundreds half is lost. Digests have nothing to say about that."""
    first, second = log_in(linux, CHAP, DIGESTS, TWO, number=2)
    with pytest.raises(AssertionError, match="fio: "):
        check_file_system(linux.guest, first.disks[TORN], second.disks[TORN])


# -- what sg3_utils says ----------------------------------------------------------------------------------------------


def check_identity(guest: Guest, disk: Disk, unit: dict[str, object], luns: int) -> None:
    """Each tool decodes what our tables say."""
    uuid = str(unit["uuid"])
    inquiry = guest.check(f"sg_inq {disk.generic}")
    assert "Vendor identification: VHOST" in inquiry
    assert f"Unit serial number: {uuid.replace('-', '')}" in inquiry, f"another unit: {inquiry}"
    designators = guest.check(f"sg_vpd -p 0x83 {disk.generic}")
    assert f"Locally assigned UUID: {uuid}" in designators, f"another unit: {designators}"
    assert f"{IQN},t,0x0001" in designators  # SPC-5 7.7.6.10: the name of an iSCSI target port
    pages = guest.check(f"sg_vpd {disk.generic}")
    for code in ("sv", "sn", "di", "bl", "bdc", "lbpv"):
        assert f"[{code}]" in pages
    limits = guest.check(f"sg_vpd -p 0xb0 {disk.generic}")
    assert "Maximum unmap LBA count" in limits
    capacity = guest.check(f"sg_readcap -16 {disk.generic}")
    assert f"Device size: {unit['size_bytes']} bytes" in capacity
    assert "Logical block length=512 bytes" in capacity
    listed = guest.check(f"sg_luns {disk.generic}")
    assert f"Lun list length = {8 * luns} " in listed, f"other LUNs: {listed}"
    pages = guest.check(f"sg_modes -a {disk.generic}")
    assert re.search(r"Caching, page_control: current\n 00 +88 12 04 ", pages), pages  # SBC-4 6.5.6: PS, WCE
    assert "WP=0, DpoFua=1" in pages


def check_opcodes(guest: Guest, disk: Disk) -> None:
    """REPORT SUPPORTED OPERATION CODES over iSCSI is the table that the commands are dispatched by."""
    said = set()
    for line in guest.check(f"sg_opcodes {disk.generic}").splitlines():
        match = re.match(r" ([0-9a-f]{2}) +(?:([0-9a-f]{1,4}) +)?(\d+) +\d,\d ", line)
        if match:
            said.add((int(match[1], 16), int(match[2], 16) if match[2] else None, int(match[3])))
    # Neither unit has more than that: no 32-byte CDBs, no atomic writes.
    served = [row for row in COMMANDS if row.requires in (Feature.NONE, Feature.UNMAP)]
    ours = {(row.opcode, row.service_action, row.cdb_length) for row in served if DeviceType.DISK in row.device_types}
    assert said == ours


def unit_of(backend: Backend, lun: int) -> dict[str, object]:
    return next(unit for unit in backend.call("lun.list")["logical_units"] if unit["name"] == f"lun{lun}")


def test_sg3_utils_decode_what_the_tables_say(linux: Linux) -> None:
    (session,) = log_in(linux, CHAP, DIGESTS)
    for lun, disk in session.disks.items():
        check_identity(linux.guest, disk, unit_of(linux.backend, lun), luns=2)
        check_opcodes(linux.guest, disk)
    # The negative twins. Broken: another unit's identity is expected, another number of LUNs.
    with pytest.raises(AssertionError, match="another unit"):
        check_identity(linux.guest, session.disks[TORN], unit_of(linux.backend, WHOLE), luns=2)
    with pytest.raises(AssertionError, match="other LUNs"):
        check_identity(linux.guest, session.disks[TORN], unit_of(linux.backend, TORN), luns=3)


# -- idle -------------------------------------------------------------------------------------------------------------


def check_idle(cost: Cost) -> None:
    assert cost.ticks <= 1, f"{cost.ticks} ticks of CPU time"
    assert cost.switches <= 10, f"{cost.switches} context switches"


def test_idle_sessions_cost_nothing(linux: Linux) -> None:
    """Neither side asks whether the other is there, as long as the span is shorter than the target's patience."""
    first, _ = log_in(linux, CHAP, DIGESTS, TWO, QUIET, number=2)
    linux.guest.check("sync; sleep 2")
    check_idle(linux.backend.cost(10))
    # The negative twin. Broken: the guest reads one block now and then.
    read = f"dd if={first.disks[WHOLE].block} of=/dev/null count=1 iflag=direct 2>/dev/null"
    linux.guest.send(f"for n in $(seq 40); do {read}; sleep 0.2; done &")
    with pytest.raises(AssertionError, match="context switches"):
        check_idle(linux.backend.cost(5))


# -- one unit, two transports -----------------------------------------------------------------------------------------

RESET = "Power-on or device reset occurred"
MODES_CHANGED = "Mode parameters changed"
WRITE_CACHE = 4  # SBC-4 6.5.6: WCE


def ask(guest: Guest, disk: Disk) -> None:
    guest.check(f"dd if={disk.block} of=/dev/null count=1 iflag=direct")


def check_news(guest: Guest, hears: Disk, news: str, doing: Callable[[], object]) -> None:
    """What is done elsewhere reaches the kernel's driver of this disk, once it asks for something."""
    ask(guest, hears)  # older news are told by now
    log = KernelLog(guest)
    doing()
    ask(guest, hears)
    (address,) = guest.check(f"ls /sys/block/{hears.name}/device/scsi_disk").split()
    told = [line for line in log.text().splitlines() if news in line]
    assert any(f"sd {address}: " in line for line in told), f"{news} is not told to {hears.name}: {told}"


def reset(guest: Guest, disk: Disk) -> Callable[[], object]:
    return lambda: guest.check(f"sg_reset --device {disk.generic}")


def change_caching(guest: Guest, disk: Disk, flags: int) -> Callable[[], object]:
    contents = ",".join(["8", "12", str(flags), *["0"] * 17])
    return lambda: guest.check(f"sg_wr_mode --page=8 --contents={contents} {disk.generic}")


def test_a_unit_behind_both_transports_is_one_unit(linux: Linux) -> None:
    """Data, a reset and a changed mode page cross in each direction; the loss of a session is its own affair."""
    (session,) = log_in(linux, CHAP, DIGESTS)
    guest, ours, theirs = linux.guest, disks(linux.guest)[VHOST], session.disks[WHOLE]
    for writer, reader, place in ((ours, theirs, 128), (theirs, ours, 160)):
        data = make_data(guest, 4)
        write(guest, writer, at_mib=place)
        assert read_hash(guest, reader, 4, at_mib=place) == data == file_hash(linux.image, 4, at_mib=place)
    for actor, hears in ((ours, theirs), (theirs, ours)):
        check_news(guest, hears, RESET, reset(guest, actor))
        ask(guest, actor)  # who asked for the reset is told of it as well
        assert " 00     88 12 04 00" in guest.check(f"sg_modes --page=8 {hears.generic}"), "a reset brings WCE back"
        check_news(guest, hears, MODES_CHANGED, change_caching(guest, actor, 0))
        assert " 00     88 12 00 00" in guest.check(f"sg_modes --page=8 {hears.generic}")
    change_caching(guest, ours, WRITE_CACHE)()
    (row,) = linux.backend.command("session", "list")["sessions"]

    def lose() -> None:
        linux.backend.command("session", "reset", str(row["session"]))
        wait_until("the guest notices", lambda: sessions(guest)[0].values["state"] != "LOGGED_IN")
        logged_in(guest, 1, luns=2)

    check_news(guest, theirs, RESET, lose)
    # The negative twins. Broken: it is another unit; a session is lost, and that is no news for the other nexus.
    with pytest.raises(AssertionError, match="is not told"):
        check_news(guest, session.disks[TORN], RESET, reset(guest, ours))
    (row,) = linux.backend.command("session", "list")["sessions"]
    with pytest.raises(AssertionError, match="is not told"):
        check_news(guest, ours, RESET, lose)
