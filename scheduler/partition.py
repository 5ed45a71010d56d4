"""A front end's half of the arena: its slots, what it has submitted, and what came back.

A slot is free, or held by exactly one `Submission`. A submission ends exactly once: when the last of
its rows has come back, or when the engine that has it is lost, whichever is first; both clear its entries
in the table of pending slots, so the other finds nothing to end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from scheduler import _ring
from scheduler.arena import Arena


class Outcome(IntEnum):
    """How an item ended. 1 to 5 equal the native `Outcome`; LOST never crosses the arena."""

    RESULT = 1
    ERROR = 2
    NON_FINITE = 3
    EXPIRED = 4
    CANCELLED = 5
    LOST = 6


@dataclass(slots=True, eq=False)
class Submission:
    """The rows of one request while they are with an engine.

    The worst row decides `outcome`, and `batch` is the number of its batch. `queue_wait_ns` is the
    longest wait; size, bucket, compute times and `last_batch`, its number, are of the batch that ended last;
    0: the row that ended last was in none. `executions` is the rows' part in the batches that they ran in: a
    row of a batch of n counts 1/n.
    """

    slots: list[int]
    on_end: Callable[["Submission"], None]
    model: int
    class_index: int
    engine: int = -1  # none yet
    remaining: int = 0
    outcome: Outcome = Outcome.RESULT
    queue_wait_ns: int = 0
    compute_ns: int = 0
    compute_start_ns: int = 0
    compute_end_ns: int = 0
    last_batch: int = 0
    batch: int = 0
    batch_size: int = 0
    batch_bucket: int = 0
    executions: float = 0.0


def _nothing() -> None:
    pass


class Partition:
    """The slots of one front end. Not thread-safe: it belongs to the event loop."""

    def __init__(self, arena: Arena, frontend: int, eventfd: int, engine_eventfds: Sequence[int]) -> None:
        self._arena = arena
        self._frontend = frontend
        self._port = _ring.FrontendPort(arena.native, frontend, eventfd, list(engine_eventfds))
        self._first = self._port.first_slot
        count = arena.native.slots_per_frontend
        # Last in, first out: the slot used most recently is the one whose rows are still in a cache.
        self._free = list(range(self._first + count - 1, self._first - 1, -1))
        self._pending: list[Submission | None] = [None] * count
        self._inputs = arena.input_rows.reshape(-1).data
        self._outputs = arena.output_rows.reshape(-1).data
        self._input_row_bytes = arena.native.input_row_bytes
        self._output_row_bytes = arena.native.output_row_bytes
        self._next_request = 0
        self._port.publish_free_slots(count)
        self._unpushed = 0  # items that have slots and are not pushed yet
        # Items that have slots and have not ended: by class, and by model and class.
        self.outstanding = [0] * _ring.CLASSES
        self.outstanding_by_lane = [0] * (arena.native.models * _ring.CLASSES)
        self._held_by_lane = [0] * (arena.native.models * _ring.CLASSES)
        # Heard when items have gone to an engine, and when some have come back.
        self.on_push: Callable[[], None] = _nothing
        self.on_ended: Callable[[], None] = _nothing

    @property
    def rows_out(self) -> int:
        """Items that have slots and have not ended."""
        return sum(self.outstanding)

    @property
    def free_slots(self) -> int:
        """Slots that a new submission can have."""
        return len(self._free)

    def reserve(
        self, rows: int, model: int, class_index: int, on_end: Callable[[Submission], None]
    ) -> Submission:
        """Takes `rows` free slots. The caller has checked `free_slots`."""
        assert 0 < rows <= len(self._free), (rows, len(self._free))
        slots = self._free[-rows:]
        del self._free[-rows:]
        submission = Submission(slots, on_end, model, class_index, remaining=rows)
        self._count(submission, rows)
        self._unpushed += rows
        self._port.publish_free_slots(len(self._free))
        return submission

    def write_input(self, submission: Submission, offset: int, item_bytes: int, data: bytes) -> None:
        """Copies one tensor, `rows * item_bytes` bytes, to its place in each row's slot."""
        inputs = self._inputs
        stride = self._input_row_bytes
        if submission.remaining == 1:
            start = submission.slots[0] * stride + offset
            inputs[start : start + item_bytes] = data
            return
        source = memoryview(data)
        for row, slot in enumerate(submission.slots):
            start = slot * stride + offset
            inputs[start : start + item_bytes] = source[row * item_bytes : (row + 1) * item_bytes]

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
        """Hands the rows to an engine. From here on they end exactly once, through `on_end`."""
        submission.engine = engine
        slots = submission.slots
        first = self._first
        pending = self._pending
        for slot in slots:
            pending[slot - first] = submission
        self._unpushed -= len(slots)
        self._next_request = (self._next_request + 1) & 0xFFFFFFFF
        pushed = self._port.push(
            engine,
            submission.model,
            submission.class_index,
            slots,
            key,
            enqueued_ns,
            deadline_ns,
            self._next_request,
            exclusive,
        )
        assert pushed, "a lane has room for every slot of its front end"
        self.on_push()

    def hold(self, submission: Submission, rows: int) -> None:
        """Tells whoever watches that so many rows more are reserved and held back; negative: fewer."""
        model, class_index = submission.model, submission.class_index
        lane = model * _ring.CLASSES + class_index
        self._held_by_lane[lane] += rows
        self._port.publish_held(model, class_index, self._held_by_lane[lane])

    def end_unpushed(self, submission: Submission, outcome: Outcome) -> None:
        """Ends rows that were reserved and will not be pushed."""
        rows = len(submission.slots)
        self._unpushed -= rows
        self._count(submission, -rows)
        self._port.end_unqueued(rows, outcome)
        submission.outcome = outcome
        submission.remaining = 0
        submission.on_end(submission)

    def cancel(self, submission: Submission) -> None:
        """Asks the engine to skip the rows it has not taken yet. They still come back and end."""
        for slot in submission.slots:
            if self._pending[slot - self._first] is submission:
                self._port.cancel(slot)

    def backlog_ns(self, engine: int) -> list[int]:
        """By class, the engine time of what all front ends have queued there, nanoseconds."""
        return self._port.backlog_ns(engine)

    def depths(self, engine: int) -> list[int]:
        """By class, the items that all front ends have queued there."""
        return self._port.depths(engine)

    def input(self, submission: Submission, offset: int, item_bytes: int) -> bytes:
        """One input tensor of all rows, as it was written. Only from `on_end`, before `release`."""
        return self._rows(self._inputs, self._input_row_bytes, submission, offset, item_bytes)

    def output(self, submission: Submission, offset: int, item_bytes: int) -> bytes:
        """One output tensor of all rows, row by row. Only from `on_end`, before `release`."""
        return self._rows(self._outputs, self._output_row_bytes, submission, offset, item_bytes)

    def release(self, submission: Submission) -> None:
        """Frees the slots of an ended submission, once, by whoever its `on_end` gave it to."""
        self._free.extend(submission.slots)
        submission.slots = []
        self._port.publish_free_slots(len(self._free))

    def drain(self) -> int:
        """Ends whatever the engines have completed; returns how many items that was."""
        pending = self._pending
        first = self._first
        completions = self._port.drain()
        for slot, outcome, enqueued, dispatched, start, end, batch, size, bucket in completions:
            submission = pending[slot - first]
            assert submission is not None, f"slot {slot} completed but not pending"
            pending[slot - first] = None
            self._count(submission, -1)
            if outcome >= submission.outcome:
                submission.batch = batch
                if outcome > submission.outcome:
                    submission.outcome = Outcome(outcome)
            if size:
                submission.executions += 1 / size
            wait = dispatched - enqueued
            if wait > submission.queue_wait_ns:
                submission.queue_wait_ns = wait
            if end >= submission.compute_end_ns:
                submission.compute_start_ns = start
                submission.compute_end_ns = end
                submission.compute_ns = end - dispatched
                submission.last_batch = batch
                submission.batch_size = size
                submission.batch_bucket = bucket
            submission.remaining -= 1
            if submission.remaining == 0:
                submission.on_end(submission)
        if completions:
            self.on_ended()
        return len(completions)

    def woken(self) -> None:
        """The eventfd became readable: ends what has come back and goes back to sleep."""
        self._port.woken()
        self.drain()
        self.sleep()

    def stay_awake(self) -> None:
        """Takes the promise to wait at the eventfd back: engines write to it no more. Then `drain` often."""
        self._port.woken()

    def sleep(self) -> None:
        """Promises the engines to wait at the eventfd; drains until that promise can be given."""
        while not self._port.arm():
            self.drain()

    def lose_engine(self, engine: int) -> None:
        """Ends everything that is with an engine as LOST, after taking what it still completed.

        Nothing may be pushed to it until its rings have been reset. What others have is not touched.
        """
        self.drain()
        for index, submission in enumerate(self._pending):
            if submission is None or submission.engine != engine:
                continue
            for slot in submission.slots:
                if self._pending[slot - self._first] is submission:
                    self._pending[slot - self._first] = None
                    self._port.lose(1)
                    self._count(submission, -1)
            assert self._pending[index] is None
            submission.outcome = Outcome.LOST
            submission.on_end(submission)

    def check_integrity(self) -> None:
        """Accounts for every slot and item. Raises AssertionError naming what does not add up."""
        waiting = [submission for submission in self._pending if submission is not None]
        pending = len(waiting)
        books = self.books()
        assert books["corrupt"] == 0, books
        assert books["admitted"] - sum(books["ended"]) == pending, (books, pending)
        outstanding = sum(self.outstanding)
        assert outstanding == sum(self.outstanding_by_lane) == pending + self._unpushed, (
            outstanding,
            pending,
        )
        assert len(set(self._free)) == len(self._free), "a slot is free twice"
        held = len(self._pending) - len(self._free)
        # A row that is back keeps its slot until the last of its request is.
        accounted = sum(len(submission.slots) for submission in {id(s): s for s in waiting}.values())
        accounted += self._unpushed
        assert held == accounted, f"{held} slots are held, {accounted} by what is waited for"

    def books(self) -> dict[str, Any]:
        """Items admitted, and ended by `Outcome`, in all lives of this front end."""
        return self._arena.native.frontend_stats(self._frontend)

    def _count(self, submission: Submission, rows: int) -> None:
        self.outstanding[submission.class_index] += rows
        self.outstanding_by_lane[submission.model * _ring.CLASSES + submission.class_index] += rows

    @staticmethod
    def _rows(slab: memoryview, stride: int, submission: Submission, offset: int, item_bytes: int) -> bytes:
        slots = submission.slots
        if len(slots) == 1:
            start = slots[0] * stride + offset
            return bytes(slab[start : start + item_bytes])
        return b"".join(slab[slot * stride + offset : slot * stride + offset + item_bytes] for slot in slots)
