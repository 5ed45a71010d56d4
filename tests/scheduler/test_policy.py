"""When a batch goes, and how big it is: tables of what is queued and what is decided."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from scheduler.latency import WINDOW, LearnedLatency
from scheduler.policy import (
    RIDER_COST,
    BatchPlan,
    ClassBacklog,
    Dispatch,
    WaitUntil,
    batch_size,
    decide,
    has_spare_work,
)

MS = 1_000_000
NOW = 1_000 * MS
PLAN = BatchPlan(
    buckets=(1, 2, 4, 8, 16), max_wait_ns=(0, 1 * MS, 5 * MS, 10 * MS, 20 * MS), budget_ns=3 * MS
)


def flat_latency() -> LearnedLatency:
    """A GPU: every bucket takes 1 ms."""
    latency = LearnedLatency()
    for model in range(2):
        latency.seed(model, dict.fromkeys(PLAN.buckets, MS))
    return latency


def linear_latency() -> LearnedLatency:
    """A CPU: 0.2 ms per item and 0.3 ms per batch, which is 0.5, 0.7, 1.1, 1.9 and 3.5 ms."""
    latency = LearnedLatency()
    latency.seed(0, {bucket: (3 * MS + bucket * 2 * MS) // 10 for bucket in PLAN.buckets})
    return latency


def backlog(
    cls: int, depth: int, waited_ms: float, *, model: int = 0, deadline_in_ms: float | None = None
) -> ClassBacklog:
    enqueued = NOW - int(waited_ms * MS)
    slack = (0, 5, 50, 500, 2000)[cls] * MS
    deadline = None if deadline_in_ms is None else NOW + int(deadline_in_ms * MS)
    return ClassBacklog(model, cls, depth, enqueued + slack, enqueued, deadline)


def decided(
    queued: Sequence[ClassBacklog],
    latency: LearnedLatency,
    *,
    plan: BatchPlan = PLAN,
    target: int = 16,
    models: int = 1,
) -> Dispatch | WaitUntil:
    """Now, with the same plan and target for every model."""
    return decide(queued, [plan] * models, [target] * models, latency, NOW)


def taken(queued: Sequence[ClassBacklog], latency: LearnedLatency, **options: int | BatchPlan) -> int:
    """How many items the batch that goes now has."""
    step = decided(queued, latency, **options)  # type: ignore[arg-type]
    assert isinstance(step, Dispatch)
    return step.count


@pytest.mark.parametrize(
    ("queued", "expected"),
    [
        ([], WaitUntil(None)),
        ([backlog(0, 1, 0)], Dispatch(0, 1)),  # real-time goes now
        ([backlog(1, 1, 0)], WaitUntil(NOW + 1 * MS)),
        ([backlog(1, 1, 1)], Dispatch(0, 1)),  # has waited its max_wait
        ([backlog(2, 3, 4)], WaitUntil(NOW + 1 * MS)),
        ([backlog(4, 15, 0)], WaitUntil(NOW + 20 * MS)),
        ([backlog(4, 16, 0)], Dispatch(0, 16)),  # full
        ([backlog(4, 90, 0)], Dispatch(0, 16)),  # never more than the target
        ([backlog(0, 1, 0), backlog(4, 5, 0)], Dispatch(0, 6)),  # bulk rides along
        ([backlog(2, 1, 0, deadline_in_ms=3)], WaitUntil(NOW + 2 * MS)),  # must start by then
        ([backlog(2, 1, 0, deadline_in_ms=1)], Dispatch(0, 1)),
        ([backlog(2, 1, 0, deadline_in_ms=-5)], Dispatch(0, 1)),  # take() will say EXPIRED
        ([backlog(2, 1, 2), backlog(3, 1, 9)], WaitUntil(NOW + 1 * MS)),  # the sooner of two
    ],
)
def test_when_a_batch_goes(queued: list[ClassBacklog], expected: Dispatch | WaitUntil) -> None:
    """Full, waited long enough, or a deadline near; else the instant at which one of them is."""
    assert decided(queued, flat_latency()) == expected


def test_smallest_key_decides_between_models() -> None:
    """Of two models whose batches go, the more urgent one is first, whatever its number."""
    queued = [backlog(2, 1, 60, model=0), backlog(0, 1, 20, model=1)]
    assert decided(queued, flat_latency(), models=2) == Dispatch(1, 1)
    queued = [backlog(2, 1, 80, model=0), backlog(0, 1, 20, model=1)]
    assert decided(queued, flat_latency(), models=2) == Dispatch(0, 1)


def test_a_model_that_waits_does_not_hold_back_another() -> None:
    """A smaller key whose batch does not go yet lets a larger key's batch go."""
    queued = [backlog(1, 1, 0, model=0), backlog(3, 1, 10, model=1)]
    assert decided(queued, flat_latency(), models=2) == Dispatch(1, 1)


@pytest.mark.parametrize(
    ("queued", "flat", "linear"), [(1, 1, 1), (3, 3, 2), (5, 5, 4), (8, 8, 8), (9, 9, 8), (15, 15, 15)]
)
def test_padding_only_where_it_pays(queued: int, flat: int, linear: int) -> None:
    """A GPU pads up to the next bucket; a CPU runs the full smaller one when that serves more per ns."""
    assert batch_size(0, PLAN, queued, flat_latency()) == flat
    assert batch_size(0, PLAN, queued, linear_latency()) == linear


def test_bucket_for_more_than_the_largest_is_a_bug() -> None:
    """No batch is larger than what was warmed up."""
    with pytest.raises(ValueError, match="17 items in a batch, the largest bucket is 16"):
        PLAN.bucket_for(17)


# -- company for urgent work --------------------------------------------------------------------

BULK_BEHIND = backlog(4, 90, 25)  # has waited long enough, and its key is far in the future


@pytest.mark.parametrize(
    ("urgent", "flat", "linear"),
    [
        (1, 16, 1),  # on a GPU the rest of the batch is free, on a CPU it would double the time
        (2, 16, 2),
        (3, 16, 2),  # a full smaller batch now serves more per ns than three in a batch of four
        (5, 16, 4),
        (7, 16, 8),  # what would be padding is filled
        (16, 16, 16),
        (40, 16, 16),  # never more than the target
    ],
)
def test_urgent_items_size_the_batch_and_bulk_rides_where_it_is_free(
    urgent: int, flat: int, linear: int
) -> None:
    """Whatever is queued behind them."""
    queued = [backlog(0, urgent, 0), BULK_BEHIND]
    assert taken(queued, flat_latency()) == flat
    assert taken(queued, linear_latency()) == linear


@pytest.mark.parametrize(
    ("at_8_ms", "at_16_ms", "count"),
    [
        (RIDER_COST, 2, 8),  # a tenth longer than the one urgent item would take alone
        (RIDER_COST + 0.001, 2, 1),
        (RIDER_COST, RIDER_COST, 16),
        (1.05, 1.15, 8),  # counted from the urgent items alone, not from one bucket to the next
    ],
)
def test_riders_cost_a_tenth_at_most(at_8_ms: float, at_16_ms: float, count: int) -> None:
    """Of the time of the batch without them."""
    plan = replace(PLAN, buckets=(1, 8, 16))
    latency = LearnedLatency()
    latency.seed(0, {1: MS, 8: round(at_8_ms * MS), 16: round(at_16_ms * MS)})
    assert taken([backlog(0, 1, 0), BULK_BEHIND], latency, plan=plan) == count


def test_riders_are_no_more_than_there_are_and_stay_within_the_target() -> None:
    """However cheap they would be."""
    assert taken([backlog(0, 1, 0), backlog(4, 4, 0)], flat_latency()) == 5
    assert taken([backlog(0, 1, 0), BULK_BEHIND], flat_latency(), target=4) == 4


def test_which_classes_are_urgent_is_the_plans_to_say() -> None:
    """Here batch processing too: it sizes the batch as real-time does."""
    queued = [backlog(0, 1, 0), backlog(2, 7, 0), backlog(4, 90, 0)]
    assert taken(queued, linear_latency()) == 1
    plan = replace(PLAN, urgent=(True, True, True, False, False))
    assert taken(queued, linear_latency(), plan=plan) == 8


# -- bulk in front ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantum_ms", "count"), [(None, 16), (99, 16), (3.5, 16), (3.4, 8), (1.1, 4), (0.5, 1), (0.1, 1)]
)
def test_bulk_in_front_is_cut_to_the_quantum(quantum_ms: float | None, count: int) -> None:
    """So that whatever comes next waits no longer; the smallest bucket goes in any case."""
    plan = replace(PLAN, quantum_ns=None if quantum_ms is None else int(quantum_ms * MS))
    assert taken([backlog(4, 90, 25)], linear_latency(), plan=plan) == count
    assert taken([backlog(4, 90, 25), backlog(2, 7, 6)], linear_latency(), plan=plan) == count


def test_urgent_work_in_front_is_not_cut() -> None:
    """A quantum is for bulk: items that nothing may delay are served as fast as they can be."""
    plan = replace(PLAN, quantum_ns=MS)
    assert taken([backlog(0, 16, 0), BULK_BEHIND], linear_latency(), plan=plan) == 16


@pytest.mark.parametrize(("waited_ms", "count"), [(1999, 16), (2001, 4)])
def test_bulk_that_has_aged_past_urgent_work_is_in_front(waited_ms: float, count: int) -> None:
    """From its horizon on its key is the smallest; the urgent items then ride in its batch."""
    plan = replace(PLAN, quantum_ns=round(1.2 * MS))
    queued = [backlog(0, 16, 0), backlog(4, 90, waited_ms)]
    assert taken(queued, linear_latency(), plan=plan) == count


@pytest.mark.parametrize(("queued", "flat", "linear"), [(3, 3, 2), (5, 5, 4), (9, 9, 8), (15, 15, 15)])
def test_bulk_is_padded_only_where_it_pays(queued: int, flat: int, linear: int) -> None:
    """As any batch."""
    assert taken([backlog(4, queued, 25)], flat_latency()) == flat
    assert taken([backlog(4, queued, 25)], linear_latency()) == linear


# -- deadlines ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deadline_in_ms", "count"),
    [
        (3.5, 16),  # just so
        (3.4, 8),  # a smaller batch is in time
        (1.9, 8),
        (1.8, 4),
        (0.6, 1),
        (0.4, 16),  # too late in any batch: the others do not pay for it
        (-1, 16),
    ],
)
def test_a_tight_deadline_shrinks_the_batch(deadline_in_ms: float, count: int) -> None:
    """To the largest bucket that is done by then, if there is one."""
    queued = [backlog(0, 16, 0, deadline_in_ms=deadline_in_ms)]
    assert taken(queued, linear_latency()) == count


def test_the_tightest_of_several_deadlines_counts() -> None:
    """Whatever its class."""
    queued = [backlog(0, 7, 0, deadline_in_ms=50), backlog(1, 9, 0, deadline_in_ms=2)]
    assert taken(queued, linear_latency()) == 8


@pytest.mark.parametrize(
    ("ahead", "count"),
    [
        (0, 4),  # 1.1 ms, of 1.8
        (3, 4),  # the last of the four is the tight one
        (4, 16),  # four would be those before it
        (8, 16),
    ],
)
def test_a_batch_is_not_cut_to_one_without_the_tight_item(ahead: int, count: int) -> None:
    """It would be as late as ever, and the others would pay for it."""
    queued = [backlog(0, ahead, 0)] * bool(ahead) + [backlog(1, 16 - ahead, 0, deadline_in_ms=1.8)]
    assert taken(queued, linear_latency()) == count


@pytest.mark.parametrize(("bulk", "waited_ms", "count"), [(5, 3000, 8), (8, 3000, 16), (8, 1000, 8)])
def test_bulk_that_has_aged_past_the_tight_item_is_before_it(bulk: int, waited_ms: float, count: int) -> None:
    """As what is more urgent is; other bulk stands back. Five and one fit in the 8 that are in time."""
    queued = [backlog(4, bulk, waited_ms), backlog(0, 16, 0, deadline_in_ms=1.9)]
    assert taken(queued, linear_latency()) == count


def test_more_than_a_batch_of_as_urgent_items_is_not_made_later_by_smaller_batches() -> None:
    """With a queue like that the next deadlines would be missed as well; then the one item expires."""
    assert taken([backlog(0, 17, 0, deadline_in_ms=2)], linear_latency()) == 16
    queued = [backlog(0, 16, 0), backlog(1, 1, 0, deadline_in_ms=2)]
    assert taken(queued, linear_latency()) == 16
    queued = [backlog(0, 1, 0, deadline_in_ms=2), backlog(1, 15, 0), backlog(4, 90, 25)]
    assert taken(queued, linear_latency()) == 8  # less urgent ones do not count


def test_riders_do_not_make_an_urgent_item_late() -> None:
    """They would cost only a tenth more, and that tenth is not there."""
    plan = replace(PLAN, buckets=(1, 16))
    latency = LearnedLatency()
    latency.seed(0, {1: MS, 16: round(1.08 * MS)})
    for deadline_in_ms, count in ((1.05, 1), (1.1, 16)):
        queued = [backlog(0, 1, 0, deadline_in_ms=deadline_in_ms), BULK_BEHIND]
        assert taken(queued, latency, plan=plan) == count


def test_where_a_deadline_hangs_on_it_the_high_quantile_counts() -> None:
    """A tenth of the batches of eight takes 3 ms instead of 1: with 2 ms left, four items are the most."""
    latency = LearnedLatency()
    latency.seed(0, dict.fromkeys(PLAN.buckets, MS))
    for number in range(WINDOW):
        for bucket in PLAN.buckets:
            latency.observe(0, bucket, 3 * MS if bucket == 8 and number % 10 == 0 else MS, NOW)
    assert latency.predict_ns(0, 16) == MS
    assert taken([backlog(0, 16, 0, deadline_in_ms=2)], latency) == 4
    assert decided([backlog(2, 7, 0, deadline_in_ms=5)], latency) == WaitUntil(NOW + 2 * MS)


# -- spare instances ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depths", "expected"), [([31], False), ([32], True), ([], False), ([31, 31], False), ([0, 32], True)]
)
def test_a_spare_instance_helps_only_when_much_is_queued(depths: list[int], expected: bool) -> None:
    """Two target batches of one model; models are not added up."""
    assert has_spare_work(depths, [16] * len(depths)) is expected


def test_what_is_much_follows_the_target() -> None:
    """Of each model."""
    assert has_spare_work([8, 3], [4, 2])
    assert not has_spare_work([7, 3], [4, 2])
