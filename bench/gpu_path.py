"""Our own path from slot to slot, without gRPC: feeder processes, lanes, a dispatcher, instances on threads.

A `Rig` is what stays: an arena in shared memory, which a GPU has registered for the life of the process, and
the feeders. A `Crew` is what computes on it for a while: a dispatcher and warm instances.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from bench.gpu_feeder import Fed, Load
from bench.report import quantile
from scheduler import _ring
from scheduler.arena import Arena, Dimensions
from scheduler.clock import MonotonicClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.bisection import FailureExtent
from scheduler.executor.instance import Instance
from scheduler.latency import LearnedLatency
from scheduler.policy import BatchPlan

# As a server does.
WARM_UP_ROUNDS = 8
SPIN_NS = 2_000_000
# A batch goes when it is full, and not before.
FOREVER_NS = 10**15
# Between the end of a batch for its feeder and for its thread.
SETTLE_S = 5.0
# For a feeder, or an instance, to end once it is told to.
STOP_S = 10.0


class CrewFailed(Exception):
    """An instance has ended, or nothing came back from it."""


class Run(NamedTuple):
    """One batch."""

    dispatched_ns: int
    done_ns: int
    rows: int


@dataclass(frozen=True)
class Timing:
    """Batches of one size.

    Attributes:
        p50_us, p99_us, max_us: from dispatch until the slots are handed back.
        rows_per_s: of all streams together.
    """

    batches: int
    p50_us: float
    p99_us: float
    max_us: float
    rows_per_s: float


class Rig:
    """An arena and its feeders."""

    def __init__(self, dimensions: Dimensions) -> None:
        self.arena, self._fd = Arena.create(dimensions)
        self.dimensions = dimensions
        frontends = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(dimensions.frontends)]
        self._eventfds = [os.eventfd(0, os.EFD_NONBLOCK), *frontends]
        self.port = _ring.EnginePort(self.arena.native, 0, self._eventfds[0], frontends)
        self._processes = [self._spawn(index, eventfd) for index, eventfd in enumerate(frontends)]

    def __enter__(self) -> Self:
        for process in self._processes:
            self._answer(process)  # it has written its rows
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):
                assert process.stdin is not None
                process.stdin.close()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        # The arena itself stays: a device may have it registered.
        for fd in (self._fd, *self._eventfds):
            os.close(fd)

    def abandon(self) -> None:
        """Ends the feeders, for what they wait for will not come."""
        for process in self._processes:
            process.kill()

    def feed(self, *loads: Load) -> list[Fed]:
        """Lets one feeder run each of these, at the same time; waits for all of them. Raises CrewFailed."""
        assert len(loads) <= len(self._processes), (len(loads), len(self._processes))
        feeding = self._processes[: len(loads)]
        for process, load in zip(feeding, loads, strict=True):
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended, and answers so
                process.stdin.write(json.dumps(asdict(load)) + "\n")
                process.stdin.flush()
        return [Fed(**self._answer(process)) for process in feeding]

    def _spawn(self, index: int, eventfd: int) -> "subprocess.Popen[str]":
        cores = len(os.sched_getaffinity(0))
        spin_us = 500 if cores > 2 * self.dimensions.frontends + 2 else 0
        numbers = (self._fd, index, eventfd, self._eventfds[0], spin_us)
        return subprocess.Popen(
            [sys.executable, "-m", "bench.gpu_feeder", *map(str, numbers)],
            pass_fds=(self._fd, eventfd, self._eventfds[0]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def _answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"stalled": "a feeder has ended"}
        if "stalled" in answer:
            raise CrewFailed(answer["stalled"])
        return answer


@dataclass(frozen=True)
class Hands:
    """Instances that are not warm yet: for any work, and for urgent work only."""

    anyone: Sequence[Instance]
    reserved: Sequence[Instance] = ()


# Builds instances for an arena; told of batches that raised.
Hire = Callable[[Arena, Dispatcher, Callable[[Batch, Exception, FailureExtent], None]], Hands]


class Crew:
    """Instances of one engine, warm, each on a thread of its own from when it is asked for."""

    def __init__(self, rig: Rig, hire: Hire, models: int = 1) -> None:
        self._rig = rig
        self._latency = LearnedLatency()
        self._models = models
        spare_cores = len(os.sched_getaffinity(0)) > 4
        self.dispatcher = Dispatcher(
            rig.port,
            [_plan((1,), wait_ns=0)] * models,
            self._latency,
            MonotonicClock(),
            spin_limit_ns=SPIN_NS if spare_cores else 0,
            early_refusal=False,
        )
        self.failures: list[str] = []
        self._hands = hire(rig.arena, self.dispatcher, self._note_failure)
        self._threads: list[threading.Thread] = []
        self._started = 0  # of those for any work
        self._runs: list[Run] = []
        self._noting = True
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.dispatcher.stop()
        for thread in self._threads:
            thread.join(STOP_S)

    def warm_up(self, *buckets: Sequence[int]) -> dict[int, int]:
        """Runs these sizes of each model on every instance; nanoseconds by size of the first model.

        Of sizes that do not fit the device there is none in the answer.
        """
        fits: dict[int, int] = {}
        for model, sizes in enumerate(buckets):
            for hand in (*self._hands.anyone, *self._hands.reserved):
                measured = hand.warm_up(model, sizes, WARM_UP_ROUNDS)
            self._latency.seed(model, measured)
            if model == 0:
                fits = measured
        return fits

    def use(self, *plans: BatchPlan) -> None:
        """Forms batches by these plans, one per model. Only while nothing is queued."""
        self.dispatcher.warm(plans)

    def use_exactly(self, size: int) -> None:
        """Forms batches of exactly so many rows."""
        self.use(*[_plan((size,), wait_ns=FOREVER_NS)] * self._models)

    def start(self, anyone: int, reserved: int = 0) -> None:
        """Lets so many instances work; those that do already are among them."""
        for instance in self._hands.anyone[self._started : anyone]:
            self._work(instance, self.dispatcher.next_batch)
        self._started = max(self._started, anyone)
        for instance in self._hands.reserved[:reserved]:
            self._work(instance, partial(self.dispatcher.next_batch, reserved=True))

    def feed(self, *loads: Load) -> tuple[list[Fed], list[Run]]:
        """Runs these loads; the batches that came of them, unless a load is not to be noted.

        Raises:
            CrewFailed: an instance ended, or an item never did.
        """
        self._runs, self._noting = [], all(load.note_latency for load in loads)
        try:
            fed = self._rig.feed(*loads)
        except CrewFailed as error:
            raise CrewFailed(f"{error}; {self._error!r}") from self._error
        if not self._noting:
            return fed, []
        # A feeder hears of its last batch a moment before the thread that ran it notes it down.
        wanted = sum(load.rows * _ends(each) for load, each in zip(loads, fed, strict=True))
        until = time.monotonic() + SETTLE_S
        while sum(run.rows for run in self._runs) < wanted and time.monotonic() < until:
            time.sleep(0.001)
        return fed, self._runs

    def batches(self) -> int:
        """How many the engines of this arena have completed in all."""
        return int(self._rig.arena.native.engine_stats(0)["batches"])

    def measure(self, size: int, streams: int, seconds: float, settle_s: float) -> Timing:
        """Batches of this size on so many streams, with as many again queued behind them."""
        self.start(streams)
        self.use_exactly(size)
        feeders = min(self._rig.dimensions.frontends, 2 * streams)
        outstanding = 2 * streams // feeders
        load = Load(seconds + settle_s, rows=size, outstanding=outstanding)
        _, runs = self.feed(*[load] * feeders)
        return timing(runs, settle_s)

    def _work(self, instance: Instance, next_batch: Callable[[], Batch | None]) -> None:
        thread = threading.Thread(target=self._run, args=(instance, next_batch), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self, instance: Instance, next_batch: Callable[[], Batch | None]) -> None:
        clock = MonotonicClock()
        try:
            instance.settle()
            while (batch := next_batch()) is not None:
                instance.run(batch)
                if self._noting:
                    self._runs.append(Run(batch.dispatched_ns, clock.now_ns(), len(batch.slots)))
        except BaseException as error:  # of any kind: what it held will never come back
            self._error = error
            self._rig.abandon()

    def _note_failure(self, batch: Batch, error: Exception, extent: FailureExtent) -> None:
        self.failures.append(f"{extent.guilty} of {len(batch.slots)}: {type(error).__name__}")


def timing(runs: Sequence[Run], settle_s: float) -> Timing:
    """Of the batches that were dispatched after the settling time."""
    if not runs:
        return Timing(0, *[float("nan")] * 4)
    since_ns = min(run.dispatched_ns for run in runs) + int(settle_s * 1e9)
    counted = [run for run in runs if run.dispatched_ns >= since_ns]
    us = [(run.done_ns - run.dispatched_ns) / 1e3 for run in counted]
    took_s = (max((run.done_ns for run in counted), default=since_ns) - since_ns) / 1e9
    return Timing(
        len(counted),
        quantile(us, 0.5),
        quantile(us, 0.99),
        max(us, default=float("nan")),
        sum(run.rows for run in counted) / took_s if took_s > 0 else float("nan"),
    )


def sizes_up_to(largest: int) -> tuple[int, ...]:
    """The powers of two from 1."""
    return tuple(1 << power for power in range(largest.bit_length()))


@contextlib.contextmanager
def frozen_garbage() -> Iterator[None]:
    """Takes what is loaded out of the collector's sight: each capture of a graph collects before it."""
    import gc

    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def flat(outcomes: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Their sum."""
    total: dict[str, int] = {}
    for each in outcomes:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return total


def _plan(buckets: tuple[int, ...], *, wait_ns: int) -> BatchPlan:
    return BatchPlan(buckets, (wait_ns,) * _ring.CLASSES, None)


def _ends(fed: Fed) -> int:
    return int(np.sum([*fed.outcomes.values(), *fed.poisoned.values()], dtype=np.int64))
