"""Finds the rows that made a batch raise, so that only they fail. Knows no device and no arena.

A group of rows that raised is cut in two, and the parts are run; a row that raises by itself is guilty.
Where the first part of a group that raised gets its results, the fault can only be in the second, so that
one is cut without running it first. Large groups go before small ones: whatever ends the search early,
most rows have their results by then.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduler.clock import Clock
from scheduler.executor.runner import DeviceLost
from scheduler.partition import Outcome

# A batch with up to this many guilty rows is taken apart to the end, if time allows; with more, the model
# or its input is broken as a whole. Each guilty row costs at most two runs per halving.
MOST_GUILTY = 4
# How long the search may hold up what waits behind it, plus the run that is under way then: half of the
# time that a request of the most urgent class has by default. Where compute grows with the rows, a search
# for one guilty row takes as long as two runs of the batch, one for four as long as four; where a run takes
# the same at any size, one guilty row in 64 takes twelve runs.
BUDGET_NS = 50_000_000

Positions = npt.NDArray[np.intp]
Outcomes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class FailureExtent:
    """What became of a batch that raised. Its other rows have results.

    Attributes:
        guilty: rows that raised by themselves.
        undecided: rows that failed because the search for the guilty ones ended before it came to them.
        expired: rows whose deadline passed before they could be run again.
        runs: how many parts of the batch were run.
    """

    guilty: int
    undecided: int
    expired: int
    runs: int


def most_runs(rows: int) -> int:
    """The bound of runs for a batch of so many rows."""
    return 2 * MOST_GUILTY * (rows - 1).bit_length()


def bisect(
    deadlines_ns: npt.NDArray[np.uint64],
    run: Callable[[Positions], Outcomes],
    clock: Clock,
    budget_ns: int = BUDGET_NS,
) -> tuple[Outcomes, FailureExtent]:
    """Runs parts of a batch that raised until every row is decided, or the bound is reached.

    A row whose deadline has passed when its turn comes is not computed. No run starts once `budget_ns`
    are over or `most_runs` are done; what is undecided then fails as well. A batch of one row is decided
    without another run.

    Args:
        deadlines_ns: `[n]`, instants, n at least 1.
        run: computes the rows at these positions, hands their outputs on, and returns an `Outcome` for
            each. Padding that it adds must not raise. A row is not run again once this has returned.

    Returns:
        `[n]`, an `Outcome` per row: ERROR if guilty or undecided, EXPIRED, or what `run` returned. And
        how many rows of each there are.

    Raises:
        DeviceLost: by `run`. Every other exception counts against the rows that it was given.
    """
    return _Search(deadlines_ns, run, clock, budget_ns).search()


class _Search:
    """One batch's bisection. `_raised` holds disjoint groups, larger ones first, whose run raised."""

    def __init__(
        self,
        deadlines_ns: npt.NDArray[np.uint64],
        run: Callable[[Positions], Outcomes],
        clock: Clock,
        budget_ns: int,
    ) -> None:
        rows = len(deadlines_ns)
        self._deadlines_ns = deadlines_ns
        self._run = run
        self._clock = clock
        self._ends_ns = clock.now_ns() + budget_ns
        self._runs_left = self._runs_allowed = most_runs(rows)
        self._outcomes = np.full(rows, Outcome.ERROR, np.uint8)
        self._undecided = np.ones(rows, np.bool_)
        self._guilty = 0
        self._raised: deque[Positions] = deque()
        self._has_raised(np.arange(rows))

    def search(self) -> tuple[Outcomes, FailureExtent]:
        while self._raised and not self._spent():
            group = self._raised.popleft()
            cut = _largest_power_of_two_below(len(group))
            first, second = group[:cut], group[cut:]
            # A single row is never judged by what others did: it may be that nothing fails any more.
            if self._succeeds(first) and len(second) > 1:
                self._raised.append(second)
            else:
                self._succeeds(second)
        self._expire(np.flatnonzero(self._undecided))
        return self._outcomes, FailureExtent(
            guilty=self._guilty,
            undecided=int(np.count_nonzero(self._undecided)),
            expired=int(np.count_nonzero(self._outcomes == Outcome.EXPIRED)),
            runs=self._runs_allowed - self._runs_left,
        )

    def _succeeds(self, group: Positions) -> bool:
        """Runs what is left of the group; whether all of it was run and did not raise."""
        alive = self._expire(group)
        if len(alive) == 0 or self._spent():
            return False
        self._runs_left -= 1
        try:
            self._outcomes[alive] = self._run(alive)
        except DeviceLost:
            raise
        except Exception:  # of any kind, as for the batch
            self._has_raised(alive)
            return False
        self._undecided[alive] = False
        return len(alive) == len(group)

    def _has_raised(self, group: Positions) -> None:
        if len(group) == 1:
            self._guilty += 1
            self._undecided[group] = False
        else:
            self._raised.append(group)

    def _expire(self, group: Positions) -> Positions:
        late = self._deadlines_ns[group] < self._clock.now_ns()
        if not late.any():
            return group
        self._outcomes[group[late]] = Outcome.EXPIRED
        self._undecided[group[late]] = False
        return group[~late]

    def _spent(self) -> bool:
        return self._runs_left == 0 or self._clock.now_ns() >= self._ends_ns


def _largest_power_of_two_below(count: int) -> int:
    """Rather than half: buckets usually are powers of two, and such a part needs no padding in them."""
    return 1 << ((count - 1).bit_length() - 1)
