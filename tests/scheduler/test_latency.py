"""What a batch takes: seeded, learned, and what outliers, drift and age do to it."""

import itertools
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.latency import SEED_WEIGHT, STALE_NS, WINDOW, BucketLatency, LearnedLatency

BUCKETS = (1, 2, 4, 8)
NOW = 10 * STALE_NS


def seeded(*measured_ns: int) -> LearnedLatency:
    """Model 0, with these figures for the buckets 1, 2, 4 and 8; the last one for the rest."""
    latency = LearnedLatency()
    figures = [*measured_ns, *[measured_ns[-1]] * 3][:4]
    latency.seed(0, dict(zip(BUCKETS, figures, strict=True)))
    return latency


def feed(latency: LearnedLatency, bucket: int, *durations_ns: int, now_ns: int = NOW) -> None:
    for duration_ns in durations_ns:
        latency.observe(0, bucket, duration_ns, now_ns)


def test_what_was_never_seeded_takes_no_time() -> None:
    """Neither of an unknown model nor of an unknown bucket, which is not learned either."""
    latency = seeded(100)
    feed(latency, 3, 5000)
    latency.observe(7, 1, 5000, 0)
    for model, bucket in ((7, 1), (0, 3)):
        assert latency.predict_ns(model, bucket) == latency.high_ns(model, bucket) == 0
        assert latency.least_ns(model, bucket, 0) == 0
    assert latency.table(7) == []
    assert [row.bucket for row in latency.table(0)] == list(BUCKETS)


def test_warm_up_is_believed_at_first() -> None:
    """All that is known is one figure; given in any order, told in ascending order."""
    latency = LearnedLatency()
    latency.seed(0, {4: 300, 1: 100, 2: 200})
    assert latency.table(0) == [
        BucketLatency(bucket, ns, ns, ns) for bucket, ns in ((1, 100), (2, 200), (4, 300))
    ]


def test_one_odd_first_batch_moves_nothing() -> None:
    """Warm-up counts as several batches; as many of another opinion outvote it."""
    latency = seeded(100)
    feed(latency, 1, 10**9)
    assert latency.predict_ns(0, 1) == 100
    feed(latency, 1, *[150] * SEED_WEIGHT)
    assert latency.predict_ns(0, 1) == 150


@pytest.mark.parametrize("count", [WINDOW, 3 * WINDOW + 5])
def test_median_and_high_quantile_are_those_of_the_newest_batches(count: int) -> None:
    """As sorting the window would give them; 95 in a hundred are no slower than the high one."""
    noise = random.Random(count)
    durations = [noise.randrange(1000, 9000) for _ in range(count)]
    latency = seeded(1)
    feed(latency, 8, *durations)
    window = sorted(durations[-WINDOW:])
    assert latency.predict_ns(0, 8) == statistics.median_high(window)
    slower = sum(duration > latency.high_ns(0, 8) for duration in window)
    assert slower / WINDOW <= 0.05 < (slower + 1) / WINDOW


@pytest.mark.parametrize("outlier_ns", [1, 10**12])
def test_outliers_do_not_move_the_median(outlier_ns: int) -> None:
    """One batch in ten is wildly off; how far makes no difference."""
    latency = seeded(100)
    for number in range(2 * WINDOW):
        feed(latency, 1, outlier_ns if number % 10 == 0 else 200)
    assert latency.predict_ns(0, 1) == 200


def test_rare_outliers_do_not_move_the_high_quantile_either() -> None:
    """Three of 64 batches are less than one in twenty, four are not."""
    latency = seeded(100)
    feed(latency, 1, *[200] * (WINDOW - 3), *[10**9] * 3)
    assert latency.high_ns(0, 1) == 200
    feed(latency, 1, 10**9)
    assert latency.high_ns(0, 1) == 10**9


@pytest.mark.parametrize("drifted_ns", [40, 900])
def test_drift_is_followed_within_the_window(drifted_ns: int) -> None:
    """After half a window the median is there, after a whole one the high quantile as well."""
    latency = seeded(100)
    feed(latency, 1, *[200] * WINDOW)
    feed(latency, 1, *[drifted_ns] * (WINDOW // 2 + 1))
    assert latency.predict_ns(0, 1) == drifted_ns
    feed(latency, 1, *[drifted_ns] * (WINDOW // 2))
    assert latency.high_ns(0, 1) == drifted_ns


@given(
    seeds=st.lists(st.integers(1, 1000), min_size=4, max_size=4),
    batches=st.lists(
        st.tuples(
            st.sampled_from(BUCKETS), st.integers(0, 1000), st.sampled_from([0, STALE_NS // 3, STALE_NS])
        ),
        max_size=100,
    ),
)
def test_a_larger_bucket_is_never_predicted_faster(
    seeds: list[int], batches: list[tuple[int, int, int]]
) -> None:
    """Whatever noise and age say; and the high quantile is at least the median."""
    latency, now_ns = seeded(*seeds), NOW
    for bucket, duration_ns, pause_ns in batches:
        now_ns += pause_ns
        feed(latency, bucket, duration_ns, now_ns=now_ns)
    rows = latency.table(0)
    for at_ns in (now_ns, now_ns + STALE_NS):
        least_ns = [latency.least_ns(0, bucket, at_ns) for bucket in BUCKETS]
        assert least_ns == sorted(least_ns)
        assert all(least <= row.median_ns for least, row in zip(least_ns, rows, strict=True))
    for smaller, larger in itertools.pairwise(rows):
        assert smaller.median_ns <= larger.median_ns
        assert smaller.high_ns <= larger.high_ns
        assert smaller.seed_ns <= larger.seed_ns
    assert all(row.median_ns <= row.high_ns for row in rows)
    assert [latency.predict_ns(0, bucket) for bucket in BUCKETS] == [row.median_ns for row in rows]
    assert [latency.high_ns(0, bucket) for bucket in BUCKETS] == [row.high_ns for row in rows]


def test_noise_in_a_small_bucket_holds_for_the_larger_ones() -> None:
    """Seeded and learned alike."""
    latency = seeded(500, 450, 900, 800)
    assert [latency.predict_ns(0, bucket) for bucket in BUCKETS] == [500, 500, 900, 900]
    for bucket, duration_ns in zip(BUCKETS, (950, 450, 900, 800), strict=True):
        feed(latency, bucket, *[duration_ns] * WINDOW)
    assert [latency.predict_ns(0, bucket) for bucket in BUCKETS] == [950, 950, 950, 950]


# -- what has not run for a while ---------------------------------------------------------------


def medians(latency: LearnedLatency) -> list[int]:
    return [row.median_ns for row in latency.table(0)]


def test_what_never_ran_is_taken_to_have_drifted_like_what_runs() -> None:
    """Batches of two take three times as long as at warm-up, and one in ten of them five times."""
    latency = seeded(100, 200, 400, 800)
    feed(latency, 2, *[1000 if number % 10 == 0 else 600 for number in range(WINDOW)])
    assert medians(latency) == [300, 600, 1200, 2400]
    assert [row.high_ns for row in latency.table(0)] == [500, 1000, 2000, 4000]
    assert [row.seed_ns for row in latency.table(0)] == [100, 200, 400, 800]


def test_the_mean_drift_of_what_runs_counts() -> None:
    """Twice and four times as long: the others three times. Each that runs is believed on its own word."""
    latency = seeded(100, 200, 400, 800)
    feed(latency, 1, *[200] * WINDOW)
    feed(latency, 4, *[1600] * WINDOW)
    assert medians(latency) == [200, 600, 1600, 2400]


@pytest.mark.parametrize(("age_ns", "at_8"), [(STALE_NS - 1, 3200), (STALE_NS, 800)])
def test_what_was_learned_in_a_slow_spell_does_not_outlive_it(age_ns: int, at_8: int) -> None:
    """Batches of eight were four times as slow when they last ran; those of one are as at warm-up again."""
    latency = seeded(100, 200, 400, 800)
    feed(latency, 8, *[3200] * WINDOW)
    assert medians(latency) == [400, 800, 1600, 3200]
    feed(latency, 1, *[100] * WINDOW, now_ns=NOW + age_ns)
    assert medians(latency)[-1] == at_8
    assert medians(latency)[0] == 100


def test_what_runs_again_begins_with_what_was_expected_of_it() -> None:
    """And forgets what it has learned: as much of another opinion as after warm-up outvotes it."""
    latency = seeded(100, 200, 400, 800)
    feed(latency, 8, *[3200] * WINDOW)
    feed(latency, 1, *[200] * WINDOW, now_ns=NOW + STALE_NS)
    assert medians(latency) == [200, 400, 800, 1600]
    feed(latency, 8, *[3200] * (SEED_WEIGHT - 1), now_ns=NOW + STALE_NS)
    assert medians(latency)[-1] == 1600
    feed(latency, 8, 3200, now_ns=NOW + STALE_NS)
    assert medians(latency)[-1] == 3200
    feed(latency, 8, *[800] * (SEED_WEIGHT + 1), now_ns=NOW + 2 * STALE_NS)
    assert medians(latency)[-1] == 800


@pytest.mark.parametrize(
    ("learned_ns", "age_ns", "expected"),
    [
        (300, STALE_NS - 1, 300),
        (300, STALE_NS, 100),  # nobody is refused by what may have passed: back to the seed
        (40, STALE_NS, 40),  # what was fast stays fast
        (40, STALE_NS - 1, 40),
    ],
)
def test_a_slow_figure_grows_stale(learned_ns: int, age_ns: int, expected: int) -> None:
    """A model that has paused is assumed to be as fast as at warm-up, until batches show otherwise."""
    latency = seeded(100)
    feed(latency, 1, *[learned_ns] * WINDOW)
    assert latency.least_ns(0, 1, NOW + age_ns) == expected
    feed(latency, 1, *[learned_ns] * (SEED_WEIGHT + 1), now_ns=NOW + age_ns)
    assert latency.least_ns(0, 1, NOW + age_ns) == learned_ns


def test_one_bucket_that_runs_keeps_its_model_from_growing_stale() -> None:
    """And no other model."""
    latency = seeded(100)
    latency.seed(1, dict.fromkeys(BUCKETS, 100))
    for model in range(2):
        for _ in range(WINDOW):
            latency.observe(model, 1, 300, NOW)
    feed(latency, 8, *[300] * WINDOW, now_ns=NOW + STALE_NS // 2)
    at_ns = NOW + STALE_NS
    assert [latency.least_ns(0, bucket, at_ns) for bucket in BUCKETS] == [300] * 4
    assert [latency.least_ns(1, bucket, at_ns) for bucket in BUCKETS] == [100] * 4


def test_seeding_again_forgets_what_was_learned() -> None:
    """Another version of the model has been warmed up; other models keep theirs."""
    latency = seeded(100)
    latency.seed(1, {1: 70})
    feed(latency, 1, *[500] * WINDOW)
    latency.seed(0, {1: 80})
    assert latency.table(0) == [BucketLatency(1, 80, 80, 80)]
    assert latency.predict_ns(1, 1) == 70
