"""What happened between readings, and how many of them are kept."""

from dataclasses import replace

import pytest

from server.telemetry.totals import BATCH_SIZE_BOUNDS, Totals
from server.telemetry.windows import TIERS, Span, Tier, Windows, sum_of
from tests.server.made_up import MODEL, NORMAL, REAL_TIME, answered, at_second, histogram, nothing, sizes


def filled(seconds: int) -> Windows:
    """Readings of a steady load, one a second."""
    windows = Windows()
    for second in range(seconds + 1):
        windows.add(at_second(second))
    return windows


def test_one_reading_is_no_span() -> None:
    """Nor is none."""
    windows = Windows()
    assert windows.over(60) is None
    windows.add(nothing())
    assert windows.over(60) is None
    assert windows.steps() == []


@pytest.mark.parametrize(("asked_s", "covered_s"), [(1, 1), (60, 60), (120, 120), (500, 500), (900, 900)])
def test_span_is_as_long_as_asked_for(asked_s: float, covered_s: float) -> None:
    """Where a coarser reading has to do, it is at most as far off as those are apart."""
    span = filled(1000).over(asked_s)
    assert span is not None
    step = next(tier.every_s for tier in TIERS if tier.every_s * (tier.kept - 1) >= asked_s)
    assert covered_s <= span.seconds < covered_s + step
    assert span.ended(priority=REAL_TIME) == pytest.approx(120 * span.seconds, abs=1)


def test_young_service_is_seen_since_its_start() -> None:
    """An hour of what is there for a minute is that minute."""
    span = filled(60).over(3600)
    assert span is not None
    assert span.seconds == 60


def test_readings_may_be_a_little_late() -> None:
    """The last second is still one, not two."""
    windows = Windows()
    for at_s in (0.0, 1.003, 2.001, 3.009):
        windows.add(nothing(at_s))
    span = windows.over(1)
    assert span is not None
    assert span.first.at_s == 2.001


def test_memory_is_bounded() -> None:
    """By the tiers, however long it goes on, and hours are still reached."""
    tiers = (Tier(1, 5), Tier(10, 4))
    windows = Windows(tiers)
    for second in range(200):
        windows.add(nothing(float(second)))
    assert [step.first.at_s for step in windows.steps()] == [195, 196, 197, 198]
    span = windows.over(1e6)
    assert span is not None
    assert span.first.at_s == 160
    assert sum(tier.every_s * tier.kept for tier in TIERS[-1:]) >= 7200


def test_what_did_not_change_is_kept_once() -> None:
    """A reading of an idle service costs no histograms."""
    windows = Windows()
    for second in range(3):
        windows.add(answered(at_s=float(second)))
    (first, second_step) = windows.steps()
    key = (MODEL, REAL_TIME)
    assert first.first.request_s[key] is second_step.last.request_s[key]
    assert first.request_s == {}


def test_reading_that_is_no_newer_is_dropped() -> None:
    """Two of one instant have no time between them."""
    windows = Windows()
    windows.add(at_second(5))
    windows.add(at_second(5))
    assert windows.over(1) is None


def test_differences_are_by_flow() -> None:
    """What was counted before is not counted again; what is new counts in full."""
    before = replace(answered(REAL_TIME, 10), at_s=1.0)
    more = answered(NORMAL, 40, wait_s=0.02)
    after = replace(
        more,
        at_s=3.0,
        requests={**before.requests, **more.requests, (MODEL, REAL_TIME, "INTERNAL"): 5},
        request_s={**before.request_s, **more.request_s},
        queue_wait_s={**before.queue_wait_s, **more.queue_wait_s},
        shed={(MODEL, NORMAL, "slots"): 7},
        restarts={"frontend-0": 0, "engine-0": 2},
        expired=3,
        depth={(MODEL, NORMAL): 9, ("other", NORMAL): 1},
    )
    span = Span(before, after)
    assert span.seconds == 2
    assert (span.ended(), span.ended(codes=("OK",)), span.ended(priority=REAL_TIME)) == (45, 40, 5)
    assert span.wait_s().count == span.wait_s(priority=NORMAL, model=MODEL).count == 40
    assert span.wait_s(priority=REAL_TIME).count == span.wait_s(model="other").count == 0
    assert (span.refused(), span.refused(reason="slots"), span.refused(reason="other")) == (7, 7, 0)
    assert (span.restarts, span.expired) == ({"engine-0": 2}, 3)
    assert (span.depth(), span.depth(model=MODEL)) == (10, 9)


def test_batches_are_those_of_all_buckets() -> None:
    """Of a model, or of all."""
    first, last = (
        nothing(0.0),
        Totals(1.0, compute_s={("a", 1): histogram({0.01: 2}), ("b", 8): histogram({1: 3})}),
    )
    assert Span(first, last).batches_s().count == 5
    assert Span(first, last).batches_s(model="a").count == 2


def test_sum_of_nothing_is_empty() -> None:
    """With the bounds that were asked for."""
    assert sum_of([], BATCH_SIZE_BOUNDS).count == 0
    assert sum_of([sizes({3: 1}), sizes({5: 2})], BATCH_SIZE_BOUNDS).total == 13
