# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi boot IMAGE`: our back end and a QEMU that boots from it, made for CI: a text to wait for, a time limit,
and exit codes that tell what went wrong.

The back end runs in this process, QEMU as its child; whatever ends, both are gone afterwards.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vhost_scsi.cli.daemon_options import data_plane, given
from vhost_scsi.cli.output import say
from vhost_scsi.errors import ConfigError, VhostScsiError

if TYPE_CHECKING:
    from vhost_scsi.daemon.config import DaemonConfig
    from vhost_scsi.daemon.loop import StallWatch
    from vhost_scsi.daemon.service import Service
    from vhost_scsi.qemu import Guest, GuestConfig

DISK: Final = "disk"
PORT: Final = "boot"
FOREVER: Final = 365 * 86400.0


def _not_empty(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    # Every console says nothing at once.
    if value == "":
        raise click.BadParameter("an empty text is always seen")
    return value


def _a_number(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is no time")
    return value


@click.command("boot")
@click.argument("image", metavar="IMAGE")
@click.option("--snapshot", is_flag=True, help="keep what the guest writes in memory; IMAGE is only read")
@click.option("--expect", metavar="TEXT", callback=_not_empty, help="end with success as soon as the console says this")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=FOREVER),
    callback=_a_number,
    metavar="SECONDS",
    help="and with 13 after this",
)
@click.option("--serial-log", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="the console, raw")
@click.option("--bios/--efi", "bios", default=True, help="the firmware that boots it [default: bios]")
@click.option("--lun", "luns", multiple=True, metavar="T:L=URL[,OPTION=VALUE...]", help="one more disk")
@click.option("--memory", type=click.IntRange(min=1), default=1024, show_default=True, metavar="MIB")
@click.option("--cpus", type=click.IntRange(min=1), default=1, show_default=True, metavar="N")
@click.option("--kernel", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE")
@click.option("--initrd", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE")
@click.option("--append", default="", metavar="WORDS", help="the kernel's command line")
@click.option("--virtqueue-size", type=int, default=128, show_default=True, metavar="N")
@click.option("--control", metavar="PATH", help="the management socket [env VHOST_SCSI_CONTROL]")
@click.option("--quiet", is_flag=True, help="do not show the console")
@click.option("--json", "as_json", is_flag=True, help="the result as one JSON object on stdout, the console on stderr")
@data_plane
def command(image: str, **options: Any) -> None:
    """Boot IMAGE (a path or a store's URL) in QEMU, from our own back end, as target 0 LUN 0.

    Exit code: 0 the text was seen, or without --expect the guest powered off; 12 QEMU ended before; 13 the time was up;
    14 the back end failed; others as docs/exit-codes.md says. With --json a failure is an object too, with `error` and
    `exit_code`.
    """
    try:
        result = _boot(image, options)
    except VhostScsiError as error:
        if options["as_json"]:
            _say_json(image, {"error": str(error), "exit_code": error.exit_code})
        raise
    if options["as_json"]:
        _say_json(image, result)
    else:
        click.echo(f"vhost-scsi: {result['what']} after {result['seconds']:.1f} s", err=True)


def _say_json(image: str, result: dict[str, Any]) -> None:
    say(json.dumps({"schema_version": 1, "image": image, **result}))


def _boot(image: str, options: dict[str, Any]) -> dict[str, Any]:
    from vhost_scsi.daemon import leftovers, logs, loop, service

    # On stderr there is the result, and nothing beside it that is not an error.
    options["log_level"] = options["log_level"] or "error"
    leftovers.sweep()
    with leftovers.folder() as folder:
        socket_path = os.path.join(folder, "vhost-user.sock")
        config = _configuration(image, options, socket_path)
        logs.configure(config.log_level, config.log_format)
        guest_config = _guest_config(config, options, socket_path)
        service.prepare_process()
        result: dict[str, Any] = loop.run(lambda watch: _Boot(config, guest_config, options).run(watch))
        return result


def _configuration(image: str, options: dict[str, Any], socket_path: str) -> DaemonConfig:
    from vhost_scsi.daemon import grammar
    from vhost_scsi.daemon.config import build
    from vhost_scsi.daemon.state import default_directory

    tables: dict[str, Any] = grammar.tables(luns=options["luns"])
    disk = grammar.logical_unit(f"boot {image}", image)
    if options["snapshot"]:
        disk["url"] = snapshot_of(disk["url"])
    tables["lu"] = {DISK: disk, **tables["lu"]}
    if {"0:0", f"{PORT}:0:0"} & set(tables["map"]):
        raise ConfigError("LUN 0:0 is given twice: IMAGE stands there")
    tables["map"] = {f"{PORT}:0:0": DISK, **tables["map"]}
    tables["port"] = {PORT: {"socket": socket_path}}
    if options["num_queues"] is not None:
        tables["port"][PORT]["num_queues"] = options["num_queues"]
    if options["in_order"]:
        tables["port"][PORT]["in_order"] = True
    # The daemon's name is this run's; what it remembers of disks is every run's.
    base = {"name": f"boot-{os.getpid()}", "state_dir": str(default_directory("boot"))}
    return build({**base, **given(options), **tables})


def snapshot_of(url: str) -> str:
    """The URL of a copy-on-write view whose writes stay in memory."""
    return f"overlay:{url}"


def _guest_config(config: DaemonConfig, options: dict[str, Any], socket_path: str) -> GuestConfig:
    from vhost_scsi.qemu import Firmware, GuestConfig, choose_accel, device_options, find_qemu

    if options["kernel"] is None and (options["append"] or options["initrd"]):
        raise ConfigError("--append and --initrd are for a kernel of your own: give --kernel")
    qemu = find_qemu()
    port = config.port[PORT]
    # QEMU gives the boot index 0 to a kernel of its own, and no two things may have it.
    bootindex = 0 if options["kernel"] is None else None
    words = device_options(
        socket_path, port.num_queues, options["virtqueue_size"], qemu=qemu, bootindex=bootindex, reconnect=False
    )
    show = sys.stderr if options["as_json"] else sys.stdout

    def stream(text: str) -> None:
        if show is None:
            return
        with suppress(BrokenPipeError, ValueError):
            show.write(text)
            show.flush()

    return GuestConfig(
        qemu,
        choose_accel(qemu, options["kernel"]),
        memory_mib=options["memory"],
        cpus=options["cpus"],
        firmware=Firmware.BIOS if options["bios"] else Firmware.EFI,
        kernel=options["kernel"],
        initrd=options["initrd"],
        append=options["append"],
        extra=tuple(words),
        # With a text to wait for, a guest that reboots instead would go round for ever.
        no_reboot=options["expect"] is not None,
        serial_log=options["serial_log"],
        stream=None if options["quiet"] else stream,
    )


class _Boot:
    """One boot: back end up, guest through, everything down again."""

    def __init__(self, config: DaemonConfig, guest_config: GuestConfig, options: dict[str, Any]) -> None:
        self._config = config
        self._guest_config = guest_config
        self._expect: str | None = options["expect"]
        self._timeout: float = options["timeout"] or FOREVER
        self._interrupted = False

    async def run(self, watch: StallWatch) -> dict[str, Any]:
        from vhost_scsi.daemon.service import DRAIN_TIMEOUT, Service, drain_limit

        service = Service(self._config, watch=watch)
        await service.start()
        try:
            return await self._with_guest(service)
        finally:
            with drain_limit(DRAIN_TIMEOUT, service.unlink):
                await service.close()

    async def _with_guest(self, service: Service) -> dict[str, Any]:
        from vhost_scsi.daemon.errors import BackendFailed
        from vhost_scsi.qemu import Guest

        guest = Guest(self._guest_config)
        started = time.monotonic()
        through = asyncio.create_task(asyncio.to_thread(self._watch, guest))
        failed = asyncio.create_task(service.wait())
        try:
            with self._interruptible(guest):
                await asyncio.wait((through, failed), return_when=asyncio.FIRST_COMPLETED)
                if not through.done():
                    raise BackendFailed("the back end stopped serving while the guest was running")
                what = await self._outcome(through)
        finally:
            failed.cancel()
            # QEMU first: the back end drains faster without it, and nothing is lost that the guest was promised.
            await asyncio.to_thread(guest.kill)
            with suppress(Exception):
                await through
        return {"what": what, "seconds": round(time.monotonic() - started, 3), "accel": self._guest_config.accel.name}

    async def _outcome(self, through: asyncio.Task[str]) -> str:
        try:
            return await through
        except Exception:
            if self._interrupted:
                raise click.Abort from None
            raise

    def _watch(self, guest: Guest) -> str:
        """In a thread: what the guest does, up to its end."""
        from vhost_scsi.qemu import QemuDied

        guest.start()
        if self._expect is not None:
            guest.expect(re.compile(re.escape(self._expect)), self._timeout)
            guest.quit()
            return f"{self._expect!r} was seen"
        status = guest.wait(self._timeout)
        if status != 0:
            raise QemuDied(status, guest.stderr, "the guest to power off")
        return "the guest powered off"

    @contextmanager
    def _interruptible(self, guest: Guest) -> Iterator[None]:
        """The first signal ends the guest, and with it all of us in good order; a second one ends us at once."""
        loop = asyncio.get_running_loop()
        ends = (signal.SIGINT, signal.SIGTERM)

        def interrupt() -> None:
            self._interrupted = True
            for each in ends:
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
            loop.run_in_executor(None, guest.kill)

        for each in ends:
            loop.add_signal_handler(each, interrupt)
        try:
            yield
        finally:
            for each in ends:
                loop.remove_signal_handler(each)
