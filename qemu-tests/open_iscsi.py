# SPDX-License-Identifier: Apache-2.0
"""Debian with open-iscsi as a guest, and `vhost-scsi serve --iscsi` beside it on the host: what tests do with the two.

The guest reaches the host by QEMU's user network: 127.0.0.1 of the host is 10.0.2.2 there, and addresses are translated
on the way, so that portals announce what the guest can use. It asserts nothing of SCSI; that is what the tests do.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import image
from backend import BOOT_TIMEOUT, Backend, Bed
from guest_disks import Disk

from vhost_scsi.qemu import Guest

HOST = "10.0.2.2"  # QEMU's user network, as its documentation has it
NETWORK = ("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0")
IQN = "iqn.2026-11.org.example:disk"
INITIATOR = "iqn.1993-08.org.debian:01:guest"
NAME, SECRET = "guest", "a secret of the guest's"
TARGET_NAME, TARGET_SECRET = "target", "a secret of the target's"
STEP = 120.0  # seconds that iscsiadm may take; it has time-outs of its own

# What the guest's administrator writes into /etc/iscsi/iscsid.conf.
CHAP = {
    "node.session.auth.authmethod": "CHAP",
    "node.session.auth.chap_algs": "SHA256",
    "node.session.auth.username": NAME,
    "node.session.auth.password": SECRET,
    "node.session.auth.username_in": TARGET_NAME,
    "node.session.auth.password_in": TARGET_SECRET,
}
DIGESTS = {"node.conn[0].iscsi.HeaderDigest": "CRC32C", "node.conn[0].iscsi.DataDigest": "CRC32C"}

SET_UP = f"""
set -e
until nic=$(ls /sys/class/net | grep -v '^lo$'); do sleep 0.2; done
ip link set lo up
ip link set "$nic" up
ip addr add 10.0.2.15/24 dev "$nic"
ip route add default via {HOST}
echo InitiatorName={INITIATOR} >/etc/iscsi/initiatorname.iscsi
cp /etc/iscsi/iscsid.conf /etc/iscsi/iscsid.conf.debian
systemctl start iscsid.socket
"""


def free_port() -> int:
    """One that nobody has now, for a target that shall come back at the same place."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def portal_of(port: int) -> str:
    """A port of the host, as the guest names it."""
    return f"{HOST}:{port}"


def configuration(
    luns: Mapping[int, str], portals: Mapping[int, str | None], *, secrets: Path | None = None, more: str = ""
) -> str:
    """TOML. `luns`: a store for each; `portals`: port, and what is announced for it; `secrets`: where they are, for
    CHAP both ways; `more`: lines of the target's table."""
    lines = [line for lun, store in luns.items() for line in (f"[lu.lun{lun}]", f'url = "{store}"')]
    for port, announced in portals.items():
        lines += ["[[iscsi.portal]]", f'listen = "127.0.0.1:{port}"']
        if announced is not None:
            lines.append(f'announce = ["{announced}"]')
    mapped = ", ".join(f'{lun} = "lun{lun}"' for lun in luns)
    lines += ["[[iscsi.target]]", f'name = "{IQN}"', f"luns = {{ {mapped} }}", more]
    if secrets is not None:
        lines += [
            f'mutual_chap = {{ name = "{TARGET_NAME}", secret_file = "{secrets}/target" }}',
            f'chap = [{{ name = "{NAME}", secret_file = "{secrets}/guest" }}]',
        ]
    return "\n".join(lines) + "\n"


def serve(bed: Bed, name: str, text: str, *options: str, vhost: bool = False) -> Backend:
    """A daemon with that configuration file."""
    path = bed.folder / f"{name}.toml"
    path.write_text(text)
    return bed.serve(options=["--config", str(path), *options], vhost=vhost)


def make_secrets(folder: Path) -> Path:
    """The two secrets as files that only we can read."""
    folder.mkdir()
    for name, secret in (("guest", SECRET), ("target", TARGET_SECRET)):
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(secret)
    return folder


def debian(bed: Bed, *extra: str) -> Guest:
    """Debian, logged in, with a network; its root disk is an overlay of the image, in a back end of its own."""
    root = bed.serve(f"0:0=overlay:{image.demo_image()}", queues=2)
    guest = bed.start(*bed.attach(root, queues=2, bootindex=0, ident="root"), *NETWORK, *extra, cpus=2)
    guest.login(BOOT_TIMEOUT)
    guest.check(SET_UP, STEP)
    return guest


def configure(guest: Guest, *settings: Mapping[str, str]) -> None:
    """/etc/iscsi/iscsid.conf: Debian's, with these lines at its end; iscsid starts anew, all records are forgotten."""
    lines = "\n".join(f"{name} = {value}" for part in settings for name, value in part.items())
    guest.check(
        "iscsiadm -m node -u >/dev/null 2>&1; rm -rf /etc/iscsi/nodes /etc/iscsi/send_targets; set -e\n"
        f"cat /etc/iscsi/iscsid.conf.debian - >/etc/iscsi/iscsid.conf <<'END'\n{lines}\nEND\n"
        "systemctl stop iscsid.service iscsid.socket; systemctl start iscsid.socket",
        STEP,
    )


def discover(guest: Guest, portal: str) -> list[str]:
    """`HOST:PORT,TAG IQN` of each that SendTargets tells; node records are made of them."""
    return guest.check(f"iscsiadm -m discovery -t sendtargets -p {portal} 2>/dev/null", STEP).splitlines()


def login(guest: Guest) -> tuple[int, str]:
    """To every node that was discovered; iscsiadm's status, and what it says."""
    result = guest.run(f"iscsiadm -m node -T {IQN} --login", STEP)
    return result.status, result.output


def logout(guest: Guest) -> None:
    """Of every session, if there is one."""
    guest.run("iscsiadm -m node -u", STEP)


@dataclasses.dataclass(frozen=True, slots=True)
class GuestSession:
    """A session as the guest's kernel shows it: the files of sysfs that tell of it, and its disks by LUN."""

    values: dict[str, str]
    disks: dict[int, Disk]


SESSION_FILES = (
    "state", "targetname", "tpgt", "username", "username_in", "initial_r2t", "immediate_data", "max_outstanding_r2t",
    "max_burst_len", "first_burst_len", "data_pdu_in_order", "data_seq_in_order", "erl",
)  # fmt: skip
CONNECTION_FILES = (
    "header_digest", "data_digest", "max_recv_dlength", "max_xmit_dlength", "persistent_port", "exp_statsn",
)  # fmt: skip
SHOW_SESSIONS = f"""
for s in /sys/class/iscsi_session/session*; do
    test -e $s || continue
    echo "session ${{s##*session}}"
    c=/sys/class/iscsi_connection/connection${{s##*session}}:0
    for f in {" ".join(SESSION_FILES)}; do echo "$f $(cat $s/$f 2>/dev/null)"; done
    for f in {" ".join(CONNECTION_FILES)}; do echo "$f $(cat $c/$f 2>/dev/null)"; done
    for u in $s/device/target*/*:*:*:*; do
        test -e $u/block && test -e $u/scsi_generic && echo "disk ${{u##*:}} $(ls $u/block) $(ls $u/scsi_generic)"
    done
done
"""


def sessions(guest: Guest) -> list[GuestSession]:
    """All sessions in the order of their numbers."""
    found: dict[int, GuestSession] = {}
    for line in guest.check(SHOW_SESSIONS, STEP).splitlines():
        name, _, value = line.partition(" ")
        if name == "session":
            current = found.setdefault(int(value), GuestSession({}, {}))
        elif name == "disk":
            lun, block, generic = value.split()
            current.disks[int(lun)] = Disk(f"/dev/{block}", f"/dev/{generic}")
        elif name:
            current.values[name] = value
    return [session for _, session in sorted(found.items())]


def logged_in(guest: Guest, number: int, luns: int = 1, seconds: float = 60.0) -> list[GuestSession]:
    """All sessions, when there are `number`, each with its disks, and all of them work."""
    deadline = time.monotonic() + seconds
    while True:
        found = sessions(guest)
        working = [each for each in found if each.values["state"] == "LOGGED_IN" and len(each.disks) == luns]
        if len(working) == len(found) == number:
            guest.check("udevadm settle", STEP)
            return found
        assert time.monotonic() < deadline, f"{len(working)} sessions work instead of {number}: {found}"
        time.sleep(0.5)


def refused(backend: Backend) -> str:
    """What `vhost-scsi session refused` says."""
    return "\n".join(row["text"] for row in backend.command("session", "refused")["refused"])


class KernelLog:
    """What the guest's kernel says from now on."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._mark = f"mark {time.monotonic_ns()}"
        guest.check(f"echo {self._mark} >/dev/kmsg")

    def text(self) -> str:
        return self._guest.check("dmesg", STEP).rpartition(self._mark)[2]
