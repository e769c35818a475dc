# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a real Debian boots from our back end in stock QEMU, works on its disk, and is looked at from outside.

Everything goes through the real command line, as a user would do it. Each step is checked; the exit code is 0 only if
all of them held. It is a show and not a test: the tests are beside it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import image
import initrd
from debian import BuildError

from vhost_scsi.errors import VhostScsiError
from vhost_scsi.qemu import Guest, GuestConfig, choose_accel, device_options, find_qemu

BOOT_TIMEOUT: Final = 400.0  # seconds; TCG on a busy machine
READY_TIMEOUT: Final = 30.0
LOOK_TIMEOUT: Final = 60.0  # seconds to catch so many requests in flight; one is enough when the time is up
IN_FLIGHT: Final = 4
FILE_MIB: Final = 64
REQUEST_QUEUES: Final = 2
FIRST_REQUEST_QUEUE: Final = 2  # after the control and the event queue
CLI: Final = (sys.executable, "-m", "vhost_scsi.cli")
# dsync: each write is a FUA write, which takes as long as the disk below needs, so that there is something to see.
FIO: Final = (
    "fio --name=demo --filename=/root/fio.dat --size=128M --rw=randrw --bs=4k --direct=1 --sync=dsync"
    " --ioengine=libaio --iodepth=32 --runtime=120 --time_based --group_reporting"
)
LSBLK: Final = "lsblk -o NAME,SIZE,TYPE,FSTYPE,MOUNTPOINTS,VENDOR,MODEL,WWN"
COLOUR: Final = sys.stdout.isatty() and "NO_COLOR" not in os.environ


class DemoFailure(Exception):
    """A step did not hold; the text says how."""


def paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


def quote(text: str) -> None:
    """What somebody else wrote: a program, or the guest."""
    for line in text.rstrip("\n").split("\n"):
        print(f"    {line}", flush=True)


def typed(words: str) -> None:
    print(f"    {paint('$ ' + words, '1')}", flush=True)


class Steps:
    """Names what happens, and keeps how long it took."""

    def __init__(self) -> None:
        self.times: list[tuple[str, float]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        print(f"\n{paint('==> ' + title, '1;36')}", flush=True)
        started = time.monotonic()
        yield
        self.times.append((title, time.monotonic() - started))

    def summary(self) -> None:
        print(f"\n{paint('==> All of it held', '1;32')}")
        for title, seconds in self.times:
            print(f"    {seconds:7.1f} s  {title}")
        print(f"    {sum(seconds for _, seconds in self.times):7.1f} s  together", flush=True)


class GuestConsole:
    """Prints the guest's console line by line, set off from our own words, up to its login prompt."""

    def __init__(self) -> None:
        self._line = ""
        self._on = True

    def __call__(self, text: str) -> None:
        *lines, self._line = (self._line + text).split("\n")
        if self._line.endswith("login: "):
            lines.append(self._line)
        for line in lines:
            if self._on and line.strip():
                print(f"    {paint('|', '2')} {line.rstrip()}", flush=True)
                # From here on the console is ours to type on.
                self._on = not line.endswith("login: ")


class BackEnd:
    """`vhost-scsi serve` as a child process, and the commands that look into it."""

    def __init__(self, folder: Path, disk: Path) -> None:
        self.socket = folder / "vhost-user.sock"
        self._environment = {**os.environ, "VHOST_SCSI_CONTROL": str(folder / "control.sock")}
        self._errors = (folder / "serve.log").open("w+")
        words = ["serve", "--socket-path", self.socket.name, "--lun", f"0:0={disk.name}"]
        words += ["--num-queues", str(REQUEST_QUEUES), "--state-dir", "state"]
        typed(f"vhost-scsi {shlex.join(words)}")
        self._process = subprocess.Popen(
            [*CLI, *words],
            cwd=folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self._process.stdout is not None
        watchdog = time.monotonic() + READY_TIMEOUT
        for line in self._process.stdout:
            quote(line)
            if line.startswith("READY "):
                return
            if time.monotonic() > watchdog:
                break
        raise DemoFailure(f"the back end did not come up: {self.log()}")

    def log(self) -> str:
        self._errors.flush()
        self._errors.seek(0)
        return self._errors.read().strip()

    def ask(self, *words: str) -> str:
        """The output of one `vhost-scsi` command."""
        done = subprocess.run([*CLI, *words], env=self._environment, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise DemoFailure(f"vhost-scsi {shlex.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def stop(self) -> None:
        """SIGTERM, as a service manager does it; it must drain, clean up and end with 0."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(20)
        if status != 0:
            raise DemoFailure(f"the back end ended with {status}: {self.log()}")
        if self.socket.exists():
            raise DemoFailure("the back end left its socket behind")

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def boot(folder: Path) -> Guest:
    """Stock QEMU with our device as its only disk, at the point where Debian asks who wants to log in."""
    qemu = find_qemu()
    accel = choose_accel(qemu, initrd.tiny_guest().kernel)
    print(f"    QEMU {qemu.version_text}, {accel.name} ({accel.reason:.90})", flush=True)
    words = device_options(folder / "vhost-user.sock", REQUEST_QUEUES, qemu=qemu, bootindex=0)
    # As many processors as request queues: Linux uses no more queues than it has processors.
    return Guest(GuestConfig(qemu, accel, cpus=REQUEST_QUEUES, extra=tuple(words), stream=GuestConsole()))


def in_guest(guest: Guest, command: str, timeout: float = 120.0) -> str:
    typed(f"(guest) {command}")
    output = guest.check(command, timeout)
    quote(output)
    return output


def checksummed_file(guest: Guest) -> str:
    """Writes a file of random data, forgets every cached page of it, and reads it back from the disk."""
    in_guest(guest, f"dd if=/dev/urandom of=/root/random.bin bs=1M count={FILE_MIB} conv=fsync 2>&1 | tail -1", 300)
    written = in_guest(guest, "sha256sum /root/random.bin").split()[0]
    in_guest(guest, "sync; echo 3 >/proc/sys/vm/drop_caches; free -m | awk '/^Mem/ { print $6 \" MiB still cached\" }'")
    if in_guest(guest, "sha256sum /root/random.bin", 300).split()[0] != written:
        raise DemoFailure("the guest reads other data than it has written")
    print(f"    {paint('the same', '32')}: read back from the disk", flush=True)
    return written


def look_at_queues(guest: Guest, back_end: BackEnd) -> None:
    """`queue show` while fio is at work; looks again until requests are caught in flight."""
    guest.check(f"{FIO} --create_only=1 >/dev/null", 300)
    typed(f"(guest) {FIO} &")
    guest.check(f"{FIO} >/tmp/fio.out 2>&1 &")
    shown = caught_in_flight(back_end)
    typed("vhost-scsi queue show " + re.search(r"queue (\d+)", shown)[1])  # type: ignore[index]
    quote(shown)
    for words in (("queue", "list"), ("lun", "list"), ("status",)):
        typed(f"vhost-scsi {' '.join(words)}")
        quote(back_end.ask(*words))
    guest.check("pkill -INT -x fio; while pgrep -x fio >/dev/null; do sleep 0.2; done", 120)
    quote(guest.check("grep -E 'IOPS|err=' /tmp/fio.out"))
    if " err= 0" not in guest.check("cat /tmp/fio.out"):
        raise DemoFailure("fio reports an error")


def caught_in_flight(back_end: BackEnd) -> str:
    """What `queue show` says at a moment with requests in flight; the best of what was seen."""
    best, most = "", 0
    until = time.monotonic() + LOOK_TIMEOUT
    for attempt in itertools.count():
        shown = back_end.ask("queue", "show", str(FIRST_REQUEST_QUEUE + attempt % REQUEST_QUEUES))
        found = len(re.findall(r"\b(?:READ|WRITE)\(\d+\)", shown))
        if found > most:
            best, most = shown, found
        if most >= IN_FLIGHT or time.monotonic() > until:
            break
    if not most:
        raise DemoFailure(f"in {LOOK_TIMEOUT:g} s of looks at the queues no request was in flight")
    return best


def check_from_outside(disk: Path, checksum: str) -> None:
    """The file system and the file, read from the image with no guest in between."""
    typed(f"e2fsck -f -n {disk.name}?offset={image.ROOT_START}")
    quote(image.check_filesystem(disk))
    where = f"{disk}?offset={image.ROOT_START}"
    dumped = subprocess.run(["debugfs", "-R", "cat /root/random.bin", where], capture_output=True, timeout=120)
    found = hashlib.sha256(dumped.stdout).hexdigest()
    if found != checksum:
        raise DemoFailure(f"/root/random.bin in the image has checksum {found}, the guest wrote {checksum}")
    print(f"    {found}  /root/random.bin, {paint('the same', '32')} as in the guest", flush=True)


def show(steps: Steps, folder: Path, cleanup: ExitStack) -> None:
    disk = folder / "debian.img"
    with steps.step("a Debian disk image, made from Debian's packages, and a copy of it to work on"):
        image.copy_image(image.demo_image(), disk)
        used = disk.stat().st_blocks * 512 >> 20
        print(f"    {disk.name}: {disk.stat().st_size >> 20} MiB, {used} MiB used", flush=True)
    with steps.step("our back end, one unprivileged process"):
        back_end = BackEnd(folder, disk)
        cleanup.callback(back_end.kill)
    with steps.step("stock QEMU boots from it: firmware, boot loader, kernel, root file system, login"):
        guest = cleanup.enter_context(boot(folder))
        guest.login(BOOT_TIMEOUT)
    with steps.step("what the guest sees"):
        if "VHOST" not in in_guest(guest, LSBLK):
            raise DemoFailure("the guest's disk is not ours")
        in_guest(guest, "findmnt -no SOURCE,FSTYPE,OPTIONS /; dmesg | grep -i 'virtio.*scsi\\|sd 0:0:0:0' | head -8")
    with steps.step(f"{FILE_MIB} MiB written and read back in the guest"):
        checksum = checksummed_file(guest)
    with steps.step("looking into the queues from outside, while the guest works"):
        look_at_queues(guest, back_end)
    with steps.step("a clean shutdown, of the guest and then of the back end"):
        typed("(guest) poweroff")
        status = guest.shutdown()
        print(f"    QEMU ended with {status}", flush=True)
        if status != 0:
            raise DemoFailure(f"QEMU ended with {status}: {guest.stderr}")
        back_end.stop()
        quote(back_end.log())
    with steps.step("the disk, checked from outside"):
        check_from_outside(disk, checksum)


def main() -> int:
    """Runs the show in a directory of its own; says what failed, and leaves nothing running."""
    steps = Steps()
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vhost-scsi-demo.")))
        try:
            show(steps, folder, cleanup)
        except KeyboardInterrupt:
            print(f"\n{paint('==> interrupted', '1;31')}", flush=True)
            return 130
        except (DemoFailure, VhostScsiError, BuildError, OSError, subprocess.SubprocessError) as error:
            print(f"\n{paint(f'==> FAILED: {error}', '1;31')}", flush=True)
            return 1
    steps.summary()
    return 0


if __name__ == "__main__":
    sys.exit(main())
