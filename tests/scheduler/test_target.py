"""The target size: what fits the latency budget, with hysteresis, and less under pressure."""

import itertools
import random

import pytest

from scheduler.latency import STALE_NS, WINDOW, LearnedLatency
from scheduler.policy import BatchPlan
from scheduler.target import ENTER_PART, TargetSizes

BUCKETS = (1, 2, 4, 8, 16)
BUDGET = 1000


def plan(budget_ns: int | None = BUDGET) -> BatchPlan:
    return BatchPlan(BUCKETS, (0,) * 5, budget_ns)


def linear(latency: LearnedLatency, item_ns: float, model: int = 0) -> None:
    """Every batch takes so long per item, from now on."""
    latency.seed(model, {bucket: int(bucket * item_ns) for bucket in BUCKETS})


def target(item_ns: float, budget_ns: int | None = BUDGET) -> tuple[TargetSizes, LearnedLatency]:
    """Of one model, warm."""
    latency = LearnedLatency()
    linear(latency, item_ns)
    return TargetSizes([plan(budget_ns)], latency), latency


@pytest.mark.parametrize(
    ("item_ns", "size"), [(1001, 1), (1000, 1), (501, 1), (500, 2), (126, 4), (125, 8), (62, 16), (1, 16)]
)
def test_after_warm_up_it_is_the_largest_bucket_that_fits(item_ns: float, size: int) -> None:
    """Exactly the budget still fits; nothing fits: the smallest."""
    sizes, _ = target(item_ns)
    assert sizes.sizes == [size]


def test_without_a_budget_it_is_fixed() -> None:
    """`adaptive = false`: the largest bucket, however long it takes, under any pressure."""
    sizes, latency = target(10**9, budget_ns=None)
    assert sizes.sizes == [16]
    sizes.shrink(3)
    linear(latency, 10**12)
    sizes.update(0)
    assert sizes.sizes == [16]


def test_restart_takes_up_what_warm_up_has_measured() -> None:
    """Made before anything is known, it had assumed that everything fits."""
    latency = LearnedLatency()
    sizes = TargetSizes([plan(), plan()], latency)
    assert sizes.sizes == [16, 16]
    linear(latency, 300, model=1)
    sizes.restart()
    assert sizes.sizes == [16, 2]


def test_it_follows_one_bucket_at_a_time() -> None:
    """Down as soon as it no longer fits, up when the next one fits; a model at a time."""
    sizes, latency = target(62)
    linear(latency, 1001)
    down = []
    for _ in range(6):
        sizes.update(0)
        down += sizes.sizes
    assert down == [8, 4, 2, 1, 1, 1]
    linear(latency, 10)
    up = []
    for _ in range(5):
        sizes.update(0)
        up += sizes.sizes
    assert up == [2, 4, 8, 16, 16]


@pytest.mark.parametrize(
    ("larger_ns", "at_8", "at_16"),
    [
        (ENTER_PART * BUDGET, 16, 16),  # room to spare: entered
        (ENTER_PART * BUDGET + 1, 8, 16),  # between the two: whoever is there stays there
        (BUDGET, 8, 16),
        (BUDGET + 1, 8, 8),  # left
    ],
)
def test_a_bucket_is_entered_later_than_it_is_left(larger_ns: float, at_8: int, at_16: int) -> None:
    """So a prediction that moves a little does not move the target."""
    for start, item_ns, expected in ((8, 120, at_8), (16, 10, at_16)):
        sizes, latency = target(item_ns)
        assert sizes.sizes == [start]
        latency.seed(0, dict.fromkeys(BUCKETS, 10) | {16: int(larger_ns)})
        sizes.update(0)
        assert sizes.sizes == [expected]


def test_noise_around_the_budget_moves_it_once_at_most() -> None:
    """Batches of 16 take the budget, give or take a tenth, for a long time."""
    noise = random.Random(1)
    sizes, latency = target(BUDGET / 16)
    seen = []
    for number in range(20 * WINDOW):
        (size,) = sizes.sizes
        latency.observe(0, size, int(size / 16 * BUDGET * noise.uniform(0.9, 1.1)), number)
        sizes.update(0)
        seen += sizes.sizes
    assert sum(before != after for before, after in itertools.pairwise(seen)) == 1
    assert seen[-1] == 8


@pytest.mark.parametrize("before", [0, 3 * WINDOW])
def test_target_that_shrank_in_a_slow_spell_grows_back_after_it(before: int) -> None:
    """Batches take four times as long for a while; larger ones, which ran last in it, do not stay slow.

    `before`: batches that had run before it, at the pace of warm-up.
    """
    sizes, latency = target(50)
    now_ns = STALE_NS

    def run(slower: int, count: int, every_ns: int = STALE_NS // 100) -> int:
        nonlocal now_ns
        for _ in range(count):
            now_ns += every_ns
            (size,) = sizes.sizes
            latency.observe(0, size, slower * 50 * size, now_ns)
            sizes.update(0)
        return sizes.sizes[0]

    assert run(1, before) == 16
    assert run(4, 500) == 4
    now_ns += STALE_NS
    assert run(1, 50) == 16
    assert run(1, 500) == 16


@pytest.mark.parametrize(("steps", "size"), [(0, 8), (1, 4), (2, 2), (3, 1), (9, 1)])
def test_pressure_takes_buckets_off(steps: int, size: int) -> None:
    """At least the smallest is left; without pressure it is as before."""
    sizes, _ = target(100)
    sizes.shrink(steps)
    assert sizes.sizes == [size]
    sizes.shrink(0)
    assert sizes.sizes == [8]


def test_pressure_is_counted_from_what_fits() -> None:
    """What is predicted goes on moving underneath."""
    sizes, latency = target(100)
    sizes.shrink(1)
    linear(latency, 10)
    sizes.update(0)
    assert sizes.sizes == [8]  # one below the 16 that fit now
    sizes.shrink(0)
    assert sizes.sizes == [16]


def test_pressure_is_shared_by_all_adaptive_models() -> None:
    """And by those only."""
    latency = LearnedLatency()
    sizes = TargetSizes([plan(), plan(None), plan()], latency)
    sizes.shrink(2)
    assert sizes.sizes == [4, 16, 4]


def test_a_limit_holds_whatever_fits() -> None:
    """Also where the size is fixed; and it goes away again."""
    for budget_ns in (None, 1_000_000_000):
        plan = BatchPlan((1, 2, 4, 8), (0,) * 5, budget_ns)
        latency = LearnedLatency()
        latency.seed(0, {1: 1, 2: 2, 4: 4, 8: 8})
        targets = TargetSizes([plan], latency)
        assert targets.sizes == [8]
        targets.limit(0, 2)
        assert targets.sizes == [2]
        targets.update(0)
        assert targets.sizes == [2]
        targets.limit(0, None)
        assert targets.sizes == [8]
