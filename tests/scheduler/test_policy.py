import pytest

from scheduler.latency import WarmUpLatency
from scheduler.policy import (
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


def flat_latency() -> WarmUpLatency:
    """A GPU: every bucket takes 1 ms."""
    latency = WarmUpLatency()
    latency.seed(0, dict.fromkeys(PLAN.buckets, MS))
    latency.seed(1, dict.fromkeys(PLAN.buckets, MS))
    return latency


def linear_latency() -> WarmUpLatency:
    """A CPU: 0.2 ms per item and 0.3 ms per batch."""
    latency = WarmUpLatency()
    latency.seed(0, {bucket: (3 * MS + bucket * 2 * MS) // 10 for bucket in PLAN.buckets})
    return latency


def backlog(
    cls: int, depth: int, waited_ms: float, *, model: int = 0, deadline_in_ms: float | None = None
) -> ClassBacklog:
    enqueued = NOW - int(waited_ms * MS)
    slack = (0, 5, 50, 500, 2000)[cls] * MS
    deadline = None if deadline_in_ms is None else NOW + int(deadline_in_ms * MS)
    return ClassBacklog(model, cls, depth, enqueued + slack, enqueued, deadline)


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
    assert decide(queued, [PLAN], flat_latency(), NOW) == expected


def test_smallest_key_decides_between_models() -> None:
    """Of two models whose batches go, the more urgent one is first, whatever its number."""
    queued = [backlog(2, 1, 60, model=0), backlog(0, 1, 20, model=1)]
    assert decide(queued, [PLAN, PLAN], flat_latency(), NOW) == Dispatch(1, 1)
    queued = [backlog(2, 1, 80, model=0), backlog(0, 1, 20, model=1)]
    assert decide(queued, [PLAN, PLAN], flat_latency(), NOW) == Dispatch(0, 1)


def test_a_model_that_waits_does_not_hold_back_another() -> None:
    """A smaller key whose batch does not go yet lets a larger key's batch go."""
    queued = [backlog(1, 1, 0, model=0), backlog(3, 1, 10, model=1)]
    assert decide(queued, [PLAN, PLAN], flat_latency(), NOW) == Dispatch(1, 1)


@pytest.mark.parametrize(
    ("budget_ms", "target"), [(0.1, 1), (0.5, 1), (1.2, 4), (3.4, 8), (3.6, 16), (99, 16)]
)
def test_target_is_the_largest_bucket_within_the_budget(budget_ms: float, target: int) -> None:
    """With 0.3 + 0.2 n ms a batch; at least the smallest bucket."""
    plan = BatchPlan(PLAN.buckets, PLAN.max_wait_ns, int(budget_ms * MS))
    assert plan.target_size(0, linear_latency()) == target


def test_without_a_budget_the_target_is_fixed() -> None:
    """`adaptive = false`: the largest bucket, however long it takes."""
    assert BatchPlan(PLAN.buckets, PLAN.max_wait_ns, None).target_size(0, linear_latency()) == 16


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


def test_warm_up_latency_is_monotone_in_the_bucket() -> None:
    """Noise cannot make a larger batch look cheaper."""
    latency = WarmUpLatency()
    latency.seed(0, {1: 500, 2: 450, 4: 900, 8: 800})
    assert [latency.predict_ns(0, bucket) for bucket in (1, 2, 4, 8)] == [500, 500, 900, 900]


@pytest.mark.parametrize(("depths", "expected"), [([47], False), ([48], True), ([24, 24], True), ([], False)])
def test_a_spare_instance_helps_only_when_much_is_queued(depths: list[int], expected: bool) -> None:
    """Three target batches of one model, whatever the classes."""
    queued = [backlog(cls, depth, 0) for cls, depth in enumerate(depths)]
    assert has_spare_work(queued, [PLAN], flat_latency()) is expected


def test_a_spare_instance_does_not_add_models_up() -> None:
    """Forty-seven of each of two models are no three full batches of either."""
    queued = [backlog(0, 47, 0, model=0), backlog(0, 47, 0, model=1)]
    assert not has_spare_work(queued, [PLAN, PLAN], flat_latency())
