"""An engine process in this thread, on a virtual clock, held against a plain model.

Real are the dispatcher and the CPU instances. `CheckedPort` compares every take and completion with the
model, `Engine` every call of a runner.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from scheduler import _ring
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.executor.bisection import FailureExtent
from scheduler.executor.cpu import CpuInstance
from scheduler.executor.fake import FakeRunner
from scheduler.executor.runner import Array, DeviceLost
from scheduler.latency import LearnedLatency
from scheduler.partition import Outcome
from scheduler.policy import BatchPlan
from scheduler.priority import ClassLimits, urgent_classes
from tests.scheduler.model_world import ENGINE, QUANTUM_NS, SIGNATURE, TICK, ModelWorld
from tests.scheduler.plain_model import ALL_CLASSES, MODELS, Fault, Row, Running

BUCKETS = ((1, 2, 4, 8), (1, 3, 6))  # by model
BUDGETS_NS = (None, 9 * TICK)
QUANTA_NS = (12 * TICK, 8 * TICK)
ORDINARY = 2
KINDS = ("ordinary",) * ORDINARY + ("reserved", "spare")  # by instance


class WouldSleep(Exception):
    """The engine has nothing to do for `timeout_ns` unless something is pushed."""

    def __init__(self, timeout_ns: int) -> None:
        super().__init__(timeout_ns)
        self.timeout_ns = timeout_ns


class CheckedPort(_ring.EnginePort):
    """An engine's port that compares what goes through it with the model, and never sleeps."""

    def __init__(self, engine: "Engine", world: ModelWorld) -> None:
        super().__init__(world.arena.native, ENGINE, world.engine_fd, world.frontend_fds)
        self._engine = engine
        self._world = world
        self.taken: list[Row] = []

    def take(
        self,
        model: int,
        now_ns: int,
        expected_ns: int,
        into: npt.NDArray[np.uint32],
        classes: int = ALL_CLASSES,
    ) -> int:
        self._engine.check_take(model, now_ns, expected_ns, len(into), classes)
        self.taken = self._world.queues.take(model, len(into), now_ns, expected_ns, classes)
        count = super().take(model, now_ns, expected_ns, into, classes)
        assert into[:count].tolist() == [row.slot for row in self.taken]
        return count

    def complete(
        self,
        slots: npt.NDArray[np.uint32],
        outcomes: npt.NDArray[np.uint8],
        dispatched_ns: int,
        compute_start_ns: int,
        compute_end_ns: int,
        batch: int,
        bucket: int,
    ) -> None:
        run = self._engine.current
        assert run is not None
        assert slots.tolist() == [row.slot for row in run.rows]
        assert (batch, bucket) == (run.batch.number, run.batch.bucket)
        assert (dispatched_ns, compute_start_ns) == (run.batch.dispatched_ns, run.started_ns)
        assert compute_end_ns == self._world.clock.now_ns()
        run.check_outcomes([Outcome(outcome) for outcome in outcomes.tolist()], compute_end_ns)
        super().complete(slots, outcomes, dispatched_ns, compute_start_ns, compute_end_ns, batch, bucket)
        run.completed = True
        books = self._world.books
        books.engine.update(completed=len(run.rows), batches=1)
        for row, outcome in zip(run.rows, outcomes.tolist(), strict=True):
            row.outcome, row.batch = Outcome(outcome), batch
            books.engine_ended[outcome] += 1
            row.request.completed.append(row)

    def discard(self, frontend: int) -> int:
        dropped = self._world.queues.drop(frontend)
        self._world.books.engine["discarded"] += dropped
        assert super().discard(frontend) == dropped
        return dropped

    def wait(self, timeout_ns: int, spin_ns: int) -> bool:
        raise WouldSleep(timeout_ns)


class Engine:
    """One life of an engine process, warm."""

    def __init__(
        self, world: ModelWorld, limits: Sequence[ClassLimits], *, early_refusal: bool, cost_factor: int
    ) -> None:
        """`cost_factor`: how many times slower the device is than the fastest."""
        self._world = world
        self._own_cost_factor = cost_factor
        self._early_refusal = self._next_early_refusal = early_refusal
        self._plans = self._next_plans = _plans(limits)
        self._steps_down = self._next_steps_down = 0
        self._latency = LearnedLatency()
        self._port = CheckedPort(self, world)
        self.dispatcher = Dispatcher(
            self._port,
            self._plans,
            self._latency,
            world.clock,
            instances=ORDINARY,
            early_refusal=early_refusal,
        )
        runners = {model: FakeRunner(SIGNATURE, partial(self._computes, model)) for model in range(MODELS)}
        self._instances = [
            CpuInstance(world.arena, self.dispatcher, runners, 8, world.clock, self._failed) for _ in KINDS
        ]
        # What one instance computes, and the batches of all of them.
        self.current: Running | None = None
        self.running: list[Running | None] = [None] * len(KINDS)
        self._at = 0
        self._cost_factor = 1
        self._device_lasts: int | None = None
        # By instance and model: rows whose inputs may still be in its staging.
        self._stale: dict[tuple[int, int], set[int]] = defaultdict(lambda: {0})
        for model, plan in enumerate(self._plans):
            for instance in self._instances:
                self._latency.seed(model, instance.warm_up(model, plan.buckets, 1))
        self.dispatcher.warm()

    def change(self, limits: Sequence[ClassLimits], steps_down: int, *, early_refusal: bool) -> None:
        """Other settings and pressure of this strength, from the next decision on."""
        self._next_plans = _plans(limits)
        self._next_steps_down = steps_down
        self._next_early_refusal = early_refusal
        self.dispatcher.replan(self._next_plans, early_refusal=early_refusal)
        self.dispatcher.shrink_targets(steps_down)

    def ask(self, at: int) -> int | None:
        """An idle instance asks for work. None when it has a batch now, or how long it would sleep."""
        assert self.running[at] is None
        self._at = at
        self._plans, self._steps_down = self._next_plans, self._next_steps_down
        self._early_refusal = self._next_early_refusal
        batch: Batch | None
        if KINDS[at] == "spare":
            step = self.dispatcher.poll(spare=True)
            if not isinstance(step, Batch):
                now_ns = self._world.clock.now_ns()
                return self._check_patience(_ring.NO_DEADLINE if step.at_ns is None else step.at_ns - now_ns)
            batch = step
        else:
            try:
                batch = self.dispatcher.next_batch(reserved=KINDS[at] == "reserved")
            except WouldSleep as sleep:
                return self._check_patience(sleep.timeout_ns)
        assert batch is not None
        rows = self._port.taken
        assert rows
        assert batch.slots.tolist() == [row.slot for row in rows]
        assert batch.bucket == min(b for b in BUCKETS[batch.model] if b >= len(rows))
        assert batch.dispatched_ns == self._world.clock.now_ns()
        self.running[at] = Running(batch, rows, self._world.clock)
        self._world.seen[f"batch {KINDS[at]}"] += 1
        self._world.seen[f"of {len(rows)}"] += 1
        return None

    def finish(self, at: int, *, cost_factor: int = 1, device_lasts: int | None = None) -> bool:
        """Runs what an instance has. False: the device was lost after `device_lasts` calls of the runner."""
        run = self.running[at]
        assert run is not None
        self._at, self._cost_factor, self._device_lasts = at, cost_factor, device_lasts
        self.current = run
        try:
            self._instances[at].run(run.batch)
        except DeviceLost:
            assert not run.completed
            return False
        finally:
            self.current = None
        assert run.completed
        assert device_lasts is None or run.runs <= device_lasts
        self.running[at] = None
        if run.extent is not None:
            self._world.seen["bisection"] += 1
            self._world.seen["undecided"] += run.extent.undecided
            self._world.seen["expired in bisection"] += run.extent.expired
        return True

    def will_raise(self, at: int) -> bool:
        """Whether an instance has a batch that raises, and rows enough to be run again in parts."""
        run = self.running[at]
        guilty = (Fault.GUILTY, Fault.ONCE)
        return run is not None and len(run.rows) > 1 and any(row.fault in guilty for row in run.rows)

    def in_flight(self, frontend: int) -> bool:
        """Whether a batch holds a slot of this front end."""
        return any(
            row.request.frontend == frontend
            for run in self.running
            if run is not None and not run.completed
            for row in run.rows
        )

    def check_take(self, model: int, now_ns: int, expected_ns: int, count: int, classes: int) -> None:
        """What the dispatcher asks for is what its plans and predictions say."""
        assert now_ns == self._world.clock.now_ns()
        plan = self._plans[model]
        steps_down = self._steps_down if plan.budget_ns is not None else 0
        assert 0 < count <= self.dispatcher.targets.sizes[model]
        assert count <= plan.buckets[max(0, len(plan.buckets) - 1 - steps_down)]
        least_ns = self._latency.least_ns(model, plan.bucket_for(count), now_ns)
        assert expected_ns == (least_ns if self._early_refusal else 0)
        assert classes == self._classes(model)

    def check(self) -> None:
        """Front ends are told to reckon with a wait only when every instance for any work has some."""
        busy = [run is not None for run in self.running[:ORDINARY]]
        assert (self._world.arena.native.free_at_ns(ENGINE) != 0) == all(busy)

    def _classes(self, model: int) -> int:
        if KINDS[self._at] != "reserved":
            return ALL_CLASSES
        return sum(1 << cls for cls, urgent in enumerate(self._plans[model].urgent) if urgent)

    def _check_patience(self, timeout_ns: int) -> int:
        """Nobody sleeps while a batch is due, or for longer than until the next is."""
        now_ns = self._world.clock.now_ns()
        for model, plan in enumerate(self._plans):
            rows = self._world.queues.rows(model, self._classes(model))
            assert len(rows) < self.dispatcher.targets.sizes[model]
            for row in rows:
                due_ns = row.request.arrived_ns + plan.max_wait_ns[row.request.cls]
                if row in self._world.queues.heads():
                    alone_ns = self._latency.high_ns(model, plan.buckets[0])
                    due_ns = min(due_ns, row.request.deadline_ns - alone_ns)
                assert now_ns < due_ns
                assert timeout_ns <= due_ns - now_ns
        return timeout_ns

    def _computes(self, model: int, inputs: Sequence[Array]) -> None:
        numbers: list[int] = inputs[1].tolist()
        run = self.current
        if run is None:
            assert not any(numbers), "warm-up runs on zeros"
            self._world.clock.advance(self._cost_ns(len(numbers)))
            return
        if run.runs == self._device_lasts:
            raise DeviceLost
        stale = self._stale[self._at, model]
        run.compute(numbers, stale, self._cost_ns(len(numbers)) * self._cost_factor)
        stale.update(numbers)

    def _cost_ns(self, bucket: int) -> int:
        """What a batch usually takes."""
        return (4 + bucket) * TICK * self._own_cost_factor

    def _failed(self, batch: Batch, error: Exception, extent: FailureExtent) -> None:
        assert self.current is not None
        assert batch is self.current.batch
        assert isinstance(error, RuntimeError), error
        self.current.failed(extent)


def _plans(limits: Sequence[ClassLimits]) -> list[BatchPlan]:
    return [
        BatchPlan(
            buckets=buckets,
            max_wait_ns=tuple(limit.max_wait_ns for limit in limits),
            budget_ns=budget_ns,
            quantum_ns=quantum_ns,
            urgent=urgent_classes(limits, QUANTUM_NS),
        )
        for buckets, budget_ns, quantum_ns in zip(BUCKETS, BUDGETS_NS, QUANTA_NS, strict=True)
    ]
