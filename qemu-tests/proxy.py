# SPDX-License-Identifier: Apache-2.0
"""A network that can be cut: a TCP proxy on loopback which forwards to one port, or lets nothing through.

A cut is silent, as a cable that is pulled out: what either side sends is lost, and so is that it closes a connection;
new ones are accepted and get no answer. Those that lived through a cut are reset when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

CHUNK = 1 << 16


class Proxy:
    """`port` is where it listens, `to_port` where it leads; it runs on a thread of its own until it is closed."""

    def __init__(self, to_port: int) -> None:
        self.port = 0
        self.lost = 0  # bytes
        self._to_port = to_port
        self._cut = False
        self._open: set[asyncio.StreamWriter] = set()
        self._spoilt: set[asyncio.StreamWriter] = set()
        self._mended = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Nothing passes any more."""
        self._call(self._set(cut=True))

    def mend(self) -> None:
        """New connections pass; those of before are reset."""
        self._call(self._set(cut=False))

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _set(self, *, cut: bool) -> None:
        self._cut = cut
        if cut:
            self._mended.clear()
            self._spoilt |= self._open
        else:
            self._mended.set()
            self._reset(self._spoilt)

    async def _end(self) -> None:
        self._server.close()
        self._reset(self._open)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _reset(self, writers: set[asyncio.StreamWriter]) -> None:
        for writer in list(writers):
            writer.transport.abort()
        writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        if self._cut:
            self._spoilt.add(writer)
        try:
            with contextlib.suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
                self._open.add(far_writer)
                if self._cut:
                    self._spoilt.add(far_writer)
                try:
                    await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
                finally:
                    self._forget(far_writer)
        finally:
            self._forget(writer)

    def _forget(self, writer: asyncio.StreamWriter) -> None:
        self._open.discard(writer)
        self._spoilt.discard(writer)
        writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Ends with an OSError, and so ends the other direction: nobody here ever speaks on half a connection."""
        try:
            while data := await reader.read(CHUNK):
                if writer in self._spoilt:
                    self.lost += len(data)
                    continue
                writer.write(data)
                await writer.drain()
        finally:
            if writer in self._spoilt:
                await self._mended.wait()
        raise ConnectionResetError
