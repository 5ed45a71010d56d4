"""Forms batches for the instances of one engine.

Every instance is a thread that asks for work, runs it and reports back:

    while (batch := dispatcher.next_batch()) is not None:
        instance.run(batch)

One of the idle threads, the leader, holds the turn: it looks at the lanes, asks the policy and sleeps at
the gate. When there is a batch it gives the turn up and runs the batch itself, so a lone instance
needs no hand-over between threads at all, and with several the next idle one leads.

A spare instance has no core of its own: it computes on those of the front ends. It never leads; whoever
takes a batch and leaves enough behind invites it to take one too.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduler import _ring
from scheduler.clock import Clock
from scheduler.latency import LatencyModel
from scheduler.policy import BatchPlan, ClassBacklog, WaitUntil, decide, has_spare_work


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Items that run together. Its slots are the engine's until `Dispatcher.complete`.

    Attributes:
        slots: uint32 `[n]`, in the order in which they were taken.
        bucket: the size to run, at least n.
    """

    number: int
    model: int
    slots: npt.NDArray[np.uint32]
    bucket: int
    dispatched_ns: int


class SpinBudget:
    """How long it pays to spin for the next push before sleeping.

    A sleeping core wakes late and computes cold, a spinning one is taken from somebody else. So spin
    only while waits have been short lately: up to twice their running mean, and not at all when that
    is more than the limit.
    """

    WEIGHT = 1 / 8

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns
        self._mean_wait_ns = math.inf

    def spin_ns(self) -> int:
        """Nanoseconds to spin for now; 0 to sleep at once."""
        wanted = 2 * self._mean_wait_ns
        return int(wanted) if wanted <= self._limit_ns else 0

    def waited(self, ns: int) -> None:
        """Learns how long a wait for work was. One long pause counts for no more than ten limits."""
        capped = min(ns, 10 * self._limit_ns)
        if math.isinf(self._mean_wait_ns):
            self._mean_wait_ns = capped
        else:
            self._mean_wait_ns += (capped - self._mean_wait_ns) * self.WEIGHT


class Dispatcher:
    """Hands batches to the instances of one engine, most urgent items first."""

    def __init__(
        self,
        port: _ring.EnginePort,
        plans: Sequence[BatchPlan],
        latency: LatencyModel,
        clock: Clock,
        spin_limit_ns: int = 0,
    ) -> None:
        self._port = port
        self._plans = plans
        self._latency = latency
        self._clock = clock
        self._spin = SpinBudget(spin_limit_ns)
        self._turn = threading.Lock()
        self._invited = threading.Event()
        self._requests: deque[Callable[[], None]] = deque()
        # Which batches run, and who waits for their end: touched by every instance thread.
        self._ledger = threading.Lock()
        self._in_flight: dict[int, Batch] = {}
        self._departures: list[tuple[set[int], Callable[[], None]]] = []
        self._batches = 0
        self._stopping = False

    def next_batch(self) -> Batch | None:
        """Blocks until there is something to run; None once stopped. Called by any instance thread."""
        with self._turn:
            while not self._stopping:
                while self._requests:
                    self._requests.popleft()()
                step = self.poll()
                if isinstance(step, Batch):
                    if has_spare_work(self._backlog(), self._plans, self._latency):
                        self._invited.set()
                    return step
                self._wait(step)
        return None

    def next_spare_batch(self) -> Batch | None:
        """Blocks until invited and there is something to run; None once stopped. By a spare instance."""
        while True:
            self._invited.wait()
            with self._turn:
                self._invited.clear()  # before the look at _stopping: stop() sets both, that one first
                if self._stopping:
                    return None
                step = self.poll()
                if isinstance(step, Batch):
                    return step

    def poll(self) -> Batch | WaitUntil:
        """One decision, without waiting. Only by the holder of the turn, or in a test."""
        now_ns = self._clock.now_ns()
        backlog = self._backlog()
        while backlog:
            step = decide(backlog, self._plans, self._latency, now_ns)
            if isinstance(step, WaitUntil):
                return step
            if batch := self._take(step.model, step.count, now_ns):
                return batch
            # All that was due had been cancelled or had expired, and has been answered so.
            backlog = self._backlog()
        return WaitUntil(None)

    def complete(
        self,
        batch: Batch,
        outcomes: npt.NDArray[np.uint8],
        compute_start_ns: int,
        compute_end_ns: int,
    ) -> None:
        """Hands a batch's slots back to their front ends. Called once per batch, by any thread.

        Args:
            outcomes: uint8 `[n]`, an `Outcome` per slot.
        """
        # In flight until its slots are back: a partition must not be reset between the two.
        if batch.number not in self._in_flight:
            raise KeyError(f"batch {batch.number} is not in flight: completed twice?")
        self._port.complete(
            batch.slots,
            outcomes,
            batch.dispatched_ns,
            compute_start_ns,
            compute_end_ns,
            batch.number,
            batch.bucket,
        )
        with self._ledger:
            del self._in_flight[batch.number]
            for waiting_for, _ in self._departures:
                waiting_for.discard(batch.number)
            finished = [done for waiting_for, done in self._departures if not waiting_for]
            self._departures = [departure for departure in self._departures if departure[0]]
        for done in finished:
            done()

    def discard(self, frontend: int, done: Callable[[], None]) -> None:
        """Drops what a dead front end queued; `done()` once no batch holds a slot of it either.

        From any thread. `done` runs on an instance thread and must not block.
        """
        self._requests.append(lambda: self._discard(frontend, done))
        self._port.wake()

    def stop(self) -> None:
        """Makes every `next_batch` return None. Batches that run are completed as usual."""
        self._stopping = True
        self._invited.set()
        self._port.wake()

    def _backlog(self) -> list[ClassBacklog]:
        return [ClassBacklog(*waiting) for waiting in self._port.look()]

    def _take(self, model: int, count: int, now_ns: int) -> Batch | None:
        slots = np.empty(count, dtype=np.uint32)
        # 0 expected: what can no longer start before its deadline expires here. Refusing what could
        # start but not finish is the learned latency model's business.
        taken = self._port.take(model, now_ns, 0, slots)
        if taken == 0:
            return None
        self._batches += 1
        batch = Batch(self._batches, model, slots[:taken], self._plans[model].bucket_for(taken), now_ns)
        with self._ledger:
            self._in_flight[batch.number] = batch
        return batch

    def _wait(self, until: WaitUntil) -> None:
        started_ns = self._clock.now_ns()
        if until.at_ns is None:
            self._port.wait(_ring.NO_DEADLINE, self._spin.spin_ns())
            self._spin.waited(self._clock.now_ns() - started_ns)
        else:
            self._port.wait(max(0, until.at_ns - started_ns), 0)

    def _discard(self, frontend: int, done: Callable[[], None]) -> None:
        self._port.discard(frontend)
        with self._ledger:
            running = set(self._in_flight)
            if running:
                self._departures.append((running, done))
        if not running:
            done()
