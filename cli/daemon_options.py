# SPDX-License-Identifier: Apache-2.0
"""Options that several subcommands share: which daemon is meant, and how a back end is set up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from vhost_scsi.daemon.client import ControlClient

F = TypeVar("F", bound=Callable[..., Any])


def _apply(function: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def which_daemon(function: F) -> F:
    """--name, --control, --json: for commands that ask a running daemon."""
    return _apply(
        function,
        click.option("--name", default="default", show_default=True, metavar="NAME", help="the daemon's name"),
        click.option(
            "--control",
            metavar="PATH",
            help="its management socket [env VHOST_SCSI_CONTROL; default $XDG_RUNTIME_DIR/vhost-scsi/NAME.sock]",
        ),
        click.option("--json", "as_json", is_flag=True, help="answer as JSON, with a schema_version"),
    )


def connect(name: str, control: str | None) -> ControlClient:
    """A greeted connection to the daemon that is meant."""
    from vhost_scsi.daemon.client import ControlClient, socket_path

    return ControlClient(socket_path(name, control))


def data_plane(function: F) -> F:
    """--engine, --workers, --poll ...: the data plane's settings; None means: as the file says, or the default."""
    return _apply(
        function,
        click.option("--engine", type=click.Choice(["auto", "io_uring", "epoll"]), help="I/O engine [default: auto]"),
        click.option("--workers", type=int, metavar="N", help="worker threads [default: 1]"),
        click.option(
            "--poll",
            type=click.Choice(["adaptive", "always", "never"]),
            help="whether workers look for work before they sleep [default: adaptive]",
        ),
        click.option("--spin-us", type=int, metavar="US", help="how long an adaptive worker looks [default: 50]"),
        click.option("--io-threads", type=int, metavar="N", help="epoll engine: I/O threads a worker [default: 4]"),
        click.option("--num-queues", type=int, metavar="N", help="request queues [default: 1]"),
        click.option("--in-order", is_flag=True, help="offer IN_ORDER: a slow logical unit holds up all others"),
        click.option(
            "--state-dir", metavar="DIR", help="keeps reservations and the identities of logical units and ports"
        ),
        click.option(
            "--stall-after",
            type=float,
            metavar="S",
            help="a request that is older has a dump written; 0: none [default: 20]",
        ),
        click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"])),
        click.option("--log-format", type=click.Choice(["text", "json"])),
    )


# Options whose names are those of DaemonConfig's fields.
SINGLE = (
    *("name", "control", "engine", "workers", "poll", "spin_us", "io_threads"),
    *("state_dir", "stall_after", "log_level", "log_format"),
)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The single values that were given, as top-level keys of the configuration."""
    return {key: options[key] for key in SINGLE if options.get(key) is not None}
