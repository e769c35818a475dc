# SPDX-License-Identifier: Apache-2.0
"""sg3_utils in two guests at one daemon: a small one that finds its units over virtio-scsi, and a Debian with
open-iscsi that finds its own over iSCSI; one unit is there for both. Many commands go in one script, and what each of
them said is kept.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from backend import Backend, Bed
from guest_disks import disks
from open_iscsi import (
    HOST,
    IQN,
    configure,
    debian,
    discover,
    free_port,
    logged_in,
    login,
    portal_of,
    serve,
)

from vhost_scsi.qemu import Guest

MIB = 1 << 20
# A guest that is slow must not be taken for one that is gone.
QUIET = {"node.conn[0].timeo.noop_out_interval": "0", "node.conn[0].timeo.noop_out_timeout": "0"}
SIZE = 64 * MIB
BLOCKS = SIZE // 512
VIRTIO, ISCSI = "virtio", "iscsi"
UNITS = ("work", "copy", "shared")
VIRTIO_TARGET = 1
GROUPS = {VIRTIO: 1, ISCSI: 2}  # target port groups
SECONDS = 4  # that the daemon takes to write all of a unit over
TYPED = 1500  # bytes at once
SCRIPT_TIMEOUT = 900.0  # TCG on a busy machine, and dozens of programs


@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    """What a program ended with, and what it wrote."""

    status: int
    text: str

    def value(self, label: str) -> str:
        """What stands behind `label` and a colon or an equals sign, up to the end of the line or a comma."""
        found = re.search(rf"{re.escape(label)}\s*[:=]\s*([^,\n\]]*)", self.text)
        assert found is not None, f"no {label!r} in:\n{self.text}"
        return found[1].strip()

    def number(self, label: str) -> int:
        """As `value`, the number that it begins with."""
        return int(self.value(label).split()[0], 0)

    def has(self, *lines: str) -> None:
        """Each of these stands somewhere in it, however the blanks are."""
        flat = " ".join(self.text.split())
        for line in lines:
            assert line in flat, f"no {line!r} in:\n{self.text}"


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A guest with three units: `work` and `copy` are its own, `shared` is everybody's."""

    guest: Guest
    backend: Backend
    transport: str
    generic: dict[str, str]

    def uuid(self, unit: str) -> str:
        name = unit if unit == "shared" else f"{self.transport}-{unit}"
        rows = self.backend.call("lun.list")["logical_units"]
        return next(str(row["uuid"]) for row in rows if row["name"] == name)

    def say(self, commands: Mapping[str, str]) -> dict[str, Said]:
        """Runs them in their order; $WORK, $COPY and $SHARED are the generic devices."""
        head = [f"{unit.upper()}={path}" for unit, path in self.generic.items()]
        parts = [[f"echo '=== {name}'", f"( {word} ) 2>&1", 'echo "--- $?"'] for name, word in commands.items()]
        output, lines = "", list(head)
        for number, part in enumerate(parts, 1):
            lines += part
            # A terminal holds 4096 bytes, and loses what comes while a slow guest is at something else.
            if number == len(parts) or sum(map(len, lines)) > TYPED:
                output += self.guest.check("\n".join(lines), SCRIPT_TIMEOUT) + "\n"
                lines = list(head)
        found = {}
        for match in re.finditer(r"^=== (.*)\n((?:.*\n)*?)--- (\d+)$", output, re.MULTILINE):
            found[match[1]] = Said(int(match[3]), match[2])
        assert found.keys() == commands.keys(), output
        return found

    def all(self, *commands: str, fails: Mapping[str, int] | None = None) -> dict[str, Said]:
        """As `say`, by their own words; each ends with 0, or with what `fails` says."""
        found = self.say({command: command for command in commands})
        wrong = {command: said for command, said in found.items() if said.status != (fails or {}).get(command, 0)}
        assert not wrong, "\n".join(f"{command}: {said.status}\n{said.text}" for command, said in wrong.items())
        return found

    def ok(self, command: str) -> Said:
        return self.all(command)[command]

    def ready(self, *units: str) -> None:
        """Takes unit attentions away."""
        for unit in units or UNITS:
            self.guest.check(
                f"for i in 1 2 3 4 5 6 7 8; do sg_turs {self.generic[unit]} && break; done", SCRIPT_TIMEOUT
            )


@dataclasses.dataclass(frozen=True, slots=True)
class Daemon:
    backend: Backend
    port: int


def start(bed: Bed) -> Daemon:
    port = free_port()
    lines = []
    for name in [f"{transport}-{unit}" for transport in (VIRTIO, ISCSI) for unit in UNITS[:2]] + ["shared"]:
        lines += [f"[lu.{name}]", 'url = "memory:64M"', "cdb32 = true", f"overwrite_rate = {SIZE // SECONDS}"]
    luns = ", ".join(f'{lun} = "{unit if unit == "shared" else f"{ISCSI}-{unit}"}"' for lun, unit in enumerate(UNITS))
    lines += ["[[iscsi.portal]]", f'listen = "127.0.0.1:{port}"', f'announce = ["{HOST}"]']
    lines += [f"port_group = {GROUPS[ISCSI]}", "[[iscsi.target]]", f'name = "{IQN}"', f"luns = {{ {luns} }}"]
    maps = []
    for lun, unit in enumerate(UNITS):
        maps += ["--map", f"default:{VIRTIO_TARGET}:{lun}={unit if unit == 'shared' else f'{VIRTIO}-{unit}'}"]
    return Daemon(serve(bed, "sg3", "\n".join(lines) + "\n", *maps, vhost=True), port)


def over_virtio(bed: Bed, daemon: Daemon) -> Place:
    guest = bed.tiny(*bed.attach(daemon.backend))
    found = disks(guest)
    generic = {unit: found[VIRTIO_TARGET, lun].generic for lun, unit in enumerate(UNITS)}
    return Place(guest, daemon.backend, VIRTIO, generic)


def over_iscsi(bed: Bed, daemon: Daemon) -> Place:
    guest = debian(bed)
    configure(guest, QUIET)
    discover(guest, portal_of(daemon.port))
    status, said = login(guest)
    assert status == 0, said
    (session,) = logged_in(guest, 1, luns=len(UNITS))
    generic = {unit: session.disks[lun].generic for lun, unit in enumerate(UNITS)}
    return Place(guest, daemon.backend, ISCSI, generic)


def hex_dump(text: str) -> bytes:
    """What sg3_utils and od print: rows of an offset and up to 16 bytes, without characters behind them."""
    found = b""
    for line in text.splitlines():
        match = re.match(r"\s*(?:[0-9a-f]+ {4,})?((?:[0-9a-f]{2} {1,2}){0,15}[0-9a-f]{2})\s*(?: {3,}.*)?$", line)
        if match:
            found += bytes.fromhex(match[1])
    return found
