# SPDX-License-Identifier: Apache-2.0
"""`vhost-scsi connection list|show|remove`: the iSCSI connections of a running daemon."""

from __future__ import annotations

from typing import Any

import click

from vhost_scsi.cli.daemon_options import connect, which_daemon
from vhost_scsi.cli.output import duration, print_json, print_table, say, size
from vhost_scsi.cli.session import age, print_keys
from vhost_scsi.errors import ConfigError


@click.group("connection")
def command() -> None:
    """The iSCSI connections of a running daemon."""


@command.command("list")
@which_daemon
def list_(name: str, control: str | None, as_json: bool) -> None:
    """List the connections of all sessions."""
    with connect(name, control) as daemon:
        answer = daemon.call("connection.list")
    if as_json:
        print_json(answer)
        return
    print_table(
        ["connection", "peer", "local", "digests", ">commands", ">active", ">received", ">sent", ">idle"],
        [
            (
                f"{row['session']}:{row['connection']}",
                row["peer"],
                row["local"],
                _digests(row["header_digest"], row["data_digest"]),
                row["commands"],
                row["active"],
                size(row["received_bytes"]),
                size(row["sent_bytes"]),
                duration(row["idle_us"]),
            )
            for row in answer["connections"]
        ],
    )


@command.command("show")
@click.argument("connection", metavar="SESSION:CONNECTION")
@which_daemon
def show(connection: str, name: str, control: str | None, as_json: bool) -> None:
    """Show one connection: what was negotiated, digests, the command window, counters, latency."""
    session, cid = _numbers(connection)
    with connect(name, control) as daemon:
        answer = daemon.call("connection.show", session=session, connection=cid)
    if as_json:
        print_json(answer)
        return
    row = answer["connection"]
    say(f"connection {session}:{cid}: {row['initiator']} at {row['target'] or 'discovery'}, for {age(row)}")
    say(f"addresses    from {row['peer']} to {row['local']}")
    say(f"digests      header {row['header_digest']}, data {row['data_digest']}, {row['digest_errors']} wrong")
    say(f"segments     we send up to {row['max_send_bytes']} bytes and take up to {row['max_recv_bytes']}")
    say(
        f"commands     {row['commands']}, {row['active']} active, {row['r2ts']} R2Ts, "
        f"{row['waiting_for_buffers']} waiting for buffers"
    )
    window = answer["window"]
    say(f"window       {window['commands']} commands, from {window['exp_cmd_sn']} to {window['max_cmd_sn']}")
    say(f"received     {size(row['received_bytes'])} in {row['received_pdus']} PDUs")
    say(f"sent         {size(row['sent_bytes'])} in {row['sent_pdus']} PDUs")
    say(f"silent for   {duration(row['idle_us'])}")
    for name, latency in zip(("reads", "writes", "others"), answer["latency"].values(), strict=True):
        say(f"{name:<12} {_latency(latency)}")
    print_keys(answer["keys"])


@command.command("remove")
@click.argument("connection", metavar="SESSION:CONNECTION")
@which_daemon
def remove(connection: str, name: str, control: str | None, as_json: bool) -> None:
    """End a connection at once; with the last one ends its session."""
    session, cid = _numbers(connection)
    with connect(name, control) as daemon:
        answer = daemon.call("connection.remove", session=session, connection=cid)
    if as_json:
        print_json(answer)


def _numbers(text: str) -> tuple[int, int]:
    words = text.split(":")
    if len(words) != 2 or not all(word.isascii() and word.isdigit() and len(word) <= 5 for word in words):
        raise ConfigError(f"{text!r} is not SESSION:CONNECTION, such as 1:0")
    return int(words[0]), int(words[1])


def _latency(row: dict[str, Any]) -> str:
    if not row["commands"]:
        return "none"
    average, least, most = (duration(round(row[key])) for key in ("average_us", "min_us", "max_us"))
    half, nearly_all = (_below(row[key]) for key in ("half_below_us", "99_percent_below_us"))
    return f"{row['commands']}, in {average} on average ({least} to {most}), half {half}, 99 % {nearly_all}"


def _below(limit: int | None) -> str:
    return "longer than 4 s" if limit is None else f"below {duration(limit)}"


def _digests(header: str, data: str) -> str:
    return "+".join(name for name, digest in (("header", header), ("data", data)) if digest != "None") or "none"
