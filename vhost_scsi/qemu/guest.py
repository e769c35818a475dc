# SPDX-License-Identifier: Apache-2.0
"""A running QEMU with its console: start, watch, type, run commands on a root shell, stop.

Threads, not asyncio: a caller on a loop puts it behind `asyncio.to_thread`. The guest's serial port and QMP are
socket pairs that QEMU inherits, so no name in the file system can be left behind or taken. It starts no back end.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import os
import re
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from vhost_scsi.errors import ConfigError
from vhost_scsi.qemu.binary import Qemu
from vhost_scsi.qemu.console import Console
from vhost_scsi.qemu.errors import GuestTimeout, QemuDied, QemuError
from vhost_scsi.qemu.options import Accel, Firmware, efi_options, find_ovmf, memory_options
from vhost_scsi.qemu.qmp import Qmp, QmpClosed

STDERR_KEPT = 65536
MAX_LINE = 4000  # a terminal in canonical mode takes 4095 bytes a line and drops the rest
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True, slots=True)
class GuestConfig:
    """What to start. `extra` are further words for the command line, such as those of `device_options`."""

    qemu: Qemu
    accel: Accel
    memory_mib: int = 1024
    cpus: int = 1
    firmware: Firmware = Firmware.BIOS
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    extra: tuple[str, ...] = ()
    no_reboot: bool = False  # a guest that reboots or panics ends QEMU instead
    serial_log: Path | None = None  # every byte of the console, as it came
    stream: Callable[[str], None] | None = None  # called with clean text from the reader thread


@dataclasses.dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command in the guest ended with, and what it wrote (both outputs together)."""

    status: int
    output: str


def command_line(config: GuestConfig, serial_fd: int, qmp_fd: int, firmware: list[str]) -> list[str]:
    """All words that start this guest."""
    words = [
        *config.qemu.command,
        *("-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"),
        *config.accel.options(),
        *("-smp", str(config.cpus)),
        *memory_options(config.memory_mib),
        *("-chardev", f"socket,id=serial,fd={serial_fd}", "-serial", "chardev:serial"),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
        *firmware,
    ]
    if config.kernel is not None:
        words += ["-kernel", str(config.kernel), "-append", config.append]
    if config.initrd is not None:
        words += ["-initrd", str(config.initrd)]
    if config.no_reboot:
        words.append("-no-reboot")
    return words + list(config.extra)


def _serial_log(path: Path) -> IO[bytes]:
    """Opens the log, empty. A disk that somebody serves is locked, ours too: a name that is given twice by mistake must
    not cost the image."""
    try:
        log = path.open("ab", buffering=0)
    except OSError as error:
        raise ConfigError(f"serial log: {path}: {error.strerror}") from error
    try:
        if stat.S_ISREG(os.fstat(log.fileno()).st_mode):
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log.truncate(0)
    except OSError as error:
        log.close()
        why = "in use, as a disk or as another log" if isinstance(error, BlockingIOError) else error.strerror
        raise ConfigError(f"serial log: {path}: {why}") from error
    return log


class Guest:
    """One QEMU process. Use it as a context manager: whatever happens, QEMU is gone at the end."""

    def __init__(self, config: GuestConfig) -> None:
        self.config = config
        self.console = Console()
        self.started_at = 0.0  # time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self._spawn_error: OSError | None = None
        self._spawned = threading.Event()
        self._ended = threading.Event()
        self._status = 0
        self._stderr = b""
        self._serial: socket.socket | None = None
        self._qmp: Qmp | None = None
        self._threads: list[threading.Thread] = []
        self._cleanup = contextlib.ExitStack()
        self._marker = 0

    # -- life -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self, timeout: float = 60.0) -> None:
        """Start QEMU and return when all its devices stand; QemuDied with its own words when it does not get there."""
        if self._process is not None:
            raise QemuError("this guest was started before")
        try:
            self._start(timeout)
        except BaseException:
            self.kill()
            raise

    def _start(self, timeout: float) -> None:
        serial, serial_peer = socket.socketpair()
        qmp, qmp_peer = socket.socketpair()
        self._serial, self._qmp = serial, Qmp(qmp)
        self._cleanup.callback(serial.close)
        self._cleanup.callback(qmp.close)
        log: IO[bytes] | None = None
        with serial_peer, qmp_peer:
            if self.config.serial_log is not None:
                log = self._cleanup.enter_context(_serial_log(self.config.serial_log))
            words = command_line(self.config, serial_peer.fileno(), qmp_peer.fileno(), self._firmware())
            fds = (serial_peer.fileno(), qmp_peer.fileno())
            self._thread(lambda: self._supervise(words, fds), "qemu")
            self._spawned.wait()
        if self._spawn_error is not None:
            raise QemuError(f"{self.config.qemu.command[0]} cannot be started: {self._spawn_error}")
        self._thread(lambda: self._read_console(serial, log), "qemu-console")
        try:
            self._qmp.handshake(timeout)
        except QmpClosed:
            self._ended.wait(timeout)
            raise self._died("its start") from None

    def _firmware(self) -> list[str]:
        if self.config.firmware is Firmware.BIOS:
            return []
        code, variables = find_ovmf()
        folder = self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vhost-scsi-efi."))
        return efi_options(code, Path(shutil.copy(variables, folder)))

    def _thread(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _supervise(self, words: list[str], fds: tuple[int, ...]) -> None:
        """Start QEMU and see it end. PR_SET_PDEATHSIG goes by the thread that forked, so this one must outlive it."""
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(127)

        try:
            self.started_at = time.monotonic()
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=fds,
                preexec_fn=die_with_parent,
                start_new_session=True,  # a Ctrl-C on our terminal is for us to act upon
            )
        except OSError as error:
            self._spawn_error = error
            self._ended.set()
            self._spawned.set()
            return
        self._process = process
        self._spawned.set()
        assert process.stderr is not None
        with process.stderr:
            while data := os.read(process.stderr.fileno(), 65536):
                self._stderr = (self._stderr + data)[-STDERR_KEPT:]
        self._status = process.wait()
        self._ended.set()

    def _read_console(self, serial: socket.socket, log: IO[bytes] | None) -> None:
        try:
            while True:
                try:
                    data = serial.recv(65536)
                except OSError:
                    return
                if not data:
                    return
                if log is not None:
                    log.write(data)
                text = self.console.feed(data)
                if text and self.config.stream is not None:
                    self.config.stream(text)
        finally:
            self.console.close()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        if self._process is None:
            raise QemuError("this guest was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether QEMU is alive."""
        return self._process is not None and not self._ended.is_set()

    @property
    def qmp(self) -> Qmp:
        """QEMU's monitor."""
        if self._qmp is None:
            raise QemuError("this guest was not started")
        return self._qmp

    @property
    def stderr(self) -> str:
        """The end of what QEMU wrote to its standard error."""
        return self._stderr.decode(errors="replace")

    def wait(self, timeout: float) -> int:
        """Wait until QEMU ends by itself; its exit status."""
        if not self._ended.wait(timeout):
            raise GuestTimeout("end of QEMU", timeout, self.console.tail())
        return self._status

    def quit(self, timeout: float = 60.0) -> int:
        """Tell QEMU to end at once, as if the power was cut but in good order; its exit status."""
        with contextlib.suppress(QmpClosed):
            self.qmp.execute("quit", timeout=timeout)
        return self.wait(timeout)

    def shutdown(self, timeout: float = 180.0) -> int:
        """Shut the guest down from its shell and wait for QEMU's end; its exit status."""
        self.send("poweroff")
        return self.wait(timeout)

    def reset(self) -> None:
        """Press the reset button."""
        self.qmp.execute("system_reset")

    def kill(self) -> None:
        """End QEMU with SIGKILL if it still runs, and free everything. Safe to call at any time, twice too."""
        if self._process is not None:
            if not self._ended.is_set():
                self._process.kill()
            self._ended.wait()
        if self._serial is not None:
            with contextlib.suppress(OSError):
                self._serial.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._cleanup.close()

    def _died(self, waiting_for: str) -> QemuDied:
        return QemuDied(self._status, self.stderr, waiting_for, self.console.tail())

    # -- console ----------------------------------------------------------------------------------------------------

    def expect(self, wanted: str | re.Pattern[str], timeout: float) -> re.Match[str]:
        """Wait until the guest writes a text or a pattern; everything up to its end is consumed."""
        return self._expect(wanted, timeout)[1]

    def _expect(self, wanted: str | re.Pattern[str], timeout: float) -> tuple[str, re.Match[str]]:
        found = self.console.expect(wanted, timeout)
        if found is not None:
            return found
        what = repr(wanted if isinstance(wanted, str) else wanted.pattern)
        # The console closes a moment before the process has ended.
        if self.console.closed and self._ended.wait(10):
            raise self._died(what)
        raise GuestTimeout(what, timeout, self.console.tail())

    def send(self, line: str, timeout: float = 60.0) -> None:
        """Type a line and press Enter."""
        if self._serial is None:
            raise QemuError("this guest was not started")
        data = line.encode() + b"\n"
        if max(len(part) for part in data.split(b"\n")) > MAX_LINE:
            raise QemuError(f"a line of more than {MAX_LINE} bytes does not fit a terminal")
        deadline = time.monotonic() + timeout
        while data:
            remaining = max(0.0, deadline - time.monotonic())
            if not select.select([], [self._serial], [], remaining)[1]:
                raise GuestTimeout("reader of its serial port", timeout, self.console.tail())
            try:
                data = data[self._serial.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                continue
            except OSError:
                self._ended.wait(10)
                raise self._died("input to its console") from None

    def login(self, timeout: float = 300.0, user: str = "root") -> None:
        """Log in at the prompt of a system that asks for no password, and make the shell fit for `run`."""
        self.expect("login: ", timeout)
        self.send(user)
        self.expect(re.compile(rf"{user}@\S*[#$] "), timeout)
        self.take_shell(timeout)

    def take_shell(self, timeout: float = 60.0) -> None:
        """Make the shell at the other end quiet: no echo, no prompt, no line editing, no kernel messages between."""
        # The first shell must not be reading any more when the second line is typed: it would take it with it.
        self.send("stty -echo; dmesg -n 1; printf 'shell-is-%s\\n' next; exec sh")
        self.expect("shell-is-next", timeout)
        self.send("PS1=; PS2=; printf 'shell-is-%s\\n' quiet")
        self.expect("shell-is-quiet", timeout)

    def run(self, command: str, timeout: float = 60.0) -> CommandResult:
        """Run a command (or several lines of a script) in a subshell of the guest's root shell, without input."""
        self._marker += 1
        mark = self._marker
        self.console.lost = 0
        # The markers are put together by printf: were the input echoed, the echo would not look like one.
        self.send(f"printf 'begin-%s-\\n' {mark}; (\n{command}\n) </dev/null 2>&1; printf '\\nend-%s-%s-\\n' {mark} $?")
        self._expect(f"begin-{mark}-\n", timeout)
        output, match = self._expect(re.compile(rf"\nend-{mark}-(\d+)-\n"), timeout)
        if self.console.lost:
            raise QemuError(f"{command!r} wrote more than the console keeps")
        return CommandResult(int(match[1]), output)

    def check(self, command: str, timeout: float = 60.0) -> str:
        """Run a command that must succeed; its output."""
        result = self.run(command, timeout)
        if result.status != 0:
            raise QemuError(f"in the guest, {command!r} ended with status {result.status}: {result.output.strip()}")
        return result.output
