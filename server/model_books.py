"""What each model has answered, how often and for how long, in the arena.

Each front end writes a row of its own for each model and reads those of all, so the sums are those of the
service whichever front end is asked. They outlive front ends and engines; what a front end held when
it died is in none of them. Executions are counted by parts: every row that ran in a batch of n carries 1/n
of it, so all rows of a batch, whoever they belonged to, make one.
"""

import time
from dataclasses import dataclass

from scheduler.arena import Arena
from scheduler.partition import Outcome, Submission

# Executions are kept in units of this part of one.
_PARTS = 1 << 32


# Positions in a row.
_SUCCESS, _SUCCESS_NS, _FAIL, _FAIL_NS, _QUEUE_NS, _COMPUTE_NS, _DELIVERY_NS, _ROWS, _EXECUTIONS, _LAST_MS = (
    range(10)
)
_OWNER = 10


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """Of one model, over all front ends, since the server started.

    Attributes:
        success, success_ns: requests that were answered, from arrival to answer.
        fail, fail_ns: requests that were queued and ended otherwise, from arrival to end.
        queue_ns, compute_ns, delivery_ns: of those answered, from admission to dispatch, from there to
            outputs ready, and from there to the front end that encodes them.
        rows: answered.
        executions: batches run.
        last_ms: when the last one was answered, milliseconds since the epoch; 0: never.
    """

    success: int
    success_ns: int
    fail: int
    fail_ns: int
    queue_ns: int
    compute_ns: int
    delivery_ns: int
    rows: int
    executions: int
    last_ms: int


class ModelBooks:
    """The books as one front end keeps and reads them. Belongs to its event loop."""

    def __init__(self, arena: Arena, frontend: int) -> None:
        self._all = arena.model_books
        # Plain 8-byte loads and stores: a reader sees a count as it was before or after, never half of it.
        self._mine = [memoryview(row) for row in arena.model_books[frontend]]

    def ended(self, submission: Submission, arrived_ns: int, now_ns: int) -> None:
        """Counts a request that was queued and has ended. Before its slots are released."""
        row = self._mine[submission.model]
        if submission.executions:
            row[_EXECUTIONS] += round(submission.executions * _PARTS)
        if submission.outcome is not Outcome.RESULT:
            row[_FAIL] += 1
            row[_FAIL_NS] += now_ns - arrived_ns
            return
        row[_SUCCESS] += 1
        row[_SUCCESS_NS] += now_ns - arrived_ns
        row[_QUEUE_NS] += submission.queue_wait_ns
        row[_COMPUTE_NS] += submission.compute_ns
        row[_DELIVERY_NS] += now_ns - submission.compute_end_ns
        row[_ROWS] += len(submission.slots)
        row[_LAST_MS] = time.time_ns() // 1_000_000

    def assign(self, model: int, owner: int) -> bool:
        """Who has this place from now on: where that is somebody else than before, it starts from nothing.

        `owner`: 64 bits that tell one loaded version from another. Returns whether it was somebody else. The
        front end before this one may have died before it heard of that.
        """
        row = self._mine[model]
        if row[_OWNER] == owner:
            return False
        for position in range(len(row)):
            row[position] = 0
        row[_OWNER] = owner
        return True

    def totals(self, model: int) -> ModelTotals:
        """Of one model, by its index."""
        rows = self._all[:, model]
        # Not those of a front end that has not heard yet who has this place now.
        rows = rows[rows[:, _OWNER] == self._mine[model][_OWNER]]
        sums = [int(total) for total in rows.sum(axis=0)]
        return ModelTotals(
            success=sums[_SUCCESS],
            success_ns=sums[_SUCCESS_NS],
            fail=sums[_FAIL],
            fail_ns=sums[_FAIL_NS],
            queue_ns=sums[_QUEUE_NS],
            compute_ns=sums[_COMPUTE_NS],
            delivery_ns=sums[_DELIVERY_NS],
            rows=sums[_ROWS],
            executions=(sums[_EXECUTIONS] + _PARTS // 2) // _PARTS,
            last_ms=int(rows[:, _LAST_MS].max()),
        )
