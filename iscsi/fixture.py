# SPDX-License-Identifier: Apache-2.0
"""An iSCSI target inside the calling process, for other people's test suites: everything that serves it lives on a
thread of its own and is gone when the `with` block ends.

It is the real target, not a fake, on loopback and a port that was free. It needs no root and keeps no state.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar
from uuid import uuid4

from vhost_scsi.dataplane import Core, CoreOptions
from vhost_scsi.errors import ConfigError
from vhost_scsi.iscsi.auth import NO_AUTHENTICATION, AuthPolicy, ChapUser
from vhost_scsi.iscsi.chap import Algorithm
from vhost_scsi.iscsi.data_plane import DataPlane
from vhost_scsi.iscsi.node import Node
from vhost_scsi.iscsi.portals import Portal, bracketed
from vhost_scsi.iscsi.secret import Secret
from vhost_scsi.iscsi.server import IscsiServer
from vhost_scsi.iscsi.targets import IscsiTarget
from vhost_scsi.stores import PythonStore, StoreSpec, open_store
from vhost_scsi.target import LuSpec
from vhost_scsi.target import Target as ScsiTarget

T = TypeVar("T")
StoreSource = str | PythonStore | StoreSpec
NAME: Final = "iqn.2026-11.invalid.vhost-scsi:fixture"
PATIENCE: Final = 60.0  # seconds, for beginning and for ending


class Target:
    """A target while the `with` block runs.

    `stores` is the URL of a store (`memory:64M`, a path, ...; docs/stores.md), a PythonStore, or a mapping from LUN to
    such. `chap` is the name and the secret that initiators must prove; the test tools
    know MD5 only, so that is allowed here. `portals` is how many there are, for multipath. Errors are ConfigError.
    """

    def __init__(
        self,
        stores: StoreSource | Mapping[int, StoreSource] = "memory:64M",
        *,
        name: str = NAME,
        block_size: int = 512,
        physical_block_size: int | None = None,
        read_only: bool = False,
        wsnz: bool = True,
        overwrite_rate: int = 0,
        removable: bool = False,
        strict: bool = True,
        host: str = "127.0.0.1",
        portals: int = 1,
        chap: tuple[str, str] | None = None,
        workers: int = 1,
        engine: Literal["auto", "io_uring", "epoll"] = "auto",
    ) -> None:
        self.name: Final = name
        self._stores = dict(stores) if isinstance(stores, Mapping) else {0: stores}
        self._block_size = block_size
        self._physical_block_size = physical_block_size
        self._read_only = read_only
        self._wsnz = wsnz
        self._overwrite_rate = overwrite_rate
        self._removable = removable
        self._strict = strict
        self._wanted = [Portal(host, 0) for _ in range(portals)]
        self._chap = chap
        self._options = CoreOptions(workers=workers, engine=engine)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._core: Core | None = None
        self._scsi: ScsiTarget | None = None
        self._server: IscsiServer | None = None
        self._node = Node()

    # ---- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Initiators may log in when it returns. What was begun is ended if it raises."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="iscsi-target", daemon=True)
        self._thread.start()
        try:
            self._call(self._start())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends sessions, closes the stores. Nothing of it is left; a second time it does nothing."""
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._close(), loop).result(PATIENCE)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(PATIENCE)
            loop.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        """As `with`, without holding up the caller's loop; the target has a loop of its own all the same."""
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not to be left half way: what runs belongs to nobody then.
        await asyncio.shield(asyncio.to_thread(self.close))

    async def _start(self) -> None:
        self._core = Core(self._options)
        await self._core.start()
        self._scsi = ScsiTarget(self._core)
        for lun, source in self._stores.items():
            await self._add(self._core, self._scsi, lun, source)
        luns = {lun: f"lun-{lun}" for lun in self._stores}
        self._node.add_target(IscsiTarget(self.name, luns=luns, auth=self._policy()))
        plane = DataPlane(self._core, self._scsi, tuple(range(self._options.workers)))
        self._server = IscsiServer(self._node, plane, plane, self._wanted)
        await self._server.start()

    async def _add(self, core: Core, scsi: ScsiTarget, lun: int, source: StoreSource) -> None:
        store = open_store(source, core)
        try:
            spec = LuSpec(
                f"lun-{lun}",
                uuid4(),
                block_size=self._block_size,
                read_only=self._read_only,
                wsnz=self._wsnz,
                overwrite_rate=self._overwrite_rate,
                physical_block_size=self._physical_block_size,
                removable=self._removable,
                strict=self._strict,
            )
            await scsi.add_lu(spec, store)
        except BaseException:
            store.close()
            raise

    def _policy(self) -> AuthPolicy:
        if self._chap is None:
            return NO_AUTHENTICATION
        name, secret = self._chap
        return AuthPolicy((ChapUser(name, Secret(secret.encode(), "the fixture")),), algorithms=tuple(Algorithm))

    async def _close(self) -> None:
        if self._server is not None:
            await self._server.close()
        if self._scsi is not None:
            await self._scsi.close()
        if self._core is not None:
            await self._core.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise ConfigError("this target does not run")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def _run(self, function: Callable[[], T]) -> T:
        async def calls() -> T:
            return function()

        return self._call(calls())

    # ---- for the test ----------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each portal."""
        return self._run(lambda: [(portal.host, portal.port) for portal in self._node.portals])

    @property
    def url(self) -> str:
        """LUN 0 (the lowest, if there is no 0) at the first portal, as libiscsi and QEMU write it."""
        return self.url_of(min(self._stores))

    def url_of(self, lun: int, portal: int = 0) -> str:
        host, port = self.addresses[portal]
        user = "" if self._chap is None else f"{self._chap[0]}%{self._chap[1]}@"
        return f"iscsi://{user}{bracketed(host)}:{port}/{self.name}/{lun}"

    @property
    def sessions(self) -> int:
        """How many initiators are logged in."""
        return self._run(lambda: len(self._node.sessions))

    def refused(self) -> list[str]:
        """What initiators asked for and did not get, a line each."""
        return self._run(lambda: [str(refusal) for refusal in self._node.refused.all()])

    def drop_sessions(self) -> None:
        """Ends every session without a word, as a network that fails; initiators may come back."""
        server = self._server
        if server is not None:
            self._call(server.keeper.end_all())
