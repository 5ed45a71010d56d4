"""The engine process: loads the models, warms them up, and runs batches until told to stop."""

import os
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from scheduler import _ring
from scheduler.arena import Arena
from scheduler.clock import MonotonicClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.cpu import CpuInstance
from scheduler.executor.instance import Instance
from scheduler.executor.runner import DeviceSettings, ModelUnusable, Runner, load_runner
from scheduler.latency import WarmUpLatency
from server import collector, control
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
        instances, spares, dispatcher = _build(boot, settings, manifests)
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

    threading.Thread(target=_obey, args=(sock, dispatcher), daemon=True).start()
    others = [
        threading.Thread(target=_work, args=(instance, dispatcher.next_batch), daemon=True)
        for instance in instances[1:]
    ] + [
        threading.Thread(target=_work, args=(spare, dispatcher.next_spare_batch), daemon=True)
        for spare in spares
    ]
    for thread in others:
        thread.start()
    control.send(sock, {"type": "ready"})
    # On the main thread: its heap is the one that malloc's thresholds keep whole.
    _work(instances[0], dispatcher.next_batch)
    for thread in others:
        thread.join()
    os._exit(0)


def _build(
    boot: Boot, settings: Settings, manifests: Sequence[Manifest]
) -> tuple[list[Instance], list[Instance], Dispatcher]:
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
    latency = WarmUpLatency()
    dispatcher = Dispatcher(port, plans, latency, clock, spin_limit_ns=sizes.spin_ns)
    max_batch = max(plan.buckets[-1] for plan in plans)
    instances: list[Instance] = [
        CpuInstance(arena, dispatcher, runners, max_batch, clock, _log_failure)
        for _ in range(sizes.instances + sizes.spares)
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
            target_batch=plan.target_size(model, latency),
            ms_by_bucket={bucket: round(ns / 1e6, 3) for bucket, ns in measured.items()},
        )
    return instances[: sizes.instances], instances[sizes.instances :], dispatcher


def _work(instance: Instance, next_batch: Callable[[], Batch | None]) -> None:
    try:
        while (batch := next_batch()) is not None:
            instance.run(batch)
    except BaseException:
        # A bug: the batch it held would never end. Die, so that the supervisor ends every request.
        log.exception("instance failed")
        os._exit(EXIT_BUG)


def _obey(sock: socket.socket, dispatcher: Dispatcher) -> None:
    """Follows the supervisor until it says stop or is gone."""
    while (message := control.receive(sock)) is not None:
        match message["type"]:
            case "discard":
                done = {"type": "discarded", "frontend": message["frontend"]}
                dispatcher.discard(message["frontend"], partial(control.send, sock, done))
            case "stop":
                dispatcher.stop()
                return
            case other:
                raise AssertionError(f"unknown control message {other}")
    os._exit(1)


def _log_failure(batch: Batch, error: Exception) -> None:
    # The last line: TorchScript puts its own trace above what the model raised.
    last_line = (str(error).strip().splitlines() or [""])[-1]
    log.error(
        "batch failed",
        batch=batch.number,
        model=batch.model,
        items=len(batch.slots),
        error=f"{type(error).__name__}: {last_line}",
    )
