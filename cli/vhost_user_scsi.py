# SPDX-License-Identifier: Apache-2.0
"""The program `vhost-user-scsi`: one device for a management layer that starts back ends by QEMU's conventions
(docs/interop/vhost-user.rst, "Backend program conventions"): --socket-path, --fd and --print-capabilities, and no more.

What it serves therefore stands in a configuration file; everything else is `vhost-scsi serve`.
"""

from __future__ import annotations

import json
import os
import socket
import zlib
from typing import Final

import click

from vhost_scsi.cli import OneLine
from vhost_scsi.cli.output import say
from vhost_scsi.errors import ConfigError

CAPABILITIES: Final = {"type": "scsi"}
VARIABLE: Final = "VHOST_USER_SCSI_CONFIG"
FILE: Final = "vhost-scsi/vhost-user-scsi.toml"
"""below $XDG_CONFIG_HOME, then below /etc"""


def config_path() -> str:
    """The file that says what is served. Raises ConfigError where there is none."""
    if named := os.environ.get(VARIABLE):
        return named
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    places = [os.path.join(home, FILE), os.path.join("/etc", FILE)]
    for path in places:
        if os.path.exists(path):
            return path
    raise ConfigError(
        f"nothing says what to serve: ${VARIABLE} names no file, and there is no {' and no '.join(places)}"
    )


class _Program(OneLine):
    program = "vhost-user-scsi"


def _daemon_name(socket_path: str | None, fd: int | None) -> str:
    """Several of them may run side by side, each for a machine of its own; one that is started anew for the same socket
    keeps what its machine was promised."""
    where = os.path.abspath(socket_path) if socket_path is not None else ""
    if fd is not None:
        try:
            with socket.socket(fileno=os.dup(fd)) as inherited:
                name = inherited.getsockname()
        except OSError as error:
            raise ConfigError(f"--fd {fd}: {error.strerror}") from None
        where = name if isinstance(name, str) else ""
    return f"vhost-user-scsi-{zlib.crc32(os.fsencode(where)):08x}" if where else f"vhost-user-scsi-{os.getpid()}"


@click.command("vhost-user-scsi", cls=_Program)
@click.option("--socket-path", metavar="PATH", help="the vhost-user socket to listen on")
@click.option("--fd", type=int, metavar="FDNUM", help="instead of a path: a socket that is inherited")
@click.option("--print-capabilities", is_flag=True, help="say what this back end is, as JSON, and end")
def main(socket_path: str | None, fd: int | None, print_capabilities: bool) -> None:
    """A vhost-user-scsi back end, started as QEMU's back-end conventions say.

    What it serves stands in the file that $VHOST_USER_SCSI_CONFIG names, else in vhost-scsi/vhost-user-scsi.toml below
    $XDG_CONFIG_HOME or /etc: logical units and their places, as `vhost-scsi serve --config` has them. Ends on SIGTERM.
    """
    if print_capabilities:
        say(json.dumps(CAPABILITIES))
        return
    if (socket_path is None) == (fd is None):
        raise ConfigError("exactly one of --socket-path and --fd says where QEMU is")
    from vhost_scsi.cli.serve import run_daemon

    name = _daemon_name(socket_path, fd)
    run_daemon({"socket_path": socket_path, "fd": fd, "config_path": config_path(), "name": name}, None)
