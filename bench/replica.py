"""One replica of the service in this process, on a clock that the simulator turns.

Nothing here decides anything: arena, rings, partitions, admission, keys, policy, dispatcher and latency
model are the server's own. What is left out is what takes time in a real one: gRPC, the copy of the
rows, and the model.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle
from typing import NamedTuple

import numpy as np

from scheduler import _ring
from scheduler.arena import Arena, Dimensions
from scheduler.clock import VirtualClock
from scheduler.dispatcher import Batch, Dispatcher
from scheduler.engines import Engines
from scheduler.entrance import Entrance
from scheduler.errors import DeadlineMissed, Overloaded, RequestError
from scheduler.forecast import Forecasts
from scheduler.latency import LearnedLatency
from scheduler.partition import Outcome, Partition, Submission
from scheduler.policy import BatchPlan
from server.admission import Admission
from server.frontend import LET_IN_EVERY_S
from server.repository import Manifest
from server.settings import Settings
from server.sizing import batch_plan, bulk_quantum_ns

# Of a row: the arena's smallest. What is in it is nobody's business here.
ROW_BYTES = 64
MODEL = ENGINE = 0
LET_IN_EVERY_NS = int(LET_IN_EVERY_S * 1e9)
_MANIFEST = Manifest(
    name="simulated",
    description="",
    format="torchscript",
    precision="fp32",
    finite_inputs=True,
    finite_outputs=True,
    inputs=(),
    outputs=(),
    versions=(),
)


class Request(NamedTuple):
    """What a caller sends. `number` is its place in the run; `deadline_ns` an instant."""

    number: int
    class_index: int
    rows: int
    deadline_ns: int


# Told about the end of an admitted request: (number, outcome, queue wait in ns).
OnEnd = Callable[[int, Outcome, int], None]


class Replica:
    """An engine and its front ends."""

    def __init__(
        self, settings: Settings, warm_up_ns: Mapping[int, int], clock: VirtualClock, on_end: OnEnd
    ) -> None:
        """`warm_up_ns`: by bucket, what warm-up measured."""
        self._clock = clock
        self._on_end = on_end
        frontends = 1 if settings.server.frontends == "auto" else settings.server.frontends
        self._arena = Arena.anonymous(
            Dimensions(frontends, 1, settings.scheduler.slots_per_frontend, ROW_BYTES, ROW_BYTES)
        )
        # The rings want them; nobody sleeps here, so nobody is woken.
        self._fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(frontends + 1)]
        *frontend_fds, engine_fd = self._fds
        self._frontends = [
            _FrontEnd(self._arena, Partition(self._arena, number, fd, [engine_fd]), settings, frontends)
            for number, fd in enumerate(frontend_fds)
        ]
        self._turns = cycle(self._frontends)
        plan = plan_of(settings)
        latency = LearnedLatency()
        latency.seed(MODEL, warm_up_ns)
        self._dispatcher = Dispatcher(
            _ring.EnginePort(self._arena.native, ENGINE, engine_fd, frontend_fds),
            [plan],
            latency,
            clock,
            instances=instances(settings)[0],
            early_refusal=settings.scheduler.early_refusal,
        )
        self._dispatcher.warm()
        self._results = np.full(plan.buckets[-1], Outcome.RESULT, dtype=np.uint8)

    @property
    def holds(self) -> bool:
        """Whether bulk waits to enter the lanes: then `let_in` wants to be called every now and then."""
        return any(frontend.entrance.holds for frontend in self._frontends)

    def submit(self, request: Request) -> str | None:
        """Sends a request to the next front end. Returns the reason where it is refused."""
        try:
            next(self._turns).submit(request, self._clock.now_ns(), self._on_end)
        except RequestError as error:
            return _reason(error)
        return None

    def let_in(self) -> bool:
        """What front ends do with completions, and every LET_IN_EVERY_NS. True where something was pushed."""
        now_ns = self._clock.now_ns()
        pushed = False
        for frontend in self._frontends:
            pushed |= frontend.woken(now_ns)
        return pushed

    def poll(self, *, reserved: bool) -> Batch | int | None:
        """What a free instance does now: a batch, or the instant to ask again; None: at the next push."""
        while True:
            step = self._dispatcher.poll(reserved=reserved)
            pushed = self.let_in()  # for what the take has found expired
            if isinstance(step, Batch):
                return step
            if not pushed:
                return step.at_ns

    def complete(self, batch: Batch) -> bool:
        """The outputs of a batch are ready now: ends its requests. True where something was pushed then."""
        now_ns = self._clock.now_ns()
        self._dispatcher.complete(batch, self._results[: len(batch.slots)], batch.dispatched_ns, now_ns)
        return self.let_in()

    def close(self) -> None:
        """After the last batch. Raises AssertionError unless every item has ended, once."""
        for frontend in self._frontends:
            partition = frontend.partition
            partition.check_integrity()
            assert sum(partition.outstanding) == 0, f"{partition.outstanding} items never ended"
        for fd in self._fds:
            os.close(fd)


class _FrontEnd:
    """What a front end does with a request, gRPC aside."""

    def __init__(self, arena: Arena, partition: Partition, settings: Settings, frontends: int) -> None:
        limits = settings.class_limits
        engines = Engines(partition, [Forecasts(arena, ENGINE)])
        engines.came(ENGINE)
        self.partition = partition
        self.entrance = Entrance(
            partition,
            engines,
            limits,
            models=1,
            bulk_quantum_ns=bulk_quantum_ns(settings),
            early_refusal=settings.scheduler.early_refusal,
        )
        self._admission = Admission(
            partition,
            self.entrance,
            engines,
            limits,
            frontends,
            early_refusal=settings.scheduler.early_refusal,
        )

    def submit(self, request: Request, now_ns: int, on_end: OnEnd) -> None:
        """Raises RequestError where the request is refused."""
        class_index = request.class_index
        admitted = self._admission.check(MODEL, class_index, request.rows, request.deadline_ns, now_ns)
        self.entrance.enter(
            self.partition.reserve(
                request.rows,
                MODEL,
                class_index,
                partial(self._ended, request.number, class_index, admitted.done_ns, on_end),
            ),
            engine=admitted.engine,
            now_ns=now_ns,
            arrived_ns=now_ns,
            deadline_ns=admitted.deadline_ns,
            exclusive=False,
        )

    def woken(self, now_ns: int) -> bool:
        """Delivers what has ended; True where that let held work in, or ended some of it."""
        self.partition.drain()
        if not self.entrance.holds:
            return False
        before = sum(self.entrance.held_rows)
        self.entrance.let_in(now_ns)
        return sum(self.entrance.held_rows) < before

    def _ended(
        self, number: int, class_index: int, done_ns: int, on_end: OnEnd, submission: Submission
    ) -> None:
        if submission.outcome is Outcome.RESULT:
            self._admission.delivered(MODEL, class_index, done_ns, submission.compute_end_ns)
        self.partition.release(submission)
        on_end(number, submission.outcome, submission.queue_wait_ns)


def instances(settings: Settings) -> tuple[int, int]:
    """Of one replica: those that take anything, and those reserved for urgent work. `auto` is one."""
    wanted = 1 if settings.executor.instances == "auto" else settings.executor.instances
    reserved = min(settings.scheduler.reserved_instances, wanted - 1)
    return wanted - reserved, reserved


def plan_of(settings: Settings) -> BatchPlan:
    """As the server makes it for a model without overrides."""
    return batch_plan(settings, _MANIFEST)


def _reason(error: RequestError) -> str:
    match error:
        case DeadlineMissed():
            return "deadline"
        case Overloaded(subject="slots"):
            return "slots"
        case Overloaded():
            return "queue"
        case _:
            raise error
