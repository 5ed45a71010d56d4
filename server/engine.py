"""The engine process: loads the models, warms them up, and runs batches until told to stop."""

import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NoReturn

import structlog

from scheduler import _ring
from scheduler.arena import Arena
from scheduler.clock import MonotonicClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.instance import Instance
from scheduler.executor.runner import DeviceLost, ModelUnusable
from scheduler.latency import LearnedLatency
from scheduler.policy import BatchPlan
from server import collector, control, resources
from server.boot import Boot
from server.gpu import GpuMonitor
from server.idle import IdleCleanup
from server.repository import Manifest, RepositoryError
from server.settings import Settings
from server.sizing import batch_plan, engine_sizes
from server.telemetry import logs
from server.workforce import Gpu, Workforce, Workplace, hire, warm_up

EXIT_UNUSABLE = 3
EXIT_BUG = 70
EXIT_DEVICE_LOST = 71

log = structlog.get_logger()


def run(boot: Boot, sock: socket.socket) -> None:
    """Never returns while the supervisor lives and wants it."""
    settings = Settings.model_validate_json(boot.settings)
    logs.configure(settings.telemetry.log_format, settings.telemetry.log_level)
    structlog.contextvars.bind_contextvars(process=f"engine-{boot.index}")
    manifests = [Manifest.from_json(text) for text in boot.manifests]
    if settings.executor.cpu_affinity:
        os.sched_setaffinity(0, settings.executor.cpu_affinity)
    arena = Arena.attach(boot.arena_fd)
    try:
        workforce, dispatcher, plans = _build(boot, settings, manifests, arena)
    except (ModelUnusable, RepositoryError) as error:
        log.error("model cannot be served", error=str(error))
        control.send(sock, {"type": "failed", "error": str(error)})
        os._exit(EXIT_UNUSABLE)
    except DeviceLost as error:
        _lost(str(error))

    collector.settle()
    control.send(sock, {"type": "warm"})
    message = control.receive(sock)
    if message is None or message["type"] == "stop":
        os._exit(0)
    assert message["type"] == "attach", message

    engine = Engine(dispatcher, settings, manifests, [plan.buckets for plan in plans])
    engine.use_classes(message["classes"])
    threading.Thread(target=engine.obey, args=(sock,), daemon=True).start()
    _watch(
        settings, dispatcher, workforce.gpu, sock, lambda: arena.native.engine_stats(boot.index)["batches"]
    )
    _work(workforce, dispatcher, lambda: control.send(sock, {"type": "ready"}))
    os._exit(0)


class Engine:
    """What the supervisor can ask of a running engine."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        settings: Settings,
        manifests: Sequence[Manifest],
        buckets: Sequence[tuple[int, ...]],
    ) -> None:
        """`buckets`: by model, those that fit the device."""
        self._dispatcher = dispatcher
        self._settings = settings
        self._manifests = manifests
        self._buckets = buckets

    def use_classes(self, classes: object) -> None:
        """Takes up other class settings; what runs is not touched."""
        self._settings = self._settings.with_classes(classes)
        self._dispatcher.replan(
            [
                replace(batch_plan(self._settings, manifest), buckets=buckets)
                for manifest, buckets in zip(self._manifests, self._buckets, strict=True)
            ]
        )

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


def _build(
    boot: Boot, settings: Settings, manifests: Sequence[Manifest], arena: Arena
) -> tuple[Workforce, Dispatcher, Sequence[BatchPlan]]:
    clock = MonotonicClock()
    sizes = engine_sizes(settings, boot.device)
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
    workforce = hire(Workplace(settings, sizes, manifests, arena, dispatcher, clock, max_batch))
    plans = warm_up(workforce, manifests, plans, latency)
    dispatcher.warm(plans)
    return workforce, dispatcher, plans


def _watch(
    settings: Settings,
    dispatcher: Dispatcher,
    gpu: Gpu | None,
    sock: socket.socket,
    batches: Callable[[], int],
) -> None:
    """Starts watching host and device; the device's readings go to the supervisor."""
    if gpu is None:
        resources.watch(settings, dispatcher.shrink_targets)
        return
    monitor = GpuMonitor(
        gpu.uuid,
        on_lost=_lost,
        on_drain=lambda reason: None,  # it is in the log; who resets a GPU moves the load away first
        on_readings=lambda readings: control.send(sock, {"type": "device", "readings": readings}),
    )
    monitor.start()
    clock = MonotonicClock()
    idle = IdleCleanup(batches, gpu.release, clock)
    tasks = [idle.tick, lambda: gpu.limits.recover(clock.now_ns())]
    resources.watch(settings, dispatcher.shrink_targets, monitor, gpu.cached_bytes, tasks)


def _work(workforce: Workforce, dispatcher: Dispatcher, on_ready: Callable[[], None]) -> None:
    """Runs batches until told to stop. `on_ready` is called once all instances can take some."""
    settled = threading.Barrier(len(workforce.everyone))
    others = [
        threading.Thread(target=_run, args=(instance, next_batch, settled), daemon=True)
        for instance, next_batch in [
            *((instance, dispatcher.next_batch) for instance in workforce.instances[1:]),
            *((instance, partial(dispatcher.next_batch, reserved=True)) for instance in workforce.reserved),
            *((instance, dispatcher.next_spare_batch) for instance in workforce.spares),
        ]
    ]
    for thread in others:
        thread.start()
    # On the main thread: its heap is the one that malloc's thresholds keep whole.
    _run(workforce.instances[0], dispatcher.next_batch, settled, on_ready)
    for thread in others:
        thread.join()


def _run(
    instance: Instance,
    next_batch: Callable[[], Batch | None],
    settled: threading.Barrier,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    try:
        instance.settle()
        settled.wait()
        on_ready()
        while (batch := next_batch()) is not None:
            instance.run(batch)
    except DeviceLost as error:
        _lost(str(error))
    except BaseException:
        # A bug: the batch it held would never end. Die, so that the supervisor ends every request.
        log.exception("instance failed")
        os._exit(EXIT_BUG)


def _lost(reason: str) -> NoReturn:
    """Ends the process: nothing computes here any more. The supervisor ends what it holds and tries again."""
    log.error("device is lost", reason=reason)
    os._exit(EXIT_DEVICE_LOST)
