# SPDX-License-Identifier: Apache-2.0
"""Linux's own initiator when something fails: the target process killed, ended and started again while the guest
writes, and one of two portals cut off from a guest with dm-multipath. Data must be what the guest wrote, and whatever
writes must not see an error. What works when nothing fails is in test_open_iscsi.py.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import pytest
from backend import Backend, Bed, wait_until
from open_iscsi import (
    CHAP,
    DIGESTS,
    HOST,
    STEP,
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
    serve,
    sessions,
)
from proxy import Proxy

from vhost_scsi.qemu import Guest

pytestmark = [pytest.mark.slow, pytest.mark.full_boot]

MIB = 1 << 20
SIZE = 128 * MIB
TWO = {"node.session.nr_sessions": "2"}
PATIENT = {"node.session.timeo.replacement_timeout": "300"}
IMPATIENT = {"node.session.timeo.replacement_timeout": "2"}
PATIENCE = 120.0

# At a bounded rate, so that what goes wrong goes wrong in the middle; then everything is read and compared.
WRITER = (
    "fio --name=write --filename={path} --ioengine=libaio --direct=1 --rw=randwrite --bs=16k --iodepth=8 --size=32M"
    " --rate_iops=60 --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=5 --output-format=terse"
)
CHECK = (
    "fio --name=write --filename={path} --direct=1 --rw=randwrite --bs=16k --size=32M --randseed=5"
    " --verify=crc32c --verify_only --verify_fatal=1 --output-format=terse"
)


class Writer:
    """fio in the guest's background: it writes, then verifies what it wrote."""

    def __init__(self, guest: Guest, path: str) -> None:
        self._guest, self._path = guest, path
        guest.check("rm -f /tmp/fio.status")
        guest.check(f"({WRITER.format(path=path)} >/tmp/fio.out 2>&1; echo $? >/tmp/fio.status) &")

    @property
    def ended(self) -> bool:
        return self._guest.run("test -s /tmp/fio.status").status == 0

    def result(self) -> None:
        """It must end well; and then once more, by a look at what the disk holds."""
        wait_until("fio ends", lambda: self.ended, 600)
        status = int(self._guest.check("cat /tmp/fio.status"))
        assert status == 0, f"fio: {self._guest.check('cat /tmp/fio.out')}"
        result = self._guest.run(CHECK.format(path=self._path), 600)
        assert result.status == 0, f"fio: {result.output}"


def written(backend: Backend) -> int:
    (unit,) = backend.call("lun.list")["logical_units"]
    count: int = unit["stats"]["writes"]
    return count


def in_the_middle(backend: Backend, writer: Writer) -> None:
    """Returns when writes come in, a good number of them."""
    before = written(backend)
    wait_until("writes come in", lambda: writer.ended or written(backend) > before + 100, PATIENCE)
    assert not writer.ended, "fio has ended"


# -- the target is gone, and comes back -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Away:
    """The guest, and a target with one file behind CHAP and digests, at a port that it will have again."""

    guest: Guest
    backend: Backend
    portal: str


@pytest.fixture(scope="module")
def guest(shared_bed: Bed) -> Guest:
    return debian(shared_bed)


@pytest.fixture(scope="module")
def away(shared_bed: Bed, guest: Guest) -> Away:
    port, image = free_port(), shared_bed.disk("disk", SIZE)
    text = configuration({0: str(image)}, {port: HOST}, secrets=make_secrets(shared_bed.folder / "secrets"))
    return Away(guest, serve(shared_bed, "target", text), portal_of(port))


def check_outage(setup: Away, patience: dict[str, str], *, kill: bool, seconds: float) -> None:
    """Two sessions; a file system on one, where fio writes while the target is away for some time."""
    guest, backend = setup.guest, setup.backend
    configure(guest, CHAP, DIGESTS, TWO, patience)
    discover(guest, setup.portal)
    status, said = login(guest)
    assert status == 0, said
    disk = logged_in(guest, 2)[0].disks[0]
    log = KernelLog(guest)
    writer = Writer(guest, disk.block)
    try:
        in_the_middle(backend, writer)
        if kill:
            backend.kill()
        else:
            backend.stop()
        wait_until("both sessions are down", lambda: not up(guest), PATIENCE)
        assert not writer.ended, "fio did not wait"
        time.sleep(seconds)
        backend.restart()
        logged_in(guest, 2, seconds=PATIENCE)
        writer.result()
        errors = [line for line in log.text().splitlines() if "I/O error" in line]
        assert not errors, f"errors: {errors}"
        assert len(backend.command("session", "list")["sessions"]) == 2
    finally:
        if not backend.alive:
            backend.restart()
        wait_until("fio ends", lambda: writer.ended, 600)
        logout(guest)


def up(guest: Guest) -> list[str]:
    return [session.values["state"] for session in sessions(guest) if session.values["state"] == "LOGGED_IN"]


def test_a_target_that_is_killed_in_the_middle_of_writes_comes_back_and_nothing_is_lost(away: Away) -> None:
    check_outage(away, PATIENT, kill=True, seconds=3)


def test_a_target_that_ends_in_good_order_comes_back_and_nothing_is_lost(away: Away) -> None:
    """SIGTERM: the guest is asked to log out, with writes under way, and logs in again by itself."""
    check_outage(away, PATIENT, kill=False, seconds=3)


def test_an_outage_that_lasts_longer_than_the_guest_waits_is_noticed(away: Away) -> None:
    """Broken: the guest gives up after two seconds, and the target is away for longer."""
    with pytest.raises(AssertionError, match=r"fio: |fio did not wait"):
        check_outage(away, IMPATIENT, kill=True, seconds=8)


# -- one of two portals -----------------------------------------------------------------------------------------------

MULTIPATH = """
cat >/etc/multipath.conf <<'END'
defaults {
    find_multipaths no
    polling_interval 2
    max_polling_interval 4
    path_grouping_policy multibus
    no_path_retry queue
}
blacklist {
    devnode "^sda"
}
END
systemctl start multipathd.service
"""


@dataclasses.dataclass(frozen=True, slots=True)
class TwoWays:
    """One file behind two portals, the second of which is reached through a network that can be cut."""

    guest: Guest
    backend: Backend
    cut_port: int
    proxy: Proxy


@pytest.fixture
def two_ways(bed: Bed, guest: Guest) -> Iterator[TwoWays]:
    direct, behind = free_port(), free_port()
    image = bed.disk("disk", SIZE)
    with Proxy(behind) as proxy:
        text = configuration({0: str(image)}, {direct: HOST, behind: portal_of(proxy.port)})
        setup = TwoWays(guest, serve(bed, "two-ways", text), behind, proxy)
        configure(guest, DIGESTS, IMPATIENT)
        assert len(discover(guest, portal_of(direct))) == 2
        status, said = login(guest)
        assert status == 0, said
        logged_in(guest, 2)
        yield setup
        proxy.mend()
        guest.run("pkill -x fio; systemctl stop multipathd.service multipathd.socket; multipath -F", STEP)
        logout(guest)


def states(guest: Guest) -> list[str]:
    """Of each path, as the kernel's map has it: A is active, F failed."""
    words = guest.run("dmsetup status --target multipath").output.split()
    return sorted(word for word in words if word in ("A", "F"))[-2:]


def through(setup: TwoWays) -> int:
    """Commands that came by the portal behind the proxy since its session began."""
    rows = setup.backend.command("connection", "list")["connections"]
    return sum(row["commands"] for row in rows if row["local"].endswith(f":{setup.cut_port}"))


def check_cut(setup: TwoWays, path: str, paths: Callable[[], list[str]]) -> None:
    """fio writes to `path`; one portal is cut off and comes back; both are used before and after, one meanwhile."""
    guest, backend = setup.guest, setup.backend
    writer = Writer(guest, path)
    in_the_middle(backend, writer)
    assert through(setup) > 0
    setup.proxy.cut()
    wait_until("one path is down", lambda: writer.ended or paths() == ["A", "F"], PATIENCE)
    in_the_middle(backend, writer)
    assert setup.proxy.lost > 0
    setup.proxy.mend()
    wait_until("the path is back", lambda: paths() == ["A", "A"], PATIENCE)
    wait_until("it is used", lambda: writer.ended or through(setup) > 20, PATIENCE)
    writer.result()


def test_multipath_goes_on_when_one_portal_is_cut_off_and_uses_it_when_it_is_back(two_ways: TwoWays) -> None:
    guest = two_ways.guest
    guest.check(MULTIPATH, STEP)
    wait_until("there is a map with two paths", lambda: states(guest) == ["A", "A"], PATIENCE)
    (name,) = guest.check("dmsetup ls --target multipath | cut -f1").split()
    log = KernelLog(guest)
    check_cut(two_ways, f"/dev/mapper/{name}", lambda: states(guest))
    said = log.text()
    assert "Failing path" in said
    assert "Reinstating path" in said
    assert "dm-0" not in [word for line in said.splitlines() if "I/O error" in line for word in line.split()]


def test_a_cut_without_multipath_is_an_error(two_ways: TwoWays) -> None:
    """The negative twin. Broken: fio writes to the disk behind the portal that is cut off."""
    by_port = {session.values["persistent_port"]: session for session in sessions(two_ways.guest)}
    disk = by_port[str(two_ways.proxy.port)].disks[0]
    with pytest.raises(AssertionError, match=r"fio has ended|writes come in"):
        check_cut(two_ways, disk.block, list)
    wait_until("fio ends", lambda: two_ways.guest.run("test -s /tmp/fio.status").status == 0, PATIENCE)
    assert "Input/output error" in two_ways.guest.check("cat /tmp/fio.out")
