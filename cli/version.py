# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi version`: our version, and those of what we run on and with."""

from __future__ import annotations

import platform
import shlex
from typing import Any

import click

from vhost_scsi import __version__
from vhost_scsi.cli.output import print_json, say


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="answer as JSON, with a schema_version")
def command(as_json: bool) -> None:
    """Show versions: ours, Python's, the kernel's and QEMU's."""
    versions = _versions()
    if as_json:
        print_json(versions)
        return
    say(f"vhost-scsi {versions['version']}")
    say(f"Python {versions['python']}")
    say(f"Linux {versions['kernel']}")
    qemu = versions["qemu"]
    say(f"QEMU {qemu['version']} ({qemu['command']})" if qemu["version"] else f"no QEMU: {qemu['why_not']}")


def _versions() -> dict[str, Any]:
    from vhost_scsi.qemu import QemuError, find_qemu

    try:
        found = find_qemu()
        qemu = {"version": found.version_text, "command": shlex.join(found.command), "why_not": None}
    except QemuError as error:
        qemu = {"version": None, "command": None, "why_not": str(error)}
    return {
        "schema_version": 1,
        "version": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "qemu": qemu,
    }
