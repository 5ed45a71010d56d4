"""The engine process: loads the models, warms them up, and runs batches until told to stop."""

import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from scheduler import _ring
from scheduler.arena import Arena
from scheduler.clock import MonotonicClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.bisection import FailureExtent
from scheduler.executor.cpu import CpuInstance
from scheduler.executor.instance import Instance
from scheduler.executor.runner import DeviceSettings, ModelUnusable, Runner, load_runner
from scheduler.latency import LearnedLatency
from server import collector, control, resources
from server.boot import Boot
from server.repository import Manifest, RepositoryError, read_verified
from server.settings import Settings
from server.sizing import batch_plan, engine_sizes
from server.telemetry import logs

# The first two runs of a shape compile; the median of the rest seeds the latency model.
WARM_UP_ROUNDS = 8
EXIT_UNUSABLE = 3
EXIT_BUG = 70

log = structlog.get_logger()


def run(boot: Boot, sock: socket.socket) -> None:
    """Never returns while the supervisor lives and wants it."""
    settings = Settings.model_validate_json(boot.settings)
    logs.configure(settings.telemetry.log_format, settings.telemetry.log_level)
    structlog.contextvars.bind_contextvars(process=f"engine-{boot.index}")
    manifests = [Manifest.from_json(text) for text in boot.manifests]
    if settings.executor.cpu_affinity:
        os.sched_setaffinity(0, settings.executor.cpu_affinity)
    try:
        workforce, dispatcher = _build(boot, settings, manifests)
    except (ModelUnusable, RepositoryError) as error:
        log.error("model cannot be served", error=str(error))
        control.send(sock, {"type": "failed", "error": str(error)})
        os._exit(EXIT_UNUSABLE)

    collector.settle()
    control.send(sock, {"type": "warm"})
    message = control.receive(sock)
    if message is None or message["type"] == "stop":
        os._exit(0)
    assert message["type"] == "attach", message

    engine = Engine(dispatcher, settings, manifests)
    engine.use_classes(message["classes"])
    threading.Thread(target=engine.obey, args=(sock,), daemon=True).start()
    resources.watch(settings, dispatcher.shrink_targets)
    others = [
        threading.Thread(target=_work, args=(instance, next_batch), daemon=True)
        for instance, next_batch in [
            *((instance, dispatcher.next_batch) for instance in workforce.instances[1:]),
            *((instance, partial(dispatcher.next_batch, reserved=True)) for instance in workforce.reserved),
            *((instance, dispatcher.next_spare_batch) for instance in workforce.spares),
        ]
    ]
    for thread in others:
        thread.start()
    control.send(sock, {"type": "ready"})
    # On the main thread: its heap is the one that malloc's thresholds keep whole.
    _work(workforce.instances[0], dispatcher.next_batch)
    for thread in others:
        thread.join()
    os._exit(0)


@dataclass(frozen=True, slots=True)
class Workforce:
    """The instances of an engine: for any work, for urgent work only, and without a core of their own."""

    instances: Sequence[Instance]
    reserved: Sequence[Instance]
    spares: Sequence[Instance]


class Engine:
    """What the supervisor can ask of a running engine."""

    def __init__(self, dispatcher: Dispatcher, settings: Settings, manifests: Sequence[Manifest]) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self._manifests = manifests

    def use_classes(self, classes: object) -> None:
        """Takes up other class settings; what runs is not touched."""
        self._settings = self._settings.with_classes(classes)
        self._dispatcher.replan([batch_plan(self._settings, manifest) for manifest in self._manifests])

    def obey(self, sock: socket.socket) -> None:
        """Follows the supervisor until it says stop or is gone."""
        while (message := control.receive(sock)) is not None:
            match message["type"]:
                case "discard":
                    done = {"type": "discarded", "frontend": message["frontend"]}
                    self._dispatcher.discard(message["frontend"], partial(control.send, sock, done))
                case "classes":
                    self.use_classes(message["classes"])
                case "stop":
                    self._dispatcher.stop()
                    return
                case other:
                    raise AssertionError(f"unknown control message {other}")
        os._exit(1)


def _build(boot: Boot, settings: Settings, manifests: Sequence[Manifest]) -> tuple[Workforce, Dispatcher]:
    clock = MonotonicClock()
    arena = Arena.attach(boot.arena_fd)
    sizes = engine_sizes(settings)
    device = DeviceSettings(device=sizes.device, threads=sizes.threads)
    runners: list[Runner] = []
    for manifest in manifests:
        version = manifest.latest
        runners.append(
            load_runner(manifest.format, read_verified(version), manifest.signature(version.version), device)
        )
    port = _ring.EnginePort(
        arena.native, boot.index, boot.engine_eventfds[boot.index], list(boot.frontend_eventfds)
    )
    plans = [batch_plan(settings, manifest) for manifest in manifests]
    latency = LearnedLatency()
    dispatcher = Dispatcher(
        port,
        plans,
        latency,
        clock,
        spin_limit_ns=sizes.spin_ns,
        instances=sizes.instances,
        early_refusal=settings.scheduler.early_refusal,
    )
    max_batch = max(plan.buckets[-1] for plan in plans)
    instances: list[Instance] = [
        CpuInstance(arena, dispatcher, runners, max_batch, clock, _log_failure)
        for _ in range(sizes.instances + sizes.reserved + sizes.spares)
    ]
    for model, plan in enumerate(plans):
        for instance in instances:
            measured = instance.warm_up(model, plan.buckets, WARM_UP_ROUNDS)
            latency.seed(model, measured)
        log.info(
            "model is warm",
            model=runners[model].signature.name,
            version=runners[model].signature.version,
            instances=sizes.instances,
            ms_by_bucket={bucket: round(ns / 1e6, 3) for bucket, ns in measured.items()},
        )
    dispatcher.warm()
    first_spare = sizes.instances + sizes.reserved
    return (
        Workforce(
            instances[: sizes.instances], instances[sizes.instances : first_spare], instances[first_spare:]
        ),
        dispatcher,
    )


def _work(instance: Instance, next_batch: Callable[[], Batch | None]) -> None:
    try:
        while (batch := next_batch()) is not None:
            instance.run(batch)
    except BaseException:
        # A bug: the batch it held would never end. Die, so that the supervisor ends every request.
        log.exception("instance failed")
        os._exit(EXIT_BUG)


def _log_failure(batch: Batch, error: Exception, extent: FailureExtent) -> None:
    # The last line: TorchScript puts its own trace above what the model raised.
    last_line = (str(error).strip().splitlines() or [""])[-1]
    log.error(
        "batch failed",
        batch=batch.number,
        model=batch.model,
        items=len(batch.slots),
        guilty=extent.guilty,
        undecided=extent.undecided,
        runs=extent.runs,
        error=f"{type(error).__name__}: {last_line}",
    )
