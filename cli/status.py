# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi status`: what a running daemon does, and how."""

from __future__ import annotations

import click

from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import print_json, print_table, say, size, uptime


@click.command("status")
@which_daemon
def command(name: str, control: str | None, as_json: bool) -> None:
    """Show what a running daemon does, and how."""
    with connect(name, control) as daemon:
        status = daemon.call("status")
    if as_json:
        print_json(status)
        return
    why = f" ({status['engine_why_not']})" if status["engine_why_not"] else ""
    say(f"{status['name']}: vhost-scsi {status['version']}, pid {status['pid']}, up {uptime(status['uptime_s'])}")
    say(f"engine {status['engine']}{why}, polling {status['poll']}, log level {status['log_level']}")
    say(
        f"{size(status['rss_bytes'])} resident, {status['descriptors']} descriptors, "
        f"{status['logical_units']} logical units, {status['loop_stalls']} stalls of the control loop"
    )
    if status["iscsi"] is not None:
        iscsi = status["iscsi"]
        say(
            f"iSCSI at {' '.join(iscsi['portals'])}: {iscsi['targets']} targets, {iscsi['sessions']} sessions, "
            f"{iscsi['connections']} connections, {iscsi['logins_in_progress']} logins in progress"
        )
    for line in status["drift"]:
        say(f"not saved: {line}")
    if status["ports"]:
        say()
        print_table(
            ["port", "socket", "state", ">luns", ">queues", ">requests", ">in flight"],
            [
                (
                    port["name"],
                    port["socket"],
                    "connected" if port["connected"] else "waiting",
                    port["luns"],
                    f"{port['queues_started']} of {port['num_queues'] + 2}",
                    port["requests"],
                    port["in_flight"],
                )
                for port in status["ports"]
            ],
        )
    say()
    print_table(
        [">worker", ">thread", ">requests", ">batches", ">kicks", ">interrupts", ">suppressed", ">sleeps"],
        [
            (
                worker["index"],
                worker["thread_id"],
                worker["requests"],
                worker["batches"],
                worker["kicks"],
                worker["interrupts"],
                worker["interrupts_suppressed"],
                worker["sleeps"],
            )
            for worker in status["workers"]
        ],
    )
