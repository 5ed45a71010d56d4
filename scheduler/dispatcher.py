"""Forms batches for the instances of one engine.

Every instance is a thread that asks for work, runs it and reports back:

    while (batch := dispatcher.next_batch()) is not None:
        instance.run(batch)

One of the idle threads, the leader, holds the turn: it looks at the lanes, asks the policy and sleeps at
the gate. When there is a batch it gives the turn up and runs the batch itself, so a lone instance
needs no hand-over between threads at all, and with several the next idle one leads.

A reserved instance takes urgent items only, so that one is always free or soon free for them. A spare
instance has no core of its own: it computes on those of the front ends. It never leads; whoever takes a
batch and leaves enough behind invites it to take one too.

What a batch took teaches the latency model; what the model predicts is published to the front ends, which
refuse by it what cannot be done in time.
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
from scheduler.latency import LearnedLatency
from scheduler.policy import BatchPlan, ClassBacklog, Dispatch, WaitUntil, decide, has_spare_work
from scheduler.target import TargetSizes
from scheduler.turn import Turn

# How often front ends are told what is predicted. Within it a prediction hardly moves.
PUBLISH_EVERY_NS = 20_000_000
_ALL_CLASSES = (1 << _ring.CLASSES) - 1


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
    reserved: bool = False  # runs on an instance for urgent work only
    spare: bool = False  # runs on a core that belongs to front ends: it says nothing about latency


class SpinBudget:
    """How long it pays to spin for the next push before sleeping.

    A sleeping core wakes late and computes cold, a spinning one is taken from somebody else. So spin only
    while waits have been short lately, twice their running mean no more than the limit. Then up to the limit:
    the few long waits among them are the ones whose requests come last (docs/decisions/0020).
    """

    WEIGHT = 1 / 8

    def __init__(self, limit_ns: int) -> None:
        self._limit_ns = limit_ns
        self._mean_wait_ns = math.inf

    def spin_ns(self) -> int:
        """Nanoseconds to spin for now; 0 to sleep at once."""
        return self._limit_ns if 2 * self._mean_wait_ns <= self._limit_ns else 0

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
        latency: LearnedLatency,
        clock: Clock,
        *,
        spin_limit_ns: int = 0,
        instances: int = 1,
        early_refusal: bool = True,
    ) -> None:
        """Args:
        instances: those that take any work, without reserved and spare ones.
        early_refusal: drop what would be done too late, and not only what is too late already.
        """
        self._port = port
        self._plans = plans
        self._latency = latency
        self._clock = clock
        self._spin = SpinBudget(spin_limit_ns)
        self._instances = instances
        self._early_refusal = early_refusal
        self.targets = TargetSizes(plans, latency)
        self._turn = Turn(port.wake)
        self._invited = threading.Event()
        self._requests: deque[Callable[[], None]] = deque()
        # Which batches run, what they teach, and who waits for their end: touched by every instance thread.
        self._ledger = threading.Lock()
        self._in_flight: dict[int, Batch] = {}
        self._departures: list[tuple[set[int], Callable[[], None]]] = []
        self._published_ns = [0] * len(plans)
        self._batches = 0
        self._stopping = False

    def next_batch(self, *, reserved: bool = False) -> Batch | None:
        """Blocks until there is something to run; None once stopped. Called by any instance thread."""
        while not self._stopping:
            self._turn.take(reserved=reserved)
            try:
                batch = self._lead(reserved)
            finally:
                self._turn.pass_on()
            if batch is not None:
                return batch
        return None

    def next_spare_batch(self) -> Batch | None:
        """Blocks until invited and there is something to run; None once stopped. By a spare instance."""
        while True:
            self._invited.wait()
            self._turn.take(reserved=False)
            try:
                self._invited.clear()  # before the look at _stopping: stop() sets both, that one first
                if self._stopping:
                    return None
                step = self.poll(spare=True)
                if isinstance(step, Batch):
                    return step
            finally:
                self._turn.pass_on()

    def poll(self, *, reserved: bool = False, spare: bool = False) -> Batch | WaitUntil:
        """One decision, without waiting. Only by the holder of the turn, or in a test."""
        while self._requests:
            self._requests.popleft()()
        now_ns = self._clock.now_ns()
        while True:
            backlog = [ClassBacklog(*waiting) for waiting in self._port.look()]
            if reserved:
                backlog = [w for w in backlog if self._plans[w.model].urgent[w.class_index]]
            step = decide(backlog, self._plans, self.targets.sizes, self._latency, now_ns)
            if isinstance(step, WaitUntil):
                return step
            batch = self._take(step, now_ns, reserved=reserved, spare=spare)
            if batch is not None:
                self._invite(backlog, batch)
                return batch
            # All that was due had been cancelled or had expired, and has been answered so.

    def complete(
        self,
        batch: Batch,
        outcomes: npt.NDArray[np.uint8],
        compute_start_ns: int,
        compute_end_ns: int,
        *,
        in_parts: bool = False,
    ) -> None:
        """Hands a batch's slots back to their front ends. Called once per batch, by any thread.

        Args:
            outcomes: uint8 `[n]`, an `Outcome` per slot.
            in_parts: it raised and was run again in parts, which says nothing about how long one takes.
        """
        # In flight until its slots are back: a partition must not be reset between the two.
        if batch.number not in self._in_flight:
            raise KeyError(f"batch {batch.number} is not in flight: completed twice?")
        # Before anybody is answered: whoever looks once he is finds it counted.
        self._port.count_batch(
            batch.model, len(batch.slots), batch.bucket, compute_end_ns - batch.dispatched_ns
        )
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
            self._tell_when_free()
            if not batch.spare and not in_parts:
                self._learn(batch, compute_end_ns)
            for waiting_for, _ in self._departures:
                waiting_for.discard(batch.number)
            finished = [done for waiting_for, done in self._departures if not waiting_for]
            self._departures = [departure for departure in self._departures if departure[0]]
        for done in finished:
            done()

    def warm(self, plans: Sequence[BatchPlan] | None = None) -> None:
        """Takes up what warm-up has measured. After `latency` is seeded, before the first batch.

        `plans`: others than those until now, where not every bucket fits the device.
        """
        if plans is not None:
            self._plans = plans
            self.targets = TargetSizes(plans, self._latency)
        self.targets.restart()
        for model in range(len(self._plans)):
            self._publish(model, self._clock.now_ns())

    def replan(self, plans: Sequence[BatchPlan], *, early_refusal: bool) -> None:
        """Uses other plans, of the same buckets, from the next decision on. From any thread."""
        self._requests.append(lambda: self._replan(plans, early_refusal))
        self._port.wake()

    def shrink_targets(self, steps: int) -> None:
        """Pressure on host or device: adaptive targets are this many buckets smaller. From any thread."""
        self._requests.append(lambda: self._shrink(steps))
        self._port.wake()

    def limit_batches(self, model: int, largest: int | None) -> None:
        """No batch of this model is larger from now on; None: no limit any more. From any thread."""
        self._requests.append(lambda: self._limit(model, largest))
        self._port.wake()

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

    def _lead(self, reserved: bool) -> Batch | None:
        """Waits for a batch; None when stopped, or when the turn should be passed on."""
        while not self._stopping:
            step = self.poll(reserved=reserved)
            if isinstance(step, Batch):
                return step
            if reserved and self._turn.wanted:
                return None
            self._wait(step, may_spin=not reserved)
        return None

    def _take(self, step: Dispatch, now_ns: int, *, reserved: bool, spare: bool) -> Batch | None:
        model, count = step.model, step.count
        plan = self._plans[model]
        slots = np.empty(count, dtype=np.uint32)
        least_ns = 0
        if self._early_refusal:
            least_ns = self._latency.least_ns(model, plan.bucket_for(count), now_ns)
        classes = _mask(plan.urgent) if reserved else _ALL_CLASSES
        taken = self._port.take(model, now_ns, least_ns, slots, classes)
        if taken == 0:
            return None
        self._batches += 1
        bucket = plan.bucket_for(taken)
        batch = Batch(self._batches, model, slots[:taken], bucket, now_ns, reserved, spare)
        with self._ledger:
            self._in_flight[batch.number] = batch
            self._tell_when_free()
        return batch

    def _invite(self, backlog: Sequence[ClassBacklog], batch: Batch) -> None:
        left = [0] * len(self._plans)
        for waiting in backlog:
            left[waiting.model] += waiting.depth
        left[batch.model] -= len(batch.slots)
        if not batch.spare and has_spare_work(left, self.targets.sizes):
            self._invited.set()

    def _wait(self, until: WaitUntil, *, may_spin: bool) -> None:
        started_ns = self._clock.now_ns()
        if until.at_ns is None:
            self._port.wait(_ring.NO_DEADLINE, self._spin.spin_ns() if may_spin else 0)
            if may_spin:
                self._spin.waited(self._clock.now_ns() - started_ns)
        else:
            self._port.wait(max(0, until.at_ns - started_ns), 0)

    def _tell_when_free(self) -> None:
        """Publishes what runs, and when the next instance is expected to be free. Holds the ledger."""
        self._port.publish_in_flight(len(self._in_flight))
        ends = [
            batch.dispatched_ns + self._latency.predict_ns(batch.model, batch.bucket)
            for batch in self._in_flight.values()
            if not batch.spare and not batch.reserved
        ]
        self._port.publish_free_at(min(ends) if len(ends) >= self._instances else 0)

    def _learn(self, batch: Batch, now_ns: int) -> None:
        """Holds the ledger."""
        model = batch.model
        self._latency.observe(model, batch.bucket, now_ns - batch.dispatched_ns, now_ns)
        self.targets.update(model)
        if now_ns - self._published_ns[model] >= PUBLISH_EVERY_NS:
            self._publish(model, now_ns)

    def _publish(self, model: int, now_ns: int) -> None:
        self._published_ns[model] = now_ns
        target = self.targets.sizes[model]
        table = self._latency.table(model)
        self._port.publish_forecast(
            model,
            target,
            self._latency.predict_ns(model, target) // (target * self._instances),
            [row.bucket for row in table],
            [row.median_ns for row in table],
            [row.high_ns for row in table],
            [min(row.median_ns, row.seed_ns) for row in table],
        )

    def _shrink(self, steps: int) -> None:
        with self._ledger:  # a completion may be updating them
            self.targets.shrink(steps)

    def _limit(self, model: int, largest: int | None) -> None:
        with self._ledger:
            self.targets.limit(model, largest)

    def _replan(self, plans: Sequence[BatchPlan], early_refusal: bool) -> None:
        self._plans = plans
        self._early_refusal = early_refusal
        with self._ledger:
            self.targets.replan(plans)

    def _discard(self, frontend: int, done: Callable[[], None]) -> None:
        self._port.discard(frontend)
        with self._ledger:
            running = set(self._in_flight)
            if running:
                self._departures.append((running, done))
        if not running:
            done()


def _mask(classes: Sequence[bool]) -> int:
    return sum(1 << index for index, member in enumerate(classes) if member)
