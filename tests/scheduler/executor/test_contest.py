"""Which form wins which batch sizes, on a clock that the forms turn themselves."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from scheduler.clock import VirtualClock
from scheduler.executor.contest import Contest, Verdict
from scheduler.executor.runner import Array
from tests.scheduler.executor.passage import Function, signature

MS = 1_000_000
BUCKETS = (1, 2, 4, 8, 16, 32, 64)
# Milliseconds of a batch of so many rows, in the n-th call.
Cost = Callable[[int, int], float]


class Track:
    """Forms that compute nothing and take their time."""

    def __init__(self, costs: Mapping[str, Cost]) -> None:
        self.clock = VirtualClock()
        self.calls: list[tuple[str, int]] = []
        forms = {name: Function(signature(), self._runs(name, cost)) for name, cost in costs.items()}
        self.contest = Contest(forms, lambda rows: [np.zeros((rows, 2), np.float32)], self.clock)

    def decide(self, budget_ms: float | None = 10, buckets: Sequence[int] = BUCKETS) -> Verdict:
        return self.contest.decide(buckets, None if budget_ms is None else int(budget_ms * MS))

    def _runs(self, name: str, cost: Cost) -> Callable[[Sequence[Array]], Sequence[Array]]:
        def run(inputs: Sequence[Array]) -> Sequence[Array]:
            rows = len(inputs[0])
            self.clock.advance(int(cost(rows, self.calls.count((name, rows))) * MS))
            self.calls.append((name, rows))
            return inputs

        return run


def per_row(fixed: float, each: float) -> Cost:
    return lambda rows, _call: fixed + each * rows


def test_what_is_faster_at_both_ends_has_all_sizes() -> None:
    """Without a measurement in between; 64 rows take longer than the budget and go with 32."""
    track = Track({"a": per_row(0.2, 0.2), "b": per_row(0.1, 0.1)})
    verdict = track.decide()
    assert verdict.by_bucket == dict.fromkeys(BUCKETS, "b")
    assert verdict.ns == {1: {"a": 0.4 * MS, "b": 0.2 * MS}, 32: {"a": 6.6 * MS, "b": 3.3 * MS}}
    assert ("b", 64) not in track.calls


def test_each_size_has_the_form_that_is_faster_there() -> None:
    """b has less to do before the first row, a less for each: they cross between 4 and 8."""
    verdict = Track({"a": per_row(0.9, 0.2), "b": per_row(0.1, 0.35)}).decide()
    assert verdict.by_bucket == {bucket: "b" if bucket <= 4 else "a" for bucket in BUCKETS}


def test_three_forms_can_have_a_range_each() -> None:
    verdict = Track({"a": per_row(0.5, 0.2), "b": per_row(0.1, 0.3), "c": per_row(1.5, 0.1)}).decide()
    fastest = {
        bucket: min(
            "abc",
            key=lambda name: {"a": 0.5 + 0.2 * bucket, "b": 0.1 + 0.3 * bucket, "c": 1.5 + 0.1 * bucket}[
                name
            ],
        )
        for bucket in BUCKETS
    }
    assert verdict.by_bucket == fastest
    assert set(fastest.values()) == {"a", "b", "c"}


@pytest.mark.parametrize(("factor", "winner"), [(0.96, "a"), (0.94, "b"), (1.0, "a"), (1.5, "a")])
def test_less_than_a_twentieth_is_no_gain(factor: float, winner: str) -> None:
    """The first stays, so that noise does not decide."""
    verdict = Track({"a": per_row(0, 1), "b": per_row(0, factor)}).decide(budget_ms=None)
    assert set(verdict.by_bucket.values()) == {winner}


def test_a_later_form_has_to_beat_the_winner_before_it() -> None:
    verdict = Track({"a": per_row(0, 1), "b": per_row(0, 0.8), "c": per_row(0, 0.78)}).decide()
    assert set(verdict.by_bucket.values()) == {"b"}


def test_a_stall_now_and_then_decides_nothing() -> None:
    """Every fifth call takes twenty times as long."""

    def stalls(rows: int, call: int) -> float:
        return 0.1 * rows * (20 if call % 5 == 4 else 1)

    verdict = Track({"a": per_row(0, 0.12), "b": stalls}).decide()
    assert set(verdict.by_bucket.values()) == {"b"}


def test_what_is_hopeless_is_measured_for_two_rounds_only() -> None:
    """One cold call and two that count in each; the times are told all the same."""
    track = Track({"a": per_row(0, 1), "b": per_row(0, 1.5), "c": per_row(0, 1.1)})
    verdict = track.decide(budget_ms=2, buckets=(1,))
    assert track.calls.count(("b", 1)) == 6
    assert track.calls.count(("c", 1)) > 6
    assert verdict.ns[1]["b"] == 1.5 * MS


def test_forms_take_turns() -> None:
    track = Track({"a": per_row(0, 1), "b": per_row(0, 1)})
    track.decide(buckets=(1,))
    assert track.calls == 7 * [*3 * [("a", 1)], *3 * [("b", 1)]]


def test_slow_models_are_measured_less_often() -> None:
    """After three rounds a tenth of a second is enough."""
    track = Track({"a": per_row(0, 40), "b": per_row(0, 41)})
    track.decide(buckets=(1,))
    assert track.calls.count(("a", 1)) == 9


def test_one_size_is_measured_even_if_it_takes_longer_than_the_budget() -> None:
    verdict = Track({"a": per_row(0, 100), "b": per_row(0, 50)}).decide(budget_ms=10)
    assert set(verdict.by_bucket.values()) == {"b"}
    assert list(verdict.ns) == [1]


def test_without_a_budget_the_largest_size_counts() -> None:
    """The forms cross at 48 rows."""
    verdict = Track({"a": per_row(48, 1), "b": per_row(0, 2)}).decide(budget_ms=None)
    assert verdict.by_bucket == {bucket: "a" if bucket == 64 else "b" for bucket in BUCKETS}
