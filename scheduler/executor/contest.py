"""Which form of a model computes a batch the fastest, for every batch size.

Measured is at one row and at the largest batch that fits the latency budget. Where one form wins at both, it
has all sizes between; otherwise the size in the middle is measured, and so on. Sizes above the largest go
with it.

All forms take turns, so that what else the machine does hits each alike, and one only wins over those
before it by `MIN_GAIN`, so that noise does not decide.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from scheduler.clock import Clock
from scheduler.executor.runner import Array, Runner

MIN_GAIN = 0.05
# Calls in a row of one form and round: the first finds the caches full of another.
_COLD_CALLS, _TIMED_CALLS = 1, 2
_MOST_ROUNDS, _LEAST_ROUNDS = 7, 3
# After the least of rounds, this is all that one batch size may take.
_ENOUGH_NS = 100_000_000
# What is slower by this factor after two rounds is not going to win.
_HOPELESS, _HOPELESS_AFTER = 1.3, 2
# To find out which batch sizes fit the budget; TorchScript compiles in the first two calls of a shape.
_TRIAL_CALLS = 3

Inputs = Callable[[int], Sequence[Array]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a contest has found.

    Attributes:
        by_bucket: the name of the fastest, for every batch size.
        ns: of the sizes that were measured, the median time of each form.
    """

    by_bucket: dict[int, str]
    ns: dict[int, dict[str, int]] = field(default_factory=dict)


class Contest:
    """Of forms of one model, by name, in the order of preference: the first is the one to beat."""

    def __init__(self, forms: Mapping[str, Runner], inputs: Inputs, clock: Clock) -> None:
        """`inputs(rows)`: a batch. `clock`: what is measured with."""
        self._forms = forms
        self._first = next(iter(forms.values()))
        self._inputs = inputs
        self._clock = clock
        self._ns: dict[int, dict[str, int]] = {}
        self._winners: dict[int, str] = {}

    def decide(self, buckets: Sequence[int], budget_ns: int | None) -> Verdict:
        """For these batch sizes, ascending. Raises whatever a form raises."""
        fitting = self._fitting(buckets, budget_ns)
        by_bucket = self._between(fitting)
        last = by_bucket[fitting[-1]]
        return Verdict(
            {bucket: by_bucket.get(bucket, last) for bucket in buckets}, dict(sorted(self._ns.items()))
        )

    def lone_ns(self) -> int:
        """The time of one row in the first form."""
        return self._trial_ns(1)

    def _fitting(self, buckets: Sequence[int], budget_ns: int | None) -> Sequence[int]:
        """Those that the first form computes within the budget; one at least."""
        count = 1
        while count < len(buckets) and (budget_ns is None or self._trial_ns(buckets[count]) <= budget_ns):
            count += 1
        return buckets[:count]

    def _trial_ns(self, rows: int) -> int:
        batch = self._inputs(rows)
        return min(self._timed(self._first, batch) for _ in range(_TRIAL_CALLS))

    def _between(self, buckets: Sequence[int]) -> dict[int, str]:
        low, high = (self._winner(buckets[at]) for at in (0, -1))
        if low == high:
            return dict.fromkeys(buckets, low)
        if len(buckets) == 2:
            return dict(zip(buckets, (low, high), strict=True))
        middle = len(buckets) // 2
        return self._between(buckets[: middle + 1]) | self._between(buckets[middle:])

    def _winner(self, bucket: int) -> str:
        if bucket not in self._winners:
            times = self._ns[bucket] = self._measured(self._inputs(bucket))
            best = next(iter(times))
            for name, ns in times.items():
                if ns < (1 - MIN_GAIN) * times[best]:
                    best = name
            self._winners[bucket] = best
        return self._winners[bucket]

    def _measured(self, batch: Sequence[Array]) -> dict[str, int]:
        """The medians, in the order of preference."""
        started_ns = self._clock.now_ns()
        times: dict[str, list[int]] = {name: [] for name in self._forms}
        promising = list(times)
        for done in range(_MOST_ROUNDS):
            if done >= _LEAST_ROUNDS and self._clock.now_ns() - started_ns > _ENOUGH_NS:
                break
            if done == _HOPELESS_AFTER:
                fastest = min(map(min, times.values()))
                promising = [name for name, its in times.items() if min(its) <= _HOPELESS * fastest]
            if len(promising) == 1:
                break
            for name in promising:
                calls = [self._timed(self._forms[name], batch) for _ in range(_COLD_CALLS + _TIMED_CALLS)]
                times[name] += calls[_COLD_CALLS:]
        return {name: int(median(its)) for name, its in times.items()}

    def _timed(self, form: Runner, batch: Sequence[Array]) -> int:
        started_ns = self._clock.now_ns()
        form.run(batch)
        return self._clock.now_ns() - started_ns
