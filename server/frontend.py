"""A front end process: gRPC on one side, its partition of the arena on the other. Never loads torch."""

import asyncio
import itertools
import os
import socket
from collections.abc import Callable, Sequence
from traceback import walk_tb
from typing import Any

import grpc
import structlog
import uvloop
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from scheduler import _ring
from scheduler.arena import Arena
from scheduler.engines import Engines
from scheduler.entrance import Entrance
from scheduler.forecast import Forecasts
from scheduler.partition import Partition
from server import asks, collector, control
from server.access import Access
from server.admission import Admission
from server.boot import Boot
from server.limits import channel_options
from server.lineup import Lineup
from server.model_books import ModelBooks
from server.models import ModelTable
from server.preemption import wake_without_preempting
from server.problems import SettingsError
from server.rpc import health, inference, kserve, models
from server.rpc.desk import Desk
from server.rpc.kserve_models import instance_groups
from server.rpc.kserve_repository import RepositoryChanges
from server.rpc.trial import try_models
from server.served import model_limits, served
from server.settings import Settings
from server.sizing import bulk_quantum_ns, frontend_spin_ns, frontends
from server.spinning import Spin
from server.telemetry import logs
from server.telemetry.counting import RequestCounts
from server.telemetry.storms import StormLog
from server.telemetry.tracer import Tracer

# How often held work is let in when nothing is completed here.
LET_IN_EVERY_S = 0.002
# How often it is looked whether an engine that retires can be let go.
LET_GO_EVERY_S = 0.005
EXIT_BUG = 70
# As it is called in what grpcio raises.
GRPC_ACCEPT_LOOP = "_server_main_loop"

log = structlog.get_logger()


def run(boot: Boot, sock: socket.socket) -> None:
    """Never returns while the supervisor lives and wants it."""
    settings = Settings.model_validate_json(boot.settings)
    logs.configure(settings.telemetry.log_format, settings.telemetry.log_level)
    structlog.contextvars.bind_contextvars(process=f"frontend-{boot.index}")
    uvloop.run(Frontend(boot, settings, sock).serve())
    os._exit(0)


class Frontend:
    """One front end, from boot to drained."""

    def __init__(self, boot: Boot, settings: Settings, sock: socket.socket) -> None:
        self._boot = boot
        self._settings = settings
        self._socket = sock
        self._finished = asyncio.Event()
        self._held = asyncio.Event()  # something is held at the entrance
        self._draining: asyncio.Task[None] | None = None
        self._letting_go: asyncio.Task[None] | None = None
        self._trying: set[asyncio.Task[None]] = set()
        self._health = health.HealthService()
        self._asked: dict[int, asyncio.Future[control.Message]] = {}
        self._asks = itertools.count()

    async def serve(self) -> None:
        """Attaches when told to, serves, and returns once drained."""
        boot, settings = self._boot, self._settings
        try:
            self._access = Access(settings)
        except SettingsError as error:
            # Only after a restart of this process, where they were good at the start; the next one may find
            # them mended.
            log.error("cannot start with these files", problems=str(error).splitlines())
            os._exit(1)
        message = await asyncio.get_running_loop().run_in_executor(None, control.receive, self._socket)
        if message is None or message["type"] != "attach":
            os._exit(0)
        # As they are by now: they may have changed since this process was started.
        settings, lineup = self._take_up(message)
        self._models = ModelTable(served(lineup, settings), lineup.default_model)
        self._set_health(serving=False)

        arena = Arena.attach(boot.arena_fd)
        eventfd = boot.frontend_eventfds[boot.index]
        self._partition = Partition(arena, boot.index, eventfd, boot.engine_eventfds)
        limits = settings.class_limits
        self._engines = Engines(
            self._partition, [Forecasts(arena, engine) for engine in range(len(boot.engine_eventfds))]
        )
        self._entrance = Entrance(
            self._partition,
            self._engines,
            limits,
            models=arena.native.models,
            bulk_quantum_ns=bulk_quantum_ns(settings),
            frontends=frontends(settings),
            early_refusal=settings.scheduler.early_refusal,
            on_held=self._held.set,
        )
        self._admission = Admission(
            self._partition,
            self._entrance,
            self._engines,
            limits,
            frontends(settings),
            early_refusal=settings.scheduler.early_refusal,
            model_limits=model_limits(lineup),
        )
        self._desk = Desk(
            self._partition,
            self._entrance,
            self._admission,
            self._models,
            limits,
            ModelBooks(arena, boot.index),
            RequestCounts(arena, boot.index, self._models),
        )
        self._access.guard.on_refused = self._desk.counts.refused
        self._desk.move_in({seat.place: seat.number for seat in lineup.seats})
        loop = asyncio.get_running_loop()
        self._desk.storms = StormLog(_ring.now_ns, loop.call_later)
        if boot.records_fd >= 0:
            records = socket.socket(fileno=boot.records_fd)
            self._desk.tracer = Tracer(records, boot.index, boot.boot_id, settings)
            self._desk.tracer.boots |= _boots(message)
        self._inference = inference.InferenceService(self._desk, settings.server.max_in_flight_per_stream)
        self._kserve = kserve.KserveService(
            self._desk,
            self._models,
            settings.telemetry,
            instance_groups(settings, len(message["engines"])),
            settings.server.max_in_flight_per_stream,
            RepositoryChanges(self._ask, settings, self._access.caller_of),
        )
        self._spin = Spin(self._partition, self._deliver)
        self._spin.limit_ns = frontend_spin_ns(settings)
        self._partition.on_push, self._partition.on_ended = self._spin.pushed, self._spin.ended
        loop.add_reader(eventfd, self._woken)
        letting_in = asyncio.create_task(self._let_in())
        self._woken()

        self._server = _grpc_server(settings)
        guard = self._access.guard
        guard.add_generic_rpc_handlers(
            (
                self._inference.handler(),
                self._kserve.handler(),
                models.ModelService(self._models).handler(),
                self._health.handler(),
            )
        )
        names = (inference.SERVICE, kserve.SERVICE, models.SERVICE, health.SERVICE, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(names),  # type: ignore[attr-defined]
            guard,
        )
        self._server.add_generic_rpc_handlers((guard,))
        self._access.add_port(self._server, settings.server.target(boot.grpc_port))
        looking = asyncio.create_task(self._access.keep_up())
        self._admission.engine_lost = message["engine_lost"]
        self._engines.change(_places(message), message["engines_ready"])
        if message["engines_ready"]:
            self._engines_serve()
        asyncio.get_running_loop().set_exception_handler(self._unexpected)
        await self._server.start()
        wake_without_preempting()  # gRPC's threads are there by now, and stay as they are
        collector.settle()
        control.listen(self._socket, self._obey)
        control.send(self._socket, {"type": "ready"})
        await self._finished.wait()
        for task in (letting_in, looking, self._letting_go):
            if task is not None:
                task.cancel()

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Something was raised where nobody waits for it.

        Where that is the loop in which gRPC takes calls, this process never takes one again: it ends, and a
        new one serves. grpcio 1.84 and 1.85 do so for a call whose path is not UTF-8 (docs/security.md).
        """
        loop.default_exception_handler(context)
        error = context.get("exception")
        raised_in = [frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)] if error else []
        if any(name.endswith(GRPC_ACCEPT_LOOP) for name in raised_in):
            log.error("gRPC takes no more calls, this process ends", error=repr(error))
            os._exit(EXIT_BUG)

    async def _let_in(self) -> None:
        """Completions let held work in; these rounds are for when those of other front ends make room."""
        while True:
            await self._held.wait()
            await asyncio.sleep(LET_IN_EVERY_S)
            self._deliver(lambda: None)
            if not self._entrance.holds:
                self._held.clear()

    def _woken(self) -> None:
        self._deliver(self._partition.woken)

    def _deliver(self, completed: Callable[[], object]) -> None:
        try:
            completed()
            self._entrance.let_in(_ring.now_ns())
        except BaseException:
            # A bug, and what it interrupted will not be delivered: better every call of this process
            # ends now, and a new one starts, than that some hang.
            log.exception("cannot deliver completions")
            os._exit(EXIT_BUG)

    def _obey(self, message: control.Message | None) -> None:
        if message is None:
            os._exit(1)  # the supervisor is gone; nobody would restart what fails from here on
        match message["type"]:
            case "engine_ready":
                self._engine_ready(message["engine"], message["boot_id"])
            case "engine_lost":
                self._engine_lost(message["engine"])
                control.send(self._socket, {**message, "type": "engine_lost_ack"})
            case "change":
                self._change(message)
            case "answer":
                self._asked.pop(message["number"]).set_result(message)
            case "try":
                task = asyncio.create_task(self._try(message))
                self._trying.add(task)
                task.add_done_callback(self._trying.discard)
            case "drain":
                # Kept: the loop has only weak references to its tasks.
                self._draining = asyncio.create_task(self._drain(message["grace_s"]))
            case other:
                raise AssertionError(f"unknown control message {other}")

    async def _ask(self, what: str, model: str, author: str) -> None:
        """Has the supervisor change what is loaded. Raises RequestError where it does not."""
        number = next(self._asks)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        control.send(
            self._socket,
            {"type": "ask", "number": number, "what": what, "model": model, "author": author},
        )
        # Shielded: the answer comes whether or not the caller is still there.
        asks.check(await asyncio.shield(asked))

    async def _try(self, message: control.Message) -> None:
        """Makes a prediction of each model for whoever asks about the health of the service."""
        predictions = await try_models(self._desk, self._models, message["timeout_s"])
        control.send(self._socket, {"type": "tried", "number": message["number"], "predictions": predictions})

    def _change(self, message: control.Message) -> None:
        """Takes up other settings, models and engines, all between two requests."""
        before = self._lineup
        settings, lineup = self._take_up(message)
        logs.set_level(settings.telemetry.log_level)
        self._access.cancels.per_s = settings.server.max_cancels_per_s
        in_flight = settings.server.max_in_flight_per_stream
        self._inference.change(in_flight)
        self._spin.limit_ns = frontend_spin_ns(settings)
        self._kserve.change(settings.telemetry, instance_groups(settings, len(message["engines"])), in_flight)
        self._desk.move_in({seat.place: seat.number for seat in lineup.seats})
        self._desk.change(
            settings.class_limits,
            bulk_quantum_ns=bulk_quantum_ns(settings),
            early_refusal=settings.scheduler.early_refusal,
            model_limits=model_limits(lineup),
        )
        if self._desk.tracer is not None:
            self._desk.tracer.change(settings)
            self._desk.tracer.boots |= _boots(message)
        self._models.change(served(lineup, settings), lineup.default_model)
        gone = {manifest.name for manifest in before.manifests} - {m.name for m in lineup.manifests}
        self._health.forget(gone)
        retiring = self._engines.change(_places(message), message["engines_ready"])
        self._set_health(serving=self._models.ready)
        if self._letting_go is not None:
            self._letting_go.cancel()  # what it has not let go of yet is among those that retire
        if retiring:
            self._letting_go = asyncio.create_task(self._let_go(retiring))
        control.send(self._socket, {"type": "changed", "revision": self._revision})

    def _take_up(self, message: control.Message) -> tuple[Settings, Lineup]:
        self._settings = Settings.model_validate_json(message["settings"])
        self._lineup = Lineup.from_json(message["lineup"])
        self._revision = message["revision"]
        return self._settings, self._lineup

    async def _let_go(self, retiring: Sequence[int]) -> None:
        """Tells of each engine that retires once nothing is pushed to it any more."""
        left = list(retiring)
        while left:
            for engine in [engine for engine in left if not self._entrance.holds_for(engine)]:
                left.remove(engine)
                self._engines.went(engine)
                control.send(self._socket, {"type": "let_go", "engine": engine})
            await asyncio.sleep(LET_GO_EVERY_S)

    def _engine_ready(self, engine: int, boot_id: int) -> None:
        if self._desk.tracer is not None:
            self._desk.tracer.boots[engine] = boot_id
        self._engines.came(engine)
        self._engines_serve()

    def _engines_serve(self) -> None:
        self._models.ready = True
        self._admission.engine_lost = False
        self._set_health(serving=True)

    def _engine_lost(self, engine: int) -> None:
        # First nothing goes there any more, then the ends: a caller that retries at once must not push into
        # these rings.
        self._engines.went(engine)
        if not self._engines.any_ready:
            self._admission.engine_lost = True
            self._models.ready = False
            self._set_health(serving=False)
        self._entrance.lose_stranded()
        self._partition.lose_engine(engine)

    async def _drain(self, grace_s: float) -> None:
        """Readiness off, GOAWAY, what is in flight ends, then this process does."""
        self._admission.draining = True
        self._health.drain()
        self._inference.drain()
        self._kserve.drain()
        await self._server.stop(grace_s)
        self._partition.drain()
        log.info("drained", **self._partition.books())
        control.send(self._socket, {"type": "drained"})
        self._finished.set()

    def _set_health(self, *, serving: bool) -> None:
        self._health.set(("", inference.SERVICE, kserve.SERVICE), serving=serving)
        for model in self._models:
            self._health.set((model.signature.name,), serving=serving and bool(model.loaded))
        self._health.set((models.SERVICE,), serving=True)


def _places(message: control.Message) -> dict[int, list[int]]:
    """By engine that serves, the places that it does. JSON has made its keys text."""
    return {int(engine): places for engine, places in message["engines"].items()}


def _boots(message: control.Message) -> dict[int, int]:
    """By engine that serves, what its process is known by."""
    return {int(engine): boot_id for engine, boot_id in message["engine_boots"].items()}


def _grpc_server(settings: Settings) -> grpc.aio.Server:
    return grpc.aio.server(
        options=channel_options(settings.server),
        maximum_concurrent_rpcs=settings.server.max_concurrent_rpcs,
    )
