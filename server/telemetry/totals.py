"""What a service has counted since it started, and what it is like now: all that a view is made of.

Counts never go back, whoever died meanwhile. What happened in a span of time is the difference of two
readings.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

# Upper bounds of the buckets of every duration, seconds: 50 µs to 10 s, the last bucket has what is longer.
DURATION_BOUNDS_S = (
    *(0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.000_75),
    *(0.001, 0.001_5, 0.002, 0.003, 0.005, 0.007_5),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0),
)
# Upper bounds of the buckets of batch sizes.
BATCH_SIZE_BOUNDS = tuple(float(1 << power) for power in range(13))


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts by bucket.

    Attributes:
        bounds: upper bounds, inclusive, ascending.
        counts: one for each bound, and one for what is larger than all.
        total: sum of what was counted, in the unit of the bounds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @classmethod
    def empty(cls, bounds: tuple[float, ...]) -> "Histogram":
        """Nothing counted."""
        return cls(bounds, (0,) * (len(bounds) + 1), 0.0)

    @property
    def count(self) -> int:
        """Of everything."""
        return sum(self.counts)

    def plus(self, other: "Histogram") -> "Histogram":
        """Both together; of the same bounds."""
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Histogram(self.bounds, counts, self.total + other.total)

    def minus(self, earlier: "Histogram") -> "Histogram":
        """What has been counted since an earlier reading."""
        counts = tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True))
        return Histogram(self.bounds, counts, self.total - earlier.total)

    def quantile(self, part: float) -> float | None:
        """Interpolated within its bucket, at most the last bound; None where nothing was counted."""
        wanted = part * self.count
        if not self.count:
            return None
        below = list(accumulate(self.counts))
        at = min(bisect_left(below, wanted), len(self.bounds))
        if at == len(self.bounds):
            return self.bounds[-1]
        low = self.bounds[at - 1] if at else 0.0
        before = below[at - 1] if at else 0
        inside = (wanted - before) / self.counts[at] if self.counts[at] else 1.0
        return low + (self.bounds[at] - low) * inside

    def part_within(self, bound: float) -> float | None:
        """The part of what was counted that is at most this, interpolated; None where nothing was."""
        if not self.count:
            return None
        low, done = 0.0, 0.0
        for upper, count in zip(self.bounds, self.counts, strict=False):
            if upper >= bound:
                return (done + count * (bound - low) / (upper - low)) / self.count
            low, done = upper, done + count
        return done / self.count


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One traced request of a bucket.

    Attributes:
        trace_id: 32 hexadecimal digits.
        at_s: when it ended, seconds since 1970.
    """

    trace_id: str
    value_s: float
    at_s: float


# Model and priority class, by their names.
Flow = tuple[str, str]


@dataclass(frozen=True)
class Totals:
    """One reading. Durations are in seconds.

    Attributes:
        at_s: when, CLOCK_MONOTONIC.
        requests: ended, by model, class and gRPC code, those of RPC streams too. The model is "" where a
            request ended before it was known or never was loaded, the class where it was not known.
        request_s: of those that were answered or failed after they were let in, without those that their
            callers gave up: from arrival to answer.
        exemplars: by flow, of each bucket of `request_s` the newest request that was traced, by its position.
        queue_wait_s: from admission to dispatch.
        compute_s: of batches, by model and bucket.
        batch_size: rows of a batch without padding, by model.
        padding: rows that batches were filled up with, by model.
        shed: refused at the door, by model, class and reason.
        expired, cancelled: items that ended so after they had been let in.
        depth: items that wait, now.
        target: size that is worth waiting for, by model, now.
        in_flight_batches: by device, now.
        slots_free: by front end, now.
        up, restarts: by process; `up` is 1 or 0.
        model_ready: by model and version, 1 or 0.
        readings: of host, processes and GPUs: by metric name and label, now.
    """

    at_s: float
    requests: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    request_s: Mapping[Flow, Histogram] = field(default_factory=dict)
    exemplars: Mapping[Flow, Mapping[int, Exemplar]] = field(default_factory=dict)
    queue_wait_s: Mapping[Flow, Histogram] = field(default_factory=dict)
    compute_s: Mapping[tuple[str, int], Histogram] = field(default_factory=dict)
    batch_size: Mapping[str, Histogram] = field(default_factory=dict)
    padding: Mapping[str, int] = field(default_factory=dict)
    shed: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    expired: int = 0
    cancelled: int = 0
    depth: Mapping[Flow, int] = field(default_factory=dict)
    target: Mapping[str, int] = field(default_factory=dict)
    in_flight_batches: Mapping[str, int] = field(default_factory=dict)
    slots_free: Mapping[str, int] = field(default_factory=dict)
    up: Mapping[str, int] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)
    model_ready: Mapping[Flow, int] = field(default_factory=dict)
    readings: Mapping[tuple[str, str], float] = field(default_factory=dict)
