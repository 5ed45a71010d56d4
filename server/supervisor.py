"""The supervisor: owns the arena, starts the children, and mends what dies. Never touches a request.

All its state changes on one event loop, in the order in which it hears of things. Rings are reset
only while nobody can touch them:

    a front end died   the engine drops what it queued and says so, or is not attached;
                       then its partition is reset and its successor may attach
    the engine died    every attached front end has ended what it had there and says so, or is dead;
                       then the engine's rings are reset and its successor may attach

A successor is spawned at once and prepares meanwhile; only its `attach` waits for the reset.

A child that hangs is killed, which makes it one that died: an engine that does nothing with items queued,
a front end that does not fetch what is completed for it.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from scheduler.arena import Arena, Dimensions
from server import control
from server.books import books
from server.boot import Boot, spawn
from server.liveness import Progress
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
CHECK_EVERY_S = 0.25
# A batch may take this many times what is predicted for the largest before its engine counts as stuck.
STALL_BATCHES = 5

log = structlog.get_logger()


class Child:
    """One place for a child process; processes come and go in it."""

    def __init__(self, role: str, index: int) -> None:
        self.role = role
        self.index = index
        self.name = f"{role}-{index}"
        self.process: subprocess.Popen[bytes] | None = None
        self.socket: socket.socket | None = None
        self.pidfd = -1
        self.attached = False  # may touch the rings
        self.warm = False  # waits for `attach`
        self.ready = False  # serves
        self.clean = True  # the rings of this place have been reset since its last process attached
        self.failed_starts = 0  # since it last served
        self.restarts = 0
        self.progress = Progress(CHECK_EVERY_S)

    @property
    def alive(self) -> bool:
        """Whether a process is in this place."""
        return self.process is not None

    def tell(self, message: control.Message) -> None:
        """Sends a message; a child that is gone will be noticed by its exit."""
        if self.socket is None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            control.send(self.socket, message)


class Supervisor:
    """One service, from start to drained."""

    def __init__(
        self, settings: Settings, repository: Repository, reload: Callable[[], Settings] | None = None
    ) -> None:
        """`reload` reads the settings again, for SIGHUP; it may raise SettingsError."""
        self._settings = settings
        self._reload = reload
        self._repository = repository
        self._engine = Child("engine", 0)
        self._frontends = [Child("frontend", index) for index in range(frontends(settings))]
        self._generation = 0
        self._acks_missing: set[int] = set()  # front ends that have not let go of the lost engine yet
        self._discards_missing: set[int] = set()  # dead front ends that the engine still holds items of
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
        """Whether every process serves and every model is warm."""
        return not self._stopping and all(child.ready for child in self._children())

    def books(self) -> dict[str, Any]:
        """What was admitted, how it ended, and what is predicted, as JSON values."""
        names = [manifest.name for manifest in self._repository.manifests]
        return books(self._arena, names, {child.name: child.restarts for child in self._children()})

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
        for child in self._children():
            if child.attached:
                child.tell({"type": "classes", "classes": classes})
        log.info("classes changed", classes=classes)

    def drain(self) -> None:
        """Ends the service: nothing new is taken, what is in flight ends, then the children do.

        A second call ends everything at once.
        """
        if self._stopping:
            log.warning("stopping at once")
            for child in self._children():
                if child.process is not None:
                    child.process.kill()
            return
        self._stopping = True
        grace_s = self._settings.server.drain_grace_s
        log.info("draining", grace_s=grace_s)
        for child in self._frontends:
            if child.attached:
                child.tell({"type": "drain", "grace_s": grace_s})
            elif child.process is not None:
                child.process.kill()
        asyncio.get_running_loop().call_later(grace_s + STOP_MARGIN_S, self._kill_rest)
        self._stop_engine_after_frontends()

    def _kill_rest(self) -> None:
        for child in self._children():
            if child.process is not None:
                log.error("did not stop in time", child=child.name)
                self._exit_code = 1
                child.process.kill()

    def _stop_engine_after_frontends(self) -> None:
        if any(child.alive for child in self._frontends):
            return
        self._engine.tell({"type": "stop"})
        if not self._engine.attached and self._engine.process is not None:
            self._engine.process.kill()  # still loading: it holds nothing
        if not self._engine.alive:
            self._stopped.set()

    # -- children -----------------------------------------------------------------------------

    def _children(self) -> Sequence[Child]:
        return (self._engine, *self._frontends)

    def _create_arena(self) -> None:
        signatures = [manifest.signature(manifest.latest.version) for manifest in self._repository.manifests]
        self._arena, self._arena_fd = Arena.create(
            Dimensions(
                frontends=len(self._frontends),
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
                engine_eventfds=(self._eventfds[self._engine.name],),
                settings=self._settings.model_dump_json(),
                manifests=tuple(manifest.to_json() for manifest in self._repository.manifests),
                default_model=self._repository.default_model,
                grpc_port=self.grpc_port,
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
        if self._engine.warm and self._engine.clean and not self._engine.attached:
            self._engine.attached = True
            self._engine.clean = False
            self._engine.progress.reset()
            self._engine.tell({"type": "attach", "classes": self._classes()})
        for child in self._frontends:
            # Not while a lost engine's rings wait for their reset: those pairs are its rings too.
            if child.warm and child.clean and not child.attached and self._engine_settled():
                child.attached = True
                child.clean = False
                child.progress.reset()
                child.tell(
                    {
                        "type": "attach",
                        "classes": self._classes(),
                        "engine_ready": self._engine.ready,
                        "engine_lost": self._generation > 0 and not self._engine.ready,
                    }
                )

    def _classes(self) -> dict[str, Any]:
        return self._settings.scheduler.classes.model_dump()

    def _engine_settled(self) -> bool:
        return self._engine.attached or self._engine.clean

    def _heard(self, child: Child, message: control.Message | None) -> None:
        if message is None:
            return  # its exit says the rest
        match message["type"]:
            case "warm":
                child.warm = True
                self._attach_clean()
            case "ready":
                child.ready = True
                if child is self._engine:
                    for frontend in self._frontends:
                        if frontend.attached:
                            frontend.tell({"type": "engine_ready"})
                self._announce()
            case "engine_lost_ack":
                if message["generation"] == self._generation:
                    self._acks_missing.discard(child.index)
                    self._reset_engine_if_free()
            case "discarded":
                self._discards_missing.discard(message["frontend"])
                self._reset_frontend(self._frontends[message["frontend"]])
            case "failed":
                if not self._announced:
                    self._exit_code = 1
                    self.drain()
            case "drained":
                pass
            case other:
                raise AssertionError(f"unknown control message {other}")

    def _announce(self) -> None:
        if self.is_ready and not self._announced:
            self._announced = True
            log.info(
                "ready",
                target=self._settings.server.target(self.grpc_port),
                models=[manifest.name for manifest in self._repository.manifests],
                frontends=len(self._frontends),
                status=self.status_url,
            )

    # -- hangs --------------------------------------------------------------------------------

    async def _check_progress(self) -> None:
        native = self._arena.native
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            engine = self._engine
            if engine.ready:
                waiting, steps = native.engine_progress(engine.index)
                idle_s = engine.progress.check(waiting, steps)
                # It may wait for a batch to fill. Woken, it looks, and a look is progress.
                if idle_s:
                    os.eventfd_write(self._eventfds[engine.name], 1)
                self._kill_if_stuck(engine, idle_s, self._stall_timeout_s())
            for child in self._frontends:
                if child.ready:
                    idle_s = child.progress.check(*native.frontend_progress(child.index))
                    self._kill_if_stuck(child, idle_s, self._settings.executor.stall_timeout_s)

    def _stall_timeout_s(self) -> float:
        """The setting, or longer where the models' largest batches may well take longer."""
        longest_ns = max(
            (
                high
                for model in range(self._arena.native.models)
                for _, _, high, _ in self._arena.native.forecast(self._engine.index, model)["buckets"]
            ),
            default=0,
        )
        return max(self._settings.executor.stall_timeout_s, STALL_BATCHES * longest_ns / 1e9)

    def _kill_if_stuck(self, child: Child, idle_s: float, timeout_s: float) -> None:
        if idle_s >= timeout_s and child.process is not None:
            log.error("child makes no progress, killing it", child=child.name, idle_s=idle_s)
            child.progress.reset()
            child.process.kill()

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
        was_attached, was_ready = child.attached, child.ready
        child.process = child.socket = None
        child.attached = child.warm = child.ready = False

        # What it has left behind is dealt with also while stopping: others may be waiting for it.
        if child is self._engine:
            self._engine_died(was_attached)
        else:
            self._frontend_died(child, was_attached)
        if self._stopping:
            self._stop_engine_after_frontends()
            return
        log.error("child died", child=child.name, code=code)
        child.failed_starts = 0 if was_ready else child.failed_starts + 1
        if child.failed_starts >= GIVE_UP_STARTS and not self._announced:
            log.error("giving up: it has never been ready", child=child.name, starts=child.failed_starts)
            self._exit_code = 1
            self.drain()
            return
        self._restart(child)

    def _engine_died(self, was_attached: bool) -> None:
        # It cannot answer any more, and holds nothing any more.
        for index in list(self._discards_missing):
            self._discards_missing.discard(index)
            self._reset_frontend(self._frontends[index])
        if not was_attached:
            return
        self._generation += 1
        self._acks_missing = {child.index for child in self._frontends if child.attached}
        for child in self._frontends:
            if child.attached:
                child.tell({"type": "engine_lost", "generation": self._generation})
        self._reset_engine_if_free()

    def _reset_engine_if_free(self) -> None:
        if self._acks_missing or self._engine.attached or self._engine.clean:
            return
        self._arena.native.reset_engine(self._engine.index)
        self._engine.clean = True
        self._attach_clean()

    def _frontend_died(self, child: Child, was_attached: bool) -> None:
        self._acks_missing.discard(child.index)
        self._reset_engine_if_free()
        if not was_attached:
            return
        if self._engine.attached:
            self._discards_missing.add(child.index)
            self._engine.tell({"type": "discard", "frontend": child.index})
        else:
            self._reset_frontend(child)

    def _reset_frontend(self, child: Child) -> None:
        self._arena.native.reset_frontend(child.index)
        child.clean = True
        self._attach_clean()

    def _restart(self, child: Child) -> None:
        child.restarts += 1
        delay_s = 0.0
        if child.failed_starts:
            delay_s = min(MAX_RESTART_DELAY_S, FIRST_RESTART_DELAY_S * 2 ** (child.failed_starts - 1))
        # Not cancelled by a drain: _spawn starts nothing while stopping.
        asyncio.get_running_loop().call_later(delay_s, self._spawn, child)
