"""A plain model of what is queued and what runs: lists, and the rules by which rows leave them.

It knows neither the arena nor the dispatcher; `tests/scheduler/model_world.py` holds those against it.
"""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from scheduler import _ring
from scheduler.clock import VirtualClock
from scheduler.dispatcher import Batch
from scheduler.executor.bisection import BUDGET_NS, FailureExtent, most_runs
from scheduler.partition import Outcome, Submission

FRONTENDS = 2
MODELS = 2
ALL_CLASSES = (1 << _ring.CLASSES) - 1


class Fault(Enum):
    """What a row does to its model."""

    NONE = "none"
    NAN = "answers NaN"
    GUILTY = "raises"
    ONCE = "raises the first time"


@dataclass(eq=False)
class Row:
    """An item. Its input holds `number`, which no other row has, and so should its output."""

    number: int
    request: "Request"
    slot: int
    fault: Fault
    cancelled: bool = False
    outcome: Outcome | None = None  # as the engine handed it back
    dispatched_ns: int = 0
    batch: int = 0


@dataclass(eq=False)
class Request:
    """What a front end has submitted; `completed` collects its rows as the engine hands them back."""

    frontend: int
    model: int
    cls: int
    arrived_ns: int
    deadline_ns: int
    exclusive: bool
    submission: Submission
    completed: list[Row]
    rows: list[Row] = field(default_factory=list)
    held: bool = True  # at the entrance: it has no key yet
    key: int = 0
    ended: Outcome | None = None


@dataclass(frozen=True)
class Wish:
    """A request that a caller would like to make; a negative timeout is over already."""

    frontend: int
    model: int
    cls: int
    faults: tuple[Fault, ...]  # by row
    timeout_ns: int | None
    exclusive: bool


class Books:
    """What the arena's counters should say of each front end and of the engine, over all their lives."""

    def __init__(self) -> None:
        self.admitted = [0] * FRONTENDS
        self.ended = [[0] * (Outcome.LOST + 1) for _ in range(FRONTENDS)]
        self.engine = Counter[str]()
        self.engine_ended = [0] * Outcome.LOST

    def open(self, frontend: int) -> int:
        """Rows admitted and not ended."""
        return self.admitted[frontend] - sum(self.ended[frontend])

    def in_batches(self) -> int:
        """Rows taken that neither came back nor were lost."""
        return self.engine["taken"] - self.engine["completed"] - self.engine["lost"]

    def check(self, frontends: list[dict[str, Any]], engine: dict[str, Any]) -> None:
        for index, stats in enumerate(frontends):
            assert stats == {"admitted": self.admitted[index], "ended": self.ended[index], "corrupt": 0}
        assert engine["ended"] == self.engine_ended
        names = ("taken", "completed", "lost", "discarded", "batches", "corrupt")
        assert {name: engine[name] for name in names} == {name: self.engine[name] for name in names}


class Queues:
    """The lanes of the engine; a lane is of one (model, class, front end)."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self.lanes: dict[tuple[int, int, int], list[Row]] = {
            (model, cls, frontend): []
            for model in range(MODELS)
            for cls in range(_ring.CLASSES)
            for frontend in range(FRONTENDS)
        }

    def rows(self, model: int | None = None, classes: int = ALL_CLASSES) -> list[Row]:
        """What is queued of some classes, of one model or of all."""
        return [
            row
            for (of_model, cls, _), lane in self.lanes.items()
            if model in (None, of_model) and classes >> cls & 1
            for row in lane
        ]

    def heads(self) -> list[Row]:
        """The first of each lane."""
        return [lane[0] for lane in self.lanes.values() if lane]

    def take(self, model: int, count: int, now_ns: int, expected_ns: int, classes: int) -> list[Row]:
        """Up to `count` live rows by (key, class, front end); ends the cancelled and the late on its way."""
        batch: list[Row] = []
        keys: list[int] = []
        while len(batch) < count:
            heads = [
                (lane[0].request.key, where)
                for where, lane in self.lanes.items()
                if lane and where[0] == model and classes >> where[1] & 1
            ]
            if not heads:
                break
            key, where = min(heads)
            row = self.lanes[where][0]
            request = row.request
            if row.cancelled:
                self._end(row, Outcome.CANCELLED)
            elif request.deadline_ns < now_ns + expected_ns:
                self._end(row, Outcome.EXPIRED)
            elif (
                batch
                and request is not batch[0].request
                and (request.exclusive or batch[0].request.exclusive)
            ):
                break
            else:
                batch.append(row)
            row.dispatched_ns = now_ns
            keys.append(key)
            del self.lanes[where][0]
        self._books.engine["taken"] += len(batch)
        assert keys == sorted(keys)  # and so none goes back in a lane
        left = [row.request.key for row in self.rows(model, classes)]
        assert not keys or not left or keys[-1] <= min(left)
        return batch

    def drop(self, frontend: int | None = None) -> int:
        """Empties the lanes of one front end, or all; returns how many rows that was."""
        dropped = 0
        for where, lane in self.lanes.items():
            if frontend in (None, where[2]):
                dropped += len(lane)
                lane.clear()
        return dropped

    def _end(self, row: Row, outcome: Outcome) -> None:
        row.outcome = outcome
        row.request.completed.append(row)
        self._books.engine_ended[outcome] += 1


@dataclass(eq=False)
class Running:
    """A batch in flight, and what its runner has been given of it so far."""

    batch: Batch
    rows: list[Row]
    clock: VirtualClock
    runs: int = 0
    started_ns: int = 0
    raised_ns: int | None = None  # the first time
    computed: set[int] = field(default_factory=set)
    alone: set[int] = field(default_factory=set)  # raised with no other row beside them
    extent: FailureExtent | None = None
    completed: bool = False

    def compute(self, numbers: list[int], stale: set[int], cost_ns: int) -> None:
        """One call of the runner, with the rows of these numbers and padding that is among `stale`.

        Raises:
            RuntimeError: as the rows will have it.
        """
        now_ns = self.clock.now_ns()
        if self.runs == 0:
            self.started_ns = due_ns = now_ns
            live = numbers[: len(self.rows)]
            assert live == [row.number for row in self.rows]
            assert len(numbers) == self.batch.bucket
            assert stale.issuperset(numbers[len(live) :])
            due_ns = self.batch.dispatched_ns
        else:
            due_ns = now_ns
            live = [number for number in numbers if number]
            assert not any(numbers[len(live) :]), "parts are padded with zeros"
            assert self.raised_ns is not None
            assert now_ns - self.raised_ns < BUDGET_NS
            assert self.runs <= most_runs(len(self.rows))
        rows = [row for row in self.rows if row.number in live]
        assert len(rows) == len(live)
        for row in rows:
            assert row.outcome is None, "was cancelled, or too late, when it was taken"
            assert row.request.deadline_ns >= due_ns
            assert row.number not in self.computed
        self.runs += 1
        self.clock.advance(cost_ns)
        guilty = [row for row in rows if row.fault in (Fault.GUILTY, Fault.ONCE)]
        if not guilty:
            self.computed.update(live)
            return
        self.raised_ns = self.raised_ns or self.clock.now_ns()
        if len(rows) == 1:
            self.alone.update(live)
        for row in guilty:
            row.fault = Fault.GUILTY if row.fault is Fault.GUILTY else Fault.NONE
        raise RuntimeError(f"rows {live}")

    def failed(self, extent: FailureExtent) -> None:
        """The instance reports that the batch raised: once, and before it is completed."""
        assert self.extent is None
        assert not self.completed
        self.extent = extent

    def check_outcomes(self, outcomes: list[Outcome], end_ns: int) -> None:
        """They are what the runner did; a row fails for another only where the search reached its bound."""
        undecided = 0
        for row, outcome in zip(self.rows, outcomes, strict=True):
            if row.number in self.computed:
                assert outcome is (Outcome.NON_FINITE if row.fault is Fault.NAN else Outcome.RESULT)
            elif row.number in self.alone:
                assert outcome is Outcome.ERROR
            elif row.request.deadline_ns < end_ns:
                assert outcome is Outcome.EXPIRED
            else:
                assert outcome is Outcome.ERROR
                undecided += 1
        if self.raised_ns is None:
            assert self.extent is None
            assert undecided == 0
            return
        expired = outcomes.count(Outcome.EXPIRED)
        assert self.extent == FailureExtent(len(self.alone), undecided, expired, self.runs - 1)
        spent = end_ns - self.raised_ns >= BUDGET_NS or self.runs - 1 == most_runs(len(self.rows))
        assert spent or undecided == 0
