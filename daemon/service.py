# SPDX-License-Identifier: Apache-2.0
"""The life of a daemon: build everything from a configuration, run, and drain.

The order of building is the reverse of the order of going: a ring is served last and stopped first, and a store is
flushed and closed when nothing can reach it any more. It does not read command lines; it is given a configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from vhost_scsi import __version__
from vhost_scsi.daemon import control, logs, methods, state, systemd, units
from vhost_scsi.daemon.client import socket_path
from vhost_scsi.daemon.config import DaemonConfig, store_spec
from vhost_scsi.daemon.errors import DrainTimeout
from vhost_scsi.daemon.iscsi_config import IscsiConfig
from vhost_scsi.daemon.iscsi_node import IscsiNode
from vhost_scsi.daemon.loop import StallWatch
from vhost_scsi.daemon.state_dir import StateDirectory
from vhost_scsi.dataplane import Core, CoreOptions
from vhost_scsi.errors import ConfigError, VhostScsiError
from vhost_scsi.target import LuSpec, Port, Target
from vhost_scsi.vhost_user.device import VirtioScsiDevice
from vhost_scsi.vhost_user.server import Server

DRAIN_TIMEOUT: Final = 10.0  # seconds
FINISH_POLL: Final = 0.005  # seconds between looks at what is still in flight; only while draining
NO_REQUEST_QUEUES: Final = 2  # the control and the event queue, which a device counts too
_LOG: Final = logging.getLogger("vhost_scsi.control")
# What a reload can change; everything else is named when it differs.
RELOADABLE: Final = ("log_level", "log_format")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """A port with what serves it. `where` is its socket in words."""

    name: str
    where: str
    num_queues: int
    port: Port
    device: VirtioScsiDevice
    server: Server


class Service:
    """One daemon. `run` does everything; `start` and `close` are its halves for a process that does more."""

    def __init__(
        self,
        config: DaemonConfig,
        *,
        listen_fds: Sequence[tuple[str, int]] = (),
        reload: Callable[[], DaemonConfig] | None = None,
        watch: StallWatch | None = None,
        manage: bool = True,
    ) -> None:
        self.config = config
        self.watch = watch
        self.started_at = time.time()
        self.ports: dict[str, Serving] = {}
        self.iscsi: IscsiNode | None = None
        self._listen_fds = list(listen_fds)
        self._reload = reload
        self._manage = manage
        self._stop = asyncio.Event()
        self._exits = contextlib.AsyncExitStack()
        self._watchers: list[asyncio.Task[None]] = []
        self.core: Core
        self.target: Target
        self.control_path: Path | None = None
        self._control: control.ControlServer | None = None

    # ---- building and going ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Builds everything; on an error what was built is gone again. Rings are served when this returns."""
        try:
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise

    async def _start(self) -> None:
        config = self.config
        if not config.port and config.iscsi is None:
            raise ConfigError("there is no port: give --socket-path, --fd, --port, --iscsi or a [port] table")
        # First of all the name, so that a second daemon does not touch the images of the first.
        if self._manage:
            self._claim_control()
        options = CoreOptions(
            workers=config.workers,
            engine=config.engine,
            poll=config.poll,
            spin_us=config.spin_us,
            io_threads=config.io_threads,
        )
        self.core = Core(options)
        await self.core.start()
        self._exits.push_async_callback(self.core.close)
        kept = state.State(self._state_directory())
        blobs = StateDirectory(kept.directory)
        self._exits.push_async_callback(blobs.close)
        self.target = Target(self.core, kept)
        self._exits.push_async_callback(self.target.close)
        await self._add_units(kept, blobs)
        await self._add_ports()
        for serving in self.ports.values():
            await serving.server.start()
            self._watchers.append(asyncio.create_task(self._watch_port(serving)))
        if config.iscsi is not None:
            await self._start_iscsi(config.iscsi)
        if self._control is not None:
            await self._control.serve()
        if self.watch is not None:
            self.watch.on = True
        _LOG.info(
            "vhost-scsi %s, pid %d: %d logical units, %d ports, %d iSCSI targets, %d workers, engine %s%s",
            *(__version__, os.getpid(), len(config.lu), len(config.port)),
            *(len(config.iscsi.target) if config.iscsi is not None else 0, config.workers, self.core.engine_name),
            f" ({self.core.engine_why_not})" if config.engine == "auto" and self.core.engine_why_not else "",
        )

    async def _start_iscsi(self, config: IscsiConfig) -> None:
        node = IscsiNode(self.core, self.target, self.config, config)
        self._exits.push_async_callback(node.close)
        await node.start()
        self.iscsi = node

    def _claim_control(self) -> None:
        self.control_path = socket_path(self.config.name, self.config.control)
        server = control.ControlServer(self.control_path, methods.table(self), self.hello)
        server.claim()
        self._exits.push_async_callback(server.close)
        self._control = server

    def _state_directory(self) -> Path:
        if self.config.state_dir:
            return Path(self.config.state_dir)
        return state.default_directory(self.config.name)

    async def _add_units(self, kept: state.State, blobs: StateDirectory) -> None:
        units.check_shared(self.config.lu)
        for name, lu in self.config.lu.items():
            store = await units.open_unit_store(self.core, name, lu)
            try:
                spec = LuSpec(
                    name=name,
                    uuid=lu.uuid or kept.uuid_of(name, units.identity(store_spec(lu))),
                    block_size=lu.block_size,
                    write_cache=lu.wce,
                    read_only=lu.readonly,
                    rotational=lu.rotational,
                    physical_block_size=lu.physical_block_size,
                )
                await self.target.add_lu(spec, store, await blobs.unit(spec.uuid))
            except BaseException:
                store.close()
                raise

    async def _add_ports(self) -> None:
        places = self.config.places()
        # At once, so that it is one write.
        self.target.port_ids.ids_of(f"{place.port}:{place.target}" for place in places)
        for name, wanted in self.config.port.items():
            port = self.target.add_port(name)
            workers = tuple(wanted.workers) if wanted.workers else tuple(range(self.config.workers))
            queues = NO_REQUEST_QUEUES + wanted.num_queues
            device = VirtioScsiDevice(self.core, port, num_queues=queues, workers=workers)
            for place in places:
                if place.port == name:
                    await port.map(place.target, place.lun, self.target.units[place.lu])
            server, where = self._server(name, device)
            self._exits.push_async_callback(device.close)
            self._exits.push_async_callback(server.close)
            self.ports[name] = Serving(name, where, wanted.num_queues, port, device, server)

    def _server(self, name: str, device: VirtioScsiDevice) -> tuple[Server, str]:
        wanted = self.config.port[name]
        if wanted.socket is not None:
            return Server.at_path(device, wanted.socket), wanted.socket
        if wanted.fd is not None:
            return Server.from_fd(device, wanted.fd), f"descriptor {wanted.fd}"
        fd = self._activated(name)
        return Server.from_fd(device, fd), f"socket activation (descriptor {fd})"

    def _activated(self, name: str) -> int:
        """The descriptor that the service manager made for this port: the one of its name, else the only one left."""
        for index, (given, fd) in enumerate(self._listen_fds):
            if given == name or len(self._listen_fds) == 1:
                del self._listen_fds[index]
                return fd
        raise ConfigError(f"port {name} has no socket, no fd, and none was handed over by socket activation")

    async def _watch_port(self, serving: Serving) -> None:
        await serving.server.wait_closed()
        if self.iscsi is None and all(other.done() for other in self._watchers if other is not asyncio.current_task()):
            self.stop("nothing is left to serve")

    async def close(self) -> None:
        """Stops rings, ends requests, flushes and closes stores, removes the sockets."""
        if self._control is not None:
            # Nobody may ask about what is being taken down.
            await self._control.hang_up()
        # Side by side: initiators need not wait for guests.
        await asyncio.gather(self._finish_requests(), *([self.iscsi.drain()] if self.iscsi is not None else []))
        for watcher in self._watchers:
            watcher.cancel()
        if self._watchers:
            await asyncio.wait(self._watchers)
        await self._exits.aclose()

    async def _finish_requests(self) -> None:
        """Takes no more requests, and lets those that were taken end: their guests are there and wait for them."""
        devices = [serving.device for serving in self.ports.values()]
        for device in devices:
            for status in device.queue_status():
                if status.started and status.enabled:
                    await device.set_vring_enable(status.index, False)
        while any(status.in_flight for device in devices for status in device.queue_status() if status.started):
            await asyncio.sleep(FINISH_POLL)

    # ---- running ---------------------------------------------------------------------------------------------------

    def stop(self, why: str) -> None:
        """Ends `wait`."""
        if not self._stop.is_set():
            _LOG.info("stopping: %s", why)
            self._stop.set()

    async def wait(self) -> None:
        """Returns when the daemon shall end."""
        await self._stop.wait()

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Everything, until a signal, a request or the end of the last connected descriptor."""
        await self.start()
        with self._signals():
            try:
                ready()
                systemd.notify("READY=1", f"MAINPID={os.getpid()}")
                await self.wait()
            finally:
                # Whatever ended it: what was started is taken down, its sockets too.
                systemd.notify("STOPPING=1")
                with drain_limit(DRAIN_TIMEOUT):
                    await self.close()
        _LOG.info("stopped")

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        ends = (signal.SIGTERM, signal.SIGINT)

        def end(number: signal.Signals) -> None:
            self.stop(f"{number.name}; once more ends at once")
            for each in ends:
                loop.remove_signal_handler(each)
                # The kernel's own action: nothing of ours can be in its way.
                signal.signal(each, signal.SIG_DFL)

        for each in ends:
            loop.add_signal_handler(each, end, each)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        try:
            yield
        finally:
            for each in (*ends, signal.SIGHUP):
                loop.remove_signal_handler(each)

    def reload(self) -> None:
        """Reads the configuration anew, takes over what can be changed at run time, and names what cannot."""
        if self._reload is None:
            _LOG.info("reload: there is no configuration file")
            return
        systemd.notify_reloading()
        try:
            fresh = self._reload()
        except VhostScsiError as error:
            _LOG.error("reload: nothing changed: %s", error)
        else:
            self._take_over(fresh)
        systemd.notify("READY=1")

    def _take_over(self, fresh: DaemonConfig) -> None:
        changed = [name for name in DaemonConfig.model_fields if getattr(fresh, name) != getattr(self.config, name)]
        logs.configure(fresh.log_level, fresh.log_format)
        self.config = self.config.model_copy(update={name: getattr(fresh, name) for name in RELOADABLE})
        fixed = [name for name in changed if name not in RELOADABLE]
        if fixed:
            _LOG.warning("reload: needs a restart, so not changed: %s", ", ".join(fixed))
        _LOG.info("reload: log level %s, log format %s", fresh.log_level, fresh.log_format)

    def hello(self) -> dict[str, object]:
        return {"name": self.config.name, "pid": os.getpid(), "version": __version__}


@contextlib.contextmanager
def drain_limit(seconds: float) -> Iterator[None]:
    """Ends the process when the body takes longer: in a thread, because the loop itself may be what hangs."""

    def give_up() -> None:
        _LOG.error("still not drained after %g s; ending without", seconds)
        logging.shutdown()
        os._exit(DrainTimeout.exit_code)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def prepare_process() -> None:
    """What a daemon wants of its process: many descriptors, and files that are nobody else's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o077)
