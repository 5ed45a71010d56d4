"""The supervisor: owns the arena, starts the children, and mends what dies. Never touches a request.

All its state changes on one event loop, in the order in which it hears of things. Rings are reset
only while nobody can touch them; `server.attachments` says when that is. A successor of who died is
spawned at once and prepares meanwhile; only its `attach` waits for the reset.

The service is announced once every front end and every engine is ready. From then on it is ready as long as
every front end is, and one engine at least: the front ends leave out those that are not.

A child that hangs is killed, which makes it one that died: an engine that does nothing with items queued,
a front end that does not fetch what is completed for it, and either if it does not let go of the rings
of one that died.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from scheduler.arena import Arena, Dimensions
from server import control
from server.attachments import Attachments
from server.books import EngineState, books
from server.boot import Boot, spawn
from server.children import Child
from server.devices import engine_devices
from server.liveness import CHECK_EVERY_S
from server.ports import reserve_port
from server.problems import SettingsError
from server.repository import Repository
from server.settings import Settings
from server.sizing import frontends

# A child that served is restarted at once; one that dies before it could, after a growing delay.
MAX_RESTART_DELAY_S = 5.0
# Before the service was ever ready, this many failed starts of one child mean that it never will be.
GIVE_UP_STARTS = 3
FIRST_RESTART_DELAY_S = 0.1
# Beyond the grace period, for what the children do after the last RPC has ended.
STOP_MARGIN_S = 5.0
# A batch may take this many times what is predicted for the largest before its engine counts as stuck.
STALL_BATCHES = 5

log = structlog.get_logger()


class Supervisor:
    """One service, from start to drained."""

    def __init__(
        self, settings: Settings, repository: Repository, reload: Callable[[], Settings] | None = None
    ) -> None:
        """`reload` reads the settings again, for SIGHUP; it may raise SettingsError.

        Raises:
            SettingsError: the devices that the settings ask for are not here.
        """
        self._settings = settings
        self._reload = reload
        self._repository = repository
        self._devices = engine_devices(settings.executor.device)
        self._engines = [Child("engine", index) for index in range(len(self._devices))]
        self._frontends = [Child("frontend", index) for index in range(frontends(settings))]
        self._by_name = {child.name: child for child in self._children()}
        self._attachments = Attachments(
            [child.name for child in self._engines], [child.name for child in self._frontends]
        )
        self._generations = [0] * len(self._engines)  # how often each engine died attached
        self._announced = False
        self._stopping = False
        self._stopped = asyncio.Event()
        self._exit_code = 0
        self.status_url = ""  # told once ready, beside the target
        self._create_arena()

    # -- life of the service ------------------------------------------------------------------

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT; returns the exit code.

        Raises:
            PortInUse: another process listens on the gRPC port.
        """
        loop = asyncio.get_running_loop()
        # Held open, without listening, so that front ends share it and nobody else takes it between.
        self._reservation = reserve_port(self._settings.server.host, self._settings.server.grpc_port)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        for child in self._children():
            self._spawn(child)
        checking = asyncio.create_task(self._check_progress())
        await self._stopped.wait()
        checking.cancel()
        return self._exit_code

    @property
    def grpc_port(self) -> int:
        """The port that front ends listen on."""
        port: int = self._reservation.getsockname()[1]
        return port

    @property
    def is_ready(self) -> bool:
        """Whether every front end serves, and an engine; at first, whether all processes do."""
        return (
            self._announced
            and not self._stopping
            and all(child.ready for child in self._frontends)
            and any(child.ready for child in self._engines)
        )

    def books(self) -> dict[str, Any]:
        """What was admitted, how it ended, and what is predicted, as JSON values."""
        names = [manifest.name for manifest in self._repository.manifests]
        restarts = {child.name: child.restarts for child in self._children()}
        engines = [
            EngineState(self._devices[child.index], child.ready, child.readings) for child in self._engines
        ]
        return books(self._arena, names, engines, restarts)

    def reload(self) -> None:
        """Takes up what the settings say now of the classes; the rest of a change needs a restart."""
        if self._reload is None or self._stopping:
            return
        try:
            wanted = self._reload()
        except SettingsError as error:
            log.error("settings not reloaded, nothing was changed", problems=str(error).splitlines())
            return
        classes = wanted.scheduler.classes.model_dump()
        usable = self._settings.with_classes(classes)
        if wanted != usable:
            log.warning("only [scheduler.classes] changes without a restart, the rest stays as it was")
        if usable == self._settings:
            log.info("settings reloaded, no class has changed")
            return
        self._settings = usable
        for child in self._attached(self._children()):
            child.tell({"type": "classes", "classes": classes})
        log.info("classes changed", classes=classes)

    def drain(self) -> None:
        """Ends the service: nothing new is taken, what is in flight ends, then the children do.

        A second call ends everything at once.
        """
        if self._stopping:
            log.warning("stopping at once")
            for child in self._children():
                child.kill()
            return
        self._stopping = True
        grace_s = self._settings.server.drain_grace_s
        log.info("draining", grace_s=grace_s)
        for child in self._frontends:
            if self._attachments.is_attached(child.name):
                child.tell({"type": "drain", "grace_s": grace_s})
            else:
                child.kill()
        asyncio.get_running_loop().call_later(grace_s + STOP_MARGIN_S, self._kill_rest)
        self._stop_engines_after_frontends()

    def _kill_rest(self) -> None:
        for child in self._children():
            if child.alive:
                log.error("did not stop in time", child=child.name)
                self._exit_code = 1
                child.kill()

    def _stop_engines_after_frontends(self) -> None:
        if any(child.alive for child in self._frontends):
            return
        for child in self._engines:
            child.tell({"type": "stop"})
            if not self._attachments.is_attached(child.name):
                child.kill()  # still loading: it holds nothing
        if not any(child.alive for child in self._engines):
            self._stopped.set()

    # -- children -----------------------------------------------------------------------------

    def _children(self) -> Sequence[Child]:
        return (*self._engines, *self._frontends)

    def _attached(self, children: Sequence[Child]) -> Sequence[Child]:
        return [child for child in children if self._attachments.is_attached(child.name)]

    def _create_arena(self) -> None:
        signatures = [manifest.signature(manifest.latest.version) for manifest in self._repository.manifests]
        self._arena, self._arena_fd = Arena.create(
            Dimensions(
                frontends=len(self._frontends),
                engines=len(self._engines),
                models=len(signatures),
                slots_per_frontend=self._settings.scheduler.slots_per_frontend,
                input_row_bytes=max(signature.input_row_bytes for signature in signatures),
                output_row_bytes=max(signature.output_row_bytes for signature in signatures),
            )
        )
        self._eventfds = {
            child.name: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for child in self._children()
        }

    def _spawn(self, child: Child) -> None:
        if self._stopping:
            return
        child.process, child.socket = spawn(
            Boot(
                role=child.role,
                index=child.index,
                parent_pid=os.getpid(),
                arena_fd=self._arena_fd,
                frontend_eventfds=tuple(self._eventfds[c.name] for c in self._frontends),
                engine_eventfds=tuple(self._eventfds[c.name] for c in self._engines),
                settings=self._settings.model_dump_json(),
                manifests=tuple(manifest.to_json() for manifest in self._repository.manifests),
                default_model=self._repository.default_model,
                grpc_port=self.grpc_port,
                device=self._devices[child.index] if child in self._engines else "",
            )
        )
        # A pidfd reports the death of exactly this process, whatever becomes of its number.
        child.pidfd = os.pidfd_open(child.process.pid)
        loop = asyncio.get_running_loop()
        loop.add_reader(child.pidfd, self._exited, child)
        control.listen(child.socket, lambda message: self._heard(child, message))
        log.debug("spawned", child=child.name, pid=child.process.pid)
        if child.role == "frontend":
            child.warm = True  # it prepares nothing that takes long; its attach may wait in the socket
            self._attach_clean()

    def _attach_clean(self) -> None:
        """Lets every prepared child at its rings, once those are clean."""
        for child in self._children():
            if child.warm and self._attachments.may_attach(child.name):
                self._attachments.attach(child.name)
                child.progress.reset()
                child.tell(self._attach_message(child))

    def _attach_message(self, child: Child) -> control.Message:
        message = {"type": "attach", "classes": self._settings.scheduler.classes.model_dump()}
        if child in self._engines:
            return message
        ready = [engine.index for engine in self._engines if engine.ready and self._announced]
        return {**message, "engines_ready": ready, "engine_lost": any(self._generations) and not ready}

    def _heard(self, child: Child, message: control.Message | None) -> None:
        if message is None:
            return  # its exit says the rest
        match message["type"]:
            case "warm":
                child.warm = True
                self._attach_clean()
            case "ready":
                child.ready = True
                if child in self._engines and self._announced:
                    log.info("engine serves again", child=child.name)
                    self._tell_ready([child])
                self._announce()
            case "engine_lost_ack":
                engine = message["engine"]
                if message["generation"] == self._generations[engine]:
                    self._reset(self._attachments.let_go(child.name, self._engines[engine].name))
            case "discarded":
                gone = self._frontends[message["frontend"]]
                self._reset(self._attachments.let_go(child.name, gone.name))
            case "failed":
                if not self._announced:
                    self._exit_code = 1
                    self.drain()
            case "device":
                child.readings = message["readings"]
            case "drained":
                pass
            case other:
                raise AssertionError(f"unknown control message {other}")

    def _tell_ready(self, engines: Sequence[Child]) -> None:
        for frontend in self._attached(self._frontends):
            for engine in engines:
                frontend.tell({"type": "engine_ready", "engine": engine.index})

    def _announce(self) -> None:
        if self._announced or self._stopping or not all(child.ready for child in self._children()):
            return
        self._announced = True
        self._tell_ready(self._engines)
        log.info(
            "ready",
            target=self._settings.server.target(self.grpc_port),
            models=[manifest.name for manifest in self._repository.manifests],
            frontends=len(self._frontends),
            engines=list(self._devices),
            status=self.status_url,
        )

    # -- hangs --------------------------------------------------------------------------------

    async def _check_progress(self) -> None:
        native = self._arena.native
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            for child in self._engines:
                if child.ready:
                    idle_s = self._idle_s(child, *native.engine_progress(child.index))
                    # It may wait for a batch to fill. Woken, it looks, and a look is progress.
                    if idle_s:
                        os.eventfd_write(self._eventfds[child.name], 1)
                    self._kill_if_stuck(child, idle_s, self._stall_timeout_s(child.index))
            for child in self._frontends:
                if child.ready:
                    idle_s = self._idle_s(child, *native.frontend_progress(child.index))
                    self._kill_if_stuck(child, idle_s, self._settings.executor.stall_timeout_s)

    def _idle_s(self, child: Child, waiting: int, steps: int) -> float:
        # To let go of the rings of one that died is work, too.
        return child.progress.check(waiting + self._attachments.owes(child.name), steps)

    def _stall_timeout_s(self, engine: int) -> float:
        """The setting, or longer where the models' largest batches may well take longer."""
        longest_ns = max(
            (
                high
                for model in range(self._arena.native.models)
                for _, _, high, _ in self._arena.native.forecast(engine, model)["buckets"]
            ),
            default=0,
        )
        return max(self._settings.executor.stall_timeout_s, STALL_BATCHES * longest_ns / 1e9)

    def _kill_if_stuck(self, child: Child, idle_s: float, timeout_s: float) -> None:
        if idle_s >= timeout_s and child.alive:
            log.error("child makes no progress, killing it", child=child.name, idle_s=idle_s)
            child.progress.reset()
            child.kill()

    # -- deaths -------------------------------------------------------------------------------

    def _exited(self, child: Child) -> None:
        assert child.process is not None
        assert child.socket is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(child.pidfd)
        loop.remove_reader(child.socket)
        for message in control.unread(child.socket):
            self._heard(child, message)
        os.close(child.pidfd)
        child.socket.close()
        code = child.process.wait()
        was_ready = child.ready
        child.process = child.socket = None
        child.warm = child.ready = False
        child.readings = {}

        # What it has left behind is dealt with also while stopping: others may be waiting for it.
        self._clean_up_after(child)
        if self._stopping:
            self._stop_engines_after_frontends()
            return
        log.error("child died", child=child.name, code=code)
        child.failed_starts = 0 if was_ready else child.failed_starts + 1
        if child.failed_starts >= GIVE_UP_STARTS and not self._announced:
            log.error("giving up: it has never been ready", child=child.name, starts=child.failed_starts)
            self._exit_code = 1
            self.drain()
            return
        self._restart(child)

    def _clean_up_after(self, child: Child) -> None:
        if child in self._engines:
            if self._attachments.is_attached(child.name):
                self._generations[child.index] += 1
            generation = self._generations[child.index]
            told: control.Message = {"type": "engine_lost", "engine": child.index, "generation": generation}
        else:
            told = {"type": "discard", "frontend": child.index}
        aftermath = self._attachments.died(child.name)
        for name in aftermath.ask:
            self._by_name[name].tell(told)
        self._reset(aftermath.reset)

    def _reset(self, names: Sequence[str]) -> None:
        for child in map(self._by_name.__getitem__, names):
            if child in self._engines:
                self._arena.native.reset_engine(child.index)
            else:
                self._arena.native.reset_frontend(child.index)
        self._attach_clean()

    def _restart(self, child: Child) -> None:
        child.restarts += 1
        delay_s = 0.0
        if child.failed_starts:
            delay_s = min(MAX_RESTART_DELAY_S, FIRST_RESTART_DELAY_S * 2 ** (child.failed_starts - 1))
        # Not cancelled by a drain: _spawn starts nothing while stopping.
        asyncio.get_running_loop().call_later(delay_s, self._spawn, child)
