"""Promises, over made-up readings."""

from dataclasses import replace

import pytest

from scheduler.priority import DEFAULT_LIMITS
from server.settings import SloTable
from server.telemetry.slo import FAILED, MET, MISSED, NO_DATA, Objective, error_ratio, judge, state_of
from server.telemetry.totals import Totals
from server.telemetry.windows import Span
from tests.server.made_up import BACKGROUND, MODEL, NORMAL, REAL_TIME, answered, histogram, nothing

SLO = SloTable()


def judged(last: Totals, slo: SloTable = SLO) -> dict[str, Objective]:
    """Over the time from nothing to this reading."""
    return {each.name: each for each in judge(Span(nothing(), last), slo, DEFAULT_LIMITS)}


def with_codes(codes: dict[str, int], at_s: float = 10.0) -> Totals:
    """Requests that ended with these codes, within so many seconds."""
    return Totals(at_s, requests={(MODEL, REAL_TIME, code): count for code, count in codes.items()})


def test_every_setting_is_judged_in_its_order() -> None:
    """None is left out."""
    assert list(judged(nothing(1.0))) == list(SloTable.model_fields)


def test_nothing_is_known_of_a_service_without_requests() -> None:
    """Neither kept nor missed."""
    found = judged(nothing(60.0))
    assert {each.state for each in found.values()} == {NO_DATA}
    assert state_of(list(found.values())) == NO_DATA


@pytest.mark.parametrize(
    ("late", "states"),
    [
        (0, {"p50_ms": MET, "p95_ms": MET, "p99_ms": MET, "max_ms": MET}),
        (1, {"p50_ms": MET, "p95_ms": MET, "p99_ms": MET, "max_ms": MISSED}),
        (2, {"p50_ms": MET, "p95_ms": MET, "p99_ms": MISSED, "max_ms": MISSED}),
        (6, {"p50_ms": MET, "p95_ms": MISSED, "p99_ms": MISSED, "max_ms": MISSED}),
        (51, {"p50_ms": MISSED, "p95_ms": MISSED, "p99_ms": MISSED, "max_ms": MISSED}),
    ],
)
def test_latency_is_kept_by_enough_of_the_requests(late: int, states: dict[str, str]) -> None:
    """Of a hundred, some of which take a second."""
    measured = {(MODEL, REAL_TIME): histogram({0.004: 100 - late, 0.9: late})}
    found = judged(replace(answered(), request_s=measured))
    assert {name: found[name].state for name in states} == states
    assert found["p99_ms"].good_ratio == pytest.approx(1 - late / 100)


def test_budget_burns_with_what_is_late() -> None:
    """Half of what may be late is half of the budget; where nothing may be late there is none."""
    measured = {(MODEL, REAL_TIME): histogram({0.004: 1990, 0.9: 10})}
    found = judged(replace(answered(count=2000), request_s=measured))
    assert found["p99_ms"].burn_rate == pytest.approx(0.5)
    assert found["p99_ms"].budget_left == pytest.approx(0.5)
    assert (found["max_ms"].burn_rate, found["max_ms"].budget_left) == (None, 0.0)
    all_in_time = judged(answered())
    assert (all_in_time["max_ms"].burn_rate, all_in_time["max_ms"].budget_left) == (0.0, 1.0)
    overdrawn = judged(replace(answered(), request_s={(MODEL, REAL_TIME): histogram({0.9: 100})}))
    assert overdrawn["p99_ms"].burn_rate == pytest.approx(100)
    assert overdrawn["p99_ms"].budget_left == 0.0


def test_a_class_may_stand_back_by_its_slack() -> None:
    """A second is late for real-time requests and in time for background ones, and all count together."""
    measured = {
        (MODEL, REAL_TIME): histogram({0.9: 50}),
        (MODEL, BACKGROUND): histogram({0.9: 50}),
    }
    found = judged(replace(answered(), request_s=measured))["p99_ms"]
    assert found.good_ratio == pytest.approx(0.5)
    assert [(each.priority, each.threshold, each.state) for each in found.classes] == [
        (REAL_TIME, 100, MISSED),
        (BACKGROUND, 2100, MET),
    ]
    assert found.classes[0].value > 750


def test_rate_is_missed_only_where_more_was_asked_for() -> None:
    """Few requests break no promise, unless others were turned away for want of time or room."""
    assert judged(with_codes({"OK": 600}))["min_rps"].state == MET
    quiet = judged(with_codes({"OK": 10, "INVALID_ARGUMENT": 100}))["min_rps"]
    assert (quiet.state, quiet.value, quiet.note) == (MET, 1.0, "no more were asked for")
    full = judged(with_codes({"OK": 10, "RESOURCE_EXHAUSTED": 40}))["min_rps"]
    assert (full.state, full.note) == (MISSED, "4 more a second were not answered")


def test_missing_the_wished_for_rate_breaks_no_promise() -> None:
    """`target_rps` is a goal; `min_rps` is promised."""
    found = judged(with_codes({"OK": 1000, "UNAVAILABLE": 500}))
    assert (found["min_rps"].state, found["target_rps"].state) == (MET, MISSED)
    states = [Objective("p99_ms", 1, MET), Objective("target_rps", 1, MISSED)]
    assert state_of(states) == MET
    assert state_of([*states, Objective("min_rps", 1, MISSED)]) == MISSED


@pytest.mark.parametrize("code", FAILED)
def test_errors_are_those_of_the_service(code: str) -> None:
    """Each of these codes; what callers do wrong, or take back, is neither failed nor answered."""
    span = Span(nothing(), with_codes({"OK": 98, code: 2, "INVALID_ARGUMENT": 500, "CANCELLED": 500}))
    assert error_ratio(span) == pytest.approx(0.02)
    found = judged(span.last)["max_error_ratio"]
    assert (found.state, found.note) == (MISSED, f"2 {code}")
    assert found.burn_rate == pytest.approx(2)


def test_error_ratio_is_of_a_class_too() -> None:
    """None where it has had no requests."""
    span = Span(nothing(), with_codes({"OK": 1, "INTERNAL": 1}))
    assert error_ratio(span, priority=REAL_TIME) == 0.5
    assert error_ratio(span, priority=NORMAL) is None


def test_no_errors_allowed() -> None:
    """Then one is too many, and there is no budget to burn."""
    slo = SloTable(max_error_ratio=0)
    assert judged(with_codes({"OK": 5}), slo)["max_error_ratio"].state == MET
    found = judged(with_codes({"OK": 5, "INTERNAL": 1}), slo)["max_error_ratio"]
    assert (found.state, found.burn_rate, found.budget_left) == (MISSED, None, 0.0)
