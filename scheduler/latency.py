"""How long a batch of a given size takes: measured at warm-up, then learned from every batch.

Per model and bucket the newest `WINDOW` durations are kept, and read as quantiles. A window follows drift
within its length, and a quantile does not care how far out an outlier lies. A bucket that has not run for a
while is taken to have drifted like those that have: what it once learned of a slow spell would otherwise
keep it from ever running again.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

WINDOW = 64
# What warm-up measured counts as this many batches, so that one odd first batch moves nothing.
SEED_WEIGHT = 8
HIGH_QUANTILE = 0.95
# What has not run for this long knows nothing of its own any more; and when nothing of a model has, nobody
# is refused on its word, for nothing would correct it.
STALE_NS = 1_000_000_000


class LatencyModel(Protocol):
    """Predicted time by model and bucket, from dispatch to outputs ready; never less for a larger bucket."""

    def predict_ns(self, model: int, bucket: int) -> int:
        """The median, nanoseconds."""
        ...

    def high_ns(self, model: int, bucket: int) -> int:
        """The `HIGH_QUANTILE`, nanoseconds: what to plan with where a deadline hangs on it."""
        ...

    def least_ns(self, model: int, bucket: int, now_ns: int) -> int:
        """What to refuse by, nanoseconds: the median, or less where that may be out of date."""
        ...


@dataclass(frozen=True, slots=True)
class BucketLatency:
    """What is known of one bucket, nanoseconds; `seed` is the warm-up's figure."""

    bucket: int
    median_ns: int
    high_ns: int
    seed_ns: int


class _Window:
    """The newest durations of one bucket, in order of arrival and in order of size."""

    def __init__(self, seed_ns: int) -> None:
        self.seed_ns = seed_ns
        self.observed_ns = 0  # when the newest was measured
        self._recent = deque([seed_ns] * SEED_WEIGHT, maxlen=WINDOW)
        self._ordered = list(self._recent)

    def add(self, duration_ns: int, now_ns: int) -> None:
        if len(self._recent) == WINDOW:
            del self._ordered[bisect_left(self._ordered, self._recent[0])]
        self._recent.append(duration_ns)
        insort(self._ordered, duration_ns)
        self.observed_ns = now_ns

    def restart(self, expected_ns: int) -> None:
        """Forgets what has been measured, for what may be expected instead."""
        self._recent.clear()
        self._recent.extend([expected_ns] * SEED_WEIGHT)
        self._ordered = list(self._recent)

    def quantile(self, q: float) -> int:
        return self._ordered[int(q * len(self._ordered))]


class LearnedLatency:
    """The latency model of one engine. `observe` is serialised by the caller; reading needs no lock."""

    def __init__(self) -> None:
        self._windows: dict[int, dict[int, _Window]] = {}
        # What readers see: replaced as a whole, so that they never see half an update.
        self._known: dict[int, dict[int, BucketLatency]] = {}
        self._observed_ns: dict[int, int] = {}

    def seed(self, model: int, measured_ns: Mapping[int, int]) -> None:
        """Takes what warm-up measured of one model, bucket to nanoseconds; forgets what was learned."""
        self._windows[model] = {bucket: _Window(ns) for bucket, ns in sorted(measured_ns.items())}
        self._observed_ns[model] = 0
        self._settle(model, 0)

    def observe(self, model: int, bucket: int, duration_ns: int, now_ns: int) -> None:
        """Learns from one batch."""
        window = self._windows.get(model, {}).get(bucket)
        if window is not None:
            if now_ns - window.observed_ns >= STALE_NS:
                known = self._known[model][bucket]
                # Where all of the model has paused, what it last knew may be of a slow spell.
                paused = now_ns - self._observed_ns[model] >= STALE_NS
                window.restart(min(known.median_ns, known.seed_ns) if paused else known.median_ns)
            window.add(duration_ns, now_ns)
            self._observed_ns[model] = now_ns
            self._settle(model, now_ns)

    def predict_ns(self, model: int, bucket: int) -> int:
        """See `LatencyModel`; 0 for a model that was never seeded."""
        known = self._known.get(model, {}).get(bucket)
        return known.median_ns if known else 0

    def high_ns(self, model: int, bucket: int) -> int:
        """See `LatencyModel`; 0 for a model that was never seeded."""
        known = self._known.get(model, {}).get(bucket)
        return known.high_ns if known else 0

    def least_ns(self, model: int, bucket: int, now_ns: int) -> int:
        """See `LatencyModel`; 0 for a model that was never seeded."""
        known = self._known.get(model, {}).get(bucket)
        if known is None:
            return 0
        if now_ns - self._observed_ns[model] < STALE_NS:
            return known.median_ns
        return min(known.median_ns, known.seed_ns)

    def table(self, model: int) -> list[BucketLatency]:
        """What is known of each bucket, ascending."""
        return list(self._known.get(model, {}).values())

    def _settle(self, model: int, now_ns: int) -> None:
        """Reads the windows. A larger batch cannot really be faster, so where noise says so the larger figure
        holds for both; but no guess lifts a measurement.
        """
        windows = self._windows[model]
        fresh = {b: w for b, w in windows.items() if w.observed_ns and now_ns - w.observed_ns < STALE_NS}
        measured = fresh or windows
        medians = _monotone({b: w.quantile(0.5) for b, w in measured.items()}, windows)
        highs = _monotone({b: w.quantile(HIGH_QUANTILE) for b, w in measured.items()}, windows)
        known = {}
        seed = 0
        for bucket, window in windows.items():
            seed = max(seed, window.seed_ns)
            median = medians[bucket]
            known[bucket] = BucketLatency(bucket, median, max(median, highs[bucket]), seed)
        self._known[model] = known


def _monotone(measured: Mapping[int, int], windows: Mapping[int, _Window]) -> dict[int, int]:
    """A figure for every bucket, ascending, from those of some: the others have drifted like them."""
    drift = sum([ns / max(1, windows[b].seed_ns) for b, ns in measured.items()]) / len(measured)
    rising: dict[int, int] = {}
    least = 0
    for bucket, ns in measured.items():
        least = rising[bucket] = max(least, ns)
    ceiling: int | None = None
    ceilings = {}
    for bucket in reversed(list(windows)):
        ceiling = rising.get(bucket, ceiling)
        ceilings[bucket] = ceiling
    figures: dict[int, int] = {}
    least = 0
    for bucket, window in windows.items():
        if bucket in rising:
            least = rising[bucket]
        else:
            least = max(least, int(window.seed_ns * drift))
            if (most := ceilings[bucket]) is not None:
                least = min(least, most)
        figures[bucket] = least
    return figures
