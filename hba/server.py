# SPDX-License-Identifier: Apache-2.0
"""Clients of one PCI function, one after the other, from a socket that listens. A second client waits in the backlog
until the first has gone. Where the socket comes from is the caller's business.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket

from vhost_scsi.hba.function import Function
from vhost_scsi.hba.session import LOG, Session
from vhost_scsi.log_limit import LimitedLog

_ACCEPT_PAUSE = 0.5  # seconds to wait when there is no descriptor left for a new connection
_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED)


class Server:
    """`start`, then `close`."""

    def __init__(self, function: Function, listener: socket.socket) -> None:
        """`listener` is closed by `close`."""
        self._function = function
        self._listener = listener
        self._log = LimitedLog(LOG)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._listener.setblocking(False)
        self._task = asyncio.get_running_loop().create_task(self._accept_all())

    async def close(self) -> None:
        """Ends the client; nothing of it is in use any more when this returns."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self._listener.close()

    async def _accept_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno not in _SHORT_OF:
                    raise
                self._log.say(logging.ERROR, "accept", f"cannot accept a connection: {error.strerror}")
                await asyncio.sleep(_ACCEPT_PAUSE)
                continue
            self._log.say(logging.INFO, "connected", "vfio-user: client connected")
            try:
                await Session(self._function, self._log).run(connection)
            except Exception:
                # A bug of ours: it must not take the next client with it.
                self._log.say(logging.ERROR, "session failed", "vfio-user: client ended by an error", trace=True)
            self._log.say(logging.INFO, "disconnected", "vfio-user: client disconnected")
