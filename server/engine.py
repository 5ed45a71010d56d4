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
from scheduler.clock import MonotonicClock, ThreadTimeClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.instance import Instance
from scheduler.executor.runner import DeviceLost, ModelUnusable
from scheduler.latency import LearnedLatency
from scheduler.policy import BatchPlan
from server import collector, considerate, control
from server.boot import Boot
from server.gpu import GpuMonitor
from server.idle import IdleCleanup
from server.lineup import Lineup
from server.repository import RepositoryError
from server.resources import Watch
from server.settings import Settings
from server.sizing import batch_plans, engine_sizes
from server.telemetry import logs
from server.workforce import Gpu, Workforce, Workplace, hire, warm_up

# Below the front ends, whose core a spare instance computes on, and not so far that they stop it while it
# holds Python's lock, which the other instances wait for.
SPARE_NICENESS = 5
EXIT_UNUSABLE = 3
EXIT_BUG = 70
EXIT_DEVICE_LOST = 71

_Parts = tuple[Workforce, Dispatcher, Sequence[BatchPlan]]

log = structlog.get_logger()


def run(boot: Boot, sock: socket.socket) -> None:
    """Never returns while the supervisor lives and wants it."""
    settings = Settings.model_validate_json(boot.settings)
    logs.configure(settings.telemetry.log_format, settings.telemetry.log_level)
    structlog.contextvars.bind_contextvars(process=f"engine-{boot.index}")
    lineup = Lineup.from_json(boot.lineup)
    if settings.executor.cpu_affinity:
        os.sched_setaffinity(0, settings.executor.cpu_affinity)
    arena = Arena.attach(boot.arena_fd)
    try:
        workforce, dispatcher, plans = considerate.done(
            partial(_build, boot, settings, lineup, arena), considerately=boot.considerate
        )
    except (ModelUnusable, RepositoryError) as error:
        log.error("model cannot be served", error=str(error))
        control.send(sock, {"type": "failed", "error": str(error)})
        os._exit(EXIT_UNUSABLE)
    except DeviceLost as error:
        _lost(str(error))

    control.send(sock, {"type": "warm"})
    message = control.receive(sock)
    if message is None or message["type"] == "stop":
        os._exit(0)
    assert message["type"] == "attach", message

    watch = _watch(
        settings, dispatcher, workforce.gpu, sock, lambda: arena.native.engine_stats(boot.index)["batches"]
    )
    engine = Engine(dispatcher, lineup, [plan.buckets for plan in plans], watch)
    engine.change(message)
    threading.Thread(target=engine.obey, args=(sock,), daemon=True).start()
    _work(workforce, dispatcher, lambda: control.send(sock, {"type": "ready"}))
    os._exit(0)


class Engine:
    """What the supervisor can ask of a running engine."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        lineup: Lineup,
        buckets: Sequence[tuple[int, ...]],
        watch: Watch,
    ) -> None:
        """`buckets`: by place, those that fit the device. `watch`: of host and device."""
        self._dispatcher = dispatcher
        self._lineup = lineup
        self._buckets = buckets
        self._watch = watch

    def change(self, message: control.Message) -> None:
        """Takes up what other settings say of how batches are formed; what runs is not touched."""
        settings = Settings.model_validate_json(message["settings"])
        logs.set_level(settings.telemetry.log_level)
        self._watch.change(settings)
        plans = [
            replace(plan, buckets=buckets)
            for plan, buckets in zip(
                batch_plans(settings, self._lineup, len(self._buckets)), self._buckets, strict=True
            )
        ]
        self._dispatcher.replan(plans, early_refusal=settings.scheduler.early_refusal)

    def obey(self, sock: socket.socket) -> None:
        """Follows the supervisor until it says stop or is gone."""
        while (message := control.receive(sock)) is not None:
            match message["type"]:
                case "discard":
                    done = {"type": "discarded", "frontend": message["frontend"]}
                    self._dispatcher.discard(message["frontend"], partial(control.send, sock, done))
                case "change":
                    self.change(message)
                    control.send(sock, {"type": "changed", "revision": message["revision"]})
                case "stop":
                    self._dispatcher.stop()
                    return
                case other:
                    raise AssertionError(f"unknown control message {other}")
        os._exit(1)


def _build(boot: Boot, settings: Settings, lineup: Lineup, arena: Arena) -> _Parts:
    clock = MonotonicClock()
    sizes = engine_sizes(settings, boot.device)
    port = _ring.EnginePort(
        arena.native,
        boot.index,
        boot.engine_eventfds[boot.index],
        list(boot.frontend_eventfds),
        sum(1 << place for place in lineup.places),
        _rows(lineup, arena.native.models),
    )
    plans = batch_plans(settings, lineup, arena.native.models)
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
    stopwatch = ThreadTimeClock() if boot.considerate and sizes.threads == 1 else clock
    workforce = hire(Workplace(settings, sizes, lineup, arena, dispatcher, clock, stopwatch, max_batch))
    plans = warm_up(workforce, lineup, plans, latency)
    dispatcher.warm(plans)
    collector.settle()
    return workforce, dispatcher, plans


def _rows(lineup: Lineup, places: int) -> list[int]:
    """By place, where its batches are counted; those that are not used count nothing."""
    rows = list(range(places))
    for seat in lineup.seats:
        rows[seat.place] = lineup.row(seat.manifest.name)
    return rows


def _watch(
    settings: Settings,
    dispatcher: Dispatcher,
    gpu: Gpu | None,
    sock: socket.socket,
    batches: Callable[[], int],
) -> Watch:
    """Starts watching host and device; the device's readings go to the supervisor."""
    if gpu is None:
        return Watch(settings, dispatcher.shrink_targets)
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
    return Watch(settings, dispatcher.shrink_targets, monitor, gpu.cached_bytes, tasks)


def _work(workforce: Workforce, dispatcher: Dispatcher, on_ready: Callable[[], None]) -> None:
    """Runs batches until told to stop. `on_ready` is called once all instances can take some."""
    settled = threading.Barrier(len(workforce.everyone))
    others = [
        threading.Thread(target=_run, args=(instance, next_batch, settled), daemon=True)
        for instance, next_batch in [
            *((instance, dispatcher.next_batch) for instance in workforce.instances[1:]),
            *((instance, partial(dispatcher.next_batch, reserved=True)) for instance in workforce.reserved),
        ]
    ] + [
        threading.Thread(target=_run_beside, args=(spare, dispatcher.next_spare_batch, settled), daemon=True)
        for spare in workforce.spares
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


def _run_beside(spare: Instance, next_batch: Callable[[], Batch | None], settled: threading.Barrier) -> None:
    """Runs batches with what front ends leave of a core."""
    # On Linux of this thread alone.
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + SPARE_NICENESS)
    _run(spare, next_batch, settled)


def _lost(reason: str) -> NoReturn:
    """Ends the process: nothing computes here any more. The supervisor ends what it holds and tries again."""
    log.error("device is lost", reason=reason)
    os._exit(EXIT_DEVICE_LOST)
