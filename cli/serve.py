# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi serve`: runs the daemon in the foreground and says how QEMU is attached to it, and how initiators find
it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from vhost_scsi.cli.daemon_options import data_plane, given
from vhost_scsi.cli.output import say
from vhost_scsi.errors import ConfigError

if TYPE_CHECKING:
    from vhost_scsi.daemon.config import DaemonConfig
    from vhost_scsi.daemon.service import Service

DEFAULT_PORT = "default"
# Options that become tables.
GRAMMAR = ("lus", "luns", "maps", "ports", "portals", "targets")


@click.command("serve")
@click.option("--socket-path", metavar="PATH", help="the vhost-user socket of the port `default`")
@click.option("--fd", type=int, metavar="N", help="instead of a path: a listening or connected socket we inherit")
@click.option("--lun", "luns", multiple=True, metavar="[T:]L=URL[,OPTION=VALUE...]", help="a logical unit at a LUN")
@click.option("--lu", "lus", multiple=True, metavar="NAME=URL[,OPTION=VALUE...]", help="a logical unit with a name")
@click.option(
    "--map", "maps", multiple=True, metavar="PLACE=NAME", help="puts a named unit at PORT:T:L, or at IQN:L over iSCSI"
)
@click.option("--port", "ports", multiple=True, metavar="NAME=PATH[,OPTION=VALUE...]", help="one more port")
@click.option(
    "--iscsi", "portals", multiple=True, metavar="HOST[:PORT][,TAG]", help="an iSCSI portal; * for all of IPv4"
)
@click.option("--target", "targets", multiple=True, metavar="IQN", help="an iSCSI target")
@click.option("--config", "config_path", metavar="FILE", help="the same and more, as TOML")
@click.option("--name", metavar="NAME", help="the daemon's name [default: default]")
@click.option("--control", metavar="PATH", help="the management socket [env VHOST_SCSI_CONTROL]")
@data_plane
@click.option("--virtqueue-size", type=int, default=128, show_default=True, help="in the QEMU options that are shown")
@click.option("--memory", type=int, default=1024, show_default=True, metavar="MIB", help="in the QEMU options")
@click.option("--json", "as_json", is_flag=True, help="say what is ready as one JSON object")
def command(**options: Any) -> None:
    """Serve logical units to QEMU (--socket-path) and to iSCSI initiators (--iscsi, --target), the same ones to both.

    Runs until SIGTERM or Ctrl-C; SIGHUP reads FILE anew: iSCSI, logical units and log settings change, the rest needs a
    restart. A LUN with a target number (--lun 0:0=URL) is one of the vhost-user port, a LUN alone (--lun 0=URL) one of
    the iSCSI target.

    A URL is a path, or names a store (memory:1G, overlay(...):disk.img, ...); see docs/stores.md.
    Options of a logical unit: block_size, uuid, readonly, wce, rotational, physical_block_size, strict, wsnz, cdb32,
    overwrite_rate, outstanding, queue_depth, command_timeout, retries, vendor, product, revision, serial, naa, eui64,
    mode_pages, vpd_pages.
    """
    run_daemon(options, lambda daemon, hints: _say_ready(daemon, hints, options["as_json"]))


def run_daemon(options: dict[str, Any], ready: Callable[[Service, list[str]], None] | None) -> None:
    """A daemon in the foreground, to its end. `ready` is told when it serves, with words for QEMU's command line."""
    from vhost_scsi.daemon import logs, loop, service, systemd

    listen_fds = systemd.take_listen_fds()
    config = configuration(options, activated=bool(listen_fds))
    logs.configure(config.log_level, config.log_format)
    service.prepare_process()
    hints = qemu_hints(config, options) if config.port and ready is not None else []

    async def run(watch: loop.StallWatch) -> None:
        daemon = service.Service(
            config,
            listen_fds=listen_fds,
            reload=(lambda text: configuration(options, activated=bool(listen_fds), text=text))
            if options["config_path"]
            else None,
            config_path=options["config_path"],
            watch=watch,
        )
        await daemon.run(lambda: ready(daemon, hints) if ready is not None else None)

    loop.run(run)


def configuration(options: dict[str, Any], *, activated: bool = False, text: str | None = None) -> DaemonConfig:
    """What the file and the command line say together; a single value on the command line wins. `text`: what the file
    would say."""
    from vhost_scsi.daemon import config_file, grammar
    from vhost_scsi.daemon.config import build

    path = options.get("config_path")
    if path is None:
        source = None
    else:
        source = config_file.ConfigText.read(path) if text is None else config_file.ConfigText(path, text)
    tables: dict[str, Any] = grammar.tables(**{key: options.get(key, ()) for key in GRAMMAR})
    port = {"socket": options.get("socket_path"), "fd": options.get("fd")}
    port = {key: value for key, value in port.items() if value is not None}
    if port or (activated and not tables["port"] and not (source and source.values.get("port"))):
        if DEFAULT_PORT in tables["port"]:
            raise ConfigError(f"port {DEFAULT_PORT} is given twice, by --port and by --socket-path or --fd")
        tables["port"] = {DEFAULT_PORT: port, **tables["port"]}
    for key, example in (("num_queues", "num_queues=N"), ("in_order", "in_order=on")):
        wanted = options.get(key)
        if wanted is None or wanted is False:
            continue
        if DEFAULT_PORT not in tables["port"]:
            name = key.replace("_", "-")
            raise ConfigError(f"--{name} is for the port of --socket-path; a port of its own takes {example}")
        tables["port"][DEFAULT_PORT][key] = wanted
    merged = grammar.merge(source.values if source else {}, {**given(options), **tables})
    return build(merged, config_file.locator(source))


def qemu_hints(config: DaemonConfig, options: dict[str, Any]) -> list[str]:
    """What to add to QEMU's command line, for the QEMU that is installed; or why there is nothing to say."""
    from vhost_scsi.qemu import QemuError, device_options, find_qemu, memory_options

    try:
        qemu = find_qemu()
    except QemuError as error:
        return [f"# {error}"]
    lines = [f"# QEMU {qemu.version_text} ({shlex.join(qemu.command)}): add this to its command line"]
    lines.append(shlex.join(memory_options(options["memory"])))
    places = config.places()
    for index, (name, port) in enumerate(config.port.items()):
        if port.socket is None:
            lines.append(f"# port {name}: its socket was made by somebody else")
            continue
        bootable = not index and any((place.port, place.target, place.lun) == (name, 0, 0) for place in places)
        words = device_options(
            os.path.abspath(port.socket),
            port.num_queues,
            options["virtqueue_size"],
            qemu=qemu,
            ident=f"scsi{index}",
            bootindex=0 if bootable else None,
        )
        lines.append(shlex.join(words))
    return lines


def _say_ready(daemon: Service, hints: list[str], as_json: bool) -> None:
    """The last line means that a front end may connect. Who starts us without a stdout does not wait for one."""
    if sys.stdout is None:
        return
    if as_json:
        ready = {
            "schema_version": 1,
            "ready": True,
            "name": daemon.config.name,
            "pid": os.getpid(),
            "control": str(daemon.control_path),
            "engine": daemon.core.engine_name,
            "ports": [{"name": port.name, "socket": port.where} for port in daemon.ports.values()],
            "portals": daemon.iscsi.portals if daemon.iscsi is not None else [],
            "iscsi_urls": daemon.iscsi.urls() if daemon.iscsi is not None else [],
            "qemu_options": [word for line in hints if not line.startswith("#") for word in shlex.split(line)],
        }
        say(json.dumps(ready))
        return
    for line in hints:
        say(line)
    for url in daemon.iscsi.urls() if daemon.iscsi is not None else []:
        say(url)
    for port in daemon.ports.values():
        say(f"READY {port.name} {port.where}")
    for portal in daemon.iscsi.portals if daemon.iscsi is not None else []:
        say(f"READY iscsi {portal}")
