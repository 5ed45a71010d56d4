"""Front end processes in this thread, on a virtual clock, held against a plain model.

Real are the arena, partitions, keys, entrance and admission. `CheckedPartition` compares every push with the
model, `Frontend` every refusal and every end of a request.
"""

import math
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np

from scheduler import _ring
from scheduler.arena import Arena, Dimensions
from scheduler.clock import VirtualClock
from scheduler.engines import Engines
from scheduler.entrance import Entrance
from scheduler.errors import DeadlineMissed, Overloaded, RequestError, Unavailable
from scheduler.forecast import Forecasts
from scheduler.partition import Outcome, Partition, Submission
from scheduler.priority import ClassLimits
from scheduler.signature import DataType, ModelSignature, TensorSpec
from server.admission import Admission
from tests.scheduler.plain_model import FRONTENDS, MODELS, Books, Fault, Queues, Request, Row, Wish

# Everything lasts a whole number of these, so that instants often coincide.
TICK = 250_000
ENGINE = 0
SLOTS = 14  # rings of 16 wrap around within a few requests
QUANTUM_NS = 3 * TICK  # what divides urgent classes from bulk
MODEL_LIMITS = {1: 18}

SIGNATURE = ModelSignature(
    name="echo",
    version=1,
    inputs=(TensorSpec("x", DataType.FP64, (2,)), TensorSpec("number", DataType.INT64, ())),
    outputs=(TensorSpec("mean", DataType.FP64, (1,)),),
)


class ModelWorld:
    """What outlives every process: the arena, the clock, and the model of what is in the arena."""

    def __init__(self, seen: Counter[str]) -> None:
        self.seen = seen
        self.clock = VirtualClock(1_000_000 * TICK)
        self.arena = Arena.anonymous(
            Dimensions(
                frontends=FRONTENDS,
                models=MODELS,
                slots_per_frontend=SLOTS,
                input_row_bytes=SIGNATURE.input_row_bytes,
                output_row_bytes=SIGNATURE.output_row_bytes,
            )
        )
        self.frontend_fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(FRONTENDS)]
        self.engine_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.books = Books()
        self.queues = Queues(self.books)
        self.epochs = [0] * FRONTENDS
        self.last_row = 0

    def close(self) -> None:
        for fd in (*self.frontend_fds, self.engine_fd):
            os.close(fd)

    def check(self) -> None:
        """The arena counts what the model counts."""
        native = self.arena.native
        self.books.check(
            [native.frontend_stats(index) for index in range(FRONTENDS)], native.engine_stats(ENGINE)
        )
        assert [native.epoch(index) for index in range(FRONTENDS)] == self.epochs
        for model in range(MODELS):
            for cls in range(_ring.CLASSES):
                assert native.depth(ENGINE, model, cls) == len(self.queues.rows(model, 1 << cls))
        waiting, _ = native.engine_progress(ENGINE)
        assert waiting == len(self.queues.rows()) + self.books.in_batches()


class CheckedPartition(Partition):
    """A partition that compares what leaves its front end for the lanes, or is withdrawn, with the model."""

    def __init__(self, frontend: "Frontend", world: ModelWorld, index: int) -> None:
        super().__init__(world.arena, index, world.frontend_fds[index], [world.engine_fd])
        self._model = frontend

    def push(
        self,
        submission: Submission,
        *,
        engine: int,
        key: int,
        enqueued_ns: int,
        deadline_ns: int,
        exclusive: bool,
    ) -> None:
        request = self._model.enters(submission)
        assert (key, enqueued_ns, deadline_ns) == (request.key, request.arrived_ns, request.deadline_ns)
        super().push(
            submission,
            engine=engine,
            key=key,
            enqueued_ns=enqueued_ns,
            deadline_ns=deadline_ns,
            exclusive=exclusive,
        )

    def end_unpushed(self, submission: Submission, outcome: Outcome) -> None:
        self._model.withdrawn(submission, outcome)
        super().end_unpushed(submission, outcome)


class Frontend:
    """One life of a front end process."""

    def __init__(
        self,
        world: ModelWorld,
        index: int,
        limits: Sequence[ClassLimits],
        *,
        early_refusal: bool,
        engine_lost: bool,
    ) -> None:
        self.partition = CheckedPartition(self, world, index)
        self._engines = Engines(self.partition, [Forecasts(world.arena, ENGINE)])
        self._entrance = Entrance(
            self.partition,
            self._engines,
            limits,
            models=MODELS,
            bulk_quantum_ns=QUANTUM_NS,
            frontends=FRONTENDS,
            early_refusal=early_refusal,
        )
        self.admission = Admission(
            self.partition,
            self._entrance,
            self._engines,
            limits,
            FRONTENDS,
            early_refusal=early_refusal,
            model_limits=MODEL_LIMITS,
        )
        self.admission.engine_lost = engine_lost
        if not engine_lost:
            self.engine_ready()
        self.acknowledged = True  # the loss of the last engine
        self.open: list[Request] = []  # in the order of arrival
        self.completed: list[Row] = []  # handed back by the engine, not drained
        self._world = world
        self._index = index
        self._limits = limits
        self._early_refusal = early_refusal
        self._last_key = Counter[tuple[int, int]]()
        # What is being done, and so how a request may end.
        self._cancelling: Request | None = None
        self._losing = False

    def engine_ready(self) -> None:
        """On the supervisor's word."""
        self._engines.came(ENGINE)
        self.admission.engine_lost = False

    def change(self, limits: Sequence[ClassLimits], quantum_ns: int, *, early_refusal: bool) -> None:
        self._limits = limits
        self._early_refusal = early_refusal
        self._entrance.change(limits, quantum_ns, early_refusal=early_refusal)
        self.admission.change(limits, early_refusal, MODEL_LIMITS)

    def submit(self, wish: Wish) -> Request | None:
        """As a front end does it; None when refused, and then for a reason that the model knows."""
        now_ns = self._world.clock.now_ns()
        deadline_ns = _ring.NO_DEADLINE if wish.timeout_ns is None else now_ns + wish.timeout_ns
        expected = self._refusal(wish, deadline_ns, now_ns)
        refused: type[RequestError] | None = None
        try:
            self.admission.check_serving()
            admitted = self.admission.check(wish.model, wish.cls, len(wish.faults), deadline_ns, now_ns)
            assert admitted.engine == ENGINE
        except RequestError as error:
            refused = type(error)
        if refused is not expected:
            # Nobody else can be refused but who may be too late.
            assert expected is None
            assert refused is DeadlineMissed
            assert self._early_refusal
            assert wish.timeout_ns is not None
        if refused is not None:
            self._world.seen[f"{'' if expected else 'early '}{refused.__name__}"] += 1
            return None
        return self._enter(wish, deadline_ns, now_ns)

    def cancel(self, request: Request) -> None:
        was_held = request.held
        self._cancelling = request
        self._entrance.cancel(request.submission)
        self._cancelling = None
        assert not request.held
        if was_held:
            assert request.ended is Outcome.CANCELLED
        for row in request.rows:
            row.cancelled = True
        self._settle()

    def drain(self) -> None:
        completed = self._book_completed()
        assert self.partition.drain() == completed
        self._settle()

    def let_in(self) -> None:
        """What can stand back may be held, but not while nothing else that can is queued."""
        self._entrance.let_in(self._world.clock.now_ns())
        self._settle()
        least_ns = min(limit.slack_ns for limit in self._limits)
        patient = [cls for cls, limit in enumerate(self._limits) if limit.slack_ns > least_ns]
        for request in self.open:
            if request.held:
                assert request.cls in patient
                assert any(row.request.cls in patient for row in self._world.queues.rows())

    def lose_engine(self) -> None:
        """On the supervisor's word. What the engine still completed keeps its outcome."""
        self.admission.engine_lost = self._losing = True
        self._engines.went(ENGINE)
        self._entrance.lose_stranded()
        lost = sum(row.outcome is None for request in self.open for row in request.rows)
        self._book_completed()
        self._world.books.ended[self._index][Outcome.LOST] += lost
        self._world.seen["row LOST"] += lost
        self.partition.lose_engine(ENGINE)
        self._losing = False
        self._settle()
        assert self.open == []
        assert self.partition.free_slots == SLOTS
        self.acknowledged = True

    def enters(self, submission: Submission) -> Request:
        """The model's part of a push: first come, first in, and a key that does not go back in its lane."""
        request = self._request(submission)
        held = [other for other in self.open if other.held and other.cls == request.cls]
        assert held[0] is request
        now_ns = self._world.clock.now_ns()
        lane = request.model, request.cls
        key = now_ns + self._limits[request.cls].slack_ns
        self._world.seen["key stood still"] += key < self._last_key[lane]
        request.key = self._last_key[lane] = max(key, self._last_key[lane])
        request.held = False
        self._world.queues.lanes[*lane, self._index].extend(request.rows)
        self._world.books.admitted[self._index] += len(request.rows)
        return request

    def withdrawn(self, submission: Submission, outcome: Outcome) -> None:
        """The model's part of an end at the entrance."""
        request = self._request(submission)
        assert request.held
        match outcome:
            case Outcome.EXPIRED:
                now_ns = self._world.clock.now_ns()
                _, done_ns = self._engines.first_done(request.model, request.cls, len(request.rows), now_ns)
                unreachable = self._early_refusal and done_ns > request.deadline_ns
                assert request.deadline_ns < now_ns or unreachable
                self._world.seen["held and unreachable"] += request.deadline_ns >= now_ns
            case Outcome.CANCELLED:
                assert request is self._cancelling
            case _:
                assert outcome is Outcome.LOST
                assert self._losing
        request.held = False
        for row in request.rows:
            row.outcome = outcome
            row.dispatched_ns = self._world.clock.now_ns() if outcome is Outcome.EXPIRED else 0
        self._world.books.admitted[self._index] += len(request.rows)
        self._world.books.ended[self._index][outcome] += len(request.rows)
        self._world.seen[f"held {outcome.name}"] += len(request.rows)

    def check(self) -> None:
        """What holds between any two steps."""
        self.partition.check_integrity()
        assert self.partition.free_slots == SLOTS - sum(len(request.rows) for request in self.open)
        by_lane = [self._outstanding(cls, model) for model in range(MODELS) for cls in range(_ring.CLASSES)]
        assert self.partition.outstanding_by_lane == by_lane
        by_class = [self._outstanding(cls) for cls in range(_ring.CLASSES)]
        assert self.partition.outstanding == by_class
        held = [
            sum(len(request.rows) for request in self.open if request.held and request.cls == cls)
            for cls in range(_ring.CLASSES)
        ]
        assert self._entrance.held_rows == held

    def _request(self, submission: Submission) -> Request:
        (request,) = [request for request in self.open if request.submission is submission]
        return request

    def _outstanding(self, cls: int, model: int | None = None) -> int:
        """Rows that are held, with the engine, or on their way back from it."""
        return sum(
            row.outcome is None or row in self.completed
            for request in self.open
            if request.cls == cls and model in (None, request.model)
            for row in request.rows
        )

    def _refusal(self, wish: Wish, deadline_ns: int, now_ns: int) -> type[RequestError] | None:
        """What the request is refused with, whatever is predicted."""
        if self.admission.engine_lost:
            return Unavailable
        rows = len(wish.faults)
        share = math.ceil(self._limits[wish.cls].queue_limit / FRONTENDS)
        limit = MODEL_LIMITS.get(wish.model)
        share_of_model = math.inf if limit is None else math.ceil(limit / FRONTENDS)
        if (
            self._outstanding(wish.cls) + rows > share
            or self._outstanding(wish.cls, wish.model) + rows > share_of_model
            or sum(len(request.rows) for request in self.open) + rows > SLOTS
        ):
            return Overloaded
        return DeadlineMissed if deadline_ns < now_ns else None

    def _enter(self, wish: Wish, deadline_ns: int, now_ns: int) -> Request:
        count, first = len(wish.faults), self._world.last_row + 1
        self._world.last_row += count
        lane = wish.model, wish.cls
        submission = self.partition.reserve(count, *lane, self._ended)
        request = Request(self._index, *lane, now_ns, deadline_ns, wish.exclusive, submission, self.completed)
        numbers = np.arange(first, first + count)
        for number, slot, fault in zip(numbers.tolist(), submission.slots, wish.faults, strict=True):
            request.rows.append(Row(number, request, slot, fault))
        x = np.repeat(numbers.astype(np.float64), 2).reshape(-1, 2)
        x[[fault is Fault.NAN for fault in wish.faults], 1] = np.nan
        for spec, offset, data in zip(SIGNATURE.inputs, SIGNATURE.input_offsets, (x, numbers), strict=True):
            self.partition.write_input(submission, offset, spec.item_bytes, data.tobytes())
        self.open.append(request)
        self._entrance.enter(
            submission,
            engine=ENGINE,
            now_ns=now_ns,
            arrived_ns=now_ns,
            deadline_ns=deadline_ns,
            exclusive=wish.exclusive,
        )
        self._world.seen["held" if request.held else "let in"] += 1
        return request

    def _book_completed(self) -> int:
        count = len(self.completed)
        for row in self.completed:
            assert row.outcome is not None
            self._world.books.ended[self._index][row.outcome] += 1
            self._world.seen[f"row {row.outcome.name}"] += 1
            self._world.seen["cancelled too late"] += row.cancelled and row.outcome is Outcome.RESULT
        self.completed.clear()
        return count

    def _ended(self, submission: Submission) -> None:
        """A request ends once, as the worst of its rows did, and with the outputs of its own inputs."""
        request = self._request(submission)
        assert not request.held
        assert request.ended is None
        request.ended = submission.outcome
        outcomes = [row.outcome for row in request.rows if row.outcome is not None]
        if len(outcomes) < len(request.rows):
            assert self._losing
            assert submission.outcome is Outcome.LOST
        else:
            worst = max(outcomes)
            assert submission.outcome is worst
            assert submission.batch in {row.batch for row in request.rows if row.outcome is worst}
            waits_ns = [row.dispatched_ns - request.arrived_ns for row in request.rows if row.dispatched_ns]
            assert submission.queue_wait_ns == max(waits_ns, default=0)
        if submission.outcome is Outcome.RESULT:
            data = self.partition.output(submission, 0, SIGNATURE.outputs[0].item_bytes)
            assert np.frombuffer(data).tolist() == [row.number for row in request.rows]
        self.partition.release(submission)

    def _settle(self) -> None:
        """Who has all rows back has ended; not before, and each once."""
        self.open = [request for request in self.open if request.ended is None]
        for request in self.open:
            assert any(row.outcome is None or row in self.completed for row in request.rows)
