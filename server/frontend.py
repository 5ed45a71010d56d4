"""A front end process: gRPC on one side, its partition of the arena on the other. Never loads torch."""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence

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
from scheduler.priority import PriorityClass, parse_priority
from server import collector, control
from server.admission import Admission
from server.auth import Tokens
from server.boot import Boot
from server.guard import Guard
from server.limits import Cancels, channel_options
from server.model_books import ModelBooks
from server.models import ModelTable, ServedModel
from server.problems import SettingsError
from server.repository import Manifest
from server.rpc import health, inference, kserve, models
from server.rpc.desk import Desk
from server.rpc.kserve_models import instance_groups
from server.settings import Settings
from server.sizing import bulk_quantum_ns, frontends
from server.telemetry import logs
from server.tls import Certificates

# One request holds at most this part of a front end's slots, so that it cannot shut everybody else out.
MAX_ROWS_PART = 4
# How often held work is let in when nothing is completed here.
LET_IN_EVERY_S = 0.002
# How soon a new certificate or a changed file of tokens is taken up.
LOOK_AT_FILES_EVERY_S = 1.0
EXIT_BUG = 70

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
        self._health = health.HealthService()

    async def serve(self) -> None:
        """Attaches when told to, serves, and returns once drained."""
        boot, settings = self._boot, self._settings
        self._read_files()
        self._models = ModelTable(_served(boot, settings), boot.default_model)
        self._set_health(serving=False)
        message = await asyncio.get_running_loop().run_in_executor(None, control.receive, self._socket)
        if message is None or message["type"] != "attach":
            os._exit(0)

        arena = Arena.attach(boot.arena_fd)
        eventfd = boot.frontend_eventfds[boot.index]
        self._partition = Partition(arena, boot.index, eventfd, boot.engine_eventfds)
        limits = settings.with_classes(message["classes"]).class_limits
        self._engines = Engines(
            self._partition, [Forecasts(arena, engine) for engine in range(len(boot.engine_eventfds))]
        )
        self._entrance = Entrance(
            self._partition,
            self._engines,
            limits,
            models=len(boot.manifests),
            bulk_quantum_ns=bulk_quantum_ns(settings),
            frontends=frontends(settings),
            on_held=self._held.set,
        )
        self._admission = Admission(
            self._partition,
            self._entrance,
            self._engines,
            limits,
            frontends(settings),
            early_refusal=settings.scheduler.early_refusal,
            model_limits=[model.queue_limit for model in self._models],
        )
        self._desk = Desk(
            self._partition,
            self._entrance,
            self._admission,
            self._models,
            limits,
            ModelBooks(arena, boot.index),
        )
        self._inference = inference.InferenceService(self._desk, settings.server.max_in_flight_per_stream)
        self._kserve = kserve.KserveService(
            self._desk,
            self._models,
            settings.telemetry,
            instance_groups(settings, len(boot.engine_eventfds)),
            settings.server.max_in_flight_per_stream,
        )
        asyncio.get_running_loop().add_reader(eventfd, self._woken)
        letting_in = asyncio.create_task(self._let_in())
        self._woken()

        self._server = _grpc_server(settings)
        self._guard.add_generic_rpc_handlers(
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
            self._guard,
        )
        self._server.add_generic_rpc_handlers((self._guard,))
        self._add_port(settings.server.target(boot.grpc_port))
        looking = asyncio.create_task(self._look_at_files())
        self._admission.engine_lost = message["engine_lost"]
        for engine in message["engines_ready"]:
            self._engine_ready(engine)
        await self._server.start()
        collector.settle()
        control.listen(self._socket, self._obey)
        control.send(self._socket, {"type": "ready"})
        await self._finished.wait()
        letting_in.cancel()
        looking.cancel()

    def _read_files(self) -> None:
        """The certificate and the tokens, where they are asked for. Good ones were there at the start."""
        tls, tokens_file = self._settings.tls, self._settings.auth.tokens_file
        try:
            self._certificates = Certificates(tls) if tls.cert is not None else None
            self._tokens = Tokens(tokens_file) if tokens_file is not None else None
        except SettingsError as error:
            # Only after a restart of this process; the next one may find them mended.
            log.error("cannot start with these files", problems=str(error).splitlines())
            os._exit(1)
        self._guard = Guard(self._tokens, Cancels(self._settings.server.max_cancels_per_s))

    def _add_port(self, target: str) -> None:
        if self._certificates is None:
            self._server.add_insecure_port(target)
        else:
            self._server.add_secure_port(target, self._certificates.credentials())

    async def _look_at_files(self) -> None:
        """Takes up what has changed in them, and ends the RPC streams of tokens that are good no more."""
        files = [file for file in (self._certificates, self._tokens) if file is not None]
        while files:
            await asyncio.sleep(LOOK_AT_FILES_EVERY_S)
            for file in files:
                await asyncio.to_thread(file.refresh)
            self._guard.recheck()

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

    def _deliver(self, completed: Callable[[], None]) -> None:
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
                self._engine_ready(message["engine"])
            case "engine_lost":
                self._engine_lost(message["engine"])
                control.send(self._socket, {**message, "type": "engine_lost_ack"})
            case "classes":
                self._desk.change(self._settings.with_classes(message["classes"]).class_limits)
            case "drain":
                # Kept: the loop has only weak references to its tasks.
                self._draining = asyncio.create_task(self._drain(message["grace_s"]))
            case other:
                raise AssertionError(f"unknown control message {other}")

    def _engine_ready(self, engine: int) -> None:
        self._engines.came(engine)
        self._models.ready = True
        self._admission.engine_lost = False
        self._set_health(serving=True)

    def _engine_lost(self, engine: int) -> None:
        # First nothing goes there any more, then the ends: a caller that retries at once must not push into
        # these rings.
        self._engines.went(engine)
        if not self._engines.ready:
            self._admission.engine_lost = True
            self._models.ready = False
            self._entrance.lose_all()
            self._set_health(serving=False)
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
        names = [model.signature.name for model in self._models]
        self._health.set(("", inference.SERVICE, kserve.SERVICE, *names), serving=serving)
        self._health.set((models.SERVICE,), serving=True)


def _served(boot: Boot, settings: Settings) -> Sequence[ServedModel]:
    share = min(limits.queue_limit for limits in settings.class_limits)
    slots = settings.scheduler.slots_per_frontend // MAX_ROWS_PART
    served = []
    for index, text in enumerate(boot.manifests):
        manifest = Manifest.from_json(text)
        limit = manifest.scheduler.queue_limit
        share_of_model = min(share, limit or share) // frontends(settings)
        served.append(
            ServedModel(
                index=index,
                signature=manifest.signature(manifest.latest.version),
                description=manifest.description,
                format=manifest.format,
                sha256={version.version: version.sha256 for version in manifest.versions},
                max_rows=max(1, min(slots, share_of_model)),
                queue_limit=limit,
                default_class=_default_class(manifest, settings),
            )
        )
    return served


def _default_class(manifest: Manifest, settings: Settings) -> PriorityClass:
    return parse_priority(manifest.scheduler.default_priority or settings.scheduler.default_class)


def _grpc_server(settings: Settings) -> grpc.aio.Server:
    return grpc.aio.server(
        options=channel_options(settings.server),
        maximum_concurrent_rpcs=settings.server.max_concurrent_rpcs,
    )
