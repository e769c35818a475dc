# SPDX-License-Identifier: Apache-2.0
"""The `vhost-scsi` command. Each subcommand is a file of its own and is loaded only when it is used.

Errors are one line on stderr, `vhost-scsi: ...`, and an exit code that the exception's class knows
(docs/exit-codes.md); a traceback only with --debug. It is installed as `vhost_scsi.cli`; the folder's short name is not
an import name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

import click

from vhost_scsi import __version__
from vhost_scsi.cli.printable import printable
from vhost_scsi.errors import VhostScsiError

if not __name__.startswith("vhost_scsi."):
    raise ImportError("this folder is vhost_scsi.cli; it has no other import name")

# Name, module, what `--help` says without loading it.
COMMANDS: Final = {
    "boot": ("boot", "boot an image in QEMU from our own back end"),
    "config": ("config", "the configuration of a running daemon: show, save, reload"),
    "connection": ("connection", "the iSCSI connections of a running daemon"),
    "lun": ("lun", "the logical units of a running daemon"),
    "opcodes": ("opcodes", "the SCSI commands that are served"),
    "pages": ("pages", "the SCSI pages that are served: VPD, mode and log"),
    "portal": ("portal", "the iSCSI portals of a running daemon"),
    "queue": ("queue", "look into the virtqueues of a running daemon"),
    "request": ("request", "every request of a running daemon, and who holds it"),
    "sense": ("sense", "the sense codes that are told"),
    "serve": ("serve", "serve logical units to QEMU over vhost-user, and to anybody over iSCSI"),
    "session": ("session", "the iSCSI sessions of a running daemon"),
    "status": ("status", "what a running daemon does, and how"),
    "target": ("target", "the iSCSI targets of a running daemon"),
    "version": ("version", "versions of everything that takes part"),
}
INTERNAL_ERROR: Final = 70
INTERRUPTED: Final = 130


class OneLine(click.Command):
    """A program of ours: every error is one line, and has its exit code."""

    program = "vhost-scsi"

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **extra)
        try:
            # Without standalone mode click returns the code of ctx.exit instead of ending the process with it.
            code = run(*args, standalone_mode=False, **extra)
        except click.Abort:
            self._say("interrupted")
            code = INTERRUPTED
        except click.ClickException as error:
            self._say(_usage_line(error, self.program))
            code = error.exit_code
        raise SystemExit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except VhostScsiError as error:
            if ctx.params.get("debug"):
                raise
            self._say(str(error))
            ctx.exit(error.exit_code)
        except (click.ClickException, click.Abort, click.exceptions.Exit, KeyboardInterrupt, BrokenPipeError):
            raise
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            self._say(f"internal error, please report it: {type(error).__name__}: {error} (--debug shows where)")
            ctx.exit(INTERNAL_ERROR)

    def _say(self, message: str) -> None:
        click.echo(f"{self.program}: {printable(message)}", err=True)


class RootGroup(OneLine, click.Group):
    """Loads subcommands late."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"vhost_scsi.cli.{COMMANDS[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(COMMANDS.items())])


def _usage_line(error: click.ClickException, program: str) -> str:
    """A mistake on the command line, as one line that says where help is."""
    message = " ".join(error.format_message().split())
    if not isinstance(error, click.UsageError):
        return message
    # The program's name may be a path (python -m); the words after it are the subcommand.
    words = " ".join(error.ctx.command_path.split()[1:]) if error.ctx is not None else ""
    where = f"{words}: " if words else ""
    return f"{where}{message.rstrip('.')} (see {' '.join([program, *words.split()])} --help)"


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="vhost-scsi", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="show tracebacks")
def main(debug: bool) -> None:
    """A SCSI target in one unprivileged process, for QEMU's vhost-user-scsi-pci and for iSCSI initiators."""


__all__ = ["main"]
