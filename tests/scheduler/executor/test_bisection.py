"""The search for the rows that made a batch raise: who is found, in how many runs, by when."""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import _ring
from scheduler.clock import VirtualClock
from scheduler.executor.bisection import MOST_GUILTY, FailureExtent, Outcomes, Positions, bisect, most_runs
from scheduler.executor.runner import DeviceLost
from scheduler.partition import Outcome

MS = 1_000_000
LONG_NS = 10_000 * MS
RESULT, ERROR, NON_FINITE, EXPIRED = Outcome.RESULT, Outcome.ERROR, Outcome.NON_FINITE, Outcome.EXPIRED


@dataclass
class Rows:
    """A batch whose guilty rows make every run raise that they are part of; each run takes `run_ns`.

    A run checks what holds for all of them: it is in time, and a row that has its result is not run again.
    """

    count: int
    guilty: Collection[int] = ()
    hollow: Collection[int] = ()
    deadlines_ns: dict[int, int] = field(default_factory=dict)
    run_ns: int = 0
    clock: VirtualClock = field(default_factory=VirtualClock)
    runs: list[list[int]] = field(default_factory=list)
    done: set[int] = field(default_factory=set)

    def run(self, positions: Positions) -> Outcomes:
        rows = positions.tolist()
        assert rows
        assert not self.done & set(rows)
        assert all(self._deadline_ns(row) >= self.clock.now_ns() for row in rows)
        self.runs.append(rows)
        self.clock.advance(self.run_ns)
        if not set(rows).isdisjoint(self.guilty):
            raise ValueError(f"one of {rows}")
        self.done |= set(rows)
        return np.array([NON_FINITE if row in self.hollow else RESULT for row in rows], np.uint8)

    def bisect(self, budget_ns: int = LONG_NS) -> tuple[list[int], FailureExtent]:
        """What each row ended as, after checks that always hold."""
        deadlines_ns = np.array([self._deadline_ns(row) for row in range(self.count)], np.uint64)
        outcomes, extent = bisect(deadlines_ns, self.run, self.clock, budget_ns)
        assert extent.runs == len(self.runs) <= most_runs(self.count)
        assert {row for row, outcome in enumerate(outcomes) if outcome in (RESULT, NON_FINITE)} == self.done
        assert extent.guilty + extent.undecided == np.count_nonzero(outcomes == ERROR)
        assert extent.expired == np.count_nonzero(outcomes == EXPIRED)
        return outcomes.tolist(), extent

    def _deadline_ns(self, row: int) -> int:
        return self.deadlines_ns.get(row, _ring.NO_DEADLINE)


def expected(count: int, guilty: Collection[int]) -> list[Outcome]:
    """ERROR where guilty, RESULT elsewhere."""
    return [ERROR if row in guilty else RESULT for row in range(count)]


# -- who is found -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 7))
def test_exactly_the_guilty_rows_fail(count: int) -> None:
    """Every set of guilty rows; but the empty one in a batch of one row, whose run was the batch's own."""
    for size in range(count == 1, count + 1):
        for guilty in itertools.combinations(range(count), size):
            outcomes, extent = Rows(count, guilty).bisect()
            assert outcomes == expected(count, guilty), guilty
            assert (extent.guilty, extent.undecided, extent.expired) == (size, 0, 0)


def test_row_that_was_alone_is_not_run_again() -> None:
    """The batch's run has shown it already."""
    assert Rows(1, {0}).bisect() == ([ERROR], FailureExtent(guilty=1, undecided=0, expired=0, runs=0))


@settings(deadline=None)
@given(st.integers(2, 300), st.data())
def test_few_guilty_rows_of_many_are_all_found(count: int, data: st.DataObject) -> None:
    """Up to `MOST_GUILTY` in any places, within the bound of runs; nobody else fails."""
    guilty = data.draw(st.sets(st.integers(0, count - 1), max_size=MOST_GUILTY))
    outcomes, extent = Rows(count, guilty).bisect()
    assert outcomes == expected(count, guilty)
    assert (extent.guilty, extent.undecided) == (len(guilty), 0)


def test_outcomes_of_a_run_are_kept() -> None:
    """A row that answers NaN beside a guilty one: each has its own end."""
    outcomes, _ = Rows(8, guilty={5}, hollow={1, 4}).bisect()
    assert outcomes == [RESULT, NON_FINITE, RESULT, RESULT, NON_FINITE, ERROR, RESULT, RESULT]


def test_nobody_is_guilty_of_what_does_not_happen_again() -> None:
    """A fault that came and went: every row has its result, also the one that is left over last."""
    outcomes, extent = Rows(32).bisect()
    assert outcomes == [RESULT] * 32
    assert extent.guilty == 0


def test_rows_that_fail_only_together_have_results() -> None:
    """By themselves neither of them raises."""

    def run(positions: Positions) -> Outcomes:
        if {0, 7} <= set(positions.tolist()):
            raise ValueError("0 and 7")
        return np.full(len(positions), RESULT, np.uint8)

    outcomes, extent = bisect(np.full(8, _ring.NO_DEADLINE, np.uint64), run, VirtualClock())
    assert outcomes.tolist() == [RESULT] * 8
    assert extent.guilty == 0


def test_lost_device_is_not_bisected() -> None:
    """It ends the search at once, whoever was running."""
    runs: list[int] = []

    def run(positions: Positions) -> Outcomes:
        runs.append(len(positions))
        raise DeviceLost("illegal address")

    with pytest.raises(DeviceLost, match="illegal address"):
        bisect(np.full(8, _ring.NO_DEADLINE, np.uint64), run, VirtualClock())
    assert runs == [4]


# -- in how many runs ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5, 8, 13, 32, 33, 64, 100, 256])
def test_one_guilty_row_takes_two_runs_per_halving(count: int) -> None:
    """At most, wherever it is."""
    for guilty in range(count):
        _, extent = Rows(count, {guilty}).bisect()
        assert extent.runs <= 2 * (count - 1).bit_length()


def test_part_that_must_raise_is_not_run_to_see_it() -> None:
    """The first one had its results, so the fault is in the second; a single row is run all the same."""
    rows = Rows(8, {7})
    rows.bisect()
    assert rows.runs == [[0, 1, 2, 3], [4, 5], [6], [7]]


def test_large_parts_go_first() -> None:
    """After the second of twelve runs, 32 of the 64 rows have their results; two halves take turns."""
    rows = Rows(64, {0})
    rows.bisect()
    assert [len(run) for run in rows.runs] == [32, 32, 16, 16, 8, 8, 4, 4, 2, 2, 1, 1]
    rows = Rows(16, {7, 15})
    rows.bisect()
    assert rows.runs[2:6] == [[0, 1, 2, 3], [8, 9, 10, 11], [4, 5], [12, 13]]


def test_parts_fit_buckets_that_are_powers_of_two() -> None:
    """Of 21 rows, only what is left over is of another size."""
    rows = Rows(21, {0, 20})
    rows.bisect()
    assert [len(run) for run in rows.runs] == [16, 5, 8, 8, 4, 1, 4, 4, 2, 2, 1, 1]


def test_runs_are_bounded_where_everything_is_guilty() -> None:
    """What is undecided then fails as well."""
    outcomes, extent = Rows(256, range(256)).bisect()
    assert outcomes == [ERROR] * 256
    assert extent == FailureExtent(guilty=0, undecided=256, expired=0, runs=2 * MOST_GUILTY * 8)


def test_rows_decided_before_the_bound_keep_their_results() -> None:
    """Eight guilty ones, as far apart as can be, of 256: undecided is only what is close to them."""
    guilty = range(0, 256, 32)
    outcomes, extent = Rows(256, guilty).bisect()
    assert extent == FailureExtent(guilty=0, undecided=30, expired=0, runs=most_runs(256))
    assert {row // 4 * 4 for row, outcome in enumerate(outcomes) if outcome == ERROR} == set(guilty)


# -- by when ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget_ms", "runs"),
    [
        (0, []),
        (1, [[0, 1, 2, 3]]),
        (10, [[0, 1, 2, 3]]),
        (11, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (25, [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1]]),
    ],
)
def test_no_run_starts_after_the_budget(budget_ms: int, runs: list[list[int]]) -> None:
    """Row 0 of 8 is guilty, a run takes 10 ms; what was not decided by then fails."""
    rows = Rows(8, {0}, run_ns=10 * MS)
    outcomes, extent = rows.bisect(budget_ms * MS)
    assert rows.runs == runs
    assert outcomes == expected(8, range(4 if len(runs) > 1 else 8))
    assert (extent.guilty, extent.undecided) == (0, outcomes.count(ERROR))


@pytest.mark.parametrize(("deadline_ms", "outcome"), [(9, EXPIRED), (10, RESULT)])
def test_row_is_not_computed_after_its_deadline(deadline_ms: int, outcome: Outcome) -> None:
    """Its part's turn comes at 10 ms; the row beside it is run."""
    rows = Rows(4, {0}, deadlines_ns={3: deadline_ms * MS}, run_ns=10 * MS)
    outcomes, extent = rows.bisect()
    assert outcomes == [ERROR, RESULT, RESULT, outcome]
    assert extent.expired == (outcome is EXPIRED)
    assert rows.runs[1] == ([2] if outcome is EXPIRED else [2, 3])


def test_part_without_the_expired_row_proves_nothing_about_the_other() -> None:
    """The guilty row expires; so the second part is run as a whole, and needs no search."""
    rows = Rows(8, {0}, deadlines_ns={0: 5 * MS}, clock=VirtualClock(6 * MS))
    outcomes, extent = rows.bisect()
    assert outcomes == [EXPIRED] + [RESULT] * 7
    assert rows.runs == [[1, 2, 3], [4, 5, 6, 7]]
    assert extent.guilty == 0


def test_batch_that_expired_as_a_whole_is_not_run() -> None:
    """Its first run took longer than all its deadlines."""
    rows = Rows(5, {2}, deadlines_ns=dict.fromkeys(range(5), 1), clock=VirtualClock(2))
    outcomes, extent = rows.bisect()
    assert outcomes == [EXPIRED] * 5
    assert extent == FailureExtent(guilty=0, undecided=0, expired=5, runs=0)


def test_undecided_row_past_its_deadline_expires() -> None:
    """Rather than being called an error: it would not have been run either way."""
    rows = Rows(4, {0}, deadlines_ns={1: 9 * MS, 2: 9 * MS}, run_ns=10 * MS)
    outcomes, extent = rows.bisect(1 * MS)
    assert outcomes == [ERROR, EXPIRED, EXPIRED, ERROR]
    assert (extent.undecided, extent.expired) == (2, 2)


@settings(deadline=None)
@given(
    guilty=st.lists(st.booleans(), min_size=2, max_size=40),
    deadlines_ms=st.lists(st.none() | st.integers(0, 60), min_size=40, max_size=40),
    run_ms=st.integers(0, 12),
    budget_ms=st.integers(0, 120),
)
def test_every_row_ends_as_it_must(
    guilty: Sequence[bool], deadlines_ms: Sequence[int | None], run_ms: int, budget_ms: int
) -> None:
    """Any guilty rows, deadlines, durations and budgets: no end that has no reason."""
    count = len(guilty)
    deadlines_ns = {row: ms * MS for row, ms in enumerate(deadlines_ms[:count]) if ms is not None}
    rows = Rows(count, {row for row in range(count) if guilty[row]}, (), deadlines_ns, run_ms * MS)
    outcomes, extent = rows.bisect(budget_ms * MS)
    end_ns = rows.clock.now_ns()
    assert end_ns <= max(0, budget_ms + run_ms - 1) * MS
    for row, outcome in enumerate(outcomes):
        late = deadlines_ns.get(row, end_ns) < end_ns
        alone = [row] in rows.runs
        if outcome == EXPIRED:
            assert late
        elif outcome == ERROR:
            assert (guilty[row] and alone) or (extent.undecided and not alone and not late)
        else:
            assert not guilty[row]
    cut_short = extent.runs == most_runs(count) or end_ns >= budget_ms * MS
    assert extent.undecided == 0 or cut_short
