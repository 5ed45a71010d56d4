"""The supervisor: owns the arena, starts the children, and mends what dies. Never touches a request.

All its state changes on one event loop, in the order in which it hears of things. Rings are reset
only while nobody can touch them; `server.attachments` says when that is. A successor of who died is
spawned at once and prepares meanwhile; only its `attach` waits for the reset.

The service is announced once every front end and every engine is ready. From then on it is ready as long as
every front end is, and one engine at least: the front ends leave out those that are not.

What is served changes by a handover to other engines (`server.handover`); a child that hangs is killed by the
watchdog (`server.watchdog`).
"""

import asyncio
import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import structlog

from scheduler.arena import Arena, Dimensions
from server import control
from server.attachments import Attachments
from server.books import books
from server.boot import Boot
from server.children import Child, Duty
from server.devices import engine_devices
from server.handover import Handover
from server.lineup import Lineup
from server.ports import reserve_port
from server.revision import Revision
from server.settings import Settings
from server.sizing import frontends
from server.telemetry import logs
from server.telemetry.reader import Reader
from server.telemetry.totals import Totals
from server.telemetry.trace_process import TraceProcess
from server.trials import Trials
from server.watchdog import Watchdog

# Before the service was ever ready, this many failed starts of one child mean that it never will be.
GIVE_UP_STARTS = 3
# Beyond the grace period, for what the children do after the last RPC has ended.
STOP_MARGIN_S = 5.0
# One chair for the engine that serves a device, and one for its successor.
CHAIRS_PER_DEVICE = 2

# Answers what a front end asks for: a message, and what comes back.
Answer = Callable[[control.Message], Awaitable[control.Message]]

log = structlog.get_logger()


class Supervisor:
    """One service, from start to drained."""

    def __init__(self, settings: Settings, lineup: Lineup) -> None:
        """Starts with these.

        Raises:
            SettingsError: the devices that the settings ask for are not here.
        """
        self.revision = Revision(0, settings, lineup)
        self._devices = engine_devices(settings.executor.device)
        chairs = range(len(self._devices) * CHAIRS_PER_DEVICE)
        self._engines = [
            Child("engine", index, Duty.SERVING if index < len(self._devices) else Duty.VACANT, self.revision)
            for index in chairs
        ]
        self._frontends = [
            Child("frontend", index, Duty.SERVING, self.revision) for index in range(frontends(settings))
        ]
        self._by_name = {child.name: child for child in self._children()}
        self._attachments = Attachments(
            [child.name for child in self._engines], [child.name for child in self._frontends]
        )
        self._generations = [0] * len(self._engines)  # how often each engine died attached
        self._announced = False
        self.stopping = False
        self._stopped = asyncio.Event()
        self._exit_code = 0
        # Told once ready, beside the target.
        self.status_url = ""
        self.admin_port = 0
        self.answer: Answer | None = None  # what front ends ask
        self.traces = TraceProcess(self.revision, self._devices) if settings.telemetry.otlp_endpoint else None
        self._stop_by_s = 0.0
        self._answering: set[asyncio.Task[None]] = set()
        self.trials = Trials(self._frontends)
        self._create_arena()
        self._reader = Reader(self._arena, self._engines, self._frontends, self._device, self.traces)
        is_attached = self._attachments.is_attached
        self._handover = Handover(
            self, self._arena.native, self._engines, self._frontends, len(self._devices), is_attached
        )
        self._watchdog = Watchdog(
            self._arena.native,
            self._engines,
            self._frontends,
            self._eventfds,
            owed=self._attachments.owes,
            timeout_s=lambda: self.revision.settings.executor.stall_timeout_s,
        )

    # -- life of the service ------------------------------------------------------------------

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT; returns the exit code.

        Raises:
            PortInUse: another process listens on the gRPC port.
        """
        loop = asyncio.get_running_loop()
        # Held open, without listening, so that front ends share it and nobody else takes it between.
        server = self.revision.settings.server
        self._reservation = reserve_port(server.host, server.grpc_port)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)
        for child in self._children():
            if child.duty is Duty.SERVING:
                self.spawn(child)
        if self.traces is not None:
            self.traces.start()
        self._reader.start()
        watching = asyncio.create_task(self._watchdog.run())
        await self._stopped.wait()
        watching.cancel()
        await asyncio.to_thread(self._reader.stop)
        if self.traces is not None:
            await self.traces.stop(max(0.0, self._stop_by_s - loop.time()))
        log.info("stopped", code=self._exit_code)
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
            and not self.stopping
            and all(child.ready for child in self._frontends)
            and any(child.ready for child in self._handover.serving())
        )

    def books(self) -> dict[str, Any]:
        """What was admitted, how it ended, and what is predicted, as JSON values."""
        found = books(self._arena, self._reader.engines(), self._reader.restarts())
        return found if self.traces is None else {**found, "traces": self.traces.counts.to_fields()}

    def totals(self) -> Totals:
        """A reading of what is counted and measured; every view of the service is made of these."""
        return self._reader.read(self.revision.lineup)

    def missing(self) -> list[str]:
        """Processes that should serve and do not."""
        return [c.name for c in self._children() if c.duty is Duty.SERVING and not c.ready]

    @property
    def announced(self) -> bool:
        """Whether the service has been ready once."""
        return self._announced

    @property
    def places(self) -> int:
        """How many versions can be loaded at once."""
        return self._arena.native.models

    @property
    def row_bytes(self) -> tuple[int, int]:
        """Room for the inputs and for the outputs of one item."""
        return self._arena.native.input_row_bytes, self._arena.native.output_row_bytes

    async def change(self, settings: Settings, lineup: Lineup, *, by_new_engines: bool) -> Revision:
        """Everybody goes by these, once this returns. One call at a time.

        Raises:
            PreparationFailed: engines cannot serve so; nothing has changed.
        """
        number = self.revision.number + 1
        engines: Sequence[Child] = ()
        if by_new_engines:
            engines = await self._handover.prepare(Revision(number, settings, lineup))
        self.revision = revision = Revision(number, settings, lineup)
        logs.set_level(settings.telemetry.log_level)
        self._handover.commit(revision, engines)
        told: control.Message = {"type": "change", **revision.to_fields()}
        for child in self._attached(self._handover.serving()):
            child.tell(told)
        for child in self._attached(self._frontends):
            child.tell({**told, **self._engines_that_serve()})
        if self.traces is not None:
            self.traces.change(revision)
        await self._handover.taken_up(revision)
        return revision

    async def seen_off(self) -> None:
        """Waits until no engine is left that serves no more."""
        await self._handover.seen_off()

    def drain(self) -> None:
        """Ends the service: nothing new is taken, what is in flight ends, then the children do.

        A second call ends everything at once.
        """
        if self.stopping:
            log.warning("stopping at once")
            for child in self._children():
                child.kill()
            if self.traces is not None:
                self.traces.kill()
            return
        self.stopping = True
        self._handover.moved()
        grace_s = self.revision.settings.server.drain_grace_s
        log.info("draining", grace_s=grace_s)
        for child in self._frontends:
            if self._attachments.is_attached(child.name):
                child.tell({"type": "drain", "grace_s": grace_s})
            else:
                child.kill()
        loop = asyncio.get_running_loop()
        self._stop_by_s = loop.time() + grace_s + STOP_MARGIN_S
        loop.call_later(grace_s + STOP_MARGIN_S, self._kill_rest)
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
        settings = self.revision.settings
        signatures = [seat.manifest.signature(seat.version.version) for seat in self.revision.lineup.seats]
        least = settings.models.max_row_bytes
        self._arena, self._arena_fd = Arena.create(
            Dimensions(
                frontends=len(self._frontends),
                engines=len(self._engines),
                models=settings.models.max_loaded,
                slots_per_frontend=settings.scheduler.slots_per_frontend,
                input_row_bytes=max([least, *(signature.input_row_bytes for signature in signatures)]),
                output_row_bytes=max([least, *(signature.output_row_bytes for signature in signatures)]),
            )
        )
        self._eventfds = {
            child.name: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for child in self._children()
        }

    def spawn(self, child: Child) -> None:
        """Starts a process in this place; none while the service ends. Raises OSError, see `boot.spawn`."""
        if self.stopping:
            return
        revision = child.revision
        child.taken_up = revision.number
        boot = Boot(
            role=child.role,
            index=child.index,
            parent_pid=os.getpid(),
            arena_fd=self._arena_fd,
            frontend_eventfds=tuple(self._eventfds[c.name] for c in self._frontends),
            engine_eventfds=tuple(self._eventfds[c.name] for c in self._engines),
            revision=revision.number,
            settings=revision.settings.model_dump_json(),
            lineup=revision.lineup.to_json(),
            grpc_port=self.grpc_port,
            device=self._device(child) if child in self._engines else "",
            considerate=child.duty is Duty.PREPARING,
            boot_id=secrets.randbits(63),
            records_fd=self.traces.records_fd if self.traces and child in self._frontends else -1,
        )
        child.start(boot, partial(self._heard, child), partial(self._exited, child))
        if child.role == "frontend":
            child.warm = True  # it prepares nothing that takes long; its attach may wait in the socket
            self._attach_clean()

    def _attach_clean(self) -> None:
        """Lets every prepared child at its rings, once those are clean."""
        for child in self._children():
            if child.warm and self._attachments.may_attach(child.name):
                self._attachments.attach(child.name)
                child.progress.reset()
                child.taken_up = child.revision.number
                child.tell(self._attach_message(child))

    def _attach_message(self, child: Child) -> control.Message:
        message: control.Message = {"type": "attach", **child.revision.to_fields()}
        if child in self._engines:
            return message
        serving = self._engines_that_serve()
        lost = any(self._generations) and not serving["engines_ready"]
        return {**message, **serving, "engine_lost": lost}

    def _engines_that_serve(self) -> control.Message:
        serving = self._handover.serving()
        places = list(self.revision.lineup.places)
        return {
            "engines": {engine.index: places for engine in serving},
            "engine_boots": {engine.index: engine.boot_id for engine in serving},
            "engines_ready": [engine.index for engine in serving if engine.ready and self._announced],
        }

    def _device(self, engine: Child) -> str:
        return self._devices[engine.index % len(self._devices)]

    def _heard(self, child: Child, message: control.Message | None) -> None:
        if message is None:
            return  # its exit says the rest
        match message["type"]:
            case "warm":
                child.warm = True
                self._attach_clean()
            case "ready":
                child.ready = True
                if child in self._handover.serving() and self._announced:
                    self._tell_ready([child])  # before the log: who reads it may call at once
                    log.info("engine serves again", child=child.name)
                elif child in self._frontends and self._announced:
                    log.info("front end serves again", child=child.name)
                self._announce()
            case "engine_lost_ack":
                engine = message["engine"]
                if message["generation"] == self._generations[engine]:
                    self._reset(self._attachments.let_go(child.name, self._engines[engine].name))
            case "discarded":
                gone = self._frontends[message["frontend"]]
                self._reset(self._attachments.let_go(child.name, gone.name))
            case "changed":
                child.taken_up = message["revision"]
            case "let_go":
                self._handover.let_go(child.name, message["engine"])
            case "ask":
                task = asyncio.create_task(self._answer(child, message))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
            case "failed":
                child.failure = message["error"]
                if not self._announced:
                    self._exit_code = 1
                    self.drain()
            case "device":
                child.readings = message["readings"]
            case "tried":
                self.trials.heard(child.name, message)
            case "drained":
                pass
            case other:
                raise AssertionError(f"unknown control message {other}")
        self._handover.moved()

    async def _answer(self, child: Child, message: control.Message) -> None:
        assert self.answer is not None, message
        process = child.process
        answer = await self.answer(message)
        if child.process is process:  # its successor has not asked
            child.tell({**answer, "type": "answer", "number": message["number"]})

    def _tell_ready(self, engines: Sequence[Child]) -> None:
        for frontend in self._attached(self._frontends):
            for engine in engines:
                frontend.tell({"type": "engine_ready", "engine": engine.index, "boot_id": engine.boot_id})

    def _announce(self) -> None:
        serving = self._handover.serving()
        if self._announced or self.stopping or not all(c.ready for c in (*serving, *self._frontends)):
            return
        self._announced = True
        self._tell_ready(serving)
        log.info(
            "ready",
            target=self.revision.settings.server.target(self.grpc_port),
            models=[manifest.name for manifest in self.revision.lineup.manifests],
            frontends=len(self._frontends),
            engines=list(self._devices),
            status=self.status_url,
            admin_port=self.admin_port,
        )

    # -- deaths -------------------------------------------------------------------------------

    def _exited(self, child: Child) -> None:
        code = child.ended(partial(self._heard, child))
        # What it has left behind is dealt with also while stopping: others may be waiting for it.
        self._clean_up_after(child)
        self._handover.moved()
        if self.stopping:
            self._stop_engines_after_frontends()
            return
        if child.duty is Duty.RETIRING:
            child.duty = Duty.VACANT
            self._handover.moved()
            log.info("engine has retired", child=child.name, code=code)
            return
        if child.duty is Duty.PREPARING:
            log.error("engine could not be prepared", child=child.name, code=code)
            child.failure = child.failure or f"its process died with code {code}"
            return  # who prepares it does not go on with it
        log.error("child died", child=child.name, code=code)
        child.restarts += 1
        self._start_later(child)

    def _clean_up_after(self, child: Child) -> None:
        if child in self._engines:
            if self._attachments.is_attached(child.name):
                self._generations[child.index] += 1
            generation = self._generations[child.index]
            told: control.Message = {"type": "engine_lost", "engine": child.index, "generation": generation}
        else:
            told = {"type": "discard", "frontend": child.index}
            self._handover.frontend_died(child.name)
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

    def _start_later(self, child: Child) -> None:
        if child.failed_starts >= GIVE_UP_STARTS and not self._announced:
            log.error("giving up: it has never been ready", child=child.name, starts=child.failed_starts)
            self._exit_code = 1
            self.drain()
            return
        # Not cancelled by a drain: spawn starts nothing while stopping.
        asyncio.get_running_loop().call_later(child.restart_delay_s, self._start_again, child)

    def _start_again(self, child: Child) -> None:
        if child.duty is not Duty.SERVING or child.alive:
            return  # others have taken over meanwhile
        try:
            self.spawn(child)
        except OSError as error:
            child.not_started(error)
            self._start_later(child)
