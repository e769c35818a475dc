# SPDX-License-Identifier: Apache-2.0
"""The life of a daemon: build everything from a configuration, run, and drain.

The order of building is the reverse of the order of going: a ring is served last and stopped first, and a store is
flushed and closed when nothing can reach it any more. It does not read command lines; it is given a configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import resource
import signal
import threading
import time
import tomllib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar
from uuid import UUID

from vhost_scsi import __version__
from vhost_scsi.daemon import config_save, control, kept_media, methods, state, systemd, units
from vhost_scsi.daemon.client import socket_path
from vhost_scsi.daemon.config import DaemonConfig, LuConfig, build
from vhost_scsi.daemon.errors import DrainTimeout
from vhost_scsi.daemon.inspection import Inspection
from vhost_scsi.daemon.iscsi_config import Made, make_all
from vhost_scsi.daemon.iscsi_node import IscsiNode
from vhost_scsi.daemon.loop import StallWatch
from vhost_scsi.daemon.stall import StallWatchdog
from vhost_scsi.daemon.state_dir import StateDirectory, UnitState
from vhost_scsi.daemon.takeover import PATIENCE, take_over, take_over_unit
from vhost_scsi.dataplane import Core, CoreOptions
from vhost_scsi.errors import ConfigError, VhostScsiError
from vhost_scsi.stores import Store
from vhost_scsi.target import Port, Target, Unit
from vhost_scsi.vhost_user.device import VirtioScsiDevice
from vhost_scsi.vhost_user.server import Server

T = TypeVar("T")
DRAIN_TIMEOUT: Final = 10.0  # seconds
FINISH_POLL: Final = 0.005  # seconds between looks at what is still in flight; only while draining
STALLS: Final = "stalls"  # folder of the state directory
NO_REQUEST_QUEUES: Final = 2  # the control and the event queue, which a device counts too
_LOG: Final = logging.getLogger("vhost_scsi.control")


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
    """One daemon. `run` does everything; `start` and `close` are its halves for a process that does more. `reload`
    reads the configuration anew, with the text it is given instead of the file's."""

    def __init__(
        self,
        config: DaemonConfig,
        *,
        listen_fds: Sequence[tuple[str, int]] = (),
        reload: Callable[[str | None], DaemonConfig] | None = None,
        config_path: str | None = None,
        watch: StallWatch | None = None,
        manage: bool = True,
    ) -> None:
        self.config = config.spelled_out()
        """what runs"""
        self.loaded = self.config
        """what was asked for, by file and command line, when they were read last"""
        self.changing: Final = asyncio.Lock()
        """held while the configuration is changed"""
        self.watch = watch
        self.started_at = time.time()
        self.ports: dict[str, Serving] = {}
        self.came_with: Final[dict[str, str]] = {}
        """units that were made for a target at run time, and which"""
        self.iscsi: IscsiNode | None = None
        self.stalls: StallWatchdog | None = None
        self._listen_fds = list(listen_fds)
        self._reload = reload
        self.config_path: Final = config_path
        self._manage = manage
        self._stop = asyncio.Event()
        self._closing = False
        self._reloading: set[asyncio.Task[None]] = set()
        self._exits = contextlib.AsyncExitStack()
        self._watchers: list[asyncio.Task[None]] = []
        self._kept: state.State
        self._blobs: StateDirectory
        self._saved: dict[str, UnitState] = {}
        self.core: Core
        self.target: Target
        self.control_path: Path | None = None
        self._control: control.ControlServer | None = None

    # ---- building and going ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Builds everything; on an error what was built is gone again. Rings are served when this returns."""
        try:
            async with self.changing:
                await self._start()
        except BaseException:
            self._closing = True
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
        self._kept = state.State(self._state_directory())
        self._blobs = StateDirectory(self._kept.directory)
        self._exits.push_async_callback(self._blobs.close)
        self.target = Target(self.core, self._kept)
        self._exits.push_async_callback(self.target.close)
        self.config = await self._with_kept_media()
        units.check_shared(self.config.lu)
        await self.add_units(self.config.lu)
        await self._add_ports()
        for serving in self.ports.values():
            await serving.server.start()
            self._watchers.append(asyncio.create_task(self._watch_port(serving)))
        self._watch_queues()
        if config.iscsi is not None:
            await self.start_iscsi(make_all(config.iscsi, config.iscsi_luns()))
        if self._control is not None:
            await self._control.serve()
        if self.watch is not None:
            # What was built stays: a collector that walks through thousands of units stalls the loop for nothing.
            gc.collect()
            gc.freeze()
            await asyncio.sleep(0)
            self.watch.on = True
        _LOG.info(
            "vhost-scsi %s, pid %d: %d logical units, %d ports, %d iSCSI targets, %d workers, engine %s%s",
            *(__version__, os.getpid(), len(config.lu), len(config.port)),
            *(len(config.iscsi.target) if config.iscsi is not None else 0, config.workers, self.core.engine_name),
            f" ({self.core.engine_why_not})" if config.engine == "auto" and self.core.engine_why_not else "",
        )

    def _watch_queues(self) -> None:
        if not self.config.stall_after:
            return
        self.stalls = StallWatchdog(
            self.core,
            Inspection(self),
            self.ports.values(),
            limit_s=self.config.stall_after,
            directory=self._kept.directory / STALLS,
            max_dumps=self.config.stall_dumps,
        )
        self._exits.push_async_callback(self.stalls.close)
        self.stalls.start()

    async def start_iscsi(self, made: Made) -> None:
        node = IscsiNode(self.core, self.target, self.config.workers, made)
        await node.start()
        self._exits.push_async_callback(node.close)
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

    async def _with_kept_media(self) -> DaemonConfig:
        """What runs, with what was put into drives when they ran before."""
        drives = {name: lu for name, lu in self.config.lu.items() if lu.has_drive}
        nameless = {name: units.unit_identity(name, lu) for name, lu in drives.items() if lu.uuid is None}
        made = await asyncio.to_thread(self._kept.uuids_of, nameless)
        found = dict(self.config.lu)
        for name, lu in drives.items():
            self._saved[name] = await self._blobs.unit(lu.uuid or made[name])
            found[name] = await kept_media.recall(self.core, name, lu, self._saved[name])
        return self.config.model_copy(update={"lu": found})

    async def add_units(self, wanted: Mapping[str, LuConfig]) -> None:
        """Opens the units' stores; ConfigError where one cannot be, and none is added then."""
        opened: dict[str, Store | None] = {}
        added: list[str] = []
        try:
            for name, lu in wanted.items():
                opened[name] = None if lu.empty else await units.open_unit_store(self.core, name, lu)
                # There can be thousands, and a signal must not have to wait for them all.
                await asyncio.sleep(0)
            uuids = await self.uuids_of(wanted)
            for name, lu in wanted.items():
                await self.add_unit(name, lu, uuids[name], opened.pop(name))
                added.append(name)
        except BaseException:
            for store in filter(None, opened.values()):
                store.close()
            for name in added:
                await self.close_unit(name, self.target.hide_lu(name))
            raise

    async def uuids_of(self, wanted: Mapping[str, LuConfig]) -> dict[str, UUID]:
        """Of those that were not given one it is made up, and kept. Raises ConfigError."""
        nameless = {name: units.unit_identity(name, lu) for name, lu in wanted.items() if lu.uuid is None}
        made = await asyncio.to_thread(self._kept.uuids_of, nameless)
        return {name: lu.uuid or made[name] for name, lu in wanted.items()}

    async def add_unit(self, name: str, lu: LuConfig, uuid: UUID, store: Store | None) -> None:
        """Takes the store over, on an error to close it."""
        try:
            spec = units.spec(name, lu, uuid)
            saved = self._saved.pop(name, None) or await self._blobs.unit(spec.uuid)
            await self.target.add_lu(spec, store, saved)
        except BaseException:
            if store is not None:
                store.close()
            raise
        self._saved[name] = saved

    async def change_medium(self, name: str, lu: LuConfig, work: Callable[[Unit], Awaitable[T]]) -> T:
        """Carries `work` out on the unit, which is `lu` afterwards; nothing changes if that fails."""
        async with self.changing:
            if self._closing:
                raise ConfigError("the daemon is shutting down")
            fresh = self.config.model_copy(update={"lu": {**self.config.lu, name: lu}})
            units.check_shared(fresh.lu)
            done = await work(self.target.units[name])
            self.config = fresh
            if name in self.loaded.lu:
                await kept_media.keep(name, self.loaded.lu[name], lu, self._saved[name])
        return done

    async def close_unit(self, name: str, unit: Unit) -> None:
        """Of one that was hidden, and is mapped nowhere: its state may be somebody else's then."""
        await unit.close()
        await self._blobs.run(self._saved.pop(name).close)

    async def _add_ports(self) -> None:
        places = self.config.places()
        # At once, so that it is one write.
        self.target.port_ids.ids_of(f"{place.port}:{place.target}" for place in places)
        for name, wanted in self.config.port.items():
            port = self.target.add_port(name, initiator=wanted.initiator, group=wanted.port_group)
            workers = tuple(wanted.workers) if wanted.workers else tuple(range(self.config.workers))
            queues = NO_REQUEST_QUEUES + wanted.num_queues
            device = VirtioScsiDevice(self.core, port, num_queues=queues, workers=workers, in_order=wanted.in_order)
            self._exits.push_async_callback(device.close)
            here = [place for place in places if place.port == name]
            await port.map_all((place.target, place.lun, self.target.units[place.lu]) for place in here)
            server, where = self._server(name, device)
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
        async with self.changing:
            self._closing = True
        for unit in self.target.units.values():
            unit.logical_unit.leave()
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
        with self._signals():
            if await self._start_unless_stopped():
                try:
                    ready()
                    systemd.notify("READY=1", f"MAINPID={os.getpid()}")
                    await self.wait()
                finally:
                    # Whatever ended it: what was started is taken down, its sockets too.
                    systemd.notify("STOPPING=1")
                    with drain_limit(DRAIN_TIMEOUT, self.unlink):
                        await self.close()
        _LOG.info("stopped")

    async def _start_unless_stopped(self) -> bool:
        """`start`, which takes a while where there are many units: who wants to stop does not wait for it. False: it
        was stopped, and what was built is gone again."""
        starting = asyncio.ensure_future(self.start())
        stopping = asyncio.ensure_future(self.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                systemd.notify("STOPPING=1")
                with drain_limit(DRAIN_TIMEOUT, self.unlink):
                    starting.cancel()
                    await asyncio.wait((starting,))
        finally:
            starting.cancel()
            stopping.cancel()
        if starting.cancelled():
            return False
        starting.result()
        return True

    def unlink(self) -> None:
        """Removes the sockets' paths, as far as they are ours: for who ends without `close`, from any thread."""
        for serving in self.ports.values():
            serving.server.unlink()
        if self._control is not None:
            self._control.unlink()

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
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            yield
        finally:
            for each in (*ends, signal.SIGHUP):
                loop.remove_signal_handler(each)

    def _hang_up(self) -> None:
        async def reload() -> None:
            async with self.changing:
                pass  # a signal may come while it starts: there is nothing to change yet
            with contextlib.suppress(VhostScsiError):  # it was logged
                await self.reload()

        task = asyncio.get_running_loop().create_task(reload())
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def reload(self) -> tuple[str, ...]:
        """Reads the configuration anew and takes over what can be changed at run time. Returns what needs a restart;
        raises ConfigError, and nothing has changed then."""
        systemd.notify_reloading()
        try:
            fixed = await self._read_anew()
        except VhostScsiError as error:
            _LOG.error("reload: nothing changed: %s", error)
            raise
        finally:
            systemd.notify("READY=1")
        if fixed:
            _LOG.warning("reload: needs a restart, so not changed: %s", ", ".join(fixed))
        _LOG.info("reload: log level %s, log format %s", self.config.log_level, self.config.log_format)
        return fixed

    async def _read_anew(self) -> tuple[str, ...]:
        if self._reload is None:
            raise ConfigError("there is no configuration file")
        async with self.changing:
            fresh = (await asyncio.to_thread(self._reload, None)).spelled_out()
            fixed = await self._change(fresh, reread=True)
            self.loaded = fresh
        return fixed

    async def change(
        self, make: Callable[[DaemonConfig], DaemonConfig], *, patience: float = PATIENCE
    ) -> tuple[str, ...]:
        """Runs what `make` makes of the configuration that runs; as `reload`, but not kept. `patience`: seconds that
        initiators have to let go of what is taken away."""
        async with self.changing:
            return await self._change(make(self.config), reread=False, patience=patience)

    async def replace_unit(self, name: str, make: Callable[[DaemonConfig], DaemonConfig], patience: float) -> None:
        """As `change`, where the unit `name` alone is another one."""
        async with self.changing:
            if self._closing:
                raise ConfigError("the daemon is shutting down")
            await take_over_unit(self, name, make(self.config), patience)

    async def save(self, path: str | None) -> str:
        """Writes what runs to a file, or what was changed into the file that was read. Returns where it is; raises
        ConfigError, and nothing is written then."""
        async with self.changing:
            if path is not None and (self.config_path is None or not same_file(path, self.config_path)):
                text = await asyncio.to_thread(config_save.whole_text, self.config)
                await asyncio.to_thread(lambda: build(tomllib.loads(text)))
                await asyncio.to_thread(config_save.write, path, text)
                return path
            if self.config_path is None or self._reload is None:
                raise ConfigError("this daemon was started without a configuration file: name the one to write")
            old = await asyncio.to_thread(config_save.read, self.config_path)
            text = await asyncio.to_thread(config_save.changed_text, old, self.loaded, self.config)
            fresh = (await asyncio.to_thread(self._reload, text)).spelled_out()
            await asyncio.to_thread(config_save.write, self.config_path, text)
            self.loaded = fresh
            return self.config_path

    async def _change(self, fresh: DaemonConfig, *, reread: bool, patience: float = PATIENCE) -> tuple[str, ...]:
        if self._closing:
            raise ConfigError("the daemon is shutting down")
        return await take_over(self, fresh, reread=reread, patience=patience)

    def hello(self) -> dict[str, object]:
        return {"name": self.config.name, "pid": os.getpid(), "version": __version__}


def same_file(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


@contextlib.contextmanager
def drain_limit(seconds: float, tidy: Callable[[], None]) -> Iterator[None]:
    """Ends the process when the body takes longer: in a thread, because the loop itself may be what hangs. `tidy`: what
    is still done then, in that thread."""

    def give_up() -> None:
        _LOG.error("still not drained after %g s; ending without", seconds)
        with contextlib.suppress(OSError):
            tidy()
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
