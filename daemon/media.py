# SPDX-License-Identifier: Apache-2.0
"""The person at the drive: `lun.eject` and `lun.insert`, for units whose medium can be taken out, and what `lun.list`
says of it. What initiators are told is `scsi.removable`'s affair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vhost_scsi.daemon import grammar, units
from vhost_scsi.daemon.rpc import REFUSED, Method, Param, RpcError
from vhost_scsi.target import Unit

if TYPE_CHECKING:
    from vhost_scsi.daemon.config import LuConfig
    from vhost_scsi.daemon.service import Service

_LU = Param("lu", "string", "name of the logical unit", required=True)


def rows(service: Service) -> tuple[Method, ...]:
    calls = _Calls(service)
    return (
        Method("lun.eject", "opens a drive and takes the medium out", calls.eject, (
            _LU,
            Param("force", "boolean", "even while an initiator prevents it"),
        )),
        Method("lun.insert", "puts a medium into a drive and closes it", calls.insert, (
            _LU,
            Param("url", "string", "the store; nothing: what lies in the open drive"),
        )),
    )  # fmt: skip


def state(unit: Unit) -> dict[str, Any] | None:
    """Of a removable unit: whether a medium is there, the drive open and locked."""
    drive = unit.drive
    if drive is None:
        return None
    return {"present": drive.present, "filled": drive.filled, "open": drive.open, "locked": drive.locked}


class _Calls:
    def __init__(self, service: Service) -> None:
        self._service = service

    def _find(self, name: str) -> tuple[Unit, LuConfig]:
        unit, lu = self._service.target.units.get(name), self._service.config.lu.get(name)
        if unit is None or lu is None:
            raise RpcError(REFUSED, f"there is no logical unit {name[:200]!r}")
        if not lu.has_drive:
            raise RpcError(REFUSED, f"logical unit {name} is not removable")
        return unit, lu

    async def eject(self, lu: str, force: bool = False) -> dict[str, Any]:
        _, table = self._find(lu)

        async def out(unit: Unit) -> bool:
            return await unit.eject(force=force)

        bare = table.model_copy(update={"url": None, "store": None})
        there = await self._service.change_medium(lu, bare, out)
        return {"name": lu, "taken_out": there}

    async def insert(self, lu: str, url: str | None = None) -> dict[str, Any]:
        unit, table = self._find(lu)
        if url is None:
            await self._service.change_medium(lu, table, Unit.load)
        else:
            text = grammar.logical_unit("insert", url)
            if set(text) != {"url"}:
                raise RpcError(REFUSED, "insert: options of the unit are its own, and stay as they are")
            full = table.model_copy(update={"url": text["url"], "store": None})

            async def put_in(unit: Unit) -> None:
                store = await units.open_unit_store(self._service.core, lu, full)
                try:
                    await unit.insert(store)
                except BaseException:
                    store.close()
                    raise

            await self._service.change_medium(lu, full, put_in)
        return {"name": lu, "medium": state(unit), "size_bytes": unit.num_blocks * unit.block_size}
